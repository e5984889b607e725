//! Plain HTTP requests that are tried again, wait longer each time, and never read more than they were told to.

use crate::error::{Fault, bad_data, fault};
use anyhow::Result;
use std::io::Read;
use std::thread::sleep;
use std::time::Duration;

/// How patient a client is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Longest wait for a connection, for the head of an answer, and for any further bytes of it.
    pub(super) timeout: Duration,
    /// Further attempts after the first.
    pub(super) retries: u32,
    /// Wait before the first of them; each further one waits twice as long.
    pub(super) first_wait: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { timeout: Duration::from_mins(1), retries: 5, first_wait: Duration::from_millis(250) }
    }
}

/// Longest wait between two attempts, whatever a server asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// An answer with its body still to come.
pub(super) type Answer = ureq::http::Response<ureq::Body>;

/// A client of one service.
pub(super) struct Client {
    agent: ureq::Agent,
    patience: Patience,
    token: Option<String>,
}

enum Tried {
    Answer(Box<Answer>),
    /// Not now: why, and how long the server wants to be left alone.
    Later(String, Option<Duration>),
    /// Never like this.
    Refused(u16, String),
}

impl Client {
    pub(super) fn new(patience: Patience, token: Option<String>) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(patience.timeout.min(Duration::from_secs(10))))
            .timeout_recv_response(Some(patience.timeout))
            .timeout_per_read(Some(patience.timeout))
            .user_agent(concat!("sidrec/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), patience, token }
    }

    /// Gets `url`, from byte `from` on where it is not 0.
    ///
    /// # Errors
    /// Temporary after all attempts; bad data for an answer that no attempt will change.
    pub(super) fn get(&self, url: &str, from: u64) -> Result<Answer> {
        self.attempts(url, &|| {
            let mut request = self.agent.get(url);
            if let Some(token) = &self.token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            request.call()
        })
    }

    /// Posts JSON to `url`; the answer's status and body of at most `limit` bytes. Of the answers that say no for good
    /// only 413 (too large) comes back as one.
    ///
    /// # Errors
    /// As [`Client::get`]; bad data for a longer body.
    pub(super) fn post(&self, url: &str, body: &serde_json::Value, limit: u64) -> Result<(u16, Vec<u8>)> {
        let bytes = serde_json::to_vec(body)?;
        let mut waited = 0;
        loop {
            let answer = self.attempts(url, &|| {
                let mut request = self.agent.post(url).header("content-type", "application/json");
                if let Some(token) = &self.token {
                    request = request.header("authorization", format!("Bearer {token}"));
                }
                request.send(&bytes[..])
            })?;
            let status = answer.status().as_u16();
            match body_of(answer, url, limit)? {
                Ok(body) => return Ok((status, body)),
                // It broke off or took too long on the way.
                Err(why) => {
                    waited += 1;
                    if waited > self.patience.retries {
                        return Err(temporary(url, &why, waited));
                    }
                    sleep(self.wait(waited - 1, None));
                }
            }
        }
    }

    /// Gets a body of at most `limit` bytes.
    pub(super) fn body(&self, url: &str, limit: u64) -> Result<Vec<u8>> {
        let answer = self.get(url, 0)?;
        body_of(answer, url, limit)?.map_err(|why| temporary(url, &why, 1))
    }

    fn attempts(&self, url: &str, call: &dyn Fn() -> Result<Answer, ureq::Error>) -> Result<Answer> {
        let mut attempt = 0;
        loop {
            match judge(call()) {
                Tried::Answer(answer) => return Ok(*answer),
                Tried::Refused(status, why) => {
                    let kind = if matches!(status, 401 | 403) { Fault::Usage } else { Fault::BadData };
                    return Err(fault(kind, format!("{url}: {why}")));
                }
                Tried::Later(why, asked) => {
                    attempt += 1;
                    if attempt > self.patience.retries {
                        return Err(temporary(url, &why, attempt));
                    }
                    tracing::warn!(url, attempt, why, "trying again");
                    sleep(self.wait(attempt - 1, asked));
                }
            }
        }
    }

    fn wait(&self, attempt: u32, asked: Option<Duration>) -> Duration {
        let own = self.patience.first_wait * 2u32.pow(attempt.min(16));
        asked.unwrap_or(own).max(own.min(LONGEST_WAIT)).min(LONGEST_WAIT)
    }
}

fn temporary(url: &str, why: &str, attempts: u32) -> anyhow::Error {
    fault(Fault::Temporary, format!("{url}: {why}, {attempts} attempts"))
}

/// The whole body, or why it broke off.
fn body_of(mut answer: Answer, url: &str, limit: u64) -> Result<Result<Vec<u8>, String>> {
    let mut body = Vec::new();
    match answer.body_mut().as_reader().take(limit + 1).read_to_end(&mut body) {
        Err(e) => Ok(Err(format!("the answer broke off: {e}"))),
        Ok(_) if body.len() as u64 > limit => {
            Err(bad_data(format!("{url}: the answer is longer than {limit} bytes, the most expected")))
        }
        Ok(_) => Ok(Ok(body)),
    }
}

fn judge(answer: Result<Answer, ureq::Error>) -> Tried {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return failed(&error),
    };
    let status = answer.status().as_u16();
    match status {
        200..=299 | 413 => Tried::Answer(Box::new(answer)),
        // TEI answers 424 when its backend failed, 429 when its queue is full.
        408 | 424 | 425 | 429 | 500..=599 => {
            let asked = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
            Tried::Later(format!("status {status}"), asked.map(Duration::from_secs))
        }
        _ => {
            let mut text = String::new();
            let (_, body) = answer.into_parts();
            let _ = body.into_reader().take(300).read_to_string(&mut text);
            Tried::Refused(status, format!("status {status} {}", text.trim()))
        }
    }
}

fn failed(error: &ureq::Error) -> Tried {
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
            Tried::Refused(0, error.to_string())
        }
        _ => Tried::Later(error.to_string(), None),
    }
}
