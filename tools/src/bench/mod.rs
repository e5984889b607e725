//! Benches that a user runs on their own machine: one JSON line each, both sides measured in the same run.

mod beam;
mod encode;
mod fit;
mod line;
mod load;
mod serve;
mod train;
mod trie;
mod vectors;

pub(crate) use line::peak_rss_bytes;

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
    /// Training steps on made-up data of the shape of Amazon Beauty, or on a catalogue
    #[command(
        after_help = "Examples:\n  sidrec bench train --model tiger --batch 256\n  sidrec bench train --model rqt --catalogue catalogue --interactions interactions.csv --seconds 60 --json"
    )]
    Train(train::TrainBenchArgs),
    /// An index of made-up IDs: bytes an item, seconds to build and to open
    #[command(
        after_help = "Examples:\n  sidrec bench trie --items 10000000 --levels 4 --codebook-size 2048\n  sidrec bench trie --items 100000 --rounds 20 --json"
    )]
    Trie(trie::TrieBenchArgs),
    /// A search: milliseconds of the model, the constraint and the selection
    #[command(
        after_help = "Examples:\n  sidrec bench beam --batch 16 --beam 50\n  sidrec bench beam --beam 10 --run weights/demo/run --catalogue weights/demo/catalogue --weights int8 --json"
    )]
    Beam(Box<beam::BeamBenchArgs>),
}

pub(crate) fn run(command: BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Fit(args) => fit::run(&args),
        BenchCommand::Encode(args) => encode::run(&args),
        BenchCommand::Serve(args) => serve::run(&args),
        BenchCommand::Train(args) => train::run(&args),
        BenchCommand::Trie(args) => trie::run(&args),
        BenchCommand::Beam(args) => beam::run(&args),
    }
}
