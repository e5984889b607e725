//! Changing what is served: another version, new items, items that are gone.

use super::items::describe;
use crate::jobs::change_sids::Changed;
use crate::serve::App;
use crate::serve::body::Body;
use crate::serve::fail::Fail;
use crate::serve::version::Version;
use crate::serve::wire::{AddItems, ChangedItems, ErrorBody, Id, ReloadRequest, RemoveItems, Served};
use crate::table::{ItemKeys, Items, ReadOptions, read_items};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use std::io::Write;
use std::sync::Arc;

fn served(version: &Version, changed: Option<ChangedItems>) -> Json<Served> {
    Json(Served {
        model_version: version.model_version.clone(),
        index_version: version.index_version.clone(),
        items: version.catalogue.trie.items_total(),
        changed,
    })
}

fn changed(version: &Version, changed: &Changed, ids: &[String]) -> ChangedItems {
    let found = ids.iter().filter_map(|id| version.catalogue.keys.find(id));
    ChangedItems {
        added: changed.added,
        restored: changed.restored,
        known: changed.known,
        removed: changed.removed,
        sids: found.map(|item| describe(version, item)).collect(),
    }
}

/// Work that takes longer than a request should hold a thread of the runtime for.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T, Fail> + Send + 'static) -> Result<T, Fail> {
    let failed = |_| Fail::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", "the change failed");
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

/// Loads the newest model and catalogue, or others, and swaps them in as one.
#[utoipa::path(post, path = "/v1/admin/reload", request_body = ReloadRequest, tag = "admin", responses(
    (status = 200, body = Served), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "Refused, or another change is under way; the old version goes on serving"),
    (status = 413, body = ErrorBody), (status = 415, body = ErrorBody)))]
pub(super) async fn reload(
    State(app): State<Arc<App>>,
    Body(request): Body<ReloadRequest>,
) -> Result<Json<Served>, Fail> {
    let (run, catalogue) = (request.run.map(Into::into), request.catalogue.map(Into::into));
    let version = aside(move || Ok(app.versions.reload(run, catalogue)?)).await?;
    Ok(served(&version, None))
}

/// Adds items: their IDs come from the frozen quantiser, and the next request can get them.
#[utoipa::path(post, path = "/v1/admin/items", request_body = AddItems, tag = "admin", responses(
    (status = 200, body = Served), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
    (status = 409, body = ErrorBody), (status = 413, body = ErrorBody), (status = 415, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub(super) async fn add(State(app): State<Arc<App>>, Body(request): Body<AddItems>) -> Result<Json<Served>, Fail> {
    let items = aside(move || read(&request)).await?;
    let ids: Vec<String> = items.keys.iter().map(str::to_string).collect();
    let (version, what) = aside(move || Ok(app.versions.add(items)?)).await?;
    let what = changed(&version, &what, &ids);
    Ok(served(&version, Some(what)))
}

/// Removes items: they are not found from the next request on.
#[utoipa::path(delete, path = "/v1/admin/items", request_body = RemoveItems, tag = "admin", responses(
    (status = 200, body = Served), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
    (status = 409, body = ErrorBody), (status = 413, body = ErrorBody), (status = 415, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Body(request): Body<RemoveItems>,
) -> Result<Json<Served>, Fail> {
    let ids: Vec<String> = request.items.iter().map(Id::key).collect();
    let keys = ItemKeys::new(ids.clone())
        .map_err(|error| Fail::new(StatusCode::UNPROCESSABLE_ENTITY, "items", format!("{error:#}")))?;
    let (version, what) = aside(move || Ok(app.versions.remove(keys)?)).await?;
    let what = changed(&version, &what, &ids);
    Ok(served(&version, Some(what)))
}

/// Rows as from a file, by the same rules: through a file.
fn read(request: &AddItems) -> Result<Items, Fail> {
    let wrong = |message: String| Fail::new(StatusCode::UNPROCESSABLE_ENTITY, "items", message);
    let write = || -> anyhow::Result<(tempfile::TempDir, std::path::PathBuf)> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("items.jsonl");
        let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
        for item in &request.items {
            serde_json::to_writer(&mut file, item)?;
            file.write_all(b"\n")?;
        }
        file.flush()?;
        Ok((dir, path))
    };
    let (dir, path) = write().map_err(|error| wrong(format!("{error:#}")))?;
    let options = ReadOptions { max_reject_fraction: 0.0, ..ReadOptions::default() };
    read_items(&path, &options).map_err(|error| {
        let place = format!("{}/", dir.path().display());
        wrong(format!("{error:#}").replace(&place, ""))
    })
}
