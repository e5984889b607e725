//! Implicit feedback by alternating least squares: every item that a user has not met counts as a weak no.
//!
//! Shapes: item factors (items, factors), the vector of a history (factors,).
//! Paper: Hu, Koren and Volinsky 2008, Collaborative Filtering for Implicit Feedback Datasets, eq. 3 to 5, with one
//! preference of 1 and one confidence of 1 + alpha for whatever was met.
//! Deviation: exact solutions at the price of the history instead of the factors. With Z = Y (Y'Y + reg I)^-1, made once
//! a sweep, the solution of eq. 4 for items Y_u is Z_u' w with (I + alpha Y_u Z_u') w = (1 + alpha) 1 (Woodbury), a system
//! of as many unknowns as there are items; where these are more than factors, eq. 4 is solved as it stands.

use super::cholesky::Cholesky;
use super::{distinct, ranked};
use crate::dense::DenseIndex;
use crate::nn::{axpy, dot, project, vectorized, with_values};
use crate::retrieve::{Query, Retriever, Scored};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use rand::Rng;
use rayon::prelude::*;
use rqvae::{ItemIdx, SeededRng};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Numbers of the factorisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlsConfig {
    /// Width of the vectors.
    pub factors: usize,
    /// Confidence above 1 of what was met.
    pub alpha: f64,
    /// Weight of the squared norms.
    pub regularization: f64,
    /// Sweeps over users and items.
    pub iterations: usize,
    /// Of the first item vectors.
    pub seed: u64,
}

impl Default for AlsConfig {
    fn default() -> Self {
        Self { factors: 256, alpha: 40.0, regularization: 0.1, iterations: 15, seed: 0 }
    }
}

impl AlsConfig {
    fn validate(&self) -> Result<()> {
        let invalid =
            |field, got: String, expected: &str| Err(Error::InvalidConfig { field, got, expected: expected.into() });
        if !(1..=4096).contains(&self.factors) {
            return invalid("factors", self.factors.to_string(), "1 to 4096");
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return invalid("alpha", self.alpha.to_string(), "a positive number");
        }
        if !(self.regularization > 0.0 && self.regularization.is_finite()) {
            return invalid("regularization", self.regularization.to_string(), "a positive number");
        }
        if self.iterations == 0 {
            return invalid("iterations", "0".into(), "at least 1");
        }
        Ok(())
    }
}

/// Vectors of one side, ready to solve the other side against.
struct Side {
    factors: usize,
    alpha: f64,
    /// Y: (rows, factors).
    rows: Vec<f32>,
    /// Z = Y (Y'Y + reg I)^-1: (rows, factors).
    solved: Vec<f32>,
    /// Y'Y + reg I: (factors, factors).
    gram: Vec<f64>,
}

impl Side {
    fn new(rows: Vec<f32>, config: &AlsConfig) -> Result<Self> {
        let n = config.factors;
        let count = rows.len() / n;
        let tensor = Tensor::from_slice(&rows, (count, n), &Device::Cpu)?;
        let transposed = tensor.t()?.contiguous()?;
        let mut gram: Vec<f64> =
            with_values(&project(&transposed, &transposed)?, |gram| gram.iter().map(|x| f64::from(*x)).collect())?;
        (0..n).for_each(|i| gram[i * n + i] += config.regularization);
        let factored = Cholesky::new(gram.clone(), n).ok_or_else(|| Error::Mismatch {
            what: "normal equations of the factorisation".into(),
            expected: "a positive definite matrix".into(),
            found: "one that is not; raise regularization".into(),
        })?;
        let inverse: Vec<f32> = factored.inverse().iter().map(|x| *x as f32).collect();
        // The inverse is symmetric, so that the product with its transpose is the product with it.
        let solved = project(&tensor, &Tensor::from_vec(inverse, (n, n), &Device::Cpu)?)?;
        let solved = with_values(&solved, <[f32]>::to_vec)?;
        Ok(Self { factors: n, alpha: config.alpha, rows, solved, gram })
    }

    fn row<'a>(&self, of: &'a [f32], at: u32) -> &'a [f32] {
        &of[at as usize * self.factors..][..self.factors]
    }

    /// The vector that explains having met `met`, each once: -> (factors,).
    fn solve(&self, met: &[u32]) -> Vec<f32> {
        if met.len() <= self.factors { self.by_woodbury(met) } else { self.by_normal_equations(met) }
    }

    fn by_woodbury(&self, met: &[u32]) -> Vec<f32> {
        let n = met.len();
        let mut system = vec![0.0; n * n];
        vectorized!({
            for i in 0..n {
                let z = self.row(&self.solved, met[i]);
                for j in 0..=i {
                    system[i * n + j] = self.alpha * f64::from(dot(z, self.row(&self.rows, met[j])));
                }
                system[i * n + i] += 1.0;
            }
        });
        let mut weights = vec![1.0 + self.alpha; n];
        match Cholesky::new(system, n) {
            Some(factored) => factored.solve(&mut weights),
            None => return self.by_normal_equations(met),
        }
        let mut x = vec![0.0; self.factors];
        vectorized!({
            for (item, weight) in met.iter().zip(&weights) {
                axpy(&mut x, *weight as f32, self.row(&self.solved, *item));
            }
        });
        x
    }

    /// Equation 4 as it stands: (Y'Y + alpha Y_u'Y_u + reg I) x = (1 + alpha) Y_u' 1.
    fn by_normal_equations(&self, met: &[u32]) -> Vec<f32> {
        let n = self.factors;
        let (mut matrix, mut x) = (self.gram.clone(), vec![0.0; n]);
        for item in met {
            let y = self.row(&self.rows, *item);
            for i in 0..n {
                let scaled = self.alpha * f64::from(y[i]);
                x[i] += (1.0 + self.alpha) * f64::from(y[i]);
                matrix[i * n..][..=i].iter_mut().zip(y).for_each(|(m, y)| *m += scaled * f64::from(*y));
            }
        }
        // The matrix of `gram`, which could be factored, plus squares.
        if let Some(factored) = Cholesky::new(matrix, n) {
            factored.solve(&mut x);
        }
        x.iter().map(|x| *x as f32).collect()
    }
}

