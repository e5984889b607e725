//! `sidrec gpu-selftest`: kernels compiled, twins compared, the workloads timed, within a budget of time.

mod quantizers;

use super::{compiler, gpu};
use crate::error::{Fault, fault};
use anyhow::{Result, anyhow};
use beam::cuda::{
    Device, DeviceIndex, EmbedArgs, Gpu, Launch, Memory, Numbers, Program, TRAIN_UNITS, UNITS, Unit, twin,
};
use beam::{BeamConfig, Hypothesis, LiveMask, ScoreMode, Trie};
use candle_core::Tensor;
use rqvae::{AdamWConfig, Code, ItemIdx, Mode, SeededRng, SidSpec, SidTable, StepKeys, mix};
use seqmodel::cuda::{DeviceBatch, DeviceGenerator, DeviceLearner, DeviceTrainer};
use seqmodel::data::Window;
use seqmodel::nn::Parameters;
use seqmodel::rqt::{PackedRqt, Rqt, RqtConfig};
use seqmodel::tiger::{PackedTiger, Sample, Tiger, TigerConfig};
use seqmodel::train::Engine;
use seqmodel::{Generator, Guidance, History, ItemFeatures, Search};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Devices that kernels must compile for.
const ARCHS: [&str; 3] = ["sm_80", "sm_90", "sm_90a"];

/// What lists may differ by: sums in another order, and numbers of 8 bits.
const F32_EPSILON: f32 = 1e-3;
const BF16_EPSILON: f32 = 0.1;

/// Runs of a bench, warm-up in front.
const RUNS: (usize, usize) = (5, 200);

/// The result, keys as in the contract.
#[derive(Debug, Default, Serialize)]
pub struct SelfTest {
    /// Name of the GPU, or `none`.
    pub device: String,
    /// What kernels were compiled for.
    pub arch: String,
    /// Kernels, each counted for every kind of numbers and device.
    pub kernels_compiled: usize,
    /// Those that spill or take more registers than they may.
    pub spills: Vec<String>,
    /// Comparisons of twins.
    pub cases: usize,
    /// Those that failed, in a line each.
    pub failures: Vec<String>,
    /// Lines of benches.
    pub benches: Vec<Value>,
    /// What there was no time for.
    pub left_out: Vec<String>,
}

/// Compiles every kernel for every kind of device, with none in the machine.
///
/// # Errors
/// There is no NVRTC, or it refuses a kernel.
pub fn compile_only() -> Result<SelfTest> {
    let compiler = compiler().map_err(|e| fault(Fault::Usage, format!("{e}; SIDREC_NVRTC may name its folder")))?;
    let mut test = SelfTest { device: "none".into(), arch: ARCHS.join(","), ..SelfTest::default() };
    for (arch, unit) in ARCHS.iter().flat_map(|arch| all_units().map(move |unit| (arch, unit))) {
        for numbers in Numbers::ALL {
            let compiled = compiler.compile(unit, numbers, arch)?;
            for (kernel, usage) in unit.kernels.iter().zip(&compiled.usage) {
                test.kernels_compiled += 1;
                test.spills.extend(usage.complaint(kernel).map(|complaint| format!("{arch} {numbers} {complaint}")));
            }
        }
    }
    Ok(test)
}

