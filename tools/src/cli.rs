//! What is typed becomes what is meant; one function per command.

mod cold_start;
mod eval;
mod gpu_selftest;
mod serve;
mod train;

use crate::bench::BenchCommand;
use crate::catalogue::{Catalogue, require_empty, require_writable};
use crate::demo::DemoConfig;
use crate::gpu::DeviceChoice;
use crate::interrupt::Interrupt;
use crate::jobs::demo::DemoJob;
use crate::jobs::train::Trained;
use crate::jobs::{build_sids, pack, recommend};
use crate::models::Asking;
use crate::progress::Stage;
use crate::sids::SidsCommand;
use crate::table::{
    Interactions, Items, ReadOptions, find_in, read_histories, read_interactions, read_items, write_vectors,
};
use anyhow::Result;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use cold_start::ColdStartArgs;
use eval::{EvalArgs, eval};
use seqmodel::Precision;
use serve::ServeArgs;
use std::io::Write;
use std::path::{Path, PathBuf};
use train::{TrainArgs, train_model};

/// Generative recommendation with semantic IDs.
#[derive(Parser)]
#[command(name = "sidrec", version, arg_required_else_help = true)]
#[command(after_help = "Start with:\n  sidrec demo\n  sidrec demo --data DIR --out DIR")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole line on the generated catalogue or on a data directory, with a report page
    #[command(after_help = "Examples:\n  sidrec demo\n  sidrec demo --data shop/ --out shop-demo --seed 1")]
    Demo(DemoArgs),
    /// Check a data set, or write the demo catalogue as files
    #[command(
        subcommand,
        after_help = "Examples:\n  sidrec data make-demo --out shop\n  sidrec data check --items shop/items.jsonl --interactions shop/interactions.csv"
    )]
    Data(DataCommand),
    /// Content embeddings of items
    #[command(
        after_help = "Examples:\n  sidrec embed --items items.jsonl --out vectors.npy\n  sidrec embed --items items.csv --encoder models/all-MiniLM-L6-v2 --out vectors.safetensors"
    )]
    Embed(EmbedArgs),
    /// Build and look at semantic IDs
    #[command(
        subcommand,
        after_help = "Examples:\n  sidrec sids build --items items.jsonl --out catalogue\n  sidrec sids inspect catalogue"
    )]
    Sids(SidsCommand),
    /// Train a sequence model
    #[command(
        after_help = "Examples:\n  sidrec train --catalogue catalogue --interactions interactions.csv --model rqt --out run\n  sidrec train --catalogue catalogue --interactions interactions.csv --model rqt --out run --resume"
    )]
    Train(TrainArgs),
    /// Full-catalogue, item-level evaluation
    #[command(
        after_help = "Examples:\n  sidrec eval --run run --catalogue catalogue --interactions interactions.csv\n  sidrec eval --run run --catalogue catalogue --interactions interactions.csv --seen include --ties shuffle:1 --report report.json\n  sidrec eval --baseline ials --catalogue catalogue --interactions interactions.csv --write-run ials.run --write-qrels qrels"
    )]
    Eval(EvalArgs),
    /// What is recommended of items that training has never seen, by published protocols
    #[command(
        after_help = "Examples:\n  sidrec cold-start --items items.jsonl --interactions interactions.csv --protocol tiger --out cold\n  sidrec cold-start --items items.jsonl --interactions interactions.csv --protocol time --share 0.2 --methods counted --out cold-time"
    )]
    ColdStart(Box<ColdStartArgs>),
    /// Recommend to all users of a file
    #[command(
        after_help = "Examples:\n  sidrec recommend --run run --catalogue catalogue --histories interactions.csv --k 10 --out out.parquet\n  sidrec recommend --run run --catalogue catalogue --histories histories.jsonl --out out.csv --beam 100"
    )]
    Recommend(RecommendArgs),
    /// The retrieval server, with a demo page
    #[command(
        after_help = "Examples:\n  sidrec serve --run weights/demo/run --catalogue weights/demo/catalogue\n  sidrec serve --run run --catalogue catalogue --addr 0.0.0.0:8080 --token-file token --watch"
    )]
    Serve(Box<ServeArgs>),
    /// What this machine reaches, measured against the plain way in the same run
    #[command(
        subcommand,
        after_help = "Examples:\n  sidrec bench serve --run weights/demo/run --catalogue weights/demo/catalogue\n  sidrec bench serve --run run --catalogue catalogue --histories interactions.csv --json"
    )]
    Bench(BenchCommand),
    /// Kernels compiled, compared with their twins and timed on the GPU
    #[command(
        after_help = "Examples:\n  sidrec gpu-selftest --json\n  sidrec gpu-selftest --compile-only      # with SIDREC_NVRTC=FOLDER where NVRTC is not on the loader's path"
    )]
    GpuSelftest(gpu_selftest::SelfTestArgs),
    /// A trained model and its catalogue, small enough to hand on
    #[command(
        after_help = "Examples:\n  sidrec pack --run run --catalogue catalogue --out weights/shop\n  sidrec pack --run run --catalogue catalogue --out weights/shop --without-titles"
    )]
    Pack(PackArgs),
    /// Shell completions
    #[command(after_help = "Examples:\n  sidrec completions bash > sidrec.bash\n  sidrec completions zsh > _sidrec")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Args)]
