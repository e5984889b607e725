//! Multi-head attention with T5's bias, causal and length masks, and dropout, in one pass per sequence and head.
//!
//! Paper: Vaswani et al. 2017, sec. 3.2; without the scaling by the root of the head size where T5 leaves it out.
//! The backward pass computes the probabilities again, so nothing of size (heads, queries, keys) is kept per batch.

use super::feed_forward::Drop;
use super::math::{axpy, dot, exp, max_of, vectorized};
use super::{Linear, values, with_values};
use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use rayon::prelude::*;
use rqvae::Mode;
use std::sync::Arc;

/// Sizes of an attention layer.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// Width of the residual stream.
    pub dim: usize,
    /// Number of heads.
    pub heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Whether scores are divided by the root of the head size.
    pub scaled: bool,
    /// Dropout of the probabilities.
    pub dropout: f32,
}

/// Which keys a query may look at.
#[derive(Debug, Clone)]
pub enum Keys {
    /// Query `t` of the last `queries` positions sees the keys up to its own position.
    Causal,
    /// The first `n` keys of each sequence; the rest is padding.
    First(Arc<Vec<u32>>),
    /// All of them.
    All,
}

/// Projections of queries, of keys and values together, and of the output.
#[derive(Debug, Clone)]
pub struct Attention {
    query: Linear,
    key_value: Linear,
    output: Linear,
    shape: AttentionShape,
}

impl Attention {
    /// A layer of the given sizes.
    pub fn new(shape: AttentionShape, vb: &VarBuilder) -> Result<Self> {
        let inner = shape.heads * shape.head_dim;
        let fan_in = (shape.dim as f64).powf(-0.5);
        // T5 starts unscaled scores near unit variance by shrinking the query projection.
        let query = if shape.scaled { fan_in } else { fan_in * (shape.head_dim as f64).powf(-0.5) };
        Ok(Self {
            query: Linear::new(shape.dim, inner, query, &vb.pp("q"))?,
            key_value: Linear::new(shape.dim, 2 * inner, fan_in, &vb.pp("kv"))?,
            output: Linear::new(inner, shape.dim, (inner as f64).powf(-0.5), &vb.pp("o"))?,
            shape,
        })
    }

    pub(crate) fn shape(&self) -> AttentionShape {
        self.shape
    }

    /// Of queries, keys and values, and the output.
    pub(crate) fn projections(&self) -> (&Linear, &Linear, &Linear) {
        (&self.query, &self.key_value, &self.output)
    }

    /// Keys and values of `x`: (batch, keys, dim) -> (batch, keys, 2 * heads * `head_dim`), keys first.
    pub fn keys_values(&self, x: &Tensor) -> Result<Tensor> {
        self.key_value.forward(x)
    }

    /// (batch, queries, dim) against [`Attention::keys_values`] -> (batch, queries, dim).
    ///
    /// `bias` is (heads, queries, keys).
    pub fn forward(&self, x: &Tensor, kv: &Tensor, bias: Option<&Tensor>, keys: &Keys, mode: Mode) -> Result<Tensor> {
        let none = Tensor::zeros(0, x.dtype(), x.device())?;
        let op = Attend {
            heads: self.shape.heads,
            head_dim: self.shape.head_dim,
            scale: if self.shape.scaled { (self.shape.head_dim as f32).powf(-0.5) } else { 1.0 },
            keys: keys.clone(),
            drop: Drop::new(self.shape.dropout, mode),
        };
        let query = self.query.forward(x)?;
        let mixed = query.contiguous()?.apply_op3(&kv.contiguous()?, bias.unwrap_or(&none), op)?;
        self.output.forward(&mixed)
    }
}

struct Attend {
    heads: usize,
    head_dim: usize,
    scale: f32,
    keys: Keys,
    drop: Drop,
}

/// Sizes of one call.
#[derive(Clone, Copy)]
struct Sizes {
    queries: usize,
    keys: usize,
}

/// Scratch rows of one query.
struct Row {
    probability: Vec<f32>,
    factor: Vec<f32>,
    gradient: Vec<f32>,
}

impl Row {
    fn new(keys: usize) -> Self {
        Self { probability: vec![0.0; keys], factor: vec![0.0; keys], gradient: vec![0.0; keys] }
    }
}

impl Attend {
    fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    #[inline(always)]
    fn visible(&self, batch: usize, query: usize, sizes: Sizes) -> usize {
        match &self.keys {
            Keys::Causal => sizes.keys - sizes.queries + query + 1,
            Keys::First(lengths) => lengths[batch] as usize,
            Keys::All => sizes.keys,
        }
    }

