//! A text-embeddings-inference server as content encoder.
//!
//! `GET /info` names the model, `POST /embed` embeds. Requests hold texts of like length, at most as many as the server
//! takes at once; one that is too large for it is cut in two.

use super::client::{Client, Patience};
use crate::error::{bad_data, exit_code};
use anyhow::Result;
use rqvae::{ContentEncoder, Error, Vectors};
use serde::Deserialize;
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

/// Texts of a request where the server names no limit.
const MAX_TEXTS: usize = 32;
/// Bytes of text in a request: servers take two million by default.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// Bytes of a text that are sent; models look at less.
const MAX_TEXT_BYTES: usize = 16 << 10;
/// Widest vector.
const MAX_DIM: usize = 1 << 16;
/// Bytes of a number in an answer, with room.
const NUMBER_BYTES: u64 = 32;
const MAX_INFO_BYTES: u64 = 1 << 20;
/// Requests under way at a time, so that the server can batch.
const CONNECTIONS: usize = 4;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Info {
    model_id: String,
    model_sha: Option<String>,
    max_client_batch_size: Option<usize>,
}

/// A server, its model and the width of its vectors.
pub struct Endpoint {
    url: String,
    client: Client,
    info: Info,
    dim: usize,
}

impl Endpoint {
    /// Asks the server at `url` what it serves.
    ///
    /// # Errors
    /// Temporary when it cannot be reached; bad data when it answers something else.
    pub fn connect(url: &str, token: Option<String>) -> Result<Self> {
        Self::with_patience(url, token, Patience::default())
    }

    pub(super) fn with_patience(url: &str, token: Option<String>, patience: Patience) -> Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        let client = Client::new(patience, token);
        let at = format!("{url}/info");
        let info: Info = serde_json::from_slice(&client.body(&at, MAX_INFO_BYTES)?)
            .map_err(|e| bad_data(format!("{at}: expected what a text-embeddings-inference server says: {e}")))?;
        if info.model_id.is_empty() {
            return Err(bad_data(format!("{at}: expected `model_id`, found none")));
        }
        let mut endpoint = Self { url, client, info, dim: 0 };
        endpoint.dim = endpoint.request(&["a"])?.len();
        Ok(endpoint)
    }

    /// Digest of what the server says of its model, in hex.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [self.info.model_id.as_str(), self.info.model_sha.as_deref().unwrap_or_default()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update(&(self.dim as u64).to_le_bytes());
        hasher.finalize().to_hex().to_string()
    }

    /// Vectors of some texts, one after another.
    fn request(&self, texts: &[&str]) -> Result<Vec<f32>> {
        let at = format!("{}/embed", self.url);
        let widest = if self.dim == 0 { MAX_DIM } else { self.dim };
        let limit = texts.len() as u64 * (widest as u64 * NUMBER_BYTES + 64) + 1024;
        let (status, body) =
            self.client.post(&at, &json!({ "inputs": texts, "truncate": true, "normalize": true }), limit)?;
        if status == 413 {
            if texts.len() < 2 {
                return Err(bad_data(format!(
                    "{at}: a single text of {} bytes is too large for it",
                    texts.concat().len()
                )));
            }
            let (front, back) = texts.split_at(texts.len() / 2);
            return Ok([self.request(front)?, self.request(back)?].concat());
        }
        let rows: Vec<Vec<f32>> = serde_json::from_slice(&body)
            .map_err(|e| bad_data(format!("{at}: expected a list of {} vectors: {e}", texts.len())))?;
        if rows.len() != texts.len() {
            return Err(bad_data(format!("{at}: expected {} vectors, found {}", texts.len(), rows.len())));
        }
        let width = if self.dim == 0 { rows[0].len() } else { self.dim };
        for (row, text) in rows.iter().zip(texts) {
            if row.len() != width || !(1..=MAX_DIM).contains(&width) {
                return Err(bad_data(format!("{at}: expected vectors of {width} numbers, found {}", row.len())));
            }
            if let Some(x) = row.iter().find(|x| !x.is_finite()) {
                let text: String = text.chars().take(40).collect();
                return Err(bad_data(format!("{at}: the vector of `{text}` holds {x}")));
            }
        }
        Ok(rows.concat())
    }
}