/// Everything, on the GPU, in at most `budget`.
///
/// # Errors
/// There is no GPU, or it fails altogether.
pub fn self_test(budget: Duration) -> Result<SelfTest> {
    let began = Instant::now();
    let gpu = gpu().map_err(|e| fault(Fault::Usage, format!("{e}; --compile-only does without a GPU")))?;
    let device: Arc<dyn Device> = Arc::new(gpu.clone());
    let mut test = SelfTest { device: gpu.name(), arch: gpu.arch().into(), ..SelfTest::default() };
    let compiler = compiler()?;
    for (unit, numbers) in all_units().flat_map(|unit| Numbers::ALL.map(|numbers| (unit, numbers))) {
        let compiled = compiler.compile(unit, numbers, gpu.arch())?;
        test.kernels_compiled += unit.kernels.len();
        let complaints = unit.kernels.iter().zip(&compiled.usage).filter_map(|(kernel, usage)| usage.complaint(kernel));
        test.spills.extend(complaints.map(|complaint| format!("{numbers} {complaint}")));
    }
    test.selection_twins(&device);
    test.model_twins(&device);
    test.guided_twins(&device);
    test.training_twins(&device);
    test.quantizer_twins(&device);
    type Bench = fn(&mut SelfTest, &Gpu) -> Result<()>;
    let benches: [(&str, Bench); 8] = [
        ("graph node", SelfTest::nodes),
        ("copies", SelfTest::copies),
        ("selection, 1M x 8 x 2048", |test, gpu| test.selection(gpu, 1_000_000)),
        ("TIGER", SelfTest::tiger),
        ("training of TIGER", SelfTest::training),
        ("training of the RQ-VAE", SelfTest::towers),
        ("nearest codewords", SelfTest::nearest),
        ("selection, 20M x 8 x 2048", |test, gpu| test.selection(gpu, 20_000_000)),
    ];
    for (name, bench) in benches {
        if began.elapsed() > budget {
            test.left_out.push(name.into());
        } else if let Err(error) = bench(&mut test, &gpu) {
            test.failures.push(format!("bench {name}: {error:#}"));
        }
    }
    Ok(test)
}

/// Kernels of search and of training.
fn all_units() -> impl Iterator<Item = &'static Unit> {
    UNITS.iter().chain(TRAIN_UNITS)
}

/// Number `at` of a fixed sequence.
fn draw(seed: u64, at: u64) -> u64 {
    mix(seed ^ mix(at))
}

/// `items` IDs of `levels` codes below `size`.
fn trie(items: usize, levels: usize, size: u32, seed: u64) -> Result<Trie> {
    let spec = SidSpec { codebook_sizes: vec![size; levels], suffix_size: None };
    let codes = (0..items * levels).map(|at| (draw(seed, at as u64) % u64::from(size)) as Code).collect();
    Ok(Trie::build(&SidTable::new(spec, codes)?)?)
}

/// Logits of a prefix: made up, with ties.
fn logits(seed: u64, prefix: &[Code], out: &mut [f32]) {
    let base = prefix.iter().fold(seed, |hash, code| mix(hash ^ (u64::from(*code) + 1)));
    for (at, x) in out.iter_mut().enumerate() {
        *x = (draw(base, at as u64) % 4001) as f32 / 500.0 - 4.0;
    }
}

impl SelfTest {
    fn note(&mut self, name: &str, outcome: Result<Option<String>>) {
        self.cases += 1;
        match outcome {
            Ok(None) => {}
            Ok(Some(difference)) => self.failures.push(format!("{name}: {difference}")),
            Err(error) => self.failures.push(format!("{name}: {error:#}")),
        }
    }

    /// Scores, masks and selection against the reference, bit for bit, outputs poisoned.
    fn selection_twins(&mut self, device: &Arc<dyn Device>) {
        for (items, levels, size, width) in [
            (300, 2, 16, 40),
            (12_101, 4, 256, 50),
            (12_101, 4, 256, 512),
            (50_000, 3, 2048, 70),
            (200_000, 8, 2048, 70),
            (40_000, 2, 300, 1024),
        ] {
            for (kind, score) in [(0, ScoreMode::FullVocab), (1, ScoreMode::ValidOnly), (2, ScoreMode::FullVocab)] {
                let run = || -> Result<Option<String>> {
                    let trie = trie(items, levels, size, 7)?;
                    let index = Arc::new(DeviceIndex::new(device, &trie)?);
                    let some = |count: u64| -> Vec<ItemIdx> {
                        (0..count).map(|at| ItemIdx((draw(3, at) % items as u64) as u32)).collect()
                    };
                    let mask = |request: u64| match (kind, request) {
                        (0, _) => LiveMask::all(&trie),
                        (1, _) => trie.live(|item| item.0 % 3 > 0).without(&trie, &some(20 + request)),
                        _ => LiveMask::all(&trie).only(&trie, &some(500)),
                    };
                    let live: Vec<_> = (0..3).map(mask).collect();
                    let config = BeamConfig { score, ..BeamConfig::uniform(width, levels, width) };
                    let fill = |request: usize, prefix: &[Code], out: &mut [f32]| logits(request as u64, prefix, out);
                    let [found, expected] = twin::both(device, &index, &config, &live, fill)?;
                    Ok((found != expected).then(|| "lists differ from the reference's".into()))
                };
                self.note(&format!("selection {items} x {levels} x {size}, {width} beams, mask {kind}"), run());
            }
        }
    }

