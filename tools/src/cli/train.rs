//! `sidrec train`.

use super::{RejectArgs, json_line, print};
use crate::catalogue::Catalogue;
use crate::config::Layers;
use crate::error::{Fault, fault};
use crate::gpu::{self, DeviceChoice};
use crate::interrupt::Interrupt;
use crate::jobs::train;
use crate::models::{RunConfig, trains_on_a_device};
use crate::table::read_interactions;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct TrainArgs {
    /// Catalogue directory
    #[arg(long, value_name = "DIR", env = "SIDREC_CATALOGUE")]
    catalogue: PathBuf,
    /// Interactions: user_id, item_id, timestamp or position
    #[arg(long, value_name = "FILE", env = "SIDREC_INTERACTIONS")]
    interactions: PathBuf,
    #[command(flatten)]
    rejects: RejectArgs,
    /// rqt, tiger, sasrec, two-tower or hybrid
    #[arg(long, default_value = "rqt", env = "SIDREC_MODEL")]
    model: String,
    /// Named configuration of the model
    #[arg(long, default_value = "default", env = "SIDREC_PRESET")]
    preset: String,
    /// TOML file over the preset
    #[arg(long, value_name = "FILE", env = "SIDREC_CONFIG")]
    config: Option<PathBuf>,
    /// Single value over everything, e.g. train.batch_size=64; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Everything random follows from it
    #[arg(long, env = "SIDREC_SEED")]
    seed: Option<u64>,
    /// Seconds of training after which it stops, those before it was resumed included; 0 for no limit
    #[arg(long, env = "SIDREC_TIME_LIMIT")]
    time_limit: Option<u64>,
    /// Run directory
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on from the newest checkpoint in the run directory
    #[arg(long)]
    resume: bool,
    /// Where to train; tiger, rqt and hybrid can be trained on a GPU
    #[arg(long, value_enum, default_value = "auto", env = "SIDREC_DEVICE")]
    device: DeviceChoice,
    /// Print every value with its origin and stop
    #[arg(long)]
    print_config: bool,
}

/// Trains and prints how it ended.
pub(super) fn train_model(args: &TrainArgs) -> Result<()> {
    let preset = RunConfig::preset(&args.model, &args.preset).map_err(|e| fault(Fault::Usage, e))?;
    let mut layers = Layers::preset(&preset, &format!("preset {} {}", args.model, args.preset))?;
    if let Some(path) = &args.config {
        layers.file(path)?;
    }
    if let Some(seed) = args.seed {
        layers.set(&format!("train.seed={seed}"), "--seed")?;
    }
    if let Some(seconds) = args.time_limit {
        layers.set(&format!("train.time_limit_s={seconds}"), "--time-limit")?;
    }
    for assignment in &args.set {
        layers.set(assignment, "--set")?;
    }
    let config = layers.resolve()?;
    if args.print_config {
        return print(&layers.print());
    }
    let name = config.model.name();
    let device = match args.device {
        DeviceChoice::Cuda if !trains_on_a_device(name) => {
            let reason = format!("--device cuda: {name} trains on the processor; use --device auto or cpu");
            return Err(fault(Fault::Usage, reason));
        }
        // Nobody need hear of a device that would not be used.
        _ if !trains_on_a_device(name) => None,
        choice => gpu::device(choice)?,
    };
    let catalogue = Catalogue::open(&args.catalogue)?;
    let interactions = read_interactions(&args.interactions, &catalogue.keys, &args.rejects.options())?;
    let outcome =
        train::run(&config, &catalogue, &interactions, &args.out, args.resume, device, &Interrupt::install()?)?;
    json_line(&serde_json::json!({
        "model": config.model.name(),
        "stop": outcome.stop,
        "steps": outcome.steps,
        "epochs": outcome.epochs,
        "best_step": outcome.best_step,
        "val": { "recall@10": outcome.best },
        "seconds": outcome.seconds,
    }))
}
