//! What do constraint and selection of a whole search cost: a dictionary of prefixes with full rows and a full sort,
//! the reference kernel, and the fast one, side by side on the same scores?
//!
//! Run: `cargo bench -p beam --bench beam_step -- [--json] [--rounds N] [--items N --levels L --codebook-size V --beam W
//! --batch B]`. One line per workload; times are medians over interleaved rounds and hold everything but the model.

mod support;

use beam::{BeamKernel, CpuBeams, CpuKernel, Hypothesis, LiveMask, ScoreMode, Scores, SimdKernel, Trie};
use rqvae::{Code, ItemIdx, SidTable};
use serde_json::json;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use support::{Args, median, peak_rss_bytes, quantile, random, table};

struct Workload {
    name: &'static str,
    items: usize,
    levels: usize,
    codes: u32,
    beam: usize,
    batch: usize,
}

/// Log-probabilities as a model would give them: (rows, codes), the same for every kernel.
struct Model {
    pool: Vec<f32>,
    codes: usize,
}

impl Model {
    fn new(rows: usize, codes: usize, seed: u64) -> Self {
        let mut state = seed;
        let mut pool: Vec<f32> =
            (0..rows * codes).map(|_| -8.0 * (random(&mut state) >> 40) as f32 / 16_777_216.0).collect();
        for row in pool.chunks_exact_mut(codes) {
            let norm = row.iter().map(|x| x.exp()).sum::<f32>().ln();
            row.iter_mut().for_each(|x| *x -= norm);
        }
        Self { pool, codes }
    }

    fn scores(&self, rows: usize) -> Scores {
        Scores { width: self.codes, data: self.pool[..rows * self.codes].to_vec() }
    }
}

/// Time in the kernel of one search, and what it found.
fn run<K>(kernel: &K, model: &Model, live: &[LiveMask], work: &Workload) -> (Duration, Vec<Vec<Hypothesis>>)
where
    K: BeamKernel<Scores = Scores, Beams = CpuBeams>,
{
    let mut spent = Duration::ZERO;
    let begin = Instant::now();
    let mut beams = kernel.start(work.batch, live, ScoreMode::FullVocab).expect("masks of this trie");
    spent += begin.elapsed();
    for _ in 0..work.levels {
        let scores = model.scores(beams.rows());
        let begin = Instant::now();
        kernel.step(&mut beams, &scores, work.beam).expect("scores of this level");
        spent += begin.elapsed();
    }
    let begin = Instant::now();
    let lists = kernel.finish(beams, work.beam).expect("as many steps as levels");
    (spent + begin.elapsed(), lists)
}

/// Allowed next codes of every prefix, as generation libraries keep them.
fn dictionary(table: &SidTable) -> HashMap<Vec<Code>, Vec<Code>> {
    let mut next: HashMap<Vec<Code>, Vec<Code>> = HashMap::new();
    for item in 0..table.items() as u32 {
        let codes = table.codes(ItemIdx(item));
        for level in 0..codes.len() {
            next.entry(codes[..level].to_vec()).or_default().push(codes[level]);
        }
    }
    #[expect(clippy::iter_over_hash_type, reason = "every entry is sorted by itself")]
    for codes in next.values_mut() {
        codes.sort_unstable();
        codes.dedup();
    }
    next
}

/// Every row masked in full, every candidate sorted.
fn naive(
    next: &HashMap<Vec<Code>, Vec<Code>>,
    model: &Model,
    work: &Workload,
) -> (Duration, Vec<Vec<(Vec<Code>, f32)>>) {
    let mut spent = Duration::ZERO;
    let mut beams: Vec<Vec<(Vec<Code>, f32)>> = vec![vec![(Vec::new(), 0.0)]; work.batch];
    for _ in 0..work.levels {
        let scores = model.scores(beams.iter().map(Vec::len).sum());
        let begin = Instant::now();
        let mut rows = scores.data.chunks_exact(model.codes);
        for beams in &mut beams {
            let mut all = Vec::with_capacity(beams.len() * model.codes);
            for ((prefix, score), row) in beams.iter().zip(&mut rows) {
                let mut masked = vec![f32::NEG_INFINITY; model.codes];
                for code in &next[prefix] {
                    masked[usize::from(*code)] = score + row[usize::from(*code)];
                }
                all.extend(masked.iter().enumerate().map(|(code, score)| (*score, prefix, code as Code)));
            }
            all.sort_by(|a, b| b.0.total_cmp(&a.0));
            let best = all.iter().take(work.beam).filter(|beam| beam.0.is_finite());
            *beams = best.map(|(score, prefix, code)| ([prefix.as_slice(), &[*code]].concat(), *score)).collect();
        }
        spent += begin.elapsed();
    }
    (spent, beams)
}

