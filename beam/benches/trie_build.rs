//! How long do building, writing, opening and changing an index take, and how many bytes does an item cost?
//!
//! Run: `cargo bench -p beam --bench trie_build -- [--json] [--rounds N] [--items N --levels L --codebook-size V]`. The
//! naive side sorts rows of codes by comparison and keeps a dictionary of prefixes; it runs up to two million items.

mod support;

use beam::{Trie, TrieDelta};
use rqvae::{Code, ItemIdx, SidTable};
use serde_json::json;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use support::{Args, median, peak_rss_bytes, quantile, random, table};

/// Sorted rows and the children of every prefix by hash.
fn naive(table: &SidTable) -> usize {
    let mut rows: Vec<Vec<Code>> = (0..table.items() as u32).map(|item| table.codes(ItemIdx(item)).to_vec()).collect();
    rows.sort();
    let mut children: HashMap<Vec<Code>, Vec<Code>> = HashMap::new();
    for row in &rows {
        for level in 0..row.len() {
            let codes = children.entry(row[..level].to_vec()).or_default();
            if codes.last() != Some(&row[level]) {
                codes.push(row[level]);
            }
        }
    }
    children.values().map(Vec::len).sum()
}

fn timed<T>(times: &mut Vec<Duration>, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = work();
    times.push(begin.elapsed());
    result
}

fn measure(items: usize, levels: usize, codes: u32, skewed: bool, args: &Args) {
    let rows = table(items, levels, codes, skewed, 7);
    let before = peak_rss_bytes();
    let mut builds = Vec::new();
    let mut trie = timed(&mut builds, || Trie::build(&rows)).expect("fits");
    let peak = peak_rss_bytes();
    let rounds = if items > 20_000_000 { 1 } else { args.rounds.min(5) };
    for _ in 1..rounds {
        drop(trie);
        trie = timed(&mut builds, || Trie::build(&rows)).expect("fits");
    }
    let mut naives = Vec::new();
    let nodes: usize = (1..=levels).map(|level| trie.nodes(level)).sum();
    let mut equal = true;
    if items <= 2_000_000 {
        equal = timed(&mut naives, || naive(&rows)) == nodes;
    }
    drop(rows);

    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("trie.safetensors");
    trie.write(&path).expect("written");
    let mut loads = Vec::new();
    for _ in 0..rounds {
        equal &= timed(&mut loads, || Trie::map(&path)).expect("sound").nodes(levels) == trie.nodes(levels);
    }
    let file_bytes = std::fs::metadata(&path).expect("written").len();

    // Places of items are found by a table that is made once, when a first list of items comes.
    trie.leaf(ItemIdx(0));
    let mut state = 3;
    let mut delta = TrieDelta::new(&trie);
    let mut changes = Vec::new();
    let mask = timed(&mut changes, || {
        for item in 0..10_000 {
            let id: Vec<Code> = (0..levels).map(|_| (random(&mut state) % u64::from(codes)) as Code).collect();
            delta.add(ItemIdx(items as u32 + item), &id).expect("fits");
        }
        delta.mask()
    });
    equal &= mask.len() == items + 10_000;
    let mut removals = Vec::new();
    let mask = timed(&mut removals, || {
        for _ in 0..10_000 {
            delta.remove(ItemIdx((random(&mut state) % items as u64) as u32));
        }
        delta.mask()
    });
    equal &= mask.len() < items + 10_000;
    let mut folds = Vec::new();
    if items <= 20_000_000 {
        equal &= timed(&mut folds, || delta.fold()).items_total() == mask.len();
    }

    let seconds = |times: &[Duration]| median(times).map(|ms| ms / 1e3);
    let bytes_per_item = trie.size_bytes() as f64 / items as f64;
    if args.json {
        let params = json!({"items": items, "levels": levels, "codebook_size": codes, "codes": if skewed { "skewed" } else { "uniform" }});
        let line = json!({
            "name": "trie", "device": "cpu", "threads": rayon::current_num_threads(), "params": params,
            "p50_ms": median(&builds), "p99_ms": quantile(&builds, 0.99), "per_second": items as f64 / seconds(&builds).unwrap_or(f64::NAN),
            "bytes_per_item": bytes_per_item, "build_seconds": seconds(&builds), "load_seconds": seconds(&loads), "file_bytes": file_bytes,
            "naive_build_seconds": seconds(&naives), "build_peak_bytes_beyond_input": peak - before,
            "add_10k_ms": median(&changes), "remove_10k_ms": median(&removals), "fold_seconds": seconds(&folds),
            "peak_rss_bytes": peak_rss_bytes(), "checks": {"counts": equal},
        });
        println!("{line}");
        return;
    }
    let show = |seconds: Option<f64>| seconds.map_or("-".to_string(), |s| format!("{s:.3} s"));
    println!(
        "{items:>9} x {levels} x {codes:<5} {:8}: {bytes_per_item:5.2} bytes/item, build {} (naive {}), load {}, 10k added {:.1} ms, 10k removed {:.1} ms, fold {}, sound {equal}",
        if skewed { "skewed" } else { "uniform" },
        show(seconds(&builds)),
        show(seconds(&naives)),
        show(seconds(&loads)),
        median(&changes).unwrap_or(f64::NAN),
        median(&removals).unwrap_or(f64::NAN),
        show(seconds(&folds)),
    );
}

fn main() {
    let args = Args::parse();
    if let Some(items) = args.items {
        return measure(items, args.levels.unwrap_or(4), args.codebook_size.unwrap_or(256), false, &args);
    }
    for skewed in [false, true] {
        for (items, levels, codes) in
            [(12_101, 4, 256), (1_000_000, 4, 256), (1_000_000, 4, 2048), (1_000_000, 8, 2048)]
        {
            measure(items, levels, codes, skewed, &args);
        }
    }
}
