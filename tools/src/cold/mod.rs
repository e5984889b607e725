//! The cold-start harness: what is recommended of items that training has never seen.
//!
//! A [`protocol`] says which items are held out and who is asked; tokenizer, models and every count are fitted without
//! them; `methods` fill lists, which `stages` keeps, `score` counts hits, `exposure` what is shown, and `page` draws it. The
//! text encoder is fitted without them too where it is fitted at all (`lsa`).

mod chart;
mod exposure;
mod matching;
mod methods;
mod page;
pub mod protocol;
mod score;
mod stages;

use crate::catalogue::Catalogue;
use crate::content::Encoder;
use crate::error::{Fault, bad_data, fault};
use crate::jobs::build_sids::{Content, build};
use crate::jobs::train::{Recorder, data_digest, features, fit};
use crate::models::{Model, RunConfig};
use crate::progress::Stage;
use crate::report::ColdStartRow;
use crate::table::{Interactions, Items};
use anyhow::Result;
use exposure::{Categories, Drawn, Exposure, Failure, Slice};
use methods::Method;
use protocol::{Held, Protocol};
use rqvae::{ItemIdx, QuantizerConfig, Vectors};
use score::{Paired, RampRow};
use seqmodel::LeaveOneOut;
use seqmodel::data::Case;
use seqmodel::hybrid::HybridConfig;
use seqmodel::train::{Outcome, Stop};
use serde::Serialize;
use stages::Stages;
use std::path::Path;
use std::time::Instant;

/// How the harness is run.
#[derive(Debug, Clone)]
pub struct ColdConfig {
    /// Who is held out.
    pub protocol: Protocol,
    /// The tokenizer.
    pub quantizer: QuantizerConfig,
    /// What is trained.
    pub models: Vec<RunConfig>,
    /// Whether what is counted and not trained is asked for.
    pub counted: bool,
    /// Beams, at least 50.
    pub beam: usize,
    /// Everything random follows from it.
    pub seed: u64,
}

/// What all methods are asked with.
struct Setting<'a> {
    held: &'a Held,
    cases: &'a [Case<'a>],
    catalogue: &'a Catalogue,
    content: &'a Vectors,
    ties: &'a [u64],
    /// Items that are held out, and all others.
    cold: Vec<ItemIdx>,
    warm: Vec<ItemIdx>,
    beam: usize,
    k: usize,
    seed: u64,
}

/// Shares of a list for unseen items, at a length of ten; with the last of them as the paper's figure 5.
const EPSILONS: [f64; 4] = [0.0, 0.1, 0.2, 0.3];
/// Lengths, at a share of 0.1.
const LENGTHS: [usize; 4] = [5, 10, 20, 50];

/// What is written to `report.json`.
#[derive(Debug, Default, Serialize)]
pub struct ColdReport {
    /// Name and parameters of the protocol.
    pub protocol: Protocol,
    /// What was left open by the papers, and how it is decided here.
    pub choices: Vec<&'static str>,
    /// Items that are held out.
    pub held_out_items: usize,
    /// Interactions that were deleted for it.
    pub removed_interactions: usize,
    /// Users asked.
    pub users: usize,
    /// Of them, users whose target is held out.
    pub users_with_unseen_target: usize,
    /// One row per method, share and length.
    pub rows: Vec<ColdStartRow>,
    /// 95 % half-widths of `recall_unseen`, row by row.
    pub ci95_recall_unseen: Vec<f64>,
    /// Recall at ten by how often training has seen the target.
    pub ramp: Vec<RampRow>,
    /// What methods differ by from the published bar, user by user.
    pub paired: Vec<Paired>,
    /// What lists show besides hits.
    pub exposure: Vec<Exposure>,
    /// Lists drawn from the probabilities of what generates.
    pub temperature: Vec<Drawn>,
    /// Methods of `categories`, at a share of 0.1.
    pub slice_methods: Vec<String>,
    /// Recall of unseen targets by category.
    pub categories: Vec<Slice>,
    /// The method whose failures are shown.
    pub failures_of: String,
    /// Users whose unseen target it ranks furthest back.
    pub failures: Vec<Failure>,
    /// Seconds of each stage but training; 0 for those that an earlier run had done.
    pub seconds: Vec<(String, f64)>,
    /// Seed.
    pub seed: u64,
    /// The encoder of the content.
    pub encoder: String,
    /// The tokenizer's method.
    pub method: String,
    /// How each model was trained.
    pub trainings: Vec<Training>,
}

