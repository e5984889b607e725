//! Where everything of a search lies in a device's memory.

use super::args::{MAX_LEVELS, MaskHeader};
use super::plan::{Plan, Region};
use super::search::{MAX_PARTS, parts};
use crate::BeamConfig;
use crate::math::TILE;

/// Words of masks' lists that there is room for: so many, and so many more a request.
const POOL: (usize, usize) = (1 << 14, 1 << 11);

/// Beams of one level in device memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Level {
    pub(super) nodes: Region,
    pub(super) scores: Region,
    pub(super) ancestors: Region,
    pub(super) path: Region,
    pub(super) counts: Region,
}

/// Where everything of a search is.
#[derive(Debug, Clone)]
pub struct Layout {
    pub(super) plan: Plan,
    pub(super) masks: Region,
    pub(super) pool: Region,
    pub(super) levels: Vec<Level>,
    pub(super) keys: Region,
    pub(super) key_counts: Region,
    pub(super) logits: Region,
    pub(super) partials: Region,
    pub(super) found: Region,
    pub(super) items: Region,
    pub(super) item_scores: Region,
    pub(super) item_codes: Region,
    /// Of guidance, where there is some.
    pub(super) log_sums: Region,
    pub(super) best: Region,
}

impl Layout {
    /// For `batch` requests over IDs with so many `codes` per level, and `guide` numbers of guidance each.
    pub fn new(batch: usize, codes: &[usize], config: &BeamConfig, guide: usize) -> Self {
        let mut plan = Plan::default();
        let masks = plan.take("masks", batch, size_of::<MaskHeader>());
        let pool = plan.take("lists", POOL.0 + batch * POOL.1, 4);
        let widths: Vec<usize> = std::iter::once(1).chain(config.widths.iter().copied()).collect();
        let level = |width: &usize| {
            let rows = batch * width;
            Level {
                nodes: plan.take("nodes", rows, 4),
                scores: plan.take("scores", rows, 4),
                ancestors: plan.take("ancestors", rows * MAX_LEVELS, 4),
                path: plan.take("path", rows * MAX_LEVELS, 2),
                counts: plan.take("counts", batch, 4),
            }
        };
        let levels = widths.iter().map(level).collect();
        let most = |of: &dyn Fn(usize) -> usize| (0..codes.len()).map(of).max().unwrap_or(0);
        let keys = plan.take("keys", batch * most(&|l| parts(widths[l], codes[l]) * widths[l + 1]), 8);
        let key_counts = plan.take("key counts", batch * MAX_PARTS, 4);
        let logits = plan.take("logits", batch * most(&|l| widths[l] * codes[l].next_multiple_of(8)), 4);
        let partials = plan.take("partial sums", batch * most(&|l| widths[l] * codes[l].div_ceil(TILE)), 8);
        let found = plan.take("found", batch, 4);
        let items = plan.take("items", batch * config.top_k, 4);
        let item_scores = plan.take("item scores", batch * config.top_k, 4);
        let item_codes = plan.take("item codes", batch * config.top_k * MAX_LEVELS, 2);
        let log_sums = plan.take("sums of guidance", if guide > 0 { batch } else { 0 }, 4);
        let best = plan.take("guidance", batch * guide, 4);
        Self {
            plan,
            masks,
            pool,
            levels,
            keys,
            key_counts,
            logits,
            partials,
            found,
            items,
            item_scores,
            item_codes,
            log_sums,
            best,
        }
    }

    /// The regions.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// From the first to behind the last byte of the result.
    pub(super) fn result(&self) -> std::ops::Range<usize> {
        self.found.offset..self.item_codes.offset + self.item_codes.bytes
    }
}
