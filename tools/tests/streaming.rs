//! A streamed build of semantic IDs that is killed, from outside.

#![allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidrec"));
    command.args(args).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Every file below `folder` but the manifest, which tells how long things took.
fn bytes(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("manifest.json") {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// A build that is killed again and again, wherever it happens to be, goes on each time and ends with the same bytes.
#[test]
fn a_build_killed_at_any_time_ends_with_the_same_bytes() {
    let shop = tempfile::tempdir().unwrap();
    let at = |name: &str| shop.path().join(name);
    let vectors = ["data", "make-vectors", "--items", "30000", "--dim", "16", "--out", "items.parquet"];
    assert!(command(shop.path(), &vectors).status().unwrap().success());
    let build = |out: &'static str, resume: bool| {
        let mut args = vec!["sids", "build", "--items", "items.parquet", "--stream", "--out", out];
        args.extend(["--codebook-size", "32", "--shard-items", "2000", "--fit-items", "4000"]);
        if resume {
            args.push("--resume");
        }
        command(shop.path(), &args)
    };
    let began = Instant::now();
    assert!(build("whole", false).status().unwrap().success());
    let whole = began.elapsed();
    let mut kills = 0;
    for round in 0..12u64 {
        let mut child = build("out", round > 0 && fs::read_dir(shop.path()).unwrap().count() > 2).spawn().unwrap();
        let until = Instant::now() + whole.mul_f64((rqvae::mix(round) % 90) as f64 / 100.0 + 0.05);
        while Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
        if at("out").exists() {
            break;
        }
        // As a kill in the middle of a write leaves it; a build that was killed before it had a folder leaves none.
        let mut folders = fs::read_dir(shop.path()).unwrap().map(|entry| entry.unwrap().path().join("sids"));
        if let Some(shards) = folders.find(|path| path.is_dir() && !path.starts_with(at("whole"))) {
            fs::write(shards.join(".part-00003.parquet.1.tmp"), "torn").unwrap();
        }
    }
    assert!(kills > 0, "no build was killed");
    if !at("out").exists() {
        assert!(build("out", true).status().unwrap().success());
    }
    let (expected, found) = (bytes(&at("whole")), bytes(&at("out")));
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    expected.iter().for_each(|(name, bytes)| assert!(found[name] == *bytes, "{name} differs after {kills} kills"));
    assert!(fs::read_dir(shop.path()).unwrap().all(|entry| {
        let name = entry.unwrap().file_name();
        ["items.parquet", "whole", "out"].iter().any(|known| name == *known)
    }));
}
