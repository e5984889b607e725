//! Which nodes still lead to an allowed item: stock, categories, cold items only, and what one request must not see.

use super::{NodeId, Trie};
use crate::{Error, Result};
use rqvae::ItemIdx;
use std::ops::Range;
use std::sync::Arc;

/// The items a search may return. Cheap to clone.
///
/// The catalogue-wide part counts live items below every node and is shared. A request's own deny list is a small
/// overlay: the nodes all of whose live items it denies, so that no beam walks into a dead end.
#[derive(Debug, Clone)]
pub struct LiveMask {
    catalogue: Arc<Catalogue>,
    denied: Option<Arc<Denied>>,
}

#[derive(Debug)]
struct Catalogue {
    /// `counts[l]`: live items below each node of level l.
    counts: Vec<Vec<u32>>,
    /// `None`: all of them are.
    live: Option<Vec<bool>>,
}

#[derive(Debug)]
struct Denied {
    /// Ascending.
    items: Vec<ItemIdx>,
    /// `blocked[l]`: nodes of level l without any live item left, ascending.
    blocked: Vec<Vec<NodeId>>,
}

impl LiveMask {
    /// Every item of `trie`.
    pub fn all(trie: &Trie) -> Self {
        Self::over(trie, None)
    }

    fn over(trie: &Trie, live: Option<Vec<bool>>) -> Self {
        let is_live = |item: &ItemIdx| live.as_ref().is_none_or(|live| live[item.0 as usize]);
        let mut below: Vec<u32> = trie.leaf_items.iter().map(|item| u32::from(is_live(item))).collect();
        let mut counts = Vec::with_capacity(trie.levels() + 1);
        for starts in trie.starts.iter().rev() {
            let sum = |ends: &[u32]| below[ends[0] as usize..ends[1] as usize].iter().sum();
            below = starts.windows(2).map(sum).collect();
            counts.push(below.clone());
        }
        counts.reverse();
        Self { catalogue: Arc::new(Catalogue { counts, live }), denied: None }
    }

    /// The same without `items`, at a cost of items times levels. Unknown and dead items are left alone.
    ///
    /// # Panics
    /// When `trie` is not the one this mask was made for.
    #[must_use]
    pub fn without(&self, trie: &Trie, items: &[ItemIdx]) -> Self {
        if items.is_empty() {
            return self.clone();
        }
        let known = |item: &ItemIdx| (item.0 as usize) < trie.items_total() && self.catalogue.is_live(*item);
        let mut denied: Vec<ItemIdx> = items.iter().copied().filter(known).collect();
        denied.extend(self.denied.iter().flat_map(|denied| &denied.items));
        denied.sort_unstable();
        denied.dedup();

        let mut nodes: Vec<(NodeId, u32)> = denied.iter().map(|item| (trie.leaves[item.0 as usize], 1)).collect();
        nodes.sort_unstable();
        let mut blocked = vec![Vec::new(); trie.levels() + 1];
        for level in (0..=trie.levels()).rev() {
            nodes.dedup_by(|next, kept| {
                let same = next.0 == kept.0;
                kept.1 += if same { next.1 } else { 0 };
                same
            });
            let counts = &self.catalogue.counts[level];
            let dead = nodes.iter().filter(|(node, denied)| counts[*node as usize] == *denied);
            blocked[level] = dead.map(|(node, _)| *node).collect();
            if level > 0 {
                for (node, _) in &mut nodes {
                    *node = trie.parent(level, *node);
                }
            }
        }
        let denied = (!denied.is_empty()).then(|| Arc::new(Denied { items: denied, blocked }));
        Self { catalogue: Arc::clone(&self.catalogue), denied }
    }

    /// Whether `item` may be returned.
    pub fn allows(&self, item: ItemIdx) -> bool {
        self.catalogue.is_live(item)
            && self.denied.as_ref().is_none_or(|denied| denied.items.binary_search(&item).is_err())
    }

    /// Number of items that may be returned.
    pub fn len(&self) -> usize {
        self.catalogue.counts[0][0] as usize - self.denied.as_ref().map_or(0, |denied| denied.items.len())
    }

