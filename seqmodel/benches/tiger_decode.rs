//! How fast do TIGER and RQT answer on the CPU: packed weights against the session on tensors, side by side?
//!
//! Run: `CANDLE_NUM_THREADS=1 cargo bench -p seqmodel --bench tiger_decode -- [--json] [--rounds N] [--items N --levels L
//! --codebook-size V --history H --beam W --batch B --bits 32|16|8 --twins N --threads N]`. Default: the paper's sizes,
//! random weights of 32 bits, a catalogue of 12,101 items of 4 x 256, histories of 20 items, 10, 30 and 50 beams, batches of
//! 1 and 16; then RQT with 30 beams, always with 32 bits. The session on tensors runs in N rounds, all unless said. A single
//! request is parted among all cores, or as many as are said.
//!
//! In turn with the searches runs their arithmetic alone: as many fused multiply-adds of 32 bits from registers, on all cores at
//! once. The share of peak is its time in a search's: that of vectors, which tiles may exceed.

use beam::{BeamConfig, BeamKernel, CpuBeams, CpuKernel, Hypothesis, LiveMask, Scores, SimdKernel, StepScorer, Trie};
use rqvae::{Code, ItemIdx, SidSpec, SidTable, mix};
use seqmodel::nn::Parameters;
use seqmodel::rqt::{PackedRqt, Rqt, RqtConfig, RqtSession};
use seqmodel::tiger::{PackedTiger, Tiger, TigerConfig, TigerSession};
use seqmodel::{History, ItemFeatures, Precision};
use serde_json::json;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

struct Args {
    words: Vec<String>,
}

impl Args {
    fn number(&self, name: &str, default: usize) -> usize {
        let at = self.words.iter().position(|word| word == name);
        at.and_then(|at| self.words.get(at + 1)?.parse().ok()).unwrap_or(default)
    }
}

/// Milliseconds of a search: (model, constraint and selection).
fn search<K, S>(kernel: &K, scorer: &mut S, config: &BeamConfig, live: &[LiveMask]) -> (f64, f64, Vec<Vec<Hypothesis>>)
where
    K: BeamKernel<Scores = Scores, Beams = CpuBeams>,
    S: StepScorer<K>,
{
    let (mut model, mut select) = (0.0, 0.0);
    let ms = |begin: Instant| begin.elapsed().as_secs_f64() * 1e3;
    let begin = Instant::now();
    let mut beams = kernel.start(live.len(), live, config.score).expect("masks of this trie");
    select += ms(begin);
    for (level, width) in config.widths.iter().enumerate() {
        let begin = Instant::now();
        let scores = scorer.score(level, &beams).expect("scores");
        model += ms(begin);
        let begin = Instant::now();
        kernel.step(&mut beams, &scores, *width).expect("scores of this level");
        select += ms(begin);
    }
    let begin = Instant::now();
    let lists = kernel.finish(beams, config.top_k).expect("as many steps as levels");
    (model, select + ms(begin), lists)
}

fn quantile(times: &[f64], share: f64) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times[((times.len() - 1) as f64 * share).round() as usize]
}

/// So many billions of multiplications and additions, fused, and nothing else.
struct Arithmetic {
    giga: f64,
}

impl pulp::WithSimd for Arithmetic {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let (one, small) = (simd.splat_f32s(black_box(1.0)), simd.splat_f32s(black_box(1e-9)));
        let mut sums = [one; 12];
        let each = 2 * sums.len() * S::F32_LANES;
        for _ in 0..(self.giga * 1e9) as u64 / each as u64 {
            sums.iter_mut().for_each(|sum| *sum = simd.mul_add_f32s(one, small, *sum));
        }
        black_box(simd.reduce_sum_f32s(sums.into_iter().fold(one, |a, b| simd.add_f32s(a, b))));
    }
}

/// Milliseconds that so much arithmetic takes by itself when all cores share it.
fn floor_ms(giga: f64) -> f64 {
    let giga = giga / rayon::current_num_threads() as f64;
    let begin = Instant::now();
    rayon::broadcast(|_| pulp::Arch::new().dispatch(Arithmetic { giga }));
    begin.elapsed().as_secs_f64() * 1e3
}

/// Multiplications and additions of a request, in billions.
fn giga_flops(config: &TigerConfig, seq: usize, beam: usize, levels: usize, codes: usize) -> f64 {
    let inner = config.heads * config.head_dim;
    let (dim, hidden) = (config.dim, config.hidden);
    let encoder = config.encoder_layers * seq * (4 * dim * inner + 2 * dim * hidden + 2 * seq * inner);
    let memory = config.decoder_layers * seq * 2 * dim * inner;
    let rows = 1 + (levels - 1) * beam;
    let row = config.decoder_layers * (6 * dim * inner + 2 * dim * hidden + 2 * seq * inner) + dim * codes;
    2.0 * (encoder + memory + rows * row) as f64 / 1e9
}

