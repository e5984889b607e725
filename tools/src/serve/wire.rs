//! Requests and answers as they travel. The OpenAPI document is made from these types.

use super::limits::Limits;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// `POST /v1/recommend`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecommendRequest {
    /// The entries, each answered on its own.
    #[schema(value_type = Vec<Entry>)]
    pub requests: Vec<Value>,
    /// Deadline from arrival, milliseconds.
    pub timeout_ms: Option<u32>,
}

/// An item id: a text, or a whole number where the catalogue's ids are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Id {
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
}

impl Id {
    /// As the catalogue keeps it.
    pub fn key(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

/// One history to recommend to.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Entry {
    /// Comes back with the result.
    #[schema(value_type = Option<Id>)]
    pub id: Option<Id>,
    /// Who it is, as in the interactions that the model was trained on; read by models with user tokens alone, which
    /// answer without it as well.
    #[schema(value_type = Option<Id>)]
    pub user_id: Option<Id>,
    /// Item ids, oldest first.
    pub history: Vec<Id>,
    /// Length of the list, 10 where it is not said.
    pub k: Option<u32>,
    /// Beams, 50 where it is not said; more find better lists and take longer.
    pub beam_width: Option<u32>,
    /// Leave the history's items out; true where it is not said.
    pub exclude_seen: Option<bool>,
    /// Only these items, where it is a list.
    pub allow: Option<Vec<Id>>,
    /// Never these items.
    pub deny: Option<Vec<Id>>,
    /// Only items that training has not seen.
    pub only_new: bool,
    /// Also say which prefixes the search kept at each level.
    pub trace: bool,
}

/// Answer of `POST /v1/recommend`.
#[derive(Debug, Serialize, ToSchema)]
pub struct RecommendResponse {
    /// Name and digest of the weights.
    pub model_version: String,
    /// Digest of the index that every item of this answer is in.
    pub index_version: String,
    /// In the order of the entries.
    pub results: Vec<EntryResult>,
}

/// How an entry went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Recommended by the model.
    Ok,
    /// No known item in the history: popular items instead.
    Fallback,
    /// No known item in the history, and the run does not know what is popular.
    NoHistory,
    /// The entry is wrong; see `error`.
    Invalid,
    /// The engine failed on it; see `error`.
    Failed,
}

/// The list for one entry.
#[derive(Debug, Serialize, ToSchema)]
pub struct EntryResult {
    /// As in the entry.
    pub id: Option<Id>,
    /// How it went.
    pub status: Status,
    /// Best first.
    pub items: Vec<Recommended>,
    /// Items of the history that the model read.
    pub used_history: usize,
    /// Ids of the history that the catalogue does not have.
    pub unknown_items: usize,
    /// Known items of the history that were too old to be read.
    pub truncated: usize,
    /// Prefixes that the search kept, level by level, best first; where it was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<Vec<Prefix>>,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
}

/// One item of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Recommended {
    /// As in the catalogue.
    #[schema(value_type = Id)]
    pub item_id: Value,
    /// Natural-log probability where the model has one.
    pub score: f32,
    /// Semantic ID.
    pub sid: Vec<u16>,
    /// Title, where the catalogue has one.
    pub title: String,
    /// Whether training has not seen it; absent where the run does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<bool>,
}

/// A prefix of semantic IDs in the beam.
#[derive(Debug, Serialize, ToSchema)]
pub struct Prefix {
    /// The codes.
    pub sid: Vec<u16>,
    /// Natural-log probability so far.
    pub score: f32,
    /// Items whose ID begins so.
    pub items: usize,
}

/// What is wrong with a request or an entry.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// For programs, such as `queue_full`.
    pub code: String,
    /// For people.
    pub message: String,
    /// The limit that was passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// The request, as in the access log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// Every answer that is not 2xx.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: Problem,
}

/// An item of the catalogue.
#[derive(Debug, Serialize, ToSchema)]
pub struct ItemInfo {
    /// As in the catalogue.
    #[schema(value_type = Id)]
    pub item_id: Value,
    /// Title.
    pub title: String,
    /// Category path.
    pub category: String,
    /// Launch or first sight, Unix seconds.
    pub first_seen: Option<i64>,
    /// Semantic ID.
    pub sid: Vec<u16>,
    /// Whether it can be recommended.
    pub live: bool,
    /// Whether training has not seen it; absent where the run does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<bool>,
}

/// `GET /v1/items`.
#[derive(Debug, Serialize, ToSchema)]
pub struct ItemList {
    /// Best match first.
    pub items: Vec<ItemInfo>,
}

/// `GET /v1/sids/{prefix}`.
#[derive(Debug, Serialize, ToSchema)]
pub struct SidNode {
    /// The codes asked for.
    pub prefix: Vec<u16>,
    /// Items below.
    pub count: usize,
    /// Next codes, largest first; empty under a whole ID.
    pub children: Vec<SidChild>,
    /// Some of the items below.
    pub items: Vec<ItemInfo>,
}

/// A next code.
#[derive(Debug, Serialize, ToSchema)]
pub struct SidChild {
    /// The code.
    pub code: u16,
    /// Items below.
    pub count: usize,
    /// One of them.
    pub example: String,
}

/// `GET /v1/info`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Info {
    /// Of this program.
    pub version: String,
    /// Kind of the model.
    pub model: String,
    /// Name and digest of the weights.
    pub model_version: String,
    /// Digest of the index.
    pub index_version: String,
    /// Items that can be recommended.
    pub items: usize,
    /// Items that can be recommended and that training has not seen.
    pub new_items: Option<usize>,
    /// Codes per level, the suffix last.
    pub codes: Vec<u32>,
    /// How the IDs were made.
    pub method: String,
    /// What content was encoded by.
    pub encoder: String,
    /// Newest items of a history that the model reads.
    pub history_cap: usize,
    /// Where it computes.
    pub device: String,
    /// Seconds since the start.
    pub uptime_seconds: f64,
    /// What is taken.
    pub limits: Limits,
}

/// `POST /v1/admin/reload`; an empty body reads the same places again.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReloadRequest {
    /// Another run directory.
    pub run: Option<String>,
    /// Another catalogue directory.
    pub catalogue: Option<String>,
}

/// The version that is served after a change.
#[derive(Debug, Serialize, ToSchema)]
pub struct Served {
    /// Name and digest of the weights.
    pub model_version: String,
    /// Digest of the index.
    pub index_version: String,
    /// Items that can be recommended.
    pub items: usize,
    /// What changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<ChangedItems>,
}

/// What a change of items did.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChangedItems {
    /// Items with a new ID.
    pub added: usize,
    /// Items that had been removed and are found again.
    pub restored: usize,
    /// Items that were there, or were gone, already.
    pub known: usize,
    /// Items that are no longer found.
    pub removed: usize,
    /// IDs of the items of the request.
    pub sids: Vec<ItemInfo>,
}

/// `POST /v1/admin/items`: rows as in an items file.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddItems {
    /// `item_id`, and `title`, `brand`, `categories`, `description` or `embedding`.
    #[schema(value_type = Vec<Object>)]
    pub items: Vec<Value>,
}

/// `DELETE /v1/admin/items`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveItems {
    /// Ids.
    pub items: Vec<Id>,
}
