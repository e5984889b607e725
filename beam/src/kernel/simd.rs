//! The fast twin: the reference's result from only as much work as the candidates deserve.
//!
//! Candidates are kept in a buffer of twice the width; when it is full it is cut to the best `width`, and from then on
//! most candidates fail one comparison with the worst of them. Children are gathered from their list of codes; where
//! nodes have many, 32 neighbouring scores are compared at once and the row of bits says which of the few that pass are
//! children. In a large catalogue the places of a beam's children are in no cache; those of all beams are read first, in a
//! loop that nothing interrupts, so that the processor waits for many at once. No buffer is made anew after the first
//! steps. The loops are plain Rust compiled for the widest vectors the processor has, chosen at run time.

use super::BeamKernel;
use super::beams::{Beam, CpuBeams, NONE, Room, Scores, there};
use crate::order::{CandidateKey, log_sum};
use crate::{Codes, Hypothesis, LiveMask, NodeId, Result, ScoreMode, Trie};
use rayon::prelude::*;
use rqvae::Code;
use std::ops::Range;

/// Candidates are cut at this many at the earliest.
const BUFFER: usize = 256;

/// Batches of fewer beams than this are expanded on the calling thread: waking a pool costs more.
const PARALLEL_ROWS: usize = 512;

/// Beam search on the CPU.
#[derive(Debug, Clone, Copy)]
pub struct SimdKernel<'t> {
    trie: &'t Trie,
    arch: pulp::Arch,
}

impl<'t> SimdKernel<'t> {
    /// Search over `trie`.
    pub fn new(trie: &'t Trie) -> Self {
        Self { trie, arch: pulp::Arch::new() }
    }

    /// The best `width` children of the beams of `request`.
    #[inline(always)]
    fn expand(self, beams: &CpuBeams, request: usize, scores: &Scores, width: usize, room: &mut Room) {
        let level = beams.level;
        let live = &beams.live[request];
        self.fetch(beams, request, &mut room.places);
        let mut best = Best::new(&mut room.keys, width);
        for (rank, row) in beams.rows_of(request).enumerate() {
            let beam = &beams.rows[row];
            let log_probs = &scores.data[row * scores.width..][..scores.width];
            let mut row = Row { log_probs, base: beam.log_prob, norm: 0.0, first: (rank * scores.width) as u32 };
            if beam.twin != NONE || beam.node == NONE {
                // Near what was added: few beams, and the plain way.
                beams.children(self.trie, beam, &mut room.children);
                if beams.score == ScoreMode::ValidOnly {
                    row.norm = log_sum(log_probs, &there(&room.children));
                }
                let codes = room.children.iter().filter(|child| child.live).map(|child| child.code);
                codes.for_each(|code| best.offer(&row, code));
                continue;
            }
            let nodes = room.places[rank].clone();
            let codes = self.trie.codes_of(level, nodes.clone());
            if beams.score == ScoreMode::ValidOnly {
                let there = live.base().there(level + 1, &nodes);
                let first = nodes.start;
                let node = |place: &usize| first + *place as u32;
                row.norm = if there.all_lead_on() {
                    log_sum(log_probs, &codes.iter())
                } else {
                    let places = (0..codes.len()).filter(|place| there.leads_on(node(place)));
                    log_sum(log_probs, &places.map(|place| codes.at(place)))
                };
            }
            let siblings = live.base().siblings(level + 1, &nodes);
            if let Some(listed) = siblings.listed() {
                let place = |node: &u32| (node - nodes.start) as usize;
                listed.iter().for_each(|node| best.offer(&row, codes.at(place(node))));
            } else if !siblings.all_lead_on() {
                for (code, node) in codes.iter().zip(nodes) {
                    // The comparison is cheaper than the mask.
                    if best.passes(&row, code) && siblings.leads_on(node) {
                        best.offer(&row, code);
                    }
                }
            } else if let Some(bits) = self.trie.row(level, beam.node) {
                best.offer_dense(&row, bits);
            } else {
                match codes {
                    Codes::Narrow(codes) => codes.iter().for_each(|code| best.offer(&row, Code::from(*code))),
                    Codes::Wide(codes) => codes.iter().for_each(|code| best.offer(&row, *code)),
                }
            }
        }
        best.finish();
        beams.keep(self.trie, request, scores.width, room);
    }
}

impl SimdKernel<'_> {
    /// The children of each beam of `request`, none where they are looked up in two tries; their first codes are touched.
    #[inline(always)]
    fn fetch(self, beams: &CpuBeams, request: usize, places: &mut Vec<Range<NodeId>>) {
        let plain = |beam: &Beam| beam.twin == NONE && beam.node != NONE;
        let place = |beam: &Beam| if plain(beam) { self.trie.places_of_children(beams.level, beam.node) } else { 0..0 };
        places.clear();
        places.extend(beams.rows[beams.rows_of(request)].iter().map(place));
        let all = self.trie.codes_of(beams.level, 0..self.trie.nodes(beams.level + 1) as u32);
        let first = |place: &Range<NodeId>| if place.is_empty() { 0 } else { all.at(place.start as usize) };
        std::hint::black_box(places.iter().map(first).fold(0, |mixed, code| mixed ^ code));
    }
}

