//! The two transformers joined, and the teacher-forced loss.

use super::RqtConfig;
use crate::cuda::HistoryParts;
use crate::data::{Negatives, Window, preparing};
use crate::items::ItemFeatures;
use crate::loss::{LogQ, cross_entropy, projected_cross_entropy, sampled_softmax};
use crate::nn::{Block, Keys, Linear, NO_ROW, RelativeBias, RmsNorm, dropout, embedding_sum, project};
use crate::{Error, Result};
use beam::Trie;
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use candle_nn::init::Init;
use rqvae::{ItemIdx, Mode, mix};
use std::sync::Arc;

/// Added to the logit of a code that is ruled out; its exponential is 0 in f32.
const RULED_OUT: f32 = -1e4;

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
        let levels = self.levels();
        let mut ids = Vec::with_capacity(items.len() * levels);
        for item in items {
            match item {
                Some(item) => {
                    ids.extend(
                        self.features.codes(*item).iter().zip(&self.level_starts).map(|(c, s)| s + u32::from(*c)),
                    );
                }
                None => ids.extend(std::iter::repeat_n(NO_ROW, levels)),
            }
        }
        let mut x = embedding_sum(&self.codes, ids, levels)?;
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

    /// Padded histories, `seq` items each -> (batch, seq, dim); position `t` has seen the items up to `t`.
    fn history(&self, items: &[Option<ItemIdx>], seq: usize, mode: Mode) -> Result<Tensor> {
        let x = self.input_norm.forward(&self.represent(items, mode)?)?.reshape(((), seq, self.config.dim))?;
        let mut x = dropout(&x, self.config.dropout, mode)?;
        let bias = self.bias.forward(seq, seq)?;
        for block in &self.blocks {
            x = block.forward(&x, Some(&bias), &Keys::Causal, None, mode)?;
        }
        Ok(self.history_norm.forward(&x)?)
    }

    /// Rows of the item table, some left out in training.
    fn item_rows(&self, items: &[Option<ItemIdx>], mode: Mode) -> Vec<u32> {
        let key = match mode {
            Mode::Train(keys) => Some(keys.next_key()),
            Mode::Eval => None,
        };
        let threshold = (f64::from(self.config.item_dropout) * u64::MAX as f64) as u64;
        let dropped = |i: usize| key.is_some_and(|key| mix(key ^ mix(i as u64)) < threshold);
        items.iter().enumerate().map(|(i, item)| item.filter(|_| !dropped(i)).map_or(NO_ROW, |item| item.0)).collect()
    }

    /// What the decoder attends to besides its input: rows of `states` (rows, dim) at `positions`, which count `seen`
    /// states of their history each.
    fn memory(&self, states: &Tensor, positions: &[u32], seen: &[usize]) -> Result<Option<(Tensor, Keys)>> {
        let back = self.config.look_back;
        if back == 1 {
            return Ok(None);
        }
        // A history that is shorter repeats its oldest state behind the mask.
        let rows =
            positions.iter().zip(seen).flat_map(|(at, seen)| (0..back).map(move |i| at - i.min(seen - 1) as u32));
        let rows = Tensor::from_vec(rows.collect(), positions.len() * back, &Device::Cpu)?;
        let memory = states.index_select(&rows, 0)?.reshape((positions.len(), back, self.config.dim))?;
        let exist = seen.iter().map(|seen| back.min(*seen) as u32).collect();
        Ok(Some((memory, Keys::First(Arc::new(exist)))))
    }

    /// Reads histories, which must not be empty.
    pub fn encode(&self, histories: &[&[ItemIdx]]) -> Result<Encoded> {
        let capped: Vec<_> = histories.iter().map(|h| &h[h.len().saturating_sub(self.config.history_cap)..]).collect();
        let seq = capped.iter().map(|h| h.len()).max().unwrap_or(1).max(1);
        let mut items = vec![None; capped.len() * seq];
        for (row, history) in items.chunks_exact_mut(seq).zip(&capped) {
            for (slot, item) in row.iter_mut().zip(*history) {
                *slot = Some(*item);
            }
        }
        let states = self.history(&items, seq, Mode::Eval)?.reshape(((), self.config.dim))?;
        let seen: Vec<usize> = capped.iter().map(|h| h.len().max(1)).collect();
        let last: Vec<u32> = seen.iter().enumerate().map(|(i, seen)| (i * seq + seen - 1) as u32).collect();
        let memory = self.memory(&states, &last, &seen)?;
        let states = states.index_select(&Tensor::from_vec(last, capped.len(), &Device::Cpu)?, 0)?;
        Ok(Encoded { states, memory })
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

    /// What is added to the logits of `level` so that codes which lead from the targets' prefixes to no item are out:
    /// -> (targets, codes of the level).
    fn ruled_out(&self, trie: &Trie, level: usize, targets: &[ItemIdx]) -> Result<Tensor> {
        let width = self.features.spec().codes_at(level) as usize;
        let mask = preparing(|| {
            let mut mask = vec![RULED_OUT; targets.len() * width];
            for (row, target) in mask.chunks_exact_mut(width).zip(targets) {
                if let Some(node) = trie.find(&self.features.codes(*target)[..level]) {
                    trie.children(level, node).0.iter().for_each(|code| row[usize::from(code)] = 0.0);
                }
            }
            mask
        });
        Ok(Tensor::from_vec(mask, (targets.len(), width), &Device::Cpu)?)
    }

    /// Cross-entropy of the targets among all items by the dense head, where there is one.
    fn dense_loss(&self, states: &Tensor, targets: &[ItemIdx], mode: Mode) -> Result<Option<Tensor>> {
        if self.config.dense_weight == 0.0 {
            return Ok(None);
        }
        if self.features.len() > self.config.dense_negatives {
            return Ok(Some((self.sampled_dense_loss(states, targets, mode)? * f64::from(self.config.dense_weight))?));
        }
        let rate = self.config.dense_dropout;
        let table = dropout(&self.catalogue(mode)?, rate, mode)?;
        let rows = targets.iter().map(|target| target.0).collect();
        let states = dropout(states, rate, mode)?;
        let loss = projected_cross_entropy(&states, &table, rows, self.config.label_smoothing)?;
        Ok(Some((loss * f64::from(self.config.dense_weight))?))
    }

    /// The dense loss by uniform draws: each target against the same drawn items, see [`sampled_softmax`].
    fn sampled_dense_loss(&self, states: &Tensor, targets: &[ItemIdx], mode: Mode) -> Result<Tensor> {
        let key = match mode {
            Mode::Train(keys) => keys.next_key(),
            // A fixed draw, so that losses of one model are comparable.
            Mode::Eval => 0,
        };
        let ids: Vec<u32> = targets.iter().map(|item| item.0).collect();
        let drawn = preparing(|| Negatives::uniform(self.features.len(), &ids, self.config.dense_negatives, key));
        let rows: Vec<_> = ids.iter().chain(&drawn.items).map(|item| Some(ItemIdx(*item))).collect();
        let rate = self.config.dense_dropout;
        let table = dropout(&self.represent(&rows, mode)?, rate, mode)?;
        let states = dropout(states, rate, mode)?;
        let own = (&states * table.narrow(0, 0, ids.len())?)?.sum(1)?;
        let others = self.dense_scores(&states, &table.narrow(0, ids.len(), drawn.items.len())?)?;
        sampled_softmax(&own, &others, &ids, &drawn, LogQ::Corrected)
    }

    /// Mean over targets of the summed cross-entropy of their codes and of the dense loss, each by its weight.
    pub fn loss(&self, windows: &[&Window], mode: Mode) -> Result<Tensor> {
        let (levels, dim) = (self.levels(), self.config.dim);
        let seq = windows.iter().map(|w| w.items.len() - 1).max().unwrap_or(0);
        let mut items = vec![None; windows.len() * seq];
        let (mut positions, mut seen, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        preparing(|| {
            for (i, window) in windows.iter().enumerate() {
                for (t, pair) in window.items.windows(2).enumerate() {
                    items[i * seq + t] = Some(pair[0]);
                    if t >= window.first_target {
                        positions.push((i * seq + t) as u32);
                        seen.push(t + 1);
                        targets.push(pair[1]);
                    }
                }
            }
        });
        if targets.is_empty() {
            return Err(Error::NoData { what: "training targets" });
        }
        let states = self.history(&items, seq, mode)?.reshape(((), dim))?;
        let count = targets.len();
        let memory = self.memory(&states, &positions, &seen)?;
        let states = states.index_select(&Tensor::from_vec(positions, count, &Device::Cpu)?, 0)?;
        let mut loss = self.dense_loss(&states, &targets, mode)?;
        if self.config.code_weight == 0.0 {
            return loss.ok_or(Error::NoData { what: "losses of a weight above 0" });
        }

        // The decoder reads the state, then the codes but the last; output `l` predicts code `l`. Each level has rows
        // of its own in the table, so an embedding also says which level it belongs to.
        let mut ids = Vec::with_capacity(count * (levels - 1));
        preparing(|| {
            for target in &targets {
                let codes = &self.features.codes(*target)[..levels - 1];
                ids.extend(codes.iter().zip(&self.level_starts).map(|(c, s)| s + u32::from(*c)));
            }
        });
        let start = self.bridge.forward(&states)?.unsqueeze(1)?;
        let x = if levels > 1 {
            let codes = embedding_sum(&self.decoder_codes, ids, 1)?.reshape((count, levels - 1, dim))?;
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
        for level in 0..levels {
            let mut logits = self.logits(level, &x.narrow(1, level, 1)?.squeeze(1)?.contiguous()?)?;
            if let Some(trie) = &self.valid {
                logits = (logits + self.ruled_out(trie, level, &targets)?)?;
            }
            let code = |target: &ItemIdx| u32::from(self.features.codes(*target)[level]);
            let codes = preparing(|| targets.iter().map(code).collect());
            let mut term = cross_entropy(&logits, codes, self.config.label_smoothing)?;
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
