//! The commands under `sidrec sids`.

use crate::catalogue::{Catalogue, require_empty};
use crate::cli::{ItemsArgs, json_line, print};
use crate::error::{Fault, fault};
use crate::interrupt::Interrupt;
use crate::jobs::build_sids::{self, Policy};
use crate::jobs::{change_sids, inspect, inspect_page, stream};
use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use rqvae::{Method, QuantizerConfig};
use std::path::PathBuf;

#[derive(Clone, Copy, ValueEnum)]
enum MethodArg {
    /// Residual k-means
    Rkmeans,
    /// Residual k-means with clusters of nearly equal size
    Balanced,
    /// Residual-quantised variational autoencoder
    Rqvae,
    /// k-means inside clusters: an ID is a path, filled up with zeros
    Hkmeans,
    /// Optimised product quantisation: a rotation, one k-means per part
    Opq,
    /// Sides of random hyperplanes: a control
    Lsh,
    /// Codes that say nothing about the content: a control
    Random,
}

impl MethodArg {
    fn method(self) -> Method {
        match self {
            Self::Rkmeans => Method::ResidualKmeans,
            Self::Balanced => Method::Balanced,
            Self::Rqvae => Method::RqVae,
            Self::Hkmeans => Method::HierarchicalKmeans,
            Self::Opq => Method::Opq,
            Self::Lsh => Method::Lsh,
            Self::Random => Method::Random,
        }
    }
}

#[derive(Subcommand)]
pub(crate) enum SidsCommand {
    /// Fit the quantiser, encode, resolve collisions, build the index
    #[command(
        after_help = "Examples:\n  sidrec sids build --items items.jsonl --out catalogue\n  sidrec sids build --items items.jsonl --embeddings vectors.npy --method rqvae --collisions min-cost --out catalogue\n  sidrec sids build --items huge.parquet --stream --out shards"
    )]
    Build(BuildArgs),
    /// Health of the IDs: usage, perplexity, collisions, error
    #[command(
        after_help = "Examples:\n  sidrec sids inspect catalogue --json\n  sidrec sids inspect catalogue --out pictures"
    )]
    Inspect {
        /// Catalogue directory
        catalogue: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// New directory for a page with pictures and the tree of IDs
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Semantic IDs of items
    #[command(
        after_help = "Examples:\n  sidrec sids lookup catalogue P00001\n  sidrec sids lookup catalogue P00001 P00002"
    )]
    Lookup {
        /// Catalogue directory
        catalogue: PathBuf,
        /// Item ids
        #[arg(required = true)]
        items: Vec<String>,
    },
    /// Items under a prefix
    #[command(after_help = "Examples:\n  sidrec sids tree catalogue 12\n  sidrec sids tree catalogue 12,7")]
    Tree {
        /// Catalogue directory
        catalogue: PathBuf,
        /// Codes separated by commas; the root without it
        #[arg(default_value = "")]
        prefix: String,
    },
    /// New items into a new version of a catalogue; existing IDs never change
    #[command(
        after_help = "Examples:\n  sidrec sids add catalogue --items new.jsonl\n  sidrec sids add catalogue --items new.jsonl --embeddings new.npy --out catalogue-june"
    )]
    Add(AddArgs),
    /// Items out of a new version of a catalogue: they keep their IDs and are never found
    #[command(
        after_help = "Examples:\n  sidrec sids remove catalogue --items gone.csv\n  sidrec sids remove catalogue --items gone.csv --out catalogue-june"
    )]
    Remove(RemoveArgs),
}

