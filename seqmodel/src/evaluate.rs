//! Full-catalogue, item-level evaluation: every retriever, the same questions, the same counts.

use crate::data::Case;
use crate::metrics::{Metrics, Ranks};
use crate::retrieve::{Query, Retriever, Scored};
use crate::{Error, Result};
use rqvae::ItemIdx;
use std::collections::HashSet;
use std::time::Instant;

/// Queries handed to a retriever at once.
const BATCH: usize = 512;

/// How the questions are asked.
#[derive(Debug, Clone, Copy)]
pub struct EvalConfig {
    /// Length of the lists, at least 10.
    pub k: usize,
    /// Leave the history's items out of the ranking.
    pub exclude_seen: bool,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Rank of each case's target.
    pub ranks: Ranks,
    /// The lists, in case order.
    pub lists: Vec<Vec<Scored>>,
    /// Share of the catalogue that appears in some top ten.
    pub coverage_at_10: f64,
    /// Items outside the catalogue, or seen ones that should have been left out.
    pub invalid: usize,
    /// Items that appear twice in a list.
    pub duplicates: usize,
    /// Lists shorter than `k`.
    pub short_lists: usize,
    /// Wall time of the retriever.
    pub seconds: f64,
}

impl Evaluation {
    /// All five figures.
    pub fn metrics(&self) -> Metrics {
        self.ranks.metrics()
    }

    /// Ranks of the cases that `keep` chooses.
    pub fn slice(&self, cases: &[Case], keep: impl Fn(&Case) -> bool) -> Ranks {
        Ranks(self.ranks.0.iter().zip(cases).filter(|(_, case)| keep(case)).map(|(rank, _)| *rank).collect())
    }
}

/// Asks `retriever` every case over a catalogue of `items` items; `progress` gets the number of cases done.
pub fn evaluate(
    retriever: &dyn Retriever,
    cases: &[Case],
    items: usize,
    config: EvalConfig,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    let mut lists = Vec::with_capacity(cases.len());
    let began = Instant::now();
    for chunk in cases.chunks(BATCH) {
        let queries: Vec<_> = chunk.iter().map(|case| Query::of(case, config.exclude_seen)).collect();
        lists.extend(retriever.retrieve(&queries, config.k)?);
        progress(lists.len());
    }
    let seconds = began.elapsed().as_secs_f64();
    if lists.len() != cases.len() {
        return Err(Error::Mismatch {
            what: format!("lists of {}", retriever.name()),
            expected: cases.len().to_string(),
            found: lists.len().to_string(),
        });
    }
    let mut shown = HashSet::new();
    let (mut invalid, mut duplicates, mut short_lists) = (0, 0, 0);
    let mut ranks = Vec::with_capacity(cases.len());
    for (case, list) in cases.iter().zip(&lists) {
        let query = Query::of(case, config.exclude_seen);
        let mut once = HashSet::new();
        for (at, scored) in list.iter().enumerate() {
            invalid += usize::from(scored.item.0 as usize >= items || query.exclude.contains(&scored.item));
            duplicates += usize::from(!once.insert(scored.item));
            if at < 10 {
                shown.insert(scored.item);
            }
        }
        short_lists += usize::from(list.len() < config.k);
        ranks.push(list.iter().position(|s| s.item == case.target).map(|at| at as u32 + 1));
    }
    Ok(Evaluation {
        ranks: Ranks(ranks),
        lists,
        coverage_at_10: shown.len() as f64 / items.max(1) as f64,
        invalid,
        duplicates,
        short_lists,
        seconds,
    })
}

impl<'a> Query<'a> {
    /// The question of `case`; the items of its history are not asked for where `exclude_seen` is set.
    pub fn of(case: &Case<'a>, exclude_seen: bool) -> Self {
        let exclude: &[ItemIdx] = if exclude_seen { case.history } else { &[] };
        Self { history: case.history, user: case.hash, exclude }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Vec<u32>);

    impl Retriever for Fixed {
        fn name(&self) -> &'static str {
            "fixed"
        }

        fn retrieve(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Scored>>> {
            let list = |_: &Query| self.0.iter().take(k).map(|i| Scored { item: ItemIdx(*i), score: 0.0 }).collect();
            Ok(queries.iter().map(list).collect())
        }
    }

    #[test]
    fn counts_what_is_wrong_with_a_list() {
        let history = [ItemIdx(1)];
        let cases = [Case { user: 0, hash: None, history: &history, target: ItemIdx(5) }];
        let config = EvalConfig { k: 10, exclude_seen: true };
        let found = evaluate(&Fixed(vec![1, 5, 5, 99]), &cases, 20, config, &mut |_| {}).unwrap();
        assert_eq!(found.ranks.0, vec![Some(2)]);
        assert_eq!((found.invalid, found.duplicates, found.short_lists), (2, 1, 1));
        assert!((found.coverage_at_10 - 3.0 / 20.0).abs() < 1e-12);
    }
}
