//! k-means: k-means++ seeding and Lloyd's iterations, seeded, with dead clusters set anew.
//!
//! Shapes: points (items, dim) -> centroids (k, dim).
//! Paper: Arthur and Vassilvitskii 2007, k-means++; Lloyd 1982.
//! Deviations: a cluster that has lost all its points moves to the point that lies farthest from its centroid.

use super::dots::dots;
use super::matmul::{Matrix, matmul};
use super::points::Points;
use crate::{Code, Error, Result, SeededRng, Vectors};
use rand::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Rows per product. Blocks are always full (the last one is filled with zeros), so that the codes of a point depend
/// neither on its place nor on its neighbours.
pub(crate) const BLOCK: usize = 256;

const MAX_K: usize = Code::MAX as usize + 1;

/// Numbers of one k-means.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KmeansConfig {
    /// Clusters.
    pub k: usize,
    /// Most iterations.
    pub iterations: usize,
    /// Stops when the cost falls by less than this fraction in an iteration.
    pub tolerance: f64,
    /// Seed of the k-means++ draws.
    pub seed: u64,
}

impl Default for KmeansConfig {
    fn default() -> Self {
        Self { k: 256, iterations: 50, tolerance: 1e-4, seed: 0 }
    }
}

impl KmeansConfig {
    /// Refuses what cannot be fitted.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if !(1..=MAX_K).contains(&self.k) {
            return Err(Error::config("k", self.k, format!("1 to {MAX_K}")));
        }
        if !(0.0..1.0).contains(&self.tolerance) {
            return Err(Error::config("tolerance", self.tolerance, "0 to below 1"));
        }
        Ok(())
    }
}

/// Fitted clusters.
#[derive(Debug, Clone, PartialEq)]
pub struct Kmeans {
    /// Width of a centroid.
    pub dim: usize,
    /// Centroids: (k, dim). Those that never had a point repeat another one.
    pub centroids: Vec<f32>,
    /// Sum of squared distances to the nearest centroid, before each iteration and after the last one.
    pub costs: Vec<f64>,
}

impl Kmeans {
    /// Fits `points` (items, dim); fewer points than clusters, or equal ones, leave clusters empty.
    ///
    /// # Errors
    /// The configuration is invalid, or there are no points, or one of them is not finite.
    pub fn fit(points: &Vectors, config: &KmeansConfig) -> Result<Self> {
        config.validate()?;
        points.check()?;
        if points.rows() == 0 {
            return Err(Error::BadVectors { row: 0, reason: "there are no items".into() });
        }
        let (centroids, costs) = lloyd(&mut Points::here(&points.data, points.dim), config)?;
        Ok(Self { dim: points.dim, centroids, costs })
    }

    /// Nearest centroid of each point: (items, dim) -> (items,).
    ///
    /// # Errors
    /// The points are not of the fitted width or not finite.
    pub fn nearest(&self, points: &Vectors) -> Result<Vec<Code>> {
        points.check()?;
        if points.dim != self.dim {
            return Err(Error::shape("points", format!("width {}", self.dim), points.dim));
        }
        Points::here(&points.data, self.dim).nearest(&self.centroids)
    }
}

/// The work of [`Kmeans::fit`] on checked input: centroids (k, dim) and costs.
///
/// # Errors
/// None on the host; on a device, what that says.
pub(crate) fn lloyd(points: &mut Points, config: &KmeansConfig) -> Result<(Vec<f32>, Vec<f64>)> {
    let mut centroids = plus_plus(points, config)?;
    let costs = lloyd_from(&mut centroids, points, config)?;
    Ok((centroids, costs))
}