    /// Whole requests against the packed model on the processor.
    fn model_twins(&mut self, device: &Arc<dyn Device>) {
        for (numbers, epsilon) in [(Numbers::F32, F32_EPSILON), (Numbers::Bf16, BF16_EPSILON)] {
            for (requests, width) in [(1, 10), (3, 50), (40, 50)] {
                let run = || -> Result<Option<String>> {
                    let (model, trie) = paper(12_101)?;
                    let generator = DeviceGenerator::tiger(PackedTiger::new(&model)?, device, numbers)?;
                    let histories = histories(requests, 20);
                    let histories: Vec<History> = histories.iter().map(History::from).collect();
                    let live = vec![LiveMask::all(&trie); requests];
                    let config = BeamConfig::uniform(width, 4, width);
                    let search = Search { trie: &trie, config: &config, live: &live, guidance: None };
                    let expected = PackedTiger::new(&model)?.decode(&histories, &search, None)?;
                    // Twice: what the first run left must not matter.
                    generator.decode_on_device(&histories[..1], &trie, &config, &live[..1], None)?;
                    let found = generator.decode_on_device(&histories, &trie, &config, &live, None)?;
                    Ok(worst(&found, &expected, epsilon))
                };
                self.note(&format!("TIGER in {numbers}, {requests} requests, {width} beams"), run());
            }
        }
    }

    /// Guided searches of an RQ-Transformer against the packed model on the processor.
    fn guided_twins(&mut self, device: &Arc<dyn Device>) {
        for (numbers, epsilon) in [(Numbers::F32, F32_EPSILON), (Numbers::Bf16, BF16_EPSILON)] {
            let run = || -> Result<Option<String>> {
                let (model, _, trie) = long_rqt()?;
                let packed = PackedRqt::new(&model)?;
                let generator = DeviceGenerator::rqt(PackedRqt::new(&model)?, device, numbers)?;
                let histories = histories(3, 150);
                let histories: Vec<History> = histories.iter().map(History::from).collect();
                let live = vec![LiveMask::all(&trie); histories.len()];
                let config = BeamConfig { score: packed.score_mode(), ..BeamConfig::uniform(50, 4, 50) };
                let table = packed.guidance_table()?.ok_or_else(|| anyhow!("the model scores no items"))?;
                let guidance = Guidance { table, weight: 0.9 };
                let search = Search { trie: &trie, config: &config, live: &live, guidance: Some(&guidance) };
                let expected = packed.decode(&histories, &search, None)?;
                let found = generator.decode_on_device(&histories, &trie, &config, &live, Some(&guidance))?;
                Ok(worst(&found, &expected, epsilon))
            };
            self.note(&format!("guided search of rqt in {numbers}"), run());
        }
    }

