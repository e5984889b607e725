//! Batch, steps, schedule, seed, and how often to look at the validation users.

use crate::{Error, Result};
use rqvae::{AdamWConfig, Decay, Schedule};
use serde::{Deserialize, Serialize};

/// Numbers of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Windows or samples per step.
    pub batch_size: usize,
    /// Learning rate after warm-up.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Shape of the learning rate after warm-up.
    pub decay: Decay,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest gradient norm, 0 for no clipping.
    pub clip_norm: f64,
    /// Passes over the training data at most.
    pub max_epochs: u64,
    /// Epochs between validations.
    pub eval_every: u64,
    /// Validation users looked at, drawn once by the seed; 0 for all.
    pub eval_users: usize,
    /// Validations without a better recall@10 before training stops.
    pub patience: u64,
    /// Seconds after which training stops, 0 for no limit. The learning rate does not look at it.
    pub time_limit_s: u64,
    /// Everything random follows from it.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            batch_size: 256,
            learning_rate: 1e-3,
            warmup_steps: 200,
            decay: Decay::Cosine,
            weight_decay: 0.05,
            clip_norm: 1.0,
            max_epochs: 100,
            eval_every: 2,
            eval_users: 3000,
            patience: 10,
            time_limit_s: 0,
            seed: 0,
        }
    }
}

impl TrainConfig {
    /// Checks every field.
    pub fn validate(&self) -> Result<()> {
        let invalid = |field, got: String, expected: &str| {
            Err(Error::InvalidConfig { field, got, expected: expected.to_string() })
        };
        if self.batch_size == 0 {
            return invalid("batch_size", "0".into(), "at least 1");
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return invalid("learning_rate", self.learning_rate.to_string(), "a positive number");
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return invalid("weight_decay", self.weight_decay.to_string(), "0 or more");
        }
        if !(self.clip_norm >= 0.0 && self.clip_norm.is_finite()) {
            return invalid("clip_norm", self.clip_norm.to_string(), "0 or more");
        }
        for (field, value) in
            [("max_epochs", self.max_epochs), ("eval_every", self.eval_every), ("patience", self.patience)]
        {
            if value == 0 {
                return invalid(field, "0".into(), "at least 1");
            }
        }
        Ok(())
    }

    /// Learning rate over `steps_per_epoch * max_epochs` steps.
    pub fn schedule(&self, steps_per_epoch: u64) -> Schedule {
        Schedule {
            peak: self.learning_rate,
            warmup_steps: self.warmup_steps,
            total_steps: steps_per_epoch * self.max_epochs,
            decay: self.decay,
        }
    }

    pub(super) fn adamw(&self) -> AdamWConfig {
        AdamWConfig { weight_decay: self.weight_decay, clip_norm: self.clip_norm, ..AdamWConfig::default() }
    }
}
