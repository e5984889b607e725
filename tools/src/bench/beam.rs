//! `sidrec bench beam`: what a search costs, and how much of it is the model, the constraint and the selection.
//!
//! The whole search is timed as it is served. Constraint and selection are timed apart, on log-probabilities that are
//! drawn at random, so that no peak of a trained model makes them easy: `constraint_ms` reads the children of every beam
//! for the first time, `select_ms` is the kernel's step behind it, which reads them again and keeps the best. What is left
//! of the whole is `model_ms`.

use super::line::{BenchLine, peak_rss_bytes, quantile_ms};
use super::trie::made_up;
use crate::catalogue::Catalogue;
use crate::cli::{WeightsArg, json_line};
use crate::jobs::train;
use crate::models::{Asking, Model, ModelConfig};
use crate::progress::Stage;
use anyhow::{Context, Result, ensure};
use beam::{BeamKernel, CpuBeams, CpuKernel, Hypothesis, LiveMask, ScoreMode, Scores, SimdKernel, Trie};
use clap::Args;
use rand::Rng;
use rqvae::{ItemIdx, SeededRng, SidTable};
use seqmodel::tiger::TigerConfig;
use seqmodel::{Generative, History, ItemFeatures};
use serde_json::{Map, Value, json};
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Args)]
pub(crate) struct BeamBenchArgs {
    /// Requests answered together
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// Beams, and length of the lists
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1024))]
    beam: u16,
    /// Items of a made-up catalogue, for a TIGER of the paper's size with random weights
    #[arg(long, default_value_t = 12_101, value_parser = clap::value_parser!(u32).range(1..=200_000_000), conflicts_with = "run")]
    items: u32,
    /// Codes of an ID of that catalogue
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=8), conflicts_with = "run")]
    levels: u8,
    /// Codes of a level of that catalogue
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=65_536), conflicts_with = "run")]
    codebook_size: u32,
    /// Run directory of a trained model
    #[arg(long, value_name = "DIR", env = "SIDREC_RUN", requires = "catalogue")]
    run: Option<PathBuf>,
    /// Catalogue directory of that run
    #[arg(long, value_name = "DIR", env = "SIDREC_CATALOGUE", requires = "run")]
    catalogue: Option<PathBuf>,
    /// How the packed weights are kept
    #[arg(long, value_enum, default_value = "f32", env = "SIDREC_WEIGHTS")]
    weights: WeightsArg,
    /// Items of a history
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    history: u16,
    /// Searches that are timed, after three that are not
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Histories and, without a run, weights and IDs follow from it
    #[arg(long, default_value_t = 0, env = "SIDREC_SEED")]
    seed: u64,
    /// Only the JSON line
    #[arg(long)]
    json: bool,
}

/// What is searched, and by what.
struct Subject {
    model: Model,
    sids: SidTable,
    trie: Trie,
}

impl Subject {
    fn new(args: &BeamBenchArgs) -> Result<Self> {
        if let (Some(run), Some(catalogue)) = (&args.run, &args.catalogue) {
            let catalogue = Catalogue::open(catalogue)?;
            let model = train::load(run, &catalogue)?.model;
            return Ok(Self { model, sids: catalogue.sids, trie: catalogue.trie });
        }
        let sids = made_up(args.items, args.levels, args.codebook_size, args.seed)?;
        let features = ItemFeatures::new(Arc::new(sids.clone()), None)?;
        let config = TigerConfig { history_cap: usize::from(args.history), ..TigerConfig::default() };
        let model = Model::new(&ModelConfig::Tiger(config), &features, args.seed)?;
        let trie = Trie::build(&sids)?;
        Ok(Self { model, sids, trie })
    }
}

/// Normalised log-probabilities, drawn once: (rows, widest level).
struct Drawn {
    rows: usize,
    levels: Vec<Vec<f32>>,
}

impl Drawn {
    fn new(trie: &Trie, rows: usize, seed: u64) -> Self {
        let level = |level: usize| {
            let codes = trie.spec().codes_at(level) as usize;
            let mut rng = SeededRng::new(seed).stream_at("log-probs", level as u64);
            let mut data: Vec<f32> = (0..rows * codes).map(|_| rng.random_range(-8.0..0.0)).collect();
            seqmodel::nn::log_softmax_rows(&mut data, codes);
            data
        };
        Self { rows, levels: (0..trie.levels()).map(level).collect() }
    }

    /// For so many beams, another part of them every `round`.
    fn scores(&self, level: usize, beams: usize, round: usize) -> Scores {
        let data = &self.levels[level];
        let width = data.len() / self.rows;
        let first = round % (self.rows - beams + 1);
        Scores { width, data: data[first * width..(first + beams) * width].to_vec() }
    }
}

/// Times of constraint and selection of one search, and what it found.
fn replay<K: BeamKernel<Scores = Scores, Beams = CpuBeams>>(
    kernel: &K,
    trie: &Trie,
    drawn: &Drawn,
    live: &[LiveMask],
    beam: usize,
    round: usize,
) -> Result<(Duration, Duration, Vec<Vec<Hypothesis>>)> {
    let (mut constraint, mut select) = (Duration::ZERO, Duration::ZERO);
    let mut beams = kernel.start(live.len(), live, ScoreMode::FullVocab)?;
    for level in 0..trie.levels() {
        let scores = drawn.scores(level, beams.rows(), round);
        let began = Instant::now();
        let mut read = 0usize;
        for row in 0..beams.rows() {
            let (codes, _) = trie.children(level, beams.node(row));
            read += codes.iter().map(usize::from).sum::<usize>();
        }
        black_box(read);
        constraint += began.elapsed();
        let began = Instant::now();
        kernel.step(&mut beams, &scores, beam)?;
        select += began.elapsed();
    }
    let began = Instant::now();
    let lists = kernel.finish(beams, beam)?;
    Ok((constraint, select + began.elapsed(), lists))
}