    /// Loss and gradients of a batch against candle's on the processor.
    fn training_twins(&mut self, device: &Arc<dyn Device>) {
        for (numbers, allowed) in [(Numbers::F32, 1e-3), (Numbers::Bf16, 0.2)] {
            let tiger = || -> Result<Option<String>> {
                let (model, params, samples) = trainable(64)?;
                let rows: Vec<&Sample> = samples.iter().collect();
                let batch = || Ok(DeviceBatch::Tiger(model.prepare(&rows)));
                let mut loss = |mode: Mode| Ok(model.loss(&rows, mode)?);
                step_twin(device, numbers, DeviceLearner::Tiger(&model), &params, &batch, &mut loss, allowed)
            };
            self.note(&format!("training step of TIGER in {numbers}"), tiger());
            // Histories that take more shared memory than a block has without asking.
            let rqt = || -> Result<Option<String>> {
                let (model, params, _) = long_rqt()?;
                let window = |items: Vec<ItemIdx>| Window { items, first_target: 190 };
                let windows: Vec<Window> = histories(12, 201).into_iter().step_by(3).map(window).collect();
                let rows: Vec<&Window> = windows.iter().collect();
                let batch = || Ok(DeviceBatch::Rqt(model.prepare(&rows)?));
                let mut loss = |mode: Mode| Ok(model.loss(&rows, mode)?);
                step_twin(device, numbers, DeviceLearner::Rqt(&model), &params, &batch, &mut loss, allowed)
            };
            self.note(&format!("training step of rqt in {numbers}"), rqt());
        }
    }

    /// Steps of TIGER's size, batch 256.
    fn training(&mut self, gpu: &Gpu) -> Result<()> {
        let device: Arc<dyn Device> = Arc::new(gpu.clone());
        let (model, params, samples) = trainable(1024)?;
        let model_ref = DeviceLearner::Tiger(&model);
        let mut trainer = DeviceTrainer::new(&device, Numbers::Bf16, model_ref, &params, AdamWConfig::default(), 0.0)?;
        let parts = json!({"model": "tiger", "batch": 256, "parameters": params.count()});
        self.time("train", &parts, 256.0, |at| {
            let rows: Vec<&Sample> = samples.iter().skip(at % 4 * 256).take(256).collect();
            let keys = StepKeys::new(&SeededRng::new(4), at as u64);
            trainer.gradients(vec![(1.0, DeviceBatch::Tiger(model.prepare(&rows)))], &keys)?;
            trainer.update(1e-3, at as u64)?;
            Ok(gpu.wait()?)
        })?;
        Ok(())
    }

