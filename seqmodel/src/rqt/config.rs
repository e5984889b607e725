//! All numbers of the RQ-Transformer.

use crate::nn::AttentionShape;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Sizes and regularisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RqtConfig {
    /// Width of the residual stream.
    pub dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Hidden units of a feed-forward block.
    pub hidden: usize,
    /// Blocks over the history.
    pub layers: usize,
    /// Blocks over the codes of the next item.
    pub decoder_layers: usize,
    /// Newest items of a history that are read.
    pub history_cap: usize,
    /// Dropout everywhere.
    pub dropout: f32,
    /// Label smoothing of the code distributions.
    pub label_smoothing: f32,
    /// Whether content vectors are projected into the input.
    pub content: bool,
    /// Whether every item has an embedding beside its codes.
    pub item_embedding: bool,
    /// Share of positions whose item embedding is left out in training, so that unseen items still work.
    pub item_dropout: f32,
}

impl Default for RqtConfig {
    fn default() -> Self {
        Self {
            dim: 128,
            heads: 4,
            head_dim: 32,
            hidden: 512,
            layers: 2,
            decoder_layers: 1,
            history_cap: 20,
            dropout: 0.3,
            label_smoothing: 0.0,
            content: true,
            item_embedding: false,
            item_dropout: 0.2,
        }
    }
}

impl RqtConfig {
    /// Checks every field.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("dim", self.dim, 16_384),
            ("heads", self.heads, 256),
            ("head_dim", self.head_dim, 1024),
            ("hidden", self.hidden, 65_536),
            ("layers", self.layers, 256),
            ("decoder_layers", self.decoder_layers, 256),
            ("history_cap", self.history_cap, 10_000),
        ];
        for (field, got, most) in sizes {
            if got == 0 || got > most {
                return Err(Error::InvalidConfig { field, got: got.to_string(), expected: format!("1 to {most}") });
            }
        }
        for (field, got) in
            [("dropout", self.dropout), ("item_dropout", self.item_dropout), ("label_smoothing", self.label_smoothing)]
        {
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
            scaled: true,
            dropout: self.dropout,
        }
    }
}
