//! The side of the hybrid that is counted: warm items by what follows what, new items by what they are like.

use super::HybridConfig;
use super::mixing::reciprocal_ranks;
use crate::Result;
use crate::baseline::{ContentKernel, Transitions};
use crate::retrieve::{Query, Scored, top_k};
use rayon::prelude::*;
use rqvae::{ItemIdx, Vectors};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Warm and new items for one question, best first each.
#[derive(Debug, Clone, Default)]
pub struct Ranked {
    /// Items that training has seen. A score is what the place is worth to a new item that wants it, whoever stands there:
    /// the n-th largest probability of the beams, weighted; 0 behind them.
    pub warm: Vec<Scored>,
    /// Items that it has not.
    pub new: Vec<Scored>,
}

/// Sharpness of the weights that a new item gives its lenders.
const LENDER_TEMPERATURE: f32 = 0.05;

/// What is known of a catalogue without training anything.
pub struct Memory {
    transitions: Transitions,
    kernel: ContentKernel,
    /// Whether an item was seen in training: (items,).
    seen: Vec<bool>,
    /// New items that can be found, each with the warm items that it borrows from and their weights, which add up to 1.
    new: Vec<(ItemIdx, Vec<Scored>)>,
    live: Vec<bool>,
    config: HybridConfig,
    tie_hash: Arc<[u64]>,
}

impl Memory {
    /// What `histories` tell: counts, and the items that occur in them.
    ///
    /// # Errors
    /// The content is not finite.
    pub fn of(
        histories: &[&[ItemIdx]],
        content: &Vectors,
        live: &dyn Fn(ItemIdx) -> bool,
        config: &HybridConfig,
        tie_hash: &[u64],
    ) -> Result<Self> {
        let mut seen = vec![false; content.rows()];
        histories.iter().copied().flatten().for_each(|item| seen[item.0 as usize] = true);
        let transitions = Transitions::fit(histories, tie_hash, config.followers);
        Self::new(transitions, content, seen, live, config, tie_hash)
    }

    /// From followers and content; `seen` tells items of training, `live` those that may be found.
    ///
    /// # Errors
    /// The content is not finite.
    pub fn new(
        transitions: Transitions,
        content: &Vectors,
        seen: Vec<bool>,
        live: &dyn Fn(ItemIdx) -> bool,
        config: &HybridConfig,
        tie_hash: &[u64],
    ) -> Result<Self> {
        let is_seen = |item: ItemIdx| seen[item.0 as usize];
        let kernel = ContentKernel::new(content, &is_seen, tie_hash)?;
        let items = || (0..seen.len() as u32).map(ItemIdx);
        let live: Vec<bool> = items().map(live).collect();
        let warm: Vec<ItemIdx> = items().filter(|item| is_seen(*item)).collect();
        let ties: Vec<u64> = warm.iter().map(|item| tie_hash[item.0 as usize]).collect();
        let lenders = |item: ItemIdx| {
            let near: Vec<f32> = warm.iter().map(|warm| kernel.cosine(item, *warm)).collect();
            let best = top_k(&near, config.lenders, &ties);
            let top = best.first().map_or(0.0, |s| s.score);
            let weights: Vec<f32> = best.iter().map(|s| ((s.score - top) / LENDER_TEMPERATURE).exp()).collect();
            let sum: f32 = weights.iter().sum();
            let lender = |(s, weight): (&Scored, f32)| Scored { item: warm[s.item.0 as usize], score: weight / sum };
            (item, best.iter().zip(weights).map(lender).collect())
        };
        let unseen: Vec<ItemIdx> = items().filter(|item| !is_seen(*item) && live[item.0 as usize]).collect();
        let new = unseen.into_par_iter().map(lenders).collect();
        Ok(Self { transitions, kernel, seen, new, live, config: config.clone(), tie_hash: Arc::from(tie_hash) })
    }

    /// Whether training has seen `item`.
    pub fn seen(&self, item: ItemIdx) -> bool {
        self.seen[item.0 as usize]
    }

    /// Whether there are items that training has not seen.
    pub fn has_new(&self) -> bool {
        !self.new.is_empty()
    }

    /// How many items are new, and how many may be found in all.
    pub fn sizes(&self) -> (usize, usize) {
        (self.new.len(), self.live.iter().filter(|live| **live).count())
    }

    /// At most `k` warm and `k` new items after the history of `query`; `generated` warm items, best first with their
    /// probabilities, are ranked among the warm ones. An empty history gets nothing.
    pub fn rank(&self, query: &Query, generated: &[Scored], k: usize) -> Ranked {
        if query.history.is_empty() {
            return Ranked::default();
        }
        let mut scores = self.transitions.scores(query.history);
        let new = self.rank_new(query, &scores, k);
        let usable = self.seen.iter().zip(&self.live).map(|(seen, live)| *seen && *live);
        scores.iter_mut().zip(usable).filter(|(_, usable)| !usable).for_each(|(s, _)| *s = f32::NEG_INFINITY);
        query.exclude.iter().for_each(|item| scores[item.0 as usize] = f32::NEG_INFINITY);
        let beams: Vec<Scored> =
            generated.iter().filter(|s| scores[s.item.0 as usize] > f32::NEG_INFINITY).copied().collect();
        let followers = top_k(&scores, k, &self.tie_hash);
        let mut warm = self.fused(query.history, &beams, &followers);
        warm.truncate(k);
        let worth = beams.iter().map(|s| s.score).chain(std::iter::repeat(0.0));
        warm.iter_mut().zip(worth).for_each(|(s, worth)| s.score = self.config.certainty * worth);
        Ranked { warm, new }
    }

