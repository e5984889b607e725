//! Benches that a user runs on their own machine: one JSON line each, both sides measured in the same run.

mod line;
mod load;
mod serve;
mod train;

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
    /// Training steps on made-up data of the shape of Amazon Beauty, or on a catalogue
    #[command(
        after_help = "Examples:\n  sidrec bench train --model tiger --batch 256\n  sidrec bench train --model rqt --catalogue catalogue --interactions interactions.csv --seconds 60 --json"
    )]
    Train(train::TrainBenchArgs),
}

pub(crate) fn run(command: BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Serve(args) => serve::run(&args),
        BenchCommand::Train(args) => train::run(&args),
    }
}