    /// Whether no item may be returned.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Refuses a mask of another trie.
    pub(crate) fn check(&self, trie: &Trie) -> Result<()> {
        let counts = &self.catalogue.counts;
        if counts.len() == trie.levels() + 1 && counts.iter().zip(&trie.starts).all(|(c, s)| c.len() + 1 == s.len()) {
            return Ok(());
        }
        let nodes: Vec<usize> = (0..=trie.levels()).map(|level| trie.nodes(level)).collect();
        let found: Vec<usize> = counts.iter().map(Vec::len).collect();
        Err(Error::shape("live mask", format!("nodes per level {nodes:?}"), format!("{found:?}")))
    }

    /// The test for siblings `children` of `level`.
    pub(crate) fn siblings(&self, level: usize, children: &Range<NodeId>) -> Siblings<'_> {
        let range = |nodes: &[NodeId]| {
            let start = nodes.partition_point(|node| *node < children.start);
            start..start + nodes[start..].partition_point(|node| *node < children.end)
        };
        let blocked = self.denied.as_ref().map_or(&[][..], |denied| {
            let nodes = &denied.blocked[level];
            &nodes[range(nodes)]
        });
        let counts = self.catalogue.live.is_some().then(|| self.catalogue.counts[level].as_slice());
        Siblings { counts, blocked }
    }
}

impl Catalogue {
    fn is_live(&self, item: ItemIdx) -> bool {
        self.live.as_ref().is_none_or(|live| live.get(item.0 as usize).copied().unwrap_or(false))
    }
}

/// Which of some siblings lead to an allowed item.
pub(crate) struct Siblings<'a> {
    counts: Option<&'a [u32]>,
    blocked: &'a [NodeId],
}

impl Siblings<'_> {
    #[inline]
    pub(crate) fn leads_on(&self, node: NodeId) -> bool {
        self.counts.is_none_or(|counts| counts[node as usize] > 0)
            && (self.blocked.is_empty() || self.blocked.binary_search(&node).is_err())
    }
}

impl Trie {
    /// The mask of the items that `allowed` says yes to: a pass over the catalogue, made once and shared.
    pub fn live(&self, allowed: impl Fn(ItemIdx) -> bool) -> LiveMask {
        LiveMask::over(self, Some((0..self.items_total() as u32).map(|item| allowed(ItemIdx(item))).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trie::build::tests::table;
    use proptest::prelude::*;
    use rqvae::{SidSpec, SidTable};

    fn alive(trie: &Trie, mask: &LiveMask) -> Vec<Vec<bool>> {
        let level = |level: usize| {
            let all = 0..trie.nodes(level) as u32;
            let siblings = mask.siblings(level, &all);
            all.map(|node| siblings.leads_on(node)).collect()
        };
        (1..=trie.levels()).map(level).collect()
    }

    #[test]
    fn a_mask_of_another_trie_is_refused() {
        let trie = |codes| {
            let spec = SidSpec { codebook_sizes: vec![4, 4], suffix_size: None };
            Trie::build(&SidTable::new(spec, codes).unwrap()).unwrap()
        };
        let (a, b) = (trie(vec![0, 0, 1, 1]), trie(vec![0, 0, 0, 1]));
        assert!(LiveMask::all(&a).check(&a).is_ok());
        assert!(LiveMask::all(&a).check(&b).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        /// An overlay is the mask that a pass over the catalogue would make, in one go or in two.
        #[test]
        fn an_overlay_is_exact(
            table in table(),
            live in prop::collection::vec(prop::bool::weighted(0.8), 160),
            denied in prop::collection::vec(0u32..60, 0..40),
            cut in 0usize..40,
            full: bool,
        ) {
            let trie = Trie::build(&table).unwrap();
            let base = if full { LiveMask::all(&trie) } else { trie.live(|item| live[item.0 as usize]) };
            let items: Vec<ItemIdx> = denied.iter().map(|item| ItemIdx(*item)).collect();
            let (first, second) = items.split_at(cut.min(items.len()));
            let fresh = trie.live(|item| base.allows(item) && !items.contains(&item));
            for mask in [base.without(&trie, &items), base.without(&trie, first).without(&trie, second)] {
                prop_assert_eq!(alive(&trie, &mask), alive(&trie, &fresh));
                prop_assert_eq!(mask.len(), fresh.len());
                for item in (0..table.items() as u32).map(ItemIdx) {
                    prop_assert_eq!(mask.allows(item), fresh.allows(item));
                }
            }
        }
    }
}
