//! The published Rust port of STATIC, the crate `constraint-decoding-trie`, on the workload of its own bench: 70 beams, IDs
//! of 8 uniform codes below 2048, the first level behind its dense ones. Its time is for the masks of the 70 beams alone;
//! ours is for a whole step, which masks, adds, and selects the best 70.
//!
//! Run: `cargo bench -p beam --bench static_peer -- [--json] [--rounds N]`. Medians over interleaved rounds.

mod support;

use beam::{BeamKernel, LiveMask, ScoreMode, Scores, SimdKernel, Trie};
use constraint_decoding_trie::transition::build_static_index;
use constraint_decoding_trie::vntk::vntk;
use rqvae::ItemIdx;
use serde_json::json;
use std::hint::black_box;
use std::time::Instant;
use support::{Args, median, random, table};

const BEAMS: usize = 70;
const LEVELS: usize = 8;
const CODES: u32 = 2048;
/// Levels that the peer keeps as a dense mask.
const DENSE: usize = 2;

/// Random scores (rows, codes).
fn scores(rows: usize, seed: u64) -> Scores {
    let mut state = seed;
    let number = || -8.0 * (random(&mut state) >> 40) as f32 / 16_777_216.0;
    Scores { width: CODES as usize, data: std::iter::repeat_with(number).take(rows * CODES as usize).collect() }
}

fn main() {
    let args = Args::parse();
    for items in [10_000, 100_000, 1_000_000] {
        let table = table(items, LEVELS, CODES, false, 7);
        let codes = |item: u32| table.codes(ItemIdx(item)).iter().map(|code| u32::from(*code)).collect();
        let constraints: Vec<Vec<u32>> = (0..items as u32).map(codes).collect();
        let began = Instant::now();
        let peer = build_static_index(&constraints, CODES, LEVELS as u32, DENSE as u32);
        let peer_build = began.elapsed().as_secs_f64();
        drop(constraints);
        let began = Instant::now();
        let trie = Trie::build(&table).expect("fits");
        let build = began.elapsed().as_secs_f64();
        let peer_bytes = 4 * peer.sparse.row_pointers.len()
            + 8 * (peer.sparse.data.len() + peer.dense.bits.len())
            + 4 * peer.dense.states.len();
        let bytes = trie.size_bytes();

        let kernel = SimdKernel::new(&trie);
        let live = [LiveMask::all(&trie)];
        let first = table.codes(ItemIdx(0)).iter().map(|code| u32::from(*code)).take(DENSE).collect::<Vec<_>>();
        let start = peer.dense.state_for(&first).expect("a prefix of the catalogue");
        let nodes: Vec<u32> = (0..BEAMS as u32).map(|beam| (start + beam) % peer.sparse.num_nodes).collect();
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..args.rounds as u64 + 3 {
            let mut beams = kernel.start(1, &live, ScoreMode::FullVocab).expect("a mask of this trie");
            for level in 0..DENSE as u64 {
                let scores = scores(beams.rows(), round * 8 + level);
                kernel.step(&mut beams, &scores, BEAMS).expect("scores of this level");
            }
            let scores = scores(beams.rows(), round * 8 + 7);
            let began = Instant::now();
            kernel.step(&mut beams, &scores, BEAMS).expect("scores of this level");
            let ours = began.elapsed();
            let began = Instant::now();
            black_box(vntk(black_box(&nodes), &peer.sparse, DENSE, CODES as usize));
            let theirs = began.elapsed();
            if round >= 3 {
                times[0].push(ours);
                times[1].push(theirs);
            }
        }
        let [ours, theirs] = times.each_ref().map(|times| median(times).unwrap_or(f64::NAN) * 1e3);
        let per_item = |bytes: usize| bytes as f64 / items as f64;
        if args.json {
            let line = json!({
                "name": "static_peer", "device": "cpu", "params": {"items": items, "levels": LEVELS, "codebook_size": CODES, "beam": BEAMS},
                "us_per_step": ours, "peer_mask_us": theirs, "bytes_per_item": per_item(bytes),
                "peer_bytes_per_item": per_item(peer_bytes), "build_s": build, "peer_build_s": peer_build,
            });
            println!("{line}");
            continue;
        }
        println!(
            "{items:>9} items   step {ours:7.1} us   their masks {theirs:7.1} us {:5.1}x   bytes an item {:6.1}, theirs {:7.1}   \
             built in {build:6.2} s, theirs {peer_build:6.2} s",
            theirs / ours,
            per_item(bytes),
            per_item(peer_bytes),
        );
    }
}
