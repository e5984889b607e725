//! TIGER for serving: packed weights, see [`PackedSession`].
//!
//! The plain session on tensors ([`TigerSession`](super::TigerSession)) is the reference; with weights of 32 bits results
//! differ by the rounding of sums alone.

use super::Tiger;
use crate::Result;
use crate::data::History;
use crate::history_cache::HistoryCache;
use crate::nn::with_values;
use crate::packed::{
    Aligned, Bias, Crew, Packed, PackedBlock, PackedDecoder, PackedSession, Precision, Request, Rooms, Start, Team,
    norm, on_threads, parts,
};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

/// The weights of a [`Tiger`] as they were when this was made.
pub struct PackedTiger {
    model: Tiger,
    dim: usize,
    encoder_bias: Bias,
    encoder: Vec<PackedBlock>,
    encoder_norm: Vec<f32>,
    /// Its `codes` are all tokens, those of no level behind the others.
    decoder: PackedDecoder,
    cache: Option<HistoryCache>,
}

impl PackedTiger {
    /// Copies and packs the weights as they are.
    pub fn new(model: &Tiger) -> Result<Self> {
        Self::stored_as(model, Precision::F32)
    }

    /// Copies, rounds and packs the weights; embeddings stay as they are.
    pub fn stored_as(model: &Tiger, precision: Precision) -> Result<Self> {
        let block = |block: &crate::nn::Block| PackedBlock::new(block, precision);
        let blocks = |blocks: &[crate::nn::Block]| blocks.iter().map(block).collect::<Result<Vec<_>>>();
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
            let weight = |code: usize, i: usize| tokens[(rows.start + code) * dim + i] * scales[i] * scale;
            Packed::new(rows.len(), dim, weight).stored_as(precision)
        };
        let decoder = PackedDecoder {
            dim,
            blocks: blocks(model.decoder())?,
            bias: Some(bias(model.decoder_bias(), model.levels(), 0)?),
            heads: (0..model.levels()).map(head).collect(),
            level_starts: (0..model.levels()).map(|level| model.level_rows(level).start as u32).collect(),
            codes: tokens,
            spare: Mutex::default(),
            rooms: Rooms::default(),
            crew: Crew::default(),
        };
        Ok(Self {
            dim,
            encoder_bias: bias(model.encoder_bias(), longest, longest)?,
            encoder: blocks(model.encoder())?,
            encoder_norm: with_values(encoder_norm.weight(), <[f32]>::to_vec)?,
            decoder,
            cache: None,
            model: model.clone(),
        })
    }

    /// The model it was made of.
    pub fn model(&self) -> &Tiger {
        &self.model
    }

    /// Keeps what it made of the last `histories` histories; 0: of none.
    #[must_use]
    pub fn keeping(mut self, histories: usize) -> Self {
        self.cache = NonZeroUsize::new(histories).map(HistoryCache::new);
        self
    }

    /// A request that comes alone is shared by up to `threads` threads, as far as its size is worth it.
    #[must_use]
    pub fn parted(mut self, threads: usize) -> Self {
        self.decoder.crew = Crew::new(threads);
        self
    }

    /// What is kept, where anything is.
    pub fn kept(&self) -> Option<&HistoryCache> {
        self.cache.as_ref()
    }

    /// A decoding run over `histories`, which must not be empty.
    pub fn session(&self, histories: &[History]) -> PackedSession<'_> {
        let mut requests: Vec<_> = histories.iter().map(|_| self.decoder.take_request()).collect();
        let tokens: Vec<_> = histories.iter().map(|history| self.model.history_tokens(*history)).collect();
        if histories.len() == 1 {
            self.encode(&tokens, &mut requests, &self.decoder.crew.call());
        } else {
            let mut rest = &mut requests[..];
            let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
            let parts = parts(tokens.len(), longest, rayon::current_num_threads()).map(|part| {
                let requests = rest.split_off_mut(..part.len()).unwrap_or_default();
                (&tokens[part], requests)
            });
            on_threads(parts, |(tokens, requests)| self.encode(tokens, requests, &Team::alone()));
        }
        PackedSession::new(&self.decoder, requests)
    }

    fn row(&self, token: usize) -> &[f32] {
        &self.decoder.codes[token * self.dim..][..self.dim]
    }

    /// Finds or reads histories, with the help of `team`, and makes their requests ready to decode. Those that are the same are
    /// all read where none was kept before.
    fn encode(&self, tokens: &[Vec<u32>], requests: &mut [Request], team: &Team) {
        let kept = |tokens| self.cache.as_ref().and_then(|cache| cache.get(tokens));
        let kept: Vec<_> = tokens.iter().map(|tokens| kept(tokens)).collect();
        let unread = tokens.iter().zip(&kept).filter(|(_, kept)| kept.is_none());
        let mut read = self.read(&unread.map(|(tokens, _)| &**tokens).collect::<Vec<_>>(), team).into_iter();
        let states: Vec<_> = kept
            .into_iter()
            .zip(tokens)
            .filter_map(|(kept, tokens)| {
                kept.or_else(|| {
                    let states = read.next()?;
                    if let Some(cache) = &self.cache {
                        cache.put(tokens, Arc::clone(&states));
                    }
                    Some(states)
                })
            })
            .collect();
        let first = self.row(self.model.start_row());
        let starts: Vec<_> = states.iter().map(|states| Start { first, encoded: Some(states) }).collect();
        self.decoder.start(requests, &starts, team);
    }

    /// States of some histories, each (tokens,) -> (tokens, dim).
    fn read(&self, histories: &[&[u32]], team: &Team) -> Vec<Arc<[f32]>> {
        self.decoder.rooms.lend(1, |rooms| {
            let room = &mut rooms[0];
            let (mut x, mut memory) = (std::mem::take(&mut room.x), std::mem::take(&mut room.memory));
            x.clear();
            histories.iter().copied().flatten().for_each(|token| x.extend_from_slice(self.row(*token as usize)));
            let seqs: Vec<_> = histories.iter().map(|tokens| tokens.len()).collect();
            PackedBlock::encode(&self.encoder, &mut x, &seqs, &self.encoder_bias, &mut memory, room, team);
            let mut states = Aligned::default();
            norm(&x, self.dim, &mut states);
            for row in states.chunks_exact_mut(self.dim) {
                row.iter_mut().zip(&self.encoder_norm).for_each(|(x, scale)| *x *= scale);
            }
            (room.x, room.memory) = (x, memory);
            let mut states = &*states;
            seqs.iter().map(|seq| Arc::from(states.split_off(..seq * self.dim).unwrap_or_default())).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Parameters;
    use crate::packed::agreement::Ties;
    use crate::tiger::{TigerConfig, TigerSession};
    use crate::{ItemFeatures, UserHash};
    use beam::{BeamConfig, CpuKernel, LiveMask, SimdKernel, Trie, search};
    use proptest::prelude::*;
    use rqvae::{Code, ItemIdx, SidSpec, SidTable, mix};
    use std::sync::Arc;

    fn features(items: u32) -> ItemFeatures {
        let spec = SidSpec { codebook_sizes: vec![9, 40, 33], suffix_size: Some(2) };
        let code = |item: u32| {
            let x = item.wrapping_mul(0x9e37_79b9);
            [(x >> 29) as Code, (x >> 10) as Code % 40, (x >> 3) as Code % 33, (item % 2) as Code]
        };
        ItemFeatures::new(Arc::new(SidTable::new(spec, (0..items).flat_map(code).collect()).unwrap()), None).unwrap()
    }

    /// Scores of all items by the session on tensors.
    fn scores(model: &Tiger, trie: &Trie, history: History, live: &LiveMask) -> Vec<beam::Hypothesis> {
        let mut session = TigerSession::new(model, &[history]).unwrap();
        let items = BeamConfig::uniform(1000, trie.levels(), 1000);
        search(&CpuKernel::new(trie), &mut session, &items, 1, std::slice::from_ref(live)).unwrap().remove(0)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        /// The packed session finds what the session on tensors finds: the same scores at every rank, and the same items
        /// wherever neighbours in rank are further apart than the tolerance.
        #[test]
        fn packed_weights_find_the_same_items(
            seed: u64, dim in 1usize..4, heads in 1usize..4, head_dim in 1usize..40, hidden in 1usize..90,
            layers in (1usize..3, 1usize..3), separator: bool, user_tokens in 0usize..4, width in 1usize..40,
            histories in prop::collection::vec(prop::collection::vec(0u32..300, 1..9), 1..5),
            users in prop::collection::vec(prop::option::of(0u64..9), 5),
        ) {
            let features = features(300);
            let config = TigerConfig {
                dim: 8 * dim + 3, heads, head_dim, hidden, encoder_layers: layers.0, decoder_layers: layers.1, separator,
                user_tokens, history_cap: 6, ..TigerConfig::default()
            };
            let model = Tiger::new(&config, features.clone(), &Parameters::new(seed).builder()).unwrap();
            let trie = Trie::build(features.sids()).unwrap();
            let histories: Vec<Vec<ItemIdx>> = histories.into_iter().map(|h| h.into_iter().map(ItemIdx).collect()).collect();
            let user = |at: usize| users[at].map(UserHash);
            let histories: Vec<History> =
                histories.iter().enumerate().map(|(at, items)| History { items, user: user(at) }).collect();
            let live: Vec<_> = histories.iter().map(|h| LiveMask::all(&trie).without(&trie, h.items)).collect();
            let beams = BeamConfig::uniform(width, trie.levels(), width);
            let mut plain = TigerSession::new(&model, &histories).unwrap();
            let expected = search(&CpuKernel::new(&trie), &mut plain, &beams, histories.len(), &live).unwrap();
            let packed = PackedTiger::new(&model).unwrap();
            let found = search(&SimdKernel::new(&trie), &mut packed.session(&histories), &beams, histories.len(), &live).unwrap();
            static TIES: Ties = Ties::at_most(3);
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let all = || scores(&model, &trie, histories[at], &live[at]);
                prop_assert!(TIES.agree(found, expected, all), "{:?} {:?}", found, expected);
            }
        }
    }

    fn tiny() -> (Tiger, Trie) {
        let config = TigerConfig {
            dim: 24,
            heads: 2,
            head_dim: 12,
            hidden: 40,
            encoder_layers: 1,
            decoder_layers: 2,
            history_cap: 5,
            ..TigerConfig::default()
        };
        let features = features(300);
        let trie = Trie::build(features.sids()).unwrap();
        (Tiger::new(&config, features, &Parameters::new(7).builder()).unwrap(), trie)
    }

    fn histories(count: usize, seed: u64) -> Vec<Vec<ItemIdx>> {
        let number = |at: usize| mix(seed ^ (at as u64) << 8);
        let item = |at: usize| ItemIdx((number(at) % 300) as u32);
        (0..count).map(|h| (0..=number(h) as usize % 6).map(|i| item(10 * h + i + 1)).collect()).collect()
    }

    fn run(packed: &PackedTiger, trie: &Trie, histories: &[Vec<ItemIdx>], width: usize) -> Vec<Vec<beam::Hypothesis>> {
        let histories: Vec<History> = histories.iter().map(History::from).collect();
        let live = vec![LiveMask::all(trie); histories.len()];
        let beams = BeamConfig::uniform(width, trie.levels(), width);
        search(&SimdKernel::new(trie), &mut packed.session(&histories), &beams, histories.len(), &live).unwrap()
    }

    #[test]
    fn ten_thousand_requests_find_the_same_items() {
        let (model, trie) = tiny();
        let packed = PackedTiger::new(&model).unwrap();
        let beams = BeamConfig::uniform(8, trie.levels(), 8);
        let live = vec![LiveMask::all(&trie); 250];
        // None of these requests has one.
        let ties = Ties::at_most(0);
        for batch in 0..40 {
            let histories = histories(live.len(), batch);
            let found = run(&packed, &trie, &histories, 8);
            let histories: Vec<History> = histories.iter().map(History::from).collect();
            let mut plain = TigerSession::new(&model, &histories).unwrap();
            let expected = search(&CpuKernel::new(&trie), &mut plain, &beams, histories.len(), &live).unwrap();
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let all = || scores(&model, &trie, histories[at], &live[at]);
                assert!(ties.agree(found, expected, all), "{found:?} {expected:?}");
            }
        }
    }

    #[test]
    fn who_may_get_nothing_gets_nothing() {
        let (model, trie) = tiny();
        let packed = PackedTiger::new(&model).unwrap().parted(2);
        let all: Vec<ItemIdx> = (0..300).map(ItemIdx).collect();
        let (some, none) = (LiveMask::all(&trie), LiveMask::all(&trie).without(&trie, &all));
        let histories = histories(3, 1);
        let histories: Vec<History> = histories.iter().map(History::from).collect();
        let beams = BeamConfig::uniform(5, trie.levels(), 5);
        for live in [vec![none.clone()], vec![some.clone(), some.clone(), none.clone()], vec![none, some.clone(), some]]
        {
            let mut session = packed.session(&histories[..live.len()]);
            let found = search(&SimdKernel::new(&trie), &mut session, &beams, live.len(), &live).unwrap();
            for (list, live) in found.iter().zip(&live) {
                assert_eq!(list.len(), if live.is_empty() { 0 } else { 5 });
            }
        }
    }

    #[test]
    fn threads_and_neighbours_change_no_bit() {
        let (model, trie) = tiny();
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let mut packed = PackedTiger::stored_as(&model, precision).unwrap();
            let histories = histories(29, 3);
            let alone = |packed: &mut PackedTiger, threads, width| -> Vec<_> {
                // However small the parts are.
                packed.decoder.crew = Crew::with_least(threads, 1);
                let run = |history| run(packed, &trie, std::slice::from_ref(history), width).remove(0);
                histories.iter().map(run).collect()
            };
            // Seven, three or one of them go through products together, the last ones as they come, and some such groups through
            // halves of blocks.
            for width in [13, 30, 100] {
                let expected = alone(&mut packed, 1, width);
                assert!(expected.iter().all(|list| list.len() == width));
                for threads in 2..=4 {
                    assert_eq!(alone(&mut packed, threads, width), expected);
                }
                for (batch, threads) in [(2, 1), (9, 2), (29, 1), (29, 2)] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let run = |histories| pool.install(|| run(&packed, &trie, histories, width));
                    assert_eq!(histories.chunks(batch).flat_map(run).collect::<Vec<_>>(), expected);
                }
            }
        }
    }

    #[test]
    fn rounded_weights_find_nearly_the_same() {
        let (model, trie) = tiny();
        let histories = histories(60, 5);
        let lists = |precision| run(&PackedTiger::stored_as(&model, precision).unwrap(), &trie, &histories, 10);
        let expected = lists(Precision::F32);
        // Weights are off by a 256th at most in 16 bits, by a 254th of the greatest in 8.
        for (precision, tolerance) in [(Precision::Bf16, 0.2), (Precision::Int8, 0.4)] {
            let found = lists(precision);
            assert_ne!(found, expected);
            let best = |list: &Vec<beam::Hypothesis>| list[0].log_prob;
            let apart = found.iter().zip(&expected).map(|(a, b)| (best(a) - best(b)).abs()).fold(0.0, f32::max);
            assert!(apart < tolerance, "{precision:?}: {apart}");
        }
    }
}
