//! Which nodes still lead to an allowed item: stock, categories, cold items only, and what one request may or must not
//! see.

use super::bits::Bits;
use super::overlay::{LiveNodes, Overlay, Siblings};
use super::{NodeId, Trie};
use crate::{Error, Result};
use rqvae::ItemIdx;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// The items a search may return. Cheap to clone.
///
/// The catalogue-wide part knows which nodes lead to a live item and is shared. A request's own list is a small overlay:
/// the nodes all of whose live items it denies, or those above the items it allows, so that no beam walks into a dead
/// end. Items that came after the trie was built travel with the masks of a [`crate::TrieDelta`].
#[derive(Debug, Clone)]
pub struct LiveMask {
    base: Part,
    added: Option<Arc<Added>>,
}

/// What came after the trie was built.
#[derive(Debug)]
struct Added {
    trie: Trie,
    part: Part,
}

/// The mask of one trie.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    shape: Arc<[usize]>,
    /// Items there are, live or not; `None` when it is all below the bound.
    known: Option<Arc<Bits>>,
    bound: usize,
    /// Left out as if they had never been built in.
    removed: Option<Arc<Overlay>>,
    /// `None`: all nodes.
    live: Option<Arc<LiveNodes>>,
    /// Leaves out what was removed, too.
    overlay: Option<Arc<Overlay>>,
}

/// A mask without changes to the trie, taken apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain<'a> {
    /// What is live in the catalogue; `None`: all of it.
    pub(crate) live: Option<&'a Arc<LiveNodes>>,
    /// Whether the lists are all there is, instead of what is left out.
    pub(crate) allow: bool,
    /// Nodes of every level and items, ascending, where there is a list.
    pub(crate) lists: Option<(&'a [Vec<NodeId>], &'a [ItemIdx])>,
}

impl LiveMask {
    /// Every item of `trie`, at no cost.
    pub fn all(trie: &Trie) -> Self {
        Self { base: Part::all(trie), added: None }
    }

    /// The same without `items`, at a cost of items times levels. Unknown and dead items are left alone.
    ///
    /// # Panics
    /// When `trie` is not the one this mask was made for.
    #[must_use]
    pub fn without(&self, trie: &Trie, items: &[ItemIdx]) -> Self {
        self.each(trie, |part, trie| part.without(trie, items))
    }

    /// Only those of `items` that it allows, at a cost of items times levels. See [`Trie::live`] and [`LiveMask::and`]
    /// for a large part of the catalogue that many requests share.
    ///
    /// # Panics
    /// When `trie` is not the one this mask was made for.
    #[must_use]
    pub fn only(&self, trie: &Trie, items: &[ItemIdx]) -> Self {
        self.each(trie, |part, trie| part.only(trie, items))
    }

    /// The items that both masks allow: a category that is in stock. A pass over the catalogue, made once and shared.
    ///
    /// # Panics
    /// When `trie` is not the one this mask was made for.
    #[must_use]
    pub fn and(&self, trie: &Trie, other: &Self) -> Self {
        self.each(trie, |part, trie| part.keep(trie, |item| other.allows(item)))
    }

    /// Whether `item` may be returned.
    pub fn allows(&self, item: ItemIdx) -> bool {
        self.base.allows(item) || self.added.as_ref().is_some_and(|added| added.part.allows(item))
    }

    /// Number of items that may be returned.
    pub fn len(&self) -> usize {
        let Some(added) = &self.added else {
            return self.base.len();
        };
        let only_added = |item: &ItemIdx| added.part.allows(*item) && !self.base.allows(*item);
        let more: BTreeSet<_> = added.trie.in_order().iter().copied().filter(only_added).collect();
        self.base.len() + more.len()
    }

    /// Whether no item may be returned.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every item of `trie` but `removed`, ascending, and those of `added`. Where both tries have an ID, `added` has all
    /// its items.
    pub(super) fn changed(trie: &Trie, removed: Vec<ItemIdx>, added: Trie) -> Self {
        let base = Part::all(trie).removing(trie, removed);
        let part = Part::all(&added);
        let added = (added.items_total() > 0).then(|| Arc::new(Added { trie: added, part }));
        Self { base, added }
    }

