//! The Open Inference Protocol (version 2) as a thin face of `POST /v1/recommend`.

use super::recommend::{answer, check, timeout};
use crate::serve::App;
use crate::serve::body::Body;
use crate::serve::fail::Fail;
use crate::serve::wire::ErrorBody;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;
use utoipa::ToSchema;

/// `GET /v2/health/live` and the like.
#[derive(Serialize, ToSchema)]
pub(super) struct Flag {
    /// Whether it is so.
    live: bool,
}

/// The process lives.
#[utoipa::path(get, path = "/v2/health/live", tag = "open inference protocol", responses((status = 200, body = Flag)))]
pub(super) async fn live() -> Json<Flag> {
    Json(Flag { live: true })
}

/// Requests are welcome.
#[utoipa::path(get, path = "/v2/health/ready", tag = "open inference protocol",
    responses((status = 200, body = Flag), (status = 503, body = ErrorBody)))]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Json<Flag>, Fail> {
    app.ready().map(|()| Json(Flag { live: true }))
}

fn known(app: &App, name: &str) -> Result<(), Fail> {
    let model = &app.versions.current().model;
    if model == name { Ok(()) } else { Err(Fail::not_found(format!("no model `{name}`; there is `{model}`"))) }
}

/// Tensors in and out.
#[utoipa::path(get, path = "/v2/models/{model}", tag = "open inference protocol", params(("model" = String, Path)),
    responses((status = 200, body = Object), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Value>, Fail> {
    known(&app, &name)?;
    Ok(Json(json!({
        "name": name, "versions": [app.versions.current().model_version], "platform": "sidrec",
        "inputs": [{"name": "histories", "datatype": "BYTES", "shape": [-1, -1]}],
        "outputs": [
            {"name": "item_ids", "datatype": "BYTES", "shape": [-1, -1]},
            {"name": "scores", "datatype": "FP32", "shape": [-1, -1]},
        ],
    })))
}

/// Whether the model takes requests.
#[utoipa::path(get, path = "/v2/models/{model}/ready", tag = "open inference protocol", params(("model" = String, Path)),
    responses((status = 200, body = Flag), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn model_ready(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Flag>, Fail> {
    known(&app, &name)?;
    app.ready().map(|()| Json(Flag { live: true }))
}

/// `POST /v2/models/{model}/infer`.
#[derive(Deserialize, ToSchema)]
pub(super) struct InferRequest {
    /// Comes back with the answer.
    id: Option<String>,
    /// `k`, `beam_width`, `exclude_seen`, `only_new`, `timeout_ms`.
    #[serde(default)]
    #[schema(value_type = Object)]
    parameters: serde_json::Map<String, Value>,
    /// One tensor called `histories`.
    inputs: Vec<InferTensor>,
}

/// A tensor; rows are padded behind with empty strings.
#[derive(Deserialize, ToSchema)]
pub(super) struct InferTensor {
    /// `histories`.
    name: String,
    /// (histories, longest).
    shape: Vec<usize>,
    /// `BYTES`.
    datatype: String,
    /// Item ids, row by row, flat or nested.
    #[schema(value_type = Vec<String>)]
    data: Value,
}

fn flat(value: &Value, into: &mut Vec<String>) -> Result<(), Fail> {
    match value {
        Value::Array(values) => values.iter().try_for_each(|value| flat(value, into)),
        Value::String(text) => {
            into.push(text.clone());
            Ok(())
        }
        other => Err(Fail::malformed(format!("histories: expected texts, found `{other}`"))),
    }
}

/// Ranked items for each row of histories; short lists are padded with empty strings and minus infinity's nearest number.
#[utoipa::path(post, path = "/v2/models/{model}/infer", request_body = InferRequest, tag = "open inference protocol",
    params(("model" = String, Path)),
    responses((status = 200, body = Object), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
    (status = 404, body = ErrorBody), (status = 408, body = ErrorBody), (status = 413, body = ErrorBody), (status = 415, body = ErrorBody),
    (status = 422, body = ErrorBody), (status = 429, body = ErrorBody), (status = 500, body = ErrorBody), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
pub(super) async fn infer(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(request): Body<InferRequest>,
) -> Result<Json<Value>, Fail> {
    let since = Instant::now();
    known(&app, &name)?;
    let unprocessable = |message: String| Fail::new(StatusCode::UNPROCESSABLE_ENTITY, "tensor", message);
    let [tensor] = &request.inputs[..] else {
        return Err(unprocessable(format!("inputs: expected one tensor, found {}", request.inputs.len())));
    };
    if (tensor.name.as_str(), tensor.datatype.as_str()) != ("histories", "BYTES") {
        let found = format!("`{}` of {}", tensor.name, tensor.datatype);
        return Err(unprocessable(format!("inputs: expected `histories` of BYTES, found {found}")));
    }
    let mut ids = Vec::new();
    flat(&tensor.data, &mut ids)?;
    let (rows, length) = match tensor.shape[..] {
        [rows] => (rows, 1),
        [rows, length] => (rows, length),
        _ => return Err(unprocessable(format!("histories: expected one or two dimensions, found {:?}", tensor.shape))),
    };
    if rows == 0 || rows.checked_mul(length) != Some(ids.len()) {
        let found = ids.len();
        return Err(unprocessable(format!("histories: expected {:?} texts, found {found}", tensor.shape)));
    }
    if rows > app.limits.max_entries as usize {
        let most = u64::from(app.limits.max_entries);
        let message = format!("histories: {rows} rows, at most {most} are taken");
        return Err(Fail::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_entries", message).limit(most));
    }
    let mut entry = request.parameters.clone();
    let asked = entry.remove("timeout_ms").map(serde_json::from_value).transpose();
    let asked = asked.map_err(|error| unprocessable(format!("timeout_ms: {error}")))?;
    let deadline = since + timeout(&app.limits, asked)?;
    let version = app.versions.current();
    let mut checked = Vec::new();
    for row in ids.chunks(length.max(1)) {
        let history: Vec<&String> = row.iter().filter(|id| !id.is_empty()).collect();
        entry.insert("history".into(), json!(history));
        let one = check(&version, &app.limits, Value::Object(entry.clone()));
        checked.push(Ok(one.map_err(|(_, problem)| unprocessable(problem.message))?));
    }
    let found = answer(&app, &version, since, deadline, checked).await?;
    let k = found.results.iter().map(|result| result.items.len()).max().unwrap_or(0);
    let (mut item_ids, mut scores) = (Vec::new(), Vec::new());
    for result in &found.results {
        for at in 0..k {
            let item = result.items.get(at);
            item_ids.push(item.map_or_else(String::new, |item| match &item.item_id {
                Value::String(id) => id.clone(),
                other => other.to_string(),
            }));
            scores.push(item.map_or(f32::MIN, |item| item.score));
        }
    }
    Ok(Json(json!({
        "model_name": name, "model_version": found.model_version, "id": request.id,
        "parameters": {"index_version": found.index_version},
        "outputs": [
            {"name": "item_ids", "datatype": "BYTES", "shape": [rows, k], "data": item_ids},
            {"name": "scores", "datatype": "FP32", "shape": [rows, k], "data": scores},
        ],
    })))
}
