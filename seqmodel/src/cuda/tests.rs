//! Kernels against plain loops, and whole requests against the packed models, on the emulator.

use super::*;
use crate::generative::{Generator, Guidance, Search};
use crate::nn::{Parameters, exp};
use crate::rqt::{PackedRqt, Rqt, RqtConfig};
use crate::tiger::{PackedTiger, Tiger, TigerConfig};
use crate::{Generative, History, ItemFeatures, UserHash};
use beam::cuda::{
    ADD, AttendArgs, Device, Emulator, FLOATS, FeedForwardArgs, Launch, Memory, NORM, NormArgs, Numbers, ProductArgs,
    Program, RELU,
};
use beam::{BeamConfig, Hypothesis, LiveMask, ScoreMode, Trie};
use half::bf16;
use proptest::prelude::*;
use rqvae::{Code, ItemIdx, SidSpec, SidTable, mix};
use std::sync::Arc;

fn emulator(seed: u64) -> Option<Arc<dyn Device>> {
    emulator_with(seed, None)
}

/// With programs as for a device whose library takes products from so many rows on.
fn emulator_with(seed: u64, library_rows: Option<u32>) -> Option<Arc<dyn Device>> {
    match Emulator::new(seed) {
        Ok(emulator) => Some(match library_rows {
            None => Arc::new(emulator),
            Some(rows) => Arc::new(emulator.with_library_rows(rows)),
        }),
        Err(e) if e.to_string().contains("no C++ compiler") => {
            eprintln!("SKIPPED kernels on the emulator: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// Numbers in -1 .. 1 that bfloat16 has, too, so that both kinds compute with the same ones.
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let number = |i| (mix(seed ^ mix(i as u64)) >> 40) as f32 / (1 << 23) as f32 - 1.0;
    (0..count).map(|i| bf16::from_f32(number(i)).to_f32()).collect()
}

fn upload(device: &Arc<dyn Device>, numbers: Numbers, values: &[f32]) -> Memory {
    match numbers {
        Numbers::F32 => Memory::with(device, values).unwrap(),
        Numbers::Bf16 => {
            let bits: Vec<u16> = values.iter().map(|x| bf16::from_f32(*x).to_bits()).collect();
            Memory::with(device, &bits).unwrap()
        }
    }
}

fn download(device: &Arc<dyn Device>, numbers: Numbers, memory: &Memory) -> Vec<f32> {
    let mut bytes = vec![0; memory.bytes()];
    device.read(memory.address(), &mut bytes).unwrap();
    match numbers {
        Numbers::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b)).collect(),
        Numbers::Bf16 => {
            bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_bits(u16::from_ne_bytes(*b)).to_f32()).collect()
        }
    }
}

fn run(device: &Arc<dyn Device>, numbers: Numbers, launch: Launch) {
    device.prepare(&Program { numbers, launches: vec![launch] }).unwrap().run().unwrap();
}

/// Largest difference, relative to the largest value expected.
fn gap(found: &[f32], expected: &[f64]) -> f64 {
    let most = expected.iter().fold(1e-30, |most: f64, x| most.max(x.abs()));
    found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs() / most).fold(0.0, f64::max)
}

/// Results of 8 bits, made of inputs of 8 bits and sums of 24; normed rows are rounded in between, too.
fn tolerance(numbers: Numbers) -> f64 {
    match numbers {
        Numbers::F32 => 2e-6,
        Numbers::Bf16 => 1.5e-2,
    }
}

fn inverse_rms(row: &[f32]) -> f64 {
    let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
    (squares / row.len() as f64 + 1e-6).powf(-0.5)
}

