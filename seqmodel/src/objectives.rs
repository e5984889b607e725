//! How each model turns rows of its training data into a loss.

use crate::Result;
use crate::data::Window;
use crate::dense::{SasRec, TwoTower};
use crate::hybrid::Hybrid;
use crate::rqt::Rqt;
use crate::tiger::{Sample, Tiger};
use crate::train::Objective;
use candle_core::Tensor;
use rqvae::Mode;

/// The RQ-Transformer over windows: a loss at every position.
pub struct RqtObjective<'a> {
    /// The model.
    pub model: &'a Rqt,
    /// Training windows.
    pub windows: &'a [Window],
}

/// TIGER over one sample per prefix.
pub struct TigerObjective<'a> {
    /// The model.
    pub model: &'a Tiger,
    /// Training samples.
    pub samples: &'a [Sample],
}

/// `SASRec` over windows.
pub struct SasRecObjective<'a> {
    /// The model.
    pub model: &'a SasRec,
    /// Training windows.
    pub windows: &'a [Window],
}

/// Two towers over windows.
pub struct TwoTowerObjective<'a> {
    /// The model.
    pub model: &'a TwoTower,
    /// Training windows.
    pub windows: &'a [Window],
}

/// The generative part of a hybrid over windows; the rest of it is counted, not trained.
pub struct HybridObjective<'a> {
    /// The model.
    pub model: &'a Hybrid,
    /// Training windows.
    pub windows: &'a [Window],
}

fn pick<'w, T>(all: &'w [T], rows: &[u32]) -> Vec<&'w T> {
    rows.iter().map(|row| &all[*row as usize]).collect()
}

impl Objective for RqtObjective<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.windows.iter().map(|w| w.items.len()).collect()
    }

    fn targets(&self, rows: &[u32]) -> usize {
        pick(self.windows, rows).iter().map(|w| w.targets()).sum()
    }

    fn loss(&self, rows: &[u32], mode: Mode) -> Result<Tensor> {
        self.model.loss(&pick(self.windows, rows), mode)
    }
}

impl Objective for TigerObjective<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.samples.iter().map(|s| s.history.len()).collect()
    }

    fn targets(&self, rows: &[u32]) -> usize {
        rows.len()
    }

    fn loss(&self, rows: &[u32], mode: Mode) -> Result<Tensor> {
        self.model.loss(&pick(self.samples, rows), mode)
    }
}

impl Objective for SasRecObjective<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.windows.iter().map(|w| w.items.len()).collect()
    }

    fn targets(&self, rows: &[u32]) -> usize {
        pick(self.windows, rows).iter().map(|w| w.targets()).sum()
    }

    fn loss(&self, rows: &[u32], mode: Mode) -> Result<Tensor> {
        self.model.loss(&pick(self.windows, rows), mode)
    }
}

impl Objective for TwoTowerObjective<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.windows.iter().map(|w| w.items.len()).collect()
    }

    fn targets(&self, rows: &[u32]) -> usize {
        pick(self.windows, rows).iter().map(|w| w.targets()).sum()
    }

    fn loss(&self, rows: &[u32], mode: Mode) -> Result<Tensor> {
        self.model.loss(&pick(self.windows, rows), mode)
    }
}

impl Objective for HybridObjective<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.windows.iter().map(|w| w.items.len()).collect()
    }

    fn targets(&self, rows: &[u32]) -> usize {
        pick(self.windows, rows).iter().map(|w| w.targets()).sum()
    }

    fn loss(&self, rows: &[u32], mode: Mode) -> Result<Tensor> {
        self.model.loss(&pick(self.windows, rows), mode)
    }
}
