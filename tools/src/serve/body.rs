//! JSON bodies within limits: type, size, time and depth are checked before anything is made of them.

use super::App;
use super::fail::Fail;
use super::limits::JSON_DEPTH;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// A parsed body.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Body<T> {
    type Rejection = Fail;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Fail> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
        let kind = kind.split(';').next().unwrap_or("").trim();
        if !(kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")) {
            let message = format!("content-type: expected application/json, found `{kind}`");
            return Err(Fail::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", message));
        }
        let limit = app.limits.max_body;
        let too_large = || {
            let message = format!("the body is larger than {limit} bytes");
            Fail::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message).limit(limit)
        };
        let length =
            request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: u64| length > limit) {
            return Err(too_large());
        }
        let body = Limited::new(request.into_body(), limit as usize).collect();
        let body = match tokio::time::timeout(app.limits.body(), body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
            Ok(Err(error)) => return Err(Fail::malformed(format!("reading the body: {error}"))),
            Err(_) => {
                let message = format!("the body took longer than {} ms", app.limits.body_ms);
                return Err(Fail::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message));
            }
        };
        if depth(&body) > JSON_DEPTH {
            return Err(Fail::malformed(format!("nested deeper than {JSON_DEPTH}")).limit(JSON_DEPTH as u64));
        }
        let body: &[u8] = if body.is_empty() { b"{}" } else { &body };
        serde_json::from_slice(body).map(Self).map_err(|error| Fail::malformed(error.to_string()))
    }
}

/// Deepest nesting of brackets outside of strings; for text that is no JSON, some number.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0usize, 0, false, false);
    for byte in json {
        match (quoted, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => quoted = !quoted,
            (false, b'[' | b'{') => depth += 1,
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_of_strings() {
        assert_eq!(depth(br#"{"a":[1,{"b":"[[[\"[["}]}"#), 3);
        assert_eq!(depth(b""), 0);
        assert_eq!(depth(b"]]][["), 2);
    }
}
