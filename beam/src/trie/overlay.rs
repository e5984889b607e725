//! Lists of items that one request must not see, or may see alone, and the nodes that follow from them.

use super::bits::Bits;
use super::{NodeId, Trie};
use rqvae::ItemIdx;
use std::ops::Range;

/// Nodes that lead to a live item, of every level, and the live items. Made by one pass over the catalogue.
#[derive(Debug)]
pub(crate) struct LiveNodes {
    pub(super) items: Bits,
    /// `levels[l]`: nodes of level l.
    levels: Vec<Bits>,
}

impl LiveNodes {
    pub(super) fn of(trie: &Trie, allowed: impl Fn(ItemIdx) -> bool) -> Self {
        let mut items = Bits::new(trie.bound());
        for item in trie.in_order() {
            if allowed(*item) {
                items.insert(item.0 as usize);
            }
        }
        let levels = trie.levels();
        let leaf = |leaf: usize| trie.items(leaf as NodeId).iter().any(|item| items.has(item.0 as usize));
        let mut below = Bits::of(trie.nodes(levels), leaf);
        let mut all = Vec::with_capacity(levels + 1);
        for level in (0..levels).rev() {
            let mut here = Bits::new(trie.nodes(level));
            // Live children come in order, so that their parents do.
            let mut end = 0;
            for child in below.iter() {
                if child >= end {
                    let parent = trie.parent(level + 1, child as NodeId);
                    here.insert(parent as usize);
                    end = trie.children(level, parent).1.end as usize;
                }
            }
            all.push(std::mem::replace(&mut below, here));
        }
        all.push(below);
        all.reverse();
        Self { items, levels: all }
    }

    /// The bits of all levels, from the root's on, then those of the items, each from a word of its own on.
    pub(crate) fn words(&self) -> Vec<u64> {
        self.levels.iter().chain([&self.items]).flat_map(|bits| bits.words().iter().copied()).collect()
    }

    #[inline]
    pub(super) fn level(&self, level: usize) -> &Bits {
        &self.levels[level]
    }
}

/// Some items, and nodes that follow from them.
#[derive(Debug)]
pub(super) struct Listed {
    /// Ascending.
    pub(super) items: Vec<ItemIdx>,
    /// `nodes[l]`: nodes of level l, ascending.
    pub(super) nodes: Vec<Vec<NodeId>>,
}

/// How a list cuts what is live.
#[derive(Debug)]
pub(super) enum Overlay {
    /// Without these items; the nodes are those all of whose live items are listed.
    Deny(Listed),
    /// These items alone, all of them live; the nodes are those above them.
    Allow(Listed),
}

impl Overlay {
    /// Items that are `live`, ascending and each once, are denied.
    pub(super) fn deny(trie: &Trie, live: Option<&LiveNodes>, items: Vec<ItemIdx>) -> Self {
        let levels = trie.levels();
        let is_live = |item: &ItemIdx| live.is_none_or(|live| live.items.has(item.0 as usize));
        let mut leaves: Vec<NodeId> = items.iter().flat_map(|item| trie.leaves(*item)).collect();
        leaves.sort_unstable();
        leaves.dedup();
        let left = |leaf: &NodeId| trie.items(*leaf).iter().any(|i| is_live(i) && items.binary_search(i).is_err());
        leaves.retain(|leaf| !left(leaf));
        let mut nodes = vec![leaves];
        for level in (0..levels).rev() {
            // A node is blocked when all its live children are; only parents of blocked children can be.
            let below = &nodes[nodes.len() - 1];
            let mut here = Vec::new();
            let mut at = 0;
            while at < below.len() {
                let parent = trie.parent(level + 1, below[at]);
                let children = trie.children(level, parent).1;
                let blocked = below[at..].partition_point(|child| *child < children.end);
                let range = children.start as usize..children.end as usize;
                let alive = live.map_or(range.len(), |live| live.level(level + 1).count(range));
                if blocked == alive {
                    here.push(parent);
                }
                at += blocked;
            }
            nodes.push(here);
        }
        nodes.reverse();
        Self::Deny(Listed { items, nodes })
    }

    /// Items of `trie`, ascending and each once, are all there is.
    pub(super) fn allow(trie: &Trie, items: Vec<ItemIdx>) -> Self {
        let mut below: Vec<NodeId> = items.iter().flat_map(|item| trie.leaves(*item)).collect();
        below.sort_unstable();
        below.dedup();
        let mut nodes = vec![below];
        for level in (0..trie.levels()).rev() {
            let mut here: Vec<NodeId> = Vec::new();
            let mut end = 0;
            for child in &nodes[nodes.len() - 1] {
                if *child >= end {
                    let parent = trie.parent(level + 1, *child);
                    end = trie.children(level, parent).1.end;
                    here.push(parent);
                }
            }
            nodes.push(here);
        }
        nodes.reverse();
        Self::Allow(Listed { items, nodes })
    }

    pub(super) fn allows(&self, item: ItemIdx) -> bool {
        match self {
            Self::Deny(list) => list.items.binary_search(&item).is_err(),
            Self::Allow(list) => list.items.binary_search(&item).is_ok(),
        }
    }
}

/// Which of some siblings lead to an allowed item.
pub(crate) struct Siblings<'a> {
    bits: Option<&'a Bits>,
    listed: &'a [NodeId],
    allow: bool,
}

impl<'a> Siblings<'a> {
    pub(super) fn new(
        live: Option<&'a LiveNodes>,
        overlay: Option<&'a Overlay>,
        level: usize,
        children: &Range<NodeId>,
    ) -> Self {
        let within = |list: &'a Listed| {
            let nodes = &list.nodes[level];
            let nodes = &nodes[nodes.partition_point(|node| *node < children.start)..];
            &nodes[..nodes.partition_point(|node| *node < children.end)]
        };
        let bits = live.map(|live| live.level(level));
        match overlay {
            None => Self { bits, listed: &[], allow: false },
            Some(Overlay::Deny(list)) => Self { bits, listed: within(list), allow: false },
            // What is allowed was live when the list was made.
            Some(Overlay::Allow(list)) => Self { bits: None, listed: within(list), allow: true },
        }
    }

    /// Whether all of them do, without looking at each.
    #[inline]
    pub(crate) fn all_lead_on(&self) -> bool {
        self.bits.is_none() && self.listed.is_empty() && !self.allow
    }

    /// The ones that do, where they are listed.
    #[inline]
    pub(crate) fn listed(&self) -> Option<&'a [NodeId]> {
        self.allow.then_some(self.listed)
    }

    #[inline]
    pub(crate) fn leads_on(&self, node: NodeId) -> bool {
        let listed = || self.listed.binary_search(&node).is_ok();
        self.bits.is_none_or(|bits| bits.has(node as usize))
            && if self.allow { listed() } else { self.listed.is_empty() || !listed() }
    }
}
