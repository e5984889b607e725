//! The retrieval server: histories in, ranked catalogue items out.
//!
//! A request goes `connection` -> `guard` -> `routes` -> `queue` -> `worker` -> [`engine`] and back. What is
//! served is one [`version`] of model and catalogue; [`swap`] puts the next in its place while requests go on.

mod body;
mod connection;
pub mod engine;
mod fail;
mod guard;
pub mod limits;
pub mod metrics;
mod queue;
mod routes;
pub mod swap;
pub mod version;
pub mod wire;
mod worker;

pub use routes::document;

use crate::error::{Fault, fault};
use anyhow::{Context, Result};
use fail::Fail;
use limits::Limits;
use metrics::Metrics;
use queue::Queue;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use swap::{NotSwapped, Versions};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Who may ask, and who may change.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    /// Asked for by every route that tells something; `None`: by none.
    pub user: Option<String>,
    /// Asked for by changes; `None`: they must come from this machine.
    pub admin: Option<String>,
}

/// What the routes share.
pub struct App {
    versions: Arc<Versions>,
    queue: Arc<Queue>,
    limits: Limits,
    metrics: Arc<Metrics>,
    tokens: Tokens,
    stopping: AtomicBool,
    lost: Arc<AtomicBool>,
    started: Instant,
}

impl App {
    fn ready(&self) -> Result<(), Fail> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(Fail::unavailable("the server is stopping"));
        }
        if self.lost.load(Ordering::SeqCst) {
            return Err(Fail::unavailable("the device is lost"));
        }
        Ok(())
    }
}

/// A server before it has an address.
pub struct Server {
    app: Arc<App>,
    worker: JoinHandle<()>,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Asked to, and everything accepted was answered.
    Stopped,
    /// Asked to, but some requests did not end in time.
    CutOff,
    /// The device is lost.
    DeviceLost,
}

impl Server {
    /// Starts the inference thread over `versions`.
    pub fn new(versions: Arc<Versions>, limits: &Limits, tokens: Tokens, metrics: Arc<Metrics>) -> Result<Self> {
        let queue = Arc::new(Queue::new(limits));
        let lost = Arc::new(AtomicBool::new(false));
        let worker = worker::start(Arc::clone(&queue), Arc::clone(&metrics), Arc::clone(&lost))?;
        let app = App {
            versions,
            queue,
            limits: limits.clone(),
            metrics,
            tokens,
            stopping: AtomicBool::new(false),
            lost,
            started: Instant::now(),
        };
        Ok(Self { app: Arc::new(app), worker })
    }

    /// All routes, for use without a socket.
    pub fn router(&self) -> axum::Router {
        routes::router(&self.app)
    }

    /// Serves `listener` until `stop` turns true or the device is lost.
    pub async fn run(self, listener: TcpListener, mut stop: watch::Receiver<bool>) -> Result<Ended> {
        let Self { app, worker } = self;
        let (close, closed) = watch::channel(false);
        let connections = tokio::spawn(connection::serve(listener, routes::router(&app), app.limits.clone(), closed));
        loop {
            let changed = tokio::time::timeout(Duration::from_millis(100), stop.wait_for(|stop| *stop)).await;
            if changed.is_ok() || app.lost.load(Ordering::SeqCst) {
                break;
            }
        }
        app.stopping.store(true, Ordering::SeqCst);
        let lost = app.lost.load(Ordering::SeqCst);
        if !lost {
            tokio::time::sleep(Duration::from_millis(u64::from(app.limits.drain_ms))).await;
        }
        let _ = close.send(true);
        let in_time = connections.await.context("serving connections")?;
        app.queue.close();
        tokio::task::spawn_blocking(move || worker.join()).await.context("the inference thread")?.ok();
        Ok(match (lost || app.lost.load(Ordering::SeqCst), in_time) {
            (true, _) => Ended::DeviceLost,
            (false, true) => Ended::Stopped,
            (false, false) => Ended::CutOff,
        })
    }
}

/// Refuses an address that others can reach without a token, unless told that this is meant.
pub fn check_address(address: SocketAddr, tokens: &Tokens, allow_unauthenticated: bool) -> Result<()> {
    if address.ip().is_loopback() || tokens.user.is_some() {
        return Ok(());
    }
    if allow_unauthenticated {
        tracing::warn!(%address, "serving without a token to whoever reaches this address");
        return Ok(());
    }
    let message = format!(
        "--addr {address}: others can reach it; set a token (--token-file or SIDREC_TOKEN), or --allow-unauthenticated"
    );
    Err(fault(Fault::Usage, message))
}

/// Reloads on SIGHUP and, where `watch` is set, when the files that say what is current change; never ends.
pub async fn reload_when_told(versions: Arc<Versions>, watch: bool) -> Result<()> {
    let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
    let mut last = versions.fingerprint();
    loop {
        let due = tokio::select! {
            _ = hangup.recv() => true,
            () = tokio::time::sleep(Duration::from_secs(1)), if watch => false,
        };
        let now = versions.fingerprint();
        if !due && now == last {
            continue;
        }
        let next = Arc::clone(&versions);
        match tokio::task::spawn_blocking(move || next.reload(None, None)).await {
            // Somebody else's change is under way: look again.
            Ok(Err(NotSwapped::Busy)) => {}
            // What was refused is not tried again until it changes.
            _ => last = now,
        }
    }
}
