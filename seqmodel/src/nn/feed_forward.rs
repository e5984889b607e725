//! The position-wise block of T5 (ReLU) as one operation, and dropout whose mask is drawn again instead of stored.

use super::math::vectorized;
use super::matrix::Matrix;
use super::{Linear, values, with_values};
use beam::cuda::train::DropArgs;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use rayon::prelude::*;
use rqvae::{Mode, mix};
use std::sync::{Mutex, PoisonError};

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
        let (inner, outer) = (self.inner.weight(), self.outer.weight());
        let (hidden, dim) = inner.dims2()?;
        if outer.dims() != [dim, hidden] || x.dims().last() != Some(&dim) {
            candle_core::bail!("feed-forward: {:?} through {:?} and {:?}", x.dims(), inner.dims(), outer.dims());
        }
        let op = Activated { drop: Drop::new(self.dropout, mode), hidden: Mutex::default() };
        x.contiguous()?.apply_op3(&inner.contiguous()?, &outer.contiguous()?, op)
    }
}

/// Zeroes each element with probability `p` in training and scales the others by `1 / (1 - p)`.
pub fn dropout(x: &Tensor, p: f32, mode: Mode) -> Result<Tensor> {
    let drop = Drop::new(p, mode);
    if drop.keep >= 1.0 { Ok(x.clone()) } else { x.contiguous()?.apply_op1(Mask { drop }) }
}

/// `residual + dropout(x)` in one pass.
pub fn dropout_add(residual: &Tensor, x: &Tensor, p: f32, mode: Mode) -> Result<Tensor> {
    residual.contiguous()?.apply_op2(&x.contiguous()?, AddDropped { drop: Drop::new(p, mode) })
}

/// Which elements survive, as a function of key and position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drop {
    key: u64,
    keep: f32,
    threshold: u32,
}

impl Drop {
    pub(crate) fn new(p: f32, mode: Mode) -> Self {
        match mode {
            Mode::Train(keys) if p > 0.0 => {
                let keep = 1.0 - p;
                Self { key: keys.next_key(), keep, threshold: (f64::from(keep) * 2f64.powi(32)) as u32 }
            }
            _ => Self { key: 0, keep: 1.0, threshold: u32::MAX },
        }
    }

    /// The same on a device.
    pub(crate) fn on_device(&self) -> DropArgs {
        if self.active() {
            DropArgs { key: self.key, threshold: self.threshold, kept: 1.0 / self.keep }
        } else {
            DropArgs::NONE
        }
    }

    /// Whether anything is dropped.
    pub(crate) fn active(&self) -> bool {
        self.keep < 1.0
    }

    /// The factors of positions from `start` on.
    #[inline(always)]
    pub(super) fn from(&self, start: u64) -> Factors {
        let key = mix(self.key ^ start.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Factors {
            low: key as u32,
            high: (key >> 32) as u32,
            threshold: (self.threshold >> 1) as i32,
            kept: 1.0 / self.keep,
        }
    }
}

/// Draws of 32 bits by position, from arithmetic that vector units have.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    low: u32,
    high: u32,
    threshold: i32,
    kept: f32,
}

impl Factors {
    /// 0 or `1 / keep`.
    #[inline(always)]
    pub(super) fn at(&self, index: u32) -> f32 {
        // MurmurHash3's finaliser with the key added before each of its steps.
        let mut z = index.wrapping_mul(0x9e37_79b1).wrapping_add(self.low);
        z = (z ^ (z >> 16)).wrapping_mul(0x85eb_ca6b).wrapping_add(self.high);
        z = (z ^ (z >> 13)).wrapping_mul(0xc2b2_ae35);
        z ^= z >> 16;
        if ((z >> 1) as i32) < self.threshold { self.kept } else { 0.0 }
    }
}

/// Applies `f(x, factor) -> y` to every element in blocks.
fn map(x: &[f32], drop: Drop, f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    map2(x, x, drop, |x, _, factor| f(x, factor))
}

