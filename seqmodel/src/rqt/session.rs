//! One decoding run: the decoder's keys and values of every live beam.

use super::{Encoded, Rqt};
use crate::memory::SharedMemory;
use crate::nn::log_softmax_rows;
use beam::{BeamKernel, CpuBeams, Scores, StepScorer};
use candle_core::{Device, Tensor};

/// Scores the codes of the next item for a batch of encoded histories.
pub struct RqtSession<'a> {
    model: &'a Rqt,
    /// (requests, dim).
    states: Tensor,
    memory: Option<SharedMemory>,
    /// Per decoder block: (rows of the last step, codes so far, 2 * heads * `head_dim`).
    cache: Vec<Option<Tensor>>,
}

impl<'a> RqtSession<'a> {
    /// A session over histories read by [`Rqt::encode`].
    ///
    /// # Errors
    /// The states are of another model's shape.
    pub fn new(model: &'a Rqt, encoded: Encoded) -> crate::Result<Self> {
        let memory =
            encoded.memory.map(|(states, keys)| SharedMemory::new(model.decoder(), &states, keys)).transpose()?;
        Ok(Self { model, states: encoded.states, memory, cache: vec![None; model.decoder().len()] })
    }

    /// Log-probabilities of `level` for rows of requests `requests` (ascending) that continue row `parents[row]` of the
    /// last step with `codes[row]`; at level 0 only `requests` is read.
    pub fn advance(
        &mut self,
        level: usize,
        requests: &[usize],
        parents: &[u32],
        codes: &[u32],
    ) -> crate::Result<(usize, Vec<f32>)> {
        let mut x = if level == 0 {
            let requests = requests.iter().map(|request| *request as u32).collect::<Vec<_>>();
            let rows = requests.len();
            self.model.first_input(&self.states.index_select(&Tensor::from_vec(requests, rows, &Device::Cpu)?, 0)?)?
        } else {
            let parents = Tensor::from_slice(parents, parents.len(), &Device::Cpu)?;
            for cache in self.cache.iter_mut().flatten() {
                *cache = cache.index_select(&parents, 0)?;
            }
            self.model.next_input(level - 1, codes.iter().copied())?
        };
        let memory = match &self.memory {
            Some(memory) => Some((memory, memory.spread(requests)?)),
            None => None,
        };
        for (at, (block, cache)) in self.model.decoder().iter().zip(&mut self.cache).enumerate() {
            let past = if level == 0 { None } else { cache.as_ref() };
            let (y, kv) = block.step(&x, past, None, |norm, attention, x| match &memory {
                Some((memory, spread)) => memory.attend(at, spread, (norm, attention), x),
                None => Ok(x.clone()),
            })?;
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
        let requests: Vec<usize> = rows.clone().map(|r| beams.request(r)).collect();
        let parents: Vec<u32> = rows.clone().map(|r| beams.parent(r) as u32).collect();
        let codes: Vec<u32> = rows.map(|r| beams.codes(r).last().map_or(0, |code| u32::from(*code))).collect();
        let (width, data) = self.advance(level, &requests, &parents, &codes)?;
        Ok(Scores { width, data })
    }
}