/// How a model was trained.
#[derive(Debug, Clone, Serialize)]
pub struct Training {
    /// The model.
    pub model: String,
    /// Why training ended.
    pub stop: Stop,
    /// Epochs finished.
    pub epochs: u64,
    /// Steps taken.
    pub steps: u64,
    /// Best recall@10 of the validation items.
    pub best: f64,
    /// Seconds, with those of earlier runs.
    pub seconds: f64,
}

const CHOICES: [&str; 6] = [
    "slots: a share of epsilon of k places is ceil(epsilon * k), at the end of every list",
    "shares: epsilon is the share of all lists together; a list has up to three times as many, where scores promise most",
    "a hybrid ranks warm and unseen items by the same lists with slots and with shares",
    "unseen items under one matched prefix come in the order of a hash of their ids",
    "the fourth code of an unseen item is the next suffix among equal codes, unseen items after seen ones",
    "items of a user's history are left out of every list",
];

/// Content vectors by an encoder that has not read the held-out texts where it is fitted.
fn content(
    items: &Items,
    held: &Held,
    embeddings: Option<&Path>,
    encoder: Option<&str>,
    seed: u64,
) -> Result<(Vectors, String)> {
    let fitted = embeddings.is_none() && items.embeddings.is_none() && matches!(encoder, None | Some("lsa"));
    let source = if fitted {
        let known = (0..items.texts.len()).filter(|row| !held.unseen[*row]);
        let texts: Vec<String> = known.map(|row| items.texts[row].render()).collect();
        Content::Encoder(Box::new(Encoder::choose(None, &|| texts.clone(), seed)?))
    } else {
        Content::choose(items, embeddings, encoder, seed)?
    };
    Ok((source.vectors(items)?, source.name()))
}

/// The published bar that every method is compared with.
const BAR: &str = "content-knn, slots";
/// Share at which methods are compared.
const EPSILON: f64 = 0.1;

