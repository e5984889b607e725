//! The position-wise block of T5 (ReLU), and dropout whose mask is drawn again instead of stored.

use super::math::vectorized;
use super::{Linear, values, with_values};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use rayon::prelude::*;
use rqvae::{Mode, mix};

const BLOCK: usize = 1 << 13;

/// `W_o dropout(relu(W_i x))`.
#[derive(Debug, Clone)]
pub struct FeedForward {
    inner: Linear,
    outer: Linear,
    dropout: f32,
}

impl FeedForward {
    /// `dim` -> `hidden` -> `dim`.
    pub fn new(dim: usize, hidden: usize, dropout: f32, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            inner: Linear::new(dim, hidden, (dim as f64).powf(-0.5), &vb.pp("wi"))?,
            outer: Linear::new(hidden, dim, (hidden as f64).powf(-0.5), &vb.pp("wo"))?,
            dropout,
        })
    }

    /// In and out.
    pub(crate) fn projections(&self) -> (&Linear, &Linear) {
        (&self.inner, &self.outer)
    }

    /// (.., dim) -> (.., dim).
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let hidden = self.inner.forward(x)?.apply_op1(Mask { relu: true, drop: Drop::new(self.dropout, mode) })?;
        self.outer.forward(&hidden)
    }
}

/// Zeroes each element with probability `p` in training and scales the others by `1 / (1 - p)`.
pub fn dropout(x: &Tensor, p: f32, mode: Mode) -> Result<Tensor> {
    let drop = Drop::new(p, mode);
    if drop.keep >= 1.0 { Ok(x.clone()) } else { x.contiguous()?.apply_op1(Mask { relu: false, drop }) }
}

/// `residual + dropout(x)` in one pass.
pub fn dropout_add(residual: &Tensor, x: &Tensor, p: f32, mode: Mode) -> Result<Tensor> {
    residual.contiguous()?.apply_op2(&x.contiguous()?, AddDropped { drop: Drop::new(p, mode) })
}

/// Which elements survive, as a function of key and position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drop {
    key: u64,
    keep: f32,
    threshold: u32,
}

impl Drop {
    pub(super) fn new(p: f32, mode: Mode) -> Self {
        match mode {
            Mode::Train(keys) if p > 0.0 => {
                let keep = 1.0 - p;
                Self { key: keys.next_key(), keep, threshold: (f64::from(keep) * 2f64.powi(32)) as u32 }
            }
            _ => Self { key: 0, keep: 1.0, threshold: u32::MAX },
        }
    }

    /// Whether anything is dropped.
    pub(super) fn active(&self) -> bool {
        self.keep < 1.0
    }

    /// 0 or `1 / keep`. One draw of 64 bits serves two neighbours.
    #[inline(always)]
    pub(super) fn factor(&self, index: u64) -> f32 {
        let bits = mix(self.key ^ (index >> 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let half = (bits >> (32 * (index & 1))) as u32;
        if half < self.threshold { 1.0 / self.keep } else { 0.0 }
    }
}

/// Applies `f(position, x) -> y` to every element in blocks.
fn map(x: &[f32], f: impl Fn(u64, f32) -> f32 + Sync) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).enumerate().for_each(|(block, (y, x))| {
        let start = (block * BLOCK) as u64;
        vectorized!({
            for i in 0..y.len() {
                y[i] = f(start + i as u64, x[i]);
            }
        });
    });
    y
}

/// As [`map`] with two inputs.
fn map2(x: &[f32], z: &[f32], f: impl Fn(u64, f32, f32) -> f32 + Sync) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK).zip(z.par_chunks(BLOCK))).enumerate().for_each(
        |(block, (y, (x, z)))| {
            let start = (block * BLOCK) as u64;
            vectorized!({
                for i in 0..y.len() {
                    y[i] = f(start + i as u64, x[i], z[i]);
                }
            });
        },
    );
    y
}

struct Mask {
    relu: bool,
    drop: Drop,
}

impl CustomOp1 for Mask {
    fn name(&self) -> &'static str {
        "relu-dropout"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, drop) = (values(x, layout)?, self.drop);
        let y = match (self.relu, drop.active()) {
            (true, false) => map(x, |_, v| v.max(0.0)),
            (true, true) => map(x, |i, v| v.max(0.0) * drop.factor(i)),
            (false, _) => map(x, |i, v| v * drop.factor(i)),
        };
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let drop = self.drop;
        let dx = with_values(x, |xs| {
            with_values(&grad.contiguous()?, |gs| match (self.relu, drop.active()) {
                (true, false) => map2(xs, gs, |_, x, g| if x > 0.0 { g } else { 0.0 }),
                (true, true) => map2(xs, gs, |i, x, g| if x > 0.0 { g * drop.factor(i) } else { 0.0 }),
                (false, _) => map(gs, |i, g| g * drop.factor(i)),
            })
        })??;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

struct AddDropped {
    drop: Drop,
}

impl CustomOp2 for AddDropped {
    fn name(&self) -> &'static str {
        "dropout-add"
    }

    fn cpu_fwd(&self, r: &CpuStorage, rl: &Layout, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (r, x, drop) = (values(r, rl)?, values(x, xl)?, self.drop);
        let y = if drop.active() { map2(r, x, |i, r, x| r + x * drop.factor(i)) } else { map2(r, x, |_, r, x| r + x) };
        Ok((CpuStorage::F32(y), rl.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let drop = self.drop;
        if !drop.active() {
            return Ok((Some(grad.clone()), Some(grad.clone())));
        }
        let dx = with_values(&grad.contiguous()?, |gs| map(gs, |i, g| g * drop.factor(i)))?;
        Ok((Some(grad.clone()), Some(Tensor::from_vec(dx, x.shape(), x.device())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;
    use rqvae::{SeededRng, StepKeys};

    #[test]
    fn gradients_match_central_differences() {
        let (x, r) = (check::var("x", &[4, 50]), check::var("r", &[4, 50]));
        let rng = SeededRng::new(5);
        let keys = || StepKeys::new(&rng, 0);
        check::gradients(&[&x], || dropout(&x, 0.3, Mode::Train(&keys())).unwrap());
        check::gradients(&[&x, &r], || dropout_add(&r, &x, 0.3, Mode::Train(&keys())).unwrap());
        check::gradients(&[&x], || {
            x.apply_op1(Mask { relu: true, drop: Drop::new(0.2, Mode::Train(&keys())) }).unwrap()
        });
    }

    #[test]
    fn drops_about_the_right_share_and_nothing_in_evaluation() {
        let rng = SeededRng::new(5);
        let keys = StepKeys::new(&rng, 0);
        let x = candle_core::Tensor::ones(100_000, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let kept = dropout(&x, 0.3, Mode::Train(&keys)).unwrap().to_vec1::<f32>().unwrap();
        let share = kept.iter().filter(|v| **v > 0.0).count() as f64 / 1e5;
        assert!((share - 0.7).abs() < 0.01, "{share}");
        assert_eq!(dropout(&x, 0.3, Mode::Eval).unwrap().to_vec1::<f32>().unwrap(), vec![1.0; 100_000]);
    }
}
