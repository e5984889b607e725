//! More than can be answered, and clients that go away.

use super::client::{Client, entry};
use super::server::{LAB, Running, Stub, eventually};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tools::serve::limits::Limits;
use tools::serve::metrics::resident_bytes;

/// S1: five times what can be answered, for five seconds.
#[test]
fn the_excess_is_turned_away_and_the_rest_is_in_time() {
    // 4 entries in 20 ms: 200 a second.
    let stub = Stub { sleep: Duration::from_millis(20), ..Stub::default() };
    let limits = Limits { max_batch: 4, queue: 64, ..Limits::default() };
    let server = Running::stub(stub, &limits);
    let key = LAB.catalogue().keys.key(rqvae::ItemIdx(0)).to_string();
    let body = entry(&[&key]);
    let before = resident_bytes();
    let (ticket, answers) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..150 {
            scope.spawn(|| {
                let mut client = Client::new(server.address);
                loop {
                    let at = Duration::from_millis(ticket.fetch_add(1, Ordering::Relaxed) as u64);
                    if at > Duration::from_secs(5) {
                        break;
                    }
                    std::thread::sleep(at.saturating_sub(began.elapsed()));
                    let answer = client.post("/v1/recommend", &body);
                    let retry = answer.header("retry-after").is_some();
                    answers.lock().unwrap().push((answer.status, answer.took, retry));
                }
            });
        }
    });
    let answers = answers.into_inner().unwrap();
    let took = |status: u16| {
        let mut took: Vec<_> = answers.iter().filter(|a| a.0 == status).map(|a| a.1).collect();
        took.sort();
        took
    };
    let (ok, refused) = (took(200), took(429));
    assert_eq!(ok.len() + refused.len(), answers.len(), "only 200 and 429");
    assert!(answers.iter().all(|a| a.0 == 200 || a.2), "429 says when to come back");
    assert!(refused.len() > answers.len() / 2 && ok.len() > 300, "{} ok, {} refused", ok.len(), refused.len());
    assert!(*ok.last().unwrap() < Duration::from_millis(1500), "{:?}", ok.last());
    let p99 = refused[refused.len() * 99 / 100];
    eprintln!(
        "{} ok, slowest {:?}; {} refused, p50 {:?}, p99 {p99:?}",
        ok.len(),
        ok.last().unwrap(),
        refused.len(),
        refused[refused.len() / 2]
    );
    assert!(refused[refused.len() / 2] < Duration::from_millis(50) && p99 < Duration::from_millis(500), "{p99:?}");
    let depth = || server.client().get("/metrics").body.lines().any(|line| line == "sidrec_queue_depth 0");
    eventually("the line empties", depth);
    if let (Some(before), Some(after)) = (before, resident_bytes()) {
        assert!(after < before + (50 << 20), "{before} -> {after}");
    }
    assert_eq!(server.stop(), tools::serve::Ended::Stopped);
}

/// S3: what nobody waits for is not computed.
#[test]
fn work_of_clients_that_went_away_is_dropped() {
    let answered = Arc::new(AtomicUsize::new(0));
    let stub = Stub { sleep: Duration::from_millis(150), answered: Arc::clone(&answered), ..Stub::default() };
    let limits = Limits { max_batch: 1, timeout_ms: 30_000, ..Limits::default() };
    let server = Running::stub(stub, &limits);
    let key = LAB.catalogue().keys.key(rqvae::ItemIdx(0)).to_string();
    let body = entry(&[&key]).to_string();
    let head = format!(
        "POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut gone = Vec::new();
    for _ in 0..200 {
        let mut client = Client::new(server.address);
        client.send((head.clone() + &body).as_bytes()).unwrap();
        gone.push(client);
    }
    let depth = || -> usize {
        let text = server.client().get("/metrics").body;
        text.lines().find_map(|line| line.strip_prefix("sidrec_queue_depth ")).unwrap().parse().unwrap()
    };
    eventually("all are in line", || depth() + answered.load(Ordering::SeqCst) >= 195);
    drop(gone);
    eventually("the line empties", || depth() == 0);
    let computed = answered.load(Ordering::SeqCst);
    assert!(computed < 100, "{computed} of 200 computed for nobody");
    let mut client = server.client();
    assert_eq!(client.ask("POST", "/v1/recommend", "content-type: application/json\r\n", &body).unwrap().status, 200);
    server.stop();
}

/// A deadline that passes in line is a 504, and the entry is not computed.
#[test]
fn late_entries_are_not_computed() {
    let answered = Arc::new(AtomicUsize::new(0));
    let stub = Stub { sleep: Duration::from_millis(400), answered: Arc::clone(&answered), ..Stub::default() };
    let server = Running::stub(stub, &Limits { max_batch: 1, ..Limits::default() });
    let key = LAB.catalogue().keys.key(rqvae::ItemIdx(0)).to_string();
    let mut patient = entry(&[&key]);
    patient["timeout_ms"] = 10_000.into();
    let mut hasty = entry(&[&key]);
    hasty["timeout_ms"] = 50.into();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| server.client().post("/v1/recommend", &patient).status);
        std::thread::sleep(Duration::from_millis(100));
        let late = server.client().post("/v1/recommend", &hasty);
        assert!(late.status == 504 && late.took < Duration::from_millis(350), "{} {:?}", late.status, late.took);
        assert_eq!(first.join().unwrap(), 200);
    });
    assert_eq!(server.client().post("/v1/recommend", &patient).status, 200);
    assert_eq!(answered.load(Ordering::SeqCst), 2);
    // With the pace known, a deadline that cannot be met is refused at the door.
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| server.client().post("/v1/recommend", &patient).status);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(server.client().post("/v1/recommend", &hasty).status, 429);
        assert_eq!(busy.join().unwrap(), 200);
    });
    server.stop();
}