    fn each(&self, trie: &Trie, change: impl Fn(&Part, &Trie) -> Part) -> Self {
        let added = self.added.as_ref();
        let added = added.map(|a| Arc::new(Added { trie: a.trie.clone(), part: change(&a.part, &a.trie) }));
        Self { base: change(&self.base, trie), added }
    }

    /// Refuses a mask of another trie.
    pub(crate) fn check(&self, trie: &Trie) -> Result<()> {
        let expected = shape(trie);
        if self.base.shape == expected {
            return Ok(());
        }
        let got = format!("{:?}", self.base.shape);
        Err(Error::shape("live mask", format!("nodes per level and items {expected:?}"), got))
    }

    /// Whether it is about items that came or went since the trie was built.
    pub fn is_changed(&self) -> bool {
        self.added.is_some() || self.base.removed.is_some()
    }

    /// Its parts; `None` where it is about items that came or went since the trie was built.
    pub(crate) fn plain(&self) -> Option<Plain<'_>> {
        if self.is_changed() {
            return None;
        }
        let (allow, lists) = match self.base.overlay.as_deref() {
            None => (false, None),
            Some(Overlay::Deny(list)) => (false, Some((list.nodes.as_slice(), list.items.as_slice()))),
            Some(Overlay::Allow(list)) => (true, Some((list.nodes.as_slice(), list.items.as_slice()))),
        };
        Some(Plain { live: self.base.live.as_ref(), allow, lists })
    }

    /// The mask of what was built.
    #[inline]
    pub(crate) fn base(&self) -> &Part {
        &self.base
    }

    /// What came after, with its mask.
    #[inline]
    pub(crate) fn added(&self) -> Option<(&Trie, &Part)> {
        self.added.as_ref().map(|added| (&added.trie, &added.part))
    }
}

impl Part {
    fn all(trie: &Trie) -> Self {
        let known = trie.known.clone();
        Self { shape: shape(trie), known, bound: trie.bound(), removed: None, live: None, overlay: None }
    }

    /// A pass over the catalogue.
    fn keep(&self, trie: &Trie, allowed: impl Fn(ItemIdx) -> bool) -> Self {
        let live = LiveNodes::of(trie, |item| self.allows(item) && allowed(item));
        Self { live: Some(Arc::new(live)), overlay: None, ..self.clone() }
    }

    fn removing(&self, trie: &Trie, items: Vec<ItemIdx>) -> Self {
        let removed = (!items.is_empty()).then(|| Arc::new(Overlay::deny(trie, None, items)));
        Self { removed: removed.clone(), overlay: removed, ..self.clone() }
    }

    fn without(&self, trie: &Trie, items: &[ItemIdx]) -> Self {
        let gone: BTreeSet<ItemIdx> = items.iter().copied().filter(|item| self.allows(*item)).collect();
        if gone.is_empty() {
            return self.clone();
        }
        let overlay = match self.overlay.as_deref() {
            Some(Overlay::Allow(list)) => {
                Overlay::allow(trie, list.items.iter().copied().filter(|item| !gone.contains(item)).collect())
            }
            Some(Overlay::Deny(list)) => {
                let mut all: Vec<_> = gone.iter().chain(&list.items).copied().collect();
                all.sort_unstable();
                Overlay::deny(trie, self.live.as_deref(), all)
            }
            None => Overlay::deny(trie, self.live.as_deref(), gone.into_iter().collect()),
        };
        Self { overlay: Some(Arc::new(overlay)), ..self.clone() }
    }

    fn only(&self, trie: &Trie, items: &[ItemIdx]) -> Self {
        let kept: BTreeSet<ItemIdx> = items.iter().copied().filter(|item| self.allows(*item)).collect();
        let overlay = Overlay::allow(trie, kept.into_iter().collect());
        Self { overlay: Some(Arc::new(overlay)), ..self.clone() }
    }

