//! What a search kept on its way: for pages that show it and for people who wonder why.

use crate::{BeamKernel, BoxError, CpuBeams, Scores, StepScorer};
use rqvae::SemanticId;

/// A prefix that was kept after a level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kept {
    /// The codes so far.
    pub prefix: SemanticId,
    /// Sum of their log-probabilities.
    pub log_prob: f32,
}

/// The beams of every request, level by level.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// `levels[l][request]`: kept after code l, best first; the last level is what the search returns.
    pub levels: Vec<Vec<Vec<Kept>>>,
}

/// A scorer that writes down which beams it is asked about.
pub struct Traced<'a, S> {
    scorer: S,
    requests: usize,
    trace: Option<&'a mut Trace>,
}

impl<'a, S> Traced<'a, S> {
    /// Asks `scorer` for `requests` histories and writes into `trace`, where there is one.
    pub fn new(scorer: S, requests: usize, trace: Option<&'a mut Trace>) -> Self {
        Self { scorer, requests, trace }
    }
}

impl<S, K> StepScorer<K> for Traced<'_, S>
where
    S: StepScorer<K>,
    K: BeamKernel<Scores = Scores, Beams = CpuBeams>,
{
    fn score(&mut self, level: usize, beams: &CpuBeams) -> Result<Scores, BoxError> {
        if let (Some(trace), 1..) = (&mut self.trace, level) {
            let mut kept = vec![Vec::new(); self.requests];
            for row in 0..beams.rows() {
                let prefix = SemanticId::new(beams.codes(row))?;
                kept[beams.request(row)].push(Kept { prefix, log_prob: beams.log_prob(row) });
            }
            trace.levels.push(kept);
        }
        self.scorer.score(level, beams)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BeamConfig, LiveMask, PrefixScorer, SimdKernel, Trie, search};
    use rqvae::{Code, SidSpec, SidTable};

    #[test]
    fn every_result_grew_out_of_kept_prefixes() {
        let spec = SidSpec { codebook_sizes: vec![4, 4, 4], suffix_size: None };
        let codes = (0..30u16).flat_map(|i| [i % 4, i / 4 % 4, i / 16]).collect();
        let trie = Trie::build(&SidTable::new(spec, codes).unwrap()).unwrap();
        let score = |request: usize, prefix: &[Code], out: &mut [f32]| {
            let base = request + prefix.iter().map(|c| usize::from(*c)).sum::<usize>();
            out.iter_mut().enumerate().for_each(|(i, x)| *x = -(((base + 3 * i) % 5) as f32));
        };
        let mut trace = Trace::default();
        let scorer = PrefixScorer::new(trie.spec(), score);
        let mut traced = Traced::new(scorer, 2, Some(&mut trace));
        let live = vec![LiveMask::all(&trie); 2];
        let config = BeamConfig::uniform(5, 3, 5);
        let lists = search(&SimdKernel::new(&trie), &mut traced, &config, 2, &live).unwrap();
        assert_eq!(trace.levels.len(), 2);
        for (request, list) in lists.iter().enumerate() {
            assert_eq!(list.len(), 5);
            for hypothesis in list {
                for (level, kept) in trace.levels.iter().enumerate() {
                    assert!(kept[request].iter().any(|k| k.prefix == hypothesis.sid.prefix(level + 1)));
                    assert!(kept[request].windows(2).all(|w| w[0].log_prob >= w[1].log_prob));
                }
            }
        }
    }
}
