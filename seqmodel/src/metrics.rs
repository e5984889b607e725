//! Ranking metrics over users with one relevant item each, and how sure one can be of them.
//!
//! ndcg@k of one relevant item at rank r (from 1) is `1 / log2(r + 1)`, else 0; its ideal is 1.

use rand::Rng;
use rqvae::SeededRng;
use serde::{Deserialize, Serialize};

/// Resamples of the bootstrap.
const RESAMPLES: usize = 1000;

/// The five figures of a table.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Metrics {
    /// Share of users whose target is among the first five.
    #[serde(rename = "recall@5")]
    pub recall_at_5: f64,
    /// Discounted gain of the first five.
    #[serde(rename = "ndcg@5")]
    pub ndcg_at_5: f64,
    /// Share of users whose target is among the first ten.
    #[serde(rename = "recall@10")]
    pub recall_at_10: f64,
    /// Discounted gain of the first ten.
    #[serde(rename = "ndcg@10")]
    pub ndcg_at_10: f64,
    /// Mean reciprocal rank within the first ten.
    #[serde(rename = "mrr@10")]
    pub mrr_at_10: f64,
}

/// Rank of each user's target, from 1; `None` when it is not in the list.
#[derive(Debug, Clone, Default)]
pub struct Ranks(pub Vec<Option<u32>>);

impl Ranks {
    /// Share of users with a rank up to `k`.
    pub fn recall_at(&self, k: u32) -> f64 {
        self.mean(|rank| f64::from(rank <= k))
    }

    /// Discounted gain of the first `k`.
    pub fn ndcg_at(&self, k: u32) -> f64 {
        self.mean(|rank| gain(rank, k))
    }

    fn mean(&self, value: impl Fn(u32) -> f64) -> f64 {
        let sum: f64 = self.0.iter().flatten().map(|rank| value(*rank)).sum();
        // The sum of nothing is -0.0, which would show in reports.
        (sum + 0.0) / self.0.len().max(1) as f64
    }

    /// All five figures.
    pub fn metrics(&self) -> Metrics {
        Metrics {
            recall_at_5: self.recall_at(5),
            ndcg_at_5: self.ndcg_at(5),
            recall_at_10: self.recall_at(10),
            ndcg_at_10: self.ndcg_at(10),
            mrr_at_10: self.mean(|rank| if rank <= 10 { 1.0 / f64::from(rank) } else { 0.0 }),
        }
    }

    /// Half-widths of the 95 % intervals, by resampling users; the same for the same ranks.
    pub fn half_widths(&self) -> Metrics {
        if self.0.is_empty() {
            return Metrics::default();
        }
        // Ranks matter up to ten only, so a resample is a draw of counts per rank.
        let mut cumulative = [0usize; 11];
        for rank in self.0.iter().flatten().filter(|rank| **rank <= 10) {
            cumulative[*rank as usize] += 1;
        }
        for rank in 1..=10 {
            cumulative[rank] += cumulative[rank - 1];
        }
        let mut rng = SeededRng::new(0).stream("bootstrap");
        let users = self.0.len();
        let mut draws: [Vec<f64>; 5] = Default::default();
        for _ in 0..RESAMPLES {
            let mut counts = [0u32; 12];
            for _ in 0..users {
                let at = rng.random_range(0..users);
                let rank = if at >= cumulative[10] { 11 } else { cumulative.partition_point(|c| *c <= at) };
                counts[rank] += 1;
            }
            let sum = |value: &dyn Fn(u32) -> f64| {
                (1..=10u32).map(|r| f64::from(counts[r as usize]) * value(r)).sum::<f64>() / users as f64
            };
            draws[0].push(sum(&|r| f64::from(r <= 5)));
            draws[1].push(sum(&|r| gain(r, 5)));
            draws[2].push(sum(&|_| 1.0));
            draws[3].push(sum(&|r| gain(r, 10)));
            draws[4].push(sum(&|r| 1.0 / f64::from(r)));
        }
        let half = |draws: &mut Vec<f64>| {
            draws.sort_by(f64::total_cmp);
            (draws[RESAMPLES * 975 / 1000] - draws[RESAMPLES * 25 / 1000]) / 2.0
        };
        let [r5, n5, r10, n10, mrr] = &mut draws;
        Metrics {
            recall_at_5: half(r5),
            ndcg_at_5: half(n5),
            recall_at_10: half(r10),
            ndcg_at_10: half(n10),
            mrr_at_10: half(mrr),
        }
    }
}

fn gain(rank: u32, k: u32) -> f64 {
    if rank <= k { 1.0 / f64::from(rank + 1).log2() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn figures_by_hand() {
        let metrics = Ranks(vec![Some(1), Some(3), Some(8), None]).metrics();
        assert!((metrics.recall_at_5 - 0.5).abs() < 1e-12 && (metrics.recall_at_10 - 0.75).abs() < 1e-12);
        assert!((metrics.ndcg_at_5 - (1.0 + 0.5) / 4.0).abs() < 1e-12);
        assert!((metrics.mrr_at_10 - (1.0 + 1.0 / 3.0 + 0.125) / 4.0).abs() < 1e-12);
    }

    #[test]
    fn nobody_found_is_a_plain_zero() {
        assert!(Ranks(vec![None]).recall_at(5).is_sign_positive());
    }

    #[test]
    fn half_width_of_a_share_is_that_of_a_binomial() {
        let ranks = Ranks((0..2000).map(|i| (i % 10 == 0).then_some(2)).collect());
        let expected = 1.96 * (0.1f64 * 0.9 / 2000.0).sqrt();
        assert!((ranks.half_widths().recall_at_10 / expected - 1.0).abs() < 0.1);
    }

    proptest! {
        #[test]
        fn recall_grows_with_k_and_bounds_ndcg(ranks in prop::collection::vec(prop::option::of(1u32..30), 0..50)) {
            let ranks = Ranks(ranks);
            let mut last = 0.0;
            for k in 1..30 {
                let (recall, ndcg) = (ranks.recall_at(k), ranks.ndcg_at(k));
                prop_assert!((0.0..=1.0).contains(&recall) && ndcg <= recall + 1e-12 && recall >= last);
                last = recall;
            }
        }
    }
}