/// As [`map`] with two inputs.
#[allow(unsafe_code, reason = "a vector whose values have all just been written")]
fn map2(x: &[f32], z: &[f32], drop: Drop, f: impl Fn(f32, f32, f32) -> f32 + Sync) -> Vec<f32> {
    assert_eq!(x.len(), z.len(), "both inputs have a value for each position");
    let count = x.len();
    let mut y = Vec::with_capacity(count);
    let out = y.spare_capacity_mut()[..count].par_chunks_mut(BLOCK);
    out.zip(x.par_chunks(BLOCK).zip(z.par_chunks(BLOCK))).enumerate().for_each(|(block, (y, (x, z)))| {
        let factors = drop.from((block * BLOCK) as u64);
        vectorized!({
            for (i, (y, (x, z))) in y.iter_mut().zip(x.iter().zip(z)).enumerate() {
                y.write(f(*x, *z, factors.at(i as u32)));
            }
        });
    });
    // SAFETY: the capacity is at least `count`; the blocks of all three are of the same lengths, so each value was
    // written.
    unsafe { y.set_len(count) };
    y
}

/// `W_o dropout(relu(W_i x))`: (.., dim), (hidden, dim), (dim, hidden) -> (.., dim).
struct Activated {
    drop: Drop,
    /// Of the forward pass: rows of what the outer product reads, zero where a unit is off or dropped.
    hidden: Mutex<Option<Vec<f32>>>,
}

impl Activated {
    fn hidden(&self, x: Matrix, inner: Matrix) -> Vec<f32> {
        let mut hidden = x.times(inner.t());
        let drop = self.drop;
        hidden.par_chunks_mut(BLOCK).enumerate().for_each(|(block, hidden)| {
            let factors = drop.from((block * BLOCK) as u64);
            vectorized!({
                if drop.active() {
                    for (i, value) in hidden.iter_mut().enumerate() {
                        *value = value.max(0.0) * factors.at(i as u32);
                    }
                } else {
                    hidden.iter_mut().for_each(|value| *value = value.max(0.0));
                }
            });
        });
        hidden
    }
}

impl CustomOp3 for Activated {
    fn name(&self) -> &'static str {
        "feed-forward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        inner: &CpuStorage,
        il: &Layout,
        outer: &CpuStorage,
        ol: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (units, dim) = il.shape().dims2()?;
        let x = values(x, xl)?;
        let rows = x.len() / dim;
        let hidden = self.hidden(Matrix::new(x, rows, dim), Matrix::new(values(inner, il)?, units, dim));
        let out = Matrix::new(&hidden, rows, units).times(Matrix::new(values(outer, ol)?, dim, units).t());
        *self.hidden.lock().unwrap_or_else(PoisonError::into_inner) = Some(hidden);
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        inner: &Tensor,
        outer: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (units, dim) = inner.dims2()?;
        let rows = x.elem_count() / dim;
        let left = self.hidden.lock().unwrap_or_else(PoisonError::into_inner).take();
        let kept = 1.0 / self.drop.keep;
        let (dx, d_inner, d_outer) = with_values(x, |xs| {
            with_values(inner, |inner| {
                with_values(outer, |outer| {
                    with_values(&grad.contiguous()?, |g| {
                        let (xs, g) = (Matrix::new(xs, rows, dim), Matrix::new(g, rows, dim));
                        let inner = Matrix::new(inner, units, dim);
                        // Gone after a first backward pass over the same graph.
                        let hidden = left.unwrap_or_else(|| self.hidden(xs, inner));
                        let d_outer = g.t().times(Matrix::new(&hidden, rows, units));
                        let mut d_hidden = g.times(Matrix::new(outer, dim, units));
                        d_hidden.par_chunks_mut(BLOCK).zip(hidden.par_chunks(BLOCK)).for_each(|(d, hidden)| {
                            vectorized!({
                                for i in 0..d.len() {
                                    d[i] = if hidden[i] > 0.0 { d[i] * kept } else { 0.0 };
                                }
                            });
                        });
                        drop(hidden);
                        let d_hidden = Matrix::new(&d_hidden, rows, units);
                        Ok::<_, candle_core::Error>((d_hidden.times(inner), d_hidden.t().times(xs), d_outer))
                    })?
                })?
            })?
        })??;
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            Some(Tensor::from_vec(d_inner, inner.shape(), x.device())?),
            Some(Tensor::from_vec(d_outer, outer.shape(), x.device())?),
        ))
    }
}

