//! The routes, one file for each kind; the OpenAPI document is collected from the same list.

mod admin;
mod items;
mod openinference;
mod recommend;
mod status;

use super::{App, guard};
use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use std::sync::Arc;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

#[derive(OpenApi)]
#[openapi(info(
    title = "sidrec",
    description = "Generative retrieval with semantic IDs: histories in, ranked catalogue items out."
))]
struct Api;

fn collect() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Api::openapi())
        .routes(routes!(recommend::recommend))
        .routes(routes!(items::item))
        .routes(routes!(items::search))
        .routes(routes!(items::sids))
        .routes(routes!(status::info))
        .routes(routes!(admin::reload))
        .routes(routes!(admin::add, admin::remove))
        .routes(routes!(status::healthz))
        .routes(routes!(status::readyz))
        .routes(routes!(status::metrics))
        .routes(routes!(openinference::live))
        .routes(routes!(openinference::ready))
        .routes(routes!(openinference::model))
        .routes(routes!(openinference::model_ready))
        .routes(routes!(openinference::infer))
        .routes(routes!(status::openapi))
        .routes(routes!(status::docs))
        .routes(routes!(status::page))
}

/// The OpenAPI document of all routes.
pub fn document() -> Document {
    collect().into_openapi()
}

/// All routes, with what surrounds them: request ids, access log, tokens, caught panics.
pub(super) fn router(app: &Arc<App>) -> Router {
    let (router, _) = collect().split_for_parts();
    router
        .method_not_allowed_fallback(guard::wrong_method)
        .fallback(guard::no_route)
        .route_layer(from_fn_with_state(Arc::clone(app), guard::token))
        .layer(guard::catch_panics(Arc::clone(app)))
        .layer(from_fn_with_state(Arc::clone(app), guard::account))
        .layer(from_fn(guard::request_id))
        .with_state(Arc::clone(app))
}
