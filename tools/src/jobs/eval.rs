//! Evaluation of one model: full catalogue, item level, with intervals, slices and TREC files.

use crate::catalogue::Catalogue;
use crate::table::Interactions;
use anyhow::Result;
use rand::seq::SliceRandom;
use rqvae::{ItemIdx, SeededRng};
use seqmodel::data::{Case, Histories};
use seqmodel::{EvalConfig, Evaluation, LeaveOneOut, Metrics, Retriever, Split, evaluate, runfile};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

/// How the numbers came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// Newest items of a history that the model reads; absent where it reads all.
    pub history_cap: Option<usize>,
    /// `exclude` or `include`.
    pub seen: String,
    /// `file` or `shuffle:SEED`.
    pub ties: String,
    /// Beams, where the model searches.
    pub beam: Option<usize>,
    /// Meaning of a score.
    pub score: String,
}

/// Metrics of a part of the users.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// Users in it.
    pub users: usize,
    /// Their metrics.
    #[serde(flatten)]
    pub metrics: Metrics,
}

/// The evaluation report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// Name of the model.
    pub model: String,
    /// `test` or `val`.
    pub split: String,
    /// Users asked about.
    pub users: usize,
    /// Items ranked.
    pub catalogue_items: usize,
    /// How.
    pub protocol: Protocol,
    /// The figures.
    pub metrics: Metrics,
    /// Half-widths of their 95 % intervals, bootstrap over users.
    pub ci95: Metrics,
    /// `warm`: the target occurs in training; `cold`: it does not.
    pub slices: BTreeMap<String, Slice>,
    /// Share of the catalogue in some top ten.
    #[serde(rename = "coverage@10")]
    pub coverage_at_10: f64,
    /// Items that are not in the catalogue or had to be left out.
    pub invalid: usize,
    /// Items twice in a list.
    pub duplicates: usize,
    /// Lists with fewer items than asked for.
    pub short_lists: usize,
    /// Seconds of retrieval.
    pub seconds: f64,
    /// Users per second.
    pub users_per_second: f64,
    /// Seeds of the model.
    pub seeds: Vec<u64>,
}

/// Which question is asked, and how.
#[derive(Debug, Clone)]
pub struct Question {
    /// Test or validation targets.
    pub split: Split,
    /// Length of the lists.
    pub k: usize,
    /// Leave the history's items out.
    pub exclude_seen: bool,
    /// Beams, for the report.
    pub beam: Option<usize>,
    /// Meaning of a score, for the report.
    pub score: String,
    /// History cap, for the report.
    pub history_cap: Option<usize>,
    /// `file` or `shuffle:SEED`, for the report.
    pub ties: String,
    /// Seeds of the model.
    pub seeds: Vec<u64>,
}

/// Asks `retriever` about every user of `split`.
pub fn measure<'a>(
    retriever: &dyn Retriever,
    split: &LeaveOneOut<'a>,
    items: usize,
    question: &Question,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(EvalReport, Vec<Case<'a>>, Evaluation)> {
    let cases = split.cases(question.split);
    anyhow::ensure!(!cases.is_empty(), "no user has the three interactions that leave-one-out needs");
    let config = EvalConfig { k: question.k.max(10), exclude_seen: question.exclude_seen };
    let found = evaluate(retriever, &cases, items, config, &mut |done| progress(done, cases.len()))?;
    let mut trained = vec![false; items];
    for user in 0..split.users() {
        split.train(user).iter().for_each(|item| trained[item.0 as usize] = true);
    }
    let warm = |case: &Case| trained[case.target.0 as usize];
    let slice = |ranks: seqmodel::Ranks| Slice { users: ranks.0.len(), metrics: ranks.metrics() };
    let slices = BTreeMap::from([
        ("cold".to_string(), slice(found.slice(&cases, |case| !warm(case)))),
        ("warm".to_string(), slice(found.slice(&cases, warm))),
    ]);
    let report = EvalReport {
        model: retriever.name().to_string(),
        split: if question.split == Split::Test { "test" } else { "val" }.to_string(),
        users: cases.len(),
        catalogue_items: items,
        protocol: Protocol {
            history_cap: question.history_cap,
            seen: if question.exclude_seen { "exclude" } else { "include" }.to_string(),
            ties: question.ties.clone(),
            beam: question.beam,
            score: question.score.clone(),
        },
        metrics: found.metrics(),
        ci95: found.ranks.half_widths(),
        slices,
        coverage_at_10: found.coverage_at_10,
        invalid: found.invalid,
        duplicates: found.duplicates,
        short_lists: found.short_lists,
        seconds: found.seconds,
        users_per_second: cases.len() as f64 / found.seconds.max(1e-9),
        seeds: question.seeds.clone(),
    };
    Ok((report, cases, found))
}

/// Histories with the order of same-time events of a user shuffled.
///
/// Public data sets order such events by item id, which a model could learn; the shuffled figure says how much it did.
pub fn shuffle_ties(interactions: &Interactions, seed: u64) -> Histories {
    let mut rng = SeededRng::new(seed).stream("ties");
    let histories = &interactions.histories;
    let users = histories.iter().zip(&interactions.times).enumerate().map(|(user, (items, times))| {
        let mut items: Vec<ItemIdx> = items.to_vec();
        let mut start = 0;
        for run in times.chunk_by(|a, b| a == b) {
            items[start..start + run.len()].shuffle(&mut rng);
            start += run.len();
        }
        (histories.hash(user), items)
    });
    Histories::of_users(users)
}

/// Writes the lists as a TREC run, the targets as qrels.
pub fn write_trec(
    catalogue: &Catalogue,
    users: &[String],
    (report, cases, found): (&EvalReport, &[Case], &Evaluation),
    run: Option<&Path>,
    qrels: Option<&Path>,
) -> Result<()> {
    let user = |row: usize| users[row].clone();
    let item = |item: ItemIdx| catalogue.keys.key(item).to_string();
    let create =
        |path: &Path| std::fs::File::create(path).map(BufWriter::new).map_err(|e| crate::error::cannot_create(path, e));
    if let Some(path) = run {
        let mut out = create(path)?;
        runfile::write_run(&mut out, &report.model, cases, &found.lists, &user, &item)?;
        out.flush()?;
    }
    if let Some(path) = qrels {
        let mut out = create(path)?;
        runfile::write_qrels(&mut out, cases, &user, &item)?;
        out.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_events_of_one_time_change_places() {
        let items: Vec<_> = (0..30).map(ItemIdx).collect();
        let times: Vec<i64> = (0..30).map(|i| i / 10).collect();
        let interactions = Interactions {
            users: vec!["u".into()],
            histories: Histories::new(vec![items.clone()]),
            times: vec![times],
            has_time: true,
            unknown_items: 0,
            rejected: 0,
            count: 30,
        };
        let shuffled = shuffle_ties(&interactions, 1);
        assert_ne!(shuffled.of(0), &items[..]);
        for (day, block) in shuffled.of(0).chunks(10).enumerate() {
            let mut block = block.to_vec();
            block.sort();
            assert_eq!(block, items[day * 10..day * 10 + 10]);
        }
    }
}