/// Items factored by [`AlsConfig`].
pub struct Als {
    items: Side,
    index: DenseIndex,
    tie_hash: Arc<[u64]>,
}

impl Als {
    /// Fits on the users' `histories`; `tie_hash` has one number per item.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the field.
    pub fn fit(histories: &[&[ItemIdx]], tie_hash: &[u64], config: &AlsConfig) -> Result<Self> {
        config.validate()?;
        let (items, factors) = (tie_hash.len(), config.factors);
        let met: Vec<Vec<u32>> = histories.iter().map(|history| distinct(history, tie_hash)).collect();
        let mut met_by = vec![Vec::new(); items];
        for (user, met) in met.iter().enumerate() {
            met.iter().for_each(|item| met_by[*item as usize].push(user as u32));
        }
        let mut rng = SeededRng::new(config.seed).stream("item factors");
        let scale = 0.1 / (factors as f32).sqrt();
        let mut vectors: Vec<f32> = (0..items * factors).map(|_| rng.random_range(-scale..scale)).collect();
        let solve = |fixed: &Side, rows: &[Vec<u32>]| -> Vec<f32> {
            let mut out = vec![0.0; rows.len() * factors];
            // One at a time: a few items have most of the work.
            out.par_chunks_mut(factors).zip(rows).with_max_len(16).for_each(|(out, met)| {
                out.copy_from_slice(&fixed.solve(met));
            });
            out
        };
        for _ in 0..config.iterations {
            let users = Side::new(solve(&Side::new(vectors, config)?, &met), config)?;
            vectors = solve(&users, &met_by);
        }
        let index = DenseIndex::new(factors, vectors.clone(), tie_hash)?;
        Ok(Self { items: Side::new(vectors, config)?, index, tie_hash: Arc::from(tie_hash) })
    }
}

impl Retriever for Als {
    fn name(&self) -> &'static str {
        "ials"
    }

    fn retrieve(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Scored>>> {
        ranked(&self.index, queries, k, |history| self.items.solve(&distinct(history, &self.tie_hash)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// The short way and the long way find the same vector, and it is where the gradient of eq. 3 vanishes.
        #[test]
        fn woodbury_equals_the_normal_equations(seed: u64, rows in 2usize..30, factors in 1usize..9, met in 1usize..12) {
            let config = AlsConfig { factors, alpha: 7.0, ..AlsConfig::default() };
            let draw = |i: usize| (rqvae::mix(seed ^ i as u64) % 2000) as f32 / 1000.0 - 1.0;
            let side = Side::new((0..rows * factors).map(draw).collect(), &config).unwrap();
            let met: Vec<u32> = (0..met.min(rows) as u32).collect();
            let (short, long) = (side.by_woodbury(&met), side.by_normal_equations(&met));
            for (a, b) in short.iter().zip(&long) {
                prop_assert!((a - b).abs() < 1e-3 * (1.0 + b.abs()), "{:?} {:?}", short, long);
            }
            for axis in 0..factors {
                let mut gradient = config.regularization * f64::from(long[axis]);
                for row in 0..rows as u32 {
                    let y = side.row(&side.rows, row);
                    let score: f64 = y.iter().zip(&long).map(|(y, x)| f64::from(*y) * f64::from(*x)).sum();
                    let (confidence, preference) = if met.contains(&row) { (1.0 + config.alpha, 1.0) } else { (1.0, 0.0) };
                    gradient += confidence * (score - preference) * f64::from(y[axis]);
                }
                prop_assert!(gradient.abs() < 1e-2, "axis {axis}: {gradient}");
            }
        }
    }

    #[test]
    fn what_cannot_be_fitted_is_named() {
        let refused = |config: AlsConfig| Als::fit(&[], &[1], &config).err().unwrap().to_string();
        assert!(refused(AlsConfig { factors: 0, ..AlsConfig::default() }).contains("factors"));
        assert!(refused(AlsConfig { alpha: f64::NAN, ..AlsConfig::default() }).contains("alpha"));
        assert!(refused(AlsConfig { regularization: 0.0, ..AlsConfig::default() }).contains("regularization"));
        assert!(refused(AlsConfig { iterations: 0, ..AlsConfig::default() }).contains("iterations"));
    }
}
