//! The model as search sees it.

use crate::{BeamKernel, BoxError, CpuBeams, Scores};
use rqvae::{Code, SidSpec};

/// One decoding session of a sequence model. It owns its cache; the model behind it is shared and immutable.
pub trait StepScorer<K: BeamKernel> {
    /// Natural-log probabilities of the codes of `level` for each live beam: (rows, codes of the level).
    ///
    /// Called once per level, from 0. A value that is not finite makes its code impossible.
    ///
    /// # Errors
    /// Whatever the model fails with; search passes it on.
    fn score(&mut self, level: usize, beams: &K::Beams) -> Result<K::Scores, BoxError>;
}

/// A scorer without memory, made of a closure `(request, prefix, log_probs)` that fills `log_probs`:
/// (codes of the level,).
pub struct PrefixScorer<F> {
    spec: SidSpec,
    score: F,
}

impl<F: FnMut(usize, &[Code], &mut [f32])> PrefixScorer<F> {
    /// Scores IDs of shape `spec`.
    pub fn new(spec: &SidSpec, score: F) -> Self {
        Self { spec: spec.clone(), score }
    }
}

impl<F, K> StepScorer<K> for PrefixScorer<F>
where
    F: FnMut(usize, &[Code], &mut [f32]),
    K: BeamKernel<Scores = Scores, Beams = CpuBeams>,
{
    fn score(&mut self, level: usize, beams: &CpuBeams) -> Result<Scores, BoxError> {
        let width = self.spec.codes_at(level) as usize;
        let mut data = vec![0.0; beams.rows() * width];
        for (row, log_probs) in data.chunks_exact_mut(width).enumerate() {
            (self.score)(beams.request(row), beams.codes(row), log_probs);
        }
        Ok(Scores { width, data })
    }
}
