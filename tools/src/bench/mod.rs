//! Benches that a user runs on their own machine: one JSON line each, both sides measured in the same run.

mod line;
mod load;
mod serve;

pub(crate) use line::peak_rss_bytes;

use anyhow::Result;
use clap::Subcommand;

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// The server beside the bare engine: latency by load, capacity, failures
    #[command(
        after_help = "Examples:\n  sidrec bench serve --run weights/demo/run --catalogue weights/demo/catalogue\n  sidrec bench serve --run run --catalogue catalogue --histories interactions.csv --seconds 60 --json"
    )]
    Serve(serve::ServeBenchArgs),
}

pub(crate) fn run(command: BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Serve(args) => serve::run(&args),
    }
}