/// The step of one request, compiled for every instruction set. (A closure would be called through a shim, and stay
/// code for every processor.)
struct Expand<'a> {
    kernel: SimdKernel<'a>,
    beams: &'a CpuBeams,
    request: usize,
    scores: &'a Scores,
    width: usize,
    room: &'a mut Room,
}

impl pulp::WithSimd for Expand<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        self.kernel.expand(self.beams, self.request, self.scores, self.width, self.room);
    }
}

/// Scores of the children of one beam.
struct Row<'a> {
    log_probs: &'a [f32],
    /// Score of the beam.
    base: f32,
    norm: f32,
    /// Index of its code 0.
    first: u32,
}

impl Row<'_> {
    #[inline(always)]
    fn score(&self, log_prob: f32) -> f32 {
        self.base + (log_prob - self.norm)
    }
}

/// The best candidates so far. They come with ascending indices.
struct Best<'a> {
    keys: &'a mut Vec<CandidateKey>,
    width: usize,
    full: usize,
    /// What a candidate has to beat: an equal score has a greater index than the one that is there.
    limit: f32,
}

impl<'a> Best<'a> {
    fn new(keys: &'a mut Vec<CandidateKey>, width: usize) -> Self {
        keys.clear();
        Self { keys, width, full: BUFFER.max(width.saturating_mul(2)), limit: f32::NEG_INFINITY }
    }

    #[inline(always)]
    fn passes(&self, row: &Row, code: Code) -> bool {
        row.score(row.log_probs[usize::from(code)]) > self.limit
    }

    #[inline(always)]
    fn offer(&mut self, row: &Row, code: Code) {
        let score = row.score(row.log_probs[usize::from(code)]);
        if score > self.limit {
            self.push(score, row.first + u32::from(code));
        }
    }

    /// All children of a node with many, given as bits.
    #[inline(always)]
    fn offer_dense(&mut self, row: &Row, bits: &[u32]) {
        for (word, (bits, log_probs)) in bits.iter().zip(row.log_probs.chunks(32)).enumerate() {
            let above: u32 = log_probs.iter().map(|log_prob| u32::from(row.score(*log_prob) > self.limit)).sum();
            if above == 0 {
                continue;
            }
            let mut rest = *bits;
            while rest != 0 {
                let code = 32 * word as u32 + rest.trailing_zeros();
                rest &= rest - 1;
                self.offer(row, code as Code);
            }
        }
    }

    fn push(&mut self, score: f32, index: u32) {
        let Some(key) = CandidateKey::new(score, index) else {
            return;
        };
        self.keys.push(key);
        if self.keys.len() == self.full {
            self.limit = keep_best(self.keys, self.width);
        }
    }

    fn finish(self) {
        if self.keys.len() > self.width {
            keep_best(self.keys, self.width);
        }
    }
}

/// Cuts more than `width` keys to the best `width`, in no order; the score of the worst of them.
fn keep_best(keys: &mut Vec<CandidateKey>, width: usize) -> f32 {
    let (_, worst, _) = keys.select_nth_unstable_by(width - 1, |a, b| b.cmp(a));
    let worst = worst.score();
    keys.truncate(width);
    worst
}

