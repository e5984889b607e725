//! `sidrec bench train`: steps of a model's own trainer, and how near they come to what the processor can multiply.

use super::line::{BenchLine, peak_rss_bytes, quantile_ms};
use crate::catalogue::Catalogue;
use crate::cli::json_line;
use crate::error::{Fault, fault};
use crate::gpu::{self, DeviceChoice};
use crate::jobs::train::features;
use crate::models::{Model, Observer, RunConfig};
use crate::progress::Stage;
use crate::table::{ReadOptions, read_interactions};
use anyhow::Result;
use candle_core::{Device, Tensor};
use clap::Args;
use rand::Rng;
use rqvae::{ItemIdx, SeededRng, SidSpec, SidTable, Vectors};
use seqmodel::data::preparation_seconds;
use seqmodel::nn::{Linear, Parameters, multiplications};
use seqmodel::train::{EpochRecord, Identity, TrainConfig, Validation};
use seqmodel::{Histories, ItemFeatures, LeaveOneOut};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Args)]
pub(crate) struct TrainBenchArgs {
    /// rqt, tiger or sasrec
    #[arg(long, default_value = "rqt", env = "SIDREC_MODEL")]
    model: String,
    /// Named configuration of the model
    #[arg(long, default_value = "default", env = "SIDREC_PRESET")]
    preset: String,
    /// Windows or samples per step
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    batch: u32,
    /// Catalogue directory; made up without it
    #[arg(long, value_name = "DIR", requires = "interactions")]
    catalogue: Option<PathBuf>,
    /// Interactions: user_id, item_id, timestamp or position
    #[arg(long, value_name = "FILE", requires = "catalogue")]
    interactions: Option<PathBuf>,
    /// Seconds of training
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Everything random follows from it
    #[arg(long, default_value_t = 0, env = "SIDREC_SEED")]
    seed: u64,
    /// Where to train
    #[arg(long, value_enum, default_value = "cpu", env = "SIDREC_DEVICE")]
    device: DeviceChoice,
    /// Only the JSON line
    #[arg(long)]
    json: bool,
}

/// Items and users of Amazon Beauty, 5-core; histories of 5 and more items, 8.9 on average.
const ITEMS: usize = 12_101;
const USERS: usize = 22_363;
const SHORTEST: usize = 5;
const MEAN_EXTRA: f64 = 3.9;

/// A catalogue and histories of that shape, without any sense.
fn made_up(seed: u64) -> Result<(ItemFeatures, Histories)> {
    let mut rng = SeededRng::new(seed).stream("bench train");
    let spec = SidSpec { codebook_sizes: vec![256; 3], suffix_size: Some(24) };
    let mut codes = Vec::with_capacity(ITEMS * 4);
    for item in 0..ITEMS as u32 {
        // Pairs of items share all codes but the suffix.
        let draw = rqvae::mix(u64::from(item / 2) ^ rqvae::mix(seed)) as u32;
        codes.extend([(item / 2 % 256) as u16, (item / 512) as u16, (draw % 256) as u16, (item % 2) as u16]);
    }
    let content = (0..ITEMS * 192).map(|_| rng.random_range(-0.1f32..0.1)).collect();
    let stop = 1.0 / (1.0 + MEAN_EXTRA);
    let user = |_| {
        let mut history = Vec::new();
        while history.len() < SHORTEST || (history.len() < 200 && !rng.random_bool(stop)) {
            history.push(ItemIdx(rng.random_range(0..ITEMS as u32)));
        }
        history
    };
    let histories = Histories::new((0..USERS).map(user).collect());
    let content = Arc::new(Vectors::new(192, content)?);
    Ok((ItemFeatures::new(Arc::new(SidTable::new(spec, codes)?), Some(content))?, histories))
}

/// Times of steps; the first ones warm up and are left out.
struct Steps {
    last: Instant,
    took: Vec<Duration>,
    losses: Vec<f64>,
    per_epoch: u64,
    /// Multiplications, seconds of preparation and of waiting for it at the end of the warm-up.
    before: (u64, (f64, f64)),
}

const WARM_UP: usize = 2;

impl Observer for Steps {
    fn step(&mut self, _: u64, of: u64, loss: f64) {
        let now = Instant::now();
        self.took.push(now - self.last);
        (self.last, self.per_epoch) = (now, of);
        self.losses.push(loss);
        if self.took.len() == WARM_UP {
            self.before = (multiplications(), preparation_seconds());
        }
    }

    fn epoch(&mut self, _: &EpochRecord) -> Result<()> {
        Ok(())
    }
}