    /// Seconds a run, sorted, of something that waits for the device.
    fn time(&mut self, name: &str, params: &Value, per: f64, mut run: impl FnMut(usize) -> Result<()>) -> Result<f64> {
        (0..RUNS.0).try_for_each(&mut run)?;
        let mut times = Vec::with_capacity(RUNS.1);
        for at in 0..RUNS.1 {
            let began = Instant::now();
            run(at)?;
            times.push(began.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        self.benches.push(json!({
            "name": name, "device": self.device, "threads": 1, "params": params,
            "p50_ms": 1e3 * p50, "p99_ms": 1e3 * p99, "per_second": per / p50, "checks": {},
        }));
        Ok(p50)
    }

    /// What a kernel costs that waits for the one before.
    fn nodes(&mut self, gpu: &Gpu) -> Result<()> {
        let device: Arc<dyn Device> = Arc::new(gpu.clone());
        let memory = Memory::new(&device, 4096)?;
        let args = EmbedArgs { x: memory.address(), rows: 8, same: u32::MAX, ldx: 32, ..EmbedArgs::default() };
        let launch = Launch::new("embed", [1, 1, 1], 256, 0, &args);
        for nodes in [1usize, 200] {
            let program = Program { numbers: Numbers::F32, launches: vec![launch.clone(); nodes] };
            let mut graph = device.prepare(&program)?;
            self.time("graph", &json!({ "nodes": nodes }), nodes as f64, |_| {
                graph.run()?;
                Ok(gpu.wait()?)
            })?;
        }
        Ok(())
    }

    /// Host to device.
    fn copies(&mut self, gpu: &Gpu) -> Result<()> {
        let device: Arc<dyn Device> = Arc::new(gpu.clone());
        let bytes = vec![1u8; 64 << 20];
        let memory = Memory::new(&device, bytes.len())?;
        self.time("host-to-device", &json!({ "bytes": bytes.len() }), bytes.len() as f64, |_| {
            device.write(memory.address(), &bytes)?;
            Ok(gpu.wait()?)
        })?;
        Ok(())
    }

    /// Constraint and selection alone: 2 requests, 70 beams, all levels in one program on logits that lie there.
    fn selection(&mut self, gpu: &Gpu, items: usize) -> Result<()> {
        use beam::cuda::{DeviceBeams, DeviceKernel, DeviceScores, record};
        /// Logits of zero, which lie there: every child of every beam is a candidate, and ties decide.
        struct There(Arc<dyn Device>);
        impl beam::StepScorer<DeviceKernel> for There {
            fn score(&mut self, _: usize, beams: &DeviceBeams) -> Result<DeviceScores, beam::BoxError> {
                let scores = beams.scores(2048);
                let rows = beams.batch() * beams.beams();
                let partials = [0f32, 128.0].repeat(rows * scores.tiles as usize);
                let bytes: Vec<u8> = partials.iter().flat_map(|x| x.to_ne_bytes()).collect();
                self.0.write(scores.partials, &bytes)?;
                Ok(scores)
            }
        }
        let device: Arc<dyn Device> = Arc::new(gpu.clone());
        let trie = trie(items, 8, 2048, 1)?;
        let index = Arc::new(DeviceIndex::new(&device, &trie)?);
        let config = BeamConfig::uniform(70, 8, 10);
        let kernel = DeviceKernel::new(&device, &index, Numbers::F32, &config)?;
        let mut scorer = There(Arc::clone(&device));
        let mut recorded = record(&kernel, &mut scorer, Vec::new(), 2, ScoreMode::FullVocab, None)?;
        let live = vec![LiveMask::all(&trie); 2];
        let params = json!({ "items": items, "levels": 8, "codebook_size": 2048, "batch": 2, "beam": 70,
            "nodes": recorded.nodes(), "index_bytes": index.bytes() });
        self.time("beam", &params, 2.0, |_| {
            let lists = recorded.run(&live)?;
            anyhow::ensure!(lists.iter().all(|list| list.len() == 10), "a list is short");
            Ok(())
        })?;
        Ok(())
    }

    /// Whole requests of the paper's size.
    fn tiger(&mut self, gpu: &Gpu) -> Result<()> {
        let device: Arc<dyn Device> = Arc::new(gpu.clone());
        let (model, trie) = paper(12_101)?;
        let generator = DeviceGenerator::tiger(PackedTiger::new(&model)?, &device, Numbers::Bf16)?;
        for (batch, width) in [(1, 10), (1, 50), (16, 50), (64, 50), (256, 50)] {
            let all: Vec<_> = (0..8).map(|turn| histories(batch * (turn + 1), 20)).collect();
            let live = vec![LiveMask::all(&trie); batch];
            let config = BeamConfig::uniform(width, 4, 10.min(width));
            let ask = |turn: usize| -> Result<()> {
                let some = &all[turn % all.len()];
                let some: Vec<History> = some[some.len() - batch..].iter().map(History::from).collect();
                generator.decode_on_device(&some, &trie, &config, &live, None)?;
                Ok(())
            };
            ask(0)?;
            let (nodes, bytes) = generator.last_program().unwrap_or_default();
            let params = json!({ "model": "tiger", "batch": batch, "beam": width, "positions": 80, "nodes": nodes,
                "device_bytes": bytes });
            self.time("tiger", &params, batch as f64, ask)?;
        }
        Ok(())
    }
}

/// How far lists are from those expected, where that is more than `epsilon`.
fn worst(found: &[Vec<Hypothesis>], expected: &[Vec<Hypothesis>], epsilon: f32) -> Option<String> {
    let mut worst: f32 = 0.0;
    for (found, expected) in found.iter().zip(expected) {
        if found.len() != expected.len() {
            return Some(format!("{} items instead of {}", found.len(), expected.len()));
        }
        for (a, b) in found.iter().zip(expected) {
            worst = worst.max((a.log_prob - b.log_prob).abs());
        }
    }
    // A rank's score moves by as much as rounding moves scores, whatever changes places.
    (worst > epsilon).then(|| format!("scores differ by {worst}, {epsilon} is allowed"))
}

/// How far loss and gradients of a batch are from candle's, where that is more than `allowed`.
fn step_twin(
    device: &Arc<dyn Device>,
    numbers: Numbers,
    learner: DeviceLearner,
    params: &Parameters,
    batch: &dyn Fn() -> Result<DeviceBatch>,
    loss: &mut dyn FnMut(Mode) -> Result<Tensor>,
    allowed: f64,
) -> Result<Option<String>> {
    let keys = || StepKeys::new(&SeededRng::new(4), 2);
    let loss = loss(Mode::Train(&keys()))?;
    let expected = loss.backward()?;
    let mut trainer = DeviceTrainer::new(device, numbers, learner, params, AdamWConfig::default(), 0.0)?;
    // Twice: what the first run left must not matter.
    trainer.gradients(vec![(1.0, batch()?)], &keys())?;
    let found = trainer.gradients(vec![(1.0, batch()?)], &keys())?;
    let (loss, grads) = (f64::from(loss.to_scalar::<f32>()?), trainer.grads()?);
    let squares = |tensor: &Tensor| -> Result<f64> { Ok(f64::from(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?)) };
    let (mut apart, mut all) = (0.0, 0.0);
    for (name, var) in params.all() {
        if let Some(expected) = expected.get(&var) {
            apart += squares(&(expected - &grads[&name])?)?;
            all += squares(expected)?;
        }
    }
    let (of_loss, of_grads) = ((found - loss).abs() / loss, (apart / all).sqrt());
    // No number is not fine either.
    let fine = of_loss <= allowed && of_grads <= allowed;
    Ok((!fine).then(|| format!("loss {of_loss:.1e} and gradients {of_grads:.1e} off, {allowed} is allowed")))
}

/// An RQ-Transformer that reads long histories, looks back and draws its negatives, and its parameters and IDs.
fn long_rqt() -> Result<(Rqt, Parameters, Trie)> {
    let (tiger, trie) = paper(12_101)?;
    let config = RqtConfig {
        history_cap: 200,
        look_back: 4,
        content: false,
        item_embedding: true,
        dense_weight: 1.0,
        dense_negatives: 2048,
        guide: 0.9,
        ..RqtConfig::default()
    };
    let params = Parameters::new(2);
    Ok((Rqt::new(&config, tiger.features().clone(), &params.builder())?, params, trie))
}

/// TIGER of the paper's size over made-up items, its parameters, and samples of full histories.
fn trainable(samples: usize) -> Result<(Tiger, Parameters, Vec<Sample>)> {
    let params = Parameters::new(1);
    let (model, _) = paper(12_101)?;
    let model = Tiger::new(
        &TigerConfig { dropout: 0.1, ..model.config().clone() },
        model.features().clone(),
        &params.builder(),
    )?;
    let sample = |(at, history): (usize, Vec<ItemIdx>)| Sample {
        history,
        user: None,
        target: ItemIdx((draw(11, at as u64) % 12_000) as u32),
    };
    Ok((model, params, histories(samples, 20).into_iter().enumerate().map(sample).collect()))
}

/// TIGER of the paper's size with weights as they are drawn, over `items` made-up items.
fn paper(items: usize) -> Result<(Tiger, Trie)> {
    let spec = SidSpec { codebook_sizes: vec![256; 3], suffix_size: Some(256) };
    let code = |item: usize| {
        (0..4).map(move |level| if level < 3 { (draw(5, (item * 4 + level) as u64) % 256) as Code } else { 0 })
    };
    let table = SidTable::new(spec, (0..items).flat_map(code).collect())?;
    let trie = Trie::build(&table)?;
    let features = ItemFeatures::new(Arc::new(table), None)?;
    Ok((Tiger::new(&TigerConfig::default(), features, &Parameters::new(1).builder())?, trie))
}

fn histories(requests: usize, longest: u64) -> Vec<Vec<ItemIdx>> {
    let item = |request: usize, at: u64| ItemIdx((draw(request as u64, at) % 12_000) as u32);
    // One of full length, so that all batches have the same size.
    let length =
        |request: usize| if request.is_multiple_of(3) { longest } else { 1 + draw(9, request as u64) % longest };
    (0..requests).map(|request| (0..length(request)).map(|at| item(request, at)).collect()).collect()
}
