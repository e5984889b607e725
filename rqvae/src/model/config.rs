//! All numbers of the RQ-VAE beside those that all quantisers share.

use super::estimator::{CodebookUpdate, Estimator};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Shape and training of an RQ-VAE.
///
/// Shape, `beta` and batch size are those of Rajput et al. 2023 (TIGER), sec. 4. Adagrad at .4 collapses on
/// normalised content, so the optimiser is `AdamW`; codebooks follow moving averages and dead codes are set anew
/// while they form. Training longer lowers the error but lets more items collide, hence `unique_target`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RqVaeConfig {
    /// Widths of the encoder's hidden layers; the decoder mirrors them.
    pub hidden: Vec<usize>,
    /// Width of the latent and of a codeword.
    pub latent_dim: usize,
    /// Weight of the commitment loss.
    pub beta: f32,
    /// How the encoder learns through the choice of a code.
    pub estimator: Estimator,
    /// Temperature of Gumbel-softmax in the first epoch; it falls by equal factors to the last one.
    pub temperature: f32,
    /// Temperature of Gumbel-softmax in the last epoch: lower is closer to a choice.
    pub last_temperature: f32,
    /// How codewords learn.
    pub codebook_update: CodebookUpdate,
    /// Widths of the sources that make up a content vector, each with towers of its own; empty for one source.
    pub sources: Vec<usize>,
    /// Whether only the first levels count for an item in a step, their number drawn evenly from 1 to all (PLUM).
    pub progressive: bool,
    /// Weight of the contrast with items of the same sessions (PLUM); 0 without. The reconstruction's loss is a sum over
    /// all dimensions of the content, so weights of some ten are no more than a nudge.
    pub contrast_weight: f32,
    /// Temperature of this contrast and of that with collaborative vectors.
    pub contrast_temperature: f32,
    /// Weight of the contrast with collaborative vectors (LETTER); 0 without.
    pub align_weight: f32,
    /// Weight of the loss that spreads items over codewords (LETTER); 0 without. Codebooks must learn by gradient.
    pub diversity_weight: f32,
    /// Groups of codewords per level for that loss.
    pub diversity_groups: usize,
    /// While the network learns, the last level's codes are used evenly by Sinkhorn's iterations at this entropy; 0 for
    /// the nearest code. LC-Rec takes .003.
    pub sinkhorn_epsilon: f32,
    /// Whether that holds for all levels.
    pub sinkhorn_all_levels: bool,
    /// What a codebook keeps of its moving averages in a step.
    pub decay: f32,
    /// Passes over the items, at least.
    pub epochs: usize,
    /// Steps, at least: small catalogues get more epochs.
    pub min_steps: usize,
    /// Items per step.
    pub batch_size: usize,
    /// Learning rate of `AdamW`; over the last third of the epochs it falls along a cosine.
    pub learning_rate: f32,
    /// Weight decay of `AdamW`.
    pub weight_decay: f32,
    /// Codes without an item are set to random residuals every so many epochs; 0 for never.
    pub reset_every: usize,
    /// Fraction of the epochs after which nothing is set anew.
    pub reset_until: f64,
    /// In the second half, the weights are judged every so many epochs.
    pub check_every: usize,
    /// Of the judged weights with at least this fraction of distinct code tuples, those with the least error are
    /// kept; where none has it, those with most distinct tuples.
    pub unique_target: f64,
}

impl Default for RqVaeConfig {
    fn default() -> Self {
        Self {
            hidden: vec![512, 256, 128],
            latent_dim: 32,
            beta: 0.25,
            estimator: Estimator::StraightThrough,
            temperature: 1.0,
            last_temperature: 0.1,
            codebook_update: CodebookUpdate::Averages,
            sources: Vec::new(),
            progressive: false,
            contrast_weight: 0.0,
            contrast_temperature: 0.1,
            align_weight: 0.0,
            diversity_weight: 0.0,
            diversity_groups: 10,
            sinkhorn_epsilon: 0.0,
            sinkhorn_all_levels: false,
            decay: 0.95,
            epochs: 80,
            min_steps: 960,
            batch_size: 1024,
            learning_rate: 1e-3,
            weight_decay: 0.01,
            reset_every: 10,
            reset_until: 0.67,
            check_every: 5,
            unique_target: 0.97,
        }
    }
}

