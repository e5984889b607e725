//! S5: bodies made at random and by mutation. A million of them: `SIDREC_BODIES=1000000 cargo test --release -p tools
//! --test serve malformed`.

use super::server::{LAB, Stub};
use axum::body::{Body, to_bytes};
use axum::http::Request;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use tools::serve::limits::Limits;
use tools::serve::metrics::{Metrics, resident_bytes};
use tools::serve::swap::Versions;
use tools::serve::version::Version;
use tools::serve::{Server, Tokens};
use tower::ServiceExt;

#[test]
fn malformed_bodies_get_4xx_and_nothing_panics() {
    let bodies: u64 = std::env::var("SIDREC_BODIES").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let metrics = Arc::new(Metrics::default());
    let version = Version::with_engine(LAB.catalogue(), "stub", Box::new(Stub::default()));
    let versions = Arc::new(Versions::new(version, None, Arc::clone(&metrics)));
    let router = Server::new(versions, &Limits::default(), Tokens::default(), Arc::clone(&metrics)).unwrap().router();
    let key = LAB.catalogue().keys.key(rqvae::ItemIdx(0)).to_string();
    let sound = format!(
        r#"{{"requests":[{{"id":"u1","history":["{key}",7],"k":3,"beam_width":5,"exclude_seen":true,"allow":null,"deny":["x"]}}],"timeout_ms":200}}"#
    );
    let words =
        ["null", "-1", "1e999", "99999999999999999999", "\"\\ud800\"", "[]", "{}", "true", "\u{0}", "\"", "[[[[", "😀"];
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut accepted, mut memory) = (0, None);
    runtime.block_on(async {
        for at in 0..bodies {
            let mut body = if rng.random_bool(0.1) {
                (0..rng.random_range(0..200)).map(|_| rng.random()).collect()
            } else {
                sound.clone().into_bytes()
            };
            for _ in 0..rng.random_range(0..4) {
                let place = rng.random_range(0..=body.len());
                match rng.random_range(0..4) {
                    0 => body.truncate(place),
                    1 if place < body.len() => body[place] = rng.random(),
                    2 => {
                        let word = words[rng.random_range(0..words.len())];
                        let end = (place + rng.random_range(0..12)).min(body.len());
                        body.splice(place..end, word.bytes());
                    }
                    _ => {
                        let copy = body[place..].to_vec();
                        body.extend(copy);
                    }
                }
            }
            let path = ["/v1/recommend", "/v1/recommend", "/v2/models/stub/infer"][rng.random_range(0..3)];
            let request =
                Request::post(path).header("content-type", "application/json").body(Body::from(body)).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            let status = response.status().as_u16();
            let text = to_bytes(response.into_body(), 1 << 24).await.unwrap();
            assert!(
                status == 200 || (400..500).contains(&status),
                "body {at}: {status} {}",
                String::from_utf8_lossy(&text)
            );
            accepted += u64::from(status == 200);
            if at == bodies / 10 {
                memory = resident_bytes();
            }
        }
    });
    assert_eq!(metrics.panics.get(), 0);
    assert!(accepted > bodies / 20 && accepted < bodies, "{accepted} of {bodies} accepted");
    if let (Some(before), Some(after)) = (memory, resident_bytes()) {
        eprintln!("{bodies} bodies, {accepted} accepted; memory {} -> {} MiB", before >> 20, after >> 20);
        assert!(after < before + (32 << 20), "{before} -> {after}");
    }
}