/// Multiplications a second of one large product on all threads: the best of a few.
fn peak() -> Result<f64> {
    const SIZE: usize = 1536;
    let linear = Linear::new(SIZE, SIZE, 0.02, &Parameters::new(0).builder())?;
    let x = Tensor::ones((SIZE, SIZE), candle_core::DType::F32, &Device::Cpu)?;
    let mut best = f64::MAX;
    for _ in 0..6 {
        let began = Instant::now();
        linear.forward(&x)?;
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok((SIZE * SIZE * SIZE) as f64 / best)
}

pub(super) fn run(args: &TrainBenchArgs) -> Result<()> {
    let mut config = RunConfig::preset(&args.model, &args.preset).map_err(|e| fault(Fault::Usage, e))?;
    config.train = TrainConfig { batch_size: args.batch as usize, seed: args.seed, ..config.train };
    config.validate()?;
    let stage = Stage::new("data", 0);
    let (features, histories) = match (&args.catalogue, &args.interactions) {
        (Some(catalogue), Some(interactions)) => {
            let catalogue = Catalogue::open(catalogue)?;
            let read = read_interactions(interactions, &catalogue.keys, &ReadOptions::default())?;
            (features(&catalogue)?, read.histories)
        }
        _ => made_up(args.seed)?,
    };
    let device = gpu::device(args.device)?;
    let model = Model::new(&config.model, &features, args.seed)?.on(device);
    let on = model.device().map_or_else(|| "cpu".into(), |device| device.name());
    let parameters = model.params().count();
    stage.done(&format!("{} items, {} users, {parameters} parameters", features.len(), histories.users()));
    let _kept = crate::allocator::keep_blocks();
    let stage = Stage::new("one product", 0);
    let peak = peak()?;
    stage.done(&format!("{:.0} GFLOP/s", 2e-9 * peak));

    let stage = Stage::new(&format!("train {}", config.model.name()), 0);
    let split = LeaveOneOut::new(&histories);
    let began = Instant::now();
    let mut steps = Steps { last: began, took: Vec::new(), losses: Vec::new(), per_epoch: 0, before: (0, (0.0, 0.0)) };
    let time = Duration::from_secs(args.seconds);
    let mut validate = |_: &Model| Ok(Validation { recall_at_10: 0.0, ndcg_at_10: 0.0 });
    let done = || began.elapsed() > time;
    let identity = Identity::default();
    model.train(&config.train, &split, identity, None, false, &mut validate, &mut steps, &done)?;
    let mut took = steps.took.split_off(WARM_UP.min(steps.took.len()));
    if took.is_empty() {
        return Err(fault(
            Fault::Usage,
            format!("--seconds {}: too short for {WARM_UP} steps and one more", args.seconds),
        ));
    }
    let seconds = took.iter().sum::<Duration>().as_secs_f64();
    let (count, rate) = (took.len() as f64, took.len() as f64 / seconds);
    let reached = (multiplications() - steps.before.0) as f64 / seconds;
    let (made, waited) = preparation_seconds();
    let (preparing, waiting) = ((made - steps.before.1.0) / seconds, (waited - steps.before.1.1) / seconds);
    took.sort_unstable();
    let examples = rate * f64::from(args.batch);
    stage.done(&format!(
        "{examples:.0} examples/s, {:.0} GFLOP/s, {:.0} % of one product's; making batches takes {:.2} % of the time, \
         steps wait for it {:.2} %; an epoch takes {:.0} s",
        2e-9 * reached,
        100.0 * reached / peak,
        100.0 * preparing,
        100.0 * waiting,
        steps.per_epoch as f64 / rate
    ));
    let tenth = (steps.losses.len() / 10).max(1);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let object = |value: Value| value.as_object().cloned().unwrap_or_else(Map::new);
    json_line(&BenchLine {
        name: "train",
        device: &on,
        threads: rayon::current_num_threads(),
        params: object(json!({"model": config.model.name(), "preset": args.preset, "batch": args.batch,
            "items": features.len(), "users": histories.users(), "made_up": args.catalogue.is_none(),
            "parameters": parameters, "seconds": args.seconds, "seed": args.seed})),
        p50_ms: quantile_ms(&took, 0.5),
        p99_ms: quantile_ms(&took, 0.99),
        per_second: rate,
        peak_rss_bytes: peak_rss_bytes(),
        checks: object(json!({"steps": count, "losses_finite": steps.losses.iter().all(|loss| loss.is_finite()),
            "first_loss": mean(&steps.losses[..tenth]),
            "last_loss": mean(&steps.losses[steps.losses.len() - tenth..])})),
        more: object(json!({"examples_per_second": examples, "epoch_seconds": steps.per_epoch as f64 / rate,
            "gflops": 2e-9 * reached, "peak_gflops": 2e-9 * peak, "share_of_peak": reached / peak, "share_preparing": preparing,
            "share_waiting": waiting})),
    })
}
