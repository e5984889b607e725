//! What surrounds every route: request ids, counting and the access log, tokens, caught panics.

use super::App;
use super::fail::Fail;
use super::metrics::Outcome;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use subtle::ConstantTimeEq;
use tower_http::catch_panic::{CatchPanicLayer, ResponseForPanic};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id that is taken over from the client.
const LONGEST_ID: usize = 128;

/// Keeps the client's `x-request-id` or makes one; it comes back in the header, and in the body of errors.
pub(super) async fn request_id(mut request: Request, next: Next) -> Response {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let given = request
        .headers()
        .get(&REQUEST_ID)
        .filter(|id| id.len() <= LONGEST_ID && id.as_bytes().iter().all(u8::is_ascii_graphic) && !id.is_empty());
    let id = given.cloned().unwrap_or_else(|| {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let text = format!("{:012x}{:06x}", now.as_micros(), count & 0xff_ffff);
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("-"))
    });
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let mut response = next.run(request).await;
    if response.status().is_client_error() || response.status().is_server_error() {
        response = with_id(response, &id).await;
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// Writes the id into the error object.
async fn with_id(response: Response, id: &HeaderValue) -> Response {
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, 1 << 20).await else { return (parts, Body::empty()).into_response() };
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(&bytes) else {
        return (parts, Body::from(bytes)).into_response();
    };
    if let Some(error) = value.get_mut("error").and_then(|error| error.as_object_mut()) {
        error.insert("request_id".into(), id.to_str().unwrap_or("-").into());
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    (parts, Body::from(value.to_string())).into_response()
}

/// Counts the request and writes the line of the access log.
pub(super) async fn account(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_string();
    let route = request.extensions().get::<MatchedPath>().map_or("other".to_string(), |route| route.as_str().into());
    let id = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or("-").to_string();
    let response = next.run(request).await;
    let (seconds, code) = (began.elapsed().as_secs_f64(), response.status().as_u16());
    app.metrics.requests.get_or_create(&Outcome { route, code }).inc();
    app.metrics.duration.observe(seconds);
    tracing::info!(target: "access", %method, path, status = code, ms = format!("{:.2}", 1e3 * seconds), id);
    response
}

/// Routes that tell nothing about the catalogue.
const OPEN: [&str; 7] = ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/", "/docs", "/openapi.json"];

/// Who may ask: with the token where there is one; changes ask for the admin token, or come from this machine where
/// there is none.
pub(super) async fn token(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if OPEN.contains(&path) {
        return next.run(request).await;
    }
    let admin = path.starts_with("/v1/admin/");
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.split_once(' ')).filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
    let given = given.map_or("", |(_, token)| token.trim());
    let wanted = if admin { &app.tokens.admin } else { &app.tokens.user };
    match wanted {
        // The comparison takes the same time wherever the first difference is.
        Some(wanted) if bool::from(wanted.as_bytes().ct_eq(given.as_bytes())) => next.run(request).await,
        Some(_) => {
            let message = "authorization: expected `Bearer` with the token of this server";
            let mut response = Fail::new(StatusCode::UNAUTHORIZED, "token", message).into_response();
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
        None if admin && !from_here(&request) => {
            let message = "changes from elsewhere need an admin token; start the server with one";
            Fail::new(StatusCode::FORBIDDEN, "admin_token", message).into_response()
        }
        None => next.run(request).await,
    }
}

fn from_here(request: &Request) -> bool {
    request.extensions().get::<ConnectInfo<SocketAddr>>().is_some_and(|peer| peer.0.ip().is_loopback())
}

/// Turns a panic of a handler into a 500.
#[derive(Clone)]
pub(super) struct Panicked(Arc<App>);

impl ResponseForPanic for Panicked {
    type ResponseBody = Body;

    fn response_for_panic(&mut self, _: Box<dyn Any + Send + 'static>) -> Response {
        self.0.metrics.panics.inc();
        Fail::new(StatusCode::INTERNAL_SERVER_ERROR, "panic", "this should not have happened").into_response()
    }
}

pub(super) fn catch_panics(app: Arc<App>) -> CatchPanicLayer<Panicked> {
    CatchPanicLayer::custom(Panicked(app))
}

pub(super) async fn no_route(request: Request) -> Fail {
    Fail::not_found(format!("no route `{}`; see /docs", request.uri().path()))
}

pub(super) async fn wrong_method(request: Request) -> Fail {
    let message = format!("`{}` does not take {}; see /docs", request.uri().path(), request.method());
    Fail::new(StatusCode::METHOD_NOT_ALLOWED, "method", message)
}
