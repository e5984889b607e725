//! One decoding run of TIGER: the memory once per request, the decoder's keys and values of every live beam.

use super::Tiger;
use crate::Result;
use crate::data::History;
use crate::memory::SharedMemory;
use crate::nn::log_softmax_rows;
use beam::{BeamKernel, CpuBeams, Scores, StepScorer};
use candle_core::{Device, Tensor};
use rqvae::Mode;

/// Scores the codes of the next item for a batch of histories.
pub struct TigerSession<'a> {
    model: &'a Tiger,
    memory: SharedMemory,
    cache: Vec<Option<Tensor>>,
}

impl<'a> TigerSession<'a> {
    /// Encodes `histories`, which must not be empty.
    pub fn new(model: &'a Tiger, histories: &[History]) -> Result<Self> {
        let encoded = model.encode(histories, Mode::Eval)?;
        let memory = SharedMemory::new(model.decoder(), &encoded.states, encoded.keys)?;
        let cache = vec![None; model.decoder().len()];
        Ok(Self { model, memory, cache })
    }

    /// Log-probabilities of `level` for rows of requests `requests` (ascending) that continue row `parents[row]` of the
    /// last step with `codes[row]`; at level 0 only `requests` is read.
    pub fn advance(
        &mut self,
        level: usize,
        requests: &[usize],
        parents: &[u32],
        codes: &[u32],
    ) -> Result<(usize, Vec<f32>)> {
        if level > 0 {
            let parents = Tensor::from_slice(parents, parents.len(), &Device::Cpu)?;
            for cache in self.cache.iter_mut().flatten() {
                *cache = cache.index_select(&parents, 0)?;
            }
        }
        let spread = self.memory.spread(requests)?;
        let mut x = self.model.input(level, codes)?;
        let bias = self.model.step_bias(level + 1)?;
        for (at, (block, cache)) in self.model.decoder().iter().zip(&mut self.cache).enumerate() {
            let past = if level == 0 { None } else { cache.as_ref() };
            let (y, kv) = block.step(&x, past, Some(&bias), |norm, attention, x| {
                self.memory.attend(at, &spread, (norm, attention), x)
            })?;
            x = y;
            *cache = Some(kv);
        }
        let logits = self.model.logits(level, &x.squeeze(1)?)?;
        let classes = logits.dim(1)?;
        let mut data = logits.flatten_all()?.to_vec1::<f32>()?;
        log_softmax_rows(&mut data, classes);
        Ok((classes, data))
    }
}

impl<K: BeamKernel<Scores = Scores, Beams = CpuBeams>> StepScorer<K> for TigerSession<'_> {
    fn score(&mut self, level: usize, beams: &CpuBeams) -> std::result::Result<Scores, beam::BoxError> {
        let rows = 0..beams.rows();
        let requests: Vec<usize> = rows.clone().map(|r| beams.request(r)).collect();
        let parents: Vec<u32> = rows.clone().map(|r| beams.parent(r) as u32).collect();
        let codes: Vec<u32> = rows.map(|r| beams.codes(r).last().map_or(0, |c| u32::from(*c))).collect();
        let (width, data) = self.advance(level, &requests, &parents, &codes)?;
        Ok(Scores { width, data })
    }
}
