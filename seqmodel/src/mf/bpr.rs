//! Bayesian personalised ranking: what a user has met should score above what it has not.
//!
//! Paper: Rendle et al. 2009, BPR, sec. 4.2 and 4.3.1 (matrix factorisation, uniform negatives, stochastic gradient).
//! Deviation: a question is a history, not a user of the fit; its vector is found by the same descent with items fixed.

use super::{distinct, ranked};
use crate::dense::DenseIndex;
use crate::nn::inner_product;
use crate::retrieve::{Query, Retriever, Scored};
use crate::{Error, Result};
use rand::Rng;
use rqvae::{ItemIdx, SeededRng, mix};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Numbers of the descent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BprConfig {
    /// Width of the vectors, without the bias of an item.
    pub factors: usize,
    /// Step size, falling to a tenth of it over the epochs.
    pub learning_rate: f32,
    /// Weight of the squared norms.
    pub regularization: f32,
    /// As many draws as interactions each.
    pub epochs: usize,
    /// Passes over a history when its vector is found.
    pub fold_in: usize,
    /// Everything random follows from it.
    pub seed: u64,
}

impl Default for BprConfig {
    fn default() -> Self {
        Self { factors: 128, learning_rate: 0.05, regularization: 0.01, epochs: 100, fold_in: 60, seed: 0 }
    }
}

/// Items factored by [`BprConfig`]; the last component of a vector is the item's bias.
pub struct Bpr {
    config: BprConfig,
    index: DenseIndex,
    tie_hash: Arc<[u64]>,
}

impl Bpr {
    /// Fits on the users' `histories`; `tie_hash` has one number per item.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the field.
    pub fn fit(histories: &[&[ItemIdx]], tie_hash: &[u64], config: &BprConfig) -> Result<Self> {
        for (field, value) in [("factors", config.factors), ("epochs", config.epochs), ("fold_in", config.fold_in)] {
            if !(1..=100_000).contains(&value) {
                return Err(Error::InvalidConfig { field, got: value.to_string(), expected: "1 to 100000".into() });
            }
        }
        let (dim, items) = (config.factors + 1, tie_hash.len());
        let rng = SeededRng::new(config.seed);
        let scale = 0.1 / (config.factors as f32).sqrt();
        let mut draw = rng.stream("factors");
        let mut vectors = |count: usize, last: f32| -> Vec<f32> {
            let mut rows: Vec<f32> = (0..count * dim).map(|_| draw.random_range(-scale..scale)).collect();
            rows.chunks_exact_mut(dim).for_each(|row| row[dim - 1] = last);
            rows
        };
        let (mut q, mut p) = (vectors(items, 0.0), vectors(histories.len(), 1.0));
        let met: Vec<Vec<u32>> = histories.iter().map(|history| distinct(history, tie_hash)).collect();
        let pairs: Vec<(u32, u32)> =
            met.iter().enumerate().flat_map(|(user, met)| met.iter().map(move |item| (user as u32, *item))).collect();
        let sorted: Vec<Vec<u32>> = met.iter().map(|met| sorted(met)).collect();
        for epoch in 0..config.epochs {
            let mut draw = rng.stream_at("pairs", epoch as u64);
            let rate = config.learning_rate * (1.0 - 0.9 * epoch as f32 / config.epochs as f32);
            for _ in 0..pairs.len() {
                let (user, liked) = pairs[draw.random_range(0..pairs.len())];
                let other = draw.random_range(0..items as u32);
                if sorted[user as usize].binary_search(&other).is_ok() {
                    continue;
                }
                let p = &mut p[user as usize * dim..][..dim];
                let (a, b) = (liked as usize * dim, other as usize * dim);
                let slope = rate * wrongness(p, &q[a..a + dim], &q[b..b + dim]);
                let shrink = 1.0 - rate * config.regularization;
                for i in 0..dim {
                    let (user, liked, other) = (p[i], q[a + i], q[b + i]);
                    // The last component of a user stays 1: the bias of an item is added whole.
                    if i + 1 < dim {
                        p[i] = shrink * user + slope * (liked - other);
                    }
                    q[a + i] = shrink * liked + slope * user;
                    q[b + i] = shrink * other - slope * user;
                }
            }
        }
        let index = DenseIndex::new(dim, q, tie_hash)?;
        Ok(Self { config: config.clone(), index, tie_hash: Arc::from(tie_hash) })
    }

    /// The vector of a history: draws depend on its items alone, not on who asks or beside whom.
    fn fold_in(&self, history: &[ItemIdx]) -> Vec<f32> {
        let (dim, items) = (self.config.factors + 1, self.tie_hash.len() as u64);
        let mut p = vec![0.0; dim];
        p[dim - 1] = 1.0;
        let met = distinct(history, &self.tie_hash);
        let sorted = sorted(&met);
        let key = met.iter().fold(self.config.seed, |key, item| mix(key ^ self.tie_hash[*item as usize]));
        let shrink = 1.0 - self.config.learning_rate * self.config.regularization;
        for step in 0..self.config.fold_in * met.len() {
            let liked = self.index.row(met[step % met.len()]);
            let other = (mix(key ^ mix(step as u64)) % items) as u32;
            if sorted.binary_search(&other).is_ok() {
                continue;
            }
            let other = self.index.row(other);
            let slope = self.config.learning_rate * wrongness(&p, liked, other);
            for i in 0..dim - 1 {
                p[i] = shrink * p[i] + slope * (liked[i] - other[i]);
            }
        }
        p
    }
}

fn sorted(items: &[u32]) -> Vec<u32> {
    let mut items = items.to_vec();
    items.sort_unstable();
    items
}

/// sigma(-(p liked - p other)): how far the pair is from the right order.
fn wrongness(p: &[f32], liked: &[f32], other: &[f32]) -> f32 {
    1.0 / (1.0 + (inner_product(p, liked) - inner_product(p, other)).exp())
}

impl Retriever for Bpr {
    fn name(&self) -> &'static str {
        "bpr"
    }

    fn retrieve(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Scored>>> {
        ranked(&self.index, queries, k, |history| self.fold_in(history))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history has one vector, whatever the order in which it was lived and whoever is asked about beside it.
    #[test]
    fn the_same_history_is_the_same_vector() {
        let histories: Vec<Vec<ItemIdx>> = (0..9).map(|u| (0..4).map(|i| ItemIdx((u + 2 * i) % 9)).collect()).collect();
        let histories: Vec<&[ItemIdx]> = histories.iter().map(Vec::as_slice).collect();
        let ties: Vec<u64> = (0..9).map(mix).collect();
        let config = BprConfig { factors: 5, epochs: 3, ..BprConfig::default() };
        let fit = || Bpr::fit(&histories, &ties, &config).unwrap();
        let (a, b) = ([ItemIdx(1), ItemIdx(4), ItemIdx(4)], [ItemIdx(4), ItemIdx(1)]);
        assert_eq!(fit().fold_in(&a), fit().fold_in(&b));
        let bad = BprConfig { epochs: 0, ..config };
        assert!(Bpr::fit(&histories, &ties, &bad).err().unwrap().to_string().contains("epochs"));
    }
}
