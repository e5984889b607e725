//! A running average of the weights, which often ranks better than the weights themselves.
//!
//! Paper: Polyak and Juditsky 1992, Acceleration of Stochastic Approximation by Averaging, with exponential weights.

use crate::Result;
use crate::nn::{Parameters, values};
use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// Exponential running average of the weights.
pub(super) struct Average {
    decay: f64,
    pub(super) weights: BTreeMap<String, Tensor>,
}

impl Average {
    /// `None` for a decay of 0.
    pub(super) fn new(decay: f64, params: &Parameters) -> Result<Option<Self>> {
        Ok(if decay > 0.0 { Some(Self { decay, weights: params.snapshot()? }) } else { None })
    }

    /// Takes in the weights after `step`; early steps weigh more, so that the first weights are forgotten. What does not
    /// change keeps its bits: counts and names are among the parameters.
    pub(super) fn update(&mut self, params: &Parameters, step: u64) -> Result<()> {
        let towards = average_step(self.decay, step);
        for (name, var) in params.all() {
            if let Some(average) = self.weights.get(&name) {
                average.inplace_op2(var.as_tensor(), &Towards(towards as f32))?;
            }
        }
        Ok(())
    }

    /// Puts the average into `params`; returns what was there.
    pub(super) fn swap_in(&self, params: &Parameters) -> Result<HashMap<String, Tensor>> {
        let trained = params.snapshot()?.into_iter().collect();
        params.assign(&self.weights.clone().into_iter().collect())?;
        Ok(trained)
    }
}

/// `average += step (weights - average)`, one pass.
struct Towards(f32);

impl InplaceOp2 for Towards {
    fn name(&self) -> &'static str {
        "running-average"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, al: &Layout, w: &CpuStorage, wl: &Layout) -> candle_core::Result<()> {
        const BLOCK: usize = 1 << 14;
        let CpuStorage::F32(average) = a else { candle_core::bail!("averages are f32") };
        let average = &mut average[al.start_offset()..al.start_offset() + al.shape().elem_count()];
        average.par_chunks_mut(BLOCK).zip(values(w, wl)?.par_chunks(BLOCK)).for_each(|(average, weights)| {
            average.iter_mut().zip(weights).for_each(|(average, weight)| *average += (weight - *average) * self.0);
        });
        Ok(())
    }
}

/// How far an average of `decay` goes towards the weights after `step`; early steps go further.
pub(crate) fn average_step(decay: f64, step: u64) -> f64 {
    1.0 - decay.min((1.0 + step as f64) / (10.0 + step as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn what_moves_is_averaged_and_what_does_not_keeps_its_bits() {
        let params = Parameters::new(0);
        let vb = params.builder();
        for name in ["counted", "moved"] {
            vb.get_with_hints(3, name, candle_nn::init::Init::Const(0.0)).unwrap();
        }
        let set = |counted: [f32; 3], moved: [f32; 3]| {
            let tensor = |x: [f32; 3]| Tensor::from_slice(&x, 3, &Device::Cpu).unwrap();
            params
                .assign(&HashMap::from([("counted".into(), tensor(counted)), ("moved".into(), tensor(moved))]))
                .unwrap();
        };
        let counted = [12_101.0, 0.3, 1e7 + 1.0];
        set(counted, [0.0; 3]);
        let mut average = Average::new(0.5, &params).unwrap().unwrap();
        for step in 1..50 {
            set(counted, [1.0; 3]);
            average.update(&params, step).unwrap();
        }
        average.swap_in(&params).unwrap();
        let read = |name: &str| params.snapshot().unwrap()[name].to_vec1::<f32>().unwrap();
        assert_eq!(read("counted"), counted);
        assert!(read("moved").iter().all(|x| (x - 1.0).abs() < 1e-6));
    }
}
