//! Our k-means against the crate `kmeans`, same points, same number of iterations, one after the other in each round.
//!
//! Run: `RUSTC_BOOTSTRAP=kmeans cargo bench -p rqvae --features simd-kmeans --bench simd_kmeans -- [--json] [--rounds N]
//! [--items N --dim D --k K --iterations I]`. Three sides: ours; the crate from our seeds (`Kmeans::fit_simd`); the crate
//! alone with its own k-means++, which is not seeded here. Times are the processor's, of all threads together, which a busy
//! machine disturbs less than the clock's. Ratios are the crate's time over ours, above 1 where ours is faster, of whole
//! fits and of the iterations alone, where the seeds' time is taken off both.

use kmeans::{AbortStrategy, EuclideanDistance, KMeans, KMeansConfig};
use rand::Rng;
use rqvae::{Kmeans, KmeansConfig, SeededRng, Vectors};
use serde_json::json;

/// Value of `--name`, if it is given.
fn value(words: &[String], name: &str) -> Option<usize> {
    let at = words.iter().position(|word| word == name)?;
    words.get(at + 1)?.parse().ok()
}

/// Points (items, dim): noise around `heaps` middles that overlap, as content does.
fn points(items: usize, dim: usize, heaps: usize) -> Vectors {
    let mut rng = SeededRng::new(7).stream("points");
    let middles: Vec<f32> = (0..heaps * dim).map(|_| rng.random()).collect();
    let mut data = Vec::with_capacity(items * dim);
    for _ in 0..items {
        let heap = rng.random_range(0..heaps);
        data.extend(middles[heap * dim..][..dim].iter().map(|middle| middle + rng.random::<f32>()));
    }
    Vectors::new(dim, data).expect("finite")
}

/// Milliseconds that the threads of this process have run.
fn cpu_ms() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let run = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
    run.filter_map(|text| text.split_whitespace().next()?.parse::<f64>().ok()).sum::<f64>() / 1e6
}

fn timed<T>(times: &mut Vec<f64>, work: impl FnOnce() -> T) -> T {
    let begin = cpu_ms();
    let result = work();
    times.push(cpu_ms() - begin);
    result
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn measure(items: usize, dim: usize, k: usize, iterations: usize, rounds: usize, as_json: bool) {
    let points = points(items, dim, 2 * k);
    let config = KmeansConfig { k, iterations, tolerance: 0.0, seed: 1 };
    let still = KmeansConfig { iterations: 0, ..config };
    let stop = || AbortStrategy::NoImprovement { threshold: 0.0f32 };
    let mut times = [const { Vec::new() }; 4];
    let mut costs = [0.0; 3];
    let mut steps = [0; 2];
    for _ in 0..rounds {
        timed(&mut times[0], || Kmeans::fit(&points, &still)).expect("points");
        let ours = timed(&mut times[1], || Kmeans::fit(&points, &config)).expect("points");
        let seeded = timed(&mut times[2], || Kmeans::fit_simd(&points, &config)).expect("points");
        let alone = timed(&mut times[3], || {
            let theirs: KMeans<f32, 16, _> = KMeans::new(&points.data, items, dim, EuclideanDistance);
            let settings = KMeansConfig::build().abort_strategy(stop()).build();
            theirs.kmeans_lloyd(k, iterations, KMeans::init_kmeanplusplus, &settings)
        });
        let last = |kmeans: &Kmeans| kmeans.costs.last().copied().unwrap_or(f64::NAN);
        costs = [last(&ours), last(&seeded), f64::from(alone.distsum)];
        steps = [ours.costs.len() - 1, seeded.costs.len() - 1];
    }
    let [seeds, ours, seeded, alone] = times.each_mut().map(|times| median(times));
    let whole = seeded / ours;
    let lloyd = (seeded - seeds) / (ours - seeds);
    let crate_alone = alone / ours;
    let (cost, cost_alone) = (costs[1] / costs[0], costs[2] / costs[0]);
    if as_json {
        let line = json!({
            "name": "simd_kmeans", "device": "cpu", "threads": rayon::current_num_threads(),
            "params": {"items": items, "dim": dim, "k": k, "iterations": steps, "rounds": rounds},
            "seeds_ms": seeds, "ours_ms": ours, "crate_ms": seeded, "crate_alone_ms": alone, "ratio": whole,
            "ratio_of_iterations": lloyd, "ratio_alone": crate_alone, "cost_ratio": cost, "cost_ratio_alone": cost_alone,
        });
        println!("{line}");
        return;
    }
    println!(
        "{items:>7} x {dim:<4} k {k:<4} iterations {}/{}: seeds {seeds:.0} ms, ours {ours:.0} ms, crate from our seeds {seeded:.0} ms (ratio {whole:.2}, iterations alone {lloyd:.2}, cost {cost:.4}), crate alone {alone:.0} ms (ratio {crate_alone:.2}, cost {cost_alone:.4})",
        steps[0], steps[1],
    );
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let as_json = words.iter().any(|word| word == "--json");
    let number = |name: &str, default: usize| value(&words, name).unwrap_or(default).max(1);
    let (rounds, iterations) = (number("--rounds", 3), number("--iterations", 10));
    if let Some(items) = value(&words, "--items") {
        return measure(items, number("--dim", 384), number("--k", 256), iterations, rounds, as_json);
    }
    for (items, dim, k) in [(4_000, 384, 128), (20_000, 32, 64), (20_000, 8, 16)] {
        measure(items, dim, k, iterations, rounds, as_json);
    }
}
