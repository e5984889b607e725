//! How gradients pass the choice of a code, and how codes are chosen while the network learns.
//!
//! Shapes: latent and residuals (rows, dim), codebook (size, dim), probabilities (rows, size).
//! Papers: van den Oord et al. 2017, sec. 3.2 (straight-through); Fifty et al. 2024, sec. 4.2 (rotation trick);
//! Jang et al. 2017, sec. 2 (Gumbel-softmax); Zheng et al. 2024 (LC-Rec), sec. 3.1.2 (Sinkhorn).
//! Deviations: the rotation turns the whole latent to the sum of its codewords, not every residual to its own. The
//! logits of Gumbel-softmax are log-likelihoods of normal distributions around the codewords, as wide as residuals lie
//! from their nearest one: the noise has a deviation of 1.3 whatever the unit of the latents.

use crate::Code;
use crate::cluster::{Matrix, matmul, squared_distance};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

const SINKHORN_ITERATIONS: usize = 50;

/// How the encoder learns through the choice of a code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Estimator {
    /// The latent gets the gradient of its quantised self.
    #[default]
    StraightThrough,
    /// That gradient, turned and scaled as the quantised latent is turned and scaled back to the latent.
    RotationTrick,
    /// A mixture of codewords by softmax of their log-likelihoods and noise, at a temperature that falls; codebooks must
    /// learn by gradient.
    GumbelSoftmax,
}

/// How codewords learn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CodebookUpdate {
    /// Moving averages of the residuals that chose them.
    #[default]
    Averages,
    /// The gradient of |sg(r) - e|^2.
    Gradient,
}

/// Turns gradients (rows, dim) of the quantised latent into those of the latent by the rotation trick.
pub(super) fn rotate_back(gradient: &mut [f32], latent: &[f32], quantized: &[f32], dim: usize) {
    let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
    let rows = gradient.chunks_exact_mut(dim).zip(latent.chunks_exact(dim)).zip(quantized.chunks_exact(dim));
    for ((g, e), q) in rows {
        let (e_norm, q_norm) = (norm(e), norm(q));
        let between: Vec<f32> = e.iter().zip(q).map(|(e, q)| e / e_norm + q / q_norm).collect();
        let b_norm = norm(&between);
        // Where there is no direction, or two opposite ones, no rotation is the one: straight through.
        if !(e_norm > 1e-12 && q_norm > 1e-12 && b_norm > 1e-6) {
            continue;
        }
        // R = I - 2 b b' + 2 q e' of unit vectors, so R' g = g - 2 b (b g) + 2 e (q g), scaled by |q| / |e|.
        let b_g = between.iter().zip(&*g).map(|(b, g)| b * g).sum::<f32>() / (b_norm * b_norm);
        let q_g = q.iter().zip(&*g).map(|(q, g)| q * g).sum::<f32>() / (q_norm * e_norm);
        for ((g, b), e) in g.iter_mut().zip(&between).zip(e) {
            *g = q_norm / e_norm * (*g - 2.0 * b * b_g + 2.0 * e * q_g);
        }
    }
}

/// A number of the Gumbel distribution.
pub(super) fn gumbel(rng: &mut ChaCha8Rng) -> f32 {
    -(-(1.0 - rng.random::<f32>()).max(1e-20).ln()).max(1e-20).ln()
}

/// One level of a pass by Gumbel-softmax.
#[derive(Debug, Clone)]
pub(super) struct Soft {
    /// What the level was given.
    pub(super) residuals: Vec<f32>,
    /// Shares of the codewords: (rows, size).
    pub(super) shares: Vec<f32>,
    /// The mixtures: (rows, dim).
    pub(super) mixed: Vec<f32>,
    temperature: f32,
    /// 1 / (2 v), v the variance per dimension of the distributions around the codewords: the mean square of what the
    /// nearest codewords leave. A constant to all gradients.
    pub(super) precision: f32,
}

impl Soft {
    /// Mixes the codewords for `residuals`, with numbers of the Gumbel distribution from `noise`.
    pub(super) fn forward(
        residuals: &[f32],
        codebook: &[f32],
        dim: usize,
        temperature: f32,
        noise: &mut dyn FnMut() -> f32,
    ) -> Self {
        Self::mix(residuals, codebook, dim, temperature, None, noise)
    }