struct Mask {
    drop: Drop,
}

impl CustomOp1 for Mask {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(map(values(x, layout)?, self.drop, |v, factor| v * factor)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_values(&grad.contiguous()?, |gs| map(gs, self.drop, |g, factor| g * factor))?;
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
        let y = if drop.active() {
            map2(r, x, drop, |r, x, factor| r + x * factor)
        } else {
            map2(r, x, drop, |r, x, _| r + x)
        };
        Ok((CpuStorage::F32(y), rl.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let drop = self.drop;
        if !drop.active() {
            return Ok((Some(grad.clone()), Some(grad.clone())));
        }
        let dx = with_values(&grad.contiguous()?, |gs| map(gs, drop, |g, factor| g * factor))?;
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
    }

    fn layer(wi: &candle_core::Var, wo: &candle_core::Var) -> FeedForward {
        let linear = |w: &candle_core::Var| Linear::from_weight(w.as_tensor().clone());
        FeedForward { inner: linear(wi), outer: linear(wo), dropout: 0.2 }
    }

    #[test]
    fn gradients_of_the_whole_layer_match_and_a_second_pass_is_the_first() {
        let (x, wi, wo) = (check::var("x", &[2, 3, 7]), check::var("wi", &[9, 7]), check::var("wo", &[7, 9]));
        let rng = SeededRng::new(5);
        let forward = || layer(&wi, &wo).forward(&x, Mode::Train(&StepKeys::new(&rng, 0))).unwrap();
        check::gradients(&[&x, &wi, &wo], forward);
        let loss = forward().sum_all().unwrap();
        let grad = || loss.backward().unwrap().get(&wi).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(grad(), grad());
    }

    #[test]
    fn the_layer_equals_the_composed_form() {
        let (x, wi, wo) = (check::var("x", &[5, 7]), check::var("wi", &[90, 7]), check::var("wo", &[7, 90]));
        let want = x.matmul(&wi.t().unwrap()).unwrap().relu().unwrap().matmul(&wo.t().unwrap()).unwrap();
        let gap = (layer(&wi, &wo).forward(&x, Mode::Eval).unwrap() - want).unwrap().abs().unwrap();
        assert!(gap.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
    }

    #[test]
    fn drops_about_the_right_share_and_nothing_in_evaluation() {
        let rng = SeededRng::new(5);
        let keys = StepKeys::new(&rng, 0);
        let x = candle_core::Tensor::ones(100_000, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let kept = dropout(&x, 0.3, Mode::Train(&keys)).unwrap().to_vec1::<f32>().unwrap();
        let share = |kept: &dyn Fn(usize) -> bool| (0..100_000).filter(|i| kept(*i)).count() as f64 / 1e5;
        let alone = share(&|i| kept[i] > 0.0);
        assert!((alone - 0.7).abs() < 0.01, "{alone}");
        for apart in [1, 2, 16, 64, BLOCK] {
            let both = share(&|i| kept[i] > 0.0 && kept[(i + apart) % 100_000] > 0.0);
            assert!((both - 0.49).abs() < 0.01, "neighbours at {apart}: {both}");
        }
        assert_eq!(dropout(&x, 0.3, Mode::Eval).unwrap().to_vec1::<f32>().unwrap(), vec![1.0; 100_000]);
    }
}
