//! The whole line: items, content, semantic IDs, training, evaluation beside baselines, cold start, a page to look at.

use crate::catalogue::Catalogue;
use crate::demo::{DemoConfig, generate};
use crate::error::{Fault, cannot_create, fault};
use crate::interrupt::Interrupt;
use crate::jobs::build_sids::{Content, build};
use crate::jobs::cold;
use crate::jobs::counts::TrainCounts;
use crate::jobs::eval::{Question, measure};
use crate::jobs::inspect::tokenizer;
use crate::jobs::train::{Recorder, features, fit};
use crate::models::{Model, RunConfig};
use crate::progress::Stage;
use crate::report::{
    Curve, CurvePoint, DemoReport, Extras, MetricSet, MetricsRow, MetricsTable, Ordered, PrefixExample, Sample,
    SampleItem, SampleList, cold_start_table, metrics_table, render_html, samples_table,
};
use crate::table::{Interactions, Items, ReadOptions, find_in, read_interactions, read_items};
use anyhow::Result;
use rand::seq::SliceRandom;
use rqvae::{CheckpointDir, Method, QuantizerConfig, SeededRng};
use seqmodel::baseline::{ContentKnn, ItemKnn, Popular};
use seqmodel::data::Case;
use seqmodel::hybrid::{HybridConfig, HybridRetriever, Memory};
use seqmodel::train::EpochRecord;
use seqmodel::{LeaveOneOut, Metrics, Retriever, Scored, Split};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Beams in the evaluation.
const BEAM: usize = 50;

/// Name of the row of the generative model searched by its codes alone, without guidance.
const CODES_ALONE: &str = "rqt-codes";

/// What `sidrec demo` takes.
#[derive(Debug, Clone)]
pub struct DemoJob {
    /// A data directory; the generated catalogue without one.
    pub data: Option<PathBuf>,
    /// Where everything is written.
    pub out: PathBuf,
    /// Everything random follows from it.
    pub seed: u64,
    /// The smoke version.
    pub quick: bool,
}

/// A curve of the report out of a run's records.
fn curve(model: &str, records: &[EpochRecord]) -> Curve {
    let points = records.iter().map(|r| CurvePoint {
        step: r.step,
        epoch: r.epoch as f64,
        loss: Some(r.loss),
        val_recall_10: r.val.map(|v| v.recall_at_10),
    });
    Curve { model: model.to_string(), points: points.collect() }
}

fn metric_set(m: Metrics) -> MetricSet {
    MetricSet {
        recall_5: m.recall_at_5,
        ndcg_5: m.ndcg_at_5,
        recall_10: m.recall_at_10,
        ndcg_10: m.ndcg_at_10,
        mrr_10: m.mrr_at_10,
    }
}

/// An empty output directory. The result of an earlier demo is replaced, anything else is left alone.
fn prepare(out: &Path) -> Result<()> {
    if out.join("report.json").is_file() && out.join("catalogue").is_dir() {
        for name in ["report.json", "report.html"] {
            let _ = fs::remove_file(out.join(name));
        }
        for name in ["catalogue", "run", "data"] {
            let path = out.join(name);
            if path.is_dir() {
                fs::remove_dir_all(&path).map_err(|e| cannot_create(&path, e))?;
            }
        }
    }
    crate::catalogue::require_empty(out)?;
    fs::create_dir_all(out).map_err(|e| cannot_create(out, e))
}

fn load(job: &DemoJob) -> Result<(Items, Interactions, String)> {
    let (dir, name) = if let Some(dir) = &job.data {
        let name = dir.canonicalize().unwrap_or_else(|_| dir.clone());
        (dir.clone(), name.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()))
    } else {
        let config = if job.quick {
            DemoConfig { items: 2000, users: 1500, seed: job.seed }
        } else {
            DemoConfig { seed: job.seed, ..DemoConfig::default() }
        };
        let dir = job.out.join("data");
        crate::demo::write(&dir, &generate(&config))?;
        (dir, "demo catalogue".to_string())
    };
    let options = ReadOptions { rejects_to: Some(job.out.join("rejects.jsonl")), ..ReadOptions::default() };
    let items = read_items(&find_in(&dir, "items")?, &options)?;
    let interactions = read_interactions(&find_in(&dir, "interactions")?, &items.keys, &options)?;
    Ok((items, interactions, name))
}

