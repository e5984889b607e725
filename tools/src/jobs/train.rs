//! Training: a model by name, a run directory, metrics line by line, resume.

use crate::catalogue::{Catalogue, require_empty};
use crate::error::{Fault, bad_data, cannot_create, fault, input_missing};
use crate::interrupt::Interrupt;
use crate::jobs::counts::TrainCounts;
use crate::models::{Model, ModelConfig, Observer, RunConfig};
use crate::progress::Stage;
use crate::table::Interactions;
use anyhow::{Context, Result};
use beam::cuda::Device;
use candle_core::Tensor;
use fs4::fs_std::FileExt;
use rqvae::{CheckpointDir, SeededRng};
use seqmodel::data::Case;
use seqmodel::nn::load_parameters;
use seqmodel::train::{EpochRecord, Identity, Outcome, Stop, TrainConfig, Validation};
use seqmodel::{EvalConfig, ItemFeatures, LeaveOneOut, Split, evaluate};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Beams used in validation.
const VALIDATION_BEAM: usize = 30;

/// What a model may see of a catalogue.
pub fn features(catalogue: &Catalogue) -> Result<ItemFeatures> {
    let content = Arc::new(catalogue.content.clone());
    Ok(ItemFeatures::new(Arc::new(catalogue.sids.clone()), Some(content))?)
}

/// Digest of all histories, and of whose they are where `users` are read: two runs with the same one saw the same data.
pub fn data_digest(split: &LeaveOneOut, users: bool) -> String {
    let mut hasher = blake3::Hasher::new();
    for user in 0..split.users() {
        let bytes: Vec<u8> = split.train(user).iter().flat_map(|item| item.0.to_le_bytes()).collect();
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(&bytes);
        if let Some(hash) = split.hash(user).filter(|_| users) {
            hasher.update(&hash.0.to_le_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// The validation users: all, or a seeded draw of `users`.
pub fn validation_cases<'a>(split: &LeaveOneOut<'a>, users: usize, seed: u64) -> Vec<Case<'a>> {
    let cases = split.cases(Split::Val);
    if users == 0 || users >= cases.len() {
        return cases;
    }
    let mut rng = SeededRng::new(seed).stream("validation users");
    let rows: BTreeSet<usize> = rand::seq::index::sample(&mut rng, cases.len(), users).into_iter().collect();
    rows.into_iter().map(|row| cases[row]).collect()
}

/// Trains `model` on `split`, with validation over the live items of the catalogue by beam search.
#[expect(clippy::too_many_arguments, reason = "one call per run; each argument is a thing of its own")]
pub fn fit(
    model: &Model,
    config: &RunConfig,
    catalogue: &Catalogue,
    split: &LeaveOneOut,
    output: Option<&CheckpointDir>,
    resume: bool,
    observer: &mut dyn Observer,
    interrupted: &dyn Fn() -> bool,
) -> Result<Outcome> {
    let cases = validation_cases(split, config.train.eval_users, config.train.seed);
    let ties = catalogue.keys.tie_hash();
    let mut validate = |model: &Model| {
        let retriever = model.learner(&catalogue.trie, VALIDATION_BEAM, ties)?;
        let eval = EvalConfig { k: 10, exclude_seen: true };
        let found = evaluate(retriever.as_ref(), &cases, catalogue.keys.len(), eval, &mut |_| {})?.metrics();
        Ok(Validation { recall_at_10: found.recall_at_10, ndcg_at_10: found.ndcg_at_10 })
    };
    // The limits may be moved when a run goes on; everything else belongs to its identity.
    let mut essential = config.clone();
    (essential.train.time_limit_s, essential.train.patience) = (0, 1);
    let identity = Identity {
        model: config.model.name().to_string(),
        config: blake3::hash(toml::to_string(&essential)?.as_bytes()).to_hex().to_string(),
        data: data_digest(split, config.model.reads_users()),
        sids: catalogue.sids.digest(),
    };
    let toml = toml::to_string_pretty(&config.model)?;
    let _kept = crate::allocator::keep_blocks();
    model.train(
        &config.train,
        split,
        identity,
        output.map(|dir| (dir, toml)),
        resume,
        &mut validate,
        observer,
        interrupted,
    )
}

/// Draws progress and keeps the records.
pub struct Recorder<'a> {
    stage: Stage,
    epochs: u64,
    epoch: u64,
    last: String,
    began: Instant,
    /// Seconds of the runs that this one goes on from.
    before: f64,
    /// Steps seen, samples of a full batch, and seconds that there are, 0 for no limit.
    steps: u64,
    batch: usize,
    limit: u64,
    /// All records so far.
    pub records: Vec<EpochRecord>,
    sink: Option<&'a mut dyn Write>,
}

impl<'a> Recorder<'a> {
    /// A stage called `name`, as long as `config` says; records also go to `sink` as JSON lines.
    pub fn new(name: &str, config: &TrainConfig, sink: Option<&'a mut dyn Write>) -> Self {
        let TrainConfig { max_epochs: epochs, batch_size: batch, time_limit_s: limit, .. } = *config;
        let stage = Stage::new(name, 1000 * epochs);
        let (last, records) = (String::new(), Vec::new());
        Self {
            stage,
            epochs,
            epoch: 0,
            last,
            began: Instant::now(),
            before: 0.0,
            steps: 0,
            batch,
            limit,
            records,
            sink,
        }
    }

    /// Of a run that goes on.
    #[must_use]
    fn after(mut self, done: Done) -> Self {
        (self.epoch, self.before) = (done.epoch, done.seconds);
        self
    }

    /// Ends the stage; returns its seconds and the records.
    pub fn done(self, message: &str) -> (f64, Vec<EpochRecord>) {
        (self.stage.done(message), self.records)
    }
}

impl Observer for Recorder<'_> {
    fn step(&mut self, done: u64, of: u64, loss: f64) {
        let at = self.epoch * 1000 + 1000 * done / of.max(1);
        self.steps += 1;
        let passed = self.began.elapsed().as_secs_f64();
        let rate = self.steps as f64 / passed.max(1e-9);
        let mut left = ((self.epochs - self.epoch.min(self.epochs)) * of).saturating_sub(done) as f64 / rate;
        if self.limit > 0 {
            left = left.min((self.limit as f64 - self.before - passed).max(0.0));
        }
        let (epoch, left, speed) = (self.epoch + 1, duration(left), rate * self.batch as f64);
        let message = format!(
            "epoch {epoch}/{} loss {loss:.3} {speed:.0} examples/s {left} left at most {}",
            self.epochs, self.last
        );
        self.stage.at(at, 1000 * self.epochs, &message);
    }

    fn epoch(&mut self, record: &EpochRecord) -> Result<()> {
        self.epoch = record.epoch;
        if let Some(val) = record.val {
            self.last = format!("val recall@10 {:.4}", val.recall_at_10);
            self.stage.note(&format!(
                "  epoch {:>3}  loss {:>7.4}  lr {:.2e}  {:>6.0} examples/s  val recall@10 {:.4} ndcg@10 {:.4}",
                record.epoch, record.loss, record.lr, record.examples_per_second, val.recall_at_10, val.ndcg_at_10
            ));
        }
        if let Some(sink) = &mut self.sink {
            serde_json::to_writer(&mut **sink, record)?;
            sink.write_all(b"\n")?;
            sink.flush()?;
        }
        self.records.push(record.clone());
        Ok(())
    }
}