fn measure(work: &Workload, args: &Args) {
    let table = table(work.items, work.levels, work.codes, true, 7);
    let trie = Trie::build(&table).expect("fits");
    let small = work.items <= 2_000_000 && work.beam * work.batch <= 1000;
    let next = small.then(|| dictionary(&table));
    drop(table);
    let live = vec![LiveMask::all(&trie); work.batch];
    let (plain, fast) = (CpuKernel::new(&trie), SimdKernel::new(&trie));
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    let mut equal = true;
    for round in 0..args.rounds as u64 + 3 {
        let model = Model::new(work.beam * work.batch, work.codes as usize, round);
        let (a, reference) = run(&plain, &model, &live, work);
        let (b, found) = run(&fast, &model, &live, work);
        equal &= reference == found;
        if round < 3 {
            continue;
        }
        times[1].push(a);
        times[2].push(b);
        if let Some(next) = next.as_ref().filter(|_| round < 23) {
            let (time, lists) = naive(next, &model, work);
            times[0].push(time);
            for (list, found) in lists.iter().zip(&found) {
                let best = found.first().map(|h| h.log_prob);
                equal &= list.first().map(|beam| beam.1) == best;
            }
        }
    }
    let [naive_ms, plain_ms, fast_ms] = times.each_ref().map(|times| median(times));
    let children: usize = (0..work.levels).map(|level| trie.nodes(level + 1)).sum();
    if args.json {
        let params = json!({"items": work.items, "levels": work.levels, "codebook_size": work.codes, "beam": work.beam, "batch": work.batch, "codes": "skewed"});
        let line = json!({
            "name": format!("beam_step {}", work.name), "device": "cpu", "threads": rayon::current_num_threads(), "params": params,
            "p50_ms": fast_ms, "p99_ms": quantile(&times[2], 0.99), "per_second": 1e3 * work.batch as f64 / fast_ms.unwrap_or(f64::NAN),
            "us_per_step_and_request": fast_ms.map(|ms| ms * 1e3 / (work.levels * work.batch) as f64),
            "plain_ms": plain_ms, "dictionary_ms": naive_ms, "nodes": children, "peak_rss_bytes": peak_rss_bytes(),
            "checks": {"equals_reference": equal},
        });
        println!("{line}");
        return;
    }
    let times = |ms: Option<f64>| match (ms, fast_ms) {
        (Some(ms), Some(fast)) => format!("{:9.1} us {:6.1}x", ms * 1e3, ms / fast),
        _ => format!("{:>20}", "-"),
    };
    println!(
        "{:24} fast {:8.1} us   plain {}   dictionary {}   equal {equal}",
        work.name,
        fast_ms.unwrap_or(f64::NAN) * 1e3,
        times(plain_ms),
        times(naive_ms)
    );
}

fn main() {
    let args = Args::parse();
    if let Some(items) = args.items {
        let (levels, codes) = (args.levels.unwrap_or(4), args.codebook_size.unwrap_or(256));
        let (beam, batch) = (args.beam.unwrap_or(50), args.batch.unwrap_or(1));
        return measure(&Workload { name: "asked for", items, levels, codes, beam, batch }, &args);
    }
    let work = |name, items, levels, codes, beam, batch| Workload { name, items, levels, codes, beam, batch };
    for work in [
        work("beauty, 10 beams", 12_101, 4, 256, 10, 1),
        work("beauty, 30 beams", 12_101, 4, 256, 30, 1),
        work("beauty, 50 beams", 12_101, 4, 256, 50, 1),
        work("beauty, 50 beams x 16", 12_101, 4, 256, 50, 16),
        work("1M x 4 x 2048, 50 beams", 1_000_000, 4, 2048, 50, 1),
        work("1M x 4 x 2048, 128 beams", 1_000_000, 4, 2048, 128, 1),
        work("1M x 8 x 2048, 70 beams", 1_000_000, 8, 2048, 70, 2),
        work("1M x 3 x 8192, 512 beams", 1_000_000, 3, 8192, 512, 1),
    ] {
        measure(&work, &args);
    }
}
