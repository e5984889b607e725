//! `sidrec cold-start`.

use super::{ItemsArgs, json_line};
use crate::catalogue::require_empty;
use crate::cold::protocol::Protocol;
use crate::cold::{ColdConfig, ColdReport, render, run};
use crate::error::{Fault, cannot_create, fault};
use crate::interrupt::Interrupt;
use crate::models::RunConfig;
use crate::report::cold_start_table;
use crate::table::read_interactions;
use anyhow::Result;
use clap::{Args, ValueEnum};
use rqvae::QuantizerConfig;
use std::path::PathBuf;

#[derive(Clone, Copy, ValueEnum)]
enum ProtocolArg {
    /// A drawn share of the test targets, whose other interactions are deleted
    Tiger,
    /// Items that occur only as targets of validation or test
    Liger,
    /// Items first seen after a cut in time
    Time,
    /// Nothing is taken away: recall by how often training has seen a target
    Ramp,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MethodsArg {
    /// Popularity, neighbours, followers, factorisations, and the memory of the hybrid; seconds to minutes
    Counted,
    /// Two towers
    TwoTower,
    /// SASRec
    Sasrec,
    /// TIGER's encoder-decoder
    Tiger,
    /// The RQ-Transformer, and the hybrid of it
    Rqt,
}

/// Training to its end would take it days on two cores.
const TIGER_SECONDS: u64 = 600;

#[derive(Args)]
pub(super) struct ColdStartArgs {
    #[command(flatten)]
    items: ItemsArgs,
    /// Interactions: user_id, item_id, timestamp or position
    #[arg(long, value_name = "FILE", env = "SIDREC_INTERACTIONS")]
    interactions: PathBuf,
    /// Who is held out
    #[arg(long, value_enum)]
    protocol: ProtocolArg,
    /// Share held out: of the test targets (tiger, 0.05 without it) or of the interactions (time, 0.1)
    #[arg(long)]
    share: Option<f64>,
    /// Newest interactions of a user that count (liger)
    #[arg(long, default_value_t = 20)]
    newest: usize,
    /// What is compared; all of it takes about an hour on two cores for 20,000 users
    #[arg(long, value_enum, value_delimiter = ',', default_value = "counted,two-tower,sasrec,tiger,rqt")]
    methods: Vec<MethodsArg>,
    /// Vectors instead of encoding the text: .npy, .safetensors or .parquet
    #[arg(long, value_name = "FILE", env = "SIDREC_EMBEDDINGS")]
    embeddings: Option<PathBuf>,
    /// lsa (default), hashed, or a local Hugging Face folder
    #[arg(long, env = "SIDREC_ENCODER")]
    encoder: Option<String>,
    /// Preset of all models: default, demo or quick; the default of tiger is its preset grid here
    #[arg(long, default_value = "default", env = "SIDREC_PRESET")]
    preset: String,
    /// Seconds that each training may take, 0 for no limit. Without it tiger takes 600 at most and all others what they
    /// need. Part of the question: --resume goes on with the same one
    #[arg(long, value_name = "SECONDS")]
    time_limit: Option<u64>,
    /// Beams of the search
    #[arg(long, default_value_t = 50, env = "SIDREC_BEAM", value_parser = clap::value_parser!(u32).range(50..=1024))]
    beam: u32,
    /// Everything random follows from it
    #[arg(long, default_value_t = 0, env = "SIDREC_SEED")]
    seed: u64,
    /// New directory; gets report.json, report.html and the stages of the run
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on with the stages in the directory
    #[arg(long)]
    resume: bool,
}

impl ColdStartArgs {
    fn protocol(&self) -> Result<Protocol> {
        let share = |default: f64| match self.share {
            None => Ok(default),
            Some(share) if share > 0.0 && share < 1.0 => Ok(share),
            Some(share) => Err(fault(Fault::Usage, format!("--share {share}: expected a number between 0 and 1"))),
        };
        Ok(match self.protocol {
            ProtocolArg::Tiger => Protocol::Tiger { share: share(0.05)? },
            ProtocolArg::Liger => Protocol::Liger { newest: self.newest },
            ProtocolArg::Time => Protocol::Time { share: share(0.1)? },
            ProtocolArg::Ramp => Protocol::Ramp,
        })
    }

