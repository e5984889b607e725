//! AdamW over named parameters: one pass per tensor, in place, with clipping and moments that can be saved.
//!
//! Paper: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, alg. 2, as PyTorch computes it.

use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

/// Numbers of AdamW apart from the learning rate, which the schedule brings.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 turns clipping off.
    pub clip_norm: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, clip_norm: 1.0 }
    }
}

struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

/// The optimiser: parameters in name order, their moments, and the number of steps taken.
pub struct AdamW {
    config: AdamWConfig,
    params: Vec<(String, Var)>,
    moments: Vec<Mutex<Moments>>,
    step: u64,
}

impl AdamW {
    /// Over `params`, sorted by name so that sums run in a fixed order.
    pub fn new(params: BTreeMap<String, Var>, config: AdamWConfig) -> Self {
        let params: Vec<_> = params.into_iter().collect();
        let zeros = |var: &Var| vec![0.0; var.elem_count()];
        let moments = params.iter().map(|(_, v)| Mutex::new(Moments { first: zeros(v), second: zeros(v) })).collect();
        Self { config, params, moments, step: 0 }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The parameters in name order.
    pub fn params(&self) -> &[(String, Var)] {
        &self.params
    }

    /// One update with learning rate `lr`; returns the gradient's global norm before clipping.
    ///
    /// Parameters without a gradient stay as they are.
    ///
    /// # Errors
    /// [`Error::NonFinite`] before anything is changed when a gradient holds NaN or infinity.
    pub fn step(&mut self, grads: &GradStore, lr: f64) -> Result<f64> {
        let mut squares = 0.0;
        for (name, var) in &self.params {
            if let Some(grad) = grads.get(var) {
                let sum = sum_of_squares(&grad.contiguous()?)?;
                if !sum.is_finite() {
                    return Err(Error::NonFinite { what: format!("gradient of {name}"), step: self.step });
                }
                squares += sum;
            }
        }
        let norm = squares.sqrt();
        let clip = self.config.clip_norm;
        let scale = if clip > 0.0 && norm > clip { clip / (norm + 1e-6) } else { 1.0 };
        self.step += 1;
        let t = i32::try_from(self.step.min(i32::MAX as u64)).unwrap_or(i32::MAX);
        for ((_, var), moments) in self.params.iter().zip(&self.moments) {
            if let Some(grad) = grads.get(var) {
                let update = Update {
                    config: self.config,
                    lr,
                    scale: scale as f32,
                    correction1: 1.0 - self.config.beta1.powi(t),
                    correction2: 1.0 - self.config.beta2.powi(t),
                    moments,
                };
                var.inplace_op2(&grad.contiguous()?, &update)?;
            }
        }
        Ok(norm)
    }

    /// Moments by parameter name, for a checkpoint.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        for ((name, var), moments) in self.params.iter().zip(&self.moments) {
            let moments = moments.lock().map_err(|_| Error::Poisoned)?;
            for (prefix, data) in [("first", &moments.first), ("second", &moments.second)] {
                let tensor = Tensor::from_slice(data, var.shape(), &candle_core::Device::Cpu)?;
                state.insert(format!("{prefix}.{name}"), tensor);
            }
        }
        Ok(state)
    }

    /// Takes moments of [`AdamW::state`] back.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] or [`Error::ShapeMismatch`] when they belong to another model.
    pub fn restore(&mut self, state: &HashMap<String, Tensor>, step: u64) -> Result<()> {
        for ((name, var), moments) in self.params.iter().zip(&self.moments) {
            let read = |prefix: &str| -> Result<Vec<f32>> {
                let key = format!("{prefix}.{name}");
                let tensor = state.get(&key).ok_or_else(|| Error::MissingTensor { name: key.clone() })?;
                if tensor.shape() != var.shape() {
                    return Err(Error::ShapeMismatch {
                        what: key,
                        expected: format!("{:?}", var.dims()),
                        got: format!("{:?}", tensor.dims()),
                    });
                }
                Ok(tensor.flatten_all()?.to_vec1()?)
            };
            let restored = Moments { first: read("first")?, second: read("second")? };
            *moments.lock().map_err(|_| Error::Poisoned)? = restored;
        }
        self.step = step;
        Ok(())
    }
}

fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    let (storage, layout) = tensor.storage_and_layout();
    let candle_core::Storage::Cpu(CpuStorage::F32(data)) = &*storage else {
        return Ok(f64::from(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?));
    };
    let data = &data[layout.start_offset()..layout.start_offset() + tensor.elem_count()];
    // Blocks of a fixed size, added in order: the same bits for any number of threads.
    let parts: Vec<f64> =
        data.par_chunks(1 << 14).map(|c| c.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()).collect();
    Ok(parts.iter().sum())
}