    /// What is among the beams or the followers, ranked anew by its places there and by content: reciprocal ranks, since
    /// the three scores have no scale in common.
    fn fused(&self, history: &[ItemIdx], beams: &[Scored], followers: &[Scored]) -> Vec<Scored> {
        let HybridConfig { followed, alike, rank_offset, .. } = self.config;
        let candidates: BTreeSet<ItemIdx> = beams.iter().chain(followers).map(|s| s.item).collect();
        let scores = self.kernel.scores(history, candidates.iter().copied());
        let mut near: Vec<Scored> =
            candidates.into_iter().zip(scores).map(|(item, score)| Scored { item, score }).collect();
        self.sort(&mut near);
        // What follows nothing of the history is a candidate to fill the list, and has no place among the followers.
        let following = &followers[..followers.partition_point(|s| s.score > 0.0)];
        reciprocal_ranks(&[(beams, 1.0), (following, followed), (&near, alike)], rank_offset, &self.tie_hash)
    }

    fn rank_new(&self, query: &Query, scores: &[f32], k: usize) -> Vec<Scored> {
        let near = self.kernel.scores(query.history, self.new.iter().map(|(item, _)| *item));
        let score = |((item, lenders), near): (&(ItemIdx, Vec<Scored>), f32)| {
            let lent: f32 = lenders.iter().map(|lender| lender.score * scores[lender.item.0 as usize]).sum();
            Scored { item: *item, score: near + self.config.borrowed * lent }
        };
        let free = |scored: &Scored| !query.exclude.contains(&scored.item);
        let mut new: Vec<Scored> = self.new.iter().zip(near).map(score).collect();
        self.sort(&mut new);
        new.into_iter().filter(free).take(k).collect()
    }

    fn sort(&self, list: &mut [Scored]) {
        let hash = |scored: &Scored| self.tie_hash[scored.item.0 as usize];
        list.sort_by(|a, b| b.score.total_cmp(&a.score).then(hash(a).cmp(&hash(b))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0 is followed by 1; 2 is new and like 1, 3 is new and like nothing, 4 was removed.
    fn memory(borrowed: f32) -> Memory {
        let history = [ItemIdx(0), ItemIdx(1)];
        let ties = [1, 2, 3, 4, 5];
        let transitions = Transitions::fit(&[&history[..], &history[..]], &ties, 4);
        let content = Vectors::new(2, vec![1.0, 0.0, 0.0, 1.0, 0.1, 1.0, -1.0, -1.0, 0.0, 1.0]).unwrap();
        let config = HybridConfig { borrowed, lenders: 1, ..HybridConfig::default() };
        let seen = vec![true, true, false, false, true];
        Memory::new(transitions, &content, seen, &|item| item.0 != 4, &config, &ties).unwrap()
    }

    #[test]
    fn a_new_item_borrows_from_what_it_is_like() {
        let history = [ItemIdx(0)];
        let query = Query { history: &history, user: None, exclude: &history };
        let ranked = memory(3.0).rank(&query, &[], 5);
        assert_eq!(ranked.warm.iter().map(|s| s.item.0).collect::<Vec<_>>(), [1]);
        assert_eq!(ranked.new[0].item, ItemIdx(2));
        assert!(ranked.new[0].score > memory(0.0).rank(&query, &[], 5).new[0].score);
        // Without anything to borrow, the content alone decides.
        assert!(memory(3.0).has_new() && memory(3.0).seen(ItemIdx(0)) && !memory(3.0).seen(ItemIdx(2)));
        assert!(memory(3.0).rank(&Query { history: &[], user: None, exclude: &[] }, &[], 5).warm.is_empty());
    }

    #[test]
    fn generated_items_join_and_excluded_and_removed_ones_never_come() {
        let history = [ItemIdx(1)];
        let query = Query { history: &history, user: None, exclude: &[ItemIdx(1), ItemIdx(2)] };
        let generated = [Scored { item: ItemIdx(0), score: 0.5 }, Scored { item: ItemIdx(4), score: 0.4 }];
        let ranked = memory(1.0).rank(&query, &generated, 5);
        assert_eq!(ranked.warm.iter().map(|s| s.item.0).collect::<Vec<_>>(), [0]);
        // The place is worth the largest probability of those that may be found.
        assert_eq!(ranked.warm[0].score, HybridConfig::default().certainty * 0.5);
        assert_eq!(ranked.new.iter().map(|s| s.item.0).collect::<Vec<_>>(), [3]);
    }
}