/// Lloyd's iterations from `centroids` (k, dim) on: costs.
pub(super) fn lloyd_from(centroids: &mut [f32], points: &mut Points, config: &KmeansConfig) -> Result<Vec<f64>> {
    let (data, dim) = (points.data, points.dim);
    let mut costs: Vec<f64> = Vec::new();
    for iteration in 0..=config.iterations {
        let codes = points.nearest(centroids)?;
        let mut distances = vec![0.0; codes.len()];
        distances.par_iter_mut().zip(&codes).zip(data.par_chunks_exact(dim)).for_each(|((d, &code), x)| {
            *d = squared_distance(x, &centroids[usize::from(code) * dim..][..dim]);
        });
        let cost: f64 = distances.iter().map(|&d| f64::from(d)).sum();
        let stalled = costs.last().is_some_and(|&last| last - cost <= config.tolerance * last);
        costs.push(cost);
        if iteration == config.iterations || stalled {
            break;
        }
        update(centroids, data, dim, &codes, &mut distances);
    }
    Ok(costs)
}

/// Moves each centroid to the mean of its points; a centroid without points takes the farthest point. Gives back how
/// many points each had: (k,).
pub(super) fn update(
    centroids: &mut [f32],
    points: &[f32],
    dim: usize,
    codes: &[Code],
    distances: &mut [f32],
) -> Vec<usize> {
    let k = centroids.len() / dim;
    let mut starts = vec![0; k + 1];
    codes.iter().for_each(|&code| starts[usize::from(code) + 1] += 1);
    for c in 0..k {
        starts[c + 1] += starts[c];
    }
    let mut next = starts.clone();
    let mut members = vec![0; codes.len()];
    for (i, &code) in codes.iter().enumerate() {
        members[next[usize::from(code)]] = i;
        next[usize::from(code)] += 1;
    }
    centroids.par_chunks_exact_mut(dim).enumerate().for_each(|(c, centroid)| {
        let members = &members[starts[c]..starts[c + 1]];
        if members.is_empty() {
            return;
        }
        let mut sums = vec![0f64; dim];
        for &i in members {
            for (sum, &x) in sums.iter_mut().zip(&points[i * dim..][..dim]) {
                *sum += f64::from(x);
            }
        }
        for (mean, sum) in centroid.iter_mut().zip(sums) {
            *mean = (sum / members.len() as f64) as f32;
        }
    });
    for dead in (0..k).filter(|&c| starts[c] == starts[c + 1]) {
        let farthest = (0..distances.len()).max_by(|&a, &b| distances[a].total_cmp(&distances[b]).then(b.cmp(&a)));
        match farthest {
            Some(i) if distances[i] > 0.0 => {
                centroids[dead * dim..][..dim].copy_from_slice(&points[i * dim..][..dim]);
                distances[i] = 0.0;
            }
            _ => break,
        }
    }
    starts.windows(2).map(|w| w[1] - w[0]).collect()
}

/// Greedy k-means++: of a few points drawn with probability proportional to their squared distance, the one that
/// lowers the cost most becomes the next centroid.
pub(super) fn plus_plus(points: &mut Points, config: &KmeansConfig) -> Result<Vec<f32>> {
    let (data, dim, n) = (points.data, points.dim, points.rows());
    let trials = 2 + (config.k as f64).ln() as usize;
    let mut rng = SeededRng::new(config.seed).stream("kmeans++");
    let norms = squared_norms(data, dim);
    let mut centroids = Vec::with_capacity(config.k * dim);
    let mut distances = vec![f32::INFINITY; n];
    let mut candidates = vec![rng.random_range(0..n)];
    while centroids.len() < config.k * dim {
        let (totals, tried) = closer(points, &norms, &distances, &candidates)?;
        let best = (0..totals.len()).min_by(|&a, &b| totals[a].total_cmp(&totals[b])).unwrap_or(0);
        let chosen = candidates[best];
        centroids.extend_from_slice(&data[chosen * dim..][..dim]);
        distances.iter_mut().zip(tried.chunks_exact(candidates.len())).for_each(|(d, tried)| *d = tried[best]);
        let total = totals[best];
        candidates.clear();
        candidates.extend((0..trials).map(|_| draw(&distances, total * rng.random::<f64>()).unwrap_or(chosen)));
    }
    Ok(centroids)
}