/// A duration for people: the two largest units.
fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// Trains into the run directory `out`, on `device` where there is one that the model can be trained on.
///
/// # Errors
/// Cannot create when `out` is in use or holds a run and `resume` is not set; interrupted after a clean checkpoint.
pub fn run(
    config: &RunConfig,
    catalogue: &Catalogue,
    interactions: &Interactions,
    out: &Path,
    resume: bool,
    device: Option<Arc<dyn Device>>,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    config.validate()?;
    if !resume {
        require_empty(out)?;
    }
    fs::create_dir_all(out).map_err(|e| cannot_create(out, e))?;
    let _lock = lock(out)?;
    let checkpoints = CheckpointDir::create(out)?;
    if resume {
        if checkpoints.latest().is_ok_and(|latest| latest.is_none()) {
            eprintln!("nothing to go on with in {}: training begins", out.display());
        }
        unchanged(&out.join("config.toml"), config)?;
    }
    rqvae::write_atomic(&out.join("config.toml"), toml::to_string_pretty(config)?.as_bytes())?;
    let path = out.join("metrics.jsonl");
    if resume {
        for refused in checkpoints.recover()? {
            eprintln!("going on from the checkpoint before a damaged one: {refused}");
        }
        drop_unsaved(&path, Done::of(&checkpoints)?.step)?;
    }
    let mut metrics = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| cannot_create(&path, e))?;
    let model = Model::new(&config.model, &features(catalogue)?, config.train.seed)?.on(device);
    let name = format!("train {}", config.model.name());
    let mut recorder = Recorder::new(&name, &config.train, Some(&mut metrics));
    if resume {
        recorder = recorder.after(Done::of(&checkpoints)?);
    }
    let split = LeaveOneOut::new(&interactions.histories);
    TrainCounts::of(&split, catalogue.keys.len()).write(out)?;
    let outcome = fit(&model, config, catalogue, &split, Some(&checkpoints), resume, &mut recorder, &|| {
        interrupt.signal().is_some()
    })?;
    recorder.done(&format!(
        "{} epochs, {} parameters, best val recall@10 {:.4} at step {}",
        outcome.epochs,
        model.params().count(),
        outcome.best,
        outcome.best_step
    ));
    if outcome.stop == Stop::Interrupted {
        let signal = interrupt.signal().unwrap_or(signal_hook::consts::SIGINT);
        let message = format!("interrupted; checkpoint of step {} written, go on with --resume", outcome.steps);
        return Err(fault(Fault::Interrupted(signal), message));
    }
    Ok(outcome)
}

