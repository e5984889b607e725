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
    /// Newest states of the history that the decoder attends to; with 1 it reads the newest alone, at its input.
    pub look_back: usize,
    /// Dropout everywhere.
    pub dropout: f32,
    /// Label smoothing of the code distributions.
    pub label_smoothing: f32,
    /// Weight of the codes' loss beside the dense one. What the two share learns by their sum, what is the decoder's
    /// own learns alike whatever the weight, since the optimiser is blind to scale. 0: the decoder is not trained.
    pub code_weight: f32,
    /// Weight of each level's loss within the codes', suffix included; empty: all 1.
    pub level_weights: Vec<f32>,
    /// Whether content vectors are projected into the input.
    pub content: bool,
    /// Whether every item has an embedding beside its codes.
    pub item_embedding: bool,
    /// Share of positions whose item embedding is left out in training, so that unseen items still work.
    pub item_dropout: f32,
    /// Whether a code competes, in training and in search, only with those that continue its prefix to an ID of the
    /// catalogue, instead of with all codes of its level.
    pub valid_only: bool,
    /// Weight of the dense loss: cross-entropy of the next item among all items, scored by inner products of the
    /// position's state with the items' input vectors. 0: no dense head.
    pub dense_weight: f32,
    /// Dropout of the states and of the items' vectors in the dense loss.
    pub dense_dropout: f32,
    /// Catalogues of more items than this are not scored whole by the dense loss, but against so many uniform draws per
    /// step, weighted to stand for all.
    pub dense_negatives: usize,
    /// Weight of the dense head in the search, 0 (the code decoder alone) to 1; see [`beam::Guided`].
    pub guide: f32,
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
            look_back: 1,
            dropout: 0.3,
            label_smoothing: 0.0,
            code_weight: 1.0,
            level_weights: Vec::new(),
            content: true,
            item_embedding: false,
            item_dropout: 0.2,
            valid_only: false,
            dense_weight: 0.0,
            dense_dropout: 0.0,
            dense_negatives: 32_768,
            guide: 0.0,
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
            ("look_back", self.look_back, self.history_cap),
            ("dense_negatives", self.dense_negatives, 1 << 24),
        ];
        for (field, got, most) in sizes {
            if got == 0 || got > most {
                return Err(Error::InvalidConfig { field, got: got.to_string(), expected: format!("1 to {most}") });
            }
        }
        for (field, got) in [
            ("dropout", self.dropout),
            ("item_dropout", self.item_dropout),
            ("dense_dropout", self.dense_dropout),
            ("label_smoothing", self.label_smoothing),
        ] {
            if !(0.0..1.0).contains(&got) {
                return Err(Error::InvalidConfig { field, got: got.to_string(), expected: "0 to below 1".into() });
            }
        }
        if self.level_weights.iter().any(|weight| !(*weight >= 0.0 && weight.is_finite())) {
            let got = format!("{:?}", self.level_weights);
            return Err(Error::InvalidConfig { field: "level_weights", got, expected: "0 or more each".into() });
        }
        for (field, got) in [("code_weight", self.code_weight), ("dense_weight", self.dense_weight)] {
            if !(got >= 0.0 && got.is_finite()) {
                return Err(Error::InvalidConfig { field, got: got.to_string(), expected: "0 or more".into() });
            }
        }
        if self.code_weight == 0.0 && self.dense_weight == 0.0 {
            let expected = "above 0 where `dense_weight` is 0, or nothing is trained".into();
            return Err(Error::InvalidConfig { field: "code_weight", got: "0".into(), expected });
        }
        let most = if self.dense_weight > 0.0 { 1.0 } else { 0.0 };
        if !(0.0..=most).contains(&self.guide) {
            let expected = "0 to 1, and 0 without a dense head (dense_weight 0)".into();
            return Err(Error::InvalidConfig { field: "guide", got: self.guide.to_string(), expected });
        }
        if self.valid_only && self.label_smoothing > 0.0 {
            let expected = "0 with valid_only: smoothing spreads over codes that valid_only rules out".into();
            return Err(Error::InvalidConfig {
                field: "label_smoothing",
                got: self.label_smoothing.to_string(),
                expected,
            });
        }
        Ok(())
    }

    pub(crate) fn attention(&self) -> AttentionShape {
        AttentionShape {
            dim: self.dim,
            heads: self.heads,
            head_dim: self.head_dim,
            scaled: true,
            dropout: self.dropout,
        }
    }
}
