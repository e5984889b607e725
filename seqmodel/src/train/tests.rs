//! What stops a run, on a model of twelve numbers.

use super::{EpochRecord, Identity, Objective, OnNonFinite, Outcome, Prepared, Stop, TrainConfig, Trainer, Validation};
use crate::nn::Parameters;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::init::Init;
use rqvae::CheckpointDir;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where a bad number comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Poison {
    Nothing,
    Weight,
    Loss,
    Gradient,
}

const STEP: u64 = 37;

/// Squared distance of the weights from a number per row.
struct Distance {
    weight: Var,
    poison: Poison,
    step: AtomicU64,
}

impl<'a> Objective<Prepared<'a>> for &'a Distance {
    fn lengths(&self) -> Vec<usize> {
        vec![1; 50]
    }

    fn targets(&self, rows: &[u32]) -> usize {
        rows.len()
    }

    fn prepare(&self, rows: &[u32]) -> Result<Prepared<'a>> {
        let goal = f64::from(rows.iter().sum::<u32>()) / rows.len() as f64;
        let this: &'a Distance = self;
        Ok(Box::new(move |_| this.loss(goal)))
    }
}

impl Distance {
    fn loss(&self, goal: f64) -> Result<Tensor> {
        let step = self.step.fetch_add(1, Relaxed);
        let bad = if step == STEP { self.poison } else { Poison::Nothing };
        if bad == Poison::Weight {
            self.weight.set(&Tensor::full(f32::INFINITY, self.weight.shape(), &Device::Cpu)?)?;
        }
        let loss = (self.weight.as_tensor() - goal)?.sqr()?.mean_all()?;
        Ok(match bad {
            Poison::Loss => (loss * f64::INFINITY)?,
            // Its value is 0 and its slope is not.
            Poison::Gradient => (loss + (self.weight.as_tensor() - self.weight.as_tensor())?.sum_all()?.sqrt()?)?,
            Poison::Nothing | Poison::Weight => loss,
        })
    }
}

fn config() -> TrainConfig {
    TrainConfig { batch_size: 5, max_epochs: 6, eval_every: 1, warmup_steps: 2, ..TrainConfig::default() }
}

/// The weights at the end and how it came; stops before step `stop`.
fn run(poison: Poison, dir: &Path, stop: u64) -> (Vec<f32>, Result<Outcome>) {
    let params = Parameters::new(3);
    params.builder().get_with_hints((3, 4), "weight", Init::Randn { mean: 0.0, stdev: 1.0 }).unwrap();
    let objective = Distance { weight: params.all()["weight"].clone(), poison, step: AtomicU64::new(0) };
    let dir = CheckpointDir::create(dir).unwrap();
    let outcome = Trainer::new(&config(), &params, Identity::default()).with_checkpoints(&dir, String::new()).run(
        &&objective,
        false,
        &mut || Ok(Validation { recall_at_10: 0.0, ndcg_at_10: 0.0 }),
        &mut |_, _, _| {},
        &mut |_| Ok(()),
        &|| objective.step.load(Relaxed) >= stop,
    );
    (params.all()["weight"].flatten_all().unwrap().to_vec1().unwrap(), outcome)
}

#[test]
fn a_bad_number_stops_before_the_update_and_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let (before, outcome) = run(Poison::Nothing, &folder.path().join("whole"), STEP);
    assert_eq!(outcome.unwrap().stop, Stop::Interrupted);
    for (poison, what) in
        [(Poison::Weight, "tensor `weight`"), (Poison::Loss, "loss"), (Poison::Gradient, "gradient of weight")]
    {
        let path = folder.path().join(format!("{poison:?}"));
        let (weights, outcome) = run(poison, &path, u64::MAX);
        let error = outcome.unwrap_err();
        let Error::NonFinite(found) = &error else { panic!("{error}") };
        assert_eq!((found.what.as_str(), found.step, found.rows.len()), (what, STEP, 5));
        assert!(found.lr > 0.0 && found.grad_norm > 0.0);
        assert!(error.to_string().contains("step 37") && error.to_string().contains("diagnostics"), "{error}");
        assert!(poison == Poison::Weight || weights == before, "{poison:?} moved the weights");
        let told = std::fs::read_to_string(path.join("diagnostics/step-000000037.json")).unwrap();
        assert!(told.contains("\"rows\"") && told.contains(what), "{told}");
        // Of the third epoch's end, whole and finite.
        let latest = CheckpointDir::open(&path).latest().unwrap().unwrap();
        let file = latest.file("model.safetensors");
        crate::nn::load_parameters(&latest.read("model.safetensors").unwrap(), &file).unwrap();
        assert!(file.to_string_lossy().contains("step-000000030"), "{}", file.display());
    }
}