/// Every way through `product`: both heights, norm in front, relu, residual and floats behind, chosen rows, two outputs.
#[test]
fn products_are_products() {
    for (case, numbers) in (0..14u64).flat_map(|case| Numbers::ALL.map(|numbers| (case, numbers))) {
        let Some(device) = emulator(case) else { return };
        let flags = [0, NORM, RELU, ADD, FLOATS, NORM | RELU, NORM | FLOATS][case as usize % 7];
        let (rows, dim, cols) = (if case < 7 { 21 } else { 70 }, [40, 200, 96usize][case as usize % 3], 72);
        let (pitch, split) = (dim.next_multiple_of(32), if flags & (ADD | FLOATS) == 0 { 40 } else { cols });
        let (x, w) = (noise(case, rows * pitch), noise(case + 50, cols * pitch));
        let padded = |values: &[f32]| -> Vec<f32> {
            values.iter().enumerate().map(|(i, v)| if i % pitch < dim { *v } else { 0.0 }).collect()
        };
        let (x, w) = (padded(&x), padded(&w));
        let ids: Vec<u32> = (0..rows as u32).map(|row| (row * 7 + 3) % rows as u32).collect();
        let before = noise(case + 90, rows * split);
        let x_memory = upload(&device, if flags & NORM > 0 { Numbers::F32 } else { numbers }, &x);
        let (w_memory, ids_memory) = (upload(&device, numbers, &w), Memory::with(&device, &ids).unwrap());
        let out = if flags & (ADD | FLOATS) > 0 { Numbers::F32 } else { numbers };
        let y0 = upload(&device, out, &before);
        let y1 = upload(&device, out, &vec![f32::NAN; rows * (cols - split)]);
        let args = ProductArgs {
            x: x_memory.address(),
            row_ids: if case % 2 == 0 { ids_memory.address() } else { 0 },
            w: w_memory.address(),
            y0: y0.address(),
            y1: y1.address(),
            rows: rows as u32,
            inputs: pitch as u32,
            dim: dim as u32,
            cols: cols as u32,
            ldx: pitch as u32,
            ldw: pitch as u32,
            ld0: split as u32,
            ld1: (cols - split) as u32,
            split: split as u32,
            flags,
            ..ProductArgs::default()
        };
        let mut launch = launch::product(numbers, &args);
        if case >= 7 {
            let tall = launch::product(numbers, &ProductArgs { rows: 4096, ..args });
            launch = Launch { kernel: tall.kernel, shared: tall.shared, grid: [2, 2, 1], ..launch };
        }
        run(&device, numbers, launch);
        let (y0, y1) = (download(&device, out, &y0), download(&device, out, &y1));
        let mut found = Vec::new();
        let mut expected = Vec::new();
        for row in 0..rows {
            let from = if case % 2 == 0 { ids[row] as usize } else { row };
            let line = &x[from * pitch..][..dim];
            let scale = if flags & NORM > 0 { inverse_rms(line) } else { 1.0 };
            for col in 0..cols {
                let sum: f64 =
                    line.iter().zip(&w[col * pitch..]).map(|(x, w)| f64::from(*x) * scale * f64::from(*w)).sum();
                let sum = if flags & RELU > 0 { sum.max(0.0) } else { sum };
                let more = if flags & ADD > 0 { f64::from(before[row * split + col]) } else { 0.0 };
                expected.push(sum + more);
                found.push(if col < split { y0[row * split + col] } else { y1[row * (cols - split) + col - split] });
            }
        }
        let gap = gap(&found, &expected);
        assert!(gap < tolerance(numbers), "case {case}, {numbers}: {gap}");
    }
}

