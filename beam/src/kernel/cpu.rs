//! The reference twin: plain loops, rayon over the requests.
//!
//! Candidates of a request are enumerated parent by parent and code by code and kept as [`CandidateKey`]s in a buffer
//! of twice the width; whenever it is full it is cut to the best `width`, and from then on most candidates fail one
//! comparison. The result is that of a full sort.

use super::BeamKernel;
use crate::order::{CandidateKey, log_sum};
use crate::{Error, Hypothesis, LiveMask, NodeId, Result, ScoreMode, Trie};
use rayon::prelude::*;
use rqvae::{Code, SemanticId};
use std::ops::Range;

/// Candidates are cut at this many at the earliest.
const BUFFER: usize = 256;

/// Log-probabilities of the codes of one level.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    /// Number of codes of the level.
    pub width: usize,
    /// (rows, width), natural logs, rows as in [`CpuBeams`].
    pub data: Vec<f32>,
}

/// Live beams of all requests, request by request, best first within a request.
#[derive(Debug, Clone)]
pub struct CpuBeams {
    level: usize,
    score: ScoreMode,
    live: Vec<LiveMask>,
    /// Rows of request r are `starts[r]..starts[r + 1]`.
    starts: Vec<usize>,
    rows: Vec<Beam>,
    /// (rows, level).
    codes: Vec<Code>,
}

#[derive(Debug, Clone, Copy)]
struct Beam {
    request: usize,
    parent: usize,
    node: NodeId,
    log_prob: f32,
}

impl CpuBeams {
    /// Codes chosen so far; the next scores are of this level.
    pub fn level(&self) -> usize {
        self.level
    }

    /// Number of live beams of all requests. At level 0 there is one per request.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Request of `row`; ascending.
    pub fn request(&self, row: usize) -> usize {
        self.rows[row].request
    }

    /// Rows of `request`.
    pub fn rows_of(&self, request: usize) -> Range<usize> {
        self.starts[request]..self.starts[request + 1]
    }

    /// Path of `row`, one code per level so far: (level,).
    pub fn codes(&self, row: usize) -> &[Code] {
        &self.codes[row * self.level..][..self.level]
    }

    /// The row of the step before that `row` continues; at level 0 the row itself.
    pub fn parent(&self, row: usize) -> usize {
        self.rows[row].parent
    }

    /// Node of `row` in the trie.
    pub fn node(&self, row: usize) -> NodeId {
        self.rows[row].node
    }

    /// Sum of the scores along the path of `row`.
    pub fn log_prob(&self, row: usize) -> f32 {
        self.rows[row].log_prob
    }
}

/// Beam search on the CPU.
#[derive(Debug, Clone, Copy)]
pub struct CpuKernel<'t> {
    trie: &'t Trie,
}

impl<'t> CpuKernel<'t> {
    /// Search over `trie`.
    pub fn new(trie: &'t Trie) -> Self {
        Self { trie }
    }

    /// The best `width` children of the beams of `request`, best first, with their codes.
    fn expand(
        self,
        beams: &CpuBeams,
        request: usize,
        scores: &Scores,
        width: usize,
        keys: &mut Vec<CandidateKey>,
    ) -> Vec<(Beam, Code)> {
        let (level, rows) = (beams.level, beams.rows_of(request));
        let live = &beams.live[request];
        let full = BUFFER.max(width.saturating_mul(2));
        let mut floor = CandidateKey::FLOOR;
        keys.clear();
        for (rank, beam) in beams.rows[rows.clone()].iter().enumerate() {
            let log_probs = &scores.data[(rows.start + rank) * scores.width..][..scores.width];
            let (codes, children) = self.trie.children(level, beam.node);
            let norm = match beams.score {
                ScoreMode::FullVocab => 0.0,
                ScoreMode::ValidOnly => log_sum(log_probs, codes),
            };
            let siblings = live.siblings(level + 1, &children);
            let first = rank * scores.width;
            for (child, code) in children.zip(codes) {
                let code = usize::from(*code);
                let score = beam.log_prob + (log_probs[code] - norm);
                // `step` has checked that the index fits.
                let Some(key) = CandidateKey::new(score, (first + code) as u32) else {
                    continue;
                };
                if key <= floor || !siblings.leads_on(child) {
                    continue;
                }
                keys.push(key);
                if keys.len() == full {
                    floor = keep_best(keys, width);
                }
            }
        }
        keep_best(keys, width);
        keys.sort_unstable_by(|a, b| b.cmp(a));
        let kept = |key: &CandidateKey| {
            let (rank, code) = (key.index() as usize / scores.width, key.index() as usize % scores.width);
            let parent = rows.start + rank;
            let code = code as Code;
            let node = self.trie.child(level, beams.rows[parent].node, code);
            let node = node.expect("a candidate is a child of its parent");
            (Beam { request, parent, node, log_prob: key.score() }, code)
        };
        keys.iter().map(kept).collect()
    }
}

/// Cuts `keys` to the best `width`, in no order; the worst of them, or the floor when there are not that many.
fn keep_best(keys: &mut Vec<CandidateKey>, width: usize) -> CandidateKey {
    if keys.len() < width {
        return CandidateKey::FLOOR;
    }
    let (_, worst, _) = keys.select_nth_unstable_by(width - 1, |a, b| b.cmp(a));
    let worst = *worst;
    keys.truncate(width);
    worst
}

