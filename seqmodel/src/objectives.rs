//! How each model turns rows of its training data into a loss.

use crate::Result;
use crate::data::{Padded, Window, pick};
use crate::dense::{SasRec, TwoTower};
use crate::hybrid::Hybrid;
use crate::rqt::Rqt;
use crate::tiger::{Sample, Tiger};
use crate::train::{Objective, Prepared};

/// A model with a loss at every position of a window.
pub trait LearnsWindows: Sync {
    /// Makes a batch of `windows`.
    ///
    /// # Errors
    /// [`crate::Error::NoData`] when no window has a target.
    fn learn(&self, windows: &[&Window]) -> Result<Prepared<'_>>;
}

impl LearnsWindows for Rqt {
    fn learn(&self, windows: &[&Window]) -> Result<Prepared<'_>> {
        let batch = self.prepare(windows)?;
        Ok(Box::new(move |mode| self.batch_loss(batch, mode)))
    }
}

impl LearnsWindows for SasRec {
    fn learn(&self, windows: &[&Window]) -> Result<Prepared<'_>> {
        let batch = Padded::of_windows(windows)?;
        Ok(Box::new(move |mode| self.batch_loss(batch, mode)))
    }
}

impl LearnsWindows for TwoTower {
    fn learn(&self, windows: &[&Window]) -> Result<Prepared<'_>> {
        let batch = Padded::of_windows(windows)?;
        Ok(Box::new(move |mode| self.batch_loss(&batch, mode)))
    }
}

/// The generative part learns; the rest is counted.
impl LearnsWindows for Hybrid {
    fn learn(&self, windows: &[&Window]) -> Result<Prepared<'_>> {
        let batch = self.prepare(windows)?;
        Ok(Box::new(move |mode| self.batch_loss(batch, mode)))
    }
}

/// A model over training windows.
pub struct WindowObjective<'a, M> {
    /// The model.
    pub model: &'a M,
    /// Training windows.
    pub windows: &'a [Window],
}

impl<'a, M: LearnsWindows> Objective<Prepared<'a>> for WindowObjective<'a, M> {
    fn lengths(&self) -> Vec<usize> {
        self.windows.iter().map(|window| window.items.len()).collect()
    }

    fn targets(&self, rows: &[u32]) -> usize {
        rows.iter().map(|row| self.windows[*row as usize].targets()).sum()
    }

    fn prepare(&self, rows: &[u32]) -> Result<Prepared<'a>> {
        self.model.learn(&pick(self.windows, rows))
    }
}

/// TIGER over one sample per prefix.
pub struct SampleObjective<'a> {
    /// The model.
    pub model: &'a Tiger,
    /// Training samples.
    pub samples: &'a [Sample],
}

impl<'a> Objective<Prepared<'a>> for SampleObjective<'a> {
    fn lengths(&self) -> Vec<usize> {
        self.samples.iter().map(|sample| sample.history.len()).collect()
    }

    fn targets(&self, rows: &[u32]) -> usize {
        rows.len()
    }

    fn prepare(&self, rows: &[u32]) -> Result<Prepared<'a>> {
        let (model, batch) = (self.model, self.model.prepare(&pick(self.samples, rows)));
        Ok(Box::new(move |mode| model.batch_loss(batch, mode)))
    }
}
