//! Looking things up: items, titles, prefixes.

use crate::serve::App;
use crate::serve::fail::Fail;
use crate::serve::version::Version;
use crate::serve::wire::{ErrorBody, ItemInfo, ItemList, SidChild, SidNode};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use rqvae::{Code, ItemIdx};
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

/// Items shown of a prefix.
const SHOWN: usize = 20;

pub(super) fn describe(version: &Version, item: ItemIdx) -> ItemInfo {
    let catalogue = &version.catalogue;
    let card = &catalogue.cards[item.0 as usize];
    ItemInfo {
        item_id: catalogue.keys.json(item),
        title: card.title.clone(),
        category: card.category.clone(),
        first_seen: card.first_seen,
        sid: catalogue.sids.codes(item).to_vec(),
        live: catalogue.is_live(item),
        new: version.is_new(item),
    }
}

/// One item.
#[utoipa::path(get, path = "/v1/items/{id}", tag = "look up", params(("id" = String, Path, description = "Item id")),
    responses((status = 200, body = ItemInfo), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn item(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<ItemInfo>, Fail> {
    let version = app.versions.current();
    let item = version.catalogue.keys.find(&id).ok_or_else(|| Fail::not_found(format!("no item `{id}`")))?;
    Ok(Json(describe(&version, item)))
}

#[derive(Deserialize, IntoParams)]
pub(super) struct SearchParams {
    /// Words of the title, the category or the id; all must occur. Popular items without it
    #[serde(default)]
    q: String,
    /// Only items that training has not seen
    #[serde(default)]
    new: bool,
    /// Most items, at most 100
    limit: Option<usize>,
}

/// Items by words of their titles.
#[utoipa::path(get, path = "/v1/items", tag = "look up", params(SearchParams),
    responses((status = 200, body = ItemList), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody)))]
pub(super) async fn search(
    State(app): State<Arc<App>>,
    params: Result<Query<SearchParams>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<ItemList>, Fail> {
    let Query(params) = params.map_err(|error| Fail::malformed(error.body_text()))?;
    let version = app.versions.current();
    let limit = params.limit.unwrap_or(SHOWN).clamp(1, 100);
    // A pass over all titles takes its time in large catalogues.
    let items = tokio::task::spawn_blocking(move || matches(&version, &params.q, params.new, limit));
    let items = items.await.map_err(|_| Fail::new(StatusCode::INTERNAL_SERVER_ERROR, "search", "the search failed"))?;
    Ok(Json(ItemList { items }))
}

/// Items whose title, category or id has all words, seen in training most often first.
fn matches(version: &Version, words: &str, only_new: bool, limit: usize) -> Vec<ItemInfo> {
    let words: Vec<String> = words.split_whitespace().map(str::to_lowercase).collect();
    let catalogue = &version.catalogue;
    let hit = |item: &ItemIdx| {
        let card = &catalogue.cards[item.0 as usize];
        let text = format!("{} {} {}", card.title, card.category, catalogue.keys.key(*item)).to_lowercase();
        (!only_new || version.is_new(*item) == Some(true)) && words.iter().all(|word| text.contains(word.as_str()))
    };
    let count = |item: ItemIdx| version.counts.as_ref().map_or(0, |counts| counts.get(item));
    let mut items: Vec<ItemIdx> =
        (0..catalogue.keys.len() as u32).map(ItemIdx).filter(|item| catalogue.is_live(*item)).filter(hit).collect();
    items.sort_by_key(|item| (std::cmp::Reverse(count(*item)), catalogue.keys.tie_hash()[item.0 as usize]));
    items.into_iter().take(limit).map(|item| describe(version, item)).collect()
}

/// What lies under a prefix such as `12,7`.
#[utoipa::path(get, path = "/v1/sids/{prefix}", tag = "look up",
    params(("prefix" = String, Path, description = "Codes, comma-separated; `root` for all")),
    responses((status = 200, body = SidNode), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub(super) async fn sids(State(app): State<Arc<App>>, Path(prefix): Path<String>) -> Result<Json<SidNode>, Fail> {
    let version = app.versions.current();
    let catalogue = &version.catalogue;
    let trie = &catalogue.trie;
    let parts = prefix.split(',').map(str::trim).filter(|part| !part.is_empty() && *part != "root");
    let wrong = |message: String| Fail::new(StatusCode::UNPROCESSABLE_ENTITY, "prefix", message);
    let codes: Vec<Code> = parts
        .map(|part| part.parse().map_err(|_| wrong(format!("prefix `{prefix}`: `{part}` is no code"))))
        .collect::<Result<_, _>>()?;
    if codes.len() > trie.levels() {
        return Err(wrong(format!("prefix `{prefix}`: at most {} codes", trie.levels())));
    }
    let node = trie.find(&codes).ok_or_else(|| Fail::not_found(format!("no item under prefix `{prefix}`")))?;
    let below = trie.items_below(codes.len(), node);
    let mut children: Vec<SidChild> = Vec::new();
    if codes.len() < trie.levels() {
        let (next, nodes) = trie.children(codes.len(), node);
        for (code, node) in next.iter().zip(nodes) {
            let items = trie.items_below(codes.len() + 1, node);
            let example = items.first().map_or_else(String::new, |item| catalogue.title(*item).to_string());
            children.push(SidChild { code, count: items.len(), example });
        }
        children.sort_by(|a, b| b.count.cmp(&a.count).then(a.code.cmp(&b.code)));
    }
    let items = below.iter().take(SHOWN).map(|item| describe(&version, *item)).collect();
    Ok(Json(SidNode { prefix: codes, count: below.len(), children, items }))
}
