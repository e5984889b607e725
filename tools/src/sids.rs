//! The commands under `sidrec sids`.

use crate::catalogue::{Catalogue, require_empty};
use crate::cli::{ItemsArgs, json_line, print};
use crate::config::Layers;
use crate::error::{Fault, fault};
use crate::gpu::{self, DeviceChoice};
use crate::interrupt::Interrupt;
use crate::jobs::behavior::{WINDOW, behavior};
use crate::jobs::build_sids::{self, Fit, Policy};
use crate::jobs::sources::{Joined, Sources};
use crate::jobs::{change_sids, inspect, inspect_page, stream};
use crate::table::{ReadOptions, read_interactions};
use anyhow::Result;
use beam::cuda::Device;
use clap::{Args, Subcommand, ValueEnum};
use rqvae::{Method, QuantizerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Quantisers by their names.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum MethodArg {
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

#[derive(Subcommand)]
pub(crate) enum SidsCommand {
    /// Fit the quantiser, encode, resolve collisions, build the index
    #[command(
        after_help = "Examples:\n  sidrec sids build --items items.jsonl --out catalogue\n  sidrec sids build --items items.jsonl --embeddings vectors.npy --method rqvae --collisions min-cost --out catalogue\n  sidrec sids build --items items.jsonl --embeddings vectors.npy --source lsa --interactions interactions.csv --method rqvae --codebook-size 512,256,128 --set rqvae.progressive=true --set rqvae.contrast_weight=10 --out sid-v2\n  sidrec sids build --items huge.parquet --stream --out shards"
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
    /// Where to fit and encode: auto takes a GPU, where there is one, for rqvae alone; cuda takes it for every method
    #[arg(long, value_enum, default_value = "auto", env = "SIDREC_DEVICE")]
    device: DeviceChoice,
    /// Codes per item, the suffix left out
    #[arg(long, default_value_t = 3, env = "SIDREC_LEVELS")]
    levels: usize,
    /// Codes per level; one number, or one for each level, separated by commas
    #[arg(long, default_value = "256", value_delimiter = ',', env = "SIDREC_CODEBOOK_SIZE")]
    codebook_size: Vec<u32>,
    /// Further numbers of the quantiser as TOML, e.g. a table [rqvae] with estimator = "rotation-trick"
    #[arg(long, value_name = "FILE", env = "SIDREC_CONFIG")]
    config: Option<PathBuf>,
    /// Single value over the file, e.g. rqvae.progressive=true; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// A further source of content beside the first, a file of vectors or an encoder; may be repeated. The RQ-VAE gives
    /// each source an encoder of its own
    #[arg(long = "source", value_name = "FILE|ENCODER")]
    sources: Vec<String>,
    /// Interactions that tell which items occur together, for rqvae.contrast_weight and rqvae.align_weight; the last two
    /// of every user are left out, as in training
    #[arg(long, value_name = "FILE", env = "SIDREC_INTERACTIONS")]
    interactions: Option<PathBuf>,
    /// Items at most so many places apart in a history occur together
    #[arg(long, default_value_t = WINDOW, env = "SIDREC_WINDOW")]
    window: usize,
    /// Collaborative vectors for rqvae.align_weight, as wide as a latent; made from the interactions without it
    #[arg(long, value_name = "FILE", env = "SIDREC_COLLABORATIVE")]
    collaborative: Option<PathBuf>,
    /// Print every value of the quantiser with its origin and stop
    #[arg(long)]
    print_config: bool,
    /// What happens to items with equal codes
    #[arg(long, value_enum, default_value = "suffix", env = "SIDREC_COLLISIONS")]
    collisions: Policy,
    /// Everything random follows from it
    #[arg(long, default_value_t = 0, env = "SIDREC_SEED")]
    seed: u64,
    /// New catalogue directory
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// For tables larger than memory: fit on a part, encode and write in shards, without an index; from one source and
    /// without interactions
    #[arg(long, conflicts_with_all = ["embeddings", "collisions", "sources", "interactions", "window", "collaborative"])]
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
    /// For every further source of the catalogue, in their order: a file of vectors or its encoder
    #[arg(long = "source", value_name = "FILE|ENCODER")]
    sources: Vec<String>,
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
            let out = new_version(args.out, &args.catalogue)?;
            change_sids::frozen_quantizer(&args.catalogue)?;
            let items = args.items.read()?;
            let (embeddings, encoder) = (args.embeddings.as_deref(), args.encoder.as_deref());
            let saved = args.catalogue.join("encoder");
            let sources = Sources::reopen(&items, &saved, embeddings, encoder, &args.sources)?;
            json_line(&change_sids::add(&args.catalogue, &items, &sources.vectors(&items)?.vectors, &out)?)
        }
        SidsCommand::Remove(args) => {
            let out = new_version(args.out, &args.catalogue)?;
            json_line(&change_sids::remove(&args.catalogue, &args.items.read()?.keys, &out)?)
        }
    }
}