/// The configurations of a demo: the generative model, its run for cold start, and the dense baseline.
fn configs(job: &DemoJob) -> Result<[RunConfig; 3]> {
    let preset = match (job.quick, job.data.is_some()) {
        (true, _) => "quick",
        (false, true) => "default",
        (false, false) => "demo",
    };
    let mut rqt = RunConfig::preset("rqt", preset)?;
    let mut sasrec = RunConfig::preset("sasrec", preset)?;
    (rqt.train.seed, sasrec.train.seed) = (job.seed, job.seed);
    let mut cold = rqt.clone();
    cold.train.max_epochs = (rqt.train.max_epochs / 2).max(1);
    Ok([rqt, cold, sasrec])
}

/// Runs the demo and returns its report.
pub fn run(job: &DemoJob, command: &str, interrupt: &Interrupt) -> Result<DemoReport> {
    prepare(&job.out)?;
    let interrupted = || interrupt.signal().is_some();
    let check = || match interrupt.signal() {
        Some(signal) => Err(fault(Fault::Interrupted(signal), "interrupted")),
        None => Ok(()),
    };
    let mut timing = Ordered::default();
    let mut time = |name: &str, seconds: f64| timing.push(name, seconds);

    let stage = Stage::new("read data", 0);
    let (items, interactions, dataset) = load(job)?;
    let (n_items, n_users) = (items.keys.len(), interactions.users.len());
    time(
        "data",
        stage.done(&format!("{dataset}: {n_items} items, {n_users} users, {} interactions", interactions.count)),
    );

    let clock = Instant::now();
    let source = Content::choose(&items, None, None, job.seed)?;
    let content = source.vectors(&items)?;
    time("embed", clock.elapsed().as_secs_f64());

    let clock = Instant::now();
    let quantizer = QuantizerConfig { method: Method::ResidualKmeans, seed: job.seed, ..QuantizerConfig::default() };
    let built = build(&items, &content, &source.name(), &quantizer, &|_| true)?;
    let dir = job.out.join("catalogue");
    built.catalogue.write(&dir, &built.residual_norms, built.quantizer.as_ref(), &|at| source.save(at))?;
    time("semantic_ids", clock.elapsed().as_secs_f64());
    let catalogue = &built.catalogue;
    let tokens = tokenizer(catalogue);
    eprintln!(
        "  usage {}, unique prefixes {:.1} %, relative error {:.3}",
        tokens.usage.iter().map(|u| format!("{:.0} %", 100.0 * u)).collect::<Vec<_>>().join(" "),
        100.0 * tokens.unique_fraction,
        tokens.relative_error
    );

    let [rqt_config, cold_config, sasrec_config] = configs(job)?;
    let split = LeaveOneOut::new(&interactions.histories);
    let features = features(catalogue)?;
    let mut curves = Vec::new();
    let mut train = |config: &RunConfig, keep: bool| -> Result<Model> {
        let model = Model::new(&config.model, &features, config.train.seed)?;
        let name = config.model.name();
        let run = job.out.join("run");
        let checkpoints = if keep { Some(CheckpointDir::create(&run)?) } else { None };
        if keep {
            rqvae::write_atomic(&run.join("config.toml"), toml::to_string_pretty(config)?.as_bytes())?;
            TrainCounts::of(&split, catalogue.keys.len()).write(&run)?;
        }
        let mut recorder = Recorder::new(&format!("train {name}"), &config.train, None);
        let outcome = fit(&model, config, catalogue, &split, checkpoints.as_ref(), false, &mut recorder, &interrupted)?;
        let message = format!("{} parameters, best val recall@10 {:.4}", model.params().count(), outcome.best);
        let (seconds, records) = recorder.done(&message);
        timing.push(format!("train_{name}"), seconds);
        if keep {
            let lines: Result<Vec<String>, _> = records.iter().map(serde_json::to_string).collect();
            rqvae::write_atomic(&run.join("metrics.jsonl"), (lines?.join("\n") + "\n").as_bytes())?;
        }
        curves.push(curve(name, &records));
        check()?;
        Ok(model)
    };
    let rqt = train(&rqt_config, true)?;
    let sasrec = train(&sasrec_config, false)?;

    let ties = catalogue.keys.tie_hash();
    let known = split.known(Split::Test);
    let popular = Popular::fit(known.iter().copied(), ties);
    let itemknn = ItemKnn::fit(&known, ties);
    let content_knn = ContentKnn::new(&content, ContentKnn::DECAY, ties)?;
    let mut retrievers: Vec<Box<dyn Retriever + '_>> = vec![
        Box::new(popular),
        Box::new(itemknn),
        Box::new(content_knn),
        sasrec.retriever(&catalogue.trie, BEAM, ties)?,
    ];
    if let Some(codes) = rqt.generative(&catalogue.trie, BEAM)? {
        retrievers.push(Box::new(codes.with_guide(0.0).named(CODES_ALONE)));
    }
    retrievers.push(rqt.retriever(&catalogue.trie, BEAM, ties)?);
    if let Some(generative) = rqt.generative(&catalogue.trie, BEAM)? {
        let live = |item| catalogue.trie.leaf(item).is_some();
        let memory = Memory::of(&known, &content, &live, &HybridConfig::default(), ties)?;
        retrievers.push(Box::new(HybridRetriever::beside(memory, generative)));
    }
    let clock = Instant::now();
    let mut tables = Vec::new();
    let mut cases = Vec::new();
    let mut lists: Vec<(String, Vec<Vec<Scored>>)> = Vec::new();
    for exclude_seen in [true, false] {
        let mut rows = Vec::new();
        for retriever in &retrievers {
            let name = retriever.name().to_string();
            let mut stage = Stage::new(&format!("evaluate {name}"), split.users() as u64);
            let question = Question {
                split: Split::Test,
                k: 10,
                exclude_seen,
                beam: Some(BEAM),
                score: String::new(),
                history_cap: None,
                ties: "file".into(),
                seeds: vec![job.seed],
            };
            let (report, asked, found) = measure(retriever.as_ref(), &split, n_items, &question, &mut |done, of| {
                stage.at(done as u64, of as u64, "users");
            })?;
            let seen = if exclude_seen { "excluded" } else { "included" };
            stage.done(&format!("recall@10 {:.4}, seen items {seen}", report.metrics.recall_at_10));
            check()?;
            rows.push(MetricsRow {
                model: name.clone(),
                metrics: metric_set(report.metrics),
                ci95: Some(metric_set(report.ci95)),
                coverage_10: Some(report.coverage_at_10),
                users_per_second: Some(report.users_per_second),
            });
            anyhow::ensure!(report.invalid == 0, "{name} returned {} invalid items", report.invalid);
            if exclude_seen {
                cases = asked;
                lists.push((name, found.lists));
            }
        }
        let seen = if exclude_seen { "exclude" } else { "include" };
        tables.push(MetricsTable { title: format!("Seen items {seen}d"), seen: seen.into(), users: cases.len(), rows });
    }
    timing.push("evaluate", clock.elapsed().as_secs_f64());

    let clock = Instant::now();
    let found =
        cold::run(&items, &interactions, &content, &source.name(), &quantizer, &cold_config, BEAM, &interrupted)?;
    check()?;
    curves.push(curve("rqt, cold start", &found.records));
    timing.push("cold_start", clock.elapsed().as_secs_f64());

    let mut models = Ordered::default();
    for row in &tables[0].rows {
        models.push(row.model.clone(), row.metrics);
    }
    let report = DemoReport {
        items: n_items,
        users: n_users,
        interactions: interactions.count,
        tokenizer: tokens,
        models,
        cold_start: found.rows.clone(),
        timing,
    };
    let levels = catalogue.sids.spec().levels();
    let extras = Extras {
        dataset,
        command: command.to_string(),
        seeds: vec![job.seed],
        highlight: "rqt".into(),
        code_counts: (0..levels).map(|level| code_counts(catalogue, level)).collect(),
        prefixes: prefixes(catalogue),
        samples: samples(catalogue, &interactions, &cases, &lists, job.seed),
        notes: notes(&found, catalogue),
        tables,
        curves,
    };
    rqvae::write_atomic(&job.out.join("report.html"), render_html(&report, &extras)?.as_bytes())?;
    rqvae::write_atomic(&job.out.join("report.json"), &serde_json::to_vec_pretty(&report)?)?;
    for table in &extras.tables {
        eprintln!("\n{}", metrics_table(table, &extras.highlight));
    }
    eprintln!("\nNew products\n{}", cold_start_table(&report.cold_start));
    eprintln!("\n{}", samples_table(&extras.samples, terminal_width()));
    eprintln!("\nReport: {}", job.out.join("report.html").display());
    Ok(report)
}

