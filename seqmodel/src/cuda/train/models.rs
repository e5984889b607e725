//! The models on a tape: the loss of a batch as `Tiger::batch_loss` and `Rqt::batch_loss` take it on the processor, which
//! stay the reference. The same draws in the same order, so that a step differs by rounding alone.

use super::block::TapeBlock;
use super::params::DeviceParameters;
use super::tape::{Node, Places, Tape};
use crate::Result;
use crate::data::Negatives;
use crate::nn::{Drop, Keys, NO_ROW, with_values};
use crate::rqt::{Rqt, RqtBatch, RqtConfig};
use crate::tiger::{Tiger, TigerBatch};
use beam::cuda::{Device, Memory};
use rqvae::{ItemIdx, Mode};
use std::sync::Arc;

/// TIGER's weights by their place on a device.
pub(super) struct TapeTiger {
    model: Tiger,
    tokens: Node,
    encoder_bias: Node,
    encoder: Vec<TapeBlock>,
    encoder_norm: Node,
    decoder_bias: Node,
    decoder: Vec<TapeBlock>,
    decoder_norm: Node,
}

impl TapeTiger {
    pub(super) fn new(model: &Tiger, params: &DeviceParameters) -> Result<Self> {
        let shape = model.config().attention();
        let stack = |name: &str, count, memory| {
            (0..count).map(|i| TapeBlock::new(params, &format!("{name}.{i}"), shape, memory)).collect::<Result<_>>()
        };
        Ok(Self {
            tokens: params.node("tokens")?,
            encoder_bias: params.node("encoder_bias.weight")?,
            encoder: stack("encoder", model.config().encoder_layers, false)?,
            encoder_norm: params.node("encoder_norm.weight")?,
            decoder_bias: params.node("decoder_bias.weight")?,
            decoder: stack("decoder", model.config().decoder_layers, true)?,
            decoder_norm: params.node("decoder_norm.weight")?,
            model: model.clone(),
        })
    }

    pub(super) fn record(&self, tape: &mut Tape, batch: &TigerBatch, weight: f32, mode: Mode) -> Result<()> {
        let (config, levels) = (self.model.config(), self.model.levels());
        let rate = config.dropout;
        let (tokens, keys, seq) = (&batch.histories.tokens, &batch.histories.keys, batch.histories.seq);
        let rows = tokens.len() / seq;
        let x = tape.rows(self.tokens, tokens, 1);
        let mut x = tape.dropout(x, Drop::new(rate, mode));
        let bias = tape.bias(self.encoder_bias, &self.model.encoder_bias().buckets(seq, seq));
        for block in &self.encoder {
            x = block.forward(tape, x, rows, Some(bias), keys, None, mode)?;
        }
        let x = tape.norm(x, self.encoder_norm)?;
        let memory = tape.dropout(x, Drop::new(rate, mode));

        let x = tape.rows(self.tokens, &batch.inputs, 1);
        let mut x = tape.dropout(x, Drop::new(rate, mode));
        let bias = tape.bias(self.decoder_bias, &self.model.decoder_bias().buckets(levels, levels));
        for block in &self.decoder {
            let kv = block.memory_keys_values(tape, memory);
            x = block.forward(tape, x, rows, Some(bias), &Keys::Causal, kv.map(|kv| (kv, keys)), mode)?;
        }
        let x = tape.dropout(x, Drop::new(rate, mode));
        let x = tape.norm(x, self.decoder_norm)?;
        // T5 scales by dim^-1/2 where the output is tied to the embeddings.
        let x = tape.scale(x, (config.dim as f32).powf(-0.5));
        for (level, targets) in batch.targets.iter().enumerate() {
            let codes = self.model.level_rows(level);
            let logits = tape.logits(x.each(level, levels), self.tokens.slice(codes.start, codes.len()));
            tape.cross_entropy(logits, targets, None, config.label_smoothing, weight);
        }
        Ok(())
    }
}

