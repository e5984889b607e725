//! `sidrec eval`.

use super::{AskArgs, RejectArgs, json_line};
use crate::catalogue::{Catalogue, require_writable};
use crate::error::{Fault, fault};
use crate::jobs::baselines;
use crate::jobs::eval::{Question, measure, shuffle_ties, write_trec};
use crate::progress::Stage;
use crate::table::{Interactions, read_interactions};
use anyhow::Result;
use clap::{Args, ValueEnum};
use seqmodel::{LeaveOneOut, Retriever, Split};
use std::path::PathBuf;

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum SplitArg {
    Test,
    Val,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum SeenArg {
    /// Leave the history's items out of the ranking
    Exclude,
    /// Rank everything
    Include,
}

#[derive(Args)]
pub(super) struct EvalArgs {
    /// Run directory; not looked at where a baseline is named
    #[arg(long, value_name = "DIR", env = "SIDREC_RUN", required_unless_present = "baseline")]
    run: Option<PathBuf>,
    /// Instead of a run, what needs no training, fitted on all that the questions may know: popular, itemknn,
    /// transitions, content-knn, content-kernel, ials or bpr
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// Seed of a baseline
    #[arg(long, default_value_t = 0, env = "SIDREC_SEED")]
    seed: u64,
    /// Catalogue directory
    #[arg(long, value_name = "DIR", env = "SIDREC_CATALOGUE")]
    catalogue: PathBuf,
    #[command(flatten)]
    ask: AskArgs,
    /// Interactions: user_id, item_id, timestamp or position
    #[arg(long, value_name = "FILE", env = "SIDREC_INTERACTIONS")]
    interactions: PathBuf,
    #[command(flatten)]
    rejects: RejectArgs,
    /// Which target
    #[arg(long, value_enum, default_value = "test")]
    split: SplitArg,
    /// Depths reported; lists are as long as the largest
    #[arg(long, value_delimiter = ',', default_value = "5,10")]
    k: Vec<u32>,
    /// Order of a user's events of the same time: file, or shuffle:SEED
    #[arg(long, default_value = "file")]
    ties: String,
    /// Items of the history in the ranking
    #[arg(long, value_enum, default_value = "exclude")]
    seen: SeenArg,
    /// Write the report as JSON; it goes to standard output in any case
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the lists as a TREC run
    #[arg(long, value_name = "FILE")]
    write_run: Option<PathBuf>,
    /// Write the targets as TREC qrels
    #[arg(long, value_name = "FILE")]
    write_qrels: Option<PathBuf>,
}

/// Evaluates and prints the report.
pub(super) fn eval(args: &EvalArgs) -> Result<()> {
    if args.k.is_empty() || args.k.iter().any(|k| !(1..=1000).contains(k)) {
        return Err(fault(Fault::Usage, "--k: expected depths from 1 to 1000"));
    }
    for (option, path) in
        [("--report", &args.report), ("--write-run", &args.write_run), ("--write-qrels", &args.write_qrels)]
    {
        path.as_ref().map_or(Ok(()), |path| require_writable(option, path, &[]))?;
    }
    let catalogue = Catalogue::open(&args.catalogue)?;
    let mut interactions = read_interactions(&args.interactions, &catalogue.keys, &args.rejects.options())?;
    if args.ties != "file" {
        let seed = args.ties.strip_prefix("shuffle:").and_then(|seed| seed.parse().ok());
        let seed =
            seed.ok_or_else(|| fault(Fault::Usage, format!("--ties {}: expected file or shuffle:SEED", args.ties)))?;
        interactions.histories = shuffle_ties(&interactions, seed);
    }
    let mut question = Question {
        split: match args.split {
            SplitArg::Test => Split::Test,
            SplitArg::Val => Split::Val,
        },
        k: args.k.iter().copied().max().unwrap_or(10) as usize,
        exclude_seen: args.seen == SeenArg::Exclude,
        beam: None,
        score: "own".into(),
        history_cap: None,
        ties: args.ties.clone(),
        seeds: vec![args.seed],
    };
    let ties = catalogue.keys.tie_hash();
    let run = args.run.as_ref().filter(|_| args.baseline.is_none());
    let Some(run) = run else {
        let name = args.baseline.as_deref().unwrap_or_default();
        let known = LeaveOneOut::new(&interactions.histories).known(question.split);
        let stage = Stage::new(&format!("fit {name}"), 0);
        let retriever = baselines::fit(name, &known, &catalogue.content, ties, args.seed)?;
        stage.done(&format!("{} histories", known.len()));
        return report(args, &catalogue, &interactions, retriever.as_ref(), &question);
    };
    let trained = args.ask.load(run, &catalogue)?;
    let width = args.ask.beam as usize;
    if question.split == Split::Val || args.ties != "file" {
        // A run remembers all but the test targets, in the order of the file.
        trained.model.remember(&LeaveOneOut::new(&interactions.histories).known(question.split), trained.seed)?;
    }
    let retriever = trained.model.retriever(&catalogue.trie, width, ties)?;
    if let Some(generative) = trained.model.generative(&catalogue.trie, width)? {
        question.score = generative.score_name()?;
        question.beam = Some(width);
    }
    question.history_cap = Some(trained.model.config().history_cap());
    question.seeds = vec![trained.seed];
    report(args, &catalogue, &interactions, retriever.as_ref(), &question)
}

/// Asks, and writes what came back.
fn report(
    args: &EvalArgs,
    catalogue: &Catalogue,
    interactions: &Interactions,
    retriever: &dyn Retriever,
    question: &Question,
) -> Result<()> {
    let split = LeaveOneOut::new(&interactions.histories);
    let mut stage = Stage::new("evaluate", split.users() as u64);
    let (report, cases, found) = measure(retriever, &split, catalogue.keys.len(), question, &mut |done, of| {
        stage.at(done as u64, of as u64, "users");
    })?;
    stage.done(&format!("recall@10 {:.4} ± {:.4}", report.metrics.recall_at_10, report.ci95.recall_at_10));
    let mut json = serde_json::to_value(&report)?;
    for k in &args.k {
        json["metrics"][format!("recall@{k}")] = found.ranks.recall_at(*k).into();
        json["metrics"][format!("ndcg@{k}")] = found.ranks.ndcg_at(*k).into();
    }
    let files = (args.write_run.as_deref(), args.write_qrels.as_deref());
    write_trec(catalogue, &interactions.users, (&report, &cases, &found), files.0, files.1)?;
    if let Some(path) = &args.report {
        rqvae::write_atomic(path, &serde_json::to_vec_pretty(&json)?)?;
    }
    json_line(&json)
}
