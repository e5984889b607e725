//! TIGER's numbers and where they come from.

use crate::nn::AttentionShape;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Sizes and regularisation; the defaults are the paper's (sec. 4, implementation details) but for the user tokens.
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
    /// Tokens that stand for users: the one that a user's id hashes to comes before the history. The paper has 2000; 0:
    /// none, as in GRID.
    pub user_tokens: usize,
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
            user_tokens: 0,
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
        if self.user_tokens > 10_000_000 {
            let (got, expected) = (self.user_tokens.to_string(), "0 to 10000000".into());
            return Err(Error::InvalidConfig { field: "user_tokens", got, expected });
        }
        for (field, got) in [("dropout", self.dropout), ("label_smoothing", self.label_smoothing)] {
            if !(0.0..1.0).contains(&got) {
                return Err(Error::InvalidConfig { field, got: got.to_string(), expected: "0 to below 1".into() });
            }
        }
        Ok(())
    }

    pub(crate) fn attention(&self) -> AttentionShape {
        AttentionShape {
            dim: self.dim,
            heads: self.heads,
            head_dim: self.head_dim,
            scaled: false,
            dropout: self.dropout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_tokens_are_bounded() {
        let tokens = |user_tokens| TigerConfig { user_tokens, ..TigerConfig::default() }.validate();
        assert!(tokens(0).is_ok() && tokens(2000).is_ok());
        let error = tokens(usize::MAX).unwrap_err().to_string();
        assert!(error.contains("user_tokens") && error.contains("0 to 10000000"), "{error}");
    }
}