struct Update<'a> {
    config: AdamWConfig,
    lr: f64,
    scale: f32,
    correction1: f64,
    correction2: f64,
    moments: &'a Mutex<Moments>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, w: &mut CpuStorage, wl: &Layout, g: &CpuStorage, gl: &Layout) -> candle_core::Result<()> {
        let n = wl.shape().elem_count();
        let CpuStorage::F32(w) = w else { candle_core::bail!("adamw updates f32 parameters only") };
        let w = &mut w[wl.start_offset()..wl.start_offset() + n];
        let g = &g.as_slice::<f32>()?[gl.start_offset()..gl.start_offset() + n];
        let mut moments = self.moments.lock().map_err(|_| candle_core::Error::Msg("moments poisoned".into()))?;
        let Moments { first, second } = &mut *moments;
        let (beta1, beta2) = (self.config.beta1 as f32, self.config.beta2 as f32);
        let decay = (1.0 - self.lr * self.config.weight_decay) as f32;
        let rate = (self.lr / self.correction1) as f32;
        let root = (1.0 / self.correction2.sqrt()) as f32;
        let (epsilon, scale) = (self.config.epsilon as f32, self.scale);
        const BLOCK: usize = 1 << 14;
        w.par_chunks_mut(BLOCK)
            .zip(g.par_chunks(BLOCK))
            .zip(first.par_chunks_mut(BLOCK).zip(second.par_chunks_mut(BLOCK)))
            .for_each(|((w, g), (m, v))| {
                for i in 0..w.len() {
                    let g = g[i] * scale;
                    m[i] = beta1 * m[i] + (1.0 - beta1) * g;
                    v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
                    w[i] = w[i] * decay - rate * m[i] / (v[i].sqrt() * root + epsilon);
                }
            });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn var(values: &[f32]) -> Var {
        Var::from_slice(values, values.len(), &Device::Cpu).unwrap()
    }

    #[test]
    fn first_step_moves_by_the_learning_rate() {
        // With zero moments the first step is lr * sign(g), plus the decay.
        let w = var(&[1.0, -2.0]);
        let config = AdamWConfig { weight_decay: 0.1, clip_norm: 0.0, ..AdamWConfig::default() };
        let mut optim = AdamW::new(BTreeMap::from([("w".to_string(), w.clone())]), config);
        let loss = (w.as_tensor() * Tensor::new(&[3f32, -0.5], &Device::Cpu).unwrap()).unwrap().sum_all().unwrap();
        let norm = optim.step(&loss.backward().unwrap(), 0.01).unwrap();
        assert!((norm - (9.25f64).sqrt()).abs() < 1e-6);
        let got = w.to_vec1::<f32>().unwrap();
        assert!((got[0] - (1.0 * 0.999 - 0.01)).abs() < 1e-6 && (got[1] - (-2.0 * 0.999 + 0.01)).abs() < 1e-6);
    }

    #[test]
    fn clipping_bounds_the_gradient_and_nan_changes_nothing() {
        let w = var(&[1.0]);
        let mut optim = AdamW::new(BTreeMap::from([("w".to_string(), w.clone())]), AdamWConfig::default());
        let loss = w.as_tensor().affine(f64::NAN, 0.0).unwrap().sum_all().unwrap();
        assert!(matches!(optim.step(&loss.backward().unwrap(), 0.1), Err(Error::NonFinite { .. })));
        assert_eq!((w.to_vec1::<f32>().unwrap(), optim.steps()), (vec![1.0], 0));
    }

    #[test]
    fn moments_survive_a_round_trip() {
        let w = var(&[0.5, 1.5]);
        let make = || AdamW::new(BTreeMap::from([("w".to_string(), w.clone())]), AdamWConfig::default());
        let mut a = make();
        let grads = || w.as_tensor().sqr().unwrap().sum_all().unwrap().backward().unwrap();
        a.step(&grads(), 0.1).unwrap();
        let before = w.to_vec1::<f32>().unwrap();
        let mut b = make();
        b.restore(&a.state().unwrap(), a.steps()).unwrap();
        a.step(&grads(), 0.1).unwrap();
        let after_a = w.to_vec1::<f32>().unwrap();
        w.set(&Tensor::new(before, &Device::Cpu).unwrap()).unwrap();
        b.step(&grads(), 0.1).unwrap();
        assert_eq!(after_a, w.to_vec1::<f32>().unwrap());
    }
}