#[derive(Args)]
pub(crate) struct BuildArgs {
    #[command(flatten)]
    items: ItemsArgs,
    /// Vectors to quantise instead of encoding the text: .npy, .safetensors or .parquet
    #[arg(long, value_name = "FILE", env = "SIDREC_EMBEDDINGS")]
    embeddings: Option<PathBuf>,
    /// lsa (default), hashed, a Hugging Face folder, org/name[@revision], or http://… (a text-embeddings-inference server)
    #[arg(long, env = "SIDREC_ENCODER")]
    encoder: Option<String>,
    /// Quantiser
    #[arg(long, value_enum, default_value = "rkmeans", env = "SIDREC_METHOD")]
    method: MethodArg,
    /// Codes per item, the suffix left out
    #[arg(long, default_value_t = 3, env = "SIDREC_LEVELS")]
    levels: usize,
    /// Codes per level
    #[arg(long, default_value_t = 256, env = "SIDREC_CODEBOOK_SIZE")]
    codebook_size: u32,
    /// Further numbers of the quantiser as TOML, e.g. a table [rqvae] with estimator = "rotation-trick"
    #[arg(long, value_name = "FILE", env = "SIDREC_CONFIG")]
    config: Option<PathBuf>,
    /// What happens to items with equal codes
    #[arg(long, value_enum, default_value = "suffix", env = "SIDREC_COLLISIONS")]
    collisions: Policy,
    /// Everything random follows from it
    #[arg(long, default_value_t = 0, env = "SIDREC_SEED")]
    seed: u64,
    /// New catalogue directory
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// For tables larger than memory: fit on a part, encode and write in shards, without an index
    #[arg(long, conflicts_with_all = ["embeddings", "collisions"])]
    stream: bool,
    /// With --stream: go on with a build that was interrupted
    #[arg(long, requires = "stream")]
    resume: bool,
    /// With --stream: items that quantiser and encoder are fitted on, those with the smallest hashes of their ids
    #[arg(long, value_name = "N", default_value_t = 262_144, requires = "stream")]
    fit_items: usize,
    /// With --stream: items of a shard, and of what is held in memory at a time
    #[arg(long, value_name = "N", default_value_t = 500_000, requires = "stream")]
    shard_items: usize,
    /// Print the health of the IDs as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct AddArgs {
    /// Catalogue directory
    catalogue: PathBuf,
    #[command(flatten)]
    items: ItemsArgs,
    /// Vectors of the new items, of the kind the catalogue was built on: .npy, .safetensors or .parquet
    #[arg(long, value_name = "FILE", env = "SIDREC_EMBEDDINGS")]
    embeddings: Option<PathBuf>,
    /// Where the encoder is that the catalogue was built with, if it has moved: folder, org/name@revision or http://…
    #[arg(long, env = "SIDREC_ENCODER")]
    encoder: Option<String>,
    /// Directory of the new version; the catalogue's name with the next version number without it
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct RemoveArgs {
    /// Catalogue directory
    catalogue: PathBuf,
    #[command(flatten)]
    items: ItemsArgs,
    /// Directory of the new version; the catalogue's name with the next version number without it
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(command: SidsCommand) -> Result<()> {
    match command {
        SidsCommand::Build(args) => build(&args),
        SidsCommand::Inspect { catalogue, json, out } => {
            if let Some(shards) = stream::ShardsManifest::of(&catalogue)? {
                if out.is_some() {
                    return Err(fault(Fault::Usage, "--out: pictures need a catalogue; this is a table in shards"));
                }
                let report = shards.inspection();
                return if json { json_line(&report) } else { print(&inspect::describe(&report)) };
            }
            let catalogue = Catalogue::open(&catalogue)?;
            if let Some(out) = out {
                inspect_page::write(&catalogue, &out)?;
            }
            let report = inspect::inspection(&catalogue);
            if json { json_line(&report) } else { print(&inspect::describe(&report)) }
        }
        SidsCommand::Lookup { catalogue, items } => print(&inspect::lookup(&Catalogue::open(&catalogue)?, &items)?),
        SidsCommand::Tree { catalogue, prefix } => print(&inspect::tree(&Catalogue::open(&catalogue)?, &prefix)?),
        SidsCommand::Add(args) => {
            let out = args.out.unwrap_or_else(|| change_sids::next_version(&args.catalogue));
            require_empty(&out)?;
            let items = args.items.read()?;
            let (embeddings, encoder) = (args.embeddings.as_deref(), args.encoder.as_deref());
            let saved = args.catalogue.join("encoder");
            let source = build_sids::Content::reopen(&items, &saved, embeddings, encoder)?;
            json_line(&change_sids::add(&args.catalogue, &items, &source.vectors(&items)?, &out)?)
        }
        SidsCommand::Remove(args) => {
            let out = args.out.unwrap_or_else(|| change_sids::next_version(&args.catalogue));
            require_empty(&out)?;
            json_line(&change_sids::remove(&args.catalogue, &args.items.read()?.keys, &out)?)
        }
    }
}

fn build(args: &BuildArgs) -> Result<()> {
    require_empty(&args.out)?;
    let base = match &args.config {
        None => QuantizerConfig::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(rqvae::Error::io(path))?;
            toml::from_str(&text).map_err(|e| fault(Fault::Usage, format!("{}: {e}", path.display())))?
        }
    };
    let config = QuantizerConfig {
        method: args.method.method(),
        levels: args.levels,
        codebook_size: args.codebook_size,
        seed: args.seed,
        ..base
    };
    config.validate().map_err(|e| fault(Fault::Usage, e))?;
    if args.stream {
        return build_shards(args, &config);
    }
    let items = args.items.read()?;
    let source = build_sids::Content::choose(&items, args.embeddings.as_deref(), args.encoder.as_deref(), args.seed)?;
    let content = source.vectors(&items)?;
    let mut built = build_sids::build_with(&items, &content, &source.name(), &config, args.collisions, &|_| true)?;
    built.catalogue.origin.encoder_digest = source.record().digest;
    let quantizer = built.quantizer.as_ref();
    built.catalogue.write(&args.out, &built.residual_norms, quantizer, &|dir| source.save(dir))?;
    let report = inspect::inspection(&built.catalogue);
    if args.json { json_line(&report) } else { print(&inspect::describe(&report)) }
}

fn build_shards(args: &BuildArgs, config: &QuantizerConfig) -> Result<()> {
    let job = stream::StreamJob {
        items: args.items.path(),
        options: args.items.options(),
        encoder: args.encoder.as_deref(),
        quantizer: config,
        fit_items: args.fit_items,
        shard_items: args.shard_items,
        out: &args.out,
        resume: args.resume,
    };
    let manifest = stream::build(&job, Some(&Interrupt::install()?))?;
    if args.json { json_line(&manifest) } else { print(&inspect::describe(&manifest.inspection())) }
}
