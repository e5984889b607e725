//! Beams and memory as one list, with places for new items where they promise most.

use super::mixing::{bias_for, fair_share, most_places, placed};
use super::{Hybrid, Memory, Ranked};
use crate::generative::Generative;
use crate::retrieve::{Query, Retriever, Scored};
use crate::{Error, Result};
use rayon::prelude::*;

/// Warm items that are ranked for a list of `k`.
const DEPTH: usize = 50;
/// Length of the lists that the share of new items is calibrated at.
const CALIBRATED_AT: usize = 10;

/// Owns its weights and counts as they were when it was made.
pub struct HybridRetriever {
    memory: Memory,
    generative: Generative,
    share: f64,
    /// What is added to the score of a new item.
    bias: f32,
}

impl HybridRetriever {
    /// Over the items that `generative`, a search by the generative part of `model`, may return; `new_share` instead of the
    /// configured share of places for new items, where one is given; the configured one is a most, and a fair one.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when the share is none.
    pub fn new(model: &Hybrid, generative: Generative, tie_hash: &[u64], new_share: Option<f64>) -> Result<Self> {
        let memory = model.memory(&|item| generative.trie().leaf(item).is_some(), tie_hash)?;
        let (new, all) = memory.sizes();
        let share = new_share.unwrap_or_else(|| fair_share(model.config().new_share, new, all));
        if !(0.0..=1.0).contains(&share) {
            let (field, got) = ("new_share", share.to_string());
            return Err(Error::InvalidConfig { field, got, expected: "0 to 1".into() });
        }
        let warm = generative.trie().live(|item| memory.seen(item));
        let generative = generative.with_live(warm);
        let mut made = Self { memory, generative, share, bias: f32::NEG_INFINITY };
        if made.memory.has_new() && share > 0.0 {
            let sample = model.sample()?;
            let queries: Vec<Query> =
                sample.iter().map(|history| Query { history, user: None, exclude: history }).collect();
            let ranked = made.ranked(&queries, CALIBRATED_AT)?;
            let lists: Vec<(&[Scored], &[Scored])> = ranked.iter().map(|r| (&r.warm[..], &r.new[..])).collect();
            made.bias = bias_for(&lists, share, CALIBRATED_AT, most_places(share, CALIBRATED_AT));
        }
        Ok(made)
    }

    /// A memory beside a search, without places for new items: what a trained generative model is worth with it.
    pub fn beside(memory: Memory, generative: Generative) -> Self {
        let warm = generative.trie().live(|item| memory.seen(item));
        Self { memory, generative: generative.with_live(warm), share: 0.0, bias: f32::NEG_INFINITY }
    }

    /// Warm and new items for each query, at least `k` of both where they exist.
    pub fn ranked(&self, queries: &[Query], k: usize) -> Result<Vec<Ranked>> {
        let depth = k.max(DEPTH);
        let generated = self.generative.hypotheses(queries, depth)?;
        let rank = |(query, generated): (&Query, &Vec<beam::Hypothesis>)| {
            let likely: Vec<Scored> =
                generated.iter().map(|h| Scored { item: h.item, score: h.log_prob.exp() }).collect();
            self.memory.rank(query, &likely, depth)
        };
        Ok(queries.par_iter().zip(&generated).map(rank).collect())
    }
}

impl Retriever for HybridRetriever {
    fn name(&self) -> &'static str {
        "hybrid"
    }

    fn retrieve(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Scored>>> {
        let most = most_places(self.share, k);
        let list = |ranked: Ranked| {
            // Where only new items may be returned, they need not wait for a warm one to give way.
            if ranked.warm.is_empty() {
                return ranked.new.into_iter().take(k).collect();
            }
            placed(&ranked.warm, &ranked.new, self.bias, k, most)
        };
        Ok(self.ranked(queries, k)?.into_iter().map(list).collect())
    }
}
