//! Cross-entropy of states against every row of a table, without the logits: projection and softmax are one pass.
//!
//! Why: over 12,101 items the logits of one batch are a hundred megabytes, written and read several times. Here a block
//! of rows is taken through tiles of the table that stay in the cache, and the gradients are made of the same
//! exponentials, so nothing is computed twice.
//! Shapes: states (rows, dim), table (items, dim), one target per row -> scalar.
//! Tiles are of fixed size and their sums are added in order: the same bits for any number of threads.

use crate::nn::{Matrix, axpy, dot, exp, max_of, sum_of, values, vectorized, with_values};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

/// Rows that go through the table together.
const ROWS: usize = 128;
/// Items of a tile.
const ITEMS: usize = 512;

/// Mean over rows of `-log softmax(states table^T)[target]`: (rows, dim), (items, dim) -> scalar.
///
/// With `smoothing` e the target distribution is `1 - e` on the target plus `e / items` everywhere. The same as
/// [`cross_entropy`](super::cross_entropy) of the product, to rounding.
///
/// # Errors
/// When widths or the number of targets differ, or a target is no row of the table.
pub fn projected_cross_entropy(states: &Tensor, table: &Tensor, targets: Vec<u32>, smoothing: f32) -> Result<Tensor> {
    let ((rows, dim), (items, width)) = (states.dims2()?, table.dims2()?);
    if targets.len() != rows || dim != width || targets.iter().any(|t| *t as usize >= items) {
        candle_core::bail!(
            "cross-entropy: {} targets for states of shape ({rows}, {dim}) and a table of shape ({items}, {width})",
            targets.len()
        );
    }
    let op = Projected {
        targets: Arc::new(targets),
        smoothing,
        learns: states.track_op() || table.track_op(),
        gradients: Mutex::default(),
    };
    states.contiguous()?.apply_op2(&table.contiguous()?, op)
}

/// Of the mean loss: by states and by the table.
struct Gradients {
    states: Vec<f32>,
    table: Vec<f32>,
}

struct Projected {
    targets: Arc<Vec<u32>>,
    smoothing: f32,
    /// Whether anybody will ask for gradients, which the forward pass then leaves behind.
    learns: bool,
    gradients: Mutex<Option<Gradients>>,
}

/// Where a softmax stands after some of its terms: their maximum, and the sum of exponentials below it.
#[derive(Clone, Copy)]
struct Peak {
    max: f32,
    sum: f32,
}

impl Peak {
    fn join(self, other: Self) -> Self {
        let max = self.max.max(other.max);
        Self { max, sum: self.sum * exp(self.max - max) + other.sum * exp(other.max - max) }
    }
}

/// `exp(x - max)` of the values of each row of a tile, in place, and where each row stands.
fn exponentiate(tile: &mut [f32], width: usize) -> Vec<Peak> {
    let mut peaks = Vec::with_capacity(tile.len() / width);
    vectorized!({
        for row in tile.chunks_exact_mut(width) {
            let max = max_of(row);
            for value in row.iter_mut() {
                *value = exp(*value - max);
            }
            peaks.push(Peak { max, sum: sum_of(row) });
        }
    });
    peaks
}

/// Each row of `x` (rows, dim) times its factor.
fn scaled(x: &[f32], dim: usize, factors: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut out = x.to_vec();
    out.chunks_exact_mut(dim).zip(factors).for_each(|(row, factor)| row.iter_mut().for_each(|v| *v *= factor));
    out
}

/// Sum of the rows of `x`.
fn total(x: &[f32], dim: usize) -> Vec<f32> {
    let mut sum = vec![0.0; dim];
    x.chunks_exact(dim).for_each(|row| axpy(&mut sum, 1.0, row));
    sum
}

