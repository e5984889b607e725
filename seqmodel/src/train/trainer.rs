//! The loop: next batch, made while the last step ran, loss, backward, clip, step; validate, save, stop early; resume to the same bits.
//!
//! Shuffles are keyed by (seed, epoch) and dropout by (seed, step), so the state of a run is its weights, its moments
//! and a handful of counters.

use super::engine::{Engine, HostEngine};
use super::record::RunState;
use super::{Diagnosis, EpochRecord, Identity, OnNonFinite, Outcome, Select, Stop, TrainConfig, Validation};
use crate::data::{Batches, ahead};
use crate::nn::{Parameters, load_parameters, save_parameters};
use crate::{Error, Result};
use candle_core::Tensor;
use rqvae::{Checkpoint, CheckpointDir, Mode, SeededRng, StepKeys};
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// Weights to use, in a checkpoint.
const WEIGHTS: &str = "model.safetensors";
/// Weights to train on, where an average is used.
const TRAINED: &str = "trained.safetensors";

/// Steps in a row that may be left out, where such are.
const MOST_SKIPPED: u64 = 3;

/// What is left to do with a batch that was made: its loss, of the parameters as they are then.
pub type Prepared<'a> = Box<dyn FnOnce(Mode<'_>) -> Result<Tensor> + Send + 'a>;

/// One way to turn rows of training data into batches of kind `B`, which an [`Engine`] learns from; the trainer knows
/// nothing else about a model.
pub trait Objective<B>: Sync {
    /// Length of every training sample; batches bring similar lengths together.
    fn lengths(&self) -> Vec<usize>;

    /// Number of targets that the mean loss of `rows` is taken over.
    fn targets(&self, rows: &[u32]) -> usize;

    /// Makes a batch of the samples `rows`. Happens some steps ahead on a thread of its own, so it must not read what a
    /// step changes.
    fn prepare(&self, rows: &[u32]) -> Result<B>;
}

/// A batch, ready for its step.
struct Batch<B> {
    rows: Vec<u32>,
    /// In one part, or in several that take less memory, each with its share of the targets.
    parts: Vec<(f64, B)>,
}

impl<B> Batch<B> {
    fn new(objective: &dyn Objective<B>, rows: &[u32], micro_batch: usize) -> Result<Self> {
        let size = if micro_batch == 0 { rows.len() } else { micro_batch };
        let all = objective.targets(rows) as f64;
        let part = |part: &[u32]| Ok((objective.targets(part) as f64 / all, objective.prepare(part)?));
        Ok(Self { rows: rows.to_vec(), parts: rows.chunks(size.max(1)).map(part).collect::<Result<_>>()? })
    }
}

/// A training run.
pub struct Trainer<'a> {
    config: &'a TrainConfig,
    params: &'a Parameters,
    identity: Identity,
    /// `model.toml`'s content and where checkpoints go.
    output: Option<(&'a CheckpointDir, String)>,
}

impl<'a> Trainer<'a> {
    /// Trains `params` in memory.
    pub fn new(config: &'a TrainConfig, params: &'a Parameters, identity: Identity) -> Self {
        Self { config, params, identity, output: None }
    }

    /// Also writes checkpoints, with `model_toml` enough to rebuild the model.
    #[must_use]
    pub fn with_checkpoints(mut self, dir: &'a CheckpointDir, model_toml: String) -> Self {
        self.output = Some((dir, model_toml));
        self
    }

    /// Runs to the end on the processor: see [`Trainer::run_on`].
    pub fn run<'p>(
        &self,
        objective: &dyn Objective<Prepared<'p>>,
        resume: bool,
        validate: &mut dyn FnMut() -> Result<Validation>,
        observe: &mut dyn FnMut(u64, u64, f64),
        record: &mut dyn FnMut(&EpochRecord) -> Result<()>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Outcome> {
        let mut engine = HostEngine::new(self.config, self.params)?;
        self.run_on(&mut engine, objective, resume, validate, observe, record, interrupted)
    }