impl ContentEncoder for Endpoint {
    fn dim(&self) -> usize {
        self.dim
    }

    fn name(&self) -> String {
        format!("endpoint:{}", self.info.model_id)
    }

    fn encode(&self, texts: &[String], progress: &mut dyn FnMut(usize)) -> rqvae::Result<Vectors> {
        let cut: Vec<&str> = texts.iter().map(|text| &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]).collect();
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&row| std::cmp::Reverse(cut[row].len()));
        let most = self.info.max_client_batch_size.unwrap_or(MAX_TEXTS).clamp(1, 1024);
        let batches = batches(&order, most, |row| cut[row].len());
        let mut data = vec![0.0; texts.len() * self.dim];
        let next = AtomicUsize::new(0);
        let (send, receive) = channel();
        let mut outcome = Ok(());
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS.min(batches.len()) {
                let (send, next, batches, cut) = (send.clone(), &next, &batches, &cut);
                scope.spawn(move || {
                    while let Some(rows) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let texts: Vec<&str> = rows.iter().map(|&row| cut[row]).collect();
                        let answer = self.request(&texts);
                        let go_on = answer.is_ok();
                        if send.send((rows, answer)).is_err() || !go_on {
                            break;
                        }
                    }
                });
            }
            drop(send);
            let mut done = 0;
            for (rows, answer) in &receive {
                match answer {
                    Err(error) => {
                        outcome = Err(error);
                        // Nobody starts another request.
                        next.store(batches.len(), Ordering::Relaxed);
                    }
                    Ok(vectors) => {
                        for (&row, vector) in rows.iter().zip(vectors.chunks_exact(self.dim)) {
                            data[row * self.dim..][..self.dim].copy_from_slice(vector);
                        }
                        done += rows.len();
                        progress(done);
                    }
                }
            }
        });
        match outcome {
            Ok(()) => Vectors::new(self.dim, data),
            Err(error) => Err(Error::Remote {
                url: self.url.clone(),
                temporary: exit_code(&error) == crate::error::Fault::Temporary.exit_code(),
                reason: format!("{error:#}"),
            }),
        }
    }
}

