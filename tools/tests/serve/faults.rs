//! S4 and S8: engines that panic, run out of memory or are lost.

use super::client::entry;
use super::server::{LAB, Running, Stub, eventually};
use rqvae::ItemIdx;
use std::time::Duration;
use tools::serve::Ended;
use tools::serve::limits::Limits;

fn key(row: u32) -> String {
    LAB.catalogue().keys.key(ItemIdx(row)).to_string()
}

#[test]
fn a_panic_is_a_500_and_the_next_request_is_answered() {
    let server = Running::stub(Stub { startling: Some(ItemIdx(7)), ..Stub::default() }, &Limits::default());
    let mut client = server.client();
    assert_eq!(client.post("/v1/recommend", &entry(&[&key(7)])).status, 500);
    assert_eq!(client.post("/v1/recommend", &entry(&[&key(1)])).status, 200);
    assert_eq!(server.metrics.panics.get(), 1);
    assert_eq!(server.stop(), Ended::Stopped);
}

#[test]
fn a_batch_too_large_for_the_device_is_halved() {
    let stub = Stub { memory: 2, sleep: Duration::from_millis(1), ..Stub::default() };
    let server = Running::stub(stub, &Limits::default());
    let one = serde_json::json!({"history": [key(1)], "k": 3});
    let answer = server.client().post("/v1/recommend", &serde_json::json!({"requests": vec![one; 13]}));
    assert_eq!(answer.status, 200);
    let value = answer.json();
    assert!(value["results"].as_array().unwrap().iter().all(|result| result["status"] == "ok"));
    server.stop();
}

#[test]
fn a_lost_device_ends_the_server() {
    let server = Running::stub(Stub { deadly: Some(ItemIdx(9)), ..Stub::default() }, &Limits::default());
    assert_eq!(server.client().get("/readyz").status, 200);
    assert_eq!(server.client().post("/v1/recommend", &entry(&[&key(9)])).status, 503);
    assert_eq!(server.ended(), Ended::DeviceLost);
}

#[test]
fn a_stopping_server_is_not_ready_and_finishes_what_it_took() {
    let limits = Limits { drain_ms: 800, ..Limits::default() };
    let server = Running::stub(Stub { sleep: Duration::from_millis(1200), ..Stub::default() }, &limits);
    let mut body = entry(&[&key(1)]);
    body["timeout_ms"] = 10_000.into();
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| server.client().post("/v1/recommend", &body).status);
        std::thread::sleep(Duration::from_millis(200));
        server.ask_to_stop();
        let mut probe = server.client();
        eventually("readiness turns", || probe.get("/readyz").status == 503);
        assert_eq!(probe.get("/healthz").status, 200);
        assert_eq!(accepted.join().unwrap(), 200);
    });
    assert_eq!(server.ended(), Ended::Stopped);
}

/// M2: observing does not grow memory.
#[test]
fn metrics_take_no_memory_by_counting() {
    let metrics = tools::serve::metrics::Metrics::default();
    let observe = |count: u32| {
        for at in 0..count {
            metrics.duration.observe(f64::from(at % 1000) / 1e3);
            metrics.batch.observe(f64::from(at % 16));
        }
    };
    observe(10_000);
    let (before, lines) = (metrics.text(0).unwrap().len(), tools::serve::metrics::resident_bytes());
    observe(10_000_000);
    let after = metrics.text(0).unwrap().len();
    assert!(after < before + 200, "{before} -> {after}");
    if let (Some(before), Some(after)) = (lines, tools::serve::metrics::resident_bytes()) {
        assert!(after < before + (64 << 20), "{before} -> {after}");
    }
}