struct DemoArgs {
    /// Directory with items.* and interactions.*; the generated catalogue without it
    #[arg(long, value_name = "DIR", env = "SIDREC_DATA")]
    data: Option<PathBuf>,
    /// Output directory; the result of an earlier demo is replaced
    #[arg(long, value_name = "DIR", default_value = "sidrec-demo", env = "SIDREC_OUT")]
    out: PathBuf,
    /// Everything random follows from it
    #[arg(long, default_value_t = 42, env = "SIDREC_SEED")]
    seed: u64,
    /// The smoke version: under a minute, numbers of no meaning
    #[arg(long)]
    quick: bool,
}

#[derive(Subcommand)]
enum DataCommand {
    /// Validate items and interactions and print their counts as JSON
    #[command(
        after_help = "Examples:\n  sidrec data check --items items.jsonl --interactions interactions.csv\n  sidrec data check --items items.parquet --interactions events.parquet --max-reject-fraction 0.01"
    )]
    Check(CheckArgs),
    /// Write the generated catalogue as files
    #[command(
        after_help = "Examples:\n  sidrec data make-demo --out shop\n  sidrec data make-demo --out shop --items 10000 --users 20000 --seed 7"
    )]
    MakeDemo(MakeDemoArgs),
    /// Write vectors for trials of size as Parquet
    #[command(
        after_help = "Examples:\n  sidrec data make-vectors --items 1000000 --out million.parquet\n  sidrec data make-vectors --items 10000000 --dim 64 --seed 1 --out ten.parquet"
    )]
    MakeVectors {
        /// New Parquet file with item_id and embedding
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Items
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        items: u32,
        /// Numbers of a vector
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=16_384))]
        dim: u32,
        /// Everything random follows from it
        #[arg(long, default_value_t = 42, env = "SIDREC_SEED")]
        seed: u64,
    },
}

#[derive(Args)]
struct CheckArgs {
    #[command(flatten)]
    items: ItemsArgs,
    /// Interactions: user_id, item_id, timestamp or position
    #[arg(long, value_name = "FILE", env = "SIDREC_INTERACTIONS")]
    interactions: PathBuf,
}

#[derive(Args)]
struct MakeDemoArgs {
    /// New directory
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Products
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u32).range(1..))]
    items: u32,
    /// Users
    #[arg(long, default_value_t = 6000, value_parser = clap::value_parser!(u32).range(1..))]
    users: u32,
    /// Everything random follows from it
    #[arg(long, default_value_t = 42, env = "SIDREC_SEED")]
    seed: u64,
}

#[derive(Args)]
pub(crate) struct ItemsArgs {
    /// Items: JSONL (.gz, .zst), CSV, TSV or Parquet with item_id and text fields
    #[arg(long, value_name = "FILE", env = "SIDREC_ITEMS")]
    items: PathBuf,
    /// Text of an item, e.g. "{title} {brand}"
    #[arg(long, value_name = "TEMPLATE", env = "SIDREC_TEXT")]
    text: Option<String>,
    #[command(flatten)]
    rejects: RejectArgs,
    /// Of rows with the same item_id and different content keep the last instead of stopping
    #[arg(long, value_name = "WHICH", value_parser = ["last"], env = "SIDREC_DEDUPE")]
    dedupe: Option<String>,
}

/// What is done with rows that cannot be used.
#[derive(Args)]
pub(crate) struct RejectArgs {
    /// Largest share of unusable rows before the run stops
    #[arg(long, value_name = "SHARE", default_value_t = 0.001, value_parser = share, env = "SIDREC_MAX_REJECT_FRACTION")]
    max_reject_fraction: f64,
    /// Where unusable rows are written
    #[arg(long, value_name = "FILE", env = "SIDREC_REJECTS")]
    rejects: Option<PathBuf>,
}

impl RejectArgs {
    pub(crate) fn options(&self) -> ReadOptions {
        let (max_reject_fraction, rejects_to) = (self.max_reject_fraction, self.rejects.clone());
        ReadOptions { max_reject_fraction, rejects_to, ..ReadOptions::default() }
    }
}

/// A number from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    let found = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    found.ok_or_else(|| "expected a number from 0 to 1".to_string())
}