fn main() {
    let args = Args { words: std::env::args().collect() };
    let json = args.words.iter().any(|word| word == "--json");
    let (items, levels) = (args.number("--items", 12_101), args.number("--levels", 4));
    let (codes, history) = (args.number("--codebook-size", 256), args.number("--history", 20));
    let rounds = args.number("--rounds", 30).max(1);
    let spec = SidSpec { codebook_sizes: vec![codes as u32; levels], suffix_size: None };
    let code = |at: usize| (mix(at as u64) % codes as u64) as Code;
    let table = SidTable::new(spec, (0..items * levels).map(code).collect()).expect("codes fit");
    let features = ItemFeatures::new(Arc::new(table), None).expect("no content");
    let trie = Trie::build(features.sids()).expect("fits");
    let config = TigerConfig { history_cap: history, ..TigerConfig::default() };
    let model = Tiger::new(&config, features.clone(), &Parameters::new(1).builder()).expect("valid sizes");
    let begin = Instant::now();
    let bits = args.number("--bits", 32);
    let precision = match bits {
        8 => Precision::Int8,
        16 => Precision::Bf16,
        32 => Precision::F32,
        other => panic!("--bits {other}: expected 32, 16 or 8"),
    };
    let threads_of_one = args.number("--threads", threads());
    let packed = PackedTiger::stored_as(&model, precision).expect("packs").parted(threads_of_one);
    let pack_ms = begin.elapsed().as_secs_f64() * 1e3;

    let alone = args.words.iter().any(|word| word == "--beam" || word == "--batch");
    let mut cases: Vec<(usize, usize)> =
        [1, 16].iter().flat_map(|batch| [10, 30, 50].map(|beam| (*batch, beam))).collect();
    if alone {
        cases = vec![(args.number("--batch", 1), args.number("--beam", 50))];
    }
    for (batch, beam) in cases {
        let beams = BeamConfig::uniform(beam, levels, beam);
        let live = vec![LiveMask::all(&trie); batch];
        let (mut plain, mut fast, mut encode, mut decode) = (vec![], vec![], vec![], vec![]);
        let (mut select, mut floor) = (vec![], vec![]);
        let gflop = giga_flops(&config, history * levels, beam, levels, codes) * batch as f64;
        let (mut gap, mut same, mut all) = (0f32, 0usize, 0u32);
        let rounds = if batch > 1 { rounds.div_ceil(5) } else { rounds };
        let twins = args.number("--twins", rounds).max(1) + 2;
        for round in 0..rounds + 2 {
            let item = |at: usize| ItemIdx((mix((round * batch * history + at) as u64 ^ 0x4d) % items as u64) as u32);
            let histories: Vec<Vec<ItemIdx>> =
                (0..batch).map(|request| (0..history).map(|i| item(request * history + i)).collect()).collect();
            let histories: Vec<History> = histories.iter().map(History::from).collect();
            let begin = Instant::now();
            let mut expected = Vec::new();
            if round < twins {
                let mut session = TigerSession::new(&model, &histories).expect("histories");
                (_, _, expected) = search(&CpuKernel::new(&trie), &mut session, &beams, &live);
            }
            let plain_ms = begin.elapsed().as_secs_f64() * 1e3;
            let begin = Instant::now();
            let mut session = packed.session(&histories);
            let encode_ms = begin.elapsed().as_secs_f64() * 1e3;
            let (model_ms, select_ms, found) = search(&SimdKernel::new(&trie), &mut session, &beams, &live);
            let fast_ms = begin.elapsed().as_secs_f64() * 1e3;
            for (a, b) in found.iter().flatten().zip(expected.iter().flatten()) {
                gap = gap.max((a.log_prob - b.log_prob).abs());
                same += usize::from(a.item == b.item);
                all += 1;
            }
            if round >= 2 {
                if round < twins {
                    plain.push(plain_ms);
                }
                fast.push(fast_ms);
                encode.push(encode_ms);
                decode.push(model_ms);
                select.push(select_ms);
                floor.push(floor_ms(gflop));
            }
        }
        let half = |times: &[f64]| quantile(times, 0.5);
        let line = json!({
            "name": "tiger_decode", "device": "cpu", "threads": threads(),
            "params": {"items": items, "levels": levels, "codebook_size": codes, "history": history, "beam": beam, "batch": batch, "bits": bits},
            "p50_ms": half(&fast), "min_ms": quantile(&fast, 0.0), "p99_ms": quantile(&fast, 0.99), "per_second": 1e3 * batch as f64 / half(&fast),
            "plain_p50_ms": half(&plain), "times_faster": half(&plain) / half(&fast), "encode_ms": half(&encode),
            "model_ms": half(&decode), "select_ms": half(&select), "select_share": half(&select) / (half(&decode) + half(&select)),
            "gflops": gflop / half(&fast) * 1e3, "floor_p50_ms": half(&floor), "share_of_peak": half(&floor) / half(&fast),
            "pack_ms": pack_ms,
            "checks": {"largest_gap": gap, "same_item_at_rank": same as f64 / f64::from(all)},
        });
        if json {
            println!("{line}");
        } else {
            println!(
                "batch {batch:2}, {beam} beams: packed {:7.2} ms, at best {:.2} (encode {:.2}, decode {:.2}, select {:.3} = {:.1} %), tensors {:7.2} ms, {:.1}x; arithmetic alone {:.2}, {:.0} % of peak; gap {gap:.1e}, same {same} of {all}",
                half(&fast),
                quantile(&fast, 0.0),
                half(&encode),
                half(&decode),
                half(&select),
                100.0 * half(&select) / (half(&decode) + half(&select)),
                half(&plain),
                half(&plain) / half(&fast),
                half(&floor),
                100.0 * half(&floor) / half(&fast),
            );
        }
    }
    if !alone {
        rqt(features, &trie, rounds, json);
    }
}

