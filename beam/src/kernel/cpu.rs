//! The reference twin: plain loops over all children of all beams, then a sort.

use super::BeamKernel;
use super::beams::{CpuBeams, Room, Scores, there};
use crate::order::{CandidateKey, log_sum};
use crate::{Hypothesis, LiveMask, Result, ScoreMode, Trie};

/// Beam search on the CPU, as plain as can be: what every other kernel must give. [`crate::SimdKernel`] is the fast one.
#[derive(Debug, Clone, Copy)]
pub struct CpuKernel<'t> {
    trie: &'t Trie,
}

impl<'t> CpuKernel<'t> {
    /// Search over `trie`.
    pub fn new(trie: &'t Trie) -> Self {
        Self { trie }
    }

    /// The best `width` children of the beams of `request`.
    fn expand(self, beams: &CpuBeams, request: usize, scores: &Scores, width: usize, room: &mut Room) {
        room.keys.clear();
        for (rank, row) in beams.rows_of(request).enumerate() {
            let beam = &beams.rows[row];
            let log_probs = &scores.data[row * scores.width..][..scores.width];
            beams.children(self.trie, beam, &mut room.children);
            let norm = match beams.score {
                ScoreMode::FullVocab => 0.0,
                ScoreMode::ValidOnly => log_sum(log_probs, &there(&room.children)),
            };
            for child in room.children.iter().filter(|child| child.live) {
                let code = usize::from(child.code);
                let score = beam.log_prob + (log_probs[code] - norm);
                // The arguments have been checked: the index fits.
                room.keys.extend(CandidateKey::new(score, (rank * scores.width + code) as u32));
            }
        }
        room.keys.sort_unstable_by(|a, b| b.cmp(a));
        room.keys.truncate(width);
        beams.keep(self.trie, request, scores.width, room);
    }
}

impl BeamKernel for CpuKernel<'_> {
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
        for (request, room) in rooms.iter_mut().enumerate() {
            self.expand(beams, request, scores, width, room);
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
