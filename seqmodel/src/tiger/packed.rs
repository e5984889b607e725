//! TIGER for serving: packed weights, see [`PackedSession`].
//!
//! The plain session on tensors ([`TigerSession`](super::TigerSession)) is the reference; results differ by the order
//! of sums alone.

use super::Tiger;
use crate::Result;
use crate::nn::with_values;
use crate::packed::{Bias, Packed, PackedBlock, PackedDecoder, PackedSession, Request, Scratch, norm};
use rayon::prelude::*;
use rqvae::ItemIdx;

/// The weights of a [`Tiger`] as they were when this was made.
pub struct PackedTiger {
    model: Tiger,
    dim: usize,
    encoder_bias: Bias,
    encoder: Vec<PackedBlock>,
    encoder_norm: Vec<f32>,
    /// Its `codes` are all tokens, those of no level behind the others.
    decoder: PackedDecoder,
}

impl PackedTiger {
    /// Copies and packs the weights.
    pub fn new(model: &Tiger) -> Result<Self> {
        let blocks = |blocks: &[crate::nn::Block]| blocks.iter().map(PackedBlock::new).collect::<Result<Vec<_>>>();
        let dim = model.config().dim;
        let tokens = with_values(model.tokens(), <[f32]>::to_vec)?;
        let longest = model.longest();
        let bias = |bias: &crate::nn::RelativeBias, left: usize, right: usize| -> Result<Bias> {
            let table = bias.by_distance(left, right)?;
            Ok(Bias { table, distances: left + right + 1, zero: left })
        };
        let (encoder_norm, decoder_norm) = model.norms();
        let scales = with_values(decoder_norm.weight(), <[f32]>::to_vec)?;
        let scale = (dim as f32).powf(-0.5);
        let head = |level: usize| {
            let rows = model.level_rows(level);
            Packed::new(rows.len(), dim, |code, i| tokens[(rows.start + code) * dim + i] * scales[i] * scale)
        };
        let decoder = PackedDecoder {
            dim,
            blocks: blocks(model.decoder())?,
            bias: Some(bias(model.decoder_bias(), model.levels(), 0)?),
            heads: (0..model.levels()).map(head).collect(),
            level_starts: (0..model.levels()).map(|level| model.level_rows(level).start as u32).collect(),
            codes: tokens,
        };
        Ok(Self {
            dim,
            encoder_bias: bias(model.encoder_bias(), longest, longest)?,
            encoder: blocks(model.encoder())?,
            encoder_norm: with_values(encoder_norm.weight(), <[f32]>::to_vec)?,
            decoder,
            model: model.clone(),
        })
    }

    /// The model it was made of.
    pub fn model(&self) -> &Tiger {
        &self.model
    }

    /// A decoding run over `histories`, which must not be empty.
    pub fn session(&self, histories: &[&[ItemIdx]]) -> PackedSession<'_> {
        let requests = if histories.len() == 1 {
            vec![self.encode(histories[0])]
        } else {
            histories.par_iter().map(|history| self.encode(history)).collect()
        };
        PackedSession::new(&self.decoder, requests)
    }

    fn row(&self, token: usize) -> &[f32] {
        &self.decoder.codes[token * self.dim..][..self.dim]
    }

    fn encode(&self, history: &[ItemIdx]) -> Request {
        let tokens = self.model.history_tokens(history);
        let mut scratch = Scratch::default();
        let mut x = Vec::with_capacity(tokens.len() * self.dim);
        tokens.iter().for_each(|token| x.extend_from_slice(self.row(*token as usize)));
        for block in &self.encoder {
            block.encode(&mut x, tokens.len(), &self.encoder_bias, &mut scratch);
        }
        let mut states = Vec::new();
        norm(&x, self.dim, &mut states);
        for row in states.chunks_exact_mut(self.dim) {
            row.iter_mut().zip(&self.encoder_norm).for_each(|(x, scale)| *x *= scale);
        }
        self.decoder.request(self.row(self.model.start_row()), Some(&states), scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ItemFeatures;
    use crate::nn::Parameters;
    use crate::tiger::{TigerConfig, TigerSession};
    use beam::{BeamConfig, CpuKernel, LiveMask, SimdKernel, Trie, search};
    use proptest::prelude::*;
    use rqvae::{Code, SidSpec, SidTable};
    use std::sync::Arc;

    /// Sums of a few hundred products of numbers around 1, in another order, through some layers.
    const TOLERANCE: f32 = 2e-4;

    fn features(items: u32) -> ItemFeatures {
        let spec = SidSpec { codebook_sizes: vec![9, 40, 33], suffix_size: Some(2) };
        let code = |item: u32| {
            let x = item.wrapping_mul(0x9e37_79b9);
            [(x >> 29) as Code, (x >> 10) as Code % 40, (x >> 3) as Code % 33, (item % 2) as Code]
        };
        ItemFeatures::new(Arc::new(SidTable::new(spec, (0..items).flat_map(code).collect()).unwrap()), None).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        /// The packed session finds what the session on tensors finds: the same scores at every rank, and the same items
        /// wherever neighbours in rank are further apart than the tolerance.
        #[test]
        fn packed_weights_find_the_same_items(
            seed: u64, dim in 1usize..4, heads in 1usize..4, head_dim in 1usize..40, hidden in 1usize..90,
            layers in (1usize..3, 1usize..3), separator: bool, width in 1usize..40,
            histories in prop::collection::vec(prop::collection::vec(0u32..300, 1..9), 1..5),
        ) {
            let features = features(300);
            let config = TigerConfig {
                dim: 8 * dim + 3, heads, head_dim, hidden, encoder_layers: layers.0, decoder_layers: layers.1, separator,
                history_cap: 6, ..TigerConfig::default()
            };
            let model = Tiger::new(&config, features.clone(), &Parameters::new(seed).builder()).unwrap();
            let trie = Trie::build(features.sids()).unwrap();
            let histories: Vec<Vec<ItemIdx>> = histories.into_iter().map(|h| h.into_iter().map(ItemIdx).collect()).collect();
            let histories: Vec<&[ItemIdx]> = histories.iter().map(Vec::as_slice).collect();
            let live: Vec<_> = histories.iter().map(|h| LiveMask::all(&trie).without(&trie, h)).collect();
            let beams = BeamConfig::uniform(width, trie.levels(), width);
            let mut plain = TigerSession::new(&model, &histories).unwrap();
            let expected = search(&CpuKernel::new(&trie), &mut plain, &beams, histories.len(), &live).unwrap();
            let packed = PackedTiger::new(&model).unwrap();
            let found = search(&SimdKernel::new(&trie), &mut packed.session(&histories), &beams, histories.len(), &live).unwrap();
            for (found, expected) in found.iter().zip(&expected) {
                prop_assert_eq!(found.len(), expected.len());
                for (at, (a, b)) in found.iter().zip(expected).enumerate() {
                    prop_assert!((a.log_prob - b.log_prob).abs() < TOLERANCE, "{} {}", a.log_prob, b.log_prob);
                    let apart = |other: Option<&beam::Hypothesis>| {
                        other.is_none_or(|other| (other.log_prob - b.log_prob).abs() > TOLERANCE)
                    };
                    // At the end of the list the next one is not known.
                    let alone = (at == 0 || apart(expected.get(at - 1))) && at + 1 < expected.len() && apart(expected.get(at + 1));
                    prop_assert!(!alone || a.item == b.item);
                }
            }
        }
    }
}
