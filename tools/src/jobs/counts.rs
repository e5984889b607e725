//! How often training saw each item: what to show to somebody without a history, and what a model has never seen.

use crate::catalogue::Catalogue;
use anyhow::Result;
use rqvae::{Artefact, ArtefactWriter, ItemIdx};
use seqmodel::LeaveOneOut;
use std::path::Path;

const FORMAT: &str = "train-counts";
const VERSION: u32 = 1;
const FILE: &str = "counts.safetensors";

/// Interactions of each item in training, (items,); items that came later count 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainCounts {
    counts: Vec<u32>,
}

impl TrainCounts {
    /// Counts the training part of `split` over a catalogue of `items`.
    pub fn of(split: &LeaveOneOut, items: usize) -> Self {
        let mut counts = vec![0u32; items];
        for user in 0..split.users() {
            split.train(user).iter().for_each(|item| counts[item.0 as usize] += 1);
        }
        Self { counts }
    }

    /// Writes them beside the checkpoints of `run`.
    pub fn write(&self, run: &Path) -> Result<()> {
        let mut writer = ArtefactWriter::new(FORMAT, VERSION);
        writer.u32s("counts", &[self.counts.len()], &self.counts)?;
        Ok(writer.write(&run.join(FILE))?)
    }

    /// Those of `run`, `None` where it was trained before they were kept.
    ///
    /// # Errors
    /// The file is damaged, or counts more items than the catalogue has.
    pub fn read(run: &Path, catalogue: &Catalogue) -> Result<Option<Self>> {
        let path = run.join(FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let (_, counts) = Artefact::open(&path, FORMAT, VERSION)?.u32s("counts")?;
        if counts.len() > catalogue.keys.len() {
            let (expected, found) = (catalogue.keys.len(), counts.len());
            return Err(crate::error::bad_data(format!(
                "{}: expected at most {expected} counts, one per item of the catalogue, found {found}",
                path.display()
            )));
        }
        Ok(Some(Self { counts }))
    }

    /// Interactions of `item`.
    pub fn get(&self, item: ItemIdx) -> u32 {
        self.counts.get(item.0 as usize).copied().unwrap_or(0)
    }

    /// The items with interactions, most first, each with its share of all; ties by `tie_hash`.
    pub fn popular(&self, tie_hash: &[u64]) -> Vec<(ItemIdx, f64)> {
        let total: f64 = self.counts.iter().map(|count| f64::from(*count)).sum();
        let mut rows: Vec<usize> = (0..self.counts.len()).filter(|row| self.counts[*row] > 0).collect();
        rows.sort_by(|a, b| self.counts[*b].cmp(&self.counts[*a]).then(tie_hash[*a].cmp(&tie_hash[*b])));
        rows.into_iter().map(|row| (ItemIdx(row as u32), f64::from(self.counts[row]) / total)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn popular_items_come_by_count_and_unseen_ones_not_at_all() {
        let counts = TrainCounts { counts: vec![1, 0, 2, 1] };
        let popular: Vec<u32> = counts.popular(&[9, 8, 7, 3]).iter().map(|(item, _)| item.0).collect();
        assert_eq!(popular, [2, 3, 0]);
        assert!((counts.popular(&[0; 4])[0].1 - 0.5).abs() < 1e-12);
        assert_eq!(counts.get(ItemIdx(99)), 0);
    }
}