#[test]
fn feed_forward_is_two_products_with_a_norm() {
    for (case, numbers) in (0..4u64).flat_map(|case| Numbers::ALL.map(|numbers| (case, numbers))) {
        let Some(device) = emulator(case) else { return };
        let (rows, dim, hidden) = ([19, 70][case as usize % 2], [40, 192usize][case as usize / 2], 256);
        let pitch = dim.next_multiple_of(32);
        let pad = |values: Vec<f32>| -> Vec<f32> {
            values.into_iter().enumerate().map(|(i, v)| if i % pitch < dim { v } else { 0.0 }).collect()
        };
        let (x, wi, wo) =
            (pad(noise(case, rows * pitch)), pad(noise(case + 9, hidden * pitch)), noise(case + 11, pitch * hidden));
        let wo: Vec<f32> = wo.iter().enumerate().map(|(i, v)| if i / hidden < dim { *v } else { 0.0 }).collect();
        let x_memory = upload(&device, Numbers::F32, &x);
        let (wi_memory, wo_memory) = (upload(&device, numbers, &wi), upload(&device, numbers, &wo));
        let args = FeedForwardArgs {
            x: x_memory.address(),
            wi: wi_memory.address(),
            wo: wo_memory.address(),
            rows: rows as u32,
            dim: dim as u32,
            dim_pad: pitch as u32,
            hidden: hidden as u32,
            ldx: pitch as u32,
            ldi: pitch as u32,
            ldo: hidden as u32,
            pad: 0,
        };
        let mut launch = launch::feed_forward(numbers, &args);
        if case % 2 == 1 {
            let tall = launch::feed_forward(numbers, &FeedForwardArgs { rows: 4096, ..args });
            launch = Launch { kernel: tall.kernel, shared: tall.shared, grid: [2, 1, 1], ..launch };
        }
        run(&device, numbers, launch);
        let found = download(&device, Numbers::F32, &x_memory);
        let mut expected = Vec::new();
        for row in x.chunks_exact(pitch) {
            let scale = inverse_rms(&row[..dim]);
            let unit = |u: usize| -> f64 {
                (0..dim).map(|i| f64::from(row[i]) * scale * f64::from(wi[u * pitch + i])).sum::<f64>().max(0.0)
            };
            let units: Vec<f64> = (0..hidden).map(unit).collect();
            let out = |o: usize| units.iter().zip(&wo[o * hidden..]).map(|(u, w)| u * f64::from(*w)).sum::<f64>();
            expected.extend((0..pitch).map(|o| f64::from(row[o]) + out(o)));
        }
        let gap = gap(&found, &expected);
        assert!(gap < tolerance(numbers), "case {case}, {numbers}: {gap}");
    }
}

/// Lengths, bias by distance and causal masks; keys behind the end of a history hold garbage that must not be seen.
#[test]
fn attention_sees_what_it_may() {
    for (case, numbers) in (0..4u64).flat_map(|case| Numbers::ALL.map(|numbers| (case, numbers))) {
        let Some(device) = emulator(case) else { return };
        let (batch, heads, hd, queries, seq) = (2usize, 2usize, 32usize, [20, 7][case as usize % 2], 40usize);
        let (seq_pad, causal, with_bias) = (64usize, case % 2 == 0, case < 2);
        let (width, zero) = (heads * hd, 48);
        let lengths = [40u32, 13];
        let q = noise(case, batch * queries * width);
        let keys = noise(case + 5, batch * heads * seq_pad * hd);
        let values = noise(case + 6, batch * heads * hd * seq_pad);
        let bias = noise(case + 7, heads * 2 * zero);
        let memories = [&q, &keys, &values].map(|x| upload(&device, numbers, x));
        let (bias_memory, lengths_memory) =
            (upload(&device, Numbers::F32, &bias), Memory::with(&device, &lengths).unwrap());
        let y = upload(&device, numbers, &vec![f32::NAN; batch * queries * width]);
        let args = AttendArgs {
            x: memories[0].address(),
            keys: memories[1].address(),
            values: memories[2].address(),
            bias: if with_bias { bias_memory.address() } else { 0 },
            lengths: lengths_memory.address(),
            y: y.address(),
            queries: queries as u32,
            seq: seq as u32,
            seq_pad: seq_pad as u32,
            heads: heads as u32,
            head_dim: hd as u32,
            ldx: width as u32,
            ldy: width as u32,
            distances: 2 * zero as u32,
            zero: zero as u32,
            causal: u32::from(causal),
            ..AttendArgs::default()
        };
        run(&device, numbers, launch::attend(numbers, &args, batch as u32));
        let found = download(&device, numbers, &y);
        let mut expected = Vec::new();
        for (b, query, head) in
            (0..batch).flat_map(|b| (0..queries).flat_map(move |q| (0..heads).map(move |h| (b, q, h))))
        {
            let visible = (lengths[b] as usize).min(if causal { query + 1 } else { seq });
            let block = (b * heads + head) * seq_pad * hd;
            let score = |key: usize| -> f64 {
                let dot: f64 = (0..hd)
                    .map(|d| {
                        f64::from(q[(b * queries + query) * width + head * hd + d])
                            * f64::from(keys[block + key * hd + d])
                    })
                    .sum();
                dot + if with_bias { f64::from(bias[head * 2 * zero + zero + key - query]) } else { 0.0 }
            };
            let scores: Vec<f64> = (0..visible).map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            let mixed = |d: usize| -> f64 {
                let of = |(key, s): (usize, &f64)| (s - max).exp() / sum * f64::from(values[block + d * seq_pad + key]);
                scores.iter().enumerate().map(of).sum()
            };
            expected.extend((0..hd).map(mixed));
        }
        let gap = gap(&found, &expected);
        assert!(gap < tolerance(numbers), "case {case}, {numbers}: {gap}");
    }
}

