//! Connections: how many, how slow, how they end.
//!
//! hyper ends a connection whose header comes too slowly, but counts the pause between two requests as part of the next
//! header. [`Paced`] keeps two clocks instead: one from the first byte of a header, one between requests.

use super::limits::Limits;
use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep};
use tower::ServiceExt;

const IDLE: u8 = 0;
const HEADER: u8 = 1;
const BUSY: u8 = 2;

/// A stream whose reads fail when a header or the pause before it takes too long.
struct Paced {
    stream: TcpStream,
    phase: Arc<AtomicU8>,
    seen: u8,
    clock: Pin<Box<Sleep>>,
    header: Duration,
    idle: Duration,
}

impl Paced {
    fn new(stream: TcpStream, phase: Arc<AtomicU8>, limits: &Limits) -> Self {
        // A connection that says nothing at all is as good as a slow header.
        let clock = Box::pin(tokio::time::sleep(limits.header()));
        Self { stream, phase, seen: HEADER, clock, header: limits.header(), idle: limits.idle() }
    }

    fn wind(&mut self, phase: u8) {
        self.seen = phase;
        let time = if phase == IDLE { self.idle } else { self.header };
        self.clock.as_mut().reset(Instant::now() + time);
    }
}

impl AsyncRead for Paced {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let phase = self.phase.load(Ordering::Acquire);
        if phase != self.seen {
            self.wind(phase);
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if polled.is_ready() {
            if phase == IDLE && buf.filled().len() > before {
                self.phase.store(HEADER, Ordering::Release);
                self.wind(HEADER);
            }
            return polled;
        }
        if phase != BUSY && self.clock.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Serves until `stop` turns true, then lets open requests end, for at most the time that the limits give them.
///
/// Returns whether all ended in time.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) -> bool {
    let room = Arc::new(Semaphore::new(limits.max_connections as usize));
    let graceful = GracefulShutdown::new();
    loop {
        let permit = tokio::select! {
            permit = Arc::clone(&room).acquire_owned() => permit,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: wait for some to come back.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let phase = Arc::new(AtomicU8::new(HEADER));
        let io = TokioIo::new(Paced::new(stream, Arc::clone(&phase), &limits));
        let router = router.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            phase.store(BUSY, Ordering::Release);
            request.extensions_mut().insert(ConnectInfo::<SocketAddr>(peer));
            let (phase, router) = (Arc::clone(&phase), router.clone());
            async move {
                let response = router.oneshot(request).await;
                phase.store(IDLE, Ordering::Release);
                response
            }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(limits.max_header as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(128)
            .max_header_list_size(limits.max_header)
            .keep_alive_interval(Some(limits.idle()))
            .keep_alive_timeout(Duration::from_secs(10));
        let connection = graceful.watch(builder.serve_connection(io, service).into_owned());
        tokio::spawn(async move {
            // A client that went away or was too slow is no news.
            let _ = connection.await;
            drop(permit);
        });
    }
    drop(listener);
    tokio::time::timeout(Duration::from_millis(u64::from(limits.stop_ms)), graceful.shutdown()).await.is_ok()
}