impl BeamKernel for CpuKernel<'_> {
    type Scores = Scores;
    type Beams = CpuBeams;

    fn levels(&self) -> usize {
        self.trie.levels()
    }

    fn start(&self, batch: usize, live: &[LiveMask], score: ScoreMode) -> Result<CpuBeams> {
        if live.len() != batch {
            return Err(Error::shape("live masks", format!("one per request, {batch}"), live.len()));
        }
        live.iter().try_for_each(|mask| mask.check(self.trie))?;
        Ok(CpuBeams {
            level: 0,
            score,
            live: live.to_vec(),
            starts: (0..=batch).collect(),
            rows: (0..batch).map(|row| Beam { request: row, parent: row, node: Trie::ROOT, log_prob: 0.0 }).collect(),
            codes: Vec::new(),
        })
    }

    fn is_exhausted(&self, beams: &CpuBeams) -> bool {
        beams.rows.is_empty()
    }

    fn step(&self, beams: &mut CpuBeams, scores: &Scores, width: usize) -> Result<()> {
        let level = beams.level;
        if level >= self.levels() {
            return Err(Error::shape("steps of a search", self.levels(), level + 1));
        }
        let codes_here = self.trie.spec().codes_at(level) as usize;
        if scores.width != codes_here || scores.data.len() != beams.rows() * codes_here {
            let expected = format!("({}, {codes_here})", beams.rows());
            let got = format!("{} numbers in rows of {}", scores.data.len(), scores.width);
            return Err(Error::shape("scores", expected, got));
        }
        let batch = beams.live.len();
        let most = (0..batch).map(|request| beams.rows_of(request).len()).max().unwrap_or(0);
        if width == 0 || most as u64 * codes_here as u64 > 1 << 32 {
            return Err(Error::config(
                "widths",
                width,
                "at least 1, and 2^32 over the codes of the next level at most",
            ));
        }
        let expand = |keys: &mut Vec<CandidateKey>, request| self.expand(beams, request, scores, width, keys);
        // Waking a pool for one request costs more than the step.
        let kept: Vec<Vec<(Beam, Code)>> = if batch == 1 {
            vec![expand(&mut Vec::new(), 0)]
        } else {
            (0..batch).into_par_iter().map_init(Vec::new, expand).collect()
        };
        let total = kept.iter().map(Vec::len).sum();
        let mut starts = Vec::with_capacity(batch + 1);
        let mut rows = Vec::with_capacity(total);
        let mut codes = Vec::with_capacity(total * (level + 1));
        starts.push(0);
        for (beam, code) in kept.iter().flat_map(|kept| {
            starts.push(starts[starts.len() - 1] + kept.len());
            kept
        }) {
            rows.push(*beam);
            codes.extend_from_slice(beams.codes(beam.parent));
            codes.push(*code);
        }
        (beams.starts, beams.rows, beams.codes, beams.level) = (starts, rows, codes, level + 1);
        Ok(())
    }

    fn finish(&self, beams: CpuBeams, top_k: usize) -> Result<Vec<Vec<Hypothesis>>> {
        if !beams.rows.is_empty() && beams.level != self.levels() {
            return Err(Error::shape("steps of a search", self.levels(), beams.level));
        }
        let mut lists = Vec::with_capacity(beams.live.len());
        for (request, live) in beams.live.iter().enumerate() {
            let mut list = Vec::with_capacity(top_k.min(live.len()));
            for row in beams.rows_of(request) {
                let sid = SemanticId::new(beams.codes(row))?;
                let items = self.trie.items(beams.node(row)).iter().filter(|item| live.allows(**item));
                let items = items.take(top_k - list.len());
                list.extend(items.map(|item| Hypothesis { sid, item: *item, log_prob: beams.log_prob(row) }));
            }
            lists.push(list);
        }
        Ok(lists)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rqvae::{SidSpec, SidTable};

    fn trie() -> Trie {
        let spec = SidSpec { codebook_sizes: vec![2, 3], suffix_size: None };
        Trie::build(&SidTable::new(spec, vec![0, 0, 0, 2, 1, 1]).unwrap()).unwrap()
    }

    #[test]
    fn beams_tell_a_scorer_where_they_come_from() {
        let trie = trie();
        let kernel = CpuKernel::new(&trie);
        let live = vec![LiveMask::all(&trie), LiveMask::all(&trie).without(&trie, &[rqvae::ItemIdx(2)])];
        let mut beams = kernel.start(2, &live, ScoreMode::FullVocab).unwrap();
        assert_eq!((beams.rows(), beams.request(1), beams.parent(1), beams.codes(1)), (2, 1, 1, &[][..]));
        kernel.step(&mut beams, &Scores { width: 2, data: vec![-1.0, -0.5, -1.0, -0.5] }, 5).unwrap();
        let rows: Vec<_> = (0..beams.rows()).map(|r| (beams.request(r), beams.parent(r), beams.codes(r)[0])).collect();
        assert_eq!(rows, [(0, 0, 1), (0, 0, 0), (1, 1, 0)]);
        assert_eq!((beams.rows_of(0), beams.rows_of(1), beams.level()), (0..2, 2..3, 1));
    }

    #[test]
    fn bad_arguments_are_named() {
        let trie = trie();
        let kernel = CpuKernel::new(&trie);
        let live = [LiveMask::all(&trie)];
        assert!(kernel.start(2, &live, ScoreMode::FullVocab).is_err());
        let mut beams = kernel.start(1, &live, ScoreMode::FullVocab).unwrap();
        let error = kernel.step(&mut beams, &Scores { width: 3, data: vec![0.0; 3] }, 1).unwrap_err();
        assert_eq!(error.to_string(), "scores: expected (1, 2), got 3 numbers in rows of 3");
        assert!(kernel.step(&mut beams, &Scores { width: 2, data: vec![0.0; 2] }, 0).is_err());
        assert!(kernel.finish(beams, 1).is_err());
    }
}
