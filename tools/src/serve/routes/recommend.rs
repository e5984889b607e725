//! `POST /v1/recommend`.

use crate::serve::App;
use crate::serve::body::Body;
use crate::serve::engine::{Answer, Ask};
use crate::serve::fail::Fail;
use crate::serve::limits::Limits;
use crate::serve::queue::{Failure, Waiting};
use crate::serve::version::Version;
use crate::serve::wire::{
    Entry, EntryResult, ErrorBody, Id, Prefix, Problem, RecommendRequest, RecommendResponse, Recommended, Status,
};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use rqvae::ItemIdx;
use seqmodel::{Scored, UserHash};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Ranked items for each history.
#[utoipa::path(post, path = "/v1/recommend", request_body = RecommendRequest, tag = "recommend", responses(
    (status = 200, body = RecommendResponse, description = "Answers in the order of the entries; a wrong entry does not spoil the others"),
    (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 408, body = ErrorBody),
    (status = 413, body = ErrorBody), (status = 415, body = ErrorBody),
    (status = 422, body = ErrorBody, description = "No entry can be answered as it stands"),
    (status = 429, body = ErrorBody, description = "Come back after Retry-After seconds"),
    (status = 500, body = ErrorBody), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
pub(super) async fn recommend(
    State(app): State<Arc<App>>,
    Body(request): Body<RecommendRequest>,
) -> Result<Json<RecommendResponse>, Fail> {
    let since = Instant::now();
    let limits = &app.limits;
    let max = u64::from(limits.max_entries);
    if request.requests.is_empty() {
        return Err(Fail::new(StatusCode::UNPROCESSABLE_ENTITY, "empty", "requests: expected at least one entry"));
    }
    if request.requests.len() as u64 > max {
        let message = format!("requests: {} entries, at most {max} are taken", request.requests.len());
        return Err(Fail::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_entries", message).limit(max));
    }
    let deadline = since + timeout(limits, request.timeout_ms)?;
    let version = app.versions.current();
    let checked: Vec<_> = request.requests.into_iter().map(|entry| check(&version, limits, entry)).collect();
    let sound = checked.iter().flatten().count();
    let work: u64 = checked.iter().flatten().map(|checked| checked.ask.beam.max(checked.ask.k) as u64).sum();
    if let (0, Some(Err((_, problem)))) = (sound, checked.first()) {
        return Err(Fail { status: StatusCode::UNPROCESSABLE_ENTITY, problem: problem.clone(), retry_after: None });
    }
    let most = u64::from(limits.max_work);
    if work > most {
        let message = format!("entries times beams are {work}, at most {most} are taken in one request");
        return Err(Fail::new(StatusCode::UNPROCESSABLE_ENTITY, "too_much_work", message).limit(most));
    }
    answer(&app, &version, since, deadline, checked).await.map(Json)
}

pub(super) fn timeout(limits: &Limits, asked: Option<u32>) -> Result<Duration, Fail> {
    let most = limits.max_timeout_ms;
    match asked {
        None => Ok(Duration::from_millis(u64::from(limits.timeout_ms))),
        Some(ms) if (1..=most).contains(&ms) => Ok(Duration::from_millis(u64::from(ms))),
        Some(ms) => {
            let message = format!("timeout_ms: expected 1 to {most}, found {ms}");
            Err(Fail::new(StatusCode::UNPROCESSABLE_ENTITY, "timeout", message).limit(u64::from(most)))
        }
    }
}

/// An entry that can be answered.
pub(super) struct Checked {
    id: Option<Id>,
    ask: Ask,
    unknown: usize,
    truncated: usize,
}

/// Looks up and checks an entry.
pub(super) fn check(
    version: &Version,
    limits: &Limits,
    entry: serde_json::Value,
) -> Result<Checked, (Option<Id>, Problem)> {
    let id = entry.get("id").and_then(|id| serde_json::from_value(id.clone()).ok());
    let wrong = |code: &str, message: String, limit: Option<u32>| {
        let limit = limit.map(u64::from);
        (id.clone(), Problem { code: code.into(), message, limit, request_id: None })
    };
    let entry: Entry = serde_json::from_value(entry).map_err(|e| wrong("invalid_entry", e.to_string(), None))?;
    let in_range = |name: &str, value: Option<u32>, default: u32, most: u32| match value.unwrap_or(default.min(most)) {
        value if (1..=most).contains(&value) => Ok(value as usize),
        value => Err(wrong("out_of_range", format!("{name}: expected 1 to {most}, found {value}"), Some(most))),
    };
    let k = in_range("k", entry.k, 10, limits.max_k)?;
    let beam = in_range("beam_width", entry.beam_width, 50, limits.max_beam)?;
    let lists = [Some(&entry.history), entry.allow.as_ref(), entry.deny.as_ref()];
    for (name, list) in ["history", "allow", "deny"].into_iter().zip(lists) {
        let (length, most) = (list.map_or(0, Vec::len), limits.max_history);
        if length > most as usize {
            let message = format!("{name}: {length} ids, at most {most} are taken");
            return Err(wrong("too_long", message, Some(most)));
        }
    }
    if entry.only_new && version.counts.is_none() {
        let message = "only_new: the run does not know what training has seen; train it again".to_string();
        return Err(wrong("unknown_new", message, None));
    }
    let find =
        |ids: &[Id]| -> Vec<ItemIdx> { ids.iter().filter_map(|id| version.catalogue.keys.find(&id.key())).collect() };
    let history = find(&entry.history);
    let unknown = entry.history.len() - history.len();
    let mut exclude = entry.deny.as_deref().map(find).unwrap_or_default();
    if entry.exclude_seen.unwrap_or(true) {
        exclude.extend(&history);
    }
    let truncated = history.len().saturating_sub(version.history_cap);
    let history = history[truncated..].to_vec();
    let allow = entry.allow.as_deref().map(find);
    let user = entry.user_id.map(|id| UserHash::of(&id.key()));
    let ask = Ask { history, user, exclude, allow, only_new: entry.only_new, k, beam, trace: entry.trace };
    Ok(Checked { id: entry.id, ask, unknown, truncated })
}

type Pending = (Checked, Option<oneshot::Receiver<Result<Answer, Failure>>>);

/// Answers the entries that are sound, in one go.
pub(super) async fn answer(
    app: &App,
    version: &Arc<Version>,
    since: Instant,
    deadline: Instant,
    checked: Vec<Result<Checked, (Option<Id>, Problem)>>,
) -> Result<RecommendResponse, Fail> {
    let mut line = Vec::new();
    let mut pending: Vec<Result<Pending, (Option<Id>, Problem)>> = Vec::new();
    for checked in checked {
        pending.push(checked.map(|checked| {
            app.metrics.unknown_items.inc_by(checked.unknown as u64);
            if checked.ask.history.is_empty() {
                return (checked, None);
            }
            let (reply, answer) = oneshot::channel();
            let (version, ask) = (Arc::clone(version), checked.ask.clone());
            line.push(Waiting { version, ask, since, deadline, reply });
            (checked, Some(answer))
        }));
    }
    if !line.is_empty() {
        app.queue.push(line)?;
    }
    let mut results = Vec::new();
    for entry in pending {
        results.push(match entry {
            Err((id, problem)) => empty(id, Status::Invalid, Some(problem)),
            Ok((checked, None)) => fallback(app, version, checked),
            Ok((checked, Some(answer))) => {
                let answered = tokio::time::timeout_at(deadline.into(), answer).await;
                match answered.unwrap_or(Ok(Err(Failure::Late))) {
                    Ok(Ok(answer)) => found(app, version, checked, &answer),
                    // The worker drops what is late without a word.
                    Err(_) | Ok(Err(Failure::Late)) if Instant::now() >= deadline => return Err(Failure::Late.into()),
                    Ok(Err(Failure::Engine(reason))) => {
                        let problem = Problem { code: "engine".into(), message: reason, limit: None, request_id: None };
                        empty(checked.id, Status::Failed, Some(problem))
                    }
                    Ok(Err(failure)) => return Err(failure.into()),
                    Err(_) => return Err(Failure::Gone.into()),
                }
            }
        });
    }
    if results.iter().all(|result| result.status == Status::Failed)
        && let Some(problem) = results.first().and_then(|result| result.error.clone())
    {
        return Err(Failure::Engine(problem.message).into());
    }
    let (model_version, index_version) = (version.model_version.clone(), version.index_version.clone());
    Ok(RecommendResponse { model_version, index_version, results })
}

fn empty(id: Option<Id>, status: Status, error: Option<Problem>) -> EntryResult {
    let (items, levels) = (Vec::new(), Vec::new());
    EntryResult { id, status, items, used_history: 0, unknown_items: 0, truncated: 0, levels, error }
}

fn found(app: &App, version: &Version, checked: Checked, answer: &Answer) -> EntryResult {
    if answer.items.len() < checked.ask.k {
        app.metrics.dead_ends.inc();
    }
    let trie = &version.catalogue.trie;
    let prefix = |kept: &beam::Kept| {
        let codes = kept.prefix.codes();
        let items = trie.find(codes).map_or(0, |node| trie.items_below(codes.len(), node).len());
        Prefix { sid: codes.to_vec(), score: kept.log_prob, items }
    };
    EntryResult {
        id: checked.id,
        status: Status::Ok,
        items: answer.items.iter().map(|scored| recommended(version, scored)).collect(),
        used_history: checked.ask.history.len(),
        unknown_items: checked.unknown,
        truncated: checked.truncated,
        levels: answer.levels.iter().map(|level| level.iter().map(prefix).collect()).collect(),
        error: None,
    }
}

/// Popular items, filtered as the entry asks.
fn fallback(app: &App, version: &Version, checked: Checked) -> EntryResult {
    app.metrics.fallbacks.inc();
    let ask = &checked.ask;
    let exclude: HashSet<ItemIdx> = ask.exclude.iter().copied().collect();
    let allow: Option<HashSet<ItemIdx>> = ask.allow.as_ref().map(|allow| allow.iter().copied().collect());
    let may = |item: &ItemIdx| {
        !exclude.contains(item)
            && allow.as_ref().is_none_or(|allow| allow.contains(item))
            && (!ask.only_new || version.is_new(*item) == Some(true))
    };
    let list = version.popular.iter().filter(|(item, _)| may(item)).take(ask.k);
    let items = list.map(|(item, score)| recommended(version, &Scored { item: *item, score: *score })).collect();
    let status = if version.popular.is_empty() { Status::NoHistory } else { Status::Fallback };
    EntryResult { items, unknown_items: checked.unknown, ..empty(checked.id, status, None) }
}

fn recommended(version: &Version, scored: &Scored) -> Recommended {
    let catalogue = &version.catalogue;
    Recommended {
        item_id: catalogue.keys.json(scored.item),
        score: scored.score,
        sid: catalogue.sids.codes(scored.item).to_vec(),
        title: catalogue.cards[scored.item.0 as usize].title.clone(),
        new: version.is_new(scored.item),
    }
}