    fn run_config(&self, model: &str) -> Result<RunConfig> {
        // The separators between items are worth their length where time is short, and no user is known by a hash.
        let preset = if (model, self.preset.as_str()) == ("tiger", "default") { "grid" } else { &self.preset };
        let limit = if model == "tiger" { TIGER_SECONDS } else { 0 };
        let mut config = RunConfig::preset(model, preset).map_err(|e| fault(Fault::Usage, e))?;
        config.train.seed = self.seed;
        config.train.time_limit_s = self.time_limit.unwrap_or(limit);
        Ok(config)
    }
}

pub(super) fn cold_start(args: &ColdStartArgs) -> Result<()> {
    if !args.resume {
        require_empty(&args.out)?;
    }
    let mut models = Vec::new();
    for (asked, name) in [
        (MethodsArg::TwoTower, "two-tower"),
        (MethodsArg::Sasrec, "sasrec"),
        (MethodsArg::Tiger, "tiger"),
        (MethodsArg::Rqt, "rqt"),
    ] {
        if args.methods.contains(&asked) {
            models.push(args.run_config(name)?);
        }
    }
    let config = ColdConfig {
        protocol: args.protocol()?,
        quantizer: QuantizerConfig { seed: args.seed, ..QuantizerConfig::default() },
        models,
        counted: args.methods.contains(&MethodsArg::Counted),
        beam: args.beam as usize,
        seed: args.seed,
    };
    let interrupt = Interrupt::install()?;
    let items = args.items.read()?;
    let interactions = read_interactions(&args.interactions, &items.keys, &args.items.options())?;
    std::fs::create_dir_all(&args.out).map_err(|e| cannot_create(&args.out, e))?;
    let (embeddings, encoder) = (args.embeddings.as_deref(), args.encoder.as_deref());
    let report = run(&items, &interactions, embeddings, encoder, &config, &args.out, &|| interrupt.signal())?;
    rqvae::write_atomic(&args.out.join("report.json"), &serde_json::to_vec_pretty(&report)?)?;
    let command = format!("sidrec cold-start --protocol {} --seed {}", config.protocol.name(), args.seed);
    rqvae::write_atomic(&args.out.join("report.html"), render(&report, &command)?.as_bytes())?;
    let rows: Vec<_> = report.rows.iter().filter(|row| row.k == 10).cloned().collect();
    eprintln!("\n{}", cold_start_table(&rows));
    eprintln!("{}", ramp_table(&report));
    eprintln!("Report: {}", args.out.join("report.html").display());
    json_line(&serde_json::json!({
        "protocol": report.protocol, "held_out_items": report.held_out_items,
        "removed_interactions": report.removed_interactions, "users": report.users,
        "users_with_unseen_target": report.users_with_unseen_target, "rows": report.rows.len(),
    }))
}

/// Recall by how often training has seen the target, methods down, counts across.
fn ramp_table(report: &ColdReport) -> String {
    let first = report.ramp.first().map(|row| (row.method.clone(), row.epsilon));
    let heads = report.ramp.iter().take_while(|row| Some((row.method.clone(), row.epsilon)) == first);
    let heads: Vec<String> = heads.map(|row| format!("{:>14}", format!("{} ({})", row.seen, row.users))).collect();
    let mut lines = vec![
        "Recall@10 by how often training has seen the target (users)".to_string(),
        format!("{:<34}{}", "", heads.concat()),
    ];
    for chunk in report.ramp.chunks(heads.len().max(1)) {
        let cells: Vec<String> = chunk.iter().map(|row| format!("{:>14.4}", row.recall)).collect();
        lines.push(format!("{:<34}{}", chunk[0].method, cells.concat()));
    }
    lines.join("\n") + "\n"
}
