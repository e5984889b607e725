//! What a run tells of itself, and what it keeps of itself in a checkpoint.

use serde::{Deserialize, Serialize};

/// What validation found; one of the two chooses the best weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Share of users whose target is among the first ten.
    #[serde(rename = "recall@10")]
    pub recall_at_10: f64,
    /// Discounted gain of the same lists.
    #[serde(rename = "ndcg@10")]
    pub ndcg_at_10: f64,
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Optimiser steps taken.
    pub step: u64,
    /// Which epoch, the first is 1.
    pub epoch: u64,
    /// Mean loss of the epoch so far.
    pub loss: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Gradient norm of the last step before clipping.
    pub grad_norm: f64,
    /// Training samples per second of this epoch.
    pub examples_per_second: f64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Steps of the epoch so far that were left out for numbers that are none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
    /// Whether the time limit cut the epoch here; one that went on later has another record of the whole.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// Validation, where this epoch had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val: Option<Validation>,
}

/// Why training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// All epochs done.
    Epochs,
    /// No better validation for `patience` times.
    Patience,
    /// The time limit.
    Time,
    /// The caller asked; a checkpoint of this very step was written.
    Interrupted,
}

/// End of a run. The parameters hold the best weights, unless it was interrupted.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Why it ended.
    pub stop: Stop,
    /// Steps taken.
    pub steps: u64,
    /// Epochs finished.
    pub epochs: u64,
    /// Best validation figure, of the metric the run selects by.
    pub best: f64,
    /// Step of the best validation.
    pub best_step: u64,
    /// Seconds of training, resumed parts included.
    pub seconds: f64,
}

/// Digests of what a run was made from; a resumed run must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Kind of model.
    pub model: String,
    /// Digest of the model's and the trainer's configuration.
    pub config: String,
    /// Digest of the training data.
    pub data: String,
    /// Digest of the SID table.
    pub sids: String,
}

/// State of a run in a checkpoint, beside weights and moments.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct RunState {
    pub(super) identity: Identity,
    pub(super) step: u64,
    pub(super) epoch: u64,
    pub(super) batch: usize,
    pub(super) loss_sum: f64,
    pub(super) best: Option<f64>,
    pub(super) best_step: u64,
    pub(super) stale: u64,
    pub(super) seconds: f64,
    /// Steps of this epoch that were left out, and how many of them came last without one that was taken between.
    #[serde(default)]
    pub(super) skipped: u64,
    #[serde(default)]
    pub(super) skipped_last: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl RunState {
    /// How the run ended.
    pub(super) fn outcome(&self, stop: Stop) -> Outcome {
        Outcome {
            stop,
            steps: self.step,
            epochs: self.epoch,
            best: self.best.unwrap_or(0.0),
            best_step: self.best_step,
            seconds: self.seconds,
        }
    }
}