    /// As [`Soft::forward`], at the given precision or that of the residuals.
    pub(super) fn mix(
        residuals: &[f32],
        codebook: &[f32],
        dim: usize,
        temperature: f32,
        precision: Option<f32>,
        noise: &mut dyn FnMut() -> f32,
    ) -> Self {
        let (rows, size) = (residuals.len() / dim, codebook.len() / dim);
        let mut shares = vec![0.0; rows * size];
        let mut left = 0.0;
        for (shares, r) in shares.chunks_exact_mut(size).zip(residuals.chunks_exact(dim)) {
            for (share, e) in shares.iter_mut().zip(codebook.chunks_exact(dim)) {
                *share = squared_distance(r, e);
            }
            left += f64::from(shares.iter().copied().fold(f32::INFINITY, f32::min));
        }
        let precision = precision.unwrap_or_else(|| (0.5 / (left / residuals.len().max(1) as f64).max(1e-12)) as f32);
        for shares in shares.chunks_exact_mut(size) {
            shares.iter_mut().for_each(|share| *share = (noise() - precision * *share) / temperature);
            let most = shares.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            shares.iter_mut().for_each(|share| *share = (*share - most).exp());
            let sum: f32 = shares.iter().sum();
            shares.iter_mut().for_each(|share| *share /= sum);
        }
        let mut mixed = vec![0.0; rows * dim];
        matmul(&mut mixed, Matrix::new(&shares, rows, size), Matrix::new(codebook, size, dim));
        Self { residuals: residuals.to_vec(), shares, mixed, temperature, precision }
    }

    /// Code with the largest share of each row.
    pub(super) fn codes(&self, codes: &mut [Code]) {
        let size = self.shares.len() / codes.len().max(1);
        for (code, shares) in codes.iter_mut().zip(self.shares.chunks_exact(size)) {
            let best = (0..size).max_by(|&a, &b| shares[a].total_cmp(&shares[b]).then(b.cmp(&a)));
            *code = best.unwrap_or(0) as Code;
        }
    }

    /// From the gradient `flow` (rows, dim) of the mixtures to that of the codebook, added to `book`, and that of the
    /// residuals through the shares, given back.
    pub(super) fn backward(&self, flow: &[f32], codebook: &[f32], dim: usize, book: &mut [f32]) -> Vec<f32> {
        let (rows, size) = (flow.len() / dim, codebook.len() / dim);
        let (shares, e) = (Matrix::new(&self.shares, rows, size), Matrix::new(codebook, size, dim));
        let mut logits = vec![0.0; rows * size];
        matmul(&mut logits, Matrix::new(flow, rows, dim), e.t());
        for (logits, shares) in logits.chunks_exact_mut(size).zip(self.shares.chunks_exact(size)) {
            let mean: f32 = logits.iter().zip(shares).map(|(l, s)| l * s).sum();
            logits.iter_mut().zip(shares).for_each(|(l, s)| *l = s * (*l - mean) / self.temperature);
        }
        // Logits are -|r - e|^2; those of a row add up to 0, which leaves 2 l e for r and 2 l (r - e) for e.
        let mut through = vec![0.0; size * dim];
        matmul(&mut through, shares.t(), Matrix::new(flow, rows, dim));
        book.iter_mut().zip(&through).for_each(|(book, x)| *book += x);
        let change = Matrix::new(&logits, rows, size);
        matmul(&mut through, change.t(), Matrix::new(&self.residuals, rows, dim));
        for (c, (book, through)) in book.chunks_exact_mut(dim).zip(through.chunks_exact(dim)).enumerate() {
            let sum: f32 = logits.iter().skip(c).step_by(size).sum();
            for ((book, x), e) in book.iter_mut().zip(through).zip(&codebook[c * dim..]) {
                *book += 2.0 * self.precision * (x - sum * e);
            }
        }
        let mut back = vec![0.0; rows * dim];
        matmul(&mut back, change, e);
        back.iter_mut().for_each(|x| *x *= 2.0 * self.precision);
        back
    }
}

