//! Windows as the model reads them: all that follows from the data alone, made before the step that uses it.

use super::Rqt;
use crate::Result;
use crate::data::{Padded, Window};
use crate::nn::NO_ROW;
use beam::Trie;
use rqvae::ItemIdx;

/// Added to the logit of a code that is ruled out; its exponential is 0 in f32.
const RULED_OUT: f32 = -1e4;

/// A batch of `targets` places to learn from.
#[derive(Debug)]
pub struct RqtBatch {
    /// The histories, the places in them that have a target, and the targets.
    pub(crate) padded: Padded,
    /// Rows of the codes that the history reads: (batch * seq * levels,).
    pub(crate) history_codes: Vec<u32>,
    /// Rows of the codes that the decoder reads, all but the last of each target: (targets * (levels - 1),).
    pub(crate) inputs: Vec<u32>,
    /// What there is to predict, level by level.
    pub(crate) levels: Vec<LevelTargets>,
}

/// One level of the targets.
#[derive(Debug)]
pub(crate) struct LevelTargets {
    /// (targets,).
    pub(crate) codes: Vec<u32>,
    /// What is added to the logits, where codes compete among valid ones alone: (targets, codes of the level).
    pub(crate) ruled_out: Option<Vec<f32>>,
}

impl Rqt {
    /// What [`Rqt::batch_loss`] learns from.
    ///
    /// # Errors
    /// [`crate::Error::NoData`] when no window has a target.
    pub fn prepare(&self, windows: &[&Window]) -> Result<RqtBatch> {
        let padded = Padded::of_windows(windows)?;
        let codes = |target: &u32| self.features().codes(ItemIdx(*target));
        let mut inputs = Vec::new();
        if self.config().code_weight > 0.0 {
            for target in &padded.targets {
                let read = codes(target).iter().zip(self.level_starts()).take(self.levels() - 1);
                inputs.extend(read.map(|(code, start)| start + u32::from(*code)));
            }
        }
        let level = |level: usize| LevelTargets {
            codes: padded.targets.iter().map(|target| u32::from(codes(target)[level])).collect(),
            ruled_out: self.valid().map(|trie| self.ruled_out(trie, level, &padded.targets)),
        };
        let learned = if self.config().code_weight > 0.0 { self.levels() } else { 0 };
        let levels = (0..learned).map(level).collect();
        Ok(RqtBatch { history_codes: self.code_rows(&padded.items), inputs, levels, padded })
    }

    /// Rows of the codes of `items` in the table of all levels' codes: (items * levels,).
    pub(crate) fn code_rows(&self, items: &[Option<ItemIdx>]) -> Vec<u32> {
        let levels = self.levels();
        let mut rows = Vec::with_capacity(items.len() * levels);
        for item in items {
            match item {
                Some(item) => {
                    let codes = self.features().codes(*item).iter().zip(self.level_starts());
                    rows.extend(codes.map(|(code, start)| start + u32::from(*code)));
                }
                None => rows.extend(std::iter::repeat_n(NO_ROW, levels)),
            }
        }
        rows
    }

    /// What keeps codes of `level` out that lead from the targets' prefixes to no item: (targets, codes of the level).
    fn ruled_out(&self, trie: &Trie, level: usize, targets: &[u32]) -> Vec<f32> {
        let width = self.features().spec().codes_at(level) as usize;
        let mut mask = vec![RULED_OUT; targets.len() * width];
        for (row, target) in mask.chunks_exact_mut(width).zip(targets) {
            if let Some(node) = trie.find(&self.features().codes(ItemIdx(*target))[..level]) {
                trie.children(level, node).0.iter().for_each(|code| row[usize::from(code)] = 0.0);
            }
        }
        mask
    }
}
