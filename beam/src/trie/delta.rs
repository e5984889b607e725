//! What came and went since a trie was built: searched together with it at once, folded in when there is time.
//!
//! Additions make a small trie of their own, removals a list of blocked nodes; both travel in a [`LiveMask`]. An ID that
//! the built trie has too stands in the small one with all its items, so that their order is decided here.

use super::build::Builder;
use super::{LiveMask, Trie};
use crate::{Error, Result};
use rqvae::{Code, ItemIdx, SemanticId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Items added to and removed from a trie, in any order and any number of times.
#[derive(Clone)]
pub struct TrieDelta {
    base: Trie,
    tie: Arc<dyn Fn(ItemIdx) -> u64 + Send + Sync>,
    /// IDs of added items, with their holders in the order of a leaf.
    added: BTreeMap<SemanticId, BTreeSet<(u64, ItemIdx)>>,
    /// IDs of every added item.
    ids: BTreeMap<ItemIdx, BTreeSet<SemanticId>>,
    /// Items of the base that are gone.
    removed: BTreeSet<ItemIdx>,
}

impl fmt::Debug for TrieDelta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrieDelta").field("added", &self.added).field("removed", &self.removed).finish_non_exhaustive()
    }
}

impl TrieDelta {
    /// No changes to `base`. Items that share an ID come by their numbers, as [`Trie::build`] has them.
    pub fn new(base: &Trie) -> Self {
        Self::with_ties(base, |item| u64::from(item.0))
    }

    /// No changes to `base`. Items that share an ID come by `tie_hash`, as [`Trie::build_with_ties`] has them.
    pub fn with_ties(base: &Trie, tie_hash: impl Fn(ItemIdx) -> u64 + Send + Sync + 'static) -> Self {
        let (added, ids, removed) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { base: base.clone(), tie: Arc::new(tie_hash), added, ids, removed }
    }

    /// Gives `item` the ID `codes`, beside any that it has. A moved item is removed first.
    ///
    /// # Errors
    /// The codes are no ID of this trie, or the item's number is the greatest there is.
    pub fn add(&mut self, item: ItemIdx, codes: &[Code]) -> Result<()> {
        let spec = self.base.spec();
        if item.0 == u32::MAX {
            return Err(Error::shape("added item", format!("a number below {}", u32::MAX), item.0));
        }
        let fits = codes.iter().enumerate().all(|(level, code)| u32::from(*code) < spec.codes_at(level));
        if codes.len() != spec.len() || !fits {
            let sizes: Vec<u32> = (0..spec.len()).map(|level| spec.codes_at(level)).collect();
            let got = format!("{codes:?}");
            return Err(Error::shape("ID of an added item", format!("one code below each of {sizes:?}"), got));
        }
        let sid = SemanticId::new(codes)?;
        self.added.entry(sid).or_default().insert(((self.tie)(item), item));
        self.ids.entry(item).or_default().insert(sid);
        Ok(())
    }

    /// Takes all IDs from `item`; whether it had any.
    pub fn remove(&mut self, item: ItemIdx) -> bool {
        let ids = self.ids.remove(&item).unwrap_or_default();
        for sid in &ids {
            if let Some(holders) = self.added.get_mut(sid) {
                holders.remove(&((self.tie)(item), item));
                if holders.is_empty() {
                    self.added.remove(sid);
                }
            }
        }
        let built = self.base.places_of(item).next().is_some() && self.removed.insert(item);
        built || !ids.is_empty()
    }

    /// Number of items added and removed.
    pub fn changes(&self) -> usize {
        self.ids.len() + self.removed.len()
    }

    /// Everything there is now, for a search over the base; at a cost of changes times levels.
    pub fn mask(&self) -> LiveMask {
        let mut builder = Builder::new(self.base.levels());
        for (sid, holders) in &self.added {
            let leaf = self.base.find(sid.codes());
            let built = leaf.map_or(&[][..], |leaf| self.base.items(leaf));
            let built = built.iter().filter(|item| !self.removed.contains(item)).map(|item| ((self.tie)(*item), *item));
            let mut all: Vec<_> = built.chain(holders.iter().copied()).collect();
            all.sort_unstable();
            all.iter().for_each(|(_, item)| builder.push(sid.codes(), *item));
        }
        let added = builder.finish(self.base.spec().clone());
        LiveMask::changed(&self.base, self.removed.iter().copied().collect(), added)
    }

