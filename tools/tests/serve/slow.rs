//! S2: clients that send a byte now and then.

use super::client::{Client, entry};
use super::server::{LAB, Running, Stub};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tools::serve::limits::Limits;

#[test]
fn slow_clients_are_cut_and_hold_nobody_up() {
    let limits = Limits { header_ms: 1000, body_ms: 1500, ..Limits::default() };
    let server = Running::stub(Stub { sleep: Duration::from_millis(1), ..Stub::default() }, &limits);
    let key = LAB.catalogue().keys.key(rqvae::ItemIdx(0)).to_string();
    let body = entry(&[&key]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let normal: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = Client::new(server.address);
                    let mut slowest = Duration::ZERO;
                    while !stop.load(Ordering::Relaxed) {
                        let answer = client.post("/v1/recommend", &body);
                        assert_eq!(answer.status, 200);
                        slowest = slowest.max(answer.took);
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    slowest
                })
            })
            .collect();
        let slow: Vec<_> = (0..300)
            .map(|at| {
                let in_body = at % 2 == 1;
                let mut client = Client::new(server.address);
                let head = "POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
                let head = if in_body { format!("{head}content-length: 500\r\n\r\n") } else { head.to_string() };
                client.send(head.as_bytes()).unwrap();
                client.stream.get_ref().set_read_timeout(Some(Duration::from_millis(1))).unwrap();
                (client, in_body)
            })
            .collect();
        let began = Instant::now();
        let mut open = slow;
        while !open.is_empty() {
            assert!(began.elapsed() < Duration::from_secs(5), "{} slow clients are still there", open.len());
            std::thread::sleep(Duration::from_millis(200));
            open.retain_mut(|(client, in_body)| {
                let sent = client.send(b"x").is_ok();
                let mut answer = [0; 64];
                match client.stream.read(&mut answer) {
                    Ok(0) => false,
                    Ok(_) => {
                        assert!(
                            *in_body && answer.starts_with(b"HTTP/1.1 408"),
                            "{}",
                            String::from_utf8_lossy(&answer)
                        );
                        false
                    }
                    Err(error) => {
                        sent && matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
                    }
                }
            });
        }
        stop.store(true, Ordering::Relaxed);
        for client in normal {
            let slowest = client.join().unwrap();
            assert!(slowest < Duration::from_millis(800), "{slowest:?}");
        }
    });
    server.stop();
}