fn terminal_width() -> u16 {
    std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).unwrap_or(120)
}

fn notes(found: &cold::ColdStart, catalogue: &Catalogue) -> Vec<String> {
    vec![
        "Leave-one-out: the last interaction of a user is the test target, the one before it validation; the full \
         catalogue is ranked, item by item; at test the history includes the validation item."
            .to_string(),
        format!(
            "rqt searches its trie with {BEAM} beams: it cannot return an item that does not exist. Its dense head \
             guides the search; {CODES_ALONE} is the same model searched by the probabilities of the codes alone; hybrid \
             ranks what it finds together with what often follows the history and what is like it in content \
             (`sidrec train --model hybrid`)."
        ),
        "Intervals are 95 %, bootstrap over users.".to_string(),
        cold::describe(found, catalogue),
    ]
}

/// Items per code of `level`.
fn code_counts(catalogue: &Catalogue, level: usize) -> Vec<u32> {
    let mut counts = vec![0; catalogue.sids.spec().codes_at(level) as usize];
    for item in 0..catalogue.sids.items() {
        counts[usize::from(catalogue.sids.codes(rqvae::ItemIdx(item as u32))[level])] += 1;
    }
    counts
}

/// A few well-filled prefixes, to show what codes mean.
fn prefixes(catalogue: &Catalogue) -> Vec<PrefixExample> {
    let trie = &catalogue.trie;
    let (codes, nodes) = trie.children(0, beam::Trie::ROOT);
    let mut rows: Vec<_> = codes.iter().zip(nodes).map(|(code, node)| (trie.items_below(1, node), code)).collect();
    rows.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then(a.1.cmp(&b.1)));
    let step = (rows.len() / 12).max(1);
    rows.iter()
        .step_by(step)
        .take(6)
        .map(|(items, code)| PrefixExample {
            prefix: code.to_string(),
            items: items.len(),
            titles: items.iter().take(4).map(|item| catalogue.title(*item).to_string()).collect(),
        })
        .collect()
}