/// One trainer per directory; the lock goes with the process, whose number it tells.
fn lock(out: &Path) -> Result<File> {
    let path = out.join(".lock");
    let mut file =
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| cannot_create(&path, e))?;
    if !FileExt::try_lock_exclusive(&file).map_err(|e| cannot_create(&path, e))? {
        let holder = fs::read_to_string(&path).unwrap_or_default();
        let holder = if holder.trim().is_empty() { "of unknown number" } else { holder.trim() };
        return Err(cannot_create(out, format!("another trainer, process {holder}, is at work in this directory")));
    }
    let written = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
    written.map_err(|e| cannot_create(&path, e))?;
    Ok(file)
}

/// Refuses to go on with another configuration than the one at `path`, where there is one; limits may be moved.
fn unchanged(path: &Path, config: &RunConfig) -> Result<()> {
    let Ok(text) = fs::read_to_string(path) else { return Ok(()) };
    let wrong = |e: toml::de::Error| bad_data(format!("{}: {e}", path.display()));
    let before: RunConfig = toml::from_str(&text).map_err(wrong)?;
    let values = |config: &RunConfig| -> Result<BTreeMap<String, String>> {
        let mut values = BTreeMap::new();
        flatten("", &toml::Value::try_from(config)?, &mut values);
        Ok(values)
    };
    let (before, now) = (values(&before)?, values(config)?);
    let mut changes = Vec::new();
    for key in before.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
        let told = |values: &BTreeMap<String, String>| values.get(key).map_or("nothing", String::as_str).to_string();
        if before.get(key) != now.get(key) && !["train.time_limit_s", "train.patience"].contains(&key.as_str()) {
            changes.push(format!("{key} was {}, is {}", told(&before), told(&now)));
        }
    }
    if changes.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{}: --resume goes on with the configuration that a run began with, so --model, --preset, --seed and --set are to be \
         given again; {}",
        path.display(),
        changes.join("; ")
    );
    Err(fault(Fault::Usage, message))
}

/// The single values below `value` by their keys, such as `train.seed`.
fn flatten(at: &str, value: &toml::Value, values: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            let dot = if at.is_empty() { "" } else { "." };
            table.iter().for_each(|(key, value)| flatten(&format!("{at}{dot}{key}"), value, values));
        }
        value => drop(values.insert(at.to_string(), value.to_string())),
    }
}

/// How far the newest checkpoint of a run is.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct Done {
    step: u64,
    epoch: u64,
    seconds: f64,
}

impl Done {
    fn of(checkpoints: &CheckpointDir) -> Result<Self> {
        let Some(latest) = checkpoints.latest()? else { return Ok(Self::default()) };
        let file = latest.file("state.json");
        serde_json::from_slice(&latest.read("state.json")?).with_context(|| file.display().to_string())
    }
}

/// Removes records of epochs after `step`, that of the checkpoint a resumed run starts from: they will be written again.
fn drop_unsaved(path: &Path, step: u64) -> Result<()> {
    let Ok(text) = fs::read_to_string(path) else { return Ok(()) };
    let kept: Vec<&str> = text
        .lines()
        .filter(|line| serde_json::from_str::<EpochRecord>(line).is_ok_and(|record| record.step <= step))
        .collect();
    let text = kept.join("\n") + if kept.is_empty() { "" } else { "\n" };
    Ok(rqvae::write_atomic(path, text.as_bytes())?)
}

