//! Benches that a user runs on their own machine: one JSON line each, both sides measured in the same run.

mod encode;
mod fit;
mod line;
mod load;
mod serve;
mod vectors;

use anyhow::Result;
use clap::Subcommand;

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// Fitting a quantiser
    #[command(
        after_help = "Examples:\n  sidrec bench fit\n  sidrec bench fit --catalogue catalogue --method rqvae --iterations 20 --json"
    )]
    Fit(vectors::QuantizerBenchArgs),
    /// Encoding items with a fitted quantiser
    #[command(
        after_help = "Examples:\n  sidrec bench encode\n  sidrec bench encode --items 1000000 --dim 64 --iterations 5 --json"
    )]
    Encode(vectors::QuantizerBenchArgs),
    /// The server beside the bare engine: latency by load, capacity, failures
    #[command(
        after_help = "Examples:\n  sidrec bench serve --run weights/demo/run --catalogue weights/demo/catalogue\n  sidrec bench serve --run run --catalogue catalogue --histories interactions.csv --seconds 60 --json"
    )]
    Serve(serve::ServeBenchArgs),
}

pub(crate) fn run(command: BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Fit(args) => fit::run(&args),
        BenchCommand::Encode(args) => encode::run(&args),
        BenchCommand::Serve(args) => serve::run(&args),
    }
}
