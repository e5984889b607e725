//! Encoder and decoder joined, and the teacher-forced loss.

use super::TigerConfig;
use crate::data::LeaveOneOut;
use crate::items::ItemFeatures;
use crate::loss::cross_entropy;
use crate::nn::{Block, Keys, NO_ROW, RelativeBias, RmsNorm, dropout, embedding_sum, project};
use crate::{Error, Result};
use candle_core::Tensor;
use candle_nn::VarBuilder;
use candle_nn::init::Init;
use rqvae::{ItemIdx, Mode};
use std::sync::Arc;

/// One training sample: what a user had seen, and what came next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// At most `history_cap` items, oldest first.
    pub history: Vec<ItemIdx>,
    /// The item that followed.
    pub target: ItemIdx,
}

/// Every prefix of every training history (sliding windows, the largest free gain GRID reports).
pub fn samples(split: &LeaveOneOut, cap: usize) -> Vec<Sample> {
    let mut all = Vec::new();
    for user in 0..split.users() {
        let items = split.train(user);
        for end in 1..items.len() {
            all.push(Sample { history: items[end.saturating_sub(cap)..end].to_vec(), target: items[end] });
        }
    }
    all
}

/// The model: immutable, its state lives in sessions.
#[derive(Debug, Clone)]
pub struct Tiger {
    config: TigerConfig,
    features: ItemFeatures,
    /// First row of each level in `tokens`; after the last level come the separator and the decoder's start token.
    level_starts: Vec<u32>,
    tokens: Tensor,
    encoder_bias: RelativeBias,
    encoder: Vec<Block>,
    encoder_norm: RmsNorm,
    decoder_bias: RelativeBias,
    decoder: Vec<Block>,
    decoder_norm: RmsNorm,
}

/// Encoder output of a batch.
pub struct Encoded {
    /// (batch, seq, dim).
    pub states: Tensor,
    /// How many of the `seq` positions of each history exist.
    pub keys: Keys,
}

impl Tiger {
    /// Parameters are read from, or made by, `vb`.
    pub fn new(config: &TigerConfig, features: ItemFeatures, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let spec = features.spec().clone();
        let mut level_starts = vec![0];
        for level in 0..spec.len() {
            level_starts.push(level_starts[level] + spec.codes_at(level));
        }
        let rows = level_starts[spec.len()] as usize + 2;
        let stack = |name: &str, layers, memory| {
            (0..layers)
                .map(|i| Block::new(config.attention(), config.hidden, memory, &vb.pp(format!("{name}.{i}"))))
                .collect::<candle_core::Result<Vec<_>>>()
        };
        Ok(Self {
            level_starts,
            tokens: vb.get_with_hints((rows, config.dim), "tokens", Init::Randn { mean: 0.0, stdev: 1.0 })?,
            encoder_bias: RelativeBias::new(32, 128, config.heads, true, &vb.pp("encoder_bias"))?,
            encoder: stack("encoder", config.encoder_layers, false)?,
            encoder_norm: RmsNorm::new(config.dim, &vb.pp("encoder_norm"))?,
            decoder_bias: RelativeBias::new(32, 128, config.heads, false, &vb.pp("decoder_bias"))?,
            decoder: stack("decoder", config.decoder_layers, true)?,
            decoder_norm: RmsNorm::new(config.dim, &vb.pp("decoder_norm"))?,
            config: config.clone(),
            features,
        })
    }

    /// The numbers it was made with.
    pub fn config(&self) -> &TigerConfig {
        &self.config
    }

    /// Levels per ID, suffix included.
    pub fn levels(&self) -> usize {
        self.level_starts.len() - 1
    }

    pub(crate) fn decoder(&self) -> &[Block] {
        &self.decoder
    }

    pub(crate) fn encoder(&self) -> &[Block] {
        &self.encoder
    }

    /// Of the encoder and the decoder.
    pub(crate) fn norms(&self) -> (&RmsNorm, &RmsNorm) {
        (&self.encoder_norm, &self.decoder_norm)
    }

    pub(crate) fn encoder_bias(&self) -> &RelativeBias {
        &self.encoder_bias
    }

    pub(crate) fn decoder_bias(&self) -> &RelativeBias {
        &self.decoder_bias
    }

    /// (tokens, dim).
    pub(crate) fn tokens(&self) -> &Tensor {
        &self.tokens
    }

    /// Rows of `tokens` with the codes of `level`.
    pub(crate) fn level_rows(&self, level: usize) -> std::ops::Range<usize> {
        self.level_starts[level] as usize..self.level_starts[level + 1] as usize
    }

    /// Row of `tokens` that the decoder starts from.
    pub(crate) fn start_row(&self) -> usize {
        self.start_token() as usize
    }

    /// Most tokens of a history.
    pub(crate) fn longest(&self) -> usize {
        self.config.history_cap * (self.levels() + usize::from(self.config.separator))
    }

