//! The model as search sees it.

use crate::{BeamKernel, BoxError};

/// One decoding session of a sequence model. It owns its cache; the model behind it is shared and immutable.
pub trait StepScorer<K: BeamKernel> {
    /// Natural-log probabilities of the codes of `level`, one row per live beam of `beams`.
    fn score(&mut self, level: usize, beams: &K::Beams) -> Result<K::Scores, BoxError>;
}