impl BeamKernel for SimdKernel<'_> {
    type Scores = Scores;
    type Beams = CpuBeams;

    fn levels(&self) -> usize {
        self.trie.levels()
    }

    fn start(&self, batch: usize, live: &[LiveMask], score: ScoreMode) -> Result<CpuBeams> {
        CpuBeams::start(self.trie, batch, live, score)
    }

    fn is_exhausted(&self, beams: &CpuBeams) -> bool {
        beams.rows.is_empty()
    }

    fn step(&self, beams: &mut CpuBeams, scores: &Scores, width: usize) -> Result<()> {
        let mut rooms = beams.rooms(self.trie, scores, width)?;
        let expand = |(request, room): (usize, &mut Room)| {
            self.arch.dispatch(Expand { kernel: *self, beams, request, scores, width, room });
        };
        if beams.rows() < PARALLEL_ROWS {
            rooms.iter_mut().enumerate().for_each(expand);
        } else {
            rooms.par_iter_mut().enumerate().for_each(expand);
        }
        beams.take(rooms);
        Ok(())
    }

    fn finish(&self, beams: CpuBeams, top_k: usize) -> Result<Vec<Vec<Hypothesis>>> {
        beams.finish(self.trie, top_k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::tests::made_up;
    use crate::trie::build_tests::{dense_table, table};
    use crate::{BeamConfig, CpuKernel, PrefixScorer, TrieDelta, search};
    use proptest::prelude::*;
    use rqvae::{ItemIdx, SidTable};

    /// One request's way to its mask.
    #[derive(Debug, Clone)]
    struct Filter {
        stock: Option<u64>,
        only: Option<Vec<u32>>,
        without: Vec<u32>,
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let items = |most: usize| prop::collection::vec(0u32..200, 0..most);
        (prop::option::of(any::<u64>()), prop::option::weighted(0.3, items(40)), items(30))
            .prop_map(|(stock, only, without)| Filter { stock, only, without })
    }

    impl Filter {
        fn mask(&self, trie: &Trie, all: &LiveMask) -> LiveMask {
            let items = |items: &[u32]| items.iter().map(|item| ItemIdx(*item)).collect::<Vec<_>>();
            let mut mask = all.clone();
            if let Some(stock) = self.stock {
                let kept: Vec<_> = (0..400).map(ItemIdx).filter(|item| stock >> (item.0 % 61) & 1 == 1).collect();
                mask = mask.and(trie, &all.only(trie, &kept));
            }
            if let Some(only) = &self.only {
                mask = mask.only(trie, &items(only));
            }
            mask.without(trie, &items(&self.without))
        }
    }

    type Lists = Vec<Vec<(Vec<Code>, ItemIdx, f32)>>;

    fn run<K>(kernel: &K, trie: &Trie, config: &BeamConfig, seeds: &[u64], masks: &[LiveMask]) -> Lists
    where
        K: BeamKernel<Scores = Scores, Beams = CpuBeams>,
    {
        let mut scorer = PrefixScorer::new(trie.spec(), |request: usize, prefix: &[Code], log_probs: &mut [f32]| {
            made_up(seeds[request], prefix, log_probs);
        });
        let lists = search(kernel, &mut scorer, config, seeds.len(), masks).unwrap();
        let row = |h: &Hypothesis| (h.sid.codes().to_vec(), h.item, h.log_prob);
        lists.iter().map(|list| list.iter().map(row).collect()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        /// Same lists, bit for bit: sparse and dense levels, all kinds of masks, tries with and without changes. And
        /// invariant 13: a trie with its changes is searched as a fresh build of what there is.
        #[test]
        fn the_fast_twin_is_the_reference(
            table in prop_oneof![table(), dense_table()],
            aliases: bool,
            owners in prop::collection::vec(0u32..120, 400),
            changes in prop::collection::vec((any::<bool>(), 0u32..220, any::<[u16; 5]>()), 0..40),
            seeds in prop::collection::vec(any::<u64>(), 1..4),
            filters in prop::collection::vec(filter(), 4),
            widths in prop::collection::vec(prop_oneof![1usize..8, 1usize..90], 5),
            valid_only: bool,
        ) {
            let trie = if aliases {
                let owners: Vec<_> = owners[..table.items()].iter().map(|owner| ItemIdx(*owner)).collect();
                Trie::build_aliases(&table, &owners).unwrap()
            } else {
                Trie::build(&table).unwrap()
            };
            let mut delta = TrieDelta::new(&trie);
            for (add, item, raw) in changes {
                if add {
                    let code = |l: usize| (u32::from(raw[l]) % trie.spec().codes_at(l)) as Code;
                    let codes: Vec<Code> = (0..trie.levels()).map(code).collect();
                    delta.add(ItemIdx(item), &codes).unwrap();
                } else {
                    delta.remove(ItemIdx(item));
                }
            }
            let score = if valid_only { ScoreMode::ValidOnly } else { ScoreMode::FullVocab };
            let widths = widths[..trie.levels()].to_vec();
            let top_k = widths[widths.len() - 1];
            let config = BeamConfig { widths, top_k, score };
            let masks = |trie: &Trie, all: &LiveMask| -> Vec<LiveMask> {
                filters[..seeds.len()].iter().map(|filter| filter.mask(trie, all)).collect()
            };
            let changed = masks(&trie, &delta.mask());
            let found = run(&SimdKernel::new(&trie), &trie, &config, &seeds, &changed);
            prop_assert_eq!(&found, &run(&CpuKernel::new(&trie), &trie, &config, &seeds, &changed));

            let fresh = delta.fold();
            let masks = masks(&fresh, &LiveMask::all(&fresh));
            prop_assert_eq!(&found, &run(&SimdKernel::new(&fresh), &fresh, &config, &seeds, &masks));
        }
    }

    #[test]
    fn many_beams_in_parallel_are_many_beams() {
        let spec = rqvae::SidSpec { codebook_sizes: vec![64, 64, 300], suffix_size: None };
        let codes = (0..30_000u32).flat_map(|i| {
            let x = i.wrapping_mul(0x9e37_79b9);
            [(x >> 26) as Code, (x >> 14 & 63) as Code, (x % 300) as Code]
        });
        let table = SidTable::new(spec, codes.collect()).unwrap();
        let trie = Trie::build(&table).unwrap();
        let seeds: Vec<u64> = (0..24).collect();
        let masks = vec![LiveMask::all(&trie); seeds.len()];
        let config = BeamConfig::uniform(60, trie.levels(), 50);
        let found = run(&SimdKernel::new(&trie), &trie, &config, &seeds, &masks);
        assert_eq!(found, run(&CpuKernel::new(&trie), &trie, &config, &seeds, &masks));
        assert!(found.iter().map(Vec::len).sum::<usize>() > 100);
    }
}