/// Squared distances (items, candidates) once a candidate is a centroid too, and their sums (candidates,).
///
/// All candidates are looked at in one pass over the points, by a product; what is too close for its rounding is
/// computed again, so that a point has distance 0 to itself.
fn closer(points: &mut Points, norms: &[f32], distances: &[f32], candidates: &[usize]) -> Result<(Vec<f64>, Vec<f32>)> {
    const CLOSE: f32 = 1e-4;
    let (data, dim, width) = (points.data, points.dim, candidates.len());
    let chosen: Vec<f32> = candidates.iter().flat_map(|&i| &data[i * dim..][..dim]).copied().collect();
    let mut tried = vec![0.0; distances.len() * width];
    let by_device = points.dots(&chosen, &mut tried)?;
    let blocks = tried.par_chunks_mut(BLOCK * width).zip(data.par_chunks(BLOCK * dim));
    let sums: Vec<Vec<f64>> = blocks
        .enumerate()
        .map(|(block, (tried, x))| {
            if !by_device {
                dots(tried, x, &chosen, dim);
            }
            let mut sums = vec![0f64; width];
            for (row, tried) in tried.chunks_exact_mut(width).enumerate() {
                let at = block * BLOCK + row;
                for (c, product) in tried.iter_mut().enumerate() {
                    let both = norms[at] + norms[candidates[c]];
                    let mut squared = both - 2.0 * *product;
                    if squared < CLOSE * both {
                        squared = squared_distance(&x[row * dim..][..dim], &chosen[c * dim..][..dim]);
                    }
                    *product = squared.min(distances[at]);
                    sums[c] += f64::from(*product);
                }
            }
            sums
        })
        .collect();
    let mut totals = vec![0f64; width];
    sums.iter().for_each(|sums| totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum));
    Ok((totals, tried))
}

/// The item at which the running sum of `distances` passes `mark`, none when all are 0: then the last centroid is
/// repeated, and as ties go to the first one, copies stay unused.
fn draw(distances: &[f32], mut mark: f64) -> Option<usize> {
    let mut last = None;
    for (i, &d) in distances.iter().enumerate().filter(|(_, d)| **d > 0.0) {
        last = Some(i);
        mark -= f64::from(d);
        if mark < 0.0 {
            break;
        }
    }
    last
}

/// Codeword of each point with the least squared distance plus price, the first one of equals: (items, dim) and (k, dim)
/// -> (items,), `norms` (k,) being the squared norms plus the prices.
pub(crate) fn nearest_priced(points: &[f32], dim: usize, codewords: &[f32], norms: &[f32]) -> Vec<Code> {
    let mut codes = vec![0; points.len() / dim];
    codes.par_chunks_mut(BLOCK).zip(points.par_chunks(BLOCK * dim)).for_each_init(Vec::new, |scores, (codes, x)| {
        nearest_in_block(x, dim, codewords, norms, scores, codes);
    });
    codes
}

/// As [`nearest_priced`] for at most [`BLOCK`] points, on this thread, with `norms` (k,) and a buffer for the scores.
pub(crate) fn nearest_in_block(
    points: &[f32],
    dim: usize,
    codewords: &[f32],
    norms: &[f32],
    scores: &mut Vec<f32>,
    codes: &mut [Code],
) {
    let k = norms.len();
    scores.resize(BLOCK * k, 0.0);
    let padded: Vec<f32>;
    let block = if points.len() == BLOCK * dim {
        points
    } else {
        padded = points.iter().copied().chain(std::iter::repeat(0.0)).take(BLOCK * dim).collect();
        &padded
    };
    matmul(scores, Matrix::new(block, BLOCK, dim), Matrix::new(codewords, k, dim).t());
    for (code, scores) in codes.iter_mut().zip(scores.chunks_exact(k)) {
        // |x - c|^2 = |x|^2 + 2 (|c|^2 / 2 - x.c)
        let mut best = f32::INFINITY;
        for (c, (score, norm)) in scores.iter().zip(norms).enumerate() {
            let distance = 0.5 * norm - score;
            if distance < best {
                best = distance;
                *code = c as Code;
            }
        }
    }
}

