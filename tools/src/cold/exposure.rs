//! What lists show besides hits: how much of the catalogue, how popular, of how many kinds; by kind, and where they fail.

use super::methods::Method;
use crate::table::Items;
use rand::Rng;
use rqvae::{ItemIdx, SeededRng};
use seqmodel::Scored;
use seqmodel::data::Case;
use serde::Serialize;
use std::collections::BTreeMap;

/// What the lists of ten of one method show.
#[derive(Debug, Clone, Serialize)]
pub struct Exposure {
    /// Name of the method.
    pub method: String,
    /// Share of the list for unseen items, where the method has one.
    pub epsilon: Option<f64>,
    /// Share of the catalogue that is in some list.
    pub coverage: f64,
    /// Share of unseen items among all recommended.
    pub unseen_share: f64,
    /// Mean occurrences in training of what is recommended, over the mean of all items.
    pub popularity_lift: f64,
    /// Mean entropy of the categories of a list, in nats.
    pub category_entropy: f64,
}

/// Lists of ten that are drawn instead of taken from the top.
#[derive(Debug, Clone, Serialize)]
pub struct Drawn {
    /// Name of the method.
    pub method: String,
    /// Log-probabilities are divided by it before drawing; 0 takes the best.
    pub temperature: f64,
    /// Mean entropy of the categories of a list, in nats.
    pub category_entropy: f64,
    /// Recall over all users.
    pub recall_all: f64,
}

/// Unseen targets of one category.
#[derive(Debug, Clone, Serialize)]
pub struct Slice {
    /// The category.
    pub category: String,
    /// Users with an unseen target of it.
    pub users: usize,
    /// Recall at ten of each method, in the order of `methods`.
    pub recall: Vec<f64>,
}

/// A user whose unseen target was not found.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// Titles of the newest items of the history, oldest first.
    pub history: Vec<String>,
    /// Title of the target.
    pub target: String,
    /// Its category.
    pub category: String,
    /// Titles of the unseen items that were put first.
    pub shown: Vec<String>,
    /// Rank of the target among the unseen items; absent where it is further back than they were ranked.
    pub rank: Option<usize>,
}

/// Category of each item by number, and the names.
pub(super) struct Categories {
    of: Vec<u32>,
    names: Vec<String>,
}

impl Categories {
    /// The first part of the category path that does not put nearly all items into one.
    pub(super) fn new(items: &Items) -> Self {
        let part = |depth: usize| -> Vec<&str> {
            let parts = items.categories_top.iter().map(|path| path.split(" > ").nth(depth).unwrap_or("").trim());
            parts.map(|part| if part.is_empty() { "unknown" } else { part }).collect()
        };
        let telling = |parts: &[&str]| {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            parts.iter().for_each(|part| *counts.entry(part).or_default() += 1);
            counts.values().all(|count| *count * 10 < parts.len() * 9)
        };
        let parts = (0..3).map(part).find(|parts| telling(parts)).unwrap_or_else(|| part(0));
        let names: Vec<String> = {
            let mut names: Vec<&str> = parts.clone();
            names.sort_unstable();
            names.dedup();
            names.into_iter().map(String::from).collect()
        };
        let number = |part: &&str| names.binary_search_by(|name| name.as_str().cmp(part)).unwrap_or(0) as u32;
        Self { of: parts.iter().map(number).collect(), names }
    }

    pub(super) fn name(&self, item: ItemIdx) -> &str {
        &self.names[self.of[item.0 as usize] as usize]
    }

    /// Entropy of the categories of a list.
    fn entropy(&self, list: &[Scored]) -> f64 {
        let mut counts: BTreeMap<u32, f64> = BTreeMap::new();
        list.iter().for_each(|scored| *counts.entry(self.of[scored.item.0 as usize]).or_default() += 1.0);
        let term = |count: &f64| {
            let share = count / list.len() as f64;
            -share * share.ln()
        };
        counts.values().map(term).sum::<f64>() + 0.0
    }

