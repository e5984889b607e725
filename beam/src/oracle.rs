//! Scores every item of a catalogue, without trie, masks or pruning: slow and obviously right.

use crate::order::log_sum;
use crate::{Hypothesis, ScoreMode};
use rqvae::{Code, ItemIdx, SidTable};
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// The best `top_k` items that `allowed` says yes to, by `score`, which fills log-probabilities after a prefix.
///
/// A search as wide as the catalogue gives the same list, order included. Items that share an ID come in the order of
/// the table.
///
/// # Panics
/// When `table` has more rows than it has codes for; a `SidTable` never has.
pub fn exhaustive(
    table: &SidTable,
    allowed: impl Fn(ItemIdx) -> bool,
    top_k: usize,
    mode: ScoreMode,
    mut score: impl FnMut(&[Code], &mut [f32]),
) -> Vec<Hypothesis> {
    let items = || (0..table.items() as u32).map(ItemIdx);
    let mut found: Vec<(Vec<f32>, Hypothesis)> = Vec::new();
    for item in items().filter(|item| allowed(*item)) {
        let codes = table.codes(item);
        // Score of each prefix, longest last, added up in the order of a search.
        let mut sums = Vec::with_capacity(codes.len());
        let mut sum = 0.0;
        for (level, code) in codes.iter().enumerate() {
            let prefix = &codes[..level];
            let mut log_probs = vec![0.0; table.spec().codes_at(level) as usize];
            score(prefix, &mut log_probs);
            let norm = match mode {
                ScoreMode::FullVocab => 0.0,
                ScoreMode::ValidOnly => {
                    let valid = items().filter(|other| table.codes(*other).starts_with(prefix));
                    let valid: BTreeSet<Code> = valid.map(|other| table.codes(other)[level]).collect();
                    log_sum(&log_probs, &valid.iter().copied())
                }
            };
            sum += log_probs[usize::from(*code)] - norm;
            sums.push(sum);
        }
        if sums.iter().all(|sum| sum.is_finite()) {
            found.push((sums, Hypothesis { sid: table.sid(item), item, log_prob: sum + 0.0 }));
        }
    }
    found.sort_by(|(a, x), (b, y)| by_scores(a, b).then(x.sid.cmp(&y.sid)));
    found.truncate(top_k);
    found.into_iter().map(|(_, hypothesis)| hypothesis).collect()
}

/// Higher score first; equal ones go by their parents, which are ordered by score, and so on up to the root.
fn by_scores(a: &[f32], b: &[f32]) -> Ordering {
    let level = |(a, b): (&f32, &f32)| b.partial_cmp(a).unwrap_or(Ordering::Equal);
    a.iter().zip(b).rev().map(level).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}