/// Codes of `residuals` (rows, dim) that use the codewords evenly: entropic transport with the distances, scaled to a
/// range of 2, divided by `epsilon`.
pub(super) fn sinkhorn(residuals: &[f32], codebook: &[f32], dim: usize, epsilon: f32, codes: &mut [Code]) {
    let (rows, size) = (residuals.len() / dim, codebook.len() / dim);
    let distance = |r: &[f32], e: &[f32]| f64::from(squared_distance(r, e));
    let mut kernel: Vec<f64> =
        residuals.chunks_exact(dim).flat_map(|r| codebook.chunks_exact(dim).map(move |e| distance(r, e))).collect();
    let (least, most) = kernel.iter().fold((f64::INFINITY, 0f64), |(a, b), &d| (a.min(d), b.max(d)));
    let unit = ((most - least) / 2.0).max(f64::MIN_POSITIVE) * f64::from(epsilon);
    for row in kernel.chunks_exact_mut(size) {
        let nearest = row.iter().copied().fold(f64::INFINITY, f64::min);
        row.iter_mut().for_each(|d| *d = (-(*d - nearest) / unit).exp());
    }
    let (mut u, mut v) = (vec![1.0; rows], vec![1.0; size]);
    for _ in 0..SINKHORN_ITERATIONS {
        let mut sums = vec![0f64; size];
        for (row, u) in kernel.chunks_exact(size).zip(&u) {
            sums.iter_mut().zip(row).for_each(|(sum, k)| *sum += u * k);
        }
        let share = rows as f64 / size as f64;
        // A codeword that is out of everyone's reach keeps its price.
        for (v, sum) in v.iter_mut().zip(&sums).filter(|(_, sum)| **sum > 1e-200) {
            *v = (share / sum).min(1e100);
        }
        for (row, u) in kernel.chunks_exact(size).zip(&mut u) {
            let sum: f64 = row.iter().zip(&v).map(|(k, v)| k * v).sum();
            *u = (1.0 / sum.max(1e-200)).min(1e100);
        }
    }
    for (row, code) in kernel.chunks_exact(size).zip(codes) {
        let best = (0..size).max_by(|&a, &b| (row[a] * v[a]).total_cmp(&(row[b] * v[b])).then(b.cmp(&a)));
        *code = best.unwrap_or(0) as Code;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededRng;

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// The rotation is linear, takes the latent to its quantised self, and keeps angles.
    #[test]
    fn the_rotation_takes_the_latent_to_its_quantised_self() {
        let (e, q) = ([1.0, 2.0, -1.0], [0.5, 2.5, 1.0]);
        // Columns of lambda R: gradients of single outputs, turned back, are its rows.
        let row = |at: usize| {
            let mut g = [0.0; 3];
            g[at] = 1.0;
            rotate_back(&mut g, &e, &q, 3);
            g
        };
        let rows = [row(0), row(1), row(2)];
        for at in 0..3 {
            assert!((dot(&rows[at], &e) - q[at]).abs() < 1e-5, "{rows:?}");
            for other in 0..3 {
                let expected = if at == other { dot(&q, &q) / dot(&e, &e) } else { 0.0 };
                assert!((dot(&rows[at], &rows[other]) - expected).abs() < 1e-5);
            }
        }
        let mut opposite = [1.0, 2.0];
        rotate_back(&mut opposite, &[1.0, 0.0], &[-1.0, 0.0], 2);
        assert_eq!(opposite, [1.0, 2.0]);
    }

    #[test]
    fn soft_gradients_equal_central_differences() {
        let (dim, rows, size) = (2, 3, 4);
        let mut draw = SeededRng::new(2).stream("soft");
        let mut random = |n: usize| (0..n).map(|_| draw.random::<f32>() * 2.0 - 1.0).collect::<Vec<f32>>();
        let (r, e, g) = (random(rows * dim), random(size * dim), random(rows * dim));
        let forward = |r: &[f32], e: &[f32]| {
            let mut rng = SeededRng::new(5).stream("noise");
            Soft::mix(r, e, dim, 0.7, Some(1.3), &mut || gumbel(&mut rng))
        };
        let value = |r: &[f32], e: &[f32]| dot(&forward(r, e).mixed, &g);
        let mut book = vec![0.0; size * dim];
        let back = forward(&r, &e).backward(&g, &e, dim, &mut book);
        let difference = |x: &[f32], at: usize, value: &dyn Fn(&[f32]) -> f32| {
            let (mut up, mut down) = (x.to_vec(), x.to_vec());
            (up[at], down[at]) = (x[at] + 5e-3, x[at] - 5e-3);
            (value(&up) - value(&down)) / 1e-2
        };
        for at in 0..back.len() {
            assert!((back[at] - difference(&r, at, &|r| value(r, &e))).abs() < 3e-3);
        }
        for at in 0..book.len() {
            assert!((book[at] - difference(&e, at, &|e| value(&r, e))).abs() < 3e-3);
        }
    }

    #[test]
    fn sinkhorn_uses_codes_evenly() {
        // All points lie near the first of two codewords.
        let residuals: Vec<f32> = (0..8u8).map(|i| f32::from(i) / 10.0).collect();
        let mut codes = vec![0; 8];
        sinkhorn(&residuals, &[0.0, 5.0], 1, 0.01, &mut codes);
        assert_eq!(codes, [0, 0, 0, 0, 1, 1, 1, 1]);
        sinkhorn(&[0.0; 4], &[0.0, 0.0], 1, 0.01, &mut codes[..4]);
    }
}
