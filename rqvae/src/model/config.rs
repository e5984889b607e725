//! All numbers of the RQ-VAE beside those that all quantisers share.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Shape and training of an RQ-VAE.
///
/// Shape, `beta` and batch size are those of Rajput et al. 2023 (TIGER), sec. 4; Adagrad at .4 collapses on
/// normalised content, so the optimiser is `AdamW`, and dead codes are set anew while the codebooks form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RqVaeConfig {
    /// Widths of the encoder's hidden layers; the decoder mirrors them.
    pub hidden: Vec<usize>,
    /// Width of the latent and of a codeword.
    pub latent_dim: usize,
    /// Weight of the commitment loss.
    pub beta: f32,
    /// Passes over the items.
    pub epochs: usize,
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
    /// After that fraction, the weights are judged every so many epochs and the best are kept.
    pub check_every: usize,
}

impl Default for RqVaeConfig {
    fn default() -> Self {
        Self {
            hidden: vec![512, 256, 128],
            latent_dim: 32,
            beta: 0.25,
            epochs: 400,
            batch_size: 1024,
            learning_rate: 1e-3,
            weight_decay: 0.01,
            reset_every: 10,
            reset_until: 0.67,
            check_every: 20,
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
        if !(0.0..=1.0).contains(&self.reset_until) {
            return Err(Error::config("rqvae.reset_until", self.reset_until, "0 to 1"));
        }
        Ok(())
    }
}