impl ItemsArgs {
    pub(crate) fn path(&self) -> &Path {
        &self.items
    }

    pub(crate) fn options(&self) -> ReadOptions {
        ReadOptions { text_template: self.text.clone(), dedupe_last: self.dedupe.is_some(), ..self.rejects.options() }
    }

    pub(crate) fn read(&self) -> Result<Items> {
        let stage = Stage::new("read items", 0);
        let items = read_items(&self.items, &self.options())?;
        stage.done(&format!("{} items, {} rows rejected", items.keys.len(), items.rejected));
        Ok(items)
    }
}

#[derive(Args)]
struct EmbedArgs {
    #[command(flatten)]
    items: ItemsArgs,
    /// lsa, hashed, a Hugging Face folder, org/name[@revision], or http://… (a text-embeddings-inference server)
    #[arg(long, env = "SIDREC_ENCODER")]
    encoder: Option<String>,
    /// Everything random follows from it
    #[arg(long, default_value_t = 0, env = "SIDREC_SEED")]
    seed: u64,
    /// Output: .safetensors, .npy or .parquet
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Args)]
struct PackArgs {
    /// Run directory
    #[arg(long, value_name = "DIR", env = "SIDREC_RUN")]
    run: PathBuf,
    /// Catalogue directory
    #[arg(long, value_name = "DIR", env = "SIDREC_CATALOGUE")]
    catalogue: PathBuf,
    /// New directory; gets run/ and catalogue/
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Leave titles and other text of the items out
    #[arg(long)]
    without_titles: bool,
}

#[derive(Args)]
struct RunArgs {
    /// Run directory
    #[arg(long, value_name = "DIR", env = "SIDREC_RUN")]
    run: PathBuf,
    /// Catalogue directory
    #[arg(long, value_name = "DIR", env = "SIDREC_CATALOGUE")]
    catalogue: PathBuf,
    #[command(flatten)]
    ask: AskArgs,
}

/// How a trained model is asked.
#[derive(Args)]
struct AskArgs {
    /// Beams of the search
    #[arg(long, default_value_t = 50, env = "SIDREC_BEAM", value_parser = clap::value_parser!(u32).range(1..=1024))]
    beam: u32,
    #[command(flatten)]
    asking: AskingArgs,
}

/// What is settled once, before any list is asked for.
#[derive(Args)]
struct AskingArgs {
    /// Weight of the dense head in the search, 0 (codes alone) to 1; without it, the model's own
    #[arg(long, value_name = "SHARE", env = "SIDREC_GUIDE")]
    guide: Option<f32>,
    /// Share of all places that new items get, 0 to 1; without it, the model's own, and no more than three times their
    /// part of the catalogue (hybrid)
    #[arg(long, value_name = "SHARE", env = "SIDREC_NEW_SHARE")]
    new_share: Option<f64>,
    /// Histories whose encoding is kept for the next time they are asked for (rqt, tiger and hybrid on the
    /// processor)
    #[arg(long, value_name = "N", default_value_t = 0, env = "SIDREC_HISTORY_CACHE")]
    history_cache: usize,
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto", env = "SIDREC_DEVICE")]
    device: DeviceChoice,
    /// How the search keeps the weights of its decoder
    #[arg(long, value_enum, default_value = "f32", env = "SIDREC_WEIGHTS")]
    weights: WeightsArg,
}

impl AskingArgs {
    fn asking(&self) -> Asking {
        let Self { guide, new_share, history_cache, device, weights } = *self;
        Asking { guide, new_share, weights: weights.precision(), history_cache, device }
    }
}

/// Bits of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightsArg {
    /// As trained, four bytes
    F32,
    /// Two bytes, multiplied as such where the processor has AMX: about twice as fast there, slower than four elsewhere
    Bf16,
    /// One byte and a scale per output, multiplied as bytes: about twice as fast on processors with VNNI, faster with AMX
    Int8,
}

impl WeightsArg {
    pub(crate) fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
            Self::Int8 => Precision::Int8,
        }
    }
}

impl AskArgs {
    /// The model of `run` as it shall be asked.
    fn load(&self, run: &Path, catalogue: &Catalogue) -> Result<Trained> {
        let Trained { model, seed } = crate::jobs::train::load(run, catalogue)?;
        Ok(Trained { model: model.asked(self.asking.asking())?, seed })
    }
}

