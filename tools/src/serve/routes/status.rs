//! How the server is, and its pages.

use crate::serve::App;
use crate::serve::fail::Fail;
use crate::serve::wire::{ErrorBody, Info};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use rqvae::ItemIdx;
use std::sync::Arc;

/// What is served, and within which limits.
#[utoipa::path(get, path = "/v1/info", tag = "status", responses((status = 200, body = Info), (status = 401, body = ErrorBody)))]
pub(super) async fn info(State(app): State<Arc<App>>) -> Json<Info> {
    let version = app.versions.current();
    let catalogue = &version.catalogue;
    let spec = catalogue.sids.spec();
    let new = |item: &ItemIdx| catalogue.is_live(*item) && version.is_new(*item) == Some(true);
    let count_new = || (0..catalogue.keys.len() as u32).map(ItemIdx).filter(new).count();
    Json(Info {
        version: env!("CARGO_PKG_VERSION").into(),
        model: version.model.clone(),
        model_version: version.model_version.clone(),
        index_version: version.index_version.clone(),
        items: catalogue.trie.items_total(),
        new_items: version.counts.as_ref().map(|_| count_new()),
        codes: (0..spec.len()).map(|level| spec.codes_at(level)).collect(),
        method: catalogue.origin.method.clone(),
        encoder: catalogue.origin.encoder.clone(),
        history_cap: version.history_cap,
        device: version.device.clone(),
        uptime_seconds: app.started.elapsed().as_secs_f64(),
        limits: app.limits.clone(),
    })
}

/// The process lives.
#[utoipa::path(get, path = "/healthz", tag = "status", responses((status = 200, content_type = "text/plain", body = String)))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Requests are welcome.
#[utoipa::path(get, path = "/readyz", tag = "status", responses(
    (status = 200, content_type = "text/plain", body = String), (status = 503, body = ErrorBody, description = "Stopping, or the device is lost")))]
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Result<&'static str, Fail> {
    app.ready().map(|()| "ready\n")
}

/// Prometheus metrics.
#[utoipa::path(get, path = "/metrics", tag = "status", responses(
    (status = 200, content_type = "application/openmetrics-text", body = String), (status = 401, body = ErrorBody)))]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Fail> {
    let text = app.metrics.text(app.queue.depth());
    let text = text.map_err(|_| Fail::new(StatusCode::INTERNAL_SERVER_ERROR, "metrics", "cannot be written"))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "status", responses((status = 200, content_type = "application/json", body = Object)))]
pub(super) async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(super::document())
}

/// The routes for people.
#[utoipa::path(get, path = "/docs", tag = "pages", responses((status = 200, content_type = "text/html", body = String)))]
pub(super) async fn docs() -> Html<&'static str> {
    Html(include_str!("../../page/docs.html"))
}

/// The demo page.
#[utoipa::path(get, path = "/", tag = "pages", responses((status = 200, content_type = "text/html", body = String)))]
pub(super) async fn page() -> Html<&'static str> {
    Html(include_str!("../../page/serve.html"))
}
