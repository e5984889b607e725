//! What takes longer than a test should; not run unless asked for:
//!
//! ```sh
//! SIDREC_SECONDS=1800 cargo test --release -p tools --test serve -- --ignored --nocapture soak
//! SIDREC_SECONDS=300  cargo test --release -p tools --test serve -- --ignored --nocapture pointer
//! SIDREC_SECONDS=60   cargo test --release -p tools --test serve -- --ignored --nocapture latency_during_swaps
//! SIDREC_ITEMS=10000000 cargo test --release -p tools --test serve -- --ignored --nocapture many_items
//! ```

use super::client::{Client, entry, ids};
use super::process::{signal, start};
use super::server::{LAB, Running, copy};
use rand::{Rng, SeedableRng};
use rqvae::{ItemIdx, SidSpec, SidTable, Vectors};
use serde_json::json;
use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tools::catalogue::{Catalogue, ItemCard, Origin};
use tools::jobs::train;
use tools::models::{Asking, RunConfig};
use tools::serve::version::{Source, Version};
use tools::table::{ItemKeys, ReadOptions, read_interactions};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn seconds(default: u64) -> Duration {
    Duration::from_secs(number("SIDREC_SECONDS", default))
}

/// Memory in KiB, threads and open files of a process.
fn sample(pid: u32) -> (f64, usize, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| -> usize {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    (field("VmRSS:") as f64, field("Threads:"), files)
}

/// M1: mixed traffic, 5 % malformed, 2 % given up, a swap each minute.
#[test]
#[ignore = "takes as long as it is told to"]
fn soak() {
    let time = seconds(60);
    let source = LAB.source("a");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidrec"));
    command.arg("serve").arg("--run").arg(source.run).arg("--catalogue").arg(source.catalogue);
    command.args(["--addr", "127.0.0.1:0"]).env("SIDREC_LOG", "error").stderr(Stdio::piped());
    let (mut child, address) = start(command);
    let keys: Vec<String> = LAB.catalogue().keys.iter().map(str::to_string).collect();
    let began = Instant::now();
    let (answers, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut samples = Vec::new();
    std::thread::scope(|scope| {
        for lane in 0..4 {
            let (keys, answers, wrong) = (&keys, &answers, &wrong);
            scope.spawn(move || {
                let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(lane);
                let mut client = Client::new(address);
                while began.elapsed() < time {
                    let some: Vec<&str> = (0..rng.random_range(1..8)).map(|_| &*keys[rng.random_range(0..keys.len())]).collect();
                    let body = entry(&some);
                    let luck: f64 = rng.random();
                    if luck < 0.02 {
                        let text = body.to_string();
                        let head = format!("POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}", text.len());
                        client.send(head.as_bytes()).unwrap();
                        client = Client::new(address);
                        continue;
                    }
                    let (expected, status) = if luck < 0.07 {
                        let text = &body.to_string()[3..];
                        (400, client.ask("POST", "/v1/recommend", "content-type: application/json\r\n", text).unwrap().status)
                    } else {
                        (200, client.post("/v1/recommend", &body).status)
                    };
                    answers.fetch_add(1, Ordering::Relaxed);
                    wrong.fetch_add(usize::from(status != expected), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(rng.random_range(2..10)));
                }
            });
        }
        scope.spawn(|| {
            let mut next = Duration::from_secs(20);
            while began.elapsed() < time {
                std::thread::sleep(Duration::from_millis(200));
                if began.elapsed() > next {
                    next += Duration::from_mins(1);
                    assert_eq!(Client::new(address).post("/v1/admin/reload", &json!({})).status, 200);
                }
            }
        });
        while began.elapsed() < time {
            std::thread::sleep(Duration::from_secs(1));
            samples.push((began.elapsed().as_secs_f64(), sample(child.id())));
        }
    });
    let series = Client::new(address).get("/metrics").body.lines().filter(|line| !line.starts_with('#')).count();
    let warm = &samples[samples.len() / 5..];
    let mean = |f: &dyn Fn(&(f64, (f64, usize, usize))) -> f64| warm.iter().map(f).sum::<f64>() / warm.len() as f64;
    let (t, m) = (mean(&|s| s.0), mean(&|s| s.1.0));
    let slope = mean(&|s| (s.0 - t) * (s.1.0 - m)) / mean(&|s| (s.0 - t) * (s.0 - t)).max(1e-9) * 3600.0 / 1024.0;
    let range = |f: &dyn Fn(&(f64, (f64, usize, usize))) -> usize| {
        (warm.iter().map(f).min().unwrap(), warm.iter().map(f).max().unwrap())
    };
    let growth = (warm.last().unwrap().1.0 - warm[0].1.0) / 1024.0;
    eprintln!(
        "{:.0} s, {} answers, {} wrong; memory {:.1} MiB, slope {slope:.2} MiB/h, growth {growth:.1} MiB; threads {:?}, files {:?}, {series} series",
        time.as_secs_f64(),
        answers.load(Ordering::Relaxed),
        wrong.load(Ordering::Relaxed),
        m / 1024.0,
        range(&|s| s.1.1),
        range(&|s| s.1.2)
    );
    assert_eq!(wrong.into_inner(), 0);
    assert!(growth < 16.0, "{growth}");
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// H4: memory after many swaps is that of one version.
#[test]
#[ignore = "measures memory, which other tests in the same process would change"]
fn memory_after_swaps() {
    let source = LAB.source("a");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidrec"));
    command.arg("serve").arg("--run").arg(source.run).arg("--catalogue").arg(source.catalogue);
    command.args(["--addr", "127.0.0.1:0"]).env("SIDREC_LOG", "error").stderr(Stdio::piped());
    let (mut child, address) = start(command);
    let mut client = Client::new(address);
    let key = LAB.catalogue().keys.key(ItemIdx(0)).to_string();
    let mut swaps = |count: usize| {
        for _ in 0..count {
            assert_eq!(client.post("/v1/admin/reload", &json!({})).status, 200);
            assert_eq!(client.post("/v1/recommend", &entry(&[&key])).status, 200);
        }
        std::thread::sleep(Duration::from_secs(1));
        sample(child.id()).0 / 1024.0
    };
    let (one, few, many) = (swaps(0), swaps(20), swaps(200));
    eprintln!("memory {one:.1} MiB with one version, {few:.1} after 20 swaps, {many:.1} after 200 more");
    assert!(many < 1.1 * few + 2.0);
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// H7: a builder replaces the pointer file while the server follows it; old folders go once nobody reads them.
#[test]
#[ignore = "takes as long as it is told to"]
fn pointer() {
    let time = seconds(30);
    let dir = tempfile::tempdir().unwrap();
    let versions = dir.path().join("versions");
    copy(&LAB.source("a").catalogue, &versions.join("v0"));
    std::fs::write(versions.join("current"), "v0").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidrec"));
    command.arg("serve").arg("--run").arg(LAB.source("a").run).arg("--catalogue").arg(&versions);
    command.args(["--addr", "127.0.0.1:0", "--watch"]).env("SIDREC_LOG", "error").stderr(Stdio::piped());
    let (mut child, address) = start(command);
    let key = LAB.catalogue().keys.key(ItemIdx(0)).to_string();
    let (began, done) = (Instant::now(), AtomicBool::new(false));
    let mut seen = BTreeSet::new();
    let mut built = 0;
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let (mut client, mut seen, mut count) = (Client::new(address), BTreeSet::new(), 0);
            while !done.load(Ordering::Relaxed) {
                let answer = client.post("/v1/recommend", &entry(&[&key]));
                assert_eq!(answer.status, 200, "{}", answer.body);
                let value = answer.json();
                assert_eq!(ids(&value).len(), 5);
                seen.insert(value["index_version"].as_str().unwrap().to_string());
                count += 1;
            }
            (seen, count)
        });
        while began.elapsed() < time {
            let gone = dir.path().join("gone.csv");
            let last = LAB.catalogue().keys.key(ItemIdx(1 + built as u32 % 200)).to_string();
            std::fs::write(&gone, format!("item_id\n{last}\n")).unwrap();
            let (from, to) = (versions.join(format!("v{built}")), versions.join(format!("v{}", built + 1)));
            let output = Command::new(env!("CARGO_BIN_EXE_sidrec"))
                .args(["sids", "remove"])
                .arg(&from)
                .arg("--items")
                .arg(&gone)
                .arg("--out")
                .arg(&to)
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            built += 1;
            std::fs::write(versions.join("next"), format!("v{built}")).unwrap();
            std::fs::rename(versions.join("next"), versions.join("current")).unwrap();
            std::thread::sleep(Duration::from_millis(1500));
            if built > 2 {
                std::fs::remove_dir_all(versions.join(format!("v{}", built - 3))).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
        let (versions, count) = client.join().unwrap();
        eprintln!("{built} versions built, {} of them seen in {count} answers, none failed", versions.len());
        seen = versions;
    });
    assert!(seen.len() > built / 3, "{} of {built}", seen.len());
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// H6: the slow hundredth during swaps beside that without, at a modest rate.
#[test]
#[ignore = "takes as long as it is told to"]
fn latency_during_swaps() {
    let time = seconds(20);
    let server = Running::model(&LAB.source("a"));
    let key = LAB.catalogue().keys.key(ItemIdx(0)).to_string();
    let body = entry(&[&key]);
    let p99 = |swapping: bool| {
        let done = AtomicBool::new(false);
        let (began, mut took, mut swaps) = (Instant::now(), Vec::new(), 0);
        std::thread::scope(|scope| {
            let swapper = scope.spawn(|| {
                let mut swaps = 0;
                while swapping && !done.load(Ordering::Relaxed) {
                    assert_eq!(server.client().post("/v1/admin/reload", &json!({})).status, 200);
                    swaps += 1;
                    std::thread::sleep(Duration::from_millis(500));
                }
                swaps
            });
            let mut client = server.client();
            while began.elapsed() < time {
                took.push(client.post("/v1/recommend", &body).took);
                std::thread::sleep(Duration::from_millis(5));
            }
            done.store(true, Ordering::Relaxed);
            swaps = swapper.join().unwrap();
        });
        took.sort();
        (took[took.len() * 99 / 100], swaps)
    };
    let (steady, _) = p99(false);
    let (swapped, swaps) = p99(true);
    let ratio = swapped.as_secs_f64() / steady.as_secs_f64();
    eprintln!("p99 {steady:?} steady, {swapped:?} during {swaps} swaps: {ratio:.2} times");
    server.stop();
}

/// From nothing to ready over a large index.
#[test]
#[ignore = "as large as it is told to be"]
fn many_items() {
    let items = number("SIDREC_ITEMS", 100_000) as usize;
    let dir = tempfile::tempdir().unwrap();
    let spec = SidSpec { codebook_sizes: vec![2048, 2048, 2048], suffix_size: Some(16) };
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let codes = (0..items).flat_map(|_| {
        let mut code = || rng.random_range(0..2048u16);
        [code(), code(), code(), 0]
    });
    let sids = SidTable::new(spec, codes.collect()).unwrap();
    let keys: Vec<String> = (0..items).map(|item| format!("item-{item:08}")).collect();
    let cards = keys.iter().map(|key| ItemCard { item_id: key.clone().into(), ..ItemCard::default() }).collect();
    let catalogue = Catalogue {
        trie: beam::Trie::build(&sids).unwrap(),
        keys: ItemKeys::new(keys).unwrap(),
        sids,
        lineage: Vec::new(),
        removed: Vec::new(),
        cards,
        content: Vectors::new(2, vec![0.5; 2 * items]).unwrap(),
        origin: Origin::default(),
    };
    let history = dir.path().join("history.csv");
    let row = |at: usize| format!("u{},item-{:08},{at}", at / 8, at * 17 % items);
    let rows: Vec<String> = std::iter::once("user_id,item_id,timestamp".into()).chain((0..40).map(row)).collect();
    std::fs::write(&history, rows.join("\n")).unwrap();
    let interactions = read_interactions(&history, &catalogue.keys, &ReadOptions::default()).unwrap();
    let mut config = RunConfig::preset("tiger", "quick").unwrap();
    config.train.max_epochs = 1;
    let source = Source {
        run: dir.path().join("run"),
        catalogue: dir.path().join("catalogue"),
        asking: Asking { device: tools::gpu::DeviceChoice::Cpu, ..Asking::default() },
    };
    let interrupt = tools::interrupt::Interrupt::install().unwrap();
    train::run(&config, &catalogue, &interactions, &source.run, false, None, &interrupt).unwrap();
    catalogue.write_packed(&source.catalogue, false).unwrap();
    drop(catalogue);
    let began = Instant::now();
    let version = Version::load(&source).unwrap();
    eprintln!(
        "{items} items: ready after {:.2} s, index {} MiB",
        began.elapsed().as_secs_f64(),
        version.catalogue.trie.size_bytes() >> 20
    );
}