#[test]
fn weights_that_are_not_finite_are_never_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = CheckpointDir::create(folder.path()).unwrap();
    let params = Parameters::new(3);
    params.builder().get_with_hints(4, "weight", Init::Const(1.0)).unwrap();
    let weight = params.all()["weight"].clone();
    let objective = Distance { weight: weight.clone(), poison: Poison::Nothing, step: AtomicU64::new(0) };
    let interrupted = |at: u64, value: f32| {
        weight.set(&Tensor::full(value, 4, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()).unwrap();
        objective.step.store(0, Relaxed);
        Trainer::new(&config(), &params, Identity::default()).with_checkpoints(&dir, String::new()).run(
            &&objective,
            false,
            &mut || Ok(Validation { recall_at_10: 0.0, ndcg_at_10: 0.0 }),
            &mut |_, _, _| {},
            &mut |_| Ok(()),
            &|| objective.step.load(Relaxed) >= at,
        )
    };
    interrupted(3, 1.0).unwrap();
    let error = interrupted(0, f32::NAN).unwrap_err();
    assert!(matches!(&error, Error::NonFinite(found) if found.what == "tensor `weight`"), "{error}");
    let latest = dir.latest().unwrap().unwrap();
    assert!(latest.file("w").to_string_lossy().contains("step-000000003"));
}

/// Losses that are no numbers at some calls; otherwise the objective above.
struct Gaps<'a> {
    inner: Distance,
    bad: &'a [u64],
}

impl<'a> Objective<Prepared<'a>> for &'a Gaps<'_> {
    fn lengths(&self) -> Vec<usize> {
        (&self.inner).lengths()
    }

    fn targets(&self, rows: &[u32]) -> usize {
        rows.len()
    }

    fn prepare(&self, rows: &[u32]) -> Result<Prepared<'a>> {
        let this: &'a Gaps = self;
        let inner = (&this.inner).prepare(rows)?;
        Ok(Box::new(move |mode| {
            let bad = this.bad.contains(&this.inner.step.load(Relaxed));
            let loss = inner(mode)?;
            Ok(if bad { (loss * f64::NAN)? } else { loss })
        }))
    }
}

#[test]
fn bad_steps_are_left_out_three_in_a_row_at_most_and_counted() {
    let run = |bad: &[u64], on_nonfinite| {
        let params = Parameters::new(3);
        params.builder().get_with_hints((3, 4), "weight", Init::Randn { mean: 0.0, stdev: 1.0 }).unwrap();
        let inner =
            Distance { weight: params.all()["weight"].clone(), poison: Poison::Nothing, step: AtomicU64::new(0) };
        let mut records: Vec<EpochRecord> = Vec::new();
        let outcome = Trainer::new(&TrainConfig { on_nonfinite, ..config() }, &params, Identity::default()).run(
            &&Gaps { inner, bad },
            false,
            &mut || Ok(Validation { recall_at_10: 0.0, ndcg_at_10: 0.0 }),
            &mut |_, _, _| {},
            &mut |record| {
                records.push(record.clone());
                Ok(())
            },
            &|| false,
        );
        (outcome, records)
    };
    let bad = [3, 4, 5, 7, 18, 19, 20];
    let (outcome, records) = run(&bad, OnNonFinite::Skip);
    assert_eq!(outcome.unwrap().steps, 60 - bad.len() as u64);
    assert_eq!(records.iter().map(|record| record.skipped).collect::<Vec<_>>(), [4, 2, 1, 0, 0, 0]);
    assert!(records.iter().all(|record| record.loss.is_finite()));
    let told = [0, 5].map(|at| serde_json::to_string(&records[at]).unwrap().contains("skipped"));
    assert_eq!(told, [true, false]);
    // Ten steps an epoch: four in a row here, across its end.
    let (outcome, _) = run(&[8, 9, 10, 11], OnNonFinite::Skip);
    let Err(Error::NonFinite(found)) = outcome else { panic!("four in a row are too many") };
    assert_eq!((found.what.as_str(), found.step), ("loss", 8));
    assert!(run(&bad, OnNonFinite::Stop).0.is_err());
}

