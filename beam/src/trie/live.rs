//! Which nodes still lead to an allowed item.

use super::{NodeId, Trie};
use rqvae::ItemIdx;
use std::collections::HashMap;
use std::sync::Arc;

/// The items that may be returned, known at every level so that no beam walks into a dead end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LiveMask {
    /// The catalogue-wide part; absent when every item is live.
    base: Option<Arc<Base>>,
    /// A request's own deny list on top.
    denied: Arc<Denied>,
}

#[derive(Debug)]
struct Base {
    items: Vec<bool>,
    /// Live items below each node, `counts[l]` for nodes of `l + 1` codes.
    counts: Vec<Vec<u32>>,
}

#[derive(Debug, Default)]
struct Denied {
    /// Sorted.
    items: Vec<ItemIdx>,
    /// Denied live items below a node, per level; nodes that are not listed have none.
    counts: Vec<HashMap<NodeId, u32>>,
}

impl LiveMask {
    /// Every item.
    pub fn all(_: &Trie) -> Self {
        Self { base: None, denied: Arc::default() }
    }

    pub(super) fn new(trie: &Trie, allowed: impl Fn(ItemIdx) -> bool) -> Self {
        let items: Vec<bool> = (0..trie.items_total() as u32).map(|item| allowed(ItemIdx(item))).collect();
        let mut counts: Vec<Vec<u32>> = trie.levels.iter().map(|level| vec![0; level.codes.len()]).collect();
        for (item, _) in items.iter().enumerate().filter(|(_, live)| **live) {
            for (level, node) in path(trie, ItemIdx(item as u32)) {
                counts[level][node as usize] += 1;
            }
        }
        Self { base: Some(Arc::new(Base { items, counts })), denied: Arc::default() }
    }

    /// The same mask without `items`: cost is items times levels, never a pass over the catalogue.
    #[must_use]
    pub fn without(&self, trie: &Trie, items: &[ItemIdx]) -> Self {
        let mut all = self.denied.items.clone();
        all.extend(items.iter().filter(|item| (item.0 as usize) < trie.items_total()));
        all.sort_unstable();
        all.dedup();
        let mut counts = vec![HashMap::new(); trie.levels()];
        for item in all.iter().filter(|item| self.base.as_ref().is_none_or(|base| base.items[item.0 as usize])) {
            for (level, node) in path(trie, *item) {
                *counts[level].entry(node).or_insert(0) += 1;
            }
        }
        Self { base: self.base.clone(), denied: Arc::new(Denied { items: all, counts }) }
    }

    /// Whether `item` may be returned.
    pub fn allows(&self, item: ItemIdx) -> bool {
        self.base.as_ref().is_none_or(|base| base.items[item.0 as usize])
            && self.denied.items.binary_search(&item).is_err()
    }

    /// Whether a node of `level` (at least 1) codes has a live item below it.
    pub(crate) fn is_live(&self, trie: &Trie, level: usize, node: NodeId) -> bool {
        let at = level - 1;
        let live = match &self.base {
            Some(base) => base.counts[at][node as usize],
            None => trie.levels[at].items[node as usize],
        };
        let denied = self.denied.counts.get(at).and_then(|counts| counts.get(&node)).copied().unwrap_or(0);
        live > denied
    }
}

/// Nodes from the leaf of `item` up: (index of the level's arrays, node).
fn path(trie: &Trie, item: ItemIdx) -> impl Iterator<Item = (usize, NodeId)> {
    let mut node = trie.leaf_of[item.0 as usize];
    (0..trie.levels()).rev().map(move |level| {
        let here = (level, node);
        node = trie.levels[level].parents[node as usize];
        here
    })
}