    fn mean_entropy(&self, lists: &[Vec<Scored>]) -> f64 {
        lists.iter().map(|list| self.entropy(list)).sum::<f64>() / lists.len().max(1) as f64
    }
}

/// What `lists` of ten show.
pub(super) fn exposure(
    method: &str,
    epsilon: Option<f64>,
    lists: &[Vec<Scored>],
    counts: &[u32],
    unseen: &[bool],
    categories: &Categories,
) -> Exposure {
    let mut shown = vec![false; counts.len()];
    let (mut total, mut popular, mut new) = (0f64, 0f64, 0f64);
    for scored in lists.iter().flatten() {
        let at = scored.item.0 as usize;
        shown[at] = true;
        total += 1.0;
        popular += f64::from(counts[at]);
        new += f64::from(u8::from(unseen[at]));
    }
    let mean = counts.iter().map(|count| f64::from(*count)).sum::<f64>() / counts.len().max(1) as f64;
    Exposure {
        method: method.to_string(),
        epsilon,
        coverage: shown.iter().filter(|shown| **shown).count() as f64 / counts.len().max(1) as f64,
        unseen_share: new / total.max(1.0),
        popularity_lift: popular / total.max(1.0) / mean.max(1e-12),
        category_entropy: categories.mean_entropy(lists),
    }
}

/// Lists of ten drawn without replacement from `ranked`, whose scores are log-probabilities, at some temperatures.
pub(super) fn drawn(
    method: &str,
    ranked: &[Vec<Scored>],
    cases: &[Case],
    categories: &Categories,
    seed: u64,
) -> Vec<Drawn> {
    let at = |temperature: f64| {
        let mut rng = SeededRng::new(seed).stream("temperature");
        let mut draw = |list: &Vec<Scored>| -> Vec<Scored> {
            // The ten largest of log-probability over temperature plus Gumbel noise (Kool et al. 2019).
            let mut keyed: Vec<(f64, Scored)> = list
                .iter()
                .map(|scored| {
                    let noise = -(-rng.random_range(f64::EPSILON..1.0).ln()).ln();
                    let key = if temperature > 0.0 { f64::from(scored.score) / temperature + noise } else { 0.0 };
                    (key, *scored)
                })
                .collect();
            keyed.sort_by(|a, b| b.0.total_cmp(&a.0));
            keyed.into_iter().take(10).map(|(_, scored)| scored).collect()
        };
        let lists: Vec<Vec<Scored>> = ranked.iter().map(&mut draw).collect();
        let hits = cases.iter().zip(&lists).filter(|(case, list)| list.iter().any(|s| s.item == case.target)).count();
        Drawn {
            method: method.to_string(),
            temperature,
            category_entropy: categories.mean_entropy(&lists),
            recall_all: hits as f64 / cases.len().max(1) as f64,
        }
    };
    [0.0, 1.0, 1.5, 2.0].into_iter().map(at).collect()
}

/// Recall of unseen targets by category, the most frequent ones first; `lists` has one set of lists per method.
pub(super) fn slices(
    cases: &[Case],
    lists: &[Vec<Vec<Scored>>],
    unseen: &[bool],
    categories: &Categories,
) -> Vec<Slice> {
    let mut by_category: BTreeMap<&str, (usize, Vec<f64>)> = BTreeMap::new();
    for (row, case) in cases.iter().enumerate().filter(|(_, case)| unseen[case.target.0 as usize]) {
        let slot = by_category.entry(categories.name(case.target)).or_insert_with(|| (0, vec![0.0; lists.len()]));
        slot.0 += 1;
        for (hits, lists) in slot.1.iter_mut().zip(lists) {
            *hits += f64::from(u8::from(lists[row].iter().take(10).any(|s| s.item == case.target)));
        }
    }
    let slice = |(category, (users, hits)): (&str, (usize, Vec<f64>))| Slice {
        category: category.to_string(),
        users,
        recall: hits.into_iter().map(|hits| hits / users as f64).collect(),
    };
    let mut slices: Vec<Slice> = by_category.into_iter().map(slice).collect();
    slices.sort_by(|a, b| b.users.cmp(&a.users).then(a.category.cmp(&b.category)));
    slices.truncate(10);
    slices
}

