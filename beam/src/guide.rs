//! Guidance: a second opinion on whole items that steers the search code by code.
//!
//! Some models also score items directly, which gives a distribution q over the catalogue. A [`Guided`] scorer mixes it
//! with the distribution p of the codes: an item ends with (1 - w) log p + w log q. On the way a prefix counts as much
//! as the best allowed item below it, max log q, so guidance never rates a prefix below what it can still lead to: with
//! w = 1 and beams no narrower than the list, search returns the best items by q exactly; with w = 0 it is the search
//! without guidance.
//!
//! Idea: Yang et al. 2024, Unifying Generative and Dense Retrieval for Sequential Recommendation (LIGER), which ranks
//! the union of beams and new items by dense scores after the search; here the scores are part of it. Cost: a pass over
//! items and nodes per request, which suits catalogues up to some millions of items.

use crate::order::log_sum;
use crate::{BeamKernel, BoxError, CpuBeams, Error, LiveMask, Result, ScoreMode, Scores, StepScorer, Trie};
use rayon::prelude::*;

/// What guides one request: the best score below every node.
#[derive(Debug, Clone)]
struct Guide {
    /// `best[l]`: (nodes of level l,), log q; minus infinity where no item is allowed.
    best: Vec<Vec<f32>>,
}

impl Guide {
    fn new(trie: &Trie, live: &LiveMask, scores: &[f32]) -> Self {
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = scores.iter().map(|score| f64::from((score - max).exp())).sum();
        let log_sum = max + sum.ln() as f32;
        let leaf = |leaf| {
            let allowed = trie.items(leaf).iter().filter(|item| live.allows(**item));
            allowed.map(|item| scores[item.0 as usize] - log_sum).fold(f32::NEG_INFINITY, f32::max)
        };
        let levels = trie.levels();
        let mut best = vec![Vec::new(); levels + 1];
        best[levels] = (0..trie.nodes(levels) as u32).map(leaf).collect();
        for level in (0..levels).rev() {
            let node = |node| {
                let (_, children) = trie.children(level, node);
                let below = &best[level + 1][children.start as usize..children.end as usize];
                below.iter().copied().fold(f32::NEG_INFINITY, f32::max)
            };
            best[level] = (0..trie.nodes(level) as u32).map(node).collect();
        }
        Self { best }
    }
}

/// A scorer of codes, guided by scores of items.
pub struct Guided<'t, S> {
    scorer: S,
    trie: &'t Trie,
    guides: Vec<Guide>,
    weight: f32,
    score: ScoreMode,
}

impl<'t, S> Guided<'t, S> {
    /// Guides `scorer` with `weight` in 0 to 1 by natural-log scores of all items, request by request:
    /// (requests, items), not necessarily normalised. `score` says what the log-probabilities of `scorer` are
    /// normalised over before they are mixed; the search itself is then run with [`ScoreMode::FullVocab`].
    ///
    /// # Errors
    /// The weight is no share, or scores and masks do not fit the trie. Items added since it was built have no scores:
    /// [`crate::TrieDelta::fold`] them in first.
    pub fn new(
        scorer: S,
        trie: &'t Trie,
        weight: f32,
        score: ScoreMode,
        live: &[LiveMask],
        item_scores: &[f32],
    ) -> Result<Self> {
        if !(0.0..=1.0).contains(&weight) {
            return Err(Error::config("guide", weight, "0 to 1"));
        }
        // Items that were removed have scores too, and may be the last ones.
        let items = item_scores.len() / live.len().max(1);
        if item_scores.len() != live.len() * items || items < trie.bound() {
            let expected = format!("({}, {} or more)", live.len(), trie.bound());
            return Err(Error::shape("item scores", expected, format!("{} numbers", item_scores.len())));
        }
        live.iter().try_for_each(|mask| mask.check(trie))?;
        if live.iter().any(|mask| mask.added().is_some()) {
            return Err(Error::shape("live mask of a guided search", "the items of the trie", "items added since"));
        }
        let guide = |(request, live): (usize, &LiveMask)| {
            Guide::new(trie, live, &item_scores[request * items..(request + 1) * items])
        };
        let guides = live.par_iter().enumerate().map(guide).collect();
        Ok(Self { scorer, trie, guides, weight, score })
    }
}

