//! The loop over levels, the same text for every device.

use crate::{BeamKernel, Error, LiveMask, Result, StepScorer};
use rqvae::{ItemIdx, SemanticId};
use serde::{Deserialize, Serialize};

/// Over what a code's probability is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreMode {
    /// All codes of the level; a mask does not change a score.
    #[default]
    FullVocab,
    /// The codes that lead to a live item.
    ValidOnly,
}

/// How wide to search and how much to return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeamConfig {
    /// Beams kept after each level.
    pub widths: Vec<usize>,
    /// Items returned.
    pub top_k: usize,
    /// Meaning of a score.
    pub score: ScoreMode,
}

impl BeamConfig {
    /// The same width at every level.
    pub fn uniform(width: usize, levels: usize, top_k: usize) -> Self {
        Self { widths: vec![width; levels], top_k, score: ScoreMode::FullVocab }
    }
}

/// A finished beam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hypothesis {
    /// Its path.
    pub sid: SemanticId,
    /// The item at its end.
    pub item: ItemIdx,
    /// Sum of the codes' natural-log probabilities.
    pub log_prob: f32,
}

/// Best items of `batch` requests, `live[request]` saying which items may be returned.
///
/// Fewer live items than `top_k` give a short list. With widths of at least the number of IDs the result is that of
/// [`crate::oracle::exhaustive`].
///
/// # Errors
/// [`Error::InvalidConfig`] when widths or masks do not fit; whatever the scorer fails with.
pub fn search<K: BeamKernel>(
    kernel: &K,
    scorer: &mut impl StepScorer<K>,
    config: &BeamConfig,
    batch: usize,
    live: &[LiveMask],
) -> Result<Vec<Vec<Hypothesis>>> {
    if config.widths.len() != kernel.levels() || config.widths.contains(&0) {
        return Err(Error::InvalidConfig {
            what: "widths",
            got: format!("{:?}", config.widths),
            expected: format!("{} widths of at least 1", kernel.levels()),
        });
    }
    if live.len() != batch {
        return Err(Error::InvalidConfig {
            what: "live masks",
            got: live.len().to_string(),
            expected: format!("{batch}, one per request"),
        });
    }
    let mut beams = kernel.start(batch, live, config.score)?;
    for (level, width) in config.widths.iter().enumerate() {
        let scores = scorer.score(level, &beams).map_err(Error::Scorer)?;
        kernel.step(&mut beams, &scores, *width)?;
    }
    kernel.finish(beams, config.top_k)
}
