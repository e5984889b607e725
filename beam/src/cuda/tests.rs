//! The beam step of a device against its twin on the CPU, and the compiler on every kernel.

use super::*;
use crate::search::tests::made_up;
use crate::trie::build_tests::{dense_table, table};
use crate::{BeamConfig, BeamKernel, LiveMask, ScoreMode, Trie};
use proptest::prelude::*;
use rqvae::{Code, ItemIdx, SidSpec, SidTable};
use std::path::PathBuf;
use std::sync::Arc;

/// Says loudly that something was not tested.
fn skip(what: &str, reason: &dyn std::fmt::Display) {
    eprintln!("SKIPPED {what}: {reason}");
}

fn emulator(seed: u64) -> Option<Arc<dyn Device>> {
    match Emulator::new(seed) {
        Ok(emulator) => Some(Arc::new(emulator)),
        Err(e) if e.to_string().contains("no C++ compiler") => {
            skip("kernels on the emulator", &e);
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// The same search by both twins; lists must be equal bit for bit.
fn twins(
    device: &Arc<dyn Device>,
    index: &Arc<DeviceIndex>,
    config: &BeamConfig,
    seeds: &[u64],
    masks: &[LiveMask],
) -> usize {
    let raw = |request: usize, prefix: &[Code], logits: &mut [f32]| {
        made_up(seeds[request], prefix, logits);
        // Infinite logits leave no distribution; a model has none.
        logits.iter_mut().filter(|x| **x == f32::INFINITY || x.is_nan()).for_each(|x| *x = 0.5);
    };
    let [found, expected] = twin::both(device, index, config, masks, raw).unwrap();
    assert_eq!(found.len(), seeds.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert_eq!((a.item, a.sid, a.log_prob.to_bits()), (b.item, b.sid, b.log_prob.to_bits()));
        }
    }
    expected.iter().map(Vec::len).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    /// Bit for bit the lists of the reference: sparse and dense levels, all kinds of masks, tries put in place of each
    /// other, threads in any order.
    #[test]
    fn the_device_is_the_reference(
        table in prop_oneof![table(), dense_table()],
        aliases: bool,
        owners in prop::collection::vec(0u32..120, 400),
        order: u64,
        seeds in prop::collection::vec(any::<u64>(), 1..4),
        stock in prop::option::of(any::<u64>()),
        lists in prop::collection::vec((0u8..3, prop::collection::vec(0u32..200, 0..40)), 4),
        widths in prop::collection::vec(prop_oneof![1usize..8, 1usize..90], 5),
        valid_only: bool,
    ) {
        let Some(device) = emulator(order) else { return Ok(()) };
        let trie = if aliases {
            let owners: Vec<_> = owners[..table.items()].iter().map(|owner| ItemIdx(*owner)).collect();
            Trie::build_aliases(&table, &owners).unwrap()
        } else {
            Trie::build(&table).unwrap()
        };
        let base = stock.map_or_else(|| LiveMask::all(&trie), |stock| trie.live(|item| stock >> (item.0 % 61) & 1 == 1));
        let masks: Vec<LiveMask> = seeds.iter().zip(&lists).map(|(_, (kind, items))| {
            let items: Vec<_> = items.iter().map(|item| ItemIdx(*item)).collect();
            match kind {
                0 => base.clone(),
                1 => base.without(&trie, &items),
                _ => base.only(&trie, &items),
            }
        }).collect();
        let widths = widths[..trie.levels()].to_vec();
        let score = if valid_only { ScoreMode::ValidOnly } else { ScoreMode::FullVocab };
        let top_k = widths[widths.len() - 1];
        let config = BeamConfig { widths, top_k, score };
        // Another catalogue of the same shape was there first.
        let spec = trie.spec().clone();
        let first = SidTable::new(spec.clone(), vec![0; spec.len()]).unwrap();
        let index = Arc::new(DeviceIndex::new(&device, &Trie::build(&first).unwrap()).unwrap());
        index.replace(&trie).unwrap();
        twins(&device, &index, &config, &seeds, &masks);
    }
}

/// More candidates than a block's buffer holds, in several parts, at the widest beam.
#[test]
fn many_candidates_are_cut_exactly() {
    let Some(device) = emulator(1) else { return };
    let spec = SidSpec { codebook_sizes: vec![300, 400], suffix_size: None };
    let codes = (0..60_000u32).flat_map(|i| {
        let x = i.wrapping_mul(0x9e37_79b9);
        [((x >> 16) % 300) as Code, ((x >> 3) % 400) as Code]
    });
    let trie = Trie::build(&SidTable::new(spec, codes.collect()).unwrap()).unwrap();
    let index = Arc::new(DeviceIndex::new(&device, &trie).unwrap());
    let config = BeamConfig { widths: vec![200, MAX_WIDTH], top_k: MAX_WIDTH, score: ScoreMode::FullVocab };
    let found = twins(&device, &index, &config, &[7], &[LiveMask::all(&trie)]);
    assert_eq!(found, MAX_WIDTH);
}

#[test]
fn bad_arguments_are_named() {
    let Some(device) = emulator(1) else { return };
    let spec = SidSpec { codebook_sizes: vec![2, 3], suffix_size: None };
    let trie = Trie::build(&SidTable::new(spec, vec![0, 0, 0, 2, 1, 1]).unwrap()).unwrap();
    let index = Arc::new(DeviceIndex::new(&device, &trie).unwrap());
    let config = BeamConfig::uniform(3, 2, 3);
    let kernel = DeviceKernel::new(&device, &index, Numbers::F32, &config).unwrap();
    let refuses = |config: BeamConfig| DeviceKernel::new(&device, &index, Numbers::F32, &config).is_err();
    assert!(refuses(BeamConfig::uniform(MAX_WIDTH + 1, 2, 1)) && refuses(BeamConfig::uniform(3, 1, 1)));
    assert!(kernel.start(2, &[LiveMask::all(&trie)], ScoreMode::FullVocab).is_err());
    let mut beams = kernel.start(1, &[LiveMask::all(&trie)], ScoreMode::FullVocab).unwrap();
    let wrong = DeviceScores { tiles: 9, ..beams.scores(2) };
    assert!(kernel.step(&mut beams, &wrong, 3).is_err());
    let right = beams.scores(2);
    assert!(kernel.step(&mut beams, &right, 2).is_err());
    let mut delta = crate::TrieDelta::new(&trie);
    delta.remove(ItemIdx(1));
    let error = index.masks(&[delta.mask()]).err().unwrap().to_string();
    assert!(error.contains("added or removed since"), "{error}");
    let other = SidSpec { codebook_sizes: vec![2, 4], suffix_size: None };
    let other = Trie::build(&SidTable::new(other, vec![0, 0]).unwrap()).unwrap();
    assert!(index.replace(&other).is_err());
}

/// A program that a device refuses is an error and no crash.
#[test]
fn the_emulator_notices_what_a_device_would_not() {
    let Some(device) = emulator(1) else { return };
    let memory = Memory::new(&device, 64).unwrap();
    let run = |launch: Launch| {
        let program = Program { numbers: Numbers::F32, launches: vec![launch] };
        device.prepare(&program).and_then(|mut program| program.run()).map_err(|e| e.to_string())
    };
    let args = |rows: u32| EmbedArgs { x: memory.address(), rows, same: u32::MAX, ldx: 16, ..EmbedArgs::default() };
    assert!(run(Launch::new("embed", [1, 1, 1], 256, 0, &args(1))).is_ok());
    assert!(device.read(memory.address(), &mut [0; 64]).is_ok());
    assert!(run(Launch::new("embed", [1, 1, 1], 40, 0, &args(1))).unwrap_err().contains("whole warps"));
    assert!(run(Launch::new("nothing", [1, 1, 1], 32, 0, &args(1))).unwrap_err().contains("no kernel"));
    assert!(device.read(memory.address() + 32, &mut [0; 64]).is_err());
    // The second row lies behind the memory.
    run(Launch::new("embed", [1, 1, 1], 256, 0, &args(2))).unwrap();
    assert!(device.read(memory.address(), &mut [0; 64]).unwrap_err().to_string().contains("outside"));
}

/// Every kernel for every kind of device, within its budget.
#[test]
fn every_kernel_compiles_without_spills() {
    let folder = std::env::var_os("SIDREC_NVRTC").map(PathBuf::from);
    let cache = std::env::temp_dir().join("sidrec-kernels-test");
    let compiler = match Compiler::new(folder.as_deref(), Some(cache)) {
        Ok(compiler) => compiler,
        Err(e) => return skip("compiling kernels", &e),
    };
    let mut complaints = Vec::new();
    for arch in ["sm_80", "sm_90", "sm_90a"] {
        for (unit, numbers) in
            UNITS.iter().chain(TRAIN_UNITS).flat_map(|unit| Numbers::ALL.map(|numbers| (unit, numbers)))
        {
            let compiled = compiler.compile(unit, numbers, arch).unwrap();
            assert_eq!(&compiled.cubin[..4], b"\x7fELF");
            for (kernel, usage) in unit.kernels.iter().zip(&compiled.usage) {
                complaints.extend(usage.complaint(kernel).map(|complaint| format!("{arch} {numbers} {complaint}")));
            }
        }
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
}
