//! Root-mean-square norm with a backward pass.
//!
//! Paper: Zhang and Sennrich 2019, Root Mean Square Layer Normalization, eq. 4; T5 uses it with epsilon 1e-6.

use super::math::{axpy, dot, vectorized};
use super::{values, with_values};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::init::Init;
use rayon::prelude::*;

const ROWS: usize = 256;

/// `x / rms(x) * weight` over the last axis.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    epsilon: f32,
}

impl RmsNorm {
    /// Added to the mean square.
    pub(crate) const EPSILON: f32 = 1e-6;

    /// A norm over `dim` values, weights one.
    pub fn new(dim: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get_with_hints(dim, "weight", Init::Const(1.0))?, epsilon: Self::EPSILON })
    }

    /// (dim,).
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// (.., dim) -> (.., dim).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op2(&self.weight, RmsNormOp { epsilon: self.epsilon })
    }
}

struct RmsNormOp {
    epsilon: f32,
}

impl RmsNormOp {
    #[inline(always)]
    fn inverse_rms(&self, row: &[f32]) -> f32 {
        1.0 / (dot(row, row) / row.len() as f32 + self.epsilon).sqrt()
    }
}

impl CustomOp2 for RmsNormOp {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (values(x, xl)?, values(w, wl)?);
        let mut y = vec![0.0; x.len()];
        let block = w.len() * ROWS;
        y.par_chunks_mut(block).zip(x.par_chunks(block)).for_each(|(y, x)| {
            vectorized!({
                for (y, x) in y.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
                    let scale = self.inverse_rms(x);
                    for i in 0..w.len() {
                        y[i] = x[i] * scale * w[i];
                    }
                }
            });
        });
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, dw) = with_values(x, |xs| {
            with_values(w, |ws| {
                with_values(&grad, |gs| {
                    let dim = ws.len();
                    let block = dim * ROWS;
                    let mut dx = vec![0.0; xs.len()];
                    // One partial sum per block of rows, added in block order: independent of the thread count.
                    let partial: Vec<Vec<f32>> = dx
                        .par_chunks_mut(block)
                        .zip(xs.par_chunks(block).zip(gs.par_chunks(block)))
                        .map(|(dx, (x, g))| {
                            let mut dw = vec![0.0; dim];
                            let mut wg = vec![0.0; dim];
                            vectorized!({
                                let rows = x.chunks_exact(dim).zip(g.chunks_exact(dim));
                                for (dx, (x, g)) in dx.chunks_exact_mut(dim).zip(rows) {
                                    let scale = self.inverse_rms(x);
                                    for i in 0..dim {
                                        wg[i] = ws[i] * g[i];
                                        dw[i] += g[i] * x[i] * scale;
                                    }
                                    let along = dot(&wg, x) * scale * scale * scale / dim as f32;
                                    for i in 0..dim {
                                        dx[i] = wg[i] * scale - x[i] * along;
                                    }
                                }
                            });
                            dw
                        })
                        .collect();
                    let mut dw = vec![0.0; dim];
                    partial.iter().for_each(|p| axpy(&mut dw, 1.0, p));
                    (dx, dw)
                })
            })
        })???;
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), Some(Tensor::from_vec(dw, w.shape(), w.device())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn gradients_match_central_differences() {
        let (x, w) = (check::var("x", &[5, 24]), check::var("w", &[24]));
        let norm = RmsNorm { weight: w.as_tensor().clone(), epsilon: 1e-6 };
        check::gradients(&[&x, &w], || norm.forward(&x).unwrap());
    }

    #[test]
    fn equals_the_composed_form() {
        let x = check::var("x", &[3, 20]);
        let norm = RmsNorm { weight: check::var("w", &[20]).as_tensor().clone(), epsilon: 1e-6 };
        let rms = ((x.sqr().unwrap().mean_keepdim(1).unwrap() + 1e-6).unwrap()).sqrt().unwrap();
        let want = x.broadcast_div(&rms).unwrap().broadcast_mul(&norm.weight).unwrap();
        let gap = (norm.forward(&x).unwrap() - want).unwrap().abs().unwrap().max_all().unwrap();
        assert!(gap.to_scalar::<f32>().unwrap() < 1e-6);
    }
}
