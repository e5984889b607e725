//! Multi-head attention with T5's bias, causal and length masks, and dropout, in one pass per sequence and head.
//!
//! Paper: Vaswani et al. 2017, sec. 3.2; without the scaling by the root of the head size where T5 leaves it out.
//! The backward pass computes the probabilities again, so nothing of size (heads, queries, keys) is kept per batch.

use super::feed_forward::Drop;
use super::math::{axpy, dot, exp, max_of, sum_of, vectorized};
use super::matrix::count;
use super::product::{Strided, product};
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

/// Scratch of one sequence, reused for its heads. Rows of scores are `stride` values apart.
struct Scratch {
    stride: usize,
    /// Keys or values of a head, transposed: (`head_dim`, stride).
    turned: Vec<f32>,
    /// (queries, stride), zero where a query may not look.
    probability: Vec<f32>,
    /// The same times what dropout leaves of them.
    kept: Vec<f32>,
    gradient: Vec<f32>,
}

impl Scratch {
    fn new(op: &Attend, sizes: Sizes, backward: bool) -> Self {
        // A multiple of the product's width: the columns behind the keys are zero and cost less than a remainder.
        let stride = sizes.keys.next_multiple_of(16);
        let scores = sizes.queries * stride;
        Self {
            stride,
            turned: vec![0.0; op.head_dim * stride],
            probability: vec![0.0; scores],
            kept: vec![0.0; if op.drop.active() { scores } else { 0 }],
            gradient: vec![0.0; if backward { scores } else { 0 }],
        }
    }
}

/// `turned[d][key] = rows[key][d]` for rows of `head_dim` values, `inner` apart.
#[inline(always)]
fn turn(turned: &mut [f32], stride: usize, rows: &[f32], inner: usize, head_dim: usize, keys: usize) {
    for key in 0..keys {
        for (d, value) in rows[key * inner..][..head_dim].iter().enumerate() {
            turned[d * stride + key] = *value;
        }
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

    /// Softmax of a head's scores into `scratch`, and what dropout leaves of it.
    #[inline(always)]
    fn probabilities(
        &self,
        q: &[f32],
        kv: &[f32],
        bias: &[f32],
        (batch, head): (usize, usize),
        sizes: Sizes,
        scratch: &mut Scratch,
    ) {
        let (inner, hd, stride) = (self.inner(), self.head_dim, scratch.stride);
        turn(&mut scratch.turned, stride, &kv[head * hd..], 2 * inner, hd, sizes.keys);
        let queries = Strided::rows(&q[head * hd..], inner);
        product(queries, &scratch.turned, stride, &mut scratch.probability, stride, sizes.queries, hd, stride);
        for query in 0..sizes.queries {
            let visible = self.visible(batch, query, sizes);
            let row = &mut scratch.probability[query * stride..][..stride];
            let (p, hidden) = row.split_at_mut(visible);
            hidden.fill(0.0);
            if self.scale != 1.0 {
                p.iter_mut().for_each(|value| *value *= self.scale);
            }
            if !bias.is_empty() {
                axpy(p, 1.0, &bias[(head * sizes.queries + query) * sizes.keys..][..visible]);
            }
            let max = max_of(p);
            for value in p.iter_mut() {
                *value = exp(*value - max);
            }
            let inverse = 1.0 / sum_of(p);
            p.iter_mut().for_each(|value| *value *= inverse);
            if self.drop.active() {
                let start = (((batch * self.heads + head) * sizes.queries + query) * sizes.keys) as u64;
                let factors = self.drop.from(start);
                for (key, (kept, p)) in scratch.kept[query * stride..][..stride].iter_mut().zip(&*row).enumerate() {
                    *kept = p * factors.at(key as u32);
                }
            }
        }
    }

    #[inline(always)]
    fn forward_one(&self, batch: usize, q: &[f32], kv: &[f32], bias: &[f32], sizes: Sizes, out: &mut [f32]) {
        let (inner, hd) = (self.inner(), self.head_dim);
        let mut scratch = Scratch::new(self, sizes, false);
        for head in 0..self.heads {
            self.probabilities(q, kv, bias, (batch, head), sizes, &mut scratch);
            let kept = if self.drop.active() { &scratch.kept } else { &scratch.probability };
            let weights = Strided::rows(kept, scratch.stride);
            let (at, values) = (head * hd, &kv[inner + head * hd..]);
            product(weights, values, 2 * inner, &mut out[at..], inner, sizes.queries, sizes.keys, hd);
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
        let Sizes { queries, keys } = sizes;
        let mut scratch = Scratch::new(self, sizes, true);
        let stride = scratch.stride;
        for head in 0..self.heads {
            self.probabilities(q, kv, bias, (batch, head), sizes, &mut scratch);
            let (key_at, value_at) = (head * hd, inner + head * hd);
            let kept = if self.drop.active() { &scratch.kept } else { &scratch.probability };
            let (kept, g) = (Strided::columns(kept, stride), Strided::rows(&grad[key_at..], inner));
            product(kept, &grad[key_at..], inner, &mut dkv[value_at..], 2 * inner, keys, queries, hd);
            turn(&mut scratch.turned, stride, &kv[value_at..], 2 * inner, hd, keys);
            product(g, &scratch.turned, stride, &mut scratch.gradient, stride, queries, hd, stride);
            for query in 0..queries {
                let ds = &mut scratch.gradient[query * stride..][..stride];
                let p = &scratch.probability[query * stride..][..stride];
                if self.drop.active() {
                    let start = (((batch * self.heads + head) * queries + query) * keys) as u64;
                    let factors = self.drop.from(start);
                    for (key, dp) in ds.iter_mut().enumerate() {
                        *dp *= factors.at(key as u32);
                    }
                }
                let along = dot(p, ds);
                for (ds, p) in ds.iter_mut().zip(p) {
                    *ds = p * (*ds - along);
                }
                if !dbias.is_empty() {
                    axpy(&mut dbias[(head * queries + query) * keys..][..keys], 1.0, &ds[..keys]);
                }
                if self.scale != 1.0 {
                    ds.iter_mut().for_each(|ds| *ds *= self.scale);
                }
            }
            let (rows, columns) =
                (Strided::rows(&scratch.gradient, stride), Strided::columns(&scratch.gradient, stride));
            product(rows, &kv[key_at..], 2 * inner, &mut dq[key_at..], inner, queries, keys, hd);
            product(columns, &q[key_at..], inner, &mut dkv[key_at..], 2 * inner, keys, queries, hd);
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
        count(2 * batch, queries, inner, sizes.keys);
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
        // Scores again, and a gradient to each input of both products.
        count(5 * batch, queries, inner, sizes.keys);
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
