//! k-means by the crate `kmeans`, whose distances are portable SIMD: a second opinion on our own Lloyd iterations.
//!
//! Shapes: points (items, dim) -> centroids (k, dim).
//! The crate needs two unstable features (`portable_simd`, `test`), hence the feature `simd-kmeans`, which nothing
//! switches on by default. Stable Rust compiles it when told that this one crate, and no other, may use them:
//!
//! ```sh
//! RUSTC_BOOTSTRAP=kmeans cargo test --release --locked -p rqvae --features simd-kmeans simd_kmeans
//! RUSTC_BOOTSTRAP=kmeans cargo bench --locked -p rqvae --features simd-kmeans --bench simd_kmeans
//! ```
//!
//! On nightly the variable is not needed. The crate chooses its instructions when it is compiled, so its full speed
//! needs `RUSTFLAGS="-C target-cpu=native"` too; ours chooses when it runs.
//! Deviations: the seeds are our k-means++, as the crate's own panics where points repeat, and with equal seeds both
//! sides walk the same way; the tolerance is a fraction of the cost of the seeds, not of the last cost.

use super::lloyd::{lloyd_from, plus_plus};
use super::points::Points;
use super::{Kmeans, KmeansConfig};
use crate::{Error, Result, Vectors};
use kmeans::{AbortStrategy, EuclideanDistance, KMeans, KMeansConfig};
use std::cell::RefCell;

/// Numbers per SIMD vector, those of AVX-512; narrower machines take several instructions.
const LANES: usize = 16;

impl Kmeans {
    /// As [`Kmeans::fit`], by the crate `kmeans`: `points` (items, dim), at least as many as clusters. Holds a second copy
    /// of the points.
    ///
    /// # Errors
    /// As [`Kmeans::fit`], and [`Error::InvalidConfig`] where there are fewer points than clusters.
    pub fn fit_simd(points: &Vectors, config: &KmeansConfig) -> Result<Self> {
        config.validate()?;
        points.check()?;
        let (rows, dim) = (points.rows(), points.dim);
        if rows == 0 {
            return Err(Error::BadVectors { row: 0, reason: "there are no items".into() });
        }
        if rows < config.k {
            return Err(Error::config("k", config.k, format!("1 to {rows}, the number of points")));
        }
        // No iterations: the cost of what is given.
        let still = KmeansConfig { iterations: 0, ..*config };
        let mut ours = Points::here(&points.data, dim);
        let mut seeds = plus_plus(&mut ours, config)?;
        let cost = lloyd_from(&mut seeds, &mut ours, &still)?[0];

        let costs = RefCell::new(Vec::new());
        let record = |_: &_, _, cost: f32| costs.borrow_mut().push(f64::from(cost));
        let stop = AbortStrategy::NoImprovement { threshold: (config.tolerance * cost) as f32 };
        let settings = KMeansConfig::build().abort_strategy(stop).iteration_done(&record).build();
        let theirs: KMeans<f32, LANES, _> = KMeans::new(&points.data, rows, dim, EuclideanDistance);
        let state = theirs.kmeans_lloyd(config.k, config.iterations, KMeans::init_precomputed(seeds), &settings);

        let mut centroids = state.centroids.to_vec();
        let last = lloyd_from(&mut centroids, &mut ours, &still)?;
        let costs = costs.take().into_iter().chain(last).collect();
        Ok(Self { dim, centroids, costs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Code, SeededRng};
    use rand::Rng;

    /// Points (items, dim) in the unit cube, each moved by `apart` along the dimension of its heap.
    fn points(items: usize, dim: usize, heaps: usize, apart: f32) -> Vectors {
        let mut rng = SeededRng::new(7).stream("points");
        let mut data: Vec<f32> = (0..items * dim).map(|_| rng.random()).collect();
        data.chunks_exact_mut(dim).enumerate().for_each(|(i, x)| x[i % heaps] += apart);
        Vectors::new(dim, data).unwrap()
    }

    fn last(kmeans: &Kmeans) -> f64 {
        kmeans.costs.last().copied().unwrap()
    }

    #[test]
    fn heaps_are_the_same_partition() {
        let (items, heaps) = (1200, 12);
        // 21 numbers: the last SIMD vector is partly padding.
        let points = points(items, 21, heaps, 50.0);
        let config = KmeansConfig { k: heaps, tolerance: 0.0, ..KmeansConfig::default() };
        let (ours, theirs) = (Kmeans::fit(&points, &config).unwrap(), Kmeans::fit_simd(&points, &config).unwrap());
        let codes = ours.nearest(&points).unwrap();
        assert_eq!(codes, theirs.nearest(&points).unwrap());
        for (i, &code) in codes.iter().enumerate() {
            assert_eq!(code, codes[i % heaps], "point {i} is in its heap");
        }
        let mut used: Vec<Code> = codes[..heaps].to_vec();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), heaps);
        assert!((last(&ours) - last(&theirs)).abs() < 1e-4 * last(&ours), "{ours:?} {theirs:?}");
    }

    #[test]
    fn noise_costs_the_same() {
        let points = points(3000, 24, 1, 0.0);
        for seed in 0..4 {
            let config = KmeansConfig { k: 40, iterations: 30, tolerance: 0.0, seed };
            let (ours, theirs) = (Kmeans::fit(&points, &config).unwrap(), Kmeans::fit_simd(&points, &config).unwrap());
            let ratio = last(&theirs) / last(&ours);
            assert!((0.98..1.02).contains(&ratio), "seed {seed}: {ratio}");
            assert!(last(&theirs) < 0.95 * theirs.costs[0], "it did iterate: {:?}", theirs.costs);
            assert_eq!(theirs, Kmeans::fit_simd(&points, &config).unwrap());
        }
    }

    #[test]
    fn equal_and_too_few_points() {
        let equal = Vectors::new(2, vec![1.0; 40]).unwrap();
        let kmeans = Kmeans::fit_simd(&equal, &KmeansConfig { k: 8, ..KmeansConfig::default() }).unwrap();
        assert_eq!((kmeans.centroids, kmeans.costs.last()), (vec![1.0; 16], Some(&0.0)));
        let config = KmeansConfig { k: 21, ..KmeansConfig::default() };
        assert!(matches!(Kmeans::fit_simd(&equal, &config), Err(Error::InvalidConfig { .. })));
        let nothing = Vectors::new(2, vec![]).unwrap();
        assert!(matches!(Kmeans::fit_simd(&nothing, &config), Err(Error::BadVectors { .. })));
    }
}
