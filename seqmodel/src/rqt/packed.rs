//! RQT's decoder for serving: packed weights, see [`PackedSession`].
//!
//! Histories are read on tensors, a batch at a time; the beams, most of the work, take the packed way. The plain session
//! ([`RqtSession`](super::RqtSession)) is the reference.

use super::{Encoded, Rqt};
use crate::history_cache::HistoryCache;
use crate::nn::{Keys, with_values};
use crate::packed::{Crew, Packed, PackedBlock, PackedDecoder, PackedSession, Precision, Rooms, Start, Team};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use rqvae::ItemIdx;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

/// The decoder's weights of an [`Rqt`] as they were when this was made.
pub struct PackedRqt {
    model: Rqt,
    decoder: PackedDecoder,
    cache: Option<HistoryCache>,
}

impl PackedRqt {
    /// Copies and packs the weights as they are.
    pub fn new(model: &Rqt) -> Result<Self> {
        Self::stored_as(model, Precision::F32)
    }

    /// Copies, rounds and packs the decoder's weights; embeddings stay as they are.
    pub fn stored_as(model: &Rqt, precision: Precision) -> Result<Self> {
        let dim = model.config().dim;
        let (codes, norm, heads) = model.decoder_tables();
        let scales = with_values(norm.weight(), <[f32]>::to_vec)?;
        let head = |head: &candle_core::Tensor| -> Result<Packed> {
            let rows = head.dim(0)?;
            let packed = with_values(head, |x| Packed::new(rows, dim, |code, i| x[code * dim + i] * scales[i]))?;
            Ok(packed.stored_as(precision))
        };
        let decoder = PackedDecoder {
            dim,
            blocks: model.decoder().iter().map(|block| PackedBlock::new(block, precision)).collect::<Result<_>>()?,
            bias: None,
            codes: with_values(codes, <[f32]>::to_vec)?,
            level_starts: model.level_starts().to_vec(),
            heads: heads.iter().map(head).collect::<Result<_>>()?,
            spare: Mutex::default(),
            rooms: Rooms::default(),
            crew: Crew::default(),
        };
        Ok(Self { model: model.clone(), decoder, cache: None })
    }

    /// The model, which reads the histories.
    pub fn model(&self) -> &Rqt {
        &self.model
    }

    /// Keeps what it made of the last `histories` histories; 0: of none.
    #[must_use]
    pub fn keeping(mut self, histories: usize) -> Self {
        self.cache = NonZeroUsize::new(histories).map(HistoryCache::new);
        self
    }

    /// What is kept, where anything is.
    pub fn kept(&self) -> Option<&HistoryCache> {
        self.cache.as_ref()
    }

    /// Finds or reads histories, which must not be empty; see [`Rqt::encode`].
    pub fn encode(&self, histories: &[&[ItemIdx]]) -> Result<Encoded> {
        let Some(cache) = &self.cache else { return self.model.encode(histories) };
        let (dim, cap, back) = (self.decoder.dim, self.model.config().history_cap, self.model.config().look_back);
        let newest: Vec<&[ItemIdx]> = histories.iter().map(|h| &h[h.len().saturating_sub(cap)..]).collect();
        let read: Vec<Vec<u32>> = newest.iter().map(|history| history.iter().map(|item| item.0).collect()).collect();
        let mut encoded: Vec<Option<Arc<[f32]>>> = read.iter().map(|read| cache.get(read)).collect();
        let missed: Vec<usize> = (0..newest.len()).filter(|at| encoded[*at].is_none()).collect();
        if !missed.is_empty() {
            let fresh = self.model.encode(&missed.iter().map(|at| newest[*at]).collect::<Vec<_>>())?;
            let states = fresh.states.flatten_all()?.to_vec1::<f32>()?;
            let memory = match &fresh.memory {
                Some((memory, _)) => memory.flatten_all()?.to_vec1::<f32>()?,
                None => Vec::new(),
            };
            let each = memory.len() / missed.len();
            for (row, at) in missed.into_iter().enumerate() {
                // The state, then what the decoder looks back at.
                let numbers: Arc<[f32]> = [&states[row * dim..][..dim], &memory[row * each..][..each]].concat().into();
                cache.put(&read[at], Arc::clone(&numbers));
                encoded[at] = Some(numbers);
            }
        }
        let all = || encoded.iter().flatten();
        let (rows, device) = (encoded.len(), &Device::Cpu);
        let states = Tensor::from_vec(all().flat_map(|x| x[..dim].to_vec()).collect(), (rows, dim), device)?;
        let memory = if back > 1 {
            let memory = all().flat_map(|x| x[dim..].to_vec()).collect();
            let exist = newest.iter().map(|history| back.min(history.len()) as u32).collect();
            Some((Tensor::from_vec(memory, (rows, back, dim), device)?, Keys::First(Arc::new(exist))))
        } else {
            None
        };
        Ok(Encoded { states, memory })
    }