/// Cuts rows into requests of at most `most` texts and [`MAX_REQUEST_BYTES`].
fn batches(order: &[usize], most: usize, bytes: impl Fn(usize) -> usize) -> Vec<&[usize]> {
    let (mut cut, mut start, mut sum) = (Vec::new(), 0, 0);
    for (at, &row) in order.iter().enumerate() {
        if at > start && (at - start == most || sum + bytes(row) > MAX_REQUEST_BYTES) {
            cut.push(&order[start..at]);
            (start, sum) = (at, 0);
        }
        sum += bytes(row);
    }
    if start < order.len() {
        cut.push(&order[start..]);
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::super::test_server::{Reply, Request, Server};
    use super::*;
    use std::time::{Duration, Instant};

    fn patience() -> Patience {
        Patience { timeout: Duration::from_millis(300), retries: 2, first_wait: Duration::from_millis(5) }
    }

    const INFO: &str = r#"{"model_id":"tiny","model_sha":"abc","max_client_batch_size":8}"#;

    /// The vector of a text: its length and its first byte.
    fn embed(request: &Request) -> Reply {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        let texts = body["inputs"].as_array().unwrap();
        assert!(texts.len() <= 8 && body["truncate"] == true);
        let rows = texts.iter().map(|text| text.as_str().unwrap());
        let rows: Vec<_> = rows.map(|t| vec![t.len() as f32, f32::from(t.bytes().next().unwrap_or(0))]).collect();
        Reply::json(200, &json!(rows).to_string())
    }

    fn texts() -> Vec<String> {
        (0..50).map(|i| "x".repeat(i * 7 % 31)).collect()
    }

    #[test]
    fn vectors_come_back_in_the_order_of_the_texts() {
        let server = Server::start(|request, _| match request.path.as_str() {
            "/info" => Reply::json(200, INFO),
            "/embed" => embed(request),
            other => panic!("{other}"),
        });
        let endpoint = Endpoint::with_patience(&format!("{}/", server.url), Some("secret".into()), patience()).unwrap();
        assert_eq!((endpoint.dim(), endpoint.name().as_str()), (2, "endpoint:tiny"));
        let mut done = 0;
        let vectors = endpoint.encode(&texts(), &mut |n| done = n).unwrap();
        assert_eq!(done, 50);
        for (row, text) in texts().iter().enumerate() {
            assert_eq!(vectors.row(row)[0], text.len() as f32);
        }
        assert_eq!(endpoint.encode(&[], &mut |_| ()).unwrap().rows(), 0);
        assert!(server.requests().iter().all(|request| request.authorization.as_deref() == Some("Bearer secret")));
    }

    /// What the server does wrong, the exit code, and what the message says.
    #[test]
    fn a_server_that_fails_is_asked_again_and_then_named() {
        type Wrong = fn(&Request, usize) -> Reply;
        let cases: [(&str, Wrong, i32, &str); 10] = [
            ("busy for a while", |r, n| if n < 4 { Reply::json(429, "{}") } else { embed(r) }, 0, ""),
            ("broken for a while", |r, n| if n < 4 { Reply::json(500, "oops") } else { embed(r) }, 0, ""),
            ("cut off for a while", |r, n| if n < 4 { Reply::cut(&embed(r)) } else { embed(r) }, 0, ""),
            ("busy for good", |_, _| Reply::json(503, "{}"), 75, "status 503"),
            ("silent", |_, _| Reply::silent(Duration::from_millis(900)), 75, "attempts"),
            ("no JSON", |_, _| Reply::json(200, "<html>"), 65, "list of"),
            ("too few", |_, _| Reply::json(200, "[]"), 65, "vectors, found 0"),
            (
                "wrong width",
                |r, _| Reply::json(200, &embed(r).text().replace("[[", "[[1,").replace("],[", "],[1,")),
                65,
                "2 numbers",
            ),
            ("endless", |_, _| Reply::json(200, &"[".repeat(1 << 20)), 65, "longer than"),
            ("unknown", |_, _| Reply::json(404, "no such route"), 65, "no such route"),
        ];
        for (name, wrong, code, words) in cases {
            let server = Server::start(move |request, number| match (request.path.as_str(), number) {
                ("/info", _) => Reply::json(200, INFO),
                (_, 1) => embed(request),
                (_, number) => wrong(request, number),
            });
            let endpoint = Endpoint::with_patience(&server.url, None, patience()).unwrap();
            let texts: Vec<String> = texts().into_iter().take(8).collect();
            match endpoint.encode(&texts, &mut |_| ()) {
                Ok(vectors) => {
                    assert_eq!((code, vectors.rows()), (0, 8), "{name}");
                    assert!(server.requests().len() >= 5, "{name}");
                }
                Err(error) => {
                    let message = error.to_string();
                    assert_eq!(exit_code(&error.into()), code, "{name}: {message}");
                    assert!(message.contains(words) && message.contains(&server.url), "{name}: {message}");
                }
            }
        }
    }

    #[test]
    fn requests_that_are_too_large_are_cut_in_two() {
        let server = Server::start(|request, _| match request.path.as_str() {
            "/info" => Reply::json(200, INFO),
            _ if request.body.len() > 120 => Reply::json(413, "{}"),
            _ => embed(request),
        });
        let endpoint = Endpoint::with_patience(&server.url, None, patience()).unwrap();
        let vectors = endpoint.encode(&texts(), &mut |_| ()).unwrap();
        assert!(texts().iter().enumerate().all(|(row, text)| vectors.row(row)[0] == text.len() as f32));
        let error = endpoint.encode(&["y".repeat(500)], &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("500 bytes"), "{error}");
    }

    #[test]
    fn what_is_no_such_server_is_named() {
        let server = Server::start(|_, _| Reply::json(200, "{}"));
        let error = |url: &str| Endpoint::with_patience(url, None, patience()).err().unwrap();
        assert!(error(&server.url).to_string().contains("model_id"));
        let began = Instant::now();
        let gone = error("http://127.0.0.1:9");
        assert_eq!((exit_code(&gone), began.elapsed() < Duration::from_secs(5)), (75, true), "{gone}");
    }
}