impl Projected {
    /// The mean loss, and its gradients where `learn` asks for them.
    fn pass(&self, x: &[f32], w: &[f32], dim: usize, learn: bool) -> (f64, Option<Gradients>) {
        let (rows, items) = (self.targets.len(), w.len() / dim);
        let (e, share) = (self.smoothing, 1.0 / rows.max(1) as f32);
        let uniform = e / items as f32;
        let mut tiles = vec![0.0; items.div_ceil(ITEMS) * ROWS.min(rows) * ITEMS];
        let stride = (ROWS.min(rows) * ITEMS).max(1);
        let table_sum = total(w, dim);
        let mut gradients = learn.then(|| Gradients { states: vec![0.0; x.len()], table: vec![0.0; w.len()] });
        let mut loss = 0.0;
        for (block, (x, targets)) in x.chunks(ROWS * dim).zip(self.targets.chunks(ROWS)).enumerate() {
            let states = Matrix::new(x, targets.len(), dim);
            let peaks: Vec<Vec<Peak>> = tiles
                .par_chunks_mut(stride)
                .zip(w.par_chunks(ITEMS * dim))
                .map(|(tile, w)| {
                    let width = w.len() / dim;
                    let tile = &mut tile[..targets.len() * width];
                    states.times_into(Matrix::new(w, width, dim).t(), tile, false);
                    exponentiate(tile, width)
                })
                .collect();
            let none = Peak { max: f32::NEG_INFINITY, sum: 0.0 };
            let whole: Vec<Peak> =
                (0..targets.len()).map(|row| peaks.iter().fold(none, |peak, tile| peak.join(tile[row]))).collect();
            for ((x, target), peak) in x.chunks_exact(dim).zip(targets).zip(&whole) {
                let own = dot(x, &w[*target as usize * dim..][..dim]);
                let row = f64::from(peak.max) + f64::from(peak.sum.ln())
                    - f64::from((1.0 - e) * own)
                    - f64::from(uniform * dot(x, &table_sum));
                loss += row;
            }
            let Some(gradients) = &mut gradients else { continue };
            let parts: Vec<Vec<f32>> = tiles
                .par_chunks(stride)
                .zip(w.par_chunks(ITEMS * dim).zip(gradients.table.par_chunks_mut(ITEMS * dim)))
                .zip(&peaks)
                .map(|((tile, (w, dw)), peaks)| {
                    let width = w.len() / dim;
                    let tile = Matrix::new(&tile[..targets.len() * width], targets.len(), width);
                    // Probabilities are the tile's rows times these.
                    let factors = || whole.iter().zip(peaks).map(|(all, own)| share * exp(own.max - all.max) / all.sum);
                    tile.t().times_into(Matrix::new(&scaled(x, dim, factors()), targets.len(), dim), dw, true);
                    let mut part = vec![0.0; x.len()];
                    tile.times_into(Matrix::new(w, width, dim), &mut part, false);
                    scaled(&part, dim, factors())
                })
                .collect();
            let dx = &mut gradients.states[block * ROWS * dim..][..x.len()];
            parts.iter().for_each(|part| axpy(dx, 1.0, part));
        }
        if let Some(gradients) = &mut gradients {
            let states_sum = total(x, dim);
            for (at, target) in self.targets.iter().enumerate() {
                let (row, target) = (at * dim..(at + 1) * dim, *target as usize * dim..(*target as usize + 1) * dim);
                axpy(&mut gradients.states[row.clone()], -share * (1.0 - e), &w[target.clone()]);
                axpy(&mut gradients.table[target], -share * (1.0 - e), &x[row]);
            }
            if e > 0.0 {
                gradients.states.chunks_exact_mut(dim).for_each(|row| axpy(row, -share * uniform, &table_sum));
                gradients.table.chunks_exact_mut(dim).for_each(|row| axpy(row, -share * uniform, &states_sum));
            }
        }
        (loss / rows.max(1) as f64, gradients)
    }
}