    /// A decoding run over histories read by [`PackedRqt::encode`].
    ///
    /// # Errors
    /// The states are of another model's shape.
    pub fn session(&self, encoded: &Encoded) -> Result<PackedSession<'_>> {
        let dim = self.decoder.dim;
        let first = self.model.first_input(&encoded.states)?.flatten_all()?.to_vec1::<f32>()?;
        let requests = first.len() / dim;
        let (memory, lengths) = match &encoded.memory {
            Some((states, Keys::First(lengths))) if lengths.len() == requests => {
                (states.flatten_all()?.to_vec1::<f32>()?, Some(lengths))
            }
            None => (Vec::new(), None),
            Some((states, _)) => {
                let (expected, found) = (format!("{requests} requests"), format!("{:?}", states.dims()));
                return Err(Error::Mismatch { what: "encoded histories".into(), expected, found });
            }
        };
        let each = memory.len() / requests.max(1);
        let mut started: Vec<_> = (0..requests).map(|_| self.decoder.take_request()).collect();
        let starts = first.chunks_exact(dim).enumerate().map(|(at, first)| {
            // Positions behind the end of a history are not there.
            let encoded = lengths.map(|lengths| &memory[at * each..][..lengths[at] as usize * dim]);
            Start { first, encoded }
        });
        self.decoder.start(&mut started, &starts.collect::<Vec<_>>(), &Team::alone());
        Ok(PackedSession::new(&self.decoder, started))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ItemFeatures;
    use crate::nn::Parameters;
    use crate::packed::agreement::Ties;
    use crate::rqt::{RqtConfig, RqtSession};
    use beam::{BeamConfig, CpuKernel, LiveMask, SimdKernel, Trie, search};
    use proptest::prelude::*;
    use rqvae::{Code, SidSpec, SidTable};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        /// The same scores and items as by the session on tensors, with and without a look back.
        #[test]
        fn packed_weights_find_the_same_items(
            seed: u64, heads in 1usize..4, hidden in 1usize..60, layers in 1usize..3, look_back in 1usize..5, width in 1usize..30,
            histories in prop::collection::vec(prop::collection::vec(0u32..200, 1..9), 1..5),
        ) {
            let spec = SidSpec { codebook_sizes: vec![9, 40, 33], suffix_size: Some(2) };
            let code = |item: u32| {
                let x = item.wrapping_mul(0x9e37_79b9);
                [(x >> 29) as Code, (x >> 10) as Code % 40, (x >> 3) as Code % 33, (item % 2) as Code]
            };
            let table = SidTable::new(spec, (0..200).flat_map(code).collect()).unwrap();
            let features = ItemFeatures::new(Arc::new(table), None).unwrap();
            let config = RqtConfig {
                dim: 24, heads, head_dim: 10, hidden, layers: 1, decoder_layers: layers, look_back, history_cap: 6,
                content: false, ..RqtConfig::default()
            };
            let model = Rqt::new(&config, features.clone(), &Parameters::new(seed).builder()).unwrap();
            let trie = Trie::build(features.sids()).unwrap();
            let histories: Vec<Vec<ItemIdx>> = histories.into_iter().map(|h| h.into_iter().map(ItemIdx).collect()).collect();
            let histories: Vec<&[ItemIdx]> = histories.iter().map(Vec::as_slice).collect();
            let live = vec![LiveMask::all(&trie); histories.len()];
            let beams = BeamConfig::uniform(width, trie.levels(), width);
            let encode = || model.encode(&histories).unwrap();
            let mut plain = RqtSession::new(&model, encode()).unwrap();
            let expected = search(&CpuKernel::new(&trie), &mut plain, &beams, histories.len(), &live).unwrap();
            let packed = PackedRqt::new(&model).unwrap();
            let mut session = packed.session(&encode()).unwrap();
            let found = search(&SimdKernel::new(&trie), &mut session, &beams, histories.len(), &live).unwrap();
            static TIES: Ties = Ties::at_most(3);
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let all = || {
                    let mut session = RqtSession::new(&model, model.encode(&histories[at..=at]).unwrap()).unwrap();
                    let items = BeamConfig::uniform(1000, trie.levels(), 1000);
                    search(&CpuKernel::new(&trie), &mut session, &items, 1, &live[at..=at]).unwrap().remove(0)
                };
                prop_assert!(TIES.agree(found, expected, all), "{:?} {:?}", found, expected);
            }
        }
    }
}
