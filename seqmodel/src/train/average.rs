//! A running average of the weights, which often ranks better than the weights themselves.
//!
//! Paper: Polyak and Juditsky 1992, Acceleration of Stochastic Approximation by Averaging, with exponential weights.

use crate::Result;
use crate::nn::Parameters;
use candle_core::Tensor;
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

    /// Takes in the weights after `step`; early steps weigh more, so that the first weights are forgotten.
    pub(super) fn update(&mut self, params: &Parameters, step: u64) -> Result<()> {
        let decay = self.decay.min((1.0 + step as f64) / (10.0 + step as f64));
        for (name, var) in params.all() {
            if let Some(average) = self.weights.get_mut(&name) {
                *average = ((&*average * decay)? + (var.as_tensor() * (1.0 - decay))?)?.detach();
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
