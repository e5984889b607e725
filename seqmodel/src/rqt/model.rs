//! The two transformers joined, and the teacher-forced loss.

use super::{RqtBatch, RqtConfig};
use crate::cuda::HistoryParts;
use crate::data::{Negatives, Padded, Window};
use crate::items::ItemFeatures;
use crate::loss::{LogQ, cross_entropy, cross_entropy_among, projected_cross_entropy, sampled_softmax};
use crate::nn::{Block, Keys, Linear, NO_ROW, RelativeBias, RmsNorm, dropout, embedding_sum, project};
use crate::{Error, Result};
use beam::Trie;
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use candle_nn::init::Init;
use rqvae::{ItemIdx, Mode, mix};
use std::sync::Arc;

/// Encoded histories.
pub struct Encoded {
    /// State after the newest item of each history: (batch, dim).
    pub states: Tensor,
    /// The newest `look_back` states, newest first, and how many of them exist: (batch, `look_back`, dim). `None`
    /// where the decoder reads the newest state alone.
    pub memory: Option<(Tensor, Keys)>,
}

/// The model: immutable, its state lives in sessions.
#[derive(Debug, Clone)]
pub struct Rqt {
    config: RqtConfig,
    features: ItemFeatures,
    /// First row of each level in `codes`.
    level_starts: Vec<u32>,
    codes: Tensor,
    content: Option<Linear>,
    items: Option<Tensor>,
    input_norm: RmsNorm,
    bias: RelativeBias,
    blocks: Vec<Block>,
    history_norm: RmsNorm,
    bridge: Linear,
    decoder_codes: Tensor,
    decoder: Vec<Block>,
    decoder_norm: RmsNorm,
    heads: Vec<Tensor>,
    /// The IDs that codes compete within, where they do.
    valid: Option<Arc<Trie>>,
}

