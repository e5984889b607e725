//! An open-loop client: requests leave by the clock, whether or not earlier ones have been answered, so that waiting
//! shows in the times. The time of a request runs from when it was due.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// What came back.
#[derive(Debug, Default, Clone)]
pub(super) struct Seen {
    /// Times of what was answered with 200, sorted.
    pub(super) ok: Vec<Duration>,
    /// Answers with 429.
    pub(super) refused: usize,
    /// Anything else, resets included.
    pub(super) failed: usize,
    /// Answers with 200 per second.
    pub(super) per_second: f64,
}

type HttpClient = Client<HttpConnector, Full<Bytes>>;

fn client() -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

async fn ask(client: &HttpClient, address: SocketAddr, body: Bytes) -> Option<StatusCode> {
    let request = Request::post(format!("http://{address}/v1/recommend"))
        .header("content-type", "application/json")
        .body(Full::new(body))
        .ok()?;
    let response = client.request(request).await.ok()?;
    let status = response.status();
    response.into_body().collect().await.ok()?;
    Some(status)
}

fn gather(answers: Vec<(Option<StatusCode>, Duration)>, took: Duration) -> Seen {
    let mut seen = Seen::default();
    for (status, took) in answers {
        match status {
            Some(StatusCode::OK) => seen.ok.push(took),
            Some(StatusCode::TOO_MANY_REQUESTS) => seen.refused += 1,
            _ => seen.failed += 1,
        }
    }
    seen.ok.sort_unstable();
    seen.per_second = seen.ok.len() as f64 / took.as_secs_f64();
    seen
}

/// `rate` requests a second for `time`, bodies in turn. The clock is that of this thread: the runtime's own ticks in
/// milliseconds.
pub(super) fn open_loop(
    runtime: &Runtime,
    address: SocketAddr,
    bodies: &Arc<Vec<Bytes>>,
    rate: f64,
    time: Duration,
) -> Seen {
    let _inside = runtime.enter();
    let client = client();
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..(rate * time.as_secs_f64()) as usize {
        let due = began + Duration::from_secs_f64(at as f64 / rate);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let (client, body) = (client.clone(), bodies[at % bodies.len()].clone());
        tasks.spawn(async move { (ask(&client, address, body).await, due.elapsed()) });
    }
    let answers = runtime.block_on(tasks.join_all());
    gather(answers, began.elapsed())
}

/// `lanes` clients that ask again as soon as they are answered, for `time`: what the server can take.
pub(super) fn closed_loop(
    runtime: &Runtime,
    address: SocketAddr,
    bodies: &Arc<Vec<Bytes>>,
    lanes: usize,
    time: Duration,
) -> Seen {
    let _inside = runtime.enter();
    let client = client();
    let began = Instant::now();
    let turn = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..lanes {
        let (client, bodies, turn) = (client.clone(), Arc::clone(bodies), Arc::clone(&turn));
        tasks.spawn(async move {
            let mut answers = Vec::new();
            while began.elapsed() < time {
                let body = bodies[turn.fetch_add(1, Ordering::Relaxed) % bodies.len()].clone();
                let since = Instant::now();
                answers.push((ask(&client, address, body).await, since.elapsed()));
            }
            answers
        });
    }
    let answers = runtime.block_on(tasks.join_all()).concat();
    gather(answers, began.elapsed())
}