/// Users whose unseen target `method` ranks furthest back among unseen items; equal ranks by a hash of the user's row.
pub(super) fn failures(
    method: &Method,
    cases: &[Case],
    items: &Items,
    unseen: &[bool],
    categories: &Categories,
    most: usize,
) -> Vec<Failure> {
    let title = |item: &ItemIdx| items.titles[item.0 as usize].clone();
    let rank = |row: usize| method.unseen[row].iter().position(|s| s.item == cases[row].target).map(|at| at + 1);
    let mut rows: Vec<usize> = (0..cases.len())
        .filter(|row| unseen[cases[*row].target.0 as usize] && rank(*row).is_none_or(|rank| rank > 10))
        .collect();
    rows.sort_by_key(|row| (std::cmp::Reverse(rank(*row).unwrap_or(usize::MAX)), rqvae::mix(*row as u64)));
    let failure = |row: usize| {
        let case = &cases[row];
        Failure {
            history: case.history[case.history.len().saturating_sub(4)..].iter().map(title).collect(),
            target: title(&case.target),
            category: categories.name(case.target).to_string(),
            shown: method.unseen[row].iter().take(3).map(|scored| title(&scored.item)).collect(),
            rank: rank(row),
        }
    };
    rows.into_iter().take(most).map(failure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[u32]) -> Vec<Scored> {
        items.iter().map(|i| Scored { item: ItemIdx(*i), score: -(*i as f32) }).collect()
    }

    fn categories() -> Categories {
        Categories { of: vec![0, 0, 1, 1], names: vec!["a".into(), "b".into()] }
    }

    #[test]
    fn what_is_shown_by_hand() {
        let lists = [list(&[0, 2]), list(&[0, 1])];
        let found = exposure("m", None, &lists, &[6, 2, 0, 0], &[false, false, true, true], &categories());
        assert!((found.coverage - 0.75).abs() < 1e-12 && (found.unseen_share - 0.25).abs() < 1e-12);
        // (6 + 0 + 6 + 2) / 4 over 8 / 4.
        assert!((found.popularity_lift - 1.75).abs() < 1e-12);
        assert!((found.category_entropy - 0.5 * std::f64::consts::LN_2).abs() < 1e-12);
    }

    #[test]
    fn a_higher_temperature_mixes_and_zero_takes_the_best() {
        let ranked: Vec<Vec<Scored>> = (0..200).map(|_| list(&(0..40).collect::<Vec<_>>())).collect();
        let categories =
            Categories { of: (0..40).map(|i| u32::from(i >= 10)).collect(), names: vec!["a".into(), "b".into()] };
        let cases: Vec<Case> =
            (0..200).map(|user| Case { user, hash: None, history: &[], target: ItemIdx(8) }).collect();
        let found = drawn("m", &ranked, &cases, &categories, 1);
        assert!((found[0].recall_all - 1.0).abs() < 1e-12 && found[0].category_entropy.abs() < 1e-12);
        assert!(found[1].category_entropy < found[3].category_entropy && found[3].recall_all < 1.0);
    }

    #[test]
    fn slices_count_unseen_targets_only() {
        let case = |target| Case { user: 0, hash: None, history: &[], target: ItemIdx(target) };
        let cases = [case(2), case(3), case(0)];
        let lists = vec![vec![list(&[2]), list(&[1]), list(&[0])]];
        let found = slices(&cases, &lists, &[false, false, true, true], &categories());
        assert_eq!((found.len(), found[0].users, found[0].category.as_str()), (1, 2, "b"));
        assert!((found[0].recall[0] - 0.5).abs() < 1e-12);
    }
}
