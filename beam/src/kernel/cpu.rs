//! The reference twin: plain loops, requests in parallel. What it does is what the operation means.

use super::BeamKernel;
use crate::order::{Candidate, keep_best};
use crate::{Error, Hypothesis, LiveMask, NodeId, Result, ScoreMode, Trie};
use rayon::prelude::*;
use rqvae::{Code, SemanticId};

/// Log-probabilities of one level: (rows, `width`) row-major.
#[derive(Debug, Clone)]
pub struct Scores {
    /// Codes of the level.
    pub width: usize,
    /// `rows * width` values.
    pub data: Vec<f32>,
}

#[derive(Debug, Clone)]
struct Row {
    request: u32,
    parent: u32,
    node: NodeId,
    score: f32,
    sid: SemanticId,
}

/// The live beams of all requests: request after request, best first. Requests without a live beam have no row.
#[derive(Debug, Clone)]
pub struct CpuBeams {
    rows: Vec<Row>,
    level: usize,
    live: Vec<LiveMask>,
    score: ScoreMode,
}

impl CpuBeams {
    /// Number of live beams of all requests.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Request of beam `row`.
    pub fn request(&self, row: usize) -> usize {
        self.rows[row].request as usize
    }

    /// Row, in the beams before the last step, that beam `row` continues; 0 at the root.
    pub fn parent(&self, row: usize) -> usize {
        self.rows[row].parent as usize
    }

    /// Codes of beam `row` so far.
    pub fn codes(&self, row: usize) -> &[Code] {
        self.rows[row].sid.codes()
    }

    /// Trie node of beam `row`.
    pub fn node(&self, row: usize) -> NodeId {
        self.rows[row].node
    }
}

/// Beams over one trie on the CPU.
#[derive(Debug, Clone, Copy)]
pub struct CpuKernel<'a> {
    trie: &'a Trie,
}

impl<'a> CpuKernel<'a> {
    /// Over `trie`.
    pub fn new(trie: &'a Trie) -> Self {
        Self { trie }
    }

    fn expand(&self, beams: &CpuBeams, scores: &Scores, rows: std::ops::Range<usize>, width: usize) -> Vec<Row> {
        let mut candidates = Vec::new();
        for at in rows {
            let row = &beams.rows[at];
            let live = &beams.live[row.request as usize];
            let (codes, nodes) = self.trie.children(beams.level, row.node);
            let row_scores = &scores.data[at * scores.width..][..scores.width];
            let first = candidates.len();
            for (code, node) in codes.iter().zip(nodes) {
                let score = row_scores[usize::from(*code)];
                // NaN and infinities count as impossible.
                if score.is_finite() && live.is_live(self.trie, beams.level + 1, node) {
                    candidates.push(Candidate { score, parent: at as u32, code: *code, node });
                }
            }
            let new = &mut candidates[first..];
            let shift = match beams.score {
                ScoreMode::FullVocab => 0.0,
                ScoreMode::ValidOnly => log_sum_exp(new),
            };
            new.iter_mut().for_each(|c| c.score = row.score + (c.score - shift));
        }
        candidates.retain(|c| c.score.is_finite());
        keep_best(&mut candidates, width);
        candidates.iter().map(|c| self.child(beams, c)).collect()
    }

    fn child(&self, beams: &CpuBeams, candidate: &Candidate) -> Row {
        let parent = &beams.rows[candidate.parent as usize];
        let mut codes = [0; rqvae::MAX_CODES];
        codes[..beams.level].copy_from_slice(parent.sid.codes());
        codes[beams.level] = candidate.code;
        let sid = SemanticId::new(&codes[..=beams.level]).expect("a trie has at most MAX_CODES levels");
        Row { request: parent.request, parent: candidate.parent, node: candidate.node, score: candidate.score, sid }
    }
}

fn log_sum_exp(candidates: &[Candidate]) -> f32 {
    let max = candidates.iter().map(|c| c.score).fold(f32::NEG_INFINITY, f32::max);
    max + candidates.iter().map(|c| (c.score - max).exp()).sum::<f32>().ln()
}

impl BeamKernel for CpuKernel<'_> {
    type Scores = Scores;
    type Beams = CpuBeams;

    fn levels(&self) -> usize {
        self.trie.levels()
    }

    fn start(&self, batch: usize, live: &[LiveMask], score: ScoreMode) -> Result<CpuBeams> {
        let root = |request| {
            Ok(Row { request, parent: 0, node: Trie::ROOT, score: 0.0, sid: SemanticId::new(&[])? })
        };
        let rows = (0..batch as u32).map(root).collect::<Result<_>>()?;
        Ok(CpuBeams { rows, level: 0, live: live.to_vec(), score })
    }

    fn step(&self, beams: &mut CpuBeams, scores: &Scores, width: usize) -> Result<()> {
        let codes = self.trie.spec().codes_at(beams.level) as usize;
        if scores.width != codes || scores.data.len() != beams.rows() * codes {
            return Err(Error::Scores {
                level: beams.level,
                expected: format!("{} rows of {codes}", beams.rows()),
                got: format!("{} in rows of {}", scores.data.len(), scores.width),
            });
        }
        let mut ranges = Vec::new();
        let mut first = 0;
        for group in beams.rows.chunk_by(|a, b| a.request == b.request) {
            ranges.push(first..first + group.len());
            first += group.len();
        }
        let rows: Vec<Vec<Row>> =
            ranges.into_par_iter().map(|rows| self.expand(beams, scores, rows, width)).collect();
        beams.rows = rows.into_iter().flatten().collect();
        beams.level += 1;
        Ok(())
    }

    fn finish(&self, beams: CpuBeams, top_k: usize) -> Result<Vec<Vec<Hypothesis>>> {
        let mut lists: Vec<Vec<Hypothesis>> = vec![Vec::new(); beams.live.len()];
        for row in &beams.rows {
            let (list, live) = (&mut lists[row.request as usize], &beams.live[row.request as usize]);
            for item in self.trie.items(row.node) {
                if list.len() < top_k && live.allows(*item) {
                    list.push(Hypothesis { sid: row.sid, item: *item, log_prob: row.score });
                }
            }
        }
        Ok(lists)
    }
}
