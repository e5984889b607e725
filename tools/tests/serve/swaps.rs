//! H1 to H5: the next version in place of the old one, under load, damaged, of another model, in storms.

use super::client::{Client, entry, ids};
use super::server::{LAB, Running, copy};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Equal ids with different semantic IDs and another model: every answer is that of the index that it names.
#[test]
fn answers_belong_to_the_index_they_name() {
    let keys: Vec<String> = (0..40).map(|row| LAB.catalogue().keys.key(rqvae::ItemIdx(row)).to_string()).collect();
    let place = |name: &str| json!({"run": LAB.source(name).run, "catalogue": LAB.source(name).catalogue});
    let server = Running::model(&LAB.source("a"));
    let lists = || -> (String, Vec<Vec<String>>) {
        let mut client = server.client();
        let answers: Vec<_> = keys.iter().map(|key| client.post("/v1/recommend", &entry(&[key])).json()).collect();
        (answers[0]["index_version"].as_str().unwrap().to_string(), answers.iter().map(ids).collect())
    };
    let mut expected = BTreeMap::new();
    for name in ["b", "a"] {
        assert_eq!(server.client().post("/v1/admin/reload", &place(name)).status, 200);
        let (version, lists) = lists();
        expected.insert(version, lists);
    }
    assert_eq!(expected.len(), 2);
    let (done, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut swaps = 0;
    std::thread::scope(|scope| {
        for offset in 0..4 {
            let (expected, keys, done, answers, address) = (&expected, &keys, &done, &answers, server.address);
            scope.spawn(move || {
                let mut client = Client::new(address);
                for at in offset.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let at = at % keys.len();
                    let answer = client.post("/v1/recommend", &entry(&[&keys[at]]));
                    assert_eq!(answer.status, 200, "{}", answer.body);
                    let value = answer.json();
                    assert_eq!(ids(&value), expected[value["index_version"].as_str().unwrap()][at]);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(6) {
            let name = if swaps % 2 == 0 { "b" } else { "a" };
            assert_eq!(server.client().post("/v1/admin/reload", &place(name)).status, 200);
            swaps += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
    eprintln!("{swaps} swaps, {} answers, all right", answers.load(Ordering::Relaxed));
    assert!(swaps >= 10 && answers.into_inner() > 100);
    server.stop();
}

#[test]
fn what_does_not_fit_is_refused_and_the_old_version_serves_on() {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::model(&LAB.source("a"));
    let mut client = server.client();
    let before = client.get("/v1/info").json();
    let mut refused = |body: serde_json::Value, word: &str| {
        let answer = client.post("/v1/admin/reload", &body);
        assert_eq!(answer.status, 409, "{}", answer.body);
        assert!(answer.body.contains(word), "expected `{word}` in {}", answer.body);
        let now = client.get("/v1/info").json();
        assert_eq!(
            (&now["index_version"], &now["model_version"]),
            (&before["index_version"], &before["model_version"])
        );
    };
    // Of another model.
    refused(json!({"catalogue": LAB.source("b").catalogue}), "trained on SID table");
    refused(json!({"run": dir.path().join("nowhere")}), "nowhere");
    // Damaged, cut short, half copied: every file of the catalogue in turn.
    let whole = LAB.source("a").catalogue;
    for name in
        ["index.safetensors", "vectors.safetensors", "items.jsonl", "manifest.json", "quantizer/quantizer.safetensors"]
    {
        for (kind, damage) in [("flipped", 0), ("cut", 1), ("missing", 2)] {
            let broken = dir.path().join(format!("{}-{kind}", name.replace('/', "-")));
            copy(&whole, &broken);
            let path = broken.join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            match damage {
                0 => {
                    // What the manifest says of its origin is for people; it ends with the digests of the files.
                    let at = if name == "manifest.json" { bytes.len() - 20 } else { bytes.len() / 2 };
                    bytes[at] ^= 0x10;
                    std::fs::write(&path, bytes).unwrap();
                }
                1 => std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap(),
                _ => std::fs::remove_file(&path).unwrap(),
            }
            refused(json!({"catalogue": broken}), broken.file_name().unwrap().to_str().unwrap());
        }
    }
    server.stop();
}

#[test]
fn two_versions_that_do_not_fit_are_refused() {
    let source = LAB.source("a");
    assert!(source.check_room(None).is_ok() && source.check_room(Some(1 << 40)).is_ok());
    let message = source.check_room(Some(100_000)).unwrap_err().to_string();
    assert!(message.contains("do not fit"), "{message}");
}

#[test]
fn a_storm_of_reloads_is_one_load_at_a_time() {
    let server = Running::model(&LAB.source("a"));
    let codes: Vec<u16> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..100).map(|_| scope.spawn(|| server.client().post("/v1/admin/reload", &json!({})).status)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(codes.iter().all(|code| [200, 409].contains(code)), "{codes:?}");
    assert!(codes.contains(&200));
    let key = LAB.catalogue().keys.key(rqvae::ItemIdx(0)).to_string();
    assert_eq!(server.client().post("/v1/recommend", &entry(&[&key])).status, 200);
    server.stop();
}

/// F6: any one byte of an index that has changed is noticed.
#[test]
fn every_flipped_byte_of_an_index_is_refused() {
    use rand::{Rng, SeedableRng};
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("catalogue");
    copy(&LAB.source("a").catalogue, &broken);
    let path = broken.join("index.safetensors");
    let whole = std::fs::read(&path).unwrap();
    assert!(tools::catalogue::Catalogue::open(&broken).is_ok());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(6);
    for _ in 0..2000 {
        let mut bytes = whole.clone();
        let at = rng.random_range(0..bytes.len());
        bytes[at] ^= 1 << rng.random_range(0..8);
        std::fs::write(&path, bytes).unwrap();
        assert!(tools::catalogue::Catalogue::open(&broken).is_err(), "byte {at}");
    }
}