/// Trains in `dir` as `config` says, validation finding `figures` one after another, the last one again and again; how it
/// ended, the weights, and of every record epoch, step, bits of the loss, whether it was cut and whether it was validated.
fn told(
    dir: &Path,
    config: &TrainConfig,
    pause: u64,
    resume: bool,
    figures: &[f64],
) -> (Outcome, Vec<f32>, Vec<(u64, u64, u64, bool, bool)>) {
    let dir = CheckpointDir::create(dir).unwrap();
    let params = Parameters::new(3);
    params.builder().get_with_hints((3, 4), "weight", Init::Randn { mean: 0.0, stdev: 1.0 }).unwrap();
    let inner = Distance { weight: params.all()["weight"].clone(), poison: Poison::Nothing, step: AtomicU64::new(0) };
    let (mut records, asked): (Vec<EpochRecord>, _) = (Vec::new(), AtomicU64::new(0));
    let trainer = Trainer::new(config, &params, Identity::default()).with_checkpoints(&dir, String::new());
    let mut validate = || {
        let at = (asked.fetch_add(1, Relaxed) as usize).min(figures.len() - 1);
        Ok(Validation { recall_at_10: figures[at], ndcg_at_10: 0.0 })
    };
    let mut record = |record: &EpochRecord| {
        records.push(record.clone());
        Ok(())
    };
    let objective = Slow { inner, pause };
    let outcome = trainer.run(&&objective, resume, &mut validate, &mut |_, _, _| {}, &mut record, &|| false).unwrap();
    let weights = params.all()["weight"].flatten_all().unwrap().to_vec1().unwrap();
    let told = records.iter().map(|r| (r.epoch, r.step, r.loss.to_bits(), r.cut, r.val.is_some())).collect();
    (outcome, weights, told)
}

const NEVER: u64 = u64::MAX;

#[test]
fn the_time_limit_cuts_an_epoch_and_a_run_with_more_time_goes_on_in_it_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let (cut, limited) = (folder.path().join("cut"), TrainConfig { time_limit_s: 3, ..config() });
    let rising = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let (outcome, whole, all) = told(&folder.path().join("whole"), &config(), NEVER, false, &rising);
    assert_eq!((outcome.stop, outcome.steps), (Stop::Epochs, 60));
    let (outcome, _, first) = told(&cut, &limited, 23, false, &rising);
    assert_eq!((outcome.stop, outcome.steps, outcome.best_step), (Stop::Time, 24, 24));
    assert_eq!((&first[..2], first.len()), (&all[..2], 3));
    assert_eq!((first[2].0, first[2].1, first[2].3, first[2].4), (3, 24, true, true), "validated where it stopped");
    // Without more time there is nothing to go on with.
    let (outcome, _, none) = told(&cut, &limited, NEVER, true, &rising);
    assert_eq!((outcome.stop, outcome.steps, none.len()), (Stop::Time, 24, 0));
    let (outcome, weights, rest) = told(&cut, &config(), NEVER, true, &[4.0, 5.0, 6.0, 7.0]);
    assert_eq!((outcome.stop, outcome.steps, outcome.best_step), (Stop::Epochs, 60, 60));
    assert_eq!((weights, &rest[..]), (whole, &all[2..]));
}

#[test]
fn patience_ends_a_run_until_there_is_more_of_it_and_cuts_do_not_try_it() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, patient) = (folder.path().join("plain"), |patience| TrainConfig { patience, ..config() });
    let flat = [1.0, 1.0];
    let (outcome, _, records) = told(&plain, &patient(2), NEVER, false, &flat);
    assert_eq!((outcome.stop, outcome.steps, outcome.best_step, records.len()), (Stop::Patience, 30, 10, 3));
    let (outcome, _, none) = told(&plain, &patient(2), NEVER, true, &flat);
    assert_eq!((outcome.stop, outcome.steps, none.len()), (Stop::Patience, 30, 0));
    let (outcome, _, more) = told(&plain, &patient(3), NEVER, true, &flat);
    assert_eq!((outcome.stop, outcome.steps, more.len()), (Stop::Patience, 40, 1));
    // Cut in the second epoch, with a figure no better: one regular validation is left all the same.
    let cut = folder.path().join("cut");
    let (outcome, _, _) = told(&cut, &TrainConfig { time_limit_s: 3, ..patient(1) }, 13, false, &flat);
    assert_eq!((outcome.stop, outcome.steps, outcome.best_step), (Stop::Time, 14, 10));
    let (outcome, _, _) = told(&cut, &patient(1), NEVER, true, &flat);
    assert_eq!((outcome.stop, outcome.steps, outcome.best_step), (Stop::Patience, 20, 10));
}

/// One call that takes longer than three seconds; otherwise the objective above.
struct Slow {
    inner: Distance,
    pause: u64,
}

impl<'a> Objective<Prepared<'a>> for &'a Slow {
    fn lengths(&self) -> Vec<usize> {
        (&self.inner).lengths()
    }

    fn targets(&self, rows: &[u32]) -> usize {
        rows.len()
    }

    fn prepare(&self, rows: &[u32]) -> Result<Prepared<'a>> {
        let this: &'a Slow = self;
        let inner = (&this.inner).prepare(rows)?;
        Ok(Box::new(move |mode| {
            if this.inner.step.load(Relaxed) == this.pause {
                std::thread::sleep(std::time::Duration::from_millis(3100));
            }
            inner(mode)
        }))
    }
}