    fn start_token(&self) -> u32 {
        self.level_starts[self.levels()] + 1
    }

    fn item_tokens(&self, item: ItemIdx) -> impl Iterator<Item = u32> {
        self.features.codes(item).iter().zip(&self.level_starts).map(|(code, start)| start + u32::from(*code))
    }

    /// Tokens of the newest items of a history, oldest first.
    pub(crate) fn history_tokens(&self, history: &[ItemIdx]) -> Vec<u32> {
        let separator = self.config.separator.then_some(self.start_token() - 1);
        let newest = &history[history.len().saturating_sub(self.config.history_cap)..];
        newest.iter().flat_map(|item| self.item_tokens(*item).chain(separator)).collect()
    }

    /// Histories, which must not be empty, -> their encoder states.
    pub fn encode(&self, histories: &[&[ItemIdx]], mode: Mode) -> Result<Encoded> {
        let rows: Vec<Vec<u32>> = histories.iter().map(|history| self.history_tokens(history)).collect();
        let seq = rows.iter().map(Vec::len).max().unwrap_or(1).max(1);
        let mut ids = vec![NO_ROW; rows.len() * seq];
        for (slots, row) in ids.chunks_exact_mut(seq).zip(&rows) {
            slots[..row.len()].copy_from_slice(row);
        }
        let keys = Keys::First(Arc::new(rows.iter().map(|r| r.len() as u32).collect()));
        let x = embedding_sum(&self.tokens, ids, 1)?.reshape((rows.len(), seq, self.config.dim))?;
        let mut x = dropout(&x, self.config.dropout, mode)?;
        let bias = self.encoder_bias.forward(seq, seq)?;
        for block in &self.encoder {
            x = block.forward(&x, Some(&bias), &keys, None, mode)?;
        }
        let states = dropout(&self.encoder_norm.forward(&x)?, self.config.dropout, mode)?;
        Ok(Encoded { states, keys })
    }

    /// Decoder input of one position per row: the start token at level 0, the last code after it -> (rows, 1, dim).
    pub(super) fn input(&self, level: usize, codes: &[u32]) -> Result<Tensor> {
        let ids = match level {
            0 => vec![self.start_token(); codes.len()],
            _ => codes.iter().map(|code| self.level_starts[level - 1] + code).collect(),
        };
        Ok(embedding_sum(&self.tokens, ids, 1)?.unsqueeze(1)?)
    }

    /// Bias of the newest of `keys` decoder positions -> (heads, 1, keys).
    pub(super) fn step_bias(&self, keys: usize) -> Result<Tensor> {
        Ok(self.decoder_bias.forward(1, keys)?)
    }

    /// Logits of `level` from decoder outputs: (rows, dim) -> (rows, codes of the level).
    pub(super) fn logits(&self, level: usize, x: &Tensor) -> Result<Tensor> {
        let first = self.level_starts[level] as usize;
        let count = self.level_starts[level + 1] as usize - first;
        // T5 scales by dim^-1/2 where the output is tied to the embeddings.
        let x = (self.decoder_norm.forward(x)? * (self.config.dim as f64).powf(-0.5))?;
        Ok(project(&x, &self.tokens.narrow(0, first, count)?)?)
    }

    /// Mean over samples of the summed cross-entropy of the target's codes.
    pub fn loss(&self, samples: &[&Sample], mode: Mode) -> Result<Tensor> {
        let levels = self.levels();
        let histories: Vec<_> = samples.iter().map(|s| &s.history[..]).collect();
        let memory = self.encode(&histories, mode)?;
        let ids = samples
            .iter()
            .flat_map(|s| std::iter::once(self.start_token()).chain(self.item_tokens(s.target).take(levels - 1)))
            .collect();
        let x = embedding_sum(&self.tokens, ids, 1)?.reshape((samples.len(), levels, self.config.dim))?;
        let mut x = dropout(&x, self.config.dropout, mode)?;
        let bias = self.decoder_bias.forward(levels, levels)?;
        for block in &self.decoder {
            let kv = block.memory_keys_values(&memory.states)?;
            x = block.forward(&x, Some(&bias), &Keys::Causal, kv.as_ref().map(|kv| (kv, &memory.keys)), mode)?;
        }
        let x = dropout(&x, self.config.dropout, mode)?;
        let mut loss: Option<Tensor> = None;
        for level in 0..levels {
            let logits = self.logits(level, &x.narrow(1, level, 1)?.squeeze(1)?.contiguous()?)?;
            let codes = samples.iter().map(|s| u32::from(self.features.codes(s.target)[level])).collect();
            let term = cross_entropy(&logits, codes, self.config.label_smoothing)?;
            loss = Some(match loss {
                Some(loss) => (loss + term)?,
                None => term,
            });
        }
        loss.ok_or(Error::NoData { what: "levels" })
    }
}
