//! Mean cross-entropy with label smoothing, fused: the softmax is computed again in the backward pass.

use crate::nn::{exp_shifted_sum, max_of, values, vectorized, with_values};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// Mean over rows of `-log softmax(logits)[target]`: (rows, classes) and `rows` targets -> scalar.
///
/// With `smoothing` e the target distribution is `1 - e` on the target plus `e / classes` everywhere.
///
/// # Errors
/// When the number of targets differs from the rows, or a target is no class.
pub fn cross_entropy(logits: &Tensor, targets: Vec<u32>, smoothing: f32) -> Result<Tensor> {
    let (rows, classes) = logits.dims2()?;
    if targets.len() != rows || targets.iter().any(|t| *t as usize >= classes) {
        candle_core::bail!("cross-entropy: {} targets for logits of shape ({rows}, {classes})", targets.len());
    }
    logits.contiguous()?.apply_op1(CrossEntropy { targets: Arc::new(targets), smoothing })
}

struct CrossEntropy {
    targets: Arc<Vec<u32>>,
    smoothing: f32,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let classes = layout.dims()[1];
        let e = self.smoothing;
        let rows: Vec<f64> = values(logits, layout)?
            .par_chunks(classes)
            .zip(&self.targets[..])
            .with_min_len(16)
            .map(|(row, target)| {
                vectorized!({
                    let max = max_of(row);
                    let log_sum = max + exp_shifted_sum(row, max).ln();
                    let mut loss = log_sum - (1.0 - e) * row[*target as usize];
                    if e > 0.0 {
                        loss -= e * row.iter().sum::<f32>() / classes as f32;
                    }
                    f64::from(loss)
                })
            })
            .collect();
        let mean = rows.iter().sum::<f64>() / rows.len().max(1) as f64;
        Ok((CpuStorage::F32(vec![mean as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, classes) = logits.dims2()?;
        let scale = grad.to_scalar::<f32>()? / rows as f32;
        let (e, uniform) = (self.smoothing, self.smoothing / classes as f32);
        let mut out = vec![0.0; rows * classes];
        with_values(logits, |logits| {
            out.par_chunks_mut(classes)
                .zip(logits.par_chunks(classes).zip(&self.targets[..]))
                .with_min_len(16)
                .for_each(|(out, (row, target))| {
                    vectorized!({
                        let max = max_of(row);
                        let inverse = scale / exp_shifted_sum(row, max);
                        for (out, x) in out.iter_mut().zip(row) {
                            *out = crate::nn::exp(x - max) * inverse - scale * uniform;
                        }
                        out[*target as usize] -= scale * (1.0 - e);
                    });
                });
        })?;
        Ok(Some(Tensor::from_vec(out, (rows, classes), logits.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::check;

    #[test]
    fn gradients_match_central_differences() {
        let logits = check::var("logits", &[4, 9]);
        for smoothing in [0.0, 0.1] {
            check::gradients(&[&logits], || cross_entropy(&logits, vec![0, 8, 3, 3], smoothing).unwrap());
        }
    }

    #[test]
    fn equals_candle_and_refuses_wrong_targets() {
        let logits = check::var("logits", &[3, 40]);
        let targets = Tensor::new(&[1u32, 39, 7], logits.device()).unwrap();
        let want = candle_nn::loss::cross_entropy(&logits, &targets).unwrap().to_scalar::<f32>().unwrap();
        let got = cross_entropy(&logits, vec![1, 39, 7], 0.0).unwrap().to_scalar::<f32>().unwrap();
        assert!((got - want).abs() < 1e-6);
        assert!(cross_entropy(&logits, vec![1, 40, 7], 0.0).is_err());
        assert!(cross_entropy(&logits, vec![1], 0.0).is_err());
    }
}