    /// Softmax row of one query into `row.probability`, dropout factors into `row.factor`; returns the row's length.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the inner loop of forward and backward, written once")]
    fn probabilities(
        &self,
        q: &[f32],
        kv: &[f32],
        bias: &[f32],
        at: (usize, usize, usize),
        sizes: Sizes,
        row: &mut Row,
    ) -> usize {
        let (batch, head, query) = at;
        let (inner, hd) = (self.inner(), self.head_dim);
        let visible = self.visible(batch, query, sizes);
        let q = &q[query * inner + head * hd..][..hd];
        let p = &mut row.probability[..visible];
        for (key, p) in p.iter_mut().enumerate() {
            *p = dot(q, &kv[key * 2 * inner + head * hd..][..hd]) * self.scale;
        }
        if !bias.is_empty() {
            axpy(p, 1.0, &bias[(head * sizes.queries + query) * sizes.keys..][..visible]);
        }
        let max = max_of(p);
        let mut sum = 0.0;
        for value in p.iter_mut() {
            *value = exp(*value - max);
        }
        for value in p.iter() {
            sum += *value;
        }
        let inverse = 1.0 / sum;
        for value in p.iter_mut() {
            *value *= inverse;
        }
        if self.drop.active() {
            let start = (((batch * self.heads + head) * sizes.queries + query) * sizes.keys) as u64;
            for (key, factor) in row.factor[..visible].iter_mut().enumerate() {
                *factor = self.drop.factor(start + key as u64);
            }
        }
        visible
    }