/// Squared norm of each row: (k, dim) -> (k,).
pub(crate) fn squared_norms(rows: &[f32], dim: usize) -> Vec<f32> {
    rows.chunks_exact(dim).map(|row| row.iter().map(|x| x * x).sum()).collect()
}

/// Squared distance, in sixteen lanes with a fixed order.
pub(crate) fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| (x - y) * (x - y)).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane += (x - y) * (x - y);
        }
    }
    lanes.iter().sum::<f32>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fit(points: &[f32], dim: usize, k: usize) -> Kmeans {
        let config = KmeansConfig { k, tolerance: 0.0, ..KmeansConfig::default() };
        Kmeans::fit(&Vectors::new(dim, points.to_vec()).unwrap(), &config).unwrap()
    }

    #[test]
    fn two_heaps_are_found() {
        let kmeans = fit(&[0.0, 0.0, 0.0, 2.0, 9.0, 0.0, 9.0, 2.0], 2, 2);
        let mut found: Vec<&[f32]> = kmeans.centroids.chunks(2).collect();
        found.sort_by(|a, b| a[0].total_cmp(&b[0]));
        assert_eq!(found, [[0.0, 1.0], [9.0, 1.0]]);
        assert_eq!(kmeans.costs.last(), Some(&4.0));
    }

    #[test]
    fn few_equal_and_single_points() {
        for (points, k) in [(vec![3.0, 4.0], 5), (vec![1.0; 40], 8), (vec![0.0, 0.0, 1.0, 1.0], 4)] {
            let kmeans = fit(&points, 2, k);
            assert_eq!(kmeans.centroids.len(), 2 * k);
            assert_eq!(kmeans.costs.last(), Some(&0.0));
        }
        let nothing = Vectors::new(2, vec![]).unwrap();
        assert!(matches!(Kmeans::fit(&nothing, &KmeansConfig::default()), Err(Error::BadVectors { .. })));
    }

    #[test]
    fn a_dead_cluster_takes_the_farthest_point() {
        let points = [0.0, 1.0, 10.0];
        let mut centroids = vec![0.5, 99.0];
        update(&mut centroids, &points, 1, &[0, 0, 0], &mut [0.25, 0.25, 90.25]);
        assert!((centroids[0] - 11.0 / 3.0).abs() < 1e-6);
        assert_eq!(centroids[1], 10.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Invariant 12: the cost never rises, and the same seed gives the same bits.
        #[test]
        fn cost_never_rises(points in prop::collection::vec(-9f32..9.0, 3..600), k in 1usize..12) {
            let points = &points[..points.len() / 3 * 3];
            let kmeans = fit(points, 3, k);
            for pair in kmeans.costs.windows(2) {
                prop_assert!(pair[1] <= pair[0] * (1.0 + 1e-5) + 1e-5, "{:?}", kmeans.costs);
            }
            prop_assert_eq!(&kmeans, &fit(points, 3, k));
        }

        /// The code of a point depends neither on its place nor on its neighbours.
        #[test]
        fn a_point_alone_has_the_same_code(points in prop::collection::vec(-1f32..1.0, 300 * 5)) {
            let codewords = &points[..5 * 40];
            let codes = Points::here(&points, 5).nearest(codewords).unwrap();
            for (x, code) in points.chunks(5).zip(codes).step_by(37) {
                prop_assert_eq!(Points::here(x, 5).nearest(codewords).unwrap(), [code]);
            }
        }
    }
}
