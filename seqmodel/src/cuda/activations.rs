//! Sizes of programs, and where their activations are.

use super::model::{DeviceModel, Look, SEQ_STEP};
use super::weights::{DeviceBlock, STEP};
use beam::cuda::{Plan, Region, bucket};

/// Requests and positions that a program has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Size {
    pub(super) batch: usize,
    pub(super) seq: usize,
}

impl Size {
    /// The smallest of few sizes for so many requests of so many positions at most.
    pub(super) fn of(requests: usize, positions: usize) -> Self {
        Self { batch: bucket(requests), seq: bucket(positions.div_ceil(SEQ_STEP)) * SEQ_STEP }
    }
}

/// Where activations are.
#[derive(Debug, Clone)]
pub(super) struct Activations {
    pub(super) plan: Plan,
    /// Rows of `inputs`: (batch, seq).
    pub(super) ids: Region,
    /// Positions there are: (batch,).
    pub(super) lengths: Region,
    /// Rows of states that the decoder reads: (batch,) the newest, (batch, look back) the memory, and how many.
    pub(super) newest: Region,
    pub(super) back: Region,
    pub(super) back_lengths: Region,
    /// (batch * seq, dim) f32.
    pub(super) states: Region,
    pub(super) queries: Region,
    /// Keys, then transposed values.
    pub(super) keys_values: Region,
    /// Rows a norm has gone over, where products are left to a library.
    pub(super) normed: Region,
    pub(super) mixed: Region,
    pub(super) hidden: Region,
    pub(super) memory: Region,
    pub(super) x: Region,
    /// Per block of the decoder and level: (rows, 2 * width).
    pub(super) cache: Region,
    /// Of guidance: (batch, items in steps of 8).
    pub(super) item_scores: Region,
}

impl Activations {
    /// `library_rows` as [`Device::library_rows`] has it.
    pub(super) fn new(
        model: &DeviceModel,
        size: Size,
        widths: &[usize],
        items: usize,
        library_rows: Option<u32>,
    ) -> Self {
        let mut plan = Plan::default();
        let (number, dim) = (model.numbers.bytes(), model.dim_pad());
        let rows = size.batch * size.seq;
        let beams = size.batch * widths.iter().copied().max().unwrap_or(1);
        let most = rows.max(beams);
        let width = model.encoder.iter().chain(&model.decoder).map(|block| block.heads.width()).max().unwrap_or(0);
        let apart = library_rows.is_some_and(|least| most >= least as usize);
        let hidden = |block: &&DeviceBlock| if block.is_fused() && !apart { 0 } else { block.hidden };
        let hidden = model.encoder.iter().chain(&model.decoder).map(|block| hidden(&block)).max().unwrap_or(0);
        let seq_pad = size.seq.next_multiple_of(STEP);
        let back = model.back();
        let memory_seq = model.memory_seq(size);
        Self {
            ids: plan.take("ids", rows, 4),
            lengths: plan.take("lengths", size.batch, 4),
            newest: plan.take("newest", size.batch, 4),
            back: plan.take("look back", size.batch * back, 4),
            back_lengths: plan.take("look back lengths", size.batch, 4),
            states: plan.take("states", rows * dim, 4),
            queries: plan.take("queries", most * width, number),
            keys_values: plan.take("keys and values", 2 * size.batch * width * seq_pad, number),
            normed: plan.take("normed", if apart { most * dim } else { 0 }, number),
            mixed: plan.take("mixed", most * width, number),
            hidden: plan.take("hidden", most * hidden, number),
            memory: plan.take(
                "memory",
                model.decoder.len() * 2 * size.batch * width * memory_seq.next_multiple_of(STEP),
                number,
            ),
            x: plan.take("x", beams * dim, 4),
            cache: plan.take("cache", model.decoder.len() * widths.len() * beams * 2 * width, number),
            item_scores: plan.take("item scores", size.batch * items, 4),
            plan,
        }
    }
}

impl DeviceModel {
    /// Newest states that the decoder attends to; 0 where it attends to all or to none.
    pub(super) fn back(&self) -> usize {
        match (self.look, &self.memory) {
            (Look::Back(back), Some(_)) => back,
            _ => 0,
        }
    }

    /// Keys of the decoder's memory.
    pub(super) fn memory_seq(&self, size: Size) -> usize {
        match (self.look, &self.memory) {
            (_, None) => 0,
            (Look::All, _) => size.seq,
            (Look::Back(back), _) => back,
        }
    }
}
