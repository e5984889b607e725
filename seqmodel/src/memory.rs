//! What all beams of a request look at together: states of its history, as keys and values of every decoder block.

use crate::nn::{Attention, Block, Keys, RmsNorm};
use candle_core::{Device, Result, Tensor};
use rqvae::Mode;

/// Keys and values, computed once per search.
pub(crate) struct SharedMemory {
    /// Per decoder block: (requests, seq, 2 * heads * `head_dim`).
    blocks: Vec<Tensor>,
    keys: Keys,
    requests: usize,
}

/// Beams as query positions of their requests, so that the memory is not copied per beam.
pub(crate) struct Spread {
    /// Row behind each query position: (requests * width,).
    rows: Tensor,
    /// Query position of each row: (rows,).
    slots: Tensor,
    width: usize,
}

impl SharedMemory {
    /// Prepares `states` (requests, seq, dim) for all blocks of a decoder.
    pub(crate) fn new(decoder: &[Block], states: &Tensor, keys: Keys) -> Result<Self> {
        let blocks = decoder.iter().filter_map(|block| block.memory_keys_values(states).transpose());
        Ok(Self { blocks: blocks.collect::<Result<_>>()?, keys, requests: states.dim(0)? })
    }

    /// Arranges rows that belong to `requests`, ascending.
    pub(crate) fn spread(&self, requests: &[usize]) -> Result<Spread> {
        let mut slots = vec![0u32; requests.len()];
        let mut counts = vec![0usize; self.requests];
        for (slot, request) in slots.iter_mut().zip(requests) {
            *slot = counts[*request] as u32;
            counts[*request] += 1;
        }
        let width = counts.iter().copied().max().unwrap_or(0).max(1);
        let mut rows = vec![0u32; self.requests * width];
        for (row, request) in requests.iter().enumerate() {
            let at = request * width + slots[row] as usize;
            slots[row] = at as u32;
            rows[at] = row as u32;
        }
        Ok(Spread {
            rows: Tensor::from_vec(rows, self.requests * width, &Device::Cpu)?,
            slots: Tensor::from_vec(slots, requests.len(), &Device::Cpu)?,
            width,
        })
    }

    /// `x` (rows, 1, dim) plus what it finds in the memory of decoder block `block`.
    pub(crate) fn attend(
        &self,
        block: usize,
        spread: &Spread,
        (norm, attention): (&RmsNorm, &Attention),
        x: &Tensor,
    ) -> Result<Tensor> {
        let dim = x.dim(2)?;
        let queries = norm.forward(x)?.squeeze(1)?.index_select(&spread.rows, 0)?;
        let queries = queries.reshape((self.requests, spread.width, dim))?;
        let mixed = attention.forward(&queries, &self.blocks[block], None, &self.keys, Mode::Eval)?;
        x + mixed.reshape(((), dim))?.index_select(&spread.slots, 0)?.unsqueeze(1)?
    }
}