#[derive(Args)]
struct RecommendArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Histories: user_id and a list `history`, or interactions
    #[arg(long, value_name = "FILE")]
    histories: PathBuf,
    #[command(flatten)]
    rejects: RejectArgs,
    /// Items per user
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    k: u32,
    /// Output: .parquet, .csv or .jsonl
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Demo(args) => demo(args),
            Command::Data(DataCommand::Check(args)) => check(&args),
            Command::Data(DataCommand::MakeDemo(args)) => make_demo(&args),
            Command::Data(DataCommand::MakeVectors { out, items, dim, seed }) => {
                require_writable("--out", &out, &["parquet"])?;
                crate::demo::vectors::write(&out, items as usize, dim as usize, seed)
            }
            Command::Embed(args) => embed(&args),
            Command::Sids(command) => crate::sids::run(command),
            Command::Train(args) => train_model(&args),
            Command::Eval(args) => eval(&args),
            Command::ColdStart(args) => cold_start::cold_start(&args),
            Command::Recommend(args) => recommend_all(&args),
            Command::Serve(args) => serve::serve(*args),
            Command::Bench(command) => crate::bench::run(command),
            Command::GpuSelftest(args) => gpu_selftest::gpu_selftest(&args),
            Command::Pack(args) => pack::pack(&args.run, &args.catalogue, &args.out, !args.without_titles),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "sidrec", &mut script);
                print(&String::from_utf8_lossy(&script))
            }
        }
    }
}

/// Writes data to standard output; a reader that has gone away ends the program quietly.
pub(crate) fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

pub(crate) fn json_line(value: &impl serde::Serialize) -> Result<()> {
    print(&(serde_json::to_string(value)? + "\n"))
}

fn demo(args: DemoArgs) -> Result<()> {
    let mut command = "sidrec demo".to_string();
    if let Some(data) = &args.data {
        let name = data.file_name().map_or("DIR".into(), |n| n.to_string_lossy());
        command = format!("{command} --data {name}");
    }
    command = format!("{command} --seed {}", args.seed);
    if args.quick {
        command += " --quick";
    }
    let job = DemoJob { data: args.data, out: args.out, seed: args.seed, quick: args.quick };
    crate::jobs::demo::run(&job, &command, &Interrupt::install()?)?;
    Ok(())
}

fn check(args: &CheckArgs) -> Result<()> {
    let items = args.items.read()?;
    let interactions = read(&args.interactions, &items, &args.items.options())?;
    let lengths: Vec<usize> = interactions.histories.iter().map(<[_]>::len).collect();
    json_line(&serde_json::json!({
        "items": items.keys.len(),
        "users": interactions.users.len(),
        "interactions": interactions.count,
        "history": {
            "min": lengths.iter().min(),
            "mean": interactions.count as f64 / lengths.len().max(1) as f64,
            "max": lengths.iter().max(),
        },
        "has_time": interactions.has_time,
        "unknown_items": interactions.unknown_items,
        "rejected": { "items": items.rejected, "interactions": interactions.rejected },
        "duplicates": items.duplicates,
        "items_without_text": items.texts.iter().filter(|t| t.render().is_empty()).count(),
    }))
}

fn read(path: &Path, items: &Items, options: &ReadOptions) -> Result<Interactions> {
    let stage = Stage::new("read interactions", 0);
    let interactions = read_interactions(path, &items.keys, options)?;
    stage.done(&format!("{} of {} users", interactions.count, interactions.users.len()));
    Ok(interactions)
}

fn make_demo(args: &MakeDemoArgs) -> Result<()> {
    require_empty(&args.out)?;
    let data =
        crate::demo::generate(&DemoConfig { items: args.items as usize, users: args.users as usize, seed: args.seed });
    crate::demo::write(&args.out, &data)?;
    json_line(&serde_json::json!({
        "items": data.items.len(),
        "interactions": data.events.len(),
        "out": [find_in(&args.out, "items")?, find_in(&args.out, "interactions")?],
    }))
}

fn embed(args: &EmbedArgs) -> Result<()> {
    require_writable("--out", &args.out, &["safetensors", "npy", "parquet"])?;
    let items = args.items.read()?;
    let source = build_sids::Content::choose(&items, None, args.encoder.as_deref(), args.seed)?;
    let vectors = source.vectors(&items)?;
    write_vectors(&args.out, &vectors, &items.keys)?;
    json_line(&serde_json::json!({ "items": vectors.rows(), "dim": vectors.dim, "encoder": source.name() }))
}

fn recommend_all(args: &RecommendArgs) -> Result<()> {
    require_writable("--out", &args.out, &["parquet", "csv", "jsonl"])?;
    let catalogue = Catalogue::open(&args.run.catalogue)?;
    let ask = &args.run.ask;
    let trained = ask.load(&args.run.run, &catalogue)?;
    let histories = read_histories(&args.histories, &catalogue.keys, &args.rejects.options())?;
    let (k, beam) = (args.k as usize, ask.beam as usize);
    let interrupt = Interrupt::install()?;
    let asked = recommend::Asked { k, beam, run: &args.run.run, asking: ask.asking.asking() };
    recommend::recommend_to(&args.out, &trained.model, &catalogue, &histories, &asked, &|| interrupt.signal())
}
