//! Encoded histories that were asked for lately: a user who comes back with the same history is not read again.

use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What a model made of histories, by what it read of them, its rows of tokens or items; those unasked for longest go
/// first.
///
/// Numbers are kept as they came out, so a list is the same whether its history was kept or read. Belongs to one set of
/// weights: a model that changes needs another cache.
#[derive(Debug)]
pub struct HistoryCache {
    kept: Mutex<LruCache<Box<[u32]>, Arc<[f32]>>>,
    histories: NonZeroUsize,
    found: AtomicU64,
    missed: AtomicU64,
}

impl HistoryCache {
    /// Room for so many histories.
    pub fn new(histories: NonZeroUsize) -> Self {
        // Bounded by hand: the crate's own bound takes the room for all of them at once.
        let kept = Mutex::new(LruCache::unbounded());
        Self { kept, histories, found: AtomicU64::new(0), missed: AtomicU64::new(0) }
    }

    /// How many histories were found and how many had to be read.
    pub fn counts(&self) -> (u64, u64) {
        (self.found.load(Ordering::Relaxed), self.missed.load(Ordering::Relaxed))
    }

    pub(crate) fn get(&self, read: &[u32]) -> Option<Arc<[f32]>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(read).cloned();
        let counter = if kept.is_some() { &self.found } else { &self.missed };
        counter.fetch_add(1, Ordering::Relaxed);
        kept
    }

    pub(crate) fn put(&self, read: &[u32], encoded: Arc<[f32]>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.put(read.into(), encoded);
        if kept.len() > self.histories.get() {
            kept.pop_lru();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generative::{Generator, Search};
    use crate::nn::Parameters;
    use crate::rqt::{PackedRqt, Rqt, RqtConfig};
    use crate::tiger::{PackedTiger, Tiger, TigerConfig};
    use crate::{Generative, History, ItemFeatures, UserHash};
    use beam::{BeamConfig, Hypothesis, LiveMask, Trie};
    use rqvae::{ItemIdx, SidSpec, SidTable};

    fn room(histories: usize) -> HistoryCache {
        HistoryCache::new(NonZeroUsize::new(histories).unwrap())
    }

    #[test]
    fn those_unasked_for_longest_go_first() {
        let cache = room(2);
        let history = |item: u32| [item];
        for item in 0..2 {
            cache.put(&history(item), Arc::from([item as f32]));
        }
        assert_eq!(cache.get(&history(0)).unwrap()[0], 0.0);
        cache.put(&history(2), Arc::from([2.0]));
        assert!(cache.get(&history(1)).is_none() && cache.get(&history(0)).is_some());
        assert_eq!(cache.counts(), (2, 1));
        // Room that no machine has costs nothing until it is used.
        assert!(room(usize::MAX).get(&history(0)).is_none());
    }

    /// Lists of histories that are kept, read, or both in one batch are those of a model that keeps nothing; what lies
    /// before the items that a model reads makes no other history.
    #[test]
    fn lists_are_the_same_and_only_new_histories_are_read() {
        let spec = SidSpec { codebook_sizes: vec![5, 7], suffix_size: Some(4) };
        let codes = (0..60u16).flat_map(|item| [item % 5, item * 3 % 7, item / 20]).collect();
        let features = ItemFeatures::new(Arc::new(SidTable::new(spec, codes).unwrap()), None).unwrap();
        let trie = Trie::build(features.sids()).unwrap();
        let rqt = RqtConfig {
            dim: 16,
            heads: 2,
            head_dim: 8,
            hidden: 24,
            look_back: 3,
            history_cap: 4,
            content: false,
            dense_weight: 1.0,
            guide: 0.5,
            ..RqtConfig::default()
        };
        let rqt = Rqt::new(&rqt, features.clone(), &Parameters::new(3).builder()).unwrap();
        let tiger =
            TigerConfig { dim: 16, heads: 2, head_dim: 8, hidden: 24, history_cap: 4, ..TigerConfig::default() };
        let tiger = Tiger::new(&tiger, features, &Parameters::new(3).builder()).unwrap();
        let histories: Vec<Vec<ItemIdx>> =
            [&[1u32, 2][..], &[7], &[50, 2, 3, 4, 5, 6]].map(|h| h.iter().map(|i| ItemIdx(*i)).collect()).to_vec();
        let longer: Vec<ItemIdx> = [9, 3, 4, 5, 6].map(ItemIdx).to_vec();

        let plain = PackedRqt::new(&rqt).unwrap();
        let keeping = PackedRqt::new(&rqt).unwrap().keeping(8);
        same_lists(&plain, &keeping, &trie, &histories, &longer);
        assert_eq!(keeping.kept().unwrap().counts(), (3, 3));
        let plain = PackedTiger::new(&tiger).unwrap();
        let keeping = PackedTiger::new(&tiger).unwrap().keeping(8);
        same_lists(&plain, &keeping, &trie, &histories, &longer);
        assert_eq!(keeping.kept().unwrap().counts(), (3, 3));
        // And through the face that the server asks.
        let lists = |model: PackedTiger| {
            let query = crate::Query { history: &histories[0], user: None, exclude: &histories[0] };
            Generative::new(model, &trie, 10).hypotheses(&[query], 5).unwrap()
        };
        assert_eq!(lists(keeping), lists(plain));
    }

    /// Users of one token share what was read of them; those of two do not, nor does nobody known.
    #[test]
    fn what_is_kept_is_of_a_user() {
        let spec = SidSpec { codebook_sizes: vec![5, 7], suffix_size: Some(4) };
        let codes = (0..60u16).flat_map(|item| [item % 5, item * 3 % 7, item / 20]).collect();
        let features = ItemFeatures::new(Arc::new(SidTable::new(spec, codes).unwrap()), None).unwrap();
        let config =
            TigerConfig { dim: 16, heads: 2, head_dim: 8, hidden: 24, user_tokens: 3, ..TigerConfig::default() };
        let tiger = Tiger::new(&config, features, &Parameters::new(3).builder()).unwrap();
        let keeping = PackedTiger::new(&tiger).unwrap().keeping(64);
        let items = [1u32, 2].map(ItemIdx);
        for user in (0..40).map(|user| Some(UserHash(user))).chain([None]) {
            keeping.session(&[History { items: &items, user }]);
        }
        assert_eq!(keeping.kept().unwrap().counts(), (37, 4));
    }

    /// Asks for the first history, then all of them, then one that differs in what is not read.
    fn same_lists(
        plain: &dyn Generator,
        keeping: &dyn Generator,
        trie: &Trie,
        histories: &[Vec<ItemIdx>],
        longer: &[ItemIdx],
    ) {
        let all: Vec<History> = histories.iter().map(History::from).collect();
        for batch in [&all[..1], &all[..], &[longer.into()][..], &all[1..2]] {
            let ask = |model: &dyn Generator| -> Vec<Vec<Hypothesis>> {
                let live = vec![LiveMask::all(trie); batch.len()];
                let config = BeamConfig { score: model.score_mode(), ..BeamConfig::uniform(20, trie.levels(), 10) };
                let table = model.guidance_table().unwrap();
                let guidance = table.map(|table| crate::generative::Guidance { table, weight: model.guide() });
                let search = Search { trie, config: &config, live: &live, guidance: guidance.as_ref() };
                model.decode(batch, &search, None).unwrap()
            };
            for (kept, read) in ask(keeping).iter().zip(&ask(plain)) {
                assert_eq!(kept.len(), read.len());
                for (kept, read) in kept.iter().zip(read) {
                    assert!(kept.item == read.item && (kept.log_prob - read.log_prob).abs() < 1e-5);
                }
            }
        }
    }
}