/// The RQ-Transformer's weights by their place on a device, and the catalogue's content.
pub(super) struct TapeRqt {
    model: Rqt,
    codes: Node,
    /// Content of all items, and its projection.
    content: Option<(Memory, Node, Node)>,
    items: Option<Node>,
    input_norm: Node,
    bias: Node,
    blocks: Vec<TapeBlock>,
    history_norm: Node,
    bridge: Node,
    decoder_codes: Node,
    decoder: Vec<TapeBlock>,
    decoder_norm: Node,
    heads: Vec<Node>,
    /// Codes of the whole catalogue, (items * levels,), and where each goes.
    catalogue_codes: Vec<u32>,
    catalogue_places: Places,
}

impl TapeRqt {
    /// The model whose parameters begin with `prefix`.
    pub(super) fn new(model: &Rqt, prefix: &str, params: &DeviceParameters, device: &Arc<dyn Device>) -> Result<Self> {
        let config = model.config();
        let shape = config.attention();
        let node = |name: &str| params.node(&format!("{prefix}{name}"));
        let stack = |name: &str, count, memory| {
            let block = |i| TapeBlock::new(params, &format!("{prefix}{name}.{i}"), shape, memory);
            (0..count).map(block).collect::<Result<_>>()
        };
        let content = if config.content {
            let features = model.features();
            let (rows, cols) = (features.len(), features.content_dim());
            let content = features.content(&all_items(rows))?;
            let memory = with_values(&content, |values| Memory::with(device, values))??;
            let table = Node { at: memory.address(), grad: 0, rows, cols, stride: cols };
            Some((memory, table, node("content.weight")?))
        } else {
            None
        };
        let catalogue_codes = model.code_rows(&all_items(model.features().len()));
        Ok(Self {
            codes: node("codes")?,
            content,
            items: if config.item_embedding { Some(node("items")?) } else { None },
            input_norm: node("input_norm.weight")?,
            bias: node("bias.weight")?,
            blocks: stack("blocks", config.layers, false)?,
            history_norm: node("history_norm.weight")?,
            bridge: node("bridge.weight")?,
            decoder_codes: node("decoder_codes")?,
            decoder: stack("decoder", config.decoder_layers, config.look_back > 1)?,
            decoder_norm: node("decoder_norm.weight")?,
            heads: (0..model.levels()).map(|level| node(&format!("heads.{level}"))).collect::<Result<_>>()?,
            catalogue_places: Places::of(&catalogue_codes, model.levels()),
            catalogue_codes,
            model: model.clone(),
        })
    }

    /// Vectors of items by the rows of their codes: -> (items, dim).
    fn represent(&self, tape: &mut Tape, items: &[Option<ItemIdx>], code_rows: &[u32], mode: Mode) -> Node {
        let codes = tape.rows(self.codes, code_rows, self.model.levels());
        self.add_content(tape, codes, items, mode)
    }

    /// Vectors of the whole catalogue: -> (items, dim).
    fn catalogue(&self, tape: &mut Tape, mode: Mode) -> Node {
        let items = all_items(self.model.features().len());
        let codes = tape.known_rows(self.codes, &self.catalogue_codes, self.model.levels(), &self.catalogue_places);
        self.add_content(tape, codes, &items, mode)
    }

    /// Content and embeddings of `items` on top of their codes `x`.
    fn add_content(&self, tape: &mut Tape, x: Node, items: &[Option<ItemIdx>], mode: Mode) -> Node {
        if let Some((_, table, weight)) = &self.content {
            // The whole catalogue is read where it lies.
            let content = if items.len() == table.rows && is_catalogue(items) {
                *table
            } else {
                let rows: Vec<u32> = items.iter().map(|item| item.map_or(NO_ROW, |item| item.0)).collect();
                tape.rows(*table, &rows, 1)
            };
            let content = tape.linear(content, *weight);
            tape.add(x, content);
        }
        if let Some(table) = self.items {
            let rows = self.model.item_rows(items, mode);
            let embedded = tape.rows(table, &rows, 1);
            tape.add(x, embedded);
        }
        x
    }

