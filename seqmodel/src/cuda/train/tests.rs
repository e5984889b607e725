//! A step on the emulator against candle's: loss, every gradient, ten steps of the optimiser, a whole run and its resume.

use super::*;
use crate::data::{Histories, LeaveOneOut, windows};
use crate::hybrid::HybridConfig;
use crate::nn::NO_ROW;
use crate::rqt::RqtConfig;
use crate::tiger::{TigerConfig, samples};
use crate::train::{EpochRecord, Identity, Outcome, Stop, TrainConfig, Trainer, Validation};
use crate::{ItemFeatures, UserHash, WindowObjective};
use beam::cuda::Emulator;
use rqvae::{AdamW, CheckpointDir, ItemIdx, SeededRng, SidSpec, SidTable, Vectors, mix};
use std::cell::Cell;
use std::path::Path;

const ITEMS: u32 = 40;

fn emulator(seed: u64) -> Option<Arc<dyn Device>> {
    match Emulator::new(seed) {
        Ok(emulator) => Some(Arc::new(emulator)),
        Err(e) if e.to_string().contains("no C++ compiler") => {
            eprintln!("SKIPPED training on the emulator: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

fn features() -> ItemFeatures {
    let spec = SidSpec { codebook_sizes: vec![5, 7], suffix_size: Some(2) };
    let codes = (0..ITEMS as u16).flat_map(|item| [item % 5, item % 7, item / 35]).collect();
    let content = (0..ITEMS * 12).map(|i| (mix(u64::from(i)) % 200) as f32 / 100.0 - 1.0).collect();
    let content = Vectors::new(12, content).unwrap();
    ItemFeatures::new(Arc::new(SidTable::new(spec, codes).unwrap()), Some(Arc::new(content))).unwrap()
}

/// Users whose histories differ in length, some longer than a window.
fn split() -> Histories {
    let user = |user: u64| {
        let length = 4 + mix(user) % 9;
        let items = (0..length).map(|t| ItemIdx((mix(user * 31 + t) % u64::from(ITEMS)) as u32)).collect();
        ((!user.is_multiple_of(3)).then_some(UserHash(mix(user + 7))), items)
    };
    Histories::of_users((0..9).map(user))
}

fn tiger(config: &TigerConfig) -> (Tiger, Parameters) {
    let params = Parameters::new(3);
    (Tiger::new(config, features(), &params.builder()).unwrap(), params)
}

fn small_tiger() -> TigerConfig {
    TigerConfig {
        dim: 16,
        heads: 2,
        head_dim: 8,
        hidden: 24,
        encoder_layers: 2,
        decoder_layers: 2,
        history_cap: 6,
        separator: true,
        user_tokens: 4,
        dropout: 0.2,
        label_smoothing: 0.1,
    }
}

fn rqt(config: &RqtConfig) -> (Rqt, Parameters) {
    let params = Parameters::new(3);
    let made = Rqt::new(config, features(), &params.builder()).unwrap();
    // From zero nothing of the items' embeddings would be tried.
    if let Some(items) = params.all().get("items") {
        let values: Vec<f32> = (0..items.elem_count()).map(|i| (mix(i as u64) % 100) as f32 / 1000.0).collect();
        items.set(&Tensor::from_vec(values, items.shape(), &candle_core::Device::Cpu).unwrap()).unwrap();
    }
    (made, params)
}

fn small_rqt() -> RqtConfig {
    RqtConfig {
        dim: 16,
        heads: 2,
        head_dim: 8,
        hidden: 24,
        layers: 2,
        history_cap: 6,
        dropout: 0.2,
        content: true,
        item_embedding: true,
        item_dropout: 0.3,
        dense_weight: 1.0,
        dense_dropout: 0.1,
        ..RqtConfig::default()
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference, by the largest value expected, or by `least` where that is larger.
fn gap(found: &Tensor, expected: &Tensor, least: f32) -> f32 {
    let (found, expected) = (values(found), values(expected));
    let most = expected.iter().fold(least, |most, x| most.max(x.abs()));
    found.iter().zip(&expected).fold(0.0, |gap: f32, (a, b)| gap.max((a - b).abs())) / most
}

/// Loss and gradients of one batch, device and candle.
fn compare(
    device: &Arc<dyn Device>,
    numbers: Numbers,
    model: DeviceLearner,
    params: &Parameters,
    batch: DeviceBatch,
    expected: impl FnOnce(Mode) -> Result<Tensor>,
    tolerance: f32,
) -> BTreeMap<String, Tensor> {
    let rng = SeededRng::new(5);
    let loss = expected(Mode::Train(&StepKeys::new(&rng, 3))).unwrap();
    let want = loss.backward().unwrap();
    let mut trainer = DeviceTrainer::new(device, numbers, model, params, AdamWConfig::default(), 0.0).unwrap();
    let keys = StepKeys::new(&rng, 3);
    let found = trainer.gradients(vec![(1.0, batch)], &keys).unwrap();
    let loss = f64::from(loss.to_scalar::<f32>().unwrap());
    assert!((found - loss).abs() < f64::from(tolerance) * loss, "loss {found}, {loss} expected");
    let grads = trainer.grads().unwrap();
    let (mut squares, mut apart) = (0.0, 0.0);
    for (name, var) in params.all() {
        let Some(want) = want.get(&var) else {
            assert!(values(&grads[&name]).iter().all(|x| *x == 0.0), "{name} has no gradient");
            continue;
        };
        let gap = gap(&grads[&name], want, 1e-4);
        // Eight bits switch single units on and off, which moves a tensor of few far: there the whole counts.
        assert!(numbers == Numbers::Bf16 || gap < tolerance, "{name}: {gap}");
        let pairs = values(&grads[&name]).into_iter().zip(values(want));
        apart += pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        squares += values(want).iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    }
    assert!((apart / squares).sqrt() < f64::from(tolerance), "{numbers}: {}", (apart / squares).sqrt());
    let norm = trainer.update(1e-3, 0).unwrap();
    assert!((norm - squares.sqrt()).abs() < f64::from(tolerance) * norm, "{norm} {}", squares.sqrt());
    grads
}

fn compare_tiger(
    device: &Arc<dyn Device>,
    numbers: Numbers,
    config: &TigerConfig,
    tolerance: f32,
) -> BTreeMap<String, Tensor> {
    let (model, params) = tiger(config);
    let histories = split();
    let samples = samples(&LeaveOneOut::new(&histories), config.history_cap);
    let rows: Vec<&Sample> = samples.iter().step_by(5).collect();
    let batch = DeviceBatch::Tiger(model.prepare(&rows));
    compare(device, numbers, DeviceLearner::Tiger(&model), &params, batch, |mode| model.loss(&rows, mode), tolerance)
}

fn compare_rqt(
    device: &Arc<dyn Device>,
    numbers: Numbers,
    config: &RqtConfig,
    tolerance: f32,
) -> BTreeMap<String, Tensor> {
    let (model, params) = rqt(config);
    let histories = split();
    let windows = windows(&LeaveOneOut::new(&histories), config.history_cap);
    let rows: Vec<&Window> = windows.iter().step_by(2).collect();
    let batch = DeviceBatch::Rqt(model.prepare(&rows).unwrap());
    compare(device, numbers, DeviceLearner::Rqt(&model), &params, batch, |mode| model.loss(&rows, mode), tolerance)
}

/// Sums of a few hundred products in another order.
const F32: f32 = 2e-5;

/// Factors of 8 bits, through some layers and back.
const BF16: f32 = 0.15;

#[test]
fn tiger_learns_as_on_the_processor() {
    let Some(device) = emulator(1) else { return };
    compare_tiger(&device, Numbers::F32, &small_tiger(), F32);
    let plain = TigerConfig { separator: false, user_tokens: 0, dropout: 0.0, label_smoothing: 0.0, ..small_tiger() };
    compare_tiger(&device, Numbers::F32, &plain, F32);
    compare_tiger(&device, Numbers::Bf16, &small_tiger(), BF16);
}

#[test]
fn rqt_learns_as_on_the_processor() {
    let Some(device) = emulator(2) else { return };
    let base = small_rqt();
    for config in [
        base.clone(),
        RqtConfig { look_back: 3, level_weights: vec![1.0, 0.5, 0.0], code_weight: 0.1, ..base.clone() },
        RqtConfig { valid_only: true, content: false, ..base.clone() },
        RqtConfig { label_smoothing: 0.1, dense_negatives: 11, item_embedding: false, ..base.clone() },
        RqtConfig { code_weight: 0.0, ..base.clone() },
        RqtConfig { dense_weight: 0.0, dropout: 0.0, ..base.clone() },
    ] {
        compare_rqt(&device, Numbers::F32, &config, F32);
    }
    compare_rqt(&device, Numbers::Bf16, &base, BF16);
}

/// Sums over many rows, which a product takes in parts; rows wider than a block and read thousands of times.
#[test]
fn large_sums_are_taken_in_parts() {
    let Some(device) = emulator(8) else { return };
    let params = Parameters::new(4);
    let normal = candle_nn::init::Init::Randn { mean: 0.0, stdev: 1.0 };
    let vb = params.builder();
    let draw = |shape: (usize, usize), name: &str| vb.get_with_hints(shape, name, normal).unwrap();
    let (table, weight, norm) = (draw((6, 300), "table"), draw((9, 300), "weight"), draw((1, 300), "norm"));
    let ids: Vec<u32> =
        (0..1500 * 3).map(|i| (mix(i) % 7) as u32).map(|id| if id == 6 { NO_ROW } else { id }).collect();
    let targets: Vec<u32> = (0..1500).map(|i| (mix(i + 9) % 9) as u32).collect();

    let x = crate::nn::embedding_sum(&table, ids.clone(), 3).unwrap();
    let rms = ((x.sqr().unwrap().mean_keepdim(1).unwrap() + 1e-6).unwrap()).sqrt().unwrap();
    let x = x.broadcast_div(&rms).unwrap().broadcast_mul(&norm).unwrap();
    let loss = crate::loss::cross_entropy(&crate::nn::project(&x, &weight).unwrap(), targets.clone(), 0.0).unwrap();
    let want = loss.backward().unwrap();

    for numbers in Numbers::ALL {
        let weights = DeviceParameters::new(&device, &params, false).unwrap();
        let node = |name: &str| weights.node(name).unwrap();
        let record = |rooms: Rooms| {
            let mut tape = Tape::new(numbers, rooms);
            let x = tape.rows(node("table"), &ids, 3);
            let x = tape.norm(x, node("norm")).unwrap();
            let logits = tape.logits(x, node("weight"));
            tape.cross_entropy(logits, &targets, None, 0.0, 1.0);
            tape
        };
        let rooms: Vec<Memory> =
            record(Rooms::default()).rooms.used().iter().map(|bytes| Memory::new(&device, *bytes).unwrap()).collect();
        let mut tape = record(Rooms::of([0, 1, 2, 3, 4].map(|room| rooms[room].address())));
        device.write(rooms[0].address(), &tape.data).unwrap();
        let mut launches = std::mem::take(&mut tape.forward);
        launches.append(&mut tape.take_backward());
        assert!(launches.iter().any(|launch| launch.kernel == "train_matmul" && launch.grid[2] > 1), "no parts");
        assert_eq!(launches.iter().filter(|launch| launch.kernel == "scatter_rows").count(), 2, "no pieces");
        device.run(&Program { numbers, launches }).unwrap();
        let grads = weights.grads().unwrap();
        for (name, var) in params.all() {
            let gap = gap(&grads[&name], want.get(&var).unwrap(), 1e-4);
            assert!(gap < if numbers == Numbers::F32 { 1e-4 } else { 0.05 }, "{numbers} {name}: {gap}");
        }
    }
}

/// The generative part of a hybrid learns, what is counted does not; with weight 0 nothing does.
#[test]
fn a_hybrid_learns_by_its_generative_part() {
    let Some(device) = emulator(9) else { return };
    let histories = split();
    let windows = windows(&LeaveOneOut::new(&histories), 6);
    let rows: Vec<&Window> = windows.iter().step_by(3).collect();
    for weight in [0.5, 0.0] {
        let params = Parameters::new(3);
        let config = HybridConfig { rqt: small_rqt(), generative_weight: weight, ..HybridConfig::default() };
        let model = Hybrid::new(&config, features(), &params.builder()).unwrap();
        let learner = DeviceLearner::Hybrid(&model);
        if weight > 0.0 {
            let batch = DeviceBatch::Rqt(model.prepare(&rows).unwrap());
            let expected = |mode: Mode| model.batch_loss(model.prepare(&rows)?, mode);
            compare(&device, Numbers::F32, learner, &params, batch, expected, F32);
            continue;
        }
        let config = AdamWConfig { weight_decay: 0.5, ..AdamWConfig::default() };
        let mut trainer = DeviceTrainer::new(&device, Numbers::F32, learner, &params, config, 0.9).unwrap();
        let keys = StepKeys::new(&SeededRng::new(0), 0);
        let batch = DeviceBatch::Rqt(model.prepare(&rows).unwrap());
        assert_eq!(trainer.gradients(vec![(1.0, batch)], &keys).unwrap(), 0.0);
        assert_eq!(trainer.update(0.1, 0).unwrap(), 0.0);
        for (name, weights) in trainer.weights().unwrap() {
            assert_eq!(values(&weights), values(params.all()[&name].as_tensor()), "{name}");
        }
    }
}

/// The same bits whatever the order of the threads, which is what tells a race.
#[test]
fn the_order_of_threads_makes_no_difference() {
    let [Some(first), Some(second)] = [3, 4].map(emulator) else { return };
    let bits =
        |grads: BTreeMap<String, Tensor>| -> Vec<u32> { grads.values().flat_map(values).map(f32::to_bits).collect() };
    let tiger = |device| bits(compare_tiger(device, Numbers::F32, &small_tiger(), F32));
    assert_eq!(tiger(&first), tiger(&second));
    let config = RqtConfig { look_back: 2, dense_negatives: 11, ..small_rqt() };
    let rqt = |device| bits(compare_rqt(device, Numbers::Bf16, &config, BF16));
    assert_eq!(rqt(&first), rqt(&second));
}

/// Ten steps with clipping, an average and batches in parts: weights, moments and norms stay together.
#[test]
fn ten_steps_end_where_the_processors_do() {
    let Some(device) = emulator(5) else { return };
    let (model, params) = rqt(&RqtConfig { code_weight: 0.3, ..small_rqt() });
    let histories = split();
    let windows = windows(&LeaveOneOut::new(&histories), 6);
    let config = AdamWConfig { clip_norm: 0.5, weight_decay: 0.05, ..AdamWConfig::default() };
    let mut trainer =
        DeviceTrainer::new(&device, Numbers::F32, DeviceLearner::Rqt(&model), &params, config, 0.7).unwrap();
    let mut optim = AdamW::new(params.all(), config);
    let mut average: BTreeMap<String, Tensor> = params.snapshot().unwrap();
    let rng = SeededRng::new(8);
    for step in 0..10 {
        let rows: Vec<&Window> = windows.iter().skip(step as usize % 3).step_by(3).collect();
        let (lr, keys) = (1e-2, StepKeys::new(&rng, step));
        let (left, right) = rows.split_at(rows.len() / 2);
        let targets = |rows: &[&Window]| rows.iter().map(|row| row.targets()).sum::<usize>() as f64;
        let share = |part: &[&Window]| targets(part) / targets(&rows);
        let part = |rows: &[&Window]| (share(rows), DeviceBatch::Rqt(model.prepare(rows).unwrap()));
        let found = trainer.gradients(vec![part(left), part(right)], &keys).unwrap();
        let keys = StepKeys::new(&rng, step);
        let loss = |rows: &[&Window]| (model.loss(rows, Mode::Train(&keys)).unwrap() * share(rows)).unwrap();
        let loss = (loss(left) + loss(right)).unwrap();
        let expected = f64::from(loss.to_scalar::<f32>().unwrap());
        assert!((found - expected).abs() < 1e-4 * expected, "step {step}: {found} {expected}");
        let (norm, want) = (trainer.update(lr, step).unwrap(), optim.step(&loss.backward().unwrap(), lr).unwrap());
        assert!(norm > 0.5 && (norm - want).abs() < 1e-3 * want, "step {step}: {norm} {want}");
        for (name, var) in params.all() {
            let old = &average[&name];
            let new = (old + ((var.as_tensor() - old).unwrap() * average_step(0.7, step)).unwrap()).unwrap();
            average.insert(name, new.detach());
        }
    }
    let (weights, found) = (trainer.weights().unwrap(), trainer.average().unwrap().unwrap());
    for (name, var) in params.all() {
        // Where a gradient is next to nothing, Adam makes a step of its sign.
        assert!(gap(&weights[&name], var.as_tensor(), 0.05) < 2e-2, "{name}");
        assert!(gap(&found[&name], &average[&name], 0.05) < 2e-2, "average of {name}");
    }
    let (moments, want) = (trainer.moments().unwrap(), optim.state().unwrap());
    assert_eq!(moments.len(), want.len());
    for (name, found) in moments.into_iter().collect::<BTreeMap<_, _>>() {
        assert!(gap(&found, &want[&name], 1e-4) < 2e-2, "{name}");
    }
}

/// What is no number stops a step before anything is changed.
#[test]
fn bad_numbers_change_nothing() {
    let Some(device) = emulator(6) else { return };
    let (model, params) = tiger(&small_tiger());
    let histories = split();
    let samples = samples(&LeaveOneOut::new(&histories), 6);
    let config = AdamWConfig::default();
    let mut trainer =
        DeviceTrainer::new(&device, Numbers::F32, DeviceLearner::Tiger(&model), &params, config, 0.0).unwrap();
    let mut weights: HashMap<String, Tensor> = trainer.weights().unwrap().into_iter().collect();
    let norm = weights["encoder_norm.weight"].clone();
    weights.insert("encoder_norm.weight".into(), (norm * f64::NAN).unwrap());
    trainer.restore(&weights, None, &trainer.moments().unwrap(), 0).unwrap();
    let batch = DeviceBatch::Tiger(model.prepare(&[&samples[0]]));
    let loss = trainer.gradients(vec![(1.0, batch)], &StepKeys::new(&SeededRng::new(0), 0)).unwrap();
    assert!(!loss.is_finite());
    let error = trainer.update(1e-3, 0).unwrap_err();
    assert!(matches!(error, Error::Rqvae(rqvae::Error::NonFinite { .. })), "{error}");
    assert_eq!(values(&trainer.weights().unwrap()["tokens"]), values(params.all()["tokens"].as_tensor()));
}

/// What a run tells: losses and validations.
fn train(
    device: Option<&Arc<dyn Device>>,
    dir: &Path,
    max_epochs: u64,
    stop_at: u64,
    resume: bool,
) -> (Outcome, Vec<EpochRecord>, BTreeMap<String, Tensor>) {
    let (model, params) = rqt(&small_rqt());
    let histories = split();
    let windows = windows(&LeaveOneOut::new(&histories), 6);
    let config = TrainConfig {
        batch_size: 4,
        max_epochs,
        eval_every: 1,
        warmup_steps: 2,
        ema_decay: 0.9,
        learning_rate: 1e-2,
        decay: rqvae::Decay::Constant,
        ..TrainConfig::default()
    };
    let dir = CheckpointDir::create(dir).unwrap();
    let trainer = Trainer::new(&config, &params, Identity::default()).with_checkpoints(&dir, String::new());
    let steps = Cell::new(0);
    let mut records = Vec::new();
    // The figure is of the weights as they are shown: their mean square.
    let mut validate = || {
        let sum: f32 = params.snapshot()?.values().map(|t| values(t).iter().map(|x| x * x).sum::<f32>()).sum();
        Ok(Validation { recall_at_10: f64::from(sum), ndcg_at_10: 0.0 })
    };
    let mut observe = |_, _, _| steps.set(steps.get() + 1);
    let mut record = |r: &EpochRecord| {
        records.push(r.clone());
        Ok(())
    };
    let interrupted = || steps.get() >= stop_at;
    let outcome = if let Some(device) = device {
        let learner = DeviceLearner::Rqt(&model);
        let mut engine =
            DeviceTrainer::new(device, Numbers::F32, learner, &params, config.adamw(), config.ema_decay).unwrap();
        let objective = DeviceWindows { model: &model, windows: &windows };
        trainer.run_on(&mut engine, &objective, resume, &mut validate, &mut observe, &mut record, &interrupted)
    } else {
        let objective = WindowObjective { model: &model, windows: &windows };
        trainer.run(&objective, resume, &mut validate, &mut observe, &mut record, &interrupted)
    };
    (outcome.unwrap(), records, params.snapshot().unwrap())
}

#[test]
fn a_run_on_a_device_is_a_run_and_resumes_to_the_same_bits() {
    let Some(device) = emulator(7) else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (outcome, records, weights) = train(Some(&device), &path("whole"), 3, u64::MAX, false);
    let (want, expected, processors) = train(None, &path("processor"), 3, u64::MAX, false);
    assert_eq!((outcome.stop, outcome.steps, outcome.best_step), (Stop::Epochs, want.steps, want.best_step));
    for (found, want) in records.iter().zip(&expected) {
        assert!((found.loss - want.loss).abs() < 1e-3 * want.loss, "{} {}", found.loss, want.loss);
        let recall = |record: &EpochRecord| record.val.unwrap().recall_at_10;
        assert!((recall(found) - recall(want)).abs() < 1e-3 * recall(want));
    }
    for (name, tensor) in &weights {
        assert!(gap(tensor, &processors[name], 0.05) < 5e-2, "{name}");
    }
    let half = outcome.steps / 2;
    let (cut, ..) = train(Some(&device), &path("cut"), 3, half, false);
    assert_eq!((cut.stop, cut.steps), (Stop::Interrupted, half));
    let (resumed, _, again) = train(Some(&device), &path("cut"), 3, u64::MAX, true);
    assert_eq!((resumed.stop, resumed.steps), (Stop::Epochs, outcome.steps));
    for (name, tensor) in &weights {
        assert_eq!(values(tensor), values(&again[name]), "{name}");
    }
}
