//! One decoding run: the decoder's keys and values of every live beam.

use super::Rqt;
use crate::nn::log_softmax_rows;
use beam::{BeamKernel, CpuBeams, Scores, StepScorer};
use candle_core::{Device, Tensor};

/// Scores the codes of the next item for a batch of encoded histories.
pub struct RqtSession<'a> {
    model: &'a Rqt,
    /// (requests, dim).
    states: Tensor,
    /// Per decoder block: (rows of the last step, codes so far, 2 * heads * `head_dim`).
    cache: Vec<Option<Tensor>>,
}

impl<'a> RqtSession<'a> {
    /// A session over states of [`Rqt::encode`].
    pub fn new(model: &'a Rqt, states: Tensor) -> Self {
        Self { model, states, cache: vec![None; model.decoder().len()] }
    }

    /// Log-probabilities of `level` for rows that continue row `parents[row]` of the last step with `codes[row]`;
    /// at level 0 `parents` are the requests and `codes` is not read.
    pub fn advance(&mut self, level: usize, parents: &[u32], codes: &[u32]) -> crate::Result<(usize, Vec<f32>)> {
        let parents = Tensor::from_slice(parents, parents.len(), &Device::Cpu)?;
        let mut x = if level == 0 {
            self.model.first_input(&self.states.index_select(&parents, 0)?)?
        } else {
            for cache in self.cache.iter_mut().flatten() {
                *cache = cache.index_select(&parents, 0)?;
            }
            self.model.next_input(level - 1, codes.iter().copied())?
        };
        for (block, cache) in self.model.decoder().iter().zip(&mut self.cache) {
            let past = if level == 0 { None } else { cache.as_ref() };
            let (y, kv) = block.step(&x, past, None, |_, _, x| Ok(x.clone()))?;
            x = y;
            *cache = Some(kv);
        }
        let logits = self.model.logits(level, &x.squeeze(1)?)?;
        let width = logits.dim(1)?;
        let mut data = logits.flatten_all()?.to_vec1::<f32>()?;
        log_softmax_rows(&mut data, width);
        Ok((width, data))
    }
}

impl<K: BeamKernel<Scores = Scores, Beams = CpuBeams>> StepScorer<K> for RqtSession<'_> {
    fn score(&mut self, level: usize, beams: &CpuBeams) -> Result<Scores, beam::BoxError> {
        let rows = 0..beams.rows();
        let parents: Vec<u32> =
            rows.clone().map(|r| if level == 0 { beams.request(r) } else { beams.parent(r) } as u32).collect();
        let codes: Vec<u32> = rows.map(|r| beams.codes(r).last().map_or(0, |code| u32::from(*code))).collect();
        let (width, data) = self.advance(level, &parents, &codes)?;
        Ok(Scores { width, data })
    }
}
