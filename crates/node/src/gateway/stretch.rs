//! A stretch of a file as an answer, sent by the kernel.

use super::connection::{FileBody, Kept};
use axum::Extension;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use catchment_types::Digest;
use std::any::Any;
use std::fs::File;
use std::sync::Arc;

/// Bytes `begin` to `end` of a file, which has them for good.
pub struct Stretch {
    /// The file.
    file: File,
    /// The first byte.
    begin: u64,
    /// The byte after the last.
    end: u64,
    /// The digest of these bytes.
    etag: Digest,
    /// What keeps them as they are while they are being sent.
    kept: Kept,
}

impl Stretch {
    /// A stretch of a file that stays as it is by itself.
    pub fn new(file: File, begin: u64, end: u64, etag: Digest) -> Self {
        Self { file, begin, end, etag, kept: None }
    }

    /// One that stays as it is for as long as `kept` does.
    pub fn keeping(self, kept: Arc<dyn Any + Send + Sync>) -> Self {
        Self { kept: Some(kept), ..self }
    }

    /// The answer to a request with these headers: `Range`, `If-Range` and `If-None-Match` are honoured.
    pub fn answer(self, headers: &HeaderMap) -> Response {
        let (etag, bytes) = (format!("\"{}\"", self.etag), self.end - self.begin);
        let common = [(header::ETAG, etag.clone()), (header::ACCEPT_RANGES, "bytes".to_owned())];
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        if text(header::IF_NONE_MATCH).is_some_and(|known| known == "*" || known.contains(&etag)) {
            return (StatusCode::NOT_MODIFIED, common).into_response();
        }
        let range_holds = text(header::IF_RANGE).is_none_or(|known| known == etag);
        let range = match text(header::RANGE).filter(|_| range_holds).map(|text| parse_range(text, bytes)) {
            Some(Some(Err(()))) => {
                let unsatisfied = [(header::CONTENT_RANGE, format!("bytes */{bytes}"))];
                return (StatusCode::RANGE_NOT_SATISFIABLE, common, unsatisfied).into_response();
            }
            Some(Some(Ok(range))) => Some(range),
            Some(None) | None => None,
        };
        let (begin, end) = range.unwrap_or((0, bytes));
        let sent =
            FileBody { file: Arc::new(self.file), begin: self.begin + begin, end: self.begin + end, _kept: self.kept };
        let body = Body::from_stream(sent.clone().stream());
        let length = [
            (header::CONTENT_LENGTH, (end - begin).to_string()),
            (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        ];
        match range {
            None => (StatusCode::OK, common, length, Extension(sent), body).into_response(),
            Some(_) => {
                let part = [(header::CONTENT_RANGE, format!("bytes {begin}-{}/{bytes}", end - 1))];
                (StatusCode::PARTIAL_CONTENT, common, length, part, Extension(sent), body).into_response()
            }
        }
    }
}

/// One range of bytes. `None`: not a range this server serves, so the whole file is sent (RFC 9110, 14.2).
/// `Some(Err)`: a range outside the file.
fn parse_range(text: &str, length: u64) -> Option<Result<(u64, u64), ()>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (begin, end) = match (first.trim(), last.trim()) {
        ("", last) => (length.saturating_sub(last.parse().ok()?), length),
        (first, "") => (first.parse().ok()?, length),
        (first, last) => (first.parse().ok()?, last.parse::<u64>().ok()?.saturating_add(1).min(length)),
    };
    Some(if begin < end { Ok((begin, end)) } else { Err(()) })
}

#[cfg(test)]
mod tests {
    use super::parse_range;

    #[test]
    fn ranges_of_bytes() {
        assert_eq!(parse_range("bytes=0-9", 100), Some(Ok((0, 10))));
        assert_eq!(parse_range("bytes=90-", 100), Some(Ok((90, 100))));
        assert_eq!(parse_range("bytes=-10", 100), Some(Ok((90, 100))));
        assert_eq!(parse_range("bytes=-1000", 100), Some(Ok((0, 100))));
        assert_eq!(parse_range("bytes=50-1000", 100), Some(Ok((50, 100))));
        assert_eq!(parse_range("bytes=100-", 100), Some(Err(())));
        assert_eq!(parse_range("bytes=9-3", 100), Some(Err(())));
        assert_eq!(parse_range("bytes=-0", 100), Some(Err(())));
        for ignored in ["bytes=0-1,5-6", "items=0-1", "bytes=x-y", "bytes=5"] {
            assert_eq!(parse_range(ignored, 100), None, "{ignored}");
        }
    }
}