/// Runs a protocol: fits everything without the held-out items, fills all lists, counts. Stages that are whole in `out`
/// are read instead.
///
/// # Errors
/// Nobody's target is held out, a held-out item is found where it must not be, or it was interrupted: the same call goes on.
pub fn run(
    items: &Items,
    interactions: &Interactions,
    embeddings: Option<&Path>,
    encoder: Option<&str>,
    config: &ColdConfig,
    out: &Path,
    signal: &dyn Fn() -> Option<i32>,
) -> Result<ColdReport> {
    if matches!(config.protocol, Protocol::Time { .. }) && !interactions.has_time {
        return Err(bad_data("protocol time: the interactions have no column `timestamp`, only `position`"));
    }
    let held = config.protocol.hold(interactions, items.keys.len(), config.seed);
    held.check()?;
    let unseen = |item: ItemIdx| held.unseen[item.0 as usize];
    let cases = held.cases();
    let users_unseen = cases.iter().filter(|case| unseen(case.target)).count();
    if users_unseen == 0 {
        let message =
            format!("protocol {}: no user's target is an unseen item; nothing to measure", config.protocol.name());
        return Err(fault(Fault::BadData, message));
    }
    eprintln!(
        "protocol {}: {} of {} items held out, {} interactions removed, {} users asked, {users_unseen} of them for an unseen item",
        config.protocol.name(),
        held.items(),
        items.keys.len(),
        held.removed_interactions,
        cases.len()
    );
    let check = || match signal() {
        Some(signal) => Err(fault(
            Fault::Interrupted(signal),
            "interrupted; the same command with --resume goes on where this one stopped",
        )),
        None => Ok(()),
    };
    let total = 1 + usize::from(config.counted) + 2 * config.models.len();
    let mut done = 0;
    let mut next = |what: &str| {
        done += 1;
        eprintln!("[{done}/{total}] {what}");
    };
    let mut seconds = Vec::new();
    next("content and semantic IDs");
    let began = Instant::now();
    let (content, encoder) = content(items, &held, embeddings, encoder, config.seed)?;
    let built = build(items, &content, &encoder, &config.quantizer, &|item| !unseen(item))?;
    let catalogue = &built.catalogue;
    seconds.push(("content and semantic IDs".to_string(), began.elapsed().as_secs_f64()));
    let split = LeaveOneOut::new(&held.training);
    let stages = Stages::open(out, &question(config, &split, catalogue, &encoder)?)?;
    let (cold, warm) = (0..items.keys.len() as u32).map(ItemIdx).partition(|item| unseen(*item));
    let setting = Setting {
        held: &held,
        cases: &cases,
        catalogue,
        content: &content,
        ties: catalogue.keys.tie_hash(),
        cold,
        warm,
        beam: config.beam.max(*LENGTHS.iter().max().unwrap_or(&10)),
        k: *LENGTHS.iter().max().unwrap_or(&10),
        seed: config.seed,
    };
    let mut methods = Vec::new();
    let mut group = |name: &str, make: &dyn Fn() -> Result<Vec<Method>>| -> Result<()> {
        let (began, stage) = (Instant::now(), Stage::new(&format!("lists of {name}"), 0));
        let (found, kept) = stages.methods(name, make)?;
        stage.done(&format!("{} methods{}", found.len(), if kept { ", kept from an earlier run" } else { "" }));
        seconds.push((format!("lists of {name}"), if kept { 0.0 } else { began.elapsed().as_secs_f64() }));
        methods.extend(found);
        Ok(())
    };
    if config.counted {
        check()?;
        next("what is counted");
        group("counted", &|| setting.counted())?;
    }
    let mut trainings = Vec::new();
    for run in &config.models {
        check()?;
        let name = run.model.name();
        next(&format!("train {name}"));
        let model = Model::new(&run.model, &features(catalogue)?, config.seed)?;
        let mut recorder = Recorder::new(&format!("train {name}"), &run.train, None);
        let checkpoints = stages.checkpoints(name)?;
        let interrupted = || signal().is_some();
        let outcome = fit(&model, run, catalogue, &split, Some(&checkpoints), true, &mut recorder, &interrupted)?;
        recorder.done(&format!("{} epochs, best val recall@10 {:.4}", outcome.epochs, outcome.best));
        if outcome.stop == Stop::Interrupted {
            check()?;
        }
        let Outcome { stop, epochs, steps, best, seconds, .. } = outcome;
        trainings.push(Training { model: name.to_string(), stop, epochs, steps, best, seconds });
        next(&format!("lists of {name}"));
        let generates = model.generative(&catalogue.trie, 1)?.is_some();
        group(name, &|| if generates { setting.generative(&model) } else { setting.dense(&model) })?;
    }
    Ok(ColdReport {
        held_out_items: held.items(),
        removed_interactions: held.removed_interactions,
        users: cases.len(),
        users_with_unseen_target: users_unseen,
        seconds,
        seed: config.seed,
        encoder,
        method: catalogue.origin.method.clone(),
        trainings,
        ..count(config.protocol, &setting, &methods, items)
    })
}