#[test]
fn normalized_rows_have_unit_mean_squares() {
    for numbers in Numbers::ALL {
        let Some(device) = emulator(3) else { return };
        let x = noise(1, 11 * 64);
        let (x_memory, y) = (upload(&device, Numbers::F32, &x), upload(&device, numbers, &[f32::NAN; 11 * 64]));
        let args = NormArgs { x: x_memory.address(), row_ids: 0, y: y.address(), rows: 11, dim: 64, ldx: 64, ldy: 64 };
        run(&device, numbers, launch::normalize(&args));
        let expected: Vec<f64> =
            x.chunks(64).flat_map(|row| row.iter().map(|x| f64::from(*x) * inverse_rms(row))).collect();
        let gap = gap(&download(&device, numbers, &y), &expected);
        assert!(gap < tolerance(numbers), "{numbers}: {gap}");
    }
    assert!(exp(0.0) == 1.0);
}

fn features(items: u32) -> ItemFeatures {
    let spec = SidSpec { codebook_sizes: vec![9, 140, 33], suffix_size: Some(2) };
    let code = |item: u32| {
        let x = item.wrapping_mul(0x9e37_79b9);
        [(x >> 29) as Code, (x >> 10) as Code % 140, (x >> 3) as Code % 33, (item % 2) as Code]
    };
    ItemFeatures::new(Arc::new(SidTable::new(spec, (0..items).flat_map(code).collect()).unwrap()), None).unwrap()
}

/// Same scores at every rank, and the same items wherever neighbours in rank are further apart than the tolerance.
fn same_lists(found: &[Vec<Hypothesis>], expected: &[Vec<Hypothesis>], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.len(), expected.len());
        for (at, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!((a.log_prob - b.log_prob).abs() < tolerance, "rank {at}: {} {}", a.log_prob, b.log_prob);
            let apart = |other: Option<&Hypothesis>| other.is_none_or(|o| (o.log_prob - b.log_prob).abs() > tolerance);
            let alone =
                (at == 0 || apart(expected.get(at - 1))) && at + 1 < expected.len() && apart(expected.get(at + 1));
            assert!(!alone || a.item == b.item);
        }
    }
}

/// Sums of a few hundred products of numbers around 1, in another order, through some layers.
const F32_TOLERANCE: f32 = 3e-4;

/// The same of numbers of 8 bits.
const BF16_TOLERANCE: f32 = 0.15;

