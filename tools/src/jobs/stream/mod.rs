//! SIDs for tables larger than memory: fit on a sample, encode part by part, merge, write in shards.
//!
//! ```text
//! table --once--> the items with the smallest id hashes -> encoder, quantiser
//! table --again-> parts -> runs sorted by code (disk) -> merge: numbers among equals -> sids/part-*.parquet
//! ```
//!
//! Memory holds the sample, one part and one shard, whatever the number of items. Everything is written into
//! `.NAME.building` beside the result and renamed at the end; a build that was killed goes on with the part, or the
//! shard, that it had not finished, and ends with the same bytes. The shards, one after another, hold what the table
//! of an in-memory build holds when the sample covers all items.
//! Paper: none; sorted runs and their merge are Knuth's (The Art of Computer Programming 3, sec. 5.4).

mod manifest;
mod merge;
mod parts;
mod plan;
mod run_file;
mod sample;
#[cfg(test)]
mod tests;

pub(crate) use manifest::FORMAT as SHARDS;
pub use manifest::ShardsManifest;

use super::build_sids::{self, MAX_SUFFIX};
use crate::bench::peak_rss_bytes;
use crate::catalogue::{Collisions, Origin, files_below, require_empty};
use crate::content::Encoder;
use crate::error::{Fault, bad_data, cannot_create, fault};
use crate::interrupt::Interrupt;
use crate::progress::Stage;
use crate::report::TokenizerReport;
use crate::table::{ItemStream, ReadOptions, SidsMeta};
use anyhow::Result;
use beam::cuda::Device;
use parts::{Encoders, Sizes, Summary, list_path, run_path};
use plan::{Fitted, Workplace};
use rqvae::{Behavior, QuantizerConfig, SidEncoder, SidSpec, Vectors, file_digest, suffix_room};
use sample::Sample;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const FITTED: &str = "fitted.json";

/// A build.
#[derive(Clone)]
pub struct StreamJob<'a> {
    /// The table of items.
    pub items: &'a Path,
    /// How it is read.
    pub options: ReadOptions,
    /// Content encoder; the `embedding` column where there is one and no encoder is named.
    pub encoder: Option<&'a str>,
    /// The quantiser.
    pub quantizer: &'a QuantizerConfig,
    /// Where the quantiser is fitted and encodes, `None` for the processor.
    pub device: Option<&'a Arc<dyn Device>>,
    /// Most items that quantiser and encoder are fitted on.
    pub fit_items: usize,
    /// Items of a part and of a shard.
    pub shard_items: usize,
    /// New directory.
    pub out: &'a Path,
    /// Whether to go on with an unfinished build.
    pub resume: bool,
}