impl Rqt {
    /// Parameters are read from, or made by, `vb`.
    pub fn new(config: &RqtConfig, features: ItemFeatures, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        if config.content && features.content_dim() == 0 {
            return Err(Error::Mismatch {
                what: "content vectors".into(),
                expected: "one per item, since the model reads content".into(),
                found: "none in the catalogue".into(),
            });
        }
        let (dim, spec) = (config.dim, features.spec().clone());
        let mut level_starts = vec![0];
        for level in 0..spec.len() {
            level_starts.push(level_starts[level] + spec.codes_at(level));
        }
        let rows = level_starts[spec.len()] as usize;
        let small = Init::Randn { mean: 0.0, stdev: 0.05 };
        let shape = config.attention();
        if !config.level_weights.is_empty() && config.level_weights.len() != spec.len() {
            return Err(Error::InvalidConfig {
                field: "level_weights",
                got: format!("{} numbers", config.level_weights.len()),
                expected: format!("one per level, {}, or none", spec.len()),
            });
        }
        let blocks = |name: &str, count, memory| {
            (0..count)
                .map(|i| Block::new(shape, config.hidden, memory, &vb.pp(format!("{name}.{i}"))))
                .collect::<candle_core::Result<Vec<_>>>()
        };
        let heads = (0..spec.len())
            .map(|level| vb.get_with_hints((spec.codes_at(level) as usize, dim), &format!("heads.{level}"), small))
            .collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Self {
            level_starts,
            codes: vb.get_with_hints((rows, dim), "codes", small)?,
            content: if config.content {
                // Of the size of the embeddings it is added to.
                let stdev = 0.05 * (features.content_dim() as f64).powf(-0.5);
                Some(Linear::new(features.content_dim(), dim, stdev, &vb.pp("content"))?)
            } else {
                None
            },
            items: if config.item_embedding {
                // From zero: an item that never occurs in training adds nothing, and is carried by its codes and content.
                Some(vb.get_with_hints((features.len(), dim), "items", Init::Const(0.0))?)
            } else {
                None
            },
            input_norm: RmsNorm::new(dim, &vb.pp("input_norm"))?,
            bias: RelativeBias::new(32, 64, config.heads, false, &vb.pp("bias"))?,
            blocks: blocks("blocks", config.layers, false)?,
            history_norm: RmsNorm::new(dim, &vb.pp("history_norm"))?,
            bridge: Linear::new(dim, dim, (dim as f64).powf(-0.5), &vb.pp("bridge"))?,
            decoder_codes: vb.get_with_hints((rows, dim), "decoder_codes", small)?,
            decoder: blocks("decoder", config.decoder_layers, config.look_back > 1)?,
            decoder_norm: RmsNorm::new(dim, &vb.pp("decoder_norm"))?,
            heads,
            valid: if config.valid_only { Some(Arc::new(Trie::build(features.sids())?)) } else { None },
            config: config.clone(),
            features,
        })
    }

    /// The numbers it was made with.
    pub fn config(&self) -> &RqtConfig {
        &self.config
    }

    /// The catalogue it reads.
    pub fn features(&self) -> &ItemFeatures {
        &self.features
    }

    /// Levels per ID, suffix included.
    pub fn levels(&self) -> usize {
        self.heads.len()
    }

    pub(crate) fn decoder(&self) -> &[Block] {
        &self.decoder
    }

    /// Inputs after each code (codes of all levels, dim), the last norm, and the heads: (codes, dim) each.
    pub(crate) fn decoder_tables(&self) -> (&Tensor, &RmsNorm, &[Tensor]) {
        (&self.decoder_codes, &self.decoder_norm, &self.heads)
    }

    /// The IDs that codes compete within, where they do.
    pub(super) fn valid(&self) -> Option<&Trie> {
        self.valid.as_deref()
    }

    /// Bias of the history.
    pub(crate) fn bias(&self) -> &RelativeBias {
        &self.bias
    }

    /// First row of each level in the tables of codes.
    pub(crate) fn level_starts(&self) -> &[u32] {
        &self.level_starts
    }

    /// What reads a history.
    pub(crate) fn history_parts(&self) -> HistoryParts<'_> {
        HistoryParts { blocks: &self.blocks, bias: &self.bias, norm: &self.history_norm, bridge: &self.bridge }
    }

    /// Vectors of items: codes, content and embedding, summed -> (items, dim).
    ///
    /// The history reads them, and the dense head scores against them.
    fn represent(&self, items: &[Option<ItemIdx>], mode: Mode) -> Result<Tensor> {
        self.represent_codes(items, self.code_rows(items), mode)
    }

    /// The same, the rows of the items' codes given.
    fn represent_codes(&self, items: &[Option<ItemIdx>], code_rows: Vec<u32>, mode: Mode) -> Result<Tensor> {
        let mut x = embedding_sum(&self.codes, code_rows, self.levels())?;
        if let Some(content) = &self.content {
            x = (x + content.forward(&self.features.content(items)?)?)?;
        }
        if let Some(table) = &self.items {
            x = (x + embedding_sum(table, self.item_rows(items, mode), 1)?)?;
        }
        Ok(x)
    }

    /// Vectors of the whole catalogue -> (items, dim).
    fn catalogue(&self, mode: Mode) -> Result<Tensor> {
        let all: Vec<_> = (0..self.features.len() as u32).map(|item| Some(ItemIdx(item))).collect();
        self.represent(&all, mode)
    }

    /// What the dense head scores against, computed once for many requests; `None` without a dense head:
    /// -> (items, dim).
    pub fn dense_table(&self) -> Result<Option<Tensor>> {
        Ok(if self.config.dense_weight > 0.0 { Some(self.catalogue(Mode::Eval)?) } else { None })
    }

    /// Logits of all items from states of [`Rqt::encode`] and the table of [`Rqt::dense_table`]:
    /// (batch, dim), (items, dim) -> (batch, items).
    pub fn dense_scores(&self, states: &Tensor, table: &Tensor) -> Result<Tensor> {
        Ok(project(states, table)?)
    }

    /// What the history reads of the whole catalogue -> (items, dim).
    pub(crate) fn item_inputs(&self) -> Result<Tensor> {
        Ok(self.input_norm.forward(&self.catalogue(Mode::Eval)?)?)
    }

    /// Padded histories and the rows of their items' codes -> (batch * seq, dim); position `t` has seen the items up to
    /// `t`.
    fn history(&self, padded: &Padded, code_rows: Vec<u32>, mode: Mode) -> Result<Tensor> {
        let (seq, dim) = (padded.seq, self.config.dim);
        let x = self.represent_codes(&padded.items, code_rows, mode)?;
        let x = self.input_norm.forward(&x)?.reshape(((), seq, dim))?;
        let mut x = dropout(&x, self.config.dropout, mode)?;
        let bias = self.bias.forward(seq, seq)?;
        for block in &self.blocks {
            x = block.forward(&x, Some(&bias), &Keys::Causal, None, mode)?;
        }
        Ok(self.history_norm.forward(&x)?.reshape(((), dim))?)
    }

    /// Rows of the item table, some left out in training.
    pub(crate) fn item_rows(&self, items: &[Option<ItemIdx>], mode: Mode) -> Vec<u32> {
        let key = match mode {
            Mode::Train(keys) => Some(keys.next_key()),
            Mode::Eval => None,
        };
        let threshold = (f64::from(self.config.item_dropout) * u64::MAX as f64) as u64;
        let dropped = |i: usize| key.is_some_and(|key| mix(key ^ mix(i as u64)) < threshold);
        items.iter().enumerate().map(|(i, item)| item.filter(|_| !dropped(i)).map_or(NO_ROW, |item| item.0)).collect()
    }

    /// Rows of the newest states that the decoder attends to at each place that `padded` asks about, and how many of them
    /// there are: (asked * `look_back`,); `None` where it reads the state alone.
    pub(crate) fn memory_rows(&self, padded: &Padded) -> Option<(Vec<u32>, Keys)> {
        let back = self.config.look_back as u32;
        if back == 1 {
            return None;
        }
        let seen = |at: &u32| at % padded.seq as u32 + 1;
        // A history that is shorter repeats its oldest state behind the mask.
        let rows = padded.positions.iter().flat_map(|at| (0..back).map(move |i| at - i.min(seen(at) - 1))).collect();
        let exist = padded.positions.iter().map(|at| seen(at).min(back)).collect();
        Some((rows, Keys::First(Arc::new(exist))))
    }

    /// States (batch * seq, dim) at the places that `padded` asks about, and what the decoder attends to besides.
    fn asked(&self, states: &Tensor, padded: &Padded) -> Result<Encoded> {
        let pick = |rows: Vec<u32>| -> Result<Tensor> {
            let count = rows.len();
            Ok(states.index_select(&Tensor::from_vec(rows, count, &Device::Cpu)?, 0)?)
        };
        let memory = match self.memory_rows(padded) {
            Some((rows, keys)) => Some((pick(rows)?.reshape(((), self.config.look_back, self.config.dim))?, keys)),
            None => None,
        };
        Ok(Encoded { states: pick(padded.positions.clone())?, memory })
    }

    /// Reads histories, which must not be empty.
    pub fn encode(&self, histories: &[&[ItemIdx]]) -> Result<Encoded> {
        let padded = Padded::of_histories(histories, self.config.history_cap);
        self.asked(&self.history(&padded, self.code_rows(&padded.items), Mode::Eval)?, &padded)
    }

    /// First decoder input of each row: (rows, dim) -> (rows, 1, dim).
    pub(super) fn first_input(&self, states: &Tensor) -> Result<Tensor> {
        Ok(self.bridge.forward(states)?.unsqueeze(1)?)
    }

    /// Decoder input after code `codes[row]` of `level` -> (rows, 1, dim).
    pub(super) fn next_input(&self, level: usize, codes: impl Iterator<Item = u32>) -> Result<Tensor> {
        let ids = codes.map(|code| self.level_starts[level] + code).collect();
        Ok(embedding_sum(&self.decoder_codes, ids, 1)?.unsqueeze(1)?)
    }

    /// Logits of `level` from decoder outputs: (rows, dim) -> (rows, codes of the level).
    pub(super) fn logits(&self, level: usize, x: &Tensor) -> Result<Tensor> {
        Ok(project(&self.decoder_norm.forward(x)?, &self.heads[level])?)
    }

    /// Cross-entropy of the targets among all items by the dense head, where there is one.
    fn dense_loss(&self, states: &Tensor, targets: &[u32], mode: Mode) -> Result<Option<Tensor>> {
        if self.config.dense_weight == 0.0 {
            return Ok(None);
        }
        if self.features.len() > self.config.dense_negatives {
            return Ok(Some((self.sampled_dense_loss(states, targets, mode)? * f64::from(self.config.dense_weight))?));
        }
        let rate = self.config.dense_dropout;
        let table = dropout(&self.catalogue(mode)?, rate, mode)?;
        let states = dropout(states, rate, mode)?;
        let loss = projected_cross_entropy(&states, &table, targets.to_vec(), self.config.label_smoothing)?;
        Ok(Some((loss * f64::from(self.config.dense_weight))?))
    }

    /// The dense loss by uniform draws: each target against the same drawn items, see [`sampled_softmax`].
    fn sampled_dense_loss(&self, states: &Tensor, targets: &[u32], mode: Mode) -> Result<Tensor> {
        let key = match mode {
            Mode::Train(keys) => keys.next_key(),
            // A fixed draw, so that losses of one model are comparable.
            Mode::Eval => 0,
        };
        let drawn = Negatives::uniform(self.features.len(), targets, self.config.dense_negatives, key);
        let rows: Vec<_> = targets.iter().chain(&drawn.items).map(|item| Some(ItemIdx(*item))).collect();
        let rate = self.config.dense_dropout;
        let table = dropout(&self.represent(&rows, mode)?, rate, mode)?;
        let states = dropout(states, rate, mode)?;
        let own = (&states * table.narrow(0, 0, targets.len())?)?.sum(1)?;
        let others = self.dense_scores(&states, &table.narrow(0, targets.len(), drawn.items.len())?)?;
        sampled_softmax(&own, &others, targets, &drawn, LogQ::Corrected)
    }

    /// Mean over targets of the summed cross-entropy of their codes and of the dense loss, each by its weight.
    pub fn loss(&self, windows: &[&Window], mode: Mode) -> Result<Tensor> {
        self.batch_loss(self.prepare(windows)?, mode)
    }

    /// The loss of what [`Rqt::prepare`] made.
    pub fn batch_loss(&self, batch: RqtBatch, mode: Mode) -> Result<Tensor> {
        let (levels, dim, count) = (self.levels(), self.config.dim, batch.padded.targets.len());
        let states = self.history(&batch.padded, batch.history_codes, mode)?;
        let Encoded { states, memory } = self.asked(&states, &batch.padded)?;
        let mut loss = self.dense_loss(&states, &batch.padded.targets, mode)?;
        if self.config.code_weight == 0.0 {
            return loss.ok_or(Error::NoData { what: "losses of a weight above 0" });
        }

        // The decoder reads the state, then the codes but the last; output `l` predicts code `l`. Each level has rows
        // of its own in the table, so an embedding also says which level it belongs to.
        let start = self.bridge.forward(&states)?.unsqueeze(1)?;
        let x = if levels > 1 {
            let codes = embedding_sum(&self.decoder_codes, batch.inputs, 1)?.reshape((count, levels - 1, dim))?;
            Tensor::cat(&[&start, &codes], 1)?
        } else {
            start
        };
        let mut x = dropout(&x, self.config.dropout, mode)?;
        for block in &self.decoder {
            let kv = memory.as_ref().map(|(states, _)| block.memory_keys_values(states)).transpose()?.flatten();
            let memory = kv.as_ref().zip(memory.as_ref()).map(|(kv, (_, keys))| (kv, keys));
            x = block.forward(&x, None, &Keys::Causal, memory, mode)?;
        }
        for (level, targets) in batch.levels.into_iter().enumerate() {
            let logits = self.logits(level, &x.narrow(1, level, 1)?.squeeze(1)?.contiguous()?)?;
            let smoothing = self.config.label_smoothing;
            let mut term = match targets.ruled_out {
                Some(mask) => cross_entropy_among(&logits, targets.codes, mask, smoothing)?,
                None => cross_entropy(&logits, targets.codes, smoothing)?,
            };
            let weight = self.config.code_weight * self.config.level_weights.get(level).copied().unwrap_or(1.0);
            if weight != 1.0 {
                term = (term * f64::from(weight))?;
            }
            loss = Some(match loss {
                Some(loss) => (loss + term)?,
                None => term,
            });
        }
        loss.ok_or(Error::NoData { what: "levels" })
    }
}