    pub(super) fn record(&self, tape: &mut Tape, batch: &RqtBatch, weight: f32, mode: Mode) -> Result<()> {
        let (config, levels) = (self.model.config(), self.model.levels());
        let padded = &batch.padded;
        let (seq, count) = (padded.seq, padded.targets.len());
        let rows = padded.items.len() / seq;
        let x = self.represent(tape, &padded.items, &batch.history_codes, mode);
        let x = tape.norm(x, self.input_norm)?;
        let mut x = tape.dropout(x, Drop::new(config.dropout, mode));
        let bias = tape.bias(self.bias, &self.model.bias().buckets(seq, seq));
        for block in &self.blocks {
            x = block.forward(tape, x, rows, Some(bias), &Keys::Causal, None, mode)?;
        }
        let history = tape.norm(x, self.history_norm)?;
        let memory = self.model.memory_rows(padded).map(|(rows, keys)| (tape.rows(history, &rows, 1), keys));
        let states = tape.rows(history, &padded.positions, 1);
        self.dense_loss(tape, states, &padded.targets, weight, mode);
        if config.code_weight == 0.0 {
            return Ok(());
        }

        let x = tape.node(count * levels, config.dim);
        tape.linear_into(states, self.bridge, x.each(0, levels));
        for level in 1..levels {
            let codes: Vec<u32> = batch.inputs.iter().skip(level - 1).step_by(levels - 1).copied().collect();
            tape.rows_into(self.decoder_codes, &codes, 1, x.each(level, levels));
        }
        let mut x = tape.dropout(x, Drop::new(config.dropout, mode));
        for block in &self.decoder {
            let kv = memory.as_ref().and_then(|(states, _)| block.memory_keys_values(tape, *states));
            let memory = kv.zip(memory.as_ref()).map(|(kv, (_, keys))| (kv, keys));
            x = block.forward(tape, x, count, None, &Keys::Causal, memory, mode)?;
        }
        let x = tape.norm(x, self.decoder_norm)?;
        for (level, targets) in batch.levels.iter().enumerate() {
            let logits = tape.logits(x.each(level, levels), self.heads[level]);
            let weight = weight * config.code_weight * config.level_weights.get(level).copied().unwrap_or(1.0);
            tape.cross_entropy(logits, &targets.codes, targets.ruled_out.as_deref(), config.label_smoothing, weight);
        }
        Ok(())
    }

    /// The next item among all, or among itself and what was drawn.
    fn dense_loss(&self, tape: &mut Tape, states: Node, targets: &[u32], weight: f32, mode: Mode) {
        let RqtConfig { dense_weight, dense_dropout: rate, dense_negatives, label_smoothing, .. } =
            *self.model.config();
        let items = self.model.features().len();
        if dense_weight == 0.0 {
            return;
        }
        if items <= dense_negatives {
            let table = self.catalogue(tape, mode);
            let table = tape.dropout(table, Drop::new(rate, mode));
            let states = tape.dropout(states, Drop::new(rate, mode));
            let logits = tape.logits(states, table);
            tape.cross_entropy(logits, targets, None, label_smoothing, weight * dense_weight);
            return;
        }
        let key = match mode {
            Mode::Train(keys) => keys.next_key(),
            Mode::Eval => 0,
        };
        let drawn = Negatives::uniform(items, targets, dense_negatives, key);
        let rows: Vec<_> = targets.iter().chain(&drawn.items).map(|item| Some(ItemIdx(*item))).collect();
        let table = self.represent(tape, &rows, &self.model.code_rows(&rows), mode);
        let table = tape.dropout(table, Drop::new(rate, mode));
        let states = tape.dropout(states, Drop::new(rate, mode));
        tape.sampled_softmax(states, table, targets, &drawn, weight * dense_weight);
    }
}

fn all_items(count: usize) -> Vec<Option<ItemIdx>> {
    (0..count as u32).map(|item| Some(ItemIdx(item))).collect()
}

fn is_catalogue(items: &[Option<ItemIdx>]) -> bool {
    items.iter().enumerate().all(|(at, item)| item.is_some_and(|item| item.0 as usize == at))
}