fn histories(raw: &[Vec<u32>]) -> Vec<Vec<ItemIdx>> {
    raw.iter().map(|history| history.iter().map(|item| ItemIdx(*item)).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]
    /// A request of TIGER as one program is what the packed model finds, in both kinds of numbers, when the program is
    /// used again, and after another catalogue has been put in place.
    #[test]
    fn tiger_on_a_device_is_tiger(
        seed: u64, dim in 1usize..5, heads in 1usize..4, head_dim in 1usize..40, hidden in 1usize..140,
        layers in (1usize..3, 1usize..3), separator: bool, user_tokens in 0usize..3, width in 1usize..24, bf16: bool,
        valid_only: bool, library_rows in prop::option::of(1u32..40),
        raw in prop::collection::vec(prop::collection::vec(0u32..300, 1..9), 1..5),
    ) {
        let Some(device) = emulator_with(seed, library_rows) else { return Ok(()) };
        let features = features(300);
        let config = TigerConfig {
            dim: 24 * dim + 3, heads, head_dim, hidden, encoder_layers: layers.0, decoder_layers: layers.1, separator,
            user_tokens, history_cap: 6, ..TigerConfig::default()
        };
        let model = Tiger::new(&config, features.clone(), &Parameters::new(seed).builder()).unwrap();
        let (numbers, tolerance) = if bf16 { (Numbers::Bf16, BF16_TOLERANCE) } else { (Numbers::F32, F32_TOLERANCE) };
        let packed = PackedTiger::new(&model).unwrap();
        let generator = DeviceGenerator::tiger(PackedTiger::new(&model).unwrap(), &device, numbers).unwrap();
        let histories = histories(&raw);
        let user = |at: usize| at.is_multiple_of(2).then_some(UserHash(seed ^ at as u64));
        let histories: Vec<History> =
            histories.iter().enumerate().map(|(at, items)| History { items, user: user(at) }).collect();
        for (items, histories) in [(300, &histories[..]), (300, &histories[..1]), (200, &histories[..])] {
            let table = features.sids();
            let codes = (0..items).flat_map(|item| table.codes(ItemIdx(item as u32)).to_vec()).collect();
            let trie = Trie::build(&SidTable::new(table.spec().clone(), codes).unwrap()).unwrap();
            let live: Vec<_> = histories.iter().map(|h| LiveMask::all(&trie).without(&trie, h.items)).collect();
            let score = if valid_only { ScoreMode::ValidOnly } else { ScoreMode::FullVocab };
            // Rounding may prune other beams; the last of the searches prunes none.
            let width = if bf16 && items == 200 { items } else { width };
            let beams = BeamConfig { score, ..BeamConfig::uniform(width, trie.levels(), width) };
            let search = Search { trie: &trie, config: &beams, live: &live, guidance: None };
            let expected = packed.decode(histories, &search, None).unwrap();
            let found = generator.decode(histories, &search, None).unwrap();
            if bf16 {
                // What is found has the score that it has where nothing is pruned, and the best is found there.
                let all = BeamConfig { score, ..BeamConfig::uniform(items, trie.levels(), items) };
                let every = packed.decode(histories, &Search { config: &all, ..search }, None).unwrap();
                for ((found, expected), every) in found.iter().zip(&expected).zip(&every) {
                    prop_assert_eq!(found.is_empty(), expected.is_empty());
                    if width == items {
                        prop_assert_eq!(found.len(), expected.len());
                        let (a, b) = (found[0].log_prob, expected[0].log_prob);
                        prop_assert!((a - b).abs() < tolerance, "{} {}", a, b);
                    }
                    for a in found {
                        let b = every.iter().find(|b| b.item == a.item).map_or(f32::NAN, |b| b.log_prob);
                        prop_assert!((a.log_prob - b).abs() < tolerance, "{} {}", a.log_prob, b);
                    }
                }
            } else {
                same_lists(&found, &expected, tolerance);
            }
        }
    }

    /// The same of RQT, whose decoder looks back to some states of a history read item by item, with and without guidance
    /// by its dense head, from program to program and after another catalogue has been put in place.
    #[test]
    fn rqt_on_a_device_is_rqt(
        seed: u64, heads in 1usize..4, hidden in 1usize..60, layers in 1usize..3, look_back in 1usize..5,
        width in 1usize..24, valid_only: bool, library_rows in prop::option::of(1u32..40),
        weights in prop::collection::vec(0.0f32..1.2, 2),
        raw in prop::collection::vec(prop::collection::vec(0u32..200, 1..9), 1..5),
    ) {
        let Some(device) = emulator_with(seed, library_rows) else { return Ok(()) };
        let features = features(200);
        let config = RqtConfig {
            dim: 24, heads, head_dim: 10, hidden, layers: 2, decoder_layers: layers, look_back, history_cap: 6,
            content: false, item_embedding: true, dense_weight: 1.0, valid_only, ..RqtConfig::default()
        };
        let model = Rqt::new(&config, features.clone(), &Parameters::new(seed).builder()).unwrap();
        let packed = PackedRqt::new(&model).unwrap();
        let generator = DeviceGenerator::rqt(PackedRqt::new(&model).unwrap(), &device, Numbers::F32).unwrap();
        let (histories, table) = (histories(&raw), model.dense_table().unwrap().unwrap());
        let histories: Vec<History> = histories.iter().map(History::from).collect();
        let score = packed.score_mode();
        for (items, weight) in [(200, None), (200, Some(weights[0].min(1.0))), (150, Some(weights[1].min(1.0))), (150, None)] {
            let codes = (0..items).flat_map(|item| features.codes(ItemIdx(item)).to_vec()).collect();
            let trie = Trie::build(&SidTable::new(features.spec().clone(), codes).unwrap()).unwrap();
            let live: Vec<_> = histories.iter().map(|h| LiveMask::all(&trie).without(&trie, h.items)).collect();
            let beams = BeamConfig { score, ..BeamConfig::uniform(width, trie.levels(), width) };
            let guidance = weight.map(|weight| Guidance { table: table.clone(), weight });
            let search = Search { trie: &trie, config: &beams, live: &live, guidance: guidance.as_ref() };
            let expected = packed.decode(&histories, &search, None).unwrap();
            same_lists(&generator.decode(&histories, &search, None).unwrap(), &expected, F32_TOLERANCE);
        }
    }
}

