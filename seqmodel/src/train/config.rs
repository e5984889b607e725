//! Batch, steps, schedule, seed, and how often to look at the validation users.

use crate::{Error, Result};
use rqvae::{AdamWConfig, Decay, Schedule};
use serde::{Deserialize, Serialize};

/// A validation metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Select {
    /// Share of users whose target is among the first ten.
    #[default]
    #[serde(rename = "recall@10")]
    Recall,
    /// Discounted gain of the first ten.
    #[serde(rename = "ndcg@10")]
    Ndcg,
}

/// What a loss or a gradient that is no number does to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNonFinite {
    /// Ends it.
    #[default]
    Stop,
    /// Leaves the step out, three in a row at most; the metrics say how many.
    Skip,
}

/// Numbers of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Windows or samples per step.
    pub batch_size: usize,
    /// Windows or samples per backward pass; the gradients of the parts of a batch add up to that of the whole. Saves
    /// memory. 0: the whole batch at once.
    pub micro_batch: usize,
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
    /// Decay per step of the running average of the weights that is validated, saved and used; 0: the weights
    /// themselves.
    pub ema_decay: f64,
    /// Passes over the training data at most.
    pub max_epochs: u64,
    /// Epochs between validations.
    pub eval_every: u64,
    /// Validation users looked at, drawn once by the seed; 0 for all.
    pub eval_users: usize,
    /// What the best weights are chosen by.
    pub select: Select,
    /// Validations without a better figure before training stops.
    pub patience: u64,
    /// What is done about a loss or a gradient that is no number.
    pub on_nonfinite: OnNonFinite,
    /// Seconds of training, those before it was resumed included, after which it stops, within an epoch as well; 0 for no
    /// limit. The learning rate does not look at it.
    pub time_limit_s: u64,
    /// Everything random follows from it.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            batch_size: 256,
            micro_batch: 0,
            learning_rate: 1e-3,
            warmup_steps: 200,
            decay: Decay::Cosine,
            weight_decay: 0.05,
            clip_norm: 1.0,
            ema_decay: 0.0,
            max_epochs: 100,
            eval_every: 2,
            eval_users: 3000,
            select: Select::Recall,
            patience: 10,
            on_nonfinite: OnNonFinite::Stop,
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
        if !(0.0..1.0).contains(&self.ema_decay) {
            return invalid("ema_decay", self.ema_decay.to_string(), "0 to below 1");
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

    /// Numbers of the optimiser.
    pub fn adamw(&self) -> AdamWConfig {
        AdamWConfig { weight_decay: self.weight_decay, clip_norm: self.clip_norm, ..AdamWConfig::default() }
    }
}
