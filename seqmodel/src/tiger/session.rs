//! One decoding run of TIGER: the memory once per request, the decoder's keys and values of every live beam.

use super::Tiger;
use crate::Result;
use crate::nn::{Keys, log_softmax_rows};
use beam::{BeamKernel, CpuBeams, Scores, StepScorer};
use candle_core::{Device, Tensor};
use rqvae::{ItemIdx, Mode};

/// Scores the codes of the next item for a batch of histories.
pub struct TigerSession<'a> {
    model: &'a Tiger,
    /// Per decoder block: (requests, seq, 2 * heads * `head_dim`). All beams of a request read the same memory.
    memory: Vec<Tensor>,
    keys: Keys,
    requests: usize,
    cache: Vec<Option<Tensor>>,
}

impl<'a> TigerSession<'a> {
    /// Encodes `histories`, which must not be empty.
    pub fn new(model: &'a Tiger, histories: &[&[ItemIdx]]) -> Result<Self> {
        let encoded = model.encode(histories, Mode::Eval)?;
        let memory = model
            .decoder()
            .iter()
            .filter_map(|block| block.memory_keys_values(&encoded.states).transpose())
            .collect::<candle_core::Result<Vec<_>>>()?;
        let cache = vec![None; model.decoder().len()];
        Ok(Self { model, memory, keys: encoded.keys, requests: histories.len(), cache })
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
        let rows = requests.len();
        let cpu = &Device::Cpu;
        if level > 0 {
            let parents = Tensor::from_slice(parents, rows, cpu)?;
            for cache in self.cache.iter_mut().flatten() {
                *cache = cache.index_select(&parents, 0)?;
            }
        }
        // Beams become query positions of their request, so that the memory is not copied per beam.
        let mut slots = vec![0u32; rows];
        let mut counts = vec![0usize; self.requests];
        for (slot, request) in slots.iter_mut().zip(requests) {
            *slot = counts[*request] as u32;
            counts[*request] += 1;
        }
        let width = counts.iter().copied().max().unwrap_or(0).max(1);
        let mut spread = vec![0u32; self.requests * width];
        for (row, request) in requests.iter().enumerate() {
            let at = request * width + slots[row] as usize;
            slots[row] = at as u32;
            spread[at] = row as u32;
        }
        let spread = Tensor::from_vec(spread, self.requests * width, cpu)?;
        let slots = Tensor::from_vec(slots, rows, cpu)?;

        let mut x = self.model.input(level, codes)?;
        let dim = x.dim(2)?;
        let bias = self.model.step_bias(level + 1)?;
        for ((block, cache), memory) in self.model.decoder().iter().zip(&mut self.cache).zip(&self.memory) {
            let past = if level == 0 { None } else { cache.as_ref() };
            let (y, kv) = block.step(&x, past, Some(&bias), |norm, attention, x| {
                let queries = norm.forward(x)?.squeeze(1)?.index_select(&spread, 0)?;
                let queries = queries.reshape((self.requests, width, dim))?;
                let mixed = attention.forward(&queries, memory, None, &self.keys, Mode::Eval)?;
                x + mixed.reshape(((), dim))?.index_select(&slots, 0)?.unsqueeze(1)?
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
