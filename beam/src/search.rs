//! The loop over levels, the same text for every device.

use crate::{BeamKernel, Error, LiveMask, Result, StepScorer};
use rqvae::{ItemIdx, SemanticId};
use serde::{Deserialize, Serialize};

/// What a score is normalised over. Lists are comparable within one definition only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreMode {
    /// All codes of the level: the model's own probability of the path.
    #[default]
    FullVocab,
    /// The codes that continue the prefix to an ID of the catalogue. Masks have no say, so that a deny list does not
    /// change the scores of what is left.
    ValidOnly,
}

/// How wide to search and how much to return.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeamConfig {
    /// Beams kept after each level: (levels,).
    pub widths: Vec<usize>,
    /// Longest list; no more than the last width.
    pub top_k: usize,
    /// What scores mean.
    #[serde(default)]
    pub score: ScoreMode,
}

impl BeamConfig {
    /// The same `width` at all `levels`.
    pub fn uniform(width: usize, levels: usize, top_k: usize) -> Self {
        Self { widths: vec![width; levels], top_k, score: ScoreMode::default() }
    }

    /// Refuses what makes no sense for IDs of `levels` codes.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the field.
    pub fn validate(&self, levels: usize) -> Result<()> {
        let widths = || format!("{:?}", self.widths);
        if self.widths.len() != levels {
            return Err(Error::config("widths", widths(), format!("one per level, {levels}")));
        }
        if self.widths.contains(&0) {
            return Err(Error::config("widths", widths(), "at least 1 everywhere"));
        }
        let last = self.widths.last().copied().unwrap_or(0);
        if self.top_k == 0 || self.top_k > last {
            return Err(Error::config("top_k", self.top_k, format!("1 to the last width, {last}")));
        }
        Ok(())
    }
}

/// A finished beam and one item behind it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hypothesis {
    /// The ID.
    pub sid: SemanticId,
    /// Who has it.
    pub item: ItemIdx,
    /// Sum of the log-probabilities of its codes.
    pub log_prob: f32,
}

