//! `sidrec bench trie`: what an index of made-up IDs costs to build, to keep and to open.

use super::line::{BenchLine, peak_rss_bytes, quantile_ms};
use crate::cli::json_line;
use crate::progress::Stage;
use anyhow::{Context, Result, ensure};
use beam::Trie;
use clap::Args;
use rqvae::{Code, ItemIdx, SeededRng, SidSpec, SidTable, mix};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Args)]
pub(crate) struct TrieBenchArgs {
    /// Items
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000_000))]
    items: u32,
    /// Codes of an ID
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=8))]
    levels: u8,
    /// Codes of a level
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=65_536))]
    codebook_size: u32,
    /// Builds and loads; one above 20 million items
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Folder that the index is written to for the time of the bench; the system's temporary one without it
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// IDs follow from it
    #[arg(long, default_value_t = 0, env = "SIDREC_SEED")]
    seed: u64,
    /// Only the JSON line
    #[arg(long)]
    json: bool,
}

/// Uniform IDs: (items, levels).
pub(super) fn made_up(items: u32, levels: u8, codebook_size: u32, seed: u64) -> Result<SidTable> {
    let key = SeededRng::new(seed).key("bench-ids", 0);
    let code = |at: u64| (mix(key.wrapping_add(at)) % u64::from(codebook_size)) as Code;
    let codes = (0..u64::from(items) * u64::from(levels)).map(code).collect();
    let spec = SidSpec { codebook_sizes: vec![codebook_size; usize::from(levels)], suffix_size: None };
    Ok(SidTable::new(spec, codes)?)
}

fn timed<T>(times: &mut Vec<Duration>, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = work();
    times.push(began.elapsed());
    result
}

/// Whether ten thousand of the items stand where their codes lead.
fn finds(trie: &Trie, table: &SidTable) -> bool {
    let step = (table.items() / 10_000).max(1);
    (0..table.items() as u32).step_by(step).map(ItemIdx).all(|item| {
        let leaf = trie.find(table.codes(item));
        leaf.is_some_and(|leaf| trie.items(leaf).contains(&item))
    })
}

/// Whether a copy of the index with one byte changed is refused.
fn refuses_damage(path: &Path) -> Result<bool> {
    let mut bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    let damaged = path.with_extension("damaged");
    fs::write(&damaged, bytes).with_context(|| damaged.display().to_string())?;
    Ok(Trie::map(&damaged).is_err())
}

pub(super) fn run(args: &TrieBenchArgs) -> Result<()> {
    let stage = Stage::new("IDs", 0);
    let table = made_up(args.items, args.levels, args.codebook_size, args.seed)?;
    stage.done(&format!("{} of {} x {}", args.items, args.levels, args.codebook_size));
    let before = peak_rss_bytes();
    let rounds = if args.items > 20_000_000 { 1 } else { args.rounds };
    let stage = Stage::new("build", 0);
    let mut builds = Vec::new();
    let mut trie = timed(&mut builds, || Trie::build(&table))?;
    let peak = peak_rss_bytes();
    for _ in 1..rounds {
        drop(trie);
        trie = timed(&mut builds, || Trie::build(&table))?;
    }
    builds.sort_unstable();
    let build_seconds = quantile_ms(&builds, 0.5) / 1e3;
    let bytes_per_item = trie.size_bytes() as f64 / f64::from(args.items);
    stage.done(&format!("{build_seconds:.3} s, {bytes_per_item:.2} bytes an item"));

    let folder = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir).with_context(|| dir.display().to_string())?,
        None => tempfile::tempdir()?,
    };
    let path = folder.path().join("trie.safetensors");
    trie.write(&path)?;
    let file_bytes = fs::metadata(&path).with_context(|| path.display().to_string())?.len();
    let stage = Stage::new("load", 0);
    let mut loads = Vec::new();
    let mut equal = true;
    for _ in 0..rounds {
        equal &= timed(&mut loads, || Trie::map(&path))? == trie;
    }
    loads.sort_unstable();
    let load_seconds = quantile_ms(&loads, 0.5) / 1e3;
    stage.done(&format!("{load_seconds:.3} s, every byte looked at"));
    let found = finds(&trie, &table);
    let refused = if file_bytes < 1 << 28 { Some(refuses_damage(&path)?) } else { None };

    let object = |value: Value| value.as_object().cloned().unwrap_or_else(Map::new);
    let line = BenchLine {
        name: "trie",
        device: "cpu",
        threads: rayon::current_num_threads(),
        params: object(json!({"items": args.items, "levels": args.levels, "codebook_size": args.codebook_size,
            "codes": "uniform", "rounds": rounds, "seed": args.seed})),
        p50_ms: quantile_ms(&builds, 0.5),
        p99_ms: quantile_ms(&builds, 0.99),
        per_second: f64::from(args.items) / build_seconds,
        peak_rss_bytes: peak_rss_bytes(),
        checks: object(json!({"mapped_equals_built": equal, "items_found": found, "damage_refused": refused})),
        more: object(json!({"bytes_per_item": bytes_per_item, "build_seconds": build_seconds,
            "load_seconds": load_seconds, "file_bytes": file_bytes,
            "build_peak_bytes_beyond_input": peak.zip(before).map(|(peak, before)| peak - before)})),
    };
    json_line(&line)?;
    ensure!(equal && found && refused != Some(false), "the index is not what was built: see `checks`");
    Ok(())
}