/// Builds the table.
///
/// # Errors
/// Bad data: unusable rows, an item twice, too many items with equal codes. Cannot create the output. Interrupted:
/// what is done stays, for `resume`.
pub fn build(job: &StreamJob, interrupt: Option<&Interrupt>) -> Result<ShardsManifest> {
    if let Some(done) = finished(job)? {
        eprintln!("built already: {}", job.out.display());
        return Ok(done);
    }
    require_empty(job.out)?;
    if job.fit_items == 0 || job.shard_items == 0 {
        return Err(fault(Fault::Usage, "--fit-items and --shard-items: expected 1 or more"));
    }
    if job.options.dedupe_last {
        let reason =
            "--dedupe last: a stream has written an item before it meets the next of that name; build without --stream";
        return Err(fault(Fault::Usage, reason));
    }
    let stopped = || match interrupt.and_then(Interrupt::signal) {
        None => Ok(()),
        Some(signal) => Err(fault(Fault::Interrupted(signal), "interrupted; go on with --resume")),
    };
    let stream = ItemStream::open(job.items, &job.options, job.encoder.is_some())?;
    let place = Workplace::enter(job)?;
    if let Some(manifest) = ShardsManifest::of(&place.dir)? {
        place.finish(job.out)?;
        return Ok(manifest);
    }
    let sizes = Sizes::of(job.shard_items);
    let fitted = fit(job, &place, &stream, sizes, &stopped)?;
    let quantizer = rqvae::load_quantizer(&place.dir.join("quantizer"))?;
    let encoder =
        if stream.has_vectors() { None } else { Some(Encoder::reopen(&place.dir.join("encoder"), job.encoder)?) };
    let content = encoder.as_ref().map(Encoder::content);
    let began = Instant::now();
    let how = Encoders { content, quantizer: quantizer.as_ref(), device: job.device };
    let parts = parts::encode(&place, &stream, &how, &fitted, sizes, &stopped)?;
    let encoded = began.elapsed().as_secs_f64();

    let sum = |of: &dyn Fn(&Summary) -> u64| parts.iter().map(of).sum::<u64>();
    let first: Vec<String> =
        parts.iter().flat_map(|part| part.first_rejects.iter().take(10).cloned()).take(10).collect();
    stream.refuse_many(sum(&|part| part.rejected), sum(&|part| part.rows), &first)?;
    let began = Instant::now();
    let mut stage = Stage::new("write shards", sum(&|part| part.items));
    let levels = quantizer.codebook_sizes().len();
    let files = |path: fn(&Path, usize) -> PathBuf, digest: fn(&Summary) -> &String| -> Vec<(PathBuf, String)> {
        parts.iter().enumerate().map(|(at, part)| (path(&place.dir, at), digest(part).clone())).collect()
    };
    let duplicates = merge::repeated(&files(list_path, |part| &part.ids), job.items)?;
    let runs = files(run_path, |part| &part.run);
    stopped()?;
    let groups = merge::count(&runs, levels, MAX_SUFFIX)?;
    let suffix = suffix_room(groups.largest as u32, MAX_SUFFIX);
    let spec = SidSpec { codebook_sizes: quantizer.codebook_sizes().to_vec(), suffix_size: Some(suffix) };
    let origin = origin(job, &parts, &fitted, quantizer.as_ref(), encoder.as_ref(), groups);
    let meta = SidsMeta {
        method: origin.method.clone(),
        encoder: origin.encoder.clone(),
        quantizer_digest: file_digest(&place.dir.join("quantizer/quantizer.safetensors"))?,
        content_digest: String::new(),
        seed: origin.seed,
    };
    let integer = parts.iter().all(|part| part.integer);
    let shards =
        merge::write_shards(&runs, &spec, integer, &meta, (place.dir.as_path(), job.shard_items), &mut |done| {
            stage.at(done, groups.items, "");
            stopped()
        })?;
    stage.done(&format!("{} items in {shards} shards", groups.items));

    let mut digests = BTreeMap::new();
    for folder in ["encoder", "quantizer", "sids"] {
        for path in files_below(&place.dir.join(folder))? {
            let name = path.strip_prefix(&place.dir)?.to_string_lossy().replace('\\', "/");
            digests.insert(name, file_digest(&path)?);
        }
    }
    let seconds = [
        ("sample", fitted.sample_seconds),
        ("fit", fitted.fit_seconds),
        ("encode", encoded),
        ("write", began.elapsed().as_secs_f64()),
    ];
    let manifest = ShardsManifest {
        format: manifest::FORMAT.into(),
        version: manifest::VERSION,
        items: groups.items,
        health: health(&parts, &origin, &spec, groups),
        spec,
        shards,
        fit_items: fitted.items,
        rejected: sum(&|part| part.rejected),
        duplicates,
        origin,
        seconds: seconds.map(|(stage, seconds)| (stage.to_owned(), seconds)).into(),
        peak_rss_bytes: peak_rss_bytes(),
        files: digests,
    };
    rqvae::write_atomic(&place.dir.join("manifest.json"), &serde_json::to_vec_pretty(&manifest)?)?;
    place.finish(job.out)?;
    Ok(manifest)
}

/// What an earlier attempt has finished, where this one would only go on with it.
fn finished(job: &StreamJob) -> Result<Option<ShardsManifest>> {
    if !job.resume {
        return Ok(None);
    }
    let method = serde_json::to_value(job.quantizer.method)?;
    let asked = (job.quantizer.sizes(), job.quantizer.seed);
    let same = |done: &ShardsManifest| {
        method == done.origin.method.as_str() && asked == (done.spec.codebook_sizes.clone(), done.origin.seed)
    };
    Ok(ShardsManifest::of(job.out)?.filter(same))
}

/// Draws the sample and fits, unless an earlier attempt has.
fn fit(
    job: &StreamJob,
    place: &Workplace,
    stream: &ItemStream,
    sizes: Sizes,
    stopped: &dyn Fn() -> Result<()>,
) -> Result<Fitted> {
    if let Some(fitted) = place.read(FITTED)? {
        return Ok(fitted);
    }
    let mut stage = Stage::new("draw items to fit on", 0);
    let sample = sample::draw(stream, job.fit_items, sizes.batch, &mut stage, stopped)?;
    let seed = job.quantizer.seed;
    let folder = |name: &str| -> Result<PathBuf> {
        let dir = place.dir.join(name);
        fs::create_dir_all(&dir).map_err(|e| cannot_create(&dir, e))?;
        Ok(dir)
    };
    let content = match sample {
        Sample::Vectors { dim, data } => {
            let none = || bad_data(format!("{}: no items in it", job.items.display()));
            if data.is_empty() {
                return Err(refused(stream, job, sizes)?.unwrap_or_else(none));
            }
            let record = serde_json::json!({ "encoder": "embedding column", "kind": "column" });
            rqvae::write_atomic(&folder("encoder")?.join("encoder.json"), &serde_json::to_vec_pretty(&record)?)?;
            Vectors::new(dim, data)?
        }
        Sample::Texts(texts) if texts.is_empty() => {
            let none = || bad_data(format!("{}: no items in it", job.items.display()));
            return Err(refused(stream, job, sizes)?.unwrap_or_else(none));
        }
        Sample::Texts(texts) => {
            let encoder = Encoder::choose(job.encoder, &|| texts.clone(), seed)?;
            encoder.save(&folder("encoder")?)?;
            encoder.content().encode(&texts, &mut |_| ())?
        }
    };
    let sample_seconds = stage.done(&format!("{} items x {}", content.rows(), content.dim));
    let mut stage = Stage::new("fit quantiser", 0);
    let quantizer = build_sids::fit(job.quantizer, &content, &Behavior::default(), job.device, &mut |p| {
        stage.at(p.done as u64, p.total as u64, p.stage);
    })?;
    quantizer.save(&folder("quantizer")?)?;
    let mut mean = vec![0f64; content.dim];
    for row in content.data.chunks_exact(content.dim) {
        mean.iter_mut().zip(row).for_each(|(mean, &x)| *mean += f64::from(x) / content.rows() as f64);
    }
    let fit_seconds = stage.done(quantizer.method());
    let fitted = Fitted { dim: content.dim, items: content.rows(), mean, sample_seconds, fit_seconds };
    place.write(FITTED, &fitted)?;
    Ok(fitted)
}

