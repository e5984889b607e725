//! Mean cross-entropy with label smoothing, fused: the softmax is computed again in the backward pass.

use crate::nn::{exp_shifted_sum, max_of, values, vectorized, with_values};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

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
    logits.contiguous()?.apply_op1(CrossEntropy { targets, smoothing, ruled_out: None })
}

/// The same with `ruled_out`, (rows, classes), added to the logits: 0, or what keeps a class out.
///
/// # Errors
/// When the number of targets or of what is added differs, or a target is no class.
pub fn cross_entropy_among(logits: &Tensor, targets: Vec<u32>, ruled_out: Vec<f32>, smoothing: f32) -> Result<Tensor> {
    let (rows, classes) = logits.dims2()?;
    if targets.len() != rows || targets.iter().any(|t| *t as usize >= classes) || ruled_out.len() != rows * classes {
        candle_core::bail!(
            "cross-entropy: {} targets and {} numbers to add for logits of shape ({rows}, {classes})",
            targets.len(),
            ruled_out.len()
        );
    }
    logits.contiguous()?.apply_op1(CrossEntropy { targets, smoothing, ruled_out: Some(ruled_out) })
}

struct CrossEntropy {
    targets: Vec<u32>,
    smoothing: f32,
    ruled_out: Option<Vec<f32>>,
}

impl CrossEntropy {
    /// The logits of a row as they compete, into `row`.
    #[inline(always)]
    fn compete(&self, at: usize, logits: &[f32], row: &mut [f32]) {
        match &self.ruled_out {
            Some(mask) => {
                let mask = &mask[at * row.len()..][..row.len()];
                for i in 0..row.len() {
                    row[i] = logits[i] + mask[i];
                }
            }
            None => row.copy_from_slice(logits),
        }
    }
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
            .enumerate()
            .with_min_len(16)
            .map_init(
                || vec![0.0; classes],
                |row, (at, (logits, target))| {
                    vectorized!({
                        self.compete(at, logits, row);
                        let max = max_of(row);
                        let log_sum = max + exp_shifted_sum(row, max).ln();
                        let mut loss = log_sum - (1.0 - e) * row[*target as usize];
                        if e > 0.0 {
                            loss -= e * row.iter().sum::<f32>() / classes as f32;
                        }
                        f64::from(loss)
                    })
                },
            )
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
                .enumerate()
                .with_min_len(16)
                .for_each(|(at, (out, (logits, target)))| {
                    vectorized!({
                        self.compete(at, logits, out);
                        let max = max_of(out);
                        let inverse = scale / exp_shifted_sum(out, max);
                        for x in out.iter_mut() {
                            *x = crate::nn::exp(*x - max) * inverse - scale * uniform;
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
        let ruled_out: Vec<f32> = (0..36).map(|i| if i % 5 == 1 { -1e4 } else { 0.0 }).collect();
        check::gradients(&[&logits], || {
            cross_entropy_among(&logits, vec![0, 8, 4, 3], ruled_out.clone(), 0.0).unwrap()
        });
    }

    #[test]
    fn equals_candle_and_refuses_wrong_targets() {
        let logits = check::var("logits", &[3, 40]);
        let targets = Tensor::new(&[1u32, 39, 7], logits.device()).unwrap();
        let want = candle_nn::loss::cross_entropy(&logits, &targets).unwrap().to_scalar::<f32>().unwrap();
        let got = cross_entropy(&logits, vec![1, 39, 7], 0.0).unwrap().to_scalar::<f32>().unwrap();
        assert!((got - want).abs() < 1e-6);
        // What is added counts, as if it had been before.
        let added: Vec<f32> = (0..120).map(|i| if i % 3 == 0 { -1e4 } else { 0.0 }).collect();
        let sum =
            (logits.as_tensor() + Tensor::new(&added[..], logits.device()).unwrap().reshape((3, 40)).unwrap()).unwrap();
        let want = cross_entropy(&sum, vec![1, 38, 7], 0.1).unwrap().to_scalar::<f32>().unwrap();
        let got = cross_entropy_among(&logits, vec![1, 38, 7], added, 0.1).unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(got, want);
        assert!(cross_entropy_among(&logits, vec![1, 38, 7], vec![0.0; 119], 0.0).is_err());
        assert!(cross_entropy(&logits, vec![1, 40, 7], 0.0).is_err());
        assert!(cross_entropy(&logits, vec![1], 0.0).is_err());
    }
}