impl CustomOp2 for Projected {
    fn name(&self) -> &'static str {
        "projected-cross-entropy"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (loss, gradients) = self.pass(values(x, xl)?, values(w, wl)?, wl.dims()[1], self.learns);
        *self.gradients.lock().unwrap_or_else(PoisonError::into_inner) = gradients;
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let left = self.gradients.lock().unwrap_or_else(PoisonError::into_inner).take();
        let gradients = match left {
            Some(gradients) => Some(gradients),
            // A second backward pass over the same graph.
            None => with_values(x, |xs| with_values(w, |ws| self.pass(xs, ws, ws.len() / w.dims()[0], true).1))??,
        };
        let Some(Gradients { mut states, mut table }) = gradients else {
            candle_core::bail!("cross-entropy: the pass left no gradients")
        };
        let scale = grad.to_scalar::<f32>()?;
        if scale != 1.0 {
            states.iter_mut().chain(&mut table).for_each(|value| *value *= scale);
        }
        Ok((
            Some(Tensor::from_vec(states, x.shape(), x.device())?),
            Some(Tensor::from_vec(table, w.shape(), w.device())?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::cross_entropy;
    use crate::nn::{check, project};
    use candle_core::Var;

    #[test]
    fn gradients_match_central_differences() {
        let (x, w) = (check::var("x", &[5, 6]), check::var("w", &[9, 6]));
        for smoothing in [0.0, 0.1] {
            check::gradients(&[&x, &w], || projected_cross_entropy(&x, &w, vec![0, 8, 3, 3, 1], smoothing).unwrap());
        }
    }

    /// Loss and gradients of a loss three times over, by a function of states and table.
    fn outcome(x: &Var, w: &Var, loss: impl Fn() -> Tensor) -> (f32, [Vec<f32>; 2]) {
        let loss = (loss() * 3.0).unwrap();
        let grads = loss.backward().unwrap();
        let of = |var: &Var| grads.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (loss.to_scalar().unwrap(), [of(x), of(w)])
    }

    #[test]
    fn equals_the_composed_form_over_several_tiles_and_blocks() {
        let (x, w) = (check::var("x", &[2 * ROWS + 3, 16]), check::var("w", &[2 * ITEMS + 5, 16]));
        let targets: Vec<u32> = (0..x.dims()[0] as u32).map(|i| i * 37 % w.dims()[0] as u32).collect();
        for smoothing in [0.0, 0.2] {
            let composed = || cross_entropy(&project(&x, &w).unwrap(), targets.clone(), smoothing).unwrap();
            let fused = || projected_cross_entropy(&x, &w, targets.clone(), smoothing).unwrap();
            let (want, got) = (outcome(&x, &w, composed), outcome(&x, &w, fused));
            assert!((want.0 - got.0).abs() < 1e-5, "{} {}", want.0, got.0);
            for (want, got) in want.1.iter().zip(&got.1) {
                let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
                let gap = want.iter().zip(got).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(gap < 1e-5 * largest, "{gap} of {largest}");
            }
        }
    }

    #[test]
    fn large_logits_stay_finite_and_a_second_backward_pass_is_the_first() {
        let (x, w) = (check::var("x", &[3, 4]), check::var("w", &[600, 4]));
        x.set(&(x.as_tensor() * 1e4).unwrap()).unwrap();
        let loss = projected_cross_entropy(&x, &w, vec![0, 599, 7], 0.1).unwrap();
        assert!(loss.to_scalar::<f32>().unwrap().is_finite());
        let grad = || loss.backward().unwrap().get(&w).unwrap().to_vec2::<f32>().unwrap();
        let first = grad();
        assert!(first.iter().flatten().all(|v| v.is_finite()));
        assert_eq!(first, grad());
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let (x, w) = (check::var("x", &[ROWS + 30, 32]), check::var("w", &[1700, 32]));
        let targets: Vec<u32> = (0..x.dims()[0] as u32).collect();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| outcome(&x, &w, || projected_cross_entropy(&x, &w, targets.clone(), 0.1).unwrap()))
        };
        let one = on(1);
        assert!(one == on(2) && one == on(5));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let (x, w) = (check::var("x", &[2, 4]), check::var("w", &[3, 4]));
        assert!(projected_cross_entropy(&x, &w, vec![0, 3], 0.0).is_err());
        assert!(projected_cross_entropy(&x, &w, vec![0], 0.0).is_err());
        assert!(projected_cross_entropy(&x, &check::var("w", &[3, 5]), vec![0, 1], 0.0).is_err());
    }
}