/// Guidance runs on the device: embedding, 4 a block, the bridge, 3 a level and block, scores of items and their sum, a kernel a
/// level of the trie; the server's searches are of this kind.
#[test]
fn guided_searches_run_on_the_device() {
    let Some(device) = emulator(1) else { return };
    let features = features(300);
    let config = RqtConfig {
        dim: 32,
        heads: 1,
        head_dim: 32,
        layers: 1,
        content: false,
        dense_weight: 1.0,
        guide: 0.9,
        ..RqtConfig::default()
    };
    let model = Rqt::new(&config, features.clone(), &Parameters::new(5).builder()).unwrap();
    let trie = Trie::build(features.sids()).unwrap();
    let generator = DeviceGenerator::rqt(PackedRqt::new(&model).unwrap(), &device, Numbers::F32).unwrap();
    let (live, config) = ([LiveMask::all(&trie)], BeamConfig::uniform(5, trie.levels(), 5));
    let (history, table) = ([ItemIdx(3), ItemIdx(7)], model.dense_table().unwrap().unwrap());
    let run = |guidance: Option<&Guidance>| {
        let search = Search { trie: &trie, config: &config, live: &live, guidance };
        generator.decode(&[History::from(&history)], &search, None).unwrap();
        generator.last_program().unwrap().0
    };
    let plain = run(None);
    assert_eq!(run(Some(&Guidance { table, weight: 0.9 })), plain + 1 + 1 + trie.levels());
}