/// What is wrong with a table without one usable item, where its rows say so.
fn refused(stream: &ItemStream, job: &StreamJob, sizes: Sizes) -> Result<Option<anyhow::Error>> {
    let (mut rejected, mut rows, mut first) = (0, 0, Vec::new());
    stream.read(0, sizes.batch, None, true, &mut |batch| {
        rejected += batch.rejected;
        rows += batch.rows;
        first.extend(batch.first_rejects);
        first.truncate(10);
        Ok(())
    })?;
    let _ = fs::remove_dir_all(plan::folder_of(job.out));
    Ok(stream.refuse_many(rejected, rows, &first).err())
}

fn origin(
    job: &StreamJob,
    parts: &[Summary],
    fitted: &Fitted,
    quantizer: &dyn SidEncoder,
    encoder: Option<&Encoder>,
    groups: merge::Groups,
) -> Origin {
    let total = |of: fn(&Summary) -> f64| parts.iter().map(of).sum::<f64>();
    let items: u64 = parts.iter().map(|part| part.items).sum();
    // The spread about the mean of the fit, less what that mean is away from the mean of all.
    let away = (0..fitted.dim).map(|d| parts.iter().filter_map(|part| part.sum.get(d)).sum::<f64>().powi(2));
    let spread = total(|part| part.spread) - away.sum::<f64>() / items.max(1) as f64;
    let errors = total(|part| part.errors);
    Origin {
        method: quantizer.method().to_string(),
        encoder: encoder.map_or_else(|| "embedding column".to_string(), |encoder| encoder.record().encoder.clone()),
        encoder_digest: encoder.map_or_else(String::new, |encoder| encoder.record().digest.clone()),
        seed: job.quantizer.seed,
        reconstruction_mse: errors / (items.max(1) as f64 * fitted.dim as f64),
        relative_error: if spread > 0.0 { errors / spread } else { 0.0 },
        fit_seconds: fitted.fit_seconds,
        encode_items_per_second: items as f64 / total(|part| part.encode_seconds).max(1e-9),
        collisions: Some(Collisions {
            policy: "suffix".to_string(),
            unique_prefixes_before: groups.unique as usize,
            max_group_before: groups.largest as usize,
            moved: 0,
            relative_error: None,
        }),
    }
}

fn health(parts: &[Summary], origin: &Origin, spec: &SidSpec, groups: merge::Groups) -> TokenizerReport {
    let (mut usage, mut perplexity) = (Vec::new(), Vec::new());
    let total: u64 = parts.iter().map(|part| part.items).sum();
    for (level, &size) in spec.codebook_sizes.iter().enumerate() {
        let count = |code: usize| parts.iter().filter_map(|part| part.counts.get(level)).map(|c| c[code]).sum::<u64>();
        let counts: Vec<u64> = (0..size as usize).map(count).filter(|&count| count > 0).collect();
        let entropy: f64 = counts.iter().map(|&c| c as f64 / total as f64).map(|p| -p * p.ln()).sum();
        usage.push(counts.len() as f64 / f64::from(size));
        perplexity.push(entropy.exp());
    }
    TokenizerReport {
        items: groups.items as usize,
        levels: spec.levels(),
        codebook_sizes: spec.codebook_sizes.clone(),
        usage,
        perplexity,
        unique_prefixes: groups.unique as usize,
        unique_fraction: groups.unique as f64 / groups.items.max(1) as f64,
        max_group: groups.largest as usize,
        suffix_size: spec.suffix_size.unwrap_or(0),
        reconstruction_mse: origin.reconstruction_mse,
        relative_error: origin.relative_error,
        method: origin.method.clone(),
        encoder: origin.encoder.clone(),
        seed: origin.seed,
        fit_seconds: origin.fit_seconds,
        encode_items_per_second: origin.encode_items_per_second,
    }
}
