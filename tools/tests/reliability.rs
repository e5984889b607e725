//! Training that is damaged or cut short, from outside.

#![allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]

use rqvae::CheckpointDir;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A folder with a catalogue and interactions.
struct Shop(tempfile::TempDir);

impl Shop {
    fn new() -> Self {
        let shop = Self(tempfile::tempdir().unwrap());
        let build = ["sids", "build", "--items", "shop/items.jsonl", "--encoder", "hashed", "--codebook-size", "16"];
        for args in [
            &["data", "make-demo", "--items", "480", "--users", "200", "--out", "shop"][..],
            &[&build[..], &["--out", "catalogue"]].concat(),
        ] {
            let output = shop.command(args).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sidrec"));
        command.args(args).current_dir(self.0.path());
        command
    }

    fn train(&self, more: &[&str]) -> Command {
        let base = ["train", "--catalogue", "catalogue", "--interactions", "shop/interactions.csv", "--out", "run"];
        self.command(&[&base[..], more].concat())
    }

    /// Newest checkpoint, which is whole.
    fn latest(&self) -> PathBuf {
        CheckpointDir::open(&self.path("run")).latest().unwrap().unwrap().file("")
    }
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A damaged newest checkpoint is named, the one before it is gone on from, and the end is the same to the bit.
#[test]
fn a_damaged_checkpoint_costs_the_steps_since_the_one_before() {
    let shop = Shop::new();
    let quick = ["--preset", "quick"];
    let train = |more: &[&str]| shop.train(&[&quick[..], more].concat()).output().unwrap();
    assert!(train(&[]).status.success());
    let steady = |text: String| -> Vec<String> {
        let strip = |line: &str| {
            let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
            (record["seconds"], record["examples_per_second"]) = (0.into(), 0.into());
            record.to_string()
        };
        text.lines().map(strip).collect()
    };
    let metrics = || steady(fs::read_to_string(shop.path("run/metrics.jsonl")).unwrap());
    let (latest, whole, records) = (shop.latest(), files(&shop.latest()), metrics());
    for name in ["model.safetensors", "optimizer.safetensors", "model.toml", "state.json", "manifest.json"] {
        let path = latest.join(name);
        let bytes = fs::read(&path).unwrap();
        if name.len().is_multiple_of(2) {
            fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        } else {
            let mut bytes = bytes;
            let at = bytes.len() / 3;
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
        let output = train(&["--resume"]);
        assert!(output.status.success() && message(&output).contains(name), "{name}: {}", message(&output));
        assert_eq!((shop.latest(), metrics()), (latest.clone(), records.clone()), "{name}");
        for (path, bytes) in files(&latest) {
            let is_state = path.ends_with("state.json") || path.ends_with("manifest.json");
            // Of what is told about time.
            assert!(is_state || whole[&path] == bytes, "{}", path.display());
        }
    }
    // With none left there is nothing to go on from.
    for entry in fs::read_dir(shop.path("run")).unwrap() {
        let weights = entry.unwrap().path().join("model.safetensors");
        if weights.exists() {
            fs::write(weights, b"torn").unwrap();
        }
    }
    let output = train(&["--resume"]);
    assert_eq!(output.status.code(), Some(65), "{}", message(&output));
    assert!(message(&output).contains("model.safetensors"), "{}", message(&output));
}

/// Waits until steps are being made.
fn at_work(child: &mut Child) {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("train tiger")), "no training");
    std::thread::spawn(move || lines.for_each(drop));
    std::thread::sleep(Duration::from_millis(700));
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// The first signal ends a run after the step at hand, with a checkpoint; the second at once, without one.
#[test]
fn a_second_signal_ends_at_once_and_touches_no_checkpoint() {
    let shop = Shop::new();
    // A step of seconds: long enough for two signals.
    let paper = ["--model", "tiger", "--preset", "paper", "--set", "train.batch_size=512"];
    let start = |more: &[&str]| {
        let mut child = shop.train(&[&paper[..], more].concat()).stderr(Stdio::piped()).spawn().unwrap();
        at_work(&mut child);
        child
    };
    let mut child = start(&[]);
    let began = Instant::now();
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    for (second, code) in [("-INT", 130), ("-TERM", 143)] {
        // On a machine whose steps are short the clean stop may win.
        let at_once = (0..5).any(|_| {
            let (latest, before) = (shop.latest(), files(&shop.latest()));
            let mut child = start(&["--resume"]);
            signal(&child, "-INT");
            std::thread::sleep(Duration::from_millis(100));
            let (began, running) = (Instant::now(), child.try_wait().unwrap().is_none());
            if running {
                signal(&child, second);
            }
            let ended = child.wait().unwrap().code();
            let clean = shop.latest() != latest;
            assert!(ended == Some(code) || (clean && ended == Some(130)), "{ended:?}");
            assert!(clean || (files(&latest) == before && began.elapsed() < Duration::from_secs(2)));
            !clean
        });
        assert!(at_once, "{second}");
    }
}

/// One trainer a directory: a second one is told who is there and touches nothing; the lock of a dead one holds nobody up.
#[test]
fn a_directory_belongs_to_one_trainer_while_it_lives() {
    let shop = Shop::new();
    let paper = ["--model", "tiger", "--preset", "paper", "--set", "train.batch_size=64"];
    let mut child = shop.train(&paper).stderr(Stdio::piped()).spawn().unwrap();
    at_work(&mut child);
    let before = files(&shop.path("run"));
    for more in [&["--resume"][..], &[]] {
        let output = shop.train(&[&paper[..], more].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(73), "{}", message(&output));
        if !more.is_empty() {
            assert!(message(&output).contains(&format!("process {}", child.id())), "{}", message(&output));
        }
    }
    assert!(before.keys().all(|path| path.exists()), "something is gone");
    signal(&child, "-KILL");
    child.wait().unwrap();
    let output = shop.train(&[&paper[..], &["--resume", "--time-limit", "1"]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", message(&output));
}