impl RqVaeConfig {
    /// Refuses what cannot be trained.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the field.
    pub fn validate(&self) -> Result<()> {
        const WIDEST: usize = 1 << 14;
        if self.hidden.len() > 16 || self.hidden.iter().any(|width| !(1..=WIDEST).contains(width)) {
            let expected = format!("at most 16 widths of 1 to {WIDEST}");
            return Err(Error::config("rqvae.hidden", format!("{:?}", self.hidden), expected));
        }
        for (field, value, largest) in [
            ("rqvae.latent_dim", self.latent_dim, WIDEST),
            ("rqvae.epochs", self.epochs, 1_000_000),
            ("rqvae.batch_size", self.batch_size, 1 << 20),
            ("rqvae.check_every", self.check_every, usize::MAX),
            ("rqvae.diversity_groups", self.diversity_groups, 1 << 16),
        ] {
            if !(1..=largest).contains(&value) {
                return Err(Error::config(field, value, format!("1 to {largest}")));
            }
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= 1.0) {
            return Err(Error::config("rqvae.learning_rate", self.learning_rate, "above 0, at most 1"));
        }
        if !(0.0..=100.0).contains(&self.beta) {
            return Err(Error::config("rqvae.beta", self.beta, "0 to 100"));
        }
        if !(0.0..=100.0).contains(&self.weight_decay) {
            return Err(Error::config("rqvae.weight_decay", self.weight_decay, "0 to 100"));
        }
        if !(0.0..1.0).contains(&self.decay) {
            return Err(Error::config("rqvae.decay", self.decay, "0 to below 1"));
        }
        for (field, value) in
            [("rqvae.temperature", self.temperature), ("rqvae.last_temperature", self.last_temperature)]
        {
            if !(value > 0.0 && value <= 1000.0) {
                return Err(Error::config(field, value, "above 0, at most 1000"));
            }
        }
        if !(0.001..=1000.0).contains(&self.contrast_temperature) {
            return Err(Error::config("rqvae.contrast_temperature", self.contrast_temperature, "0.001 to 1000"));
        }
        for (field, value) in [
            ("rqvae.contrast_weight", self.contrast_weight),
            ("rqvae.align_weight", self.align_weight),
            ("rqvae.diversity_weight", self.diversity_weight),
        ] {
            if !(0.0..=1e6).contains(&value) {
                return Err(Error::config(field, value, "0 to 1000000"));
            }
        }
        if self.codebook_update == CodebookUpdate::Averages {
            let needs = [
                (self.estimator == Estimator::GumbelSoftmax, "gradient with gumbel-softmax"),
                (self.diversity_weight > 0.0, "gradient with a diversity_weight"),
            ];
            if let Some((_, expected)) = needs.iter().find(|(needed, _)| *needed) {
                return Err(Error::config("rqvae.codebook_update", "averages", *expected));
            }
        }
        if self.estimator == Estimator::GumbelSoftmax && self.sinkhorn_epsilon > 0.0 {
            return Err(Error::config("rqvae.sinkhorn_epsilon", self.sinkhorn_epsilon, "0 with gumbel-softmax"));
        }
        if self.sources.len() > 16 || self.sources.contains(&0) {
            let expected = "at most 16 widths of 1 or more";
            return Err(Error::config("rqvae.sources", format!("{:?}", self.sources), expected));
        }
        if !(self.sinkhorn_epsilon == 0.0 || (1e-4..=100.0).contains(&self.sinkhorn_epsilon)) {
            return Err(Error::config("rqvae.sinkhorn_epsilon", self.sinkhorn_epsilon, "0, or 0.0001 to 100"));
        }
        if !(0.0..=1.0).contains(&self.unique_target) {
            let expected = "0 to 1";
            return Err(Error::config("rqvae.unique_target", self.unique_target, expected));
        }
        if self.min_steps > 1_000_000 {
            return Err(Error::config("rqvae.min_steps", self.min_steps, "at most 1000000"));
        }
        if !(0.0..=1.0).contains(&self.reset_until) {
            return Err(Error::config("rqvae.reset_until", self.reset_until, "0 to 1"));
        }
        Ok(())
    }

    /// Widths of the sources of content of `dim` numbers.
    pub(super) fn widths(&self, dim: usize) -> Result<Vec<usize>> {
        if self.sources.is_empty() {
            return Ok(vec![dim]);
        }
        let sum = self.sources.iter().fold(0usize, |sum, &width| sum.saturating_add(width));
        if sum != dim {
            let got = format!("{:?}, {sum} in all", self.sources);
            return Err(Error::config("rqvae.sources", got, format!("the {dim} numbers of a content vector in all")));
        }
        Ok(self.sources.clone())
    }

    /// Temperature of Gumbel-softmax in epoch `done` of `total`, from 1 on.
    pub(super) fn temperature_at(&self, done: usize, total: usize) -> f32 {
        let along = (done - 1) as f32 / (total - 1).max(1) as f32;
        self.temperature * (self.last_temperature / self.temperature).powf(along)
    }

    /// Epochs over `items` that make up enough steps.
    pub(super) fn epochs_over(&self, items: usize) -> usize {
        let steps = items.div_ceil(self.batch_size).max(1);
        self.epochs.max(self.min_steps.div_ceil(steps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_catalogues_get_more_epochs() {
        let config = RqVaeConfig::default();
        assert_eq!(config.epochs_over(12_101), 80);
        assert_eq!(config.epochs_over(3000), 320);
        assert_eq!(config.epochs_over(5), 960);
        assert_eq!(config.epochs_over(1_000_000), 80);
    }
}
