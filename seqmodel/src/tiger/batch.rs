//! Samples as the model reads them: all that follows from the data alone, made before the step that uses it.

use super::{Sample, Tiger};
use crate::data::History;
use crate::nn::{Keys, NO_ROW};
use std::sync::Arc;

/// Histories as tokens, filled up at the end.
#[derive(Debug)]
pub(crate) struct HistoryTokens {
    /// (batch * seq,).
    pub(crate) tokens: Vec<u32>,
    /// Tokens of the longest history, at least 1.
    pub(crate) seq: usize,
    /// How many tokens of each history exist.
    pub(crate) keys: Keys,
}

/// A batch of samples.
#[derive(Debug)]
pub struct TigerBatch {
    pub(crate) histories: HistoryTokens,
    /// What the decoder reads, the start token and all codes but the last: (batch * levels,).
    pub(crate) inputs: Vec<u32>,
    /// What there is to predict, level by level: (levels, batch).
    pub(crate) targets: Vec<Vec<u32>>,
}

impl Tiger {
    /// What [`Tiger::batch_loss`] learns from.
    pub fn prepare(&self, samples: &[&Sample]) -> TigerBatch {
        let histories: Vec<_> = samples.iter().map(|sample| sample.read()).collect();
        let read = |sample: &&Sample| {
            std::iter::once(self.start_token()).chain(self.item_tokens(sample.target).take(self.levels() - 1))
        };
        let target = |level: usize| {
            samples.iter().map(|sample| u32::from(self.features().codes(sample.target)[level])).collect()
        };
        TigerBatch {
            histories: self.tokens_of(&histories),
            inputs: samples.iter().flat_map(read).collect(),
            targets: (0..self.levels()).map(target).collect(),
        }
    }

    pub(crate) fn tokens_of(&self, histories: &[History]) -> HistoryTokens {
        let rows: Vec<Vec<u32>> = histories.iter().map(|history| self.history_tokens(*history)).collect();
        let seq = rows.iter().map(Vec::len).max().unwrap_or(1).max(1);
        let mut tokens = vec![NO_ROW; rows.len() * seq];
        for (slots, row) in tokens.chunks_exact_mut(seq).zip(&rows) {
            slots[..row.len()].copy_from_slice(row);
        }
        let lengths = rows.iter().map(|row| row.len() as u32).collect();
        HistoryTokens { tokens, seq, keys: Keys::First(Arc::new(lengths)) }
    }
}