/// The best items of `batch` requests, best first; the mask of each request says what may be returned.
///
/// Order: higher score, then the better parent, then the smaller code. A list is shorter than `top_k` when there are no
/// more items to return, or when beams that were kept have no more children. No item is twice in a list.
///
/// # Errors
/// The configuration or the masks do not fit the trie, or the scorer fails.
pub fn search<K: BeamKernel>(
    kernel: &K,
    scorer: &mut impl StepScorer<K>,
    config: &BeamConfig,
    batch: usize,
    live: &[LiveMask],
) -> Result<Vec<Vec<Hypothesis>>> {
    config.validate(kernel.levels())?;
    let mut beams = kernel.start(batch, live, config.score)?;
    for (level, width) in config.widths.iter().enumerate() {
        if kernel.is_exhausted(&beams) {
            break;
        }
        let scores = scorer.score(level, &beams).map_err(|source| Error::Scorer { level, source })?;
        kernel.step(&mut beams, &scores, *width)?;
    }
    kernel.finish(beams, config.top_k)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::oracle::exhaustive;
    use crate::order::CandidateKey;
    use crate::trie::build_tests::table;
    use crate::{CpuBeams, CpuKernel, PrefixScorer, Scores, SimdKernel, Trie};
    use proptest::prelude::*;
    use rqvae::{Code, SidTable};
    use std::collections::BTreeSet;
    use std::sync::LazyLock;

    /// Made-up log-probabilities: few distinct values, so that ties abound, and some that are impossible.
    pub(crate) fn made_up(seed: u64, prefix: &[Code], log_probs: &mut [f32]) {
        let mut hash = prefix.iter().fold(seed, |hash, code| mix(hash ^ (u64::from(*code) + 1)));
        for log_prob in log_probs {
            hash = mix(hash);
            *log_prob = match hash % 16 {
                0 => f32::NEG_INFINITY,
                1 => f32::NAN,
                2 => f32::INFINITY,
                3 => 0.25,
                value => -0.37 * (value % 4) as f32,
            };
        }
    }

    fn mix(x: u64) -> u64 {
        let x = (x ^ (x >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x ^ (x >> 29)
    }

    /// Beam search by lists and full sorts on the table itself; returns IDs and scores.
    fn naive(
        table: &SidTable,
        allows: &dyn Fn(ItemIdx) -> bool,
        config: &BeamConfig,
        seed: u64,
    ) -> Vec<(Vec<Code>, f32)> {
        let all: Vec<ItemIdx> = (0..table.items() as u32).map(ItemIdx).collect();
        let mut beams: Vec<(Vec<Code>, f32)> = vec![(Vec::new(), 0.0)];
        for (level, width) in config.widths.iter().enumerate() {
            let mut next = Vec::new();
            for (prefix, score) in &beams {
                let mut log_probs = vec![0.0; table.spec().codes_at(level) as usize];
                made_up(seed, prefix, &mut log_probs);
                let here = all.iter().filter(|item| table.codes(**item).starts_with(prefix) && allows(**item));
                let codes: BTreeSet<Code> = here.map(|item| table.codes(*item)[level]).collect();
                for code in codes {
                    let score = score + log_probs[usize::from(code)];
                    if score.is_finite() {
                        next.push(([prefix.as_slice(), &[code]].concat(), score));
                    }
                }
            }
            next.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap());
            next.truncate(*width);
            beams = next;
        }
        beams
    }

    struct Failing;

    impl StepScorer<CpuKernel<'_>> for Failing {
        fn score(&mut self, _: usize, _: &CpuBeams) -> std::result::Result<Scores, crate::BoxError> {
            Err("no weights".into())
        }
    }

    #[test]
    fn a_failing_scorer_is_passed_on_and_bad_configs_are_named() {
        let spec = rqvae::SidSpec { codebook_sizes: vec![2, 2], suffix_size: None };
        let trie = Trie::build(&SidTable::new(spec, vec![0, 1]).unwrap()).unwrap();
        let run =
            |config: &BeamConfig| search(&CpuKernel::new(&trie), &mut Failing, config, 1, &[LiveMask::all(&trie)]);
        let error = run(&BeamConfig::uniform(2, 2, 2)).unwrap_err().to_string();
        assert_eq!(error, "the scorer failed at level 0: no weights");
        for config in [
            BeamConfig::uniform(2, 3, 2),
            BeamConfig::uniform(0, 2, 1),
            BeamConfig::uniform(2, 2, 3),
            BeamConfig::uniform(2, 2, 0),
        ] {
            assert!(matches!(run(&config), Err(Error::InvalidConfig { .. })));
        }
    }

    #[test]
    fn no_requests_and_no_items_are_no_errors() {
        let spec = rqvae::SidSpec { codebook_sizes: vec![2, 2], suffix_size: None };
        let trie = Trie::build(&SidTable::new(spec, vec![]).unwrap()).unwrap();
        let mut scorer = PrefixScorer::new(trie.spec(), |_, _: &[Code], _: &mut [f32]| {});
        let kernel = CpuKernel::new(&trie);
        let config = BeamConfig::uniform(4, 2, 4);
        assert!(search(&kernel, &mut scorer, &config, 0, &[]).unwrap().is_empty());
        let live = vec![LiveMask::all(&trie); 2];
        assert_eq!(search(&kernel, &mut scorer, &config, 2, &live).unwrap(), vec![vec![], vec![]]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        /// Invariants 2, 3 and 4, for a batch of requests with masks of their own.
        #[test]
        fn search_is_the_oracle_and_never_leaves_the_mask(
            table in table(),
            seeds in prop::collection::vec(any::<u64>(), 1..4),
            live in prop::collection::vec(prop::bool::weighted(0.8), 160),
            denied in prop::collection::vec(prop::collection::vec(0u32..60, 0..20), 4),
            widths in prop::collection::vec(1usize..8, 5),
            top_k in 1usize..20,
            valid_only: bool,
        ) {
            let trie = Trie::build(&table).unwrap();
            let kernel = CpuKernel::new(&trie);
            let base = trie.live(|item| live[item.0 as usize]);
            let masks: Vec<LiveMask> = seeds.iter().zip(&denied).map(|(_, denied)| {
                base.without(&trie, &denied.iter().map(|item| ItemIdx(*item)).collect::<Vec<_>>())
            }).collect();
            let score = if valid_only { ScoreMode::ValidOnly } else { ScoreMode::FullVocab };
            let mut scorer = PrefixScorer::new(trie.spec(), |request: usize, prefix: &[Code], log_probs: &mut [f32]| {
                made_up(seeds[request], prefix, log_probs);
            });
            let all = table.items().max(1);

            let wide = BeamConfig { widths: vec![all; trie.levels()], top_k: all, score };
            let complete = search(&kernel, &mut scorer, &wide, seeds.len(), &masks).unwrap();
            for ((found, seed), mask) in complete.iter().zip(&seeds).zip(&masks) {
                let scored = |prefix: &[Code], log_probs: &mut [f32]| made_up(*seed, prefix, log_probs);
                let expected = exhaustive(&table, |item| mask.allows(item), all, score, scored);
                prop_assert_eq!(found, &expected);
            }

            let mut widths = widths[..trie.levels()].to_vec();
            let last = widths.len() - 1;
            widths[last] = widths[last].max(top_k);
            let narrow = BeamConfig { widths, top_k, score };
            let lists = search(&kernel, &mut scorer, &narrow, seeds.len(), &masks).unwrap();
            for (at, list) in lists.iter().enumerate() {
                prop_assert!(list.len() <= top_k);
                let places: Vec<usize> = list.iter().map(|h| {
                    complete[at].iter().position(|other| other == h).expect("allowed, with the oracle's score")
                }).collect();
                prop_assert!(places.windows(2).all(|pair| pair[0] < pair[1]));
                if !valid_only {
                    let mut expected = Vec::new();
                    for (codes, score) in naive(&table, &|item| masks[at].allows(item), &narrow, seeds[at]) {
                        let leaf = trie.find(&codes).unwrap();
                        let items = trie.items(leaf).iter().filter(|item| masks[at].allows(**item));
                        expected.extend(items.map(|item| (*item, score)));
                    }
                    expected.truncate(top_k);
                    let found: Vec<_> = list.iter().map(|h| (h.item, h.log_prob)).collect();
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// IDs of unequal length (paths in DSI's tree) end in zeros. Below a leaf there is one way to go, so that among valid
        /// codes the zeros cost nothing, whatever a model says of them: scores are those of the paths themselves.
        #[test]
        fn zeros_below_a_leaf_cost_nothing(
            drawn in prop::collection::vec(prop::collection::vec(0u16..4, 1..5), 1..40), seed: u64, other: u64,
        ) {
            let mut paths: Vec<Vec<Code>> = Vec::new();
            for path in drawn {
                if !paths.iter().any(|known| known.starts_with(&path) || path.starts_with(known)) {
                    paths.push(path);
                }
            }
            let spec = rqvae::SidSpec { codebook_sizes: vec![4; 4], suffix_size: None };
            let padded = |path: &Vec<Code>| path.iter().copied().chain(std::iter::repeat(0)).take(4).collect::<Vec<_>>();
            let table = SidTable::new(spec, paths.iter().flat_map(padded).collect()).unwrap();
            let trie = Trie::build(&table).unwrap();
            let log_prob = |prefix: &[Code], code: Code| {
                let leaf = paths.iter().any(|path| prefix.starts_with(path));
                let hash = prefix.iter().fold(if leaf { other } else { seed }, |hash, c| mix(hash ^ (u64::from(*c) + 1)));
                -((mix(hash ^ u64::from(code)) % 100) as f32) / 20.0
            };
            let mut scorer = PrefixScorer::new(trie.spec(), |_, prefix: &[Code], log_probs: &mut [f32]| {
                log_probs.iter_mut().enumerate().for_each(|(code, x)| *x = log_prob(prefix, code as Code));
            });
            let score = ScoreMode::ValidOnly;
            let config = BeamConfig { widths: vec![paths.len(); 4], top_k: paths.len(), score };
            let list = search(&CpuKernel::new(&trie), &mut scorer, &config, 1, &[LiveMask::all(&trie)]).unwrap().remove(0);
            prop_assert_eq!(list.len(), paths.len());
            for found in list {
                let path = &paths[found.item.0 as usize];
                let step = |level: usize| {
                    let here = paths.iter().filter(|other| other.len() > level && other[..level] == path[..level]);
                    let codes: BTreeSet<Code> = here.map(|path| path[level]).collect();
                    let sum: f32 = codes.iter().map(|code| log_prob(&path[..level], *code).exp()).sum();
                    log_prob(&path[..level], path[level]) - sum.ln()
                };
                let expected: f32 = (0..path.len()).map(step).sum();
                prop_assert!((found.log_prob - expected).abs() < 1e-4, "{:?}: {} {}", path, found.log_prob, expected);
            }
        }
    }

    static POOLS: LazyLock<Vec<rayon::ThreadPool>> = LazyLock::new(|| {
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        [1, 2, 5].map(pool).into()
    });

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        /// Scores of few distinct values: equal ones go by their parents' scores, then by ID, then by the hash of the item,
        /// whatever the number of threads and whatever the order of the rows.
        #[test]
        fn ties_go_by_id_then_by_item_on_any_number_of_threads(
            table in table(), seeds in prop::collection::vec(any::<u64>(), 1..6), width in 1usize..40, salt: u64,
        ) {
            let ties: Vec<u64> = (0..table.items() as u64).map(|item| rqvae::mix(item ^ salt)).collect();
            let trie = Trie::build_with_ties(&table, &ties).unwrap();
            let config = BeamConfig::uniform(width, trie.levels(), width);
            let live = vec![LiveMask::all(&trie); seeds.len()];
            let run = |threads: &rayon::ThreadPool| threads.install(|| {
                let mut scorer = PrefixScorer::new(trie.spec(), |request: usize, prefix: &[Code], log_probs: &mut [f32]| {
                    made_up(seeds[request], prefix, log_probs);
                });
                search(&SimdKernel::new(&trie), &mut scorer, &config, seeds.len(), &live).unwrap()
            });
            let lists = run(&POOLS[0]);
            prop_assert_eq!(&run(&POOLS[1]), &lists);
            prop_assert_eq!(&run(&POOLS[2]), &lists);
            for (list, seed) in lists.iter().zip(&seeds) {
                // Scores of the prefixes, the longest first, turned round: the smaller the better.
                let place = |found: &Hypothesis| {
                    let (codes, mut sum) = (found.sid.codes(), 0.0f32);
                    let mut sums: Vec<_> = codes.iter().enumerate().map(|(level, code)| {
                        let mut log_probs = vec![0.0; table.spec().codes_at(level) as usize];
                        made_up(*seed, &codes[..level], &mut log_probs);
                        sum += log_probs[usize::from(*code)];
                        std::cmp::Reverse(CandidateKey::new(sum, 0))
                    }).collect();
                    sums.reverse();
                    (sums, found.sid, ties[found.item.0 as usize])
                };
                prop_assert!(list.windows(2).all(|pair| place(&pair[0]) < place(&pair[1])), "{:?}", list);
            }
            // Rows in another order: the same IDs, scores and hashes.
            let rows = table.items();
            let turned = |row: usize| ItemIdx((rows - 1 - row) as u32);
            let codes = (0..rows).flat_map(|row| table.codes(turned(row)).to_vec()).collect();
            let other = SidTable::new(table.spec().clone(), codes).unwrap();
            let hashes: Vec<u64> = (0..rows).map(|row| ties[turned(row).0 as usize]).collect();
            let trie = Trie::build_with_ties(&other, &hashes).unwrap();
            let mut scorer = PrefixScorer::new(trie.spec(), |request: usize, prefix: &[Code], log_probs: &mut [f32]| {
                made_up(seeds[request], prefix, log_probs);
            });
            let live = vec![LiveMask::all(&trie); seeds.len()];
            let found = search(&CpuKernel::new(&trie), &mut scorer, &config, seeds.len(), &live).unwrap();
            let same = |(a, b): (&Hypothesis, &Hypothesis)| a.sid == b.sid && a.item == turned(b.item.0 as usize);
            for (list, found) in lists.iter().zip(&found) {
                prop_assert!(list.len() == found.len() && list.iter().zip(found).all(same));
            }
        }
    }
}
