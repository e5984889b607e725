//! TIGER's numbers and where they come from.

use crate::nn::AttentionShape;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Sizes and regularisation; the defaults are the paper's (sec. 4, implementation details).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TigerConfig {
    /// Width of the residual stream.
    pub dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Hidden units of a feed-forward block.
    pub hidden: usize,
    /// Blocks of the encoder.
    pub encoder_layers: usize,
    /// Blocks of the decoder.
    pub decoder_layers: usize,
    /// Newest items of a history that are read.
    pub history_cap: usize,
    /// Dropout everywhere.
    pub dropout: f32,
    /// Whether a separator token follows each item of the history (GRID).
    pub separator: bool,
    /// Label smoothing of the code distributions.
    pub label_smoothing: f32,
}

impl Default for TigerConfig {
    fn default() -> Self {
        Self {
            dim: 128,
            heads: 6,
            head_dim: 64,
            hidden: 1024,
            encoder_layers: 4,
            decoder_layers: 4,
            history_cap: 20,
            dropout: 0.1,
            separator: false,
            label_smoothing: 0.0,
        }
    }
}

impl TigerConfig {
    /// Checks every field.
    pub fn validate(&self) -> Result<()> {
        for (field, got, most) in [
            ("dim", self.dim, 16_384),
            ("heads", self.heads, 256),
            ("head_dim", self.head_dim, 1024),
            ("hidden", self.hidden, 65_536),
            ("encoder_layers", self.encoder_layers, 256),
            ("decoder_layers", self.decoder_layers, 256),
            ("history_cap", self.history_cap, 10_000),
        ] {
            if got == 0 || got > most {
                return Err(Error::InvalidConfig { field, got: got.to_string(), expected: format!("1 to {most}") });
            }
        }
        for (field, got) in [("dropout", self.dropout), ("label_smoothing", self.label_smoothing)] {
            if !(0.0..1.0).contains(&got) {
                return Err(Error::InvalidConfig { field, got: got.to_string(), expected: "0 to below 1".into() });
            }
        }
        Ok(())
    }

    pub(super) fn attention(&self) -> AttentionShape {
        AttentionShape {
            dim: self.dim,
            heads: self.heads,
            head_dim: self.head_dim,
            scaled: false,
            dropout: self.dropout,
        }
    }
}
