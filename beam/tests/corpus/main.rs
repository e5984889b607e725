//! The fuzz targets of `beam/fuzz` as ordinary tests: on their corpus, and on what seeded mutations make of it.

#![allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]

mod index;
mod search;

use beam::Trie;
use rqvae::{Code, SidSpec, SidTable, mix};
use std::fs;
use std::path::Path;

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|path| (path.display().to_string(), fs::read(path).unwrap())).collect()
}

/// Some bytes changed, cut out, doubled or cut off.
fn mutated(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in 0..=seed % 3 {
        let draw = mix(seed ^ change.wrapping_mul(0x5bd1_e995));
        if bytes.is_empty() {
            break;
        }
        let at = (draw >> 8) as usize % bytes.len();
        match draw % 8 {
            0 => bytes.truncate(at),
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, bytes[at]),
            3 => bytes[at] = (draw >> 56) as u8,
            _ => bytes[at] ^= 1 << (draw >> 50 & 7),
        }
    }
    bytes
}

/// Indexes as they are written: dense and sparse levels, shared IDs.
fn written() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let bytes = |(sizes, items): (&[u32], usize)| {
        let spec = SidSpec { codebook_sizes: sizes.to_vec(), suffix_size: None };
        let code = |at: usize| (mix(at as u64 ^ 0x51) % u64::from(sizes[at % sizes.len()])) as Code;
        let table = SidTable::new(spec, (0..items * sizes.len()).map(code).collect()).unwrap();
        Trie::build(&table).unwrap().write(&path).unwrap();
        fs::read(&path).unwrap()
    };
    [(&[4, 5, 300][..], 60), (&[2][..], 1), (&[80, 70][..], 600), (&[3, 3, 3, 3][..], 0)].map(bytes).to_vec()
}

#[test]
fn index_files_are_opened_or_refused() {
    let mut opened = 0;
    for bytes in written() {
        assert!(index::run(&bytes));
        assert_eq!(index::repaired(&bytes).as_ref(), Some(&bytes));
        for seed in 0..300 {
            let damaged = mutated(&bytes, seed);
            let repaired = index::repaired(&damaged);
            assert!(damaged == bytes || !index::run(&damaged) || repaired == Some(damaged));
            // Under a right digest, what is read has to be looked at.
            opened += usize::from(repaired.is_some_and(|repaired| index::run(&repaired)));
        }
    }
    assert!(opened < 800, "{opened} of 1,200 damaged indexes opened");
    for (name, bytes) in corpus("index") {
        assert!(!index::run(&bytes), "{name}");
        assert!(!index::repaired(&bytes).is_some_and(|bytes| index::run(&bytes)), "{name}");
    }
}

#[test]
fn searches_are_exhaustive() {
    let seeds = corpus("search");
    let mut cases = 0;
    for (_, bytes) in &seeds {
        search::run(bytes);
        for seed in 0..100 {
            cases += usize::from(search::run(&mutated(bytes, seed)));
        }
    }
    for case in 0..3000u64 {
        let bytes: Vec<u8> = (0..40 + case % 160).map(|at| (mix(case << 20 | at) >> 32) as u8).collect();
        cases += usize::from(search::run(&bytes));
    }
    assert!(seeds.len() > 3 && cases > 2500, "{cases} cases of {} seeds", seeds.len());
}
