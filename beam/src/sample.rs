//! Samples instead of the best: lists of different items, each drawn by its probability.
//!
//! A [`Sampled`] scorer turns a search into a stochastic beam search: log-probabilities are perturbed by Gumbel noise
//! from the top of the trie down, so that a search with k beams draws k items without replacement, in the order in which
//! they would be drawn. The distribution is that of the codes that lead to an allowed item, normalised level by level,
//! after temperature and top-p.
//!
//! Paper: Kool et al. 2019, Stochastic Beams and Where to Find Them, sec. 3 and appendix B.3 (the stable form).
//! Deviations: noise is a function of seed, request and path, so that a list depends on no thread, batch or width.

use crate::{BeamKernel, BoxError, CpuBeams, Error, LiveMask, Result, Scores, StepScorer, Trie};
use rqvae::{Code, SemanticId};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Log-probabilities are divided by it: below 1 the likely gets likelier. Above 0.
    pub temperature: f32,
    /// Codes are drawn among the fewest that have this share of the probability together. Above 0, to 1: all of them.
    pub top_p: f32,
    /// Same seed, same lists.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, seed: 0 }
    }
}

/// A scorer whose search draws items. What search then calls the log-probability of a hypothesis is its perturbed one;
/// see [`Sampled::log_prob`] for the probability that it was drawn from.
pub struct Sampled<'t, S> {
    scorer: S,
    trie: &'t Trie,
    live: Vec<LiveMask>,
    sampling: Sampling,
    /// Log-probabilities of the prefixes that continue the beams of the last step: (rows, codes of the level).
    paths: Scores,
    /// Request and path of the beams of the last step, and their rows.
    rows: HashMap<(usize, SemanticId), usize>,
}

impl<'t, S> Sampled<'t, S> {
    /// Draws from `scorer`, for requests that may see what `live` says.
    ///
    /// # Errors
    /// A number out of range, masks of another trie, or of one with additions: [`crate::TrieDelta::fold`] them in first.
    pub fn new(scorer: S, trie: &'t Trie, sampling: Sampling, live: &[LiveMask]) -> Result<Self> {
        let Sampling { temperature, top_p, .. } = sampling;
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(Error::config("temperature", temperature, "above 0"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::config("top_p", top_p, "above 0, to 1"));
        }
        live.iter().try_for_each(|mask| mask.check(trie))?;
        if live.iter().any(|mask| mask.added().is_some()) {
            return Err(Error::shape("live mask of a sampled search", "the items of the trie", "items added since"));
        }
        let (paths, rows) = (Scores::default(), HashMap::new());
        Ok(Self { scorer, trie, live: live.to_vec(), sampling, paths, rows })
    }

    /// Natural-log probability of an ID that the search for `request` returned: the product over its levels.
    pub fn log_prob(&self, request: usize, sid: &SemanticId) -> Option<f32> {
        let last = sid.len().checked_sub(1)?;
        let row = self.rows.get(&(request, sid.prefix(last)))?;
        self.paths.data.get(row * self.paths.width + usize::from(sid.codes()[last])).copied()
    }

    /// Normalised log-probabilities of the codes that may follow `beam`, likeliest first.
    fn choices(&self, level: usize, beams: &CpuBeams, row: usize, own: &[f32]) -> Vec<(Code, f32)> {
        let (codes, nodes) = self.trie.children(level, beams.node(row));
        let siblings = self.live[beams.request(row)].base().siblings(level + 1, &nodes);
        let scaled = |code: Code| own[usize::from(code)] / self.sampling.temperature;
        let live = codes.iter().zip(nodes).filter(|(_, node)| siblings.leads_on(*node));
        let mut choices: Vec<(Code, f32)> = live.map(|(code, _)| (code, scaled(code))).collect();
        choices.retain(|(_, log_prob)| log_prob.is_finite());
        choices.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let Some((_, max)) = choices.first().copied() else {
            return choices;
        };
        let sum = |choices: &[(Code, f32)]| choices.iter().map(|(_, x)| f64::from(x - max).exp()).sum::<f64>();
        let enough = f64::from(self.sampling.top_p) * sum(&choices);
        let mut so_far = 0.0;
        let kept = choices.iter().take_while(|(_, x)| {
            let more = so_far < enough;
            so_far += f64::from(x - max).exp();
            more
        });
        let kept = kept.count();
        if self.sampling.top_p < 1.0 {
            choices.truncate(kept);
        }
        let log_sum = max + sum(&choices).ln() as f32;
        choices.iter_mut().for_each(|(_, x)| *x -= log_sum);
        choices
    }