/// A trained model with what evaluation reports about its run.
pub struct Trained {
    /// The model with its best weights.
    pub model: Model,
    /// Seed it was trained with.
    pub seed: u64,
}

/// Loads the best weights of a run directory, or the newest where there are no best ones yet.
///
/// # Errors
/// Input missing when it is no run; bad data when the run was trained on another SID table, naming both.
pub fn load(run: &Path, catalogue: &Catalogue) -> Result<Trained> {
    if !run.is_dir() {
        return Err(input_missing(run));
    }
    let checkpoints = CheckpointDir::open(run);
    let checkpoint = if let Some(best) = checkpoints.best()? {
        best
    } else {
        tracing::warn!(run = %run.display(), "no best weights yet; the newest are used");
        let none = || input_missing(&run.join("best")).context(format!("{} holds no checkpoint", run.display()));
        checkpoints.latest()?.ok_or_else(none)?
    };
    let text = String::from_utf8(checkpoint.read("model.toml")?)
        .map_err(|_| bad_data(format!("{}: not UTF-8", checkpoint.file("model.toml").display())))?;
    let config: ModelConfig =
        toml::from_str(&text).map_err(|e| bad_data(format!("{}: {e}", checkpoint.file("model.toml").display())))?;
    let state: serde_json::Value = serde_json::from_slice(&checkpoint.read("state.json")?)?;
    let (found, expected) = (catalogue.sids.digest(), field(&state, "sids"));
    let extends = catalogue.lineage.contains(&expected);
    if found != expected && !extends {
        return Err(bad_data(format!(
            "{}: trained on SID table {}, the catalogue has {}; use the catalogue of the run or train again",
            run.display(),
            short(&expected),
            short(&found)
        )));
    }
    let path = run.join("config.toml");
    let seed = fs::read_to_string(&path)
        .ok()
        .and_then(|text| toml::from_str::<RunConfig>(&text).ok())
        .map_or(0, |config| config.train.seed);
    let model = Model::new(&config, &features(catalogue)?, 0)?;
    let weights = checkpoint.file("model.safetensors");
    let mut tensors = load_parameters(&checkpoint.read("model.safetensors")?, &weights)?;
    if extends {
        grow(&mut tensors, &model).with_context(|| run.display().to_string())?;
    }
    model.params().assign(&tensors).with_context(|| weights.display().to_string())?;
    Ok(Trained { model, seed })
}

/// `model` on `catalogue`, a later version of the one that it reads: the same weights, rows for new items.
///
/// # Errors
/// The model cannot read items that it has not been trained on.
pub fn carry_over(model: &Model, catalogue: &Catalogue) -> Result<Model> {
    let carried = Model::new(model.config(), &features(catalogue)?, 0)?.asked_like(model);
    let mut tensors = model.params().all().into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
    grow(&mut tensors, &carried)?;
    carried.params().assign(&tensors)?;
    Ok(carried)
}

/// Fits weights to a catalogue that has grown since: an item that the model has never seen gets a row of zeros where the
/// model keeps one for each beside what it reads of their IDs and content.
fn grow(tensors: &mut HashMap<String, Tensor>, model: &Model) -> Result<()> {
    for (name, var) in model.params().all() {
        let Some(tensor) = tensors.get(&name) else { continue };
        let (old, new) = (tensor.dims(), var.dims());
        if old == new || old.is_empty() || old.len() != new.len() || old[1..] != new[1..] || old[0] > new[0] {
            continue;
        }
        if matches!(model.config(), ModelConfig::Sasrec(_)) {
            let reason =
                "the model knows items by rows of their own alone, and the catalogue has new ones; train again";
            return Err(bad_data(reason));
        }
        let grown = tensor.pad_with_zeros(0, 0, new[0] - old[0])?;
        tensors.insert(name, grown);
    }
    Ok(())
}

fn field(state: &serde_json::Value, name: &str) -> String {
    state["identity"][name].as_str().unwrap_or("unknown").to_string()
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_trainers_do_not_share_a_directory_and_a_dead_one_leaves_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        let error = lock(folder.path()).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 73);
        assert!(format!("{error:#}").contains(&format!("process {}", std::process::id())), "{error:#}");
        drop(first);
        // What a killed process leaves: the file, without the lock.
        fs::write(folder.path().join(".lock"), "4000000").unwrap();
        lock(folder.path()).unwrap();
    }

    #[test]
    fn durations_read_well() {
        assert_eq!([59.4, 61.0, 7260.0].map(duration), ["59 s", "1 min 1 s", "2 h 1 min"]);
    }
}
