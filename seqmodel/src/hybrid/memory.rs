//! The side of the hybrid that is counted: warm items by what follows what, new items by what they are like.

use super::HybridConfig;
use crate::Result;
use crate::baseline::{ContentKernel, Transitions};
use crate::retrieve::{Query, Scored, top_k};
use rayon::prelude::*;
use rqvae::{ItemIdx, Vectors};
use std::sync::Arc;

/// Warm and new items for one question, best first each. Scores of the two are on one scale but for a constant.
#[derive(Debug, Clone, Default)]
pub struct Ranked {
    /// Items that training has seen.
    pub warm: Vec<Scored>,
    /// Items that it has not.
    pub new: Vec<Scored>,
}

/// Warm items that are scored by content too, for each place of the list.
const CONTENT_PER_PLACE: usize = 4;
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

    /// At most `k` warm and `k` new items after the history of `query`; `generated` warm items, with their probabilities,
    /// join the warm ones. An empty history gets nothing.
    pub fn rank(&self, query: &Query, generated: &[Scored], k: usize) -> Ranked {
        if query.history.is_empty() {
            return Ranked::default();
        }
        let mut scores = self.transitions.scores(query.history);
        let new = self.rank_new(query, &scores, k);
        for found in generated {
            scores[found.item.0 as usize] += self.config.beams * found.score;
        }
        let usable = self.seen.iter().zip(&self.live).map(|(seen, live)| *seen && *live);
        scores.iter_mut().zip(usable).filter(|(_, usable)| !usable).for_each(|(s, _)| *s = f32::NEG_INFINITY);
        query.exclude.iter().for_each(|item| scores[item.0 as usize] = f32::NEG_INFINITY);
        let mut warm = top_k(&scores, CONTENT_PER_PLACE * k, &self.tie_hash);
        let content = self.kernel.scores(query.history, warm.iter().map(|s| s.item));
        warm.iter_mut().zip(content).for_each(|(scored, near)| scored.score += self.config.content * near);
        self.sort(&mut warm);
        warm.truncate(k);
        Ranked { warm, new }
    }

    fn rank_new(&self, query: &Query, scores: &[f32], k: usize) -> Vec<Scored> {
        let near = self.kernel.scores(query.history, self.new.iter().map(|(item, _)| *item));
        let score = |((item, lenders), near): (&(ItemIdx, Vec<Scored>), f32)| {
            let lent: f32 = lenders.iter().map(|lender| lender.score * scores[lender.item.0 as usize]).sum();
            Scored { item: *item, score: self.config.content * (near + self.config.borrowed * lent) }
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
        assert!(ranked.warm[0].score >= 0.5);
        assert_eq!(ranked.new.iter().map(|s| s.item.0).collect::<Vec<_>>(), [3]);
    }
}