    /// Runs to the end, from the latest checkpoint when `resume` is set and there is one. `engine` takes the steps.
    ///
    /// `validate` looks at the current parameters; `observe` gets (steps of this epoch, steps per epoch, loss) after a
    /// step; `record` one record an epoch, and one of an epoch that the time limit cut; `interrupted` is asked before each
    /// step.
    ///
    /// # Errors
    /// [`Error::NonFinite`] before anything is updated, under [`OnNonFinite::Skip`] at the fourth such step in a row;
    /// [`Error::Mismatch`] when the checkpoint is of another run.
    #[expect(clippy::too_many_arguments, reason = "one call per run; each argument is a thing of its own")]
    pub fn run_on<B: Send>(
        &self,
        engine: &mut dyn Engine<B>,
        objective: &dyn Objective<B>,
        resume: bool,
        validate: &mut dyn FnMut() -> Result<Validation>,
        observe: &mut dyn FnMut(u64, u64, f64),
        record: &mut dyn FnMut(&EpochRecord) -> Result<()>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Outcome> {
        self.config.validate()?;
        let lengths = objective.lengths();
        if lengths.is_empty() {
            return Err(Error::NoData { what: "training samples" });
        }
        let rng = SeededRng::new(self.config.seed);
        let mut state = RunState { identity: self.identity.clone(), ..RunState::default() };
        if resume && let Some(saved) = self.restore(engine)? {
            state = saved;
        }
        let mut best_weights = None;
        let (began, before) = (Instant::now(), state.seconds);
        let batches = self.batches(objective, &lengths, &rng, (state.epoch, state.batch));
        let per_epoch = lengths.len().div_ceil(self.config.batch_size);
        let schedule = self.config.schedule(per_epoch as u64);
        let stop = ahead(batches, |mut batches| {
            loop {
                if let Some(stop) = self.ended(&state) {
                    break Ok(stop);
                }
                let (epoch_began, first_batch) = (Instant::now(), state.batch);
                let (mut lr, mut grad_norm, mut examples) = (0.0, 0.0, 0);
                while state.batch < per_epoch {
                    if interrupted() {
                        state.seconds = before + began.elapsed().as_secs_f64();
                        self.save(&state, engine, false)?;
                        return Ok(Stop::Interrupted);
                    }
                    lr = schedule.at(state.step);
                    let Batch { rows, parts } = batches.next().ok_or(Error::NoData { what: "batches" })??;
                    let value = engine.gradients(parts, &StepKeys::new(&rng, state.step))?;
                    let stepped = if value.is_finite() {
                        engine.update(lr, state.step)
                    } else {
                        let what = first_bad(&engine.weights()?, "loss")?;
                        Err(rqvae::Error::NonFinite { what, step: state.step }.into())
                    };
                    grad_norm = match stepped {
                        // Weights that are no numbers would spoil each step to come as well.
                        Err(Error::Rqvae(rqvae::Error::NonFinite { what, .. }))
                            if self.config.on_nonfinite == OnNonFinite::Skip
                                && state.skipped_last < MOST_SKIPPED
                                && !what.starts_with("tensor") =>
                        {
                            tracing::warn!(what, step = state.step, loss = value, "step left out");
                            (state.skipped, state.skipped_last) = (state.skipped + 1, state.skipped_last + 1);
                            state.batch += 1;
                            continue;
                        }
                        Err(Error::Rqvae(rqvae::Error::NonFinite { what, .. })) => {
                            let (step, written) = (state.step, None);
                            let found = Diagnosis { what, step, loss: value, lr, grad_norm, rows, written };
                            return Err(self.diagnosed(found)?);
                        }
                        other => other?,
                    };
                    state.loss_sum += value;
                    state.skipped_last = 0;
                    state.step += 1;
                    state.batch += 1;
                    examples += rows.len();
                    observe(state.batch as u64, per_epoch as u64, value);
                    if self.out_of_time(before + began.elapsed().as_secs_f64()) {
                        break;
                    }
                }
                let seconds = epoch_began.elapsed().as_secs_f64();
                let (epoch, skipped) = (state.epoch + 1, state.skipped);
                let loss = state.loss_sum / (state.batch as u64 - skipped).max(1) as f64;
                tracing::debug!(epoch, loss, from = first_batch, to = state.batch, of = per_epoch, "epoch done");
                // What the time limit cut stays as it is: a resumed run with more time goes on in it.
                let cut = state.batch < per_epoch;
                if !cut {
                    (state.epoch, state.batch, state.loss_sum, state.skipped) = (epoch, 0, 0.0, 0);
                }
                state.seconds = before + began.elapsed().as_secs_f64();
                let (mut val, mut better) = (None, false);
                let regular = !cut && state.epoch.is_multiple_of(self.config.eval_every);
                if regular || self.ended(&state).is_some() || self.out_of_time(state.seconds) {
                    engine.show()?;
                    let found = validate()?;
                    let figure = match self.config.select {
                        Select::Recall => found.recall_at_10,
                        Select::Ndcg => found.ndcg_at_10,
                    };
                    val = Some(found);
                    better = state.best.is_none_or(|best| figure > best);
                    if better {
                        (state.best, state.best_step, state.stale) = (Some(figure), state.step, 0);
                        if self.output.is_none() {
                            best_weights = Some(self.params.snapshot()?);
                        }
                    } else if regular {
                        // How often time was up does not try patience.
                        state.stale += 1;
                    }
                    engine.hide()?;
                    state.seconds = before + began.elapsed().as_secs_f64();
                }
                // Before the checkpoint: a kill between the two leaves a line too many, which a resumed run drops, and
                // never one too few.
                record(&EpochRecord {
                    step: state.step,
                    epoch,
                    loss,
                    lr,
                    grad_norm,
                    examples_per_second: examples as f64 / seconds.max(1e-9),
                    seconds: state.seconds,
                    skipped,
                    cut,
                    val,
                })?;
                if val.is_some() {
                    self.save(&state, engine, better)?;
                }
            }
        })?;
        match (&self.output, best_weights) {
            // Goes on from where it is, some time.
            _ if stop == Stop::Interrupted => {}
            (Some((dir, _)), _) => {
                if let Some(best) = dir.best()? {
                    load_weights(self.params, &best, WEIGHTS)?;
                }
            }
            (None, Some(weights)) => self.params.assign(&weights.into_iter().collect::<HashMap<_, _>>())?,
            (None, None) => {}
        }
        Ok(state.outcome(stop))
    }

    /// Why a run in this state goes no further, unless a limit is moved. One that was never validated has nothing to
    /// show for its time yet: it takes another step.
    fn ended(&self, state: &RunState) -> Option<Stop> {
        if state.epoch >= self.config.max_epochs {
            Some(Stop::Epochs)
        } else if state.stale >= self.config.patience {
            Some(Stop::Patience)
        } else {
            (state.best.is_some() && self.out_of_time(state.seconds)).then_some(Stop::Time)
        }
    }

    fn out_of_time(&self, seconds: f64) -> bool {
        self.config.time_limit_s > 0 && seconds >= self.config.time_limit_s as f64
    }

    /// The batches of all epochs from batch `from.1` of epoch `from.0` on.
    fn batches<'o, B>(
        &self,
        objective: &'o dyn Objective<B>,
        lengths: &'o [usize],
        rng: &'o SeededRng,
        from: (u64, usize),
    ) -> impl Iterator<Item = Result<Batch<B>>> + Send + use<'o, B> {
        let TrainConfig { batch_size, micro_batch, max_epochs, .. } = *self.config;
        let mut first = from.1;
        (from.0..max_epochs).flat_map(move |epoch| {
            let batches = Batches::new(lengths, batch_size, rng, epoch);
            let rest = std::mem::take(&mut first)..batches.len();
            rest.map(move |index| Batch::new(objective, batches.rows(index), micro_batch))
        })
    }

    /// The error of `found`, which also goes into the run directory.
    fn diagnosed(&self, mut found: Diagnosis) -> Result<Error> {
        if let Some((dir, _)) = &self.output {
            let folder = dir.root().join("diagnostics");
            std::fs::create_dir_all(&folder).map_err(|source| Error::Io { path: folder.clone(), source })?;
            let path = folder.join(format!("step-{:09}.json", found.step));
            let json = serde_json::to_vec_pretty(&found)
                .map_err(|e| Error::Corrupt { path: path.clone(), reason: e.to_string() })?;
            rqvae::write_atomic(&path, &json)?;
            found.written = Some(path);
        }
        Ok(Error::NonFinite(Box::new(found)))
    }

    fn save<B>(&self, state: &RunState, engine: &dyn Engine<B>, best: bool) -> Result<()> {
        let Some((dir, model_toml)) = &self.output else { return Ok(()) };
        let trained = engine.weights()?;
        let bad = first_bad(&trained, "")?;
        if !bad.is_empty() {
            let (step, loss, rows) = (state.step, state.loss_sum, Vec::new());
            let found = Diagnosis { what: bad, step, loss, lr: 0.0, grad_norm: 0.0, rows, written: None };
            return Err(self.diagnosed(found)?);
        }
        let state_json = serde_json::to_vec_pretty(state)
            .map_err(|e| Error::Corrupt { path: "state.json".into(), reason: e.to_string() })?;
        let trained = save_parameters(trained)?;
        // `model.safetensors` is what one uses; where that is an average, training goes on from another file.
        let (weights, trained) = match engine.average()? {
            Some(average) => (save_parameters(average)?, Some((TRAINED, trained))),
            None => (trained, None),
        };
        let mut files = vec![
            (WEIGHTS, weights),
            ("optimizer.safetensors", save_parameters(engine.moments()?)?),
            ("model.toml", model_toml.clone().into_bytes()),
            ("state.json", state_json),
        ];
        files.extend(trained);
        Ok(dir.save(state.step, &files, best)?)
    }

    fn restore<B>(&self, engine: &mut dyn Engine<B>) -> Result<Option<RunState>> {
        let Some((dir, _)) = &self.output else { return Ok(None) };
        let Some(latest) = dir.latest()? else { return Ok(None) };
        let path = latest.file("state.json");
        let state: RunState = serde_json::from_slice(&latest.read("state.json")?)
            .map_err(|e| Error::Corrupt { path, reason: e.to_string() })?;
        for (what, expected, found) in [
            ("model", &self.identity.model, &state.identity.model),
            ("SID table", &self.identity.sids, &state.identity.sids),
            ("training data", &self.identity.data, &state.identity.data),
            ("configuration", &self.identity.config, &state.identity.config),
        ] {
            if expected != found {
                return Err(Error::Mismatch {
                    what: format!("cannot resume: {what} changed since the checkpoint"),
                    expected: expected.clone(),
                    found: found.clone(),
                });
            }
        }
        let read = |file: &str| load_parameters(&latest.read(file)?, &latest.file(file));
        let (trained, average) =
            if self.config.ema_decay > 0.0 { (read(TRAINED)?, Some(read(WEIGHTS)?)) } else { (read(WEIGHTS)?, None) };
        engine.restore(&trained, average.as_ref(), &read("optimizer.safetensors")?, state.step)?;
        Ok(Some(state))
    }
}

/// Name of the first of `weights` that is not finite, `otherwise` if all are.
fn first_bad(weights: &BTreeMap<String, Tensor>, otherwise: &str) -> Result<String> {
    for (name, tensor) in weights {
        if !tensor.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
            return Ok(format!("tensor `{name}`"));
        }
    }
    Ok(otherwise.to_string())
}

/// Sets `params` from a file of a checkpoint.
fn load_weights(params: &Parameters, checkpoint: &Checkpoint, file: &str) -> Result<()> {
    params.assign(&load_parameters(&checkpoint.read(file)?, &checkpoint.file(file))?)
}
