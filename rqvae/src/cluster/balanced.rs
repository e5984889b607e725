//! Balanced k-means: clusters of nearly equal size, each with a price that keeps its share of the points.
//!
//! A point belongs to the cluster with the least squared distance plus price. The prices are the dual variables of the
//! assignment with equal capacities, raised where a cluster is too full and lowered where it is not, so that they
//! balance points which come later as well, one at a time.
//!
//! Shapes: points (items, dim) -> centroids (k, dim), prices (k,).
//! Paper: Deng et al. 2025 (OneRec), sec. 3.1, balanced k-means.
//! Deviations: OneRec hands every cluster in turn its nearest remaining items, which leaves distant ones to the last
//! clusters and says nothing about new items; Aurenhammer et al. 1998 show that prices reach the best such assignment.

use super::lloyd::{KmeansConfig, lloyd, squared_distance, squared_norms, update};
use super::points::Points;
use crate::{Code, Result};
use rayon::prelude::*;

/// Times that prices come to rest and centroids move to the means of their clusters.
const ROUNDS: usize = 5;
/// Most updates of the prices in a round.
const SETTLING: usize = 100;
/// Clusters this much larger than their share end the settling.
const ENOUGH: f64 = 1.05;

/// Fitted clusters with prices.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Balanced {
    pub(crate) centroids: Vec<f32>,
    pub(crate) prices: Vec<f32>,
    /// Sum of squared distances at the end.
    pub(crate) cost: f64,
}

/// Fits checked `points` (items, dim).
///
/// # Errors
/// None on the host; on a device, what that says.
pub(crate) fn balanced_lloyd(points: &mut Points, config: &KmeansConfig) -> Result<Balanced> {
    let (data, dim, n) = (points.data, points.dim, points.rows());
    let share = n as f64 / config.k as f64;
    let (mut centroids, costs) = lloyd(points, config)?;
    // Prices are measured by what the points cost without them: distances that prices have driven up would drive up
    // the prices in turn.
    let unit = costs.last().copied().unwrap_or(0.0) / n as f64;
    let mut prices = vec![0f32; config.k];
    let mut best: Option<(usize, Balanced)> = None;
    for _ in 0..ROUNDS {
        let mut steps = Steps::new(config.k);
        for settling in 1..=SETTLING {
            let mut biased = squared_norms(&centroids, dim);
            biased.iter_mut().zip(&prices).for_each(|(norm, price)| *norm += price);
            let codes = points.nearest_priced(&centroids, &biased)?;
            let mut counts = vec![0; config.k];
            codes.iter().for_each(|&code| counts[usize::from(code)] += 1);
            let largest = counts.iter().copied().max().unwrap_or(0);
            let enough = largest as f64 <= (ENOUGH * share).max(1.0).ceil();
            let end = enough || settling == SETTLING;
            if end || best.as_ref().is_none_or(|(least, _)| largest < *least) {
                let mut distances = distances(data, dim, &centroids, &codes);
                let cost: f64 = distances.iter().map(|&d| f64::from(d)).sum();
                let better = |(least, found): &(usize, Balanced)| largest < *least || (enough && cost < found.cost);
                if best.as_ref().is_none_or(better) {
                    best = Some((largest, Balanced { centroids: centroids.clone(), prices: prices.clone(), cost }));
                }
                if end {
                    update(&mut centroids, data, dim, &codes, &mut distances);
                    break;
                }
            }
            steps.apply(&mut prices, &counts, share, unit);
        }
    }
    Ok(best.map_or(Balanced { centroids, prices, cost: 0.0 }, |(_, best)| best))
}

/// Squared distance of every point to its centroid: (items,).
fn distances(points: &[f32], dim: usize, centroids: &[f32], codes: &[Code]) -> Vec<f32> {
    let distance = |(x, &code): (&[f32], &Code)| squared_distance(x, &centroids[usize::from(code) * dim..][..dim]);
    points.par_chunks_exact(dim).zip(codes).map(distance).collect()
}

/// A step for every price: clusters in a dense place need small ones, others large ones.
struct Steps {
    /// Sizes in units of the mean squared distance, and whether the last one went up.
    steps: Vec<(f64, bool)>,
}

impl Steps {
    fn new(k: usize) -> Self {
        Self { steps: vec![(0.02, true); k] }
    }

    /// Raises the prices of clusters above their `share`, lowers those below. A step grows while it keeps its
    /// direction and shrinks when it turns (Riedmiller and Braun 1993), and with the distance from the share.
    fn apply(&mut self, prices: &mut [f32], counts: &[usize], share: f64, unit: f64) {
        for ((price, (step, up)), &count) in prices.iter_mut().zip(&mut self.steps).zip(counts) {
            let excess = ((count as f64 + 0.5) / (share + 0.5)).ln().clamp(-1.0, 1.0);
            let now = excess > 0.0;
            *step = (*step * if now == *up { 1.1 } else { 0.6 }).clamp(1e-5, 0.3);
            *up = now;
            *price += (*step * unit * excess) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededRng;
    use rand::Rng;

    fn fit(points: &[f32], config: &KmeansConfig) -> Balanced {
        balanced_lloyd(&mut Points::here(points, 2), config).unwrap()
    }

    fn largest(points: &[f32], centroids: &[f32], prices: &[f32]) -> usize {
        let mut biased = squared_norms(centroids, 2);
        biased.iter_mut().zip(prices).for_each(|(norm, price)| *norm += price);
        let mut counts = vec![0; prices.len()];
        Points::here(points, 2)
            .nearest_priced(centroids, &biased)
            .unwrap()
            .iter()
            .for_each(|&c| counts[usize::from(c)] += 1);
        counts.into_iter().max().unwrap_or(0)
    }

    #[test]
    fn clusters_of_a_skewed_cloud_are_of_nearly_equal_size() {
        let mut rng = SeededRng::new(3).stream("cloud");
        // Dense near zero, thin outside.
        let points: Vec<f32> = (0..4000).map(|_| (rng.random::<f32>() * 2.0 - 1.0).powi(5)).collect();
        let config = KmeansConfig { k: 20, ..KmeansConfig::default() };
        let balanced = fit(&points, &config);
        let plain = lloyd(&mut Points::here(&points, 2), &config).unwrap().0;
        let (with, without) =
            (largest(&points, &balanced.centroids, &balanced.prices), largest(&points, &plain, &[0.0; 20]));
        assert!(with <= 120, "largest of 20 clusters of 2000 points: {with}");
        assert!(without > 2 * with, "plain k-means: {without}");
        assert_eq!(balanced, fit(&points, &config));
    }

    #[test]
    fn few_and_equal_points_are_fitted() {
        for points in [vec![1.0, 2.0], vec![0.0; 40], vec![0.0, 0.0, 1.0, 1.0]] {
            let balanced = fit(&points, &KmeansConfig { k: 6, ..KmeansConfig::default() });
            assert!(balanced.prices.iter().chain(&balanced.centroids).all(|x| x.is_finite()));
        }
    }
}