    #[inline]
    pub(crate) fn allows(&self, item: ItemIdx) -> bool {
        let at = item.0 as usize;
        at < self.bound
            && self.known.as_ref().is_none_or(|known| known.has(at))
            && self.live.as_ref().is_none_or(|live| live.items.has(at))
            && self.overlay.as_ref().is_none_or(|overlay| overlay.allows(item))
    }

    fn len(&self) -> usize {
        let known = || self.known.as_ref().map_or(self.bound, |known| known.count(0..known.len()));
        let live = || self.live.as_ref().map_or_else(known, |live| live.items.count(0..live.items.len()));
        match self.overlay.as_deref() {
            Some(Overlay::Allow(list)) => list.items.len(),
            Some(Overlay::Deny(list)) => live() - list.items.len(),
            None => live(),
        }
    }

    /// The test for siblings `children` of `level`.
    #[inline]
    pub(crate) fn siblings(&self, level: usize, children: &Range<NodeId>) -> Siblings<'_> {
        Siblings::new(self.live.as_deref(), self.overlay.as_deref(), level, children)
    }

    /// The test for siblings that there would be in a trie built now.
    #[inline]
    pub(crate) fn there(&self, level: usize, children: &Range<NodeId>) -> Siblings<'_> {
        Siblings::new(None, self.removed.as_deref(), level, children)
    }
}

/// Nodes of every level and places of items.
fn shape(trie: &Trie) -> Arc<[usize]> {
    (0..=trie.levels()).map(|level| trie.nodes(level)).chain([trie.items_total()]).collect()
}

impl Trie {
    /// The mask of the items that `allowed` says yes to: a pass over the catalogue, made once and shared.
    pub fn live(&self, allowed: impl Fn(ItemIdx) -> bool) -> LiveMask {
        LiveMask { base: Part::all(self).keep(self, allowed), added: None }
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
            let siblings = mask.base().siblings(level, &all);
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
                for item in (0..=table.items() as u32).map(ItemIdx) {
                    prop_assert_eq!(mask.allows(item), fresh.allows(item));
                }
            }
        }

        /// Allow lists, categories and deny lists in any order are the mask that a pass over the catalogue would make.
        #[test]
        fn lists_and_categories_compose(
            table in table(),
            owners in prop::collection::vec(0u32..70, 160),
            aliases: bool,
            steps in prop::collection::vec((0u8..4, prop::collection::vec(0u32..70, 0..60)), 0..4),
        ) {
            let trie = if aliases {
                let owners: Vec<_> = owners[..table.items()].iter().map(|owner| ItemIdx(*owner)).collect();
                Trie::build_aliases(&table, &owners).unwrap()
            } else {
                Trie::build(&table).unwrap()
            };
            let there: BTreeSet<ItemIdx> = trie.in_order().iter().copied().collect();
            let mut expected = there.clone();
            let mut mask = LiveMask::all(&trie);
            for (step, items) in steps {
                let items: Vec<ItemIdx> = items.into_iter().map(ItemIdx).collect();
                match step {
                    0 => mask = mask.only(&trie, &items),
                    1 => mask = mask.without(&trie, &items),
                    2 => mask = mask.and(&trie, &trie.live(|item| items.contains(&item))),
                    _ => mask = mask.and(&trie, &LiveMask::all(&trie).only(&trie, &items)),
                }
                expected.retain(|item| items.contains(item) != (step == 1));
            }
            let fresh = trie.live(|item| expected.contains(&item));
            prop_assert_eq!(alive(&trie, &mask), alive(&trie, &fresh));
            prop_assert_eq!((mask.len(), mask.is_empty()), (expected.len(), expected.is_empty()));
            for item in (0..80).map(ItemIdx) {
                prop_assert_eq!(mask.allows(item), expected.contains(&item));
                prop_assert_eq!(LiveMask::all(&trie).allows(item), there.contains(&item));
            }
        }
    }
}