    /// Standard Gumbel noise of a path: -ln(-ln u).
    fn noise(&self, request: usize, path: &[Code], code: Code) -> f64 {
        let mixed = path
            .iter()
            .chain([&code])
            .fold(mix(self.sampling.seed ^ mix(request as u64 + 1)), |hash, code| mix(hash ^ (u64::from(*code) + 1)));
        // In (0, 1), neither end included.
        let u = ((mixed >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
        -(-u.ln()).ln()
    }
}

/// SplitMix64's finaliser.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl<S, K> StepScorer<K> for Sampled<'_, S>
where
    S: StepScorer<K>,
    K: BeamKernel<Scores = Scores, Beams = CpuBeams>,
{
    fn score(&mut self, level: usize, beams: &CpuBeams) -> std::result::Result<Scores, BoxError> {
        let mut own = self.scorer.score(level, beams)?;
        let width = own.width;
        let mut paths = vec![f32::NEG_INFINITY; own.data.len()];
        let mut rows = HashMap::with_capacity(beams.rows());
        for (row, own) in own.data.chunks_exact_mut(width).enumerate() {
            let (request, path) = (beams.request(row), beams.codes(row));
            let above = match path.last() {
                Some(code) => self.paths.data[beams.parent(row) * self.paths.width + usize::from(*code)],
                None => 0.0,
            };
            // The children's perturbed values, given that the greatest of them is the parent's.
            let parent = f64::from(beams.log_prob(row));
            let choices = self.choices(level, beams, row, own);
            let noisy = |(code, x): &(Code, f32)| f64::from(above + x) + self.noise(request, path, *code);
            let values: Vec<f64> = choices.iter().map(noisy).collect();
            let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            own.fill(f32::NEG_INFINITY);
            for ((code, x), value) in choices.iter().zip(values) {
                let v = parent - value + (-(value - max).exp()).ln_1p();
                let perturbed = parent - v.max(0.0) - (-v.abs()).exp().ln_1p();
                own[usize::from(*code)] = (perturbed - parent) as f32;
                paths[row * width + usize::from(*code)] = above + x;
            }
            rows.insert((request, SemanticId::new(path)?), row);
        }
        (self.paths, self.rows) = (Scores { width, data: paths }, rows);
        Ok(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::tests::made_up;
    use crate::trie::build_tests::table;
    use crate::{BeamConfig, Hypothesis, PrefixScorer, SimdKernel, search};
    use proptest::prelude::*;
    use rqvae::{ItemIdx, SidSpec, SidTable};
    use std::collections::{BTreeMap, BTreeSet};

    fn draw(
        trie: &Trie,
        sampling: Sampling,
        live: &[LiveMask],
        k: usize,
        score: impl FnMut(usize, &[Code], &mut [f32]),
    ) -> Vec<Vec<(Hypothesis, f32)>> {
        let mut sampled = Sampled::new(PrefixScorer::new(trie.spec(), score), trie, sampling, live).unwrap();
        let config = BeamConfig::uniform(k, trie.levels(), k);
        let lists = search(&SimdKernel::new(trie), &mut sampled, &config, live.len(), live).unwrap();
        let with = |(request, list): (usize, Vec<Hypothesis>)| {
            list.into_iter().map(|h| (h, sampled.log_prob(request, &h.sid).unwrap())).collect()
        };
        lists.into_iter().enumerate().map(with).collect()
    }

    /// Four items of 0.5 * (0.8, 0.2) and 0.5 * (0.6, 0.4), and one that is denied.
    fn four() -> (Trie, LiveMask) {
        let spec = SidSpec { codebook_sizes: vec![2, 3], suffix_size: None };
        let trie = Trie::build(&SidTable::new(spec, vec![0, 0, 0, 1, 1, 0, 1, 1, 1, 2]).unwrap()).unwrap();
        let live = LiveMask::all(&trie).without(&trie, &[ItemIdx(4)]);
        (trie, live)
    }

    fn probabilities(_: usize, prefix: &[Code], log_probs: &mut [f32]) {
        let shares: &[f32] = match prefix {
            [] => &[0.5, 0.5],
            [0] => &[0.8, 0.2, 0.0],
            _ => &[0.3, 0.2, 0.5],
        };
        log_probs.iter_mut().zip(shares).for_each(|(log_prob, share)| *log_prob = share.ln());
    }

    #[test]
    fn pairs_are_drawn_without_replacement() {
        let (trie, live) = four();
        let expected = [0.4, 0.1, 0.3, 0.2];
        let mut seen: BTreeMap<(u32, u32), f64> = BTreeMap::new();
        const DRAWS: usize = 40_000;
        let live = vec![live; 100];
        for seed in 0..(DRAWS / live.len()) as u64 {
            for list in draw(&trie, Sampling { seed, ..Sampling::default() }, &live, 2, probabilities) {
                *seen.entry((list[0].0.item.0, list[1].0.item.0)).or_default() += 1.0 / DRAWS as f64;
                for (h, log_prob) in list {
                    assert!((log_prob.exp() - expected[h.item.0 as usize]).abs() < 1e-6);
                }
            }
        }
        for (a, p) in expected.iter().enumerate() {
            for (b, q) in expected.iter().enumerate().filter(|(b, _)| *b != a) {
                let want = f64::from(p * q / (1.0 - p));
                let got = seen.get(&(a as u32, b as u32)).copied().unwrap_or(0.0);
                // Five standard deviations of a share among as many draws.
                let margin = 5.0 * (want * (1.0 - want) / DRAWS as f64).sqrt();
                assert!((got - want).abs() < margin, "{a} then {b}: {got}, not {want}");
            }
        }
    }

    #[test]
    fn temperature_and_top_p_sharpen() {
        let (trie, live) = four();
        let share = |sampling: Sampling, item: u32| {
            let live = vec![live.clone(); 2000];
            let lists = draw(&trie, sampling, &live, 1, probabilities);
            lists.iter().filter(|list| list[0].0.item.0 == item).count() as f32 / 2000.0
        };
        let cold = Sampling { temperature: 0.5, ..Sampling::default() };
        // 0.64 / 0.68 of one half.
        assert!((share(cold, 0) - 0.4706).abs() < 0.05);
        let narrow = Sampling { top_p: 0.55, ..Sampling::default() };
        assert!((share(narrow, 0) - 0.5).abs() < 0.05 && share(narrow, 1) == 0.0 && share(narrow, 3) == 0.0);
        for (temperature, top_p) in [(0.0, 1.0), (f32::NAN, 1.0), (1.0, 0.0), (1.0, 1.1)] {
            let sampling = Sampling { temperature, top_p, seed: 0 };
            assert!(Sampled::new((), &trie, sampling, &[]).is_err());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        /// Lists are allowed items, each once, as many as the beams find; the same for the same seed, whatever else is
        /// in the batch.
        #[test]
        fn samples_are_allowed_and_reproducible(
            table in table(), seed: u64, top_p in 0.05f32..=1.0, temperature in 0.1f32..3.0, k in 1usize..20,
            denied in prop::collection::vec(0u32..60, 0..30),
        ) {
            let trie = Trie::build(&table).unwrap();
            let sampling = Sampling { temperature, top_p, seed };
            let live = LiveMask::all(&trie).without(&trie, &denied.into_iter().map(ItemIdx).collect::<Vec<_>>());
            let score = |_: usize, prefix: &[Code], log_probs: &mut [f32]| made_up(seed, prefix, log_probs);
            let lists = draw(&trie, sampling, &[live.clone(), LiveMask::all(&trie)], k, score);
            let alone = draw(&trie, sampling, std::slice::from_ref(&live), k, score);
            prop_assert_eq!(&lists[0], &alone[0]);
            let items: BTreeSet<ItemIdx> = lists[0].iter().map(|(h, _)| h.item).collect();
            prop_assert_eq!(items.len(), lists[0].len());
            prop_assert!(lists[0].len() <= k && items.iter().all(|item| live.allows(*item)));
            prop_assert!(lists[0].iter().all(|(_, log_prob)| *log_prob <= 1e-5));
            prop_assert!(lists[0].windows(2).all(|pair| pair[0].0.log_prob >= pair[1].0.log_prob));
        }
    }
}