/// Programs that were used before make room for those that are asked for, until one alone is too large.
#[test]
fn old_programs_make_room_for_new_ones() {
    let features = features(300);
    let config = TigerConfig { hidden: 128, heads: 2, head_dim: 32, dim: 64, history_cap: 2, ..TigerConfig::default() };
    let model = Tiger::new(&config, features.clone(), &Parameters::new(5).builder()).unwrap();
    let trie = Trie::build(features.sids()).unwrap();
    let history = [ItemIdx(3), ItemIdx(7)];
    let decode = |generator: &DeviceGenerator<PackedTiger>, width: usize| -> crate::Result<Vec<Vec<Hypothesis>>> {
        let config = BeamConfig::uniform(width, trie.levels(), width);
        generator.decode_on_device(&[History::from(&history)], &trie, &config, &[LiveMask::all(&trie)], None)
    };
    let on = |device: Arc<dyn Device>| {
        DeviceGenerator::tiger(PackedTiger::new(&model).unwrap(), &device, Numbers::F32).unwrap()
    };
    let Ok(roomy) = Emulator::new(1) else { return };
    let roomy = Arc::new(roomy);
    let generator = on(roomy.clone());
    let expected = decode(&generator, 28).unwrap();
    let (one, program) = (roomy.taken(), generator.last_program().unwrap().1);
    let others = [20, 24].map(|width| decode(&generator, width).unwrap());
    assert!(roomy.taken() > one + program);
    // Room for one program and half of another.
    let small = Arc::new(Emulator::new(1).unwrap().with_room(one + program / 2));
    let generator = on(small.clone());
    for _ in 0..2 {
        assert_eq!(decode(&generator, 28).unwrap(), expected);
        assert_eq!([20, 24].map(|width| decode(&generator, width).unwrap()), others);
        assert!(small.taken() <= one + program / 2);
    }
    let refused = decode(&generator, 1000).unwrap_err();
    assert!(refused.to_string().contains("out of memory"), "{refused}");
    assert_eq!(decode(&generator, 28).unwrap(), expected);
}

/// The paper's size takes the nodes that were counted for it, and threads in another order give the same bits.
#[test]
fn a_request_of_the_papers_size_is_few_kernels() {
    let Some(device) = emulator(1) else { return };
    let features = features(300);
    let config = TigerConfig { hidden: 128, heads: 2, head_dim: 32, dim: 64, history_cap: 2, ..TigerConfig::default() };
    let model = Tiger::new(&config, features.clone(), &Parameters::new(5).builder()).unwrap();
    let trie = Trie::build(features.sids()).unwrap();
    let history = [ItemIdx(3), ItemIdx(7)];
    let decode = |device: &Arc<dyn Device>| {
        let packed = PackedTiger::new(&model).unwrap();
        let generator = DeviceGenerator::tiger(packed, device, Numbers::Bf16).unwrap();
        let config = BeamConfig::uniform(5, trie.levels(), 5);
        let lists = generator
            .decode_on_device(&[History::from(&history)], &trie, &config, &[LiveMask::all(&trie)], None)
            .unwrap();
        (lists, generator.last_program().unwrap())
    };
    let (first, (nodes, bytes)) = decode(&device);
    // Embedding, 4 a block of the encoder, the memory, the first input, 5 a block and level and 3 a level, the items.
    assert_eq!(nodes, 1 + 4 * 4 + 1 + 1 + 4 * (4 * 5 + 3) + 1);
    assert!(bytes > 0);
    // With a library a norm and a product more for every feed-forward network, and the same for queries of the decoder.
    let Some(with_library) = emulator_with(1, Some(1)) else { return };
    let (lists, (more, _)) = decode(&with_library);
    assert_eq!(more, nodes + 4 * 2 + 4 * 4 * (2 + 2));
    same_lists(&lists, &first, BF16_TOLERANCE);
    let Some(other) = emulator(2) else { return };
    assert_eq!(decode(&other).0, first);
    let packed = PackedTiger::new(&model).unwrap();
    let generative = Generative::new(DeviceGenerator::tiger(packed, &device, Numbers::F32).unwrap(), &trie, 5);
    assert_eq!(generative.score_name().unwrap(), "full-vocab");
    assert_eq!(generative.search(&[History::from(&history)], &[LiveMask::all(&trie)], 5, 5, None).unwrap()[0].len(), 5);
}