/// The decoder of RQT alone, packing included: its histories are read on tensors either way.
fn rqt(features: ItemFeatures, trie: &Trie, rounds: usize, json: bool) {
    let items = features.len();
    let config = RqtConfig { content: false, ..RqtConfig::default() };
    let model = Rqt::new(&config, features, &Parameters::new(1).builder()).expect("valid sizes");
    for batch in [1, 64] {
        let beams = BeamConfig::uniform(30, trie.levels(), 30);
        let live = vec![LiveMask::all(trie); batch];
        let (mut plain, mut fast, mut gap) = (vec![], vec![], 0f32);
        for round in 0..rounds + 2 {
            let item = |at: usize| ItemIdx((mix((round * batch * 20 + at) as u64) % items as u64) as u32);
            let histories: Vec<Vec<ItemIdx>> =
                (0..batch).map(|request| (0..20).map(|i| item(request * 20 + i)).collect()).collect();
            let histories: Vec<&[ItemIdx]> = histories.iter().map(Vec::as_slice).collect();
            let encode = || model.encode(&histories).expect("histories");
            let (one, other) = (encode(), encode());
            let begin = Instant::now();
            let mut session = RqtSession::new(&model, one).expect("its own states");
            let (_, _, expected) = search(&CpuKernel::new(trie), &mut session, &beams, &live);
            plain.push(begin.elapsed().as_secs_f64() * 1e3);
            let begin = Instant::now();
            let packed = PackedRqt::new(&model).expect("packs");
            let mut session = packed.session(&other).expect("its own states");
            let (_, _, found) = search(&SimdKernel::new(trie), &mut session, &beams, &live);
            fast.push(begin.elapsed().as_secs_f64() * 1e3);
            for (a, b) in found.iter().flatten().zip(expected.iter().flatten()) {
                gap = gap.max((a.log_prob - b.log_prob).abs());
            }
        }
        let (plain, fast) = (&plain[2..], &fast[2..]);
        let (slow_ms, fast_ms) = (quantile(plain, 0.5), quantile(fast, 0.5));
        if json {
            let params = json!({"items": items, "levels": trie.levels(), "beam": 30, "batch": batch});
            let line = json!({
                "name": "rqt_decode", "device": "cpu", "threads": threads(), "params": params, "p50_ms": fast_ms,
                "p99_ms": quantile(fast, 0.99), "per_second": 1e3 * batch as f64 / fast_ms, "plain_p50_ms": slow_ms,
                "times_faster": slow_ms / fast_ms, "checks": {"largest_gap": gap},
            });
            println!("{line}");
        } else {
            println!(
                "rqt, batch {batch:2}, 30 beams, decoder: packed {fast_ms:.2} ms, tensors {slow_ms:.2} ms, {:.1}x; gap {gap:.1e}",
                slow_ms / fast_ms
            );
        }
    }
}

/// A batch has a thread for each request, a single request all that are free.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