/// Whether lists hold items of the catalogue under their own IDs, each once, best first.
fn sound(lists: &[Vec<Hypothesis>], sids: &SidTable) -> bool {
    lists.iter().all(|list| {
        let mut items: Vec<ItemIdx> = list.iter().map(|h| h.item).collect();
        items.sort_unstable();
        items.dedup();
        let own = list.iter().all(|h| sids.codes(h.item) == h.sid.codes());
        own && items.len() == list.len() && list.windows(2).all(|pair| pair[0].log_prob >= pair[1].log_prob)
    })
}

/// Times of whole searches, in order of the rounds, and whether all lists were sound.
fn whole(args: &BeamBenchArgs, subject: &Subject, generative: &Generative) -> Result<(Vec<Duration>, bool)> {
    let (batch, beam) = (usize::from(args.batch), usize::from(args.beam));
    let mut rng = SeededRng::new(args.seed).stream("histories");
    let items = subject.trie.in_order();
    let live = vec![LiveMask::all(&subject.trie); batch];
    let (mut times, mut all_sound) = (Vec::new(), true);
    for round in 0..args.rounds + 3 {
        let mut history =
            || (0..args.history).map(|_| items[rng.random_range(0..items.len())]).collect::<Vec<ItemIdx>>();
        let histories: Vec<Vec<ItemIdx>> = (0..batch).map(|_| history()).collect();
        let histories: Vec<History> = histories.iter().map(History::from).collect();
        let began = Instant::now();
        let lists = generative.search(&histories, &live, beam, beam, None)?;
        let took = began.elapsed();
        all_sound &= sound(&lists, &subject.sids);
        if round >= 3 {
            times.push(took);
        }
    }
    Ok((times, all_sound))
}

pub(super) fn run(args: &BeamBenchArgs) -> Result<()> {
    let (batch, beam) = (usize::from(args.batch), usize::from(args.beam));
    let stage = Stage::new("load", 0);
    let mut subject = Subject::new(args)?;
    subject.model = subject.model.asked(Asking { weights: args.weights.precision(), ..Asking::default() })?;
    let trie = &subject.trie;
    ensure!(trie.items_total() > 0, "the catalogue has no items that can be found");
    let name = subject.model.config().name();
    let generative = subject.model.generative(trie, beam)?.with_context(|| format!("`{name}` does not search"))?;
    generative.guidance()?;
    stage.done(&format!("{name} over {} items", trie.items_total()));

    let stage = Stage::new("searches", 0);
    let (mut times, all_sound) = whole(args, &subject, &generative)?;
    times.sort_unstable();
    let p50_ms = quantile_ms(&times, 0.5);
    stage.done(&format!("p50 {p50_ms:.2} ms"));

    let stage = Stage::new("constraint", 0);
    let live = vec![LiveMask::all(trie); batch];
    let drawn = Drawn::new(trie, batch * beam + 64, args.seed);
    let (fast, plain) = (SimdKernel::new(trie), CpuKernel::new(trie));
    let (mut constraints, mut selects, mut equal) = (Vec::new(), Vec::new(), true);
    for round in 0..args.rounds as usize + 3 {
        let (constraint, select, lists) = replay(&fast, trie, &drawn, &live, beam, round)?;
        if round < 3 {
            equal &= lists == replay(&plain, trie, &drawn, &live, beam, round)?.2;
            continue;
        }
        constraints.push(constraint);
        selects.push(select);
    }
    constraints.sort_unstable();
    selects.sort_unstable();
    let (constraint_ms, select_ms) = (quantile_ms(&constraints, 0.5), quantile_ms(&selects, 0.5));
    let share = (constraint_ms + select_ms) / p50_ms;
    stage.done(&format!("{constraint_ms:.3} ms, selection {select_ms:.3} ms, {:.1} % of a search", 100.0 * share));

    let object = |value: Value| value.as_object().cloned().unwrap_or_else(Map::new);
    let spec = trie.spec();
    let sizes: Vec<u32> = (0..trie.levels()).map(|level| spec.codes_at(level)).collect();
    let line = BenchLine {
        name: "beam",
        device: "cpu",
        threads: rayon::current_num_threads(),
        params: object(json!({"model": name, "trained": args.run.is_some(), "weights": args.weights.precision(),
            "items": trie.items_total(), "levels": trie.levels(), "codebook_sizes": sizes, "batch": batch, "beam": beam,
            "history": args.history, "rounds": args.rounds, "seed": args.seed})),
        p50_ms,
        p99_ms: quantile_ms(&times, 0.99),
        per_second: 1e3 * batch as f64 / p50_ms,
        peak_rss_bytes: peak_rss_bytes(),
        checks: object(json!({"equals_reference": equal, "lists_sound": all_sound})),
        more: object(json!({"model_ms": (p50_ms - constraint_ms - select_ms).max(0.0), "constraint_ms": constraint_ms,
            "select_ms": select_ms, "constraint_and_select_share": share})),
    };
    json_line(&line)?;
    ensure!(equal && all_sound, "the search is not what the reference finds: see `checks`");
    Ok(())
}