/// Five seeded users with their histories and what each model recommends.
fn samples(
    catalogue: &Catalogue,
    interactions: &Interactions,
    cases: &[Case],
    lists: &[(String, Vec<Vec<Scored>>)],
    seed: u64,
) -> Vec<Sample> {
    let item = |item: rqvae::ItemIdx, score: Option<f64>, target: rqvae::ItemIdx| SampleItem {
        title: catalogue.title(item).to_string(),
        category: catalogue.cards[item.0 as usize].category.clone(),
        sid: catalogue.sids.sid(item).to_string(),
        score,
        is_target: item == target,
    };
    let mut rows: Vec<usize> = (0..cases.len()).filter(|row| cases[*row].history.len() >= 4).collect();
    rows.shuffle(&mut SeededRng::new(seed).stream("samples"));
    rows.truncate(5);
    rows.iter()
        .map(|row| {
            let case = &cases[*row];
            let newest = case.history.len().saturating_sub(6);
            Sample {
                user: interactions.users[case.user].clone(),
                history: case.history[newest..].iter().map(|i| item(*i, None, case.target)).collect(),
                history_omitted: newest,
                target: item(case.target, None, case.target),
                lists: lists
                    .iter()
                    .filter(|(model, _)| model == "rqt" || model == "itemknn")
                    .map(|(model, lists)| SampleList {
                        model: model.clone(),
                        items: lists[*row]
                            .iter()
                            .take(5)
                            .map(|s| item(s.item, (model == "rqt").then_some(f64::from(s.score)), case.target))
                            .collect(),
                    })
                    .collect(),
            }
        })
        .collect()
}
