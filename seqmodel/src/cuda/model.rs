//! A model on a device: how a history becomes states, and what the decoder reads.

use super::weights::{DeviceBlock, Host, Matrix, Packer, STEP, memory_projection, scales};
use crate::Result;
use crate::data::History;
use crate::nn::{Block, RelativeBias, RmsNorm};
use crate::rqt::Rqt;
use crate::tiger::Tiger;
use beam::cuda::{Device, Memory, Numbers};
use candle_core::Tensor;
use std::sync::Arc;

/// Positions of a history are padded to multiples of this.
pub(super) const SEQ_STEP: usize = 16;

/// A bias by distance: (heads, distances), distance 0 at `zero`.
pub(super) struct DeviceBias {
    pub(super) table: Memory,
    pub(super) distances: usize,
    pub(super) zero: usize,
}

impl DeviceBias {
    fn new(bias: &RelativeBias, left: usize, right: usize, device: &Arc<dyn Device>) -> Result<Self> {
        let table = Memory::with(device, &bias.by_distance(left, right)?)?;
        Ok(Self { table, distances: left + right + 1, zero: left })
    }
}

/// What the decoder starts from.
pub(super) enum First {
    /// A row of the table of codes.
    Row(u32),
    /// A product of the state after the newest position.
    State(Matrix),
}

/// What the decoder attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// All positions.
    All,
    /// So many of the newest, newest first.
    Back(usize),
}

/// Weights and tables.
pub(super) struct DeviceModel {
    pub(super) numbers: Numbers,
    pub(super) dim: usize,
    /// Inputs of positions: (.., `dim` in steps of 32) f32.
    pub(super) inputs: Memory,
    pub(super) encoder: Vec<DeviceBlock>,
    pub(super) encoder_bias: DeviceBias,
    pub(super) causal: bool,
    pub(super) longest: usize,
    pub(super) look: Look,
    /// Keys and values of all decoder blocks.
    pub(super) memory: Option<Matrix>,
    pub(super) first: First,
    pub(super) decoder: Vec<DeviceBlock>,
    pub(super) decoder_bias: Option<DeviceBias>,
    /// Inputs after each code, level by level.
    pub(super) codes: Memory,
    pub(super) level_starts: Vec<u32>,
    /// Codes of each level.
    pub(super) level_codes: Vec<usize>,
    pub(super) heads: Vec<Matrix>,
    /// Of the norm behind the history.
    state_scales: Vec<f32>,
    reads: Reads,
}

/// What items are scored against for guidance, on a device.
pub(super) struct ItemTable {
    /// (items in steps of 8, dim).
    pub(super) matrix: Matrix,
    pub(super) items: usize,
}

/// Which rows of `inputs` a history is.
enum Reads {
    Tokens(Box<Tiger>),
    Items { cap: usize },
}

impl DeviceModel {
    pub(super) fn dim_pad(&self) -> usize {
        self.dim.next_multiple_of(STEP)
    }

    /// Rows of `inputs`, oldest first.
    pub(super) fn read(&self, history: History) -> Vec<u32> {
        match &self.reads {
            Reads::Tokens(tiger) => tiger.history_tokens(history),
            Reads::Items { cap } => {
                let items = history.items;
                items[items.len().saturating_sub(*cap)..].iter().map(|item| item.0).collect()
            }
        }
    }

    /// A table of items, (items, dim), for the states of the newest positions, the norm in front folded in.
    pub(super) fn item_table(&self, table: &Tensor, device: &Arc<dyn Device>) -> Result<ItemTable> {
        let host = Host::new(table)?;
        let items = host.rows();
        let packer = Packer { device, numbers: self.numbers };
        let matrix = packer.matrix(items, self.dim, |item, i| host.at(item, i) * self.state_scales[i])?;
        Ok(ItemTable { matrix, items })
    }

