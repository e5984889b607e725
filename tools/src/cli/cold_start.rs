//! `sidrec cold-start`.

use super::{ItemsArgs, json_line};
use crate::catalogue::require_empty;
use crate::cold::protocol::Protocol;
use crate::cold::{ColdConfig, ColdReport, run};
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
}

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
    /// Vectors instead of encoding the text: .npy, .safetensors or .parquet
    #[arg(long, value_name = "FILE", env = "SIDREC_EMBEDDINGS")]
    embeddings: Option<PathBuf>,
    /// lsa (default), hashed, or a local Hugging Face folder
    #[arg(long, env = "SIDREC_ENCODER")]
    encoder: Option<String>,
    /// The generative model: rqt or tiger
    #[arg(long, default_value = "rqt", env = "SIDREC_MODEL")]
    model: String,
    /// Preset of both models: default, demo or quick
    #[arg(long, default_value = "default", env = "SIDREC_PRESET")]
    preset: String,
    /// Beams of the search
    #[arg(long, default_value_t = 50, env = "SIDREC_BEAM", value_parser = clap::value_parser!(u32).range(50..=1024))]
    beam: u32,
    /// Everything random follows from it
    #[arg(long, default_value_t = 0, env = "SIDREC_SEED")]
    seed: u64,
    /// New directory; gets report.json
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
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
            ProtocolArg::Liger => Protocol::Liger { newest: 20 },
            ProtocolArg::Time => Protocol::Time { share: share(0.1)? },
        })
    }

    fn run_config(&self, model: &str) -> Result<RunConfig> {
        let mut config = RunConfig::preset(model, &self.preset).map_err(|e| fault(Fault::Usage, e))?;
        config.train.seed = self.seed;
        Ok(config)
    }
}

pub(super) fn cold_start(args: &ColdStartArgs) -> Result<()> {
    require_empty(&args.out)?;
    let (model, dense) = (args.run_config(&args.model)?, args.run_config("sasrec")?);
    let config = ColdConfig {
        protocol: args.protocol()?,
        quantizer: QuantizerConfig { seed: args.seed, ..QuantizerConfig::default() },
        model,
        dense,
        beam: args.beam as usize,
        seed: args.seed,
    };
    let interrupt = Interrupt::install()?;
    let items = args.items.read()?;
    let interactions = read_interactions(&args.interactions, &items.keys, &args.items.options())?;
    let (embeddings, encoder) = (args.embeddings.as_deref(), args.encoder.as_deref());
    let report = run(&items, &interactions, embeddings, encoder, &config, &|| interrupt.signal().is_some())?;
    if let Some(signal) = interrupt.signal() {
        return Err(fault(Fault::Interrupted(signal), "interrupted; nothing was written"));
    }
    std::fs::create_dir_all(&args.out).map_err(|e| cannot_create(&args.out, e))?;
    rqvae::write_atomic(&args.out.join("report.json"), &serde_json::to_vec_pretty(&report)?)?;
    let rows: Vec<_> = report.rows.iter().filter(|row| row.k == 10).cloned().collect();
    eprintln!("\n{}", cold_start_table(&rows));
    eprintln!("{}", ramp_table(&report));
    eprintln!("Report: {}", args.out.join("report.json").display());
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