    #[inline(always)]
    fn forward_one(&self, batch: usize, q: &[f32], kv: &[f32], bias: &[f32], sizes: Sizes, out: &mut [f32]) {
        let (inner, hd) = (self.inner(), self.head_dim);
        let mut row = Row::new(sizes.keys);
        for head in 0..self.heads {
            for query in 0..sizes.queries {
                let visible = self.probabilities(q, kv, bias, (batch, head, query), sizes, &mut row);
                let out = &mut out[query * inner + head * hd..][..hd];
                for key in 0..visible {
                    let mut p = row.probability[key];
                    if self.drop.active() {
                        p *= row.factor[key];
                    }
                    axpy(out, p, &kv[key * 2 * inner + inner + head * hd..][..hd]);
                }
            }
        }
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "inputs and gradients of one sequence")]
    fn backward_one(
        &self,
        batch: usize,
        q: &[f32],
        kv: &[f32],
        bias: &[f32],
        grad: &[f32],
        sizes: Sizes,
        dq: &mut [f32],
        dkv: &mut [f32],
        dbias: &mut [f32],
    ) {
        let (inner, hd) = (self.inner(), self.head_dim);
        let mut row = Row::new(sizes.keys);
        for head in 0..self.heads {
            for query in 0..sizes.queries {
                let visible = self.probabilities(q, kv, bias, (batch, head, query), sizes, &mut row);
                let at = query * inner + head * hd;
                let (g, q_row) = (&grad[at..][..hd], &q[at..][..hd]);
                let mut along = 0.0;
                for key in 0..visible {
                    let value_at = key * 2 * inner + inner + head * hd;
                    let mut dp = dot(g, &kv[value_at..][..hd]);
                    let mut p = row.probability[key];
                    if self.drop.active() {
                        dp *= row.factor[key];
                        p *= row.factor[key];
                    }
                    axpy(&mut dkv[value_at..][..hd], p, g);
                    row.gradient[key] = dp;
                    along += row.probability[key] * dp;
                }
                for key in 0..visible {
                    row.gradient[key] = row.probability[key] * (row.gradient[key] - along);
                }
                if !dbias.is_empty() {
                    let at = (head * sizes.queries + query) * sizes.keys;
                    axpy(&mut dbias[at..][..visible], 1.0, &row.gradient[..visible]);
                }
                for key in 0..visible {
                    let ds = row.gradient[key] * self.scale;
                    let key_at = key * 2 * inner + head * hd;
                    axpy(&mut dq[at..][..hd], ds, &kv[key_at..][..hd]);
                    axpy(&mut dkv[key_at..][..hd], ds, q_row);
                }
            }
        }
    }
}

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        kv: &CpuStorage,
        kvl: &Layout,
        bias: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, queries, inner) = ql.shape().dims3()?;
        let sizes = Sizes { queries, keys: kvl.dims()[1] };
        if inner != self.inner() || kvl.dims() != [batch, sizes.keys, 2 * inner] {
            candle_core::bail!("attention: queries {:?} do not fit keys {:?}", ql.dims(), kvl.dims());
        }
        let (q, kv, bias) = (values(q, ql)?, values(kv, kvl)?, values(bias, bl)?);
        let mut out = vec![0.0; q.len()];
        let one_q = queries * inner;
        let one_kv = sizes.keys * 2 * inner;
        out.par_chunks_mut(one_q).enumerate().with_min_len(4).for_each(|(b, out)| {
            vectorized!({
                self.forward_one(b, &q[b * one_q..][..one_q], &kv[b * one_kv..][..one_kv], bias, sizes, out);
            });
        });
        Ok((CpuStorage::F32(out), ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        kv: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (batch, queries, inner) = q.dims3()?;
        let sizes = Sizes { queries, keys: kv.dim(1)? };
        let (one_q, one_kv) = (queries * inner, sizes.keys * 2 * inner);
        // The bias gradient is summed per group of sequences and then over groups, whatever the thread count.
        let group = batch.div_ceil(16).max(1);
        let mut dq = vec![0.0; q.elem_count()];
        let mut dkv = vec![0.0; kv.elem_count()];
        let grad = grad.contiguous()?;
        let dbias = with_values(q, |qs| {
            with_values(kv, |kvs| {
                with_values(bias, |bias| {
                    with_values(&grad, |gs| {
                        let partial: Vec<Vec<f32>> = dq
                            .par_chunks_mut(one_q * group)
                            .zip(dkv.par_chunks_mut(one_kv * group))
                            .enumerate()
                            .map(|(g, (dq, dkv))| {
                                let mut dbias = vec![0.0; bias.len()];
                                for (i, (dq, dkv)) in dq.chunks_mut(one_q).zip(dkv.chunks_mut(one_kv)).enumerate() {
                                    let b = g * group + i;
                                    let (q, kv) = (&qs[b * one_q..][..one_q], &kvs[b * one_kv..][..one_kv]);
                                    let grad = &gs[b * one_q..][..one_q];
                                    vectorized!({
                                        self.backward_one(b, q, kv, bias, grad, sizes, dq, dkv, &mut dbias);
                                    });
                                }
                                dbias
                            })
                            .collect();
                        let mut dbias = vec![0.0; bias.len()];
                        partial.iter().for_each(|p| axpy(&mut dbias, 1.0, p));
                        dbias
                    })
                })
            })
        })????;
        let dbias = if dbias.is_empty() { None } else { Some(Tensor::from_vec(dbias, bias.shape(), &Device::Cpu)?) };
        Ok((
            Some(Tensor::from_vec(dq, q.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(dkv, kv.shape(), &Device::Cpu)?),
            dbias,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;
    use rqvae::{SeededRng, StepKeys};

    fn op(keys: Keys, drop: Drop) -> Attend {
        Attend { heads: 2, head_dim: 6, scale: 0.7, keys, drop }
    }

    #[test]
    fn gradients_match_central_differences() {
        let (q, kv, bias) =
            (check::var("q", &[2, 3, 12]), check::var("kv", &[2, 5, 24]), check::var("bias", &[2, 3, 5]));
        let rng = SeededRng::new(5);
        for keys in [Keys::Causal, Keys::First(Arc::new(vec![2, 5])), Keys::All] {
            check::gradients(&[&q, &kv, &bias], || {
                let step = StepKeys::new(&rng, 0);
                let drop = Drop::new(0.3, Mode::Train(&step));
                q.apply_op3(&kv, &bias, op(keys.clone(), drop)).unwrap()
            });
        }
    }

    #[test]
    fn equals_the_composed_form() {
        let (q, kv) = (check::var("q", &[2, 4, 12]), check::var("kv", &[2, 4, 24]));
        let none = Tensor::zeros(0, candle_core::DType::F32, &Device::Cpu).unwrap();
        let got = q.apply_op3(&kv, &none, op(Keys::All, Drop::new(0.0, Mode::Eval))).unwrap();
        let heads = |x: Tensor| x.reshape((2, 4, 2, 6)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
        let (k, v) = (kv.narrow(2, 0, 12).unwrap(), kv.narrow(2, 12, 12).unwrap());
        let scores = heads(q.as_tensor().clone()).matmul(&heads(k).t().unwrap()).unwrap();
        let p = candle_nn::ops::softmax(&(scores * 0.7).unwrap(), 3).unwrap();
        let want = p.matmul(&heads(v)).unwrap().transpose(1, 2).unwrap().reshape((2, 4, 12)).unwrap();
        let gap = (got - want).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(gap < 1e-6, "{gap}");
    }
}