/// Where the next version of `catalogue` goes: `out`, or else beside it.
fn new_version(out: Option<PathBuf>, catalogue: &Path) -> Result<PathBuf> {
    if let Some(out) = out {
        require_empty(&out)?;
        return Ok(out);
    }
    let next = change_sids::next_version(catalogue);
    require_empty(&next).map_err(|e| e.context("change the newest version, or name another with --out"))?;
    Ok(next)
}

/// The numbers of the quantiser: defaults, then the file, then single options, each with its origin.
fn layers(args: &BuildArgs) -> Result<Layers> {
    let mut layers = Layers::preset(&QuantizerConfig::default(), "default")?;
    if let Some(path) = &args.config {
        layers.file(path)?;
    }
    let method = args.method.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string());
    layers.set(&format!("method={method:?}"), "--method")?;
    layers.set(&format!("levels={}", args.levels), "--levels")?;
    layers.set(&format!("seed={}", args.seed), "--seed")?;
    match args.codebook_size[..] {
        [size] => layers.set(&format!("codebook_size={size}"), "--codebook-size")?,
        _ => layers.set(&format!("codebook_sizes={:?}", args.codebook_size), "--codebook-size")?,
    }
    for assignment in &args.set {
        layers.set(assignment, "--set")?;
    }
    Ok(layers)
}

fn build(args: &BuildArgs) -> Result<()> {
    let layers = layers(args)?;
    let mut config: QuantizerConfig = layers.config()?;
    config.validate().map_err(|e| fault(Fault::Usage, e))?;
    if args.print_config {
        return print(&layers.print());
    }
    let device = device(args.device, config.method)?;
    if args.stream {
        return build_shards(args, &config, device.as_ref());
    }
    require_empty(&args.out)?;
    if args.interactions.is_some() && config.rqvae.contrast_weight == 0.0 && config.rqvae.align_weight == 0.0 {
        eprintln!("--interactions changes nothing here: rqvae.contrast_weight and rqvae.align_weight are 0");
    }
    let items = args.items.read()?;
    let (embeddings, encoder) = (args.embeddings.as_deref(), args.encoder.as_deref());
    let source = Sources::choose(&items, embeddings, encoder, &args.sources, args.seed)?;
    let Joined { vectors: content, widths } = source.vectors(&items)?;
    if widths.len() > 1 && config.rqvae.sources.is_empty() {
        config.rqvae.sources = widths;
    }
    let read = |path: &Path| read_interactions(path, &items.keys, &ReadOptions::default());
    let interactions = args.interactions.as_deref().map(read).transpose()?;
    let (collaborative, latent_dim) = (args.collaborative.as_deref(), config.rqvae.latent_dim);
    let behavior = behavior(&items.keys, interactions.as_ref(), args.window, collaborative, latent_dim)?;
    let name = source.name();
    let how = Fit { policy: args.collisions, behavior, device };
    let mut built = build_sids::build_with(&items, &content, &name, &config, &how, &|_| true)?;
    built.catalogue.origin.encoder_digest = source.digest();
    let quantizer = built.quantizer.as_ref();
    built.catalogue.write(&args.out, &built.residual_norms, quantizer, &|dir| source.save(dir))?;
    eprintln!("written: {}", args.out.display());
    let report = inspect::inspection(&built.catalogue);
    if args.json { json_line(&report) } else { print(&inspect::describe(&report)) }
}

/// Where a quantiser of that method is fitted and encodes, `None` for the processor.
pub(crate) fn device(choice: DeviceChoice, method: Method) -> Result<Option<Arc<dyn Device>>> {
    match choice {
        DeviceChoice::Cuda => gpu::device(choice),
        choice if method == Method::RqVae => gpu::device(choice),
        // Up to some million items k-means is done before a device has begun, and is the same on every machine.
        _ => Ok(None),
    }
}

fn build_shards(args: &BuildArgs, config: &QuantizerConfig, device: Option<&Arc<dyn Device>>) -> Result<()> {
    let job = stream::StreamJob {
        items: args.items.path(),
        options: args.items.options(),
        encoder: args.encoder.as_deref(),
        quantizer: config,
        device,
        fit_items: args.fit_items,
        shard_items: args.shard_items,
        out: &args.out,
        resume: args.resume,
    };
    let manifest = stream::build(&job, Some(&Interrupt::install()?))?;
    if args.json { json_line(&manifest) } else { print(&inspect::describe(&manifest.inspection())) }
}
