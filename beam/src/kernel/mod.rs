//! What one device does with beams.

mod beams;
mod cpu;
mod simd;

pub use beams::{CpuBeams, Scores};
pub use cpu::CpuKernel;
pub use simd::SimdKernel;

use crate::{Hypothesis, LiveMask, Result, ScoreMode};

/// The device side of a search. [`CpuKernel`] says what each operation means, [`SimdKernel`]
/// does the same faster.
pub trait BeamKernel {
    /// Log-probabilities: (rows, codes of the level), wherever the device keeps them.
    type Scores;
    /// Live beams of all requests.
    type Beams;

    /// Number of steps of a search.
    fn levels(&self) -> usize;

    /// One beam per request, at the root. One mask per request.
    ///
    /// # Errors
    /// The masks are not `batch` masks of this kernel's trie.
    fn start(&self, batch: usize, live: &[LiveMask], score: ScoreMode) -> Result<Self::Beams>;

    /// Whether no beam is left. A device that would have to wait for the answer may always say no.
    fn is_exhausted(&self, beams: &Self::Beams) -> bool;

    /// Replaces the beams of each request by the best `width` of their children that lead to an allowed item.
    ///
    /// # Errors
    /// The scores have the wrong shape.
    fn step(&self, beams: &mut Self::Beams, scores: &Self::Scores, width: usize) -> Result<()>;

    /// At most `top_k` items of each request, best first.
    ///
    /// # Errors
    /// There are beams and they are not at the leaves.
    fn finish(&self, beams: Self::Beams, top_k: usize) -> Result<Vec<Vec<Hypothesis>>>;
}