impl<S, K> StepScorer<K> for Guided<'_, S>
where
    S: StepScorer<K>,
    K: BeamKernel<Scores = Scores, Beams = CpuBeams>,
{
    fn score(&mut self, level: usize, beams: &CpuBeams) -> std::result::Result<Scores, BoxError> {
        let width = self.trie.spec().codes_at(level) as usize;
        // At weight 1 the codes have no say, and the scorer need not be asked.
        let own = if self.weight < 1.0 { Some(self.scorer.score(level, beams)?) } else { None };
        let mut data = vec![f32::NEG_INFINITY; beams.rows() * width];
        for (row, mixed) in data.chunks_exact_mut(width).enumerate() {
            let (request, node) = (beams.request(row), beams.node(row));
            let best = &self.guides[request].best;
            let (codes, children) = self.trie.children(level, node);
            // The root counts as log 1, so that a path sums to log q of its item.
            let above = if level == 0 { 0.0 } else { best[level][node as usize] };
            for (code, child) in codes.iter().zip(children) {
                mixed[usize::from(code)] = self.weight * (best[level + 1][child as usize] - above);
            }
            if let Some(own) = &own {
                let own = &own.data[row * width..(row + 1) * width];
                let norm = match self.score {
                    ScoreMode::FullVocab => 0.0,
                    ScoreMode::ValidOnly => log_sum(own, &codes.iter()),
                };
                for code in codes.iter() {
                    let code = usize::from(code);
                    mixed[code] += (1.0 - self.weight) * (own[code] - norm);
                }
            }
        }
        Ok(Scores { width, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trie::build_tests::table;
    use crate::{BeamConfig, CpuKernel, PrefixScorer, search};
    use proptest::prelude::*;
    use rqvae::{Code, ItemIdx};

    fn noise(seed: u64, at: usize) -> f32 {
        let x = (seed ^ at as u64).wrapping_add(0x9e37_79b9).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32 / (1 << 22) as f32
    }

    fn codes(seed: u64) -> impl FnMut(usize, &[Code], &mut [f32]) {
        move |_, prefix, log_probs| {
            let at = prefix.iter().fold(7, |at, code| at * 31 + usize::from(*code) + 1);
            log_probs.iter_mut().enumerate().for_each(|(code, p)| *p = -noise(seed, at * 1009 + code));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        /// Weight 1 is the ranking by item scores, with beams as wide as the list; weight 0 is the plain search; what
        /// is between is the mixture, found exactly by a beam that prunes nothing.
        #[test]
        fn guidance_is_exact_at_its_ends_and_a_mixture_between(
            table in table(), seed: u64, weight in 0.0f32..1.0, k in 1usize..12,
            denied in prop::collection::vec(0u32..60, 0..20), valid_only: bool,
        ) {
            let trie = Trie::build(&table).unwrap();
            let kernel = CpuKernel::new(&trie);
            let live = vec![LiveMask::all(&trie).without(&trie, &denied.into_iter().map(ItemIdx).collect::<Vec<_>>())];
            let items = table.items();
            let scores: Vec<f32> = (0..items).map(|item| noise(seed, item + 77)).collect();
            let mode = if valid_only { ScoreMode::ValidOnly } else { ScoreMode::FullVocab };
            let run = |weight: f32, width: usize, k: usize| {
                let scorer = PrefixScorer::new(trie.spec(), codes(seed));
                let mut guided = Guided::new(scorer, &trie, weight, mode, &live, &scores).unwrap();
                let config = BeamConfig::uniform(width, trie.levels(), k);
                search(&kernel, &mut guided, &config, 1, &live).unwrap().remove(0)
            };
            let plain = |k: usize| {
                let mut scorer = PrefixScorer::new(trie.spec(), codes(seed));
                let config = BeamConfig { score: mode, ..BeamConfig::uniform(items.max(1), trie.levels(), k) };
                search(&kernel, &mut scorer, &config, 1, &live).unwrap().remove(0)
            };
            let all = items.max(1);
            let log_z = scores.iter().map(|s| f64::from(s.exp())).sum::<f64>().ln() as f32;

            // Items that share an ID come together, so ranks are compared by the best item of each ID.
            let best = |item: ItemIdx| {
                let same = trie.items(trie.leaf(item).unwrap()).iter().filter(|i| live[0].allows(**i));
                same.map(|i| scores[i.0 as usize]).fold(f32::NEG_INFINITY, f32::max)
            };
            let mut expected: Vec<f32> =
                (0..items as u32).map(ItemIdx).filter(|i| live[0].allows(*i)).map(best).collect();
            expected.sort_by(|a, b| b.total_cmp(a));
            expected.truncate(k);
            let found: Vec<f32> = run(1.0, k, k).iter().map(|h| best(h.item)).collect();
            prop_assert_eq!(found, expected);

            let mixed = run(weight, all, all);
            let own = plain(all);
            prop_assert_eq!(mixed.len(), own.len());
            for h in &mixed {
                let p = own.iter().find(|o| o.item == h.item).unwrap().log_prob;
                let expected = (1.0 - weight) * p + weight * (best(h.item) - log_z);
                prop_assert!((h.log_prob - expected).abs() < 1e-4, "{} {}", h.log_prob, expected);
            }
        }
    }

    #[test]
    fn wrong_shapes_and_weights_are_named() {
        let spec = rqvae::SidSpec { codebook_sizes: vec![2, 2], suffix_size: None };
        let trie = Trie::build(&rqvae::SidTable::new(spec, vec![0, 1, 1, 0]).unwrap()).unwrap();
        let live = [LiveMask::all(&trie)];
        let make = |weight, scores: &[f32]| Guided::new((), &trie, weight, ScoreMode::FullVocab, &live, scores).err();
        assert!(make(1.5, &[0.0; 2]).unwrap().to_string().contains("guide"));
        assert!(make(0.5, &[0.0; 1]).unwrap().to_string().contains("item scores"));
        assert!(make(0.5, &[0.0; 2]).is_none());
        // The last item was removed since the model was made.
        assert!(make(0.5, &[0.0; 3]).is_none());
    }
}
