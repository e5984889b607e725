//! What one device does with beams.

mod cpu;

pub use cpu::{CpuBeams, CpuKernel, Scores};

use crate::{Hypothesis, LiveMask, Result, ScoreMode};

/// Beams on one device: start at the root, step down one level, finish at the leaves.
pub trait BeamKernel {
    /// (rows, codes of the level), wherever the device keeps it.
    type Scores;
    /// Nodes, scores and paths of the live beams.
    type Beams;

    /// Levels of the trie.
    fn levels(&self) -> usize;

    /// One beam at the root per request.
    fn start(&self, batch: usize, live: &[LiveMask], score: ScoreMode) -> Result<Self::Beams>;

    /// Expands every beam to its live children and keeps the best `width` of each request.
    fn step(&self, beams: &mut Self::Beams, scores: &Self::Scores, width: usize) -> Result<()>;

    /// The best `top_k` items of each request.
    fn finish(&self, beams: Self::Beams, top_k: usize) -> Result<Vec<Vec<Hypothesis>>>;
}
