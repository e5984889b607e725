//! TIGER for serving: packed weights, one request a thread, keys and values that never move.
//!
//! The plain session on tensors ([`TigerSession`](super::TigerSession)) is the reference; results differ by the order
//! of sums alone. The keys and values of a history are kept once per request and read by all its beams; those of a
//! beam's own path are read through the ancestor table.

use super::Tiger;
use crate::nn::{log_softmax_row, with_values};
use crate::packed::{Bias, Into, Packed, PackedBlock, PackedMemory, Rows, Scratch, norm};
use crate::{Error, Result};
use beam::{BeamKernel, BoxError, CpuBeams, Scores, StepScorer};
use rayon::prelude::*;
use rqvae::ItemIdx;
use std::ops::Range;

/// The weights of a [`Tiger`] as they were when this was made.
pub struct PackedTiger {
    model: Tiger,
    dim: usize,
    /// (tokens, dim).
    tokens: Vec<f32>,
    encoder_bias: Bias,
    encoder: Vec<PackedBlock>,
    encoder_norm: Vec<f32>,
    decoder_bias: Bias,
    decoder: Vec<PackedBlock>,
    /// The decoder's norm and scale folded in: one per level.
    heads: Vec<Packed>,
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
        Ok(Self {
            dim,
            heads: (0..model.levels()).map(head).collect(),
            encoder_bias: bias(model.encoder_bias(), longest, longest)?,
            encoder: blocks(model.encoder())?,
            encoder_norm: with_values(encoder_norm.weight(), <[f32]>::to_vec)?,
            decoder_bias: bias(model.decoder_bias(), model.levels(), 0)?,
            decoder: blocks(model.decoder())?,
            tokens,
            model: model.clone(),
        })
    }

    /// A decoding run over `histories`, which must not be empty.
    pub fn session(&self, histories: &[&[ItemIdx]]) -> PackedSession<'_> {
        let requests = if histories.len() == 1 {
            vec![self.encode(histories[0])]
        } else {
            histories.par_iter().map(|history| self.encode(history)).collect()
        };
        PackedSession { model: self, requests, before: Vec::new() }
    }

    fn row(&self, token: usize) -> &[f32] {
        &self.tokens[token * self.dim..][..self.dim]
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
        let memory = self.decoder.iter().map(|block| block.memory(&states, tokens.len(), &mut scratch)).collect();
        let past = vec![Vec::new(); self.decoder.len()];
        Request { memory, past, ancestors: Vec::new(), x, normed: states, scratch }
    }

    /// Log-probabilities of `level` for beams that continue rows `parents` of the step before: (rows, codes).
    fn advance(&self, request: &mut Request, level: usize, parents: &[u32], codes: &[u32], log_probs: &mut [f32]) {
        let rows = codes.len();
        let token = |code: &u32| match level {
            0 => self.model.start_row(),
            _ => self.model.level_rows(level - 1).start + *code as usize,
        };
        request.x.clear();
        codes.iter().for_each(|code| request.x.extend_from_slice(self.row(token(code))));
        if level > 0 {
            let before = level - 1;
            let path = |parent: &u32| &request.ancestors[*parent as usize * before..][..before];
            let longer = parents.iter().flat_map(|parent| path(parent).iter().chain([parent]).copied());
            request.ancestors = longer.collect();
        }
        for (layer, block) in self.decoder.iter().enumerate() {
            let past = &request.past[layer][..];
            let memory = Some(&request.memory[layer]);
            let (x, scratch) = (&mut request.x, &mut request.scratch);
            let new = block.step(x, Some(&self.decoder_bias), memory, past, &request.ancestors, scratch);
            request.past[layer].push(new);
        }
        norm(&request.x, self.dim, &mut request.normed);
        let normed = Rows { data: &request.normed, stride: self.dim, count: rows };
        let width = self.heads[level].outputs();
        self.heads[level].product(normed, log_probs, width, Into::Place);
        log_probs.chunks_exact_mut(width).for_each(log_softmax_row);
    }
}

/// What one request keeps between steps.
struct Request {
    /// One per block.
    memory: Vec<PackedMemory>,
    /// `past[block][step]`: keys and values of the rows of the step.
    past: Vec<Vec<Vec<f32>>>,
    /// (rows, steps so far).
    ancestors: Vec<u32>,
    x: Vec<f32>,
    normed: Vec<f32>,
    scratch: Scratch,
}

/// One decoding run of a [`PackedTiger`].
pub struct PackedSession<'a> {
    model: &'a PackedTiger,
    requests: Vec<Request>,
    /// Rows of each request at the last step.
    before: Vec<Range<usize>>,
}

/// One request's share of a step.
struct Task<'a> {
    request: &'a mut Request,
    parents: Vec<u32>,
    codes: Vec<u32>,
    log_probs: &'a mut [f32],
}

impl<K: BeamKernel<Scores = Scores, Beams = CpuBeams>> StepScorer<K> for PackedSession<'_> {
    fn score(&mut self, level: usize, beams: &CpuBeams) -> std::result::Result<Scores, BoxError> {
        let model = self.model;
        let Some(head) = model.heads.get(level) else {
            let (expected, found) = (format!("{} levels", model.heads.len()), format!("level {level}"));
            return Err(Error::Mismatch { what: "search".into(), expected, found }.into());
        };
        let width = head.outputs();
        let mut data = vec![0.0; beams.rows() * width];
        let ranges: Vec<_> = (0..self.requests.len()).map(|request| beams.rows_of(request)).collect();
        let mut rest = data.as_mut_slice();
        let mut tasks = Vec::with_capacity(ranges.len());
        for (at, (request, range)) in self.requests.iter_mut().zip(&ranges).enumerate() {
            let (log_probs, after) = rest.split_at_mut(range.len() * width);
            rest = after;
            let first = self.before.get(at).map_or(0, |before| before.start);
            let parents = range.clone().map(|row| (beams.parent(row) - first.min(beams.parent(row))) as u32).collect();
            let codes = range.clone().map(|row| beams.codes(row).last().map_or(0, |code| u32::from(*code))).collect();
            tasks.push(Task { request, parents, codes, log_probs });
        }
        let run = |task: Task| model.advance(task.request, level, &task.parents, &task.codes, task.log_probs);
        if tasks.len() == 1 {
            tasks.into_iter().for_each(run);
        } else {
            tasks.into_par_iter().for_each(run);
        }
        self.before = ranges;
        Ok(Scores { width, data })
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