/// Digest of everything that stages depend on.
fn question(config: &ColdConfig, split: &LeaveOneOut, catalogue: &Catalogue, encoder: &str) -> Result<String> {
    let mut text = format!(
        "{} {} {encoder} {} {} {}",
        serde_json::to_string(&config.protocol)?,
        catalogue.sids.digest(),
        config.beam,
        config.seed,
        data_digest(split, config.models.iter().any(|run| run.model.reads_users()))
    );
    for run in &config.models {
        text += &toml::to_string(run)?;
    }
    // The hybrid of a model is made with the numbers of now.
    text += &serde_json::to_string(&HybridConfig::default())?;
    text += if config.counted { "counted" } else { "" };
    Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
}

/// Counts hits and what is shown of all methods' lists.
fn count(protocol: Protocol, setting: &Setting, methods: &[Method], items: &Items) -> ColdReport {
    let (cases, held) = (setting.cases, setting.held);
    let unseen = |item: ItemIdx| held.unseen[item.0 as usize];
    let (counts, categories) = (held.counts(), Categories::new(items));
    let mut report = ColdReport { protocol, choices: CHOICES.to_vec(), ..ColdReport::default() };
    let bar = methods.iter().find(|method| method.name == BAR).map(|method| method.lists(EPSILON, 10));
    let mut sliced = Vec::new();
    for method in methods {
        let placed = method.places != methods::Places::None;
        let mut rows: Vec<(Option<f64>, usize)> = Vec::new();
        if placed {
            rows.extend(EPSILONS.iter().map(|epsilon| (Some(*epsilon), 10)));
            rows.extend(LENGTHS.iter().filter(|k| **k != 10).map(|k| (Some(EPSILON), *k)));
        } else {
            rows.extend(LENGTHS.iter().map(|k| (None, *k)));
        }
        for (epsilon, k) in rows {
            let lists = method.lists(epsilon.unwrap_or(0.0), k);
            let (row, width) = score::row(&method.name, epsilon, k, cases, &lists, &unseen);
            report.rows.push(row);
            report.ci95_recall_unseen.push(width);
            if k != 10 || epsilon.is_some_and(|epsilon| epsilon != EPSILON) {
                continue;
            }
            report.ramp.extend(score::ramp(&method.name, epsilon, cases, &lists, &counts));
            let shown = exposure::exposure(&method.name, epsilon, &lists, &counts, &held.unseen, &categories);
            report.exposure.push(shown);
            if let Some(bar) = bar.as_ref().filter(|_| method.name != BAR) {
                report.paired.push(score::paired(
                    (method.name.as_str(), epsilon, &lists[..]),
                    (BAR, &bar[..]),
                    cases,
                    &unseen,
                ));
            }
            if placed {
                sliced.push((method, lists));
            }
        }
        if !placed && matches!(method.name.as_str(), "rqt" | "tiger") {
            report.temperature.extend(exposure::drawn(&method.name, &method.all, cases, &categories, setting.seed));
        }
    }
    let hits = |lists: &[Vec<seqmodel::Scored>]| {
        let found = |(case, list): &(&Case, &Vec<seqmodel::Scored>)| {
            unseen(case.target) && list.iter().any(|s| s.item == case.target)
        };
        cases.iter().zip(lists).filter(found).count()
    };
    sliced.sort_by_key(|(_, lists)| std::cmp::Reverse(hits(lists)));
    if let Some((best, _)) = sliced.first() {
        report.failures_of.clone_from(&best.name);
        report.failures = exposure::failures(best, cases, items, &held.unseen, &categories, 8);
    }
    sliced.truncate(4);
    report.slice_methods = sliced.iter().map(|(method, _)| method.name.clone()).collect();
    let lists: Vec<_> = sliced.into_iter().map(|(_, lists)| lists).collect();
    report.categories = exposure::slices(cases, &lists, &held.unseen, &categories);
    report
}

/// The page of `report`, which `command` made.
///
/// # Errors
/// A template that does not fit.
pub fn render(report: &ColdReport, command: &str) -> Result<String> {
    page::render(report, command)
}