    pub(super) fn tiger(model: &Tiger, device: &Arc<dyn Device>, numbers: Numbers) -> Result<Self> {
        let packer = Packer { device, numbers };
        let (dim, levels) = (model.config().dim, model.levels());
        let tokens = Host::new(model.tokens())?;
        let (encoder_norm, decoder_norm) = model.norms();
        let reach = model.longest().next_multiple_of(SEQ_STEP);
        let scale = (dim as f32).powf(-0.5);
        let head_scales = scales(decoder_norm)?;
        let head = |level: usize| {
            let rows = model.level_rows(level);
            packer.matrix(rows.len(), dim, |code, i| tokens.at(rows.start + code, i) * head_scales[i] * scale)
        };
        Ok(Self {
            numbers,
            dim,
            inputs: packer.table(&tokens)?,
            encoder: blocks(model.encoder(), &packer)?,
            encoder_bias: DeviceBias::new(model.encoder_bias(), reach, reach, device)?,
            causal: false,
            longest: model.longest(),
            look: Look::All,
            memory: memory_projection(&packer, model.decoder(), encoder_norm)?,
            first: First::Row(model.start_row() as u32),
            decoder: blocks(model.decoder(), &packer)?,
            decoder_bias: Some(DeviceBias::new(model.decoder_bias(), levels, 0, device)?),
            codes: packer.table(&tokens)?,
            level_starts: (0..levels).map(|level| model.level_rows(level).start as u32).collect(),
            level_codes: (0..levels).map(|level| model.level_rows(level).len()).collect(),
            heads: (0..levels).map(head).collect::<Result<_>>()?,
            state_scales: scales(encoder_norm)?,
            reads: Reads::Tokens(Box::new(model.clone())),
        })
    }

    pub(super) fn rqt(model: &Rqt, device: &Arc<dyn Device>, numbers: Numbers) -> Result<Self> {
        let packer = Packer { device, numbers };
        let config = model.config();
        let dim = config.dim;
        let parts = model.history_parts();
        let (codes, decoder_norm, heads) = model.decoder_tables();
        let head_scales = scales(decoder_norm)?;
        let state_scales = scales(parts.norm)?;
        let bridge = Host::new(parts.bridge.weight())?;
        let reach = config.history_cap.next_multiple_of(SEQ_STEP);
        let head = |head: &Tensor| {
            let host = Host::new(head)?;
            packer.matrix(host.rows(), dim, |code, i| host.at(code, i) * head_scales[i])
        };
        let look = if config.look_back > 1 { memory_projection(&packer, model.decoder(), parts.norm)? } else { None };
        Ok(Self {
            numbers,
            dim,
            inputs: packer.table(&Host::new(&model.item_inputs()?)?)?,
            encoder: blocks(parts.blocks, &packer)?,
            encoder_bias: DeviceBias::new(parts.bias, reach, 0, device)?,
            causal: true,
            longest: config.history_cap,
            look: Look::Back(config.look_back),
            memory: look,
            first: First::State(packer.matrix(dim.next_multiple_of(STEP), dim, |o, i| {
                if o < dim { bridge.at(o, i) * state_scales[i] } else { 0.0 }
            })?),
            decoder: blocks(model.decoder(), &packer)?,
            decoder_bias: None,
            codes: packer.table(&Host::new(codes)?)?,
            level_starts: model.level_starts().to_vec(),
            level_codes: heads.iter().map(|head| head.dim(0)).collect::<candle_core::Result<_>>()?,
            heads: heads.iter().map(head).collect::<Result<_>>()?,
            state_scales: state_scales.clone(),
            reads: Reads::Items { cap: config.history_cap },
        })
    }
}

fn blocks(blocks: &[Block], packer: &Packer) -> Result<Vec<DeviceBlock>> {
    blocks.iter().map(|block| DeviceBlock::new(block, packer)).collect()
}

/// What reads the history of an RQ-Transformer.
pub(crate) struct HistoryParts<'a> {
    pub(crate) blocks: &'a [Block],
    pub(crate) bias: &'a RelativeBias,
    pub(crate) norm: &'a RmsNorm,
    pub(crate) bridge: &'a crate::nn::Linear,
}