    /// A new trie of everything there is now, by one pass over the base: to be made beside the service and swapped in.
    pub fn fold(&self) -> Trie {
        let mut builder = Builder::new(self.base.levels());
        let mut added = self.added.iter().peekable();
        let mut path = Vec::with_capacity(self.base.levels());
        let mut all = Vec::new();
        let mut emit = |codes: &[Code], built: &[ItemIdx], holders: Option<&BTreeSet<(u64, ItemIdx)>>| {
            let built = built.iter().filter(|item| !self.removed.contains(item));
            match holders {
                None => built.for_each(|item| builder.push(codes, *item)),
                Some(holders) => {
                    all.clear();
                    all.extend(built.map(|item| ((self.tie)(*item), *item)).chain(holders.iter().copied()));
                    all.sort_unstable();
                    all.iter().for_each(|(_, item)| builder.push(codes, *item));
                }
            }
        };
        self.base.walk(&mut path, 0, Trie::ROOT, &mut |codes, leaf| {
            while let Some((sid, holders)) = added.next_if(|(sid, _)| sid.codes() < codes) {
                emit(sid.codes(), &[], Some(holders));
            }
            let here = added.next_if(|(sid, _)| sid.codes() == codes);
            emit(codes, self.base.items(leaf), here.map(|(_, holders)| holders));
        });
        added.for_each(|(sid, holders)| emit(sid.codes(), &[], Some(holders)));
        builder.finish(self.base.spec().clone())
    }
}

impl Trie {
    /// Calls `visit` with the codes of every leaf below `node`, whose codes are `path`, and its number, in order.
    pub(super) fn walk(&self, path: &mut Vec<Code>, level: usize, node: u32, visit: &mut impl FnMut(&[Code], u32)) {
        if level == self.levels() {
            return visit(path, node);
        }
        let (codes, children) = self.children(level, node);
        for (code, child) in codes.iter().zip(children) {
            path.push(code);
            self.walk(path, level + 1, child, visit);
            path.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trie::build_tests::table;
    use proptest::prelude::*;
    use rqvae::{SidSpec, SidTable};

    #[test]
    fn what_does_not_fit_is_refused() {
        let spec = SidSpec { codebook_sizes: vec![4, 2], suffix_size: None };
        let trie = Trie::build(&SidTable::new(spec, vec![0, 0, 1, 1]).unwrap()).unwrap();
        let mut delta = TrieDelta::new(&trie);
        assert!(delta.add(ItemIdx(2), &[3]).is_err() && delta.add(ItemIdx(2), &[3, 2]).is_err());
        assert!(delta.add(ItemIdx(u32::MAX), &[3, 1]).is_err());
        assert!(!delta.remove(ItemIdx(2)) && delta.remove(ItemIdx(0)) && !delta.remove(ItemIdx(0)));
        delta.add(ItemIdx(0), &[3, 1]).unwrap();
        assert!(delta.mask().allows(ItemIdx(0)) && delta.changes() == 2);
        assert!(delta.remove(ItemIdx(0)) && !delta.mask().allows(ItemIdx(0)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Folding in is a fresh build of what there is; the mask allows just that.
        #[test]
        fn folding_is_a_fresh_build(
            table in table(),
            changes in prop::collection::vec((any::<bool>(), 0u32..200, any::<[u16; 5]>()), 0..60),
            scramble: bool,
        ) {
            let key = move |item: ItemIdx| if scramble { u64::from(item.0).wrapping_mul(0x9e37_79b9_7f4a_7c15) } else { u64::from(item.0) };
            let hashes: Vec<u64> = (0..table.items() as u32).map(|item| key(ItemIdx(item))).collect();
            let trie = Trie::build_with_ties(&table, &hashes).unwrap();
            let mut delta = TrieDelta::with_ties(&trie, key);
            let mut now: BTreeSet<(Vec<Code>, u64, ItemIdx)> = BTreeSet::new();
            for item in (0..table.items() as u32).map(ItemIdx) {
                now.insert((table.codes(item).to_vec(), key(item), item));
            }
            for (add, item, raw) in changes {
                let item = ItemIdx(item);
                if add {
                    let codes: Vec<Code> =
                        (0..trie.levels()).map(|l| (u32::from(raw[l]) % trie.spec().codes_at(l)) as Code).collect();
                    delta.add(item, &codes).unwrap();
                    now.insert((codes, key(item), item));
                } else {
                    let had = now.iter().any(|row| row.2 == item);
                    prop_assert_eq!(delta.remove(item), had);
                    now.retain(|row| row.2 != item);
                }
            }
            let mut fresh = Builder::new(trie.levels());
            now.iter().for_each(|(codes, _, item)| fresh.push(codes, *item));
            prop_assert_eq!(delta.fold(), fresh.finish(trie.spec().clone()));
            let mask = delta.mask();
            let items: BTreeSet<ItemIdx> = now.iter().map(|row| row.2).collect();
            prop_assert_eq!(mask.len(), items.len());
            for item in (0..210).map(ItemIdx) {
                prop_assert_eq!(mask.allows(item), items.contains(&item));
            }
        }
    }
}
