//! Reads the head of a request just far enough to know who should serve it.
//!
//! This is not an HTTP parser of our own: `httparse` (hyper's) reads the head, and everything but the plainest requests
//! is left to hyper. A mistake here may cost speed; where the request ends must never be a guess, because the bytes
//! after it are the next request.

use bytes::{Buf, BytesMut};
use http::{HeaderName, HeaderValue, Method, Uri, Version, header};
use std::str;

/// Headers of a request; hyper judges requests with more.
const HEADERS_MAX: usize = 64;

/// Who serves a request.
#[derive(Debug)]
pub enum Way {
    /// We do. The head has been taken from the buffer.
    Direct {
        /// The head.
        request: Box<http::Request<()>>,
        /// Bytes of the body after it.
        body_bytes: u64,
        /// Whether the client waits for "100 Continue" before it sends them.
        expects: bool,
    },
    /// hyper does. The head is still in the buffer.
    Hyper {
        /// Bytes of head and body together; `None` when only reading it all can tell.
        request_bytes: Option<u64>,
    },
}

/// Looks at what came. `None`: the head is not complete.
pub fn classify(ahead: &mut BytesMut) -> Option<Way> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let head_bytes = match parsed.parse(ahead) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) => return None,
        Err(_) => return Some(Way::Hyper { request_bytes: None }),
    };
    let Some(frame) = frame(&parsed) else { return Some(Way::Hyper { request_bytes: None }) };
    let request_bytes = frame.body_bytes.checked_add(head_bytes as u64);
    let direct = if frame.may_be_direct && request_bytes.is_some() { request(&parsed) } else { None };
    Some(match direct {
        Some(request) => {
            ahead.advance(head_bytes);
            Way::Direct { request: Box::new(request), body_bytes: frame.body_bytes, expects: frame.expects }
        }
        None => Way::Hyper { request_bytes },
    })
}

/// Where a request ends.
struct Frame {
    body_bytes: u64,
    expects: bool,
    may_be_direct: bool,
}

/// `None`: only hyper can tell where it ends, or whether the connection goes on.
fn frame(parsed: &httparse::Request<'_, '_>) -> Option<Frame> {
    if parsed.version != Some(1) || parsed.method == Some("CONNECT") {
        return None;
    }
    let (mut length, mut expects, mut is_encoded) = (None, false, false);
    for field in &*parsed.headers {
        let is = |name: HeaderName| field.name.eq_ignore_ascii_case(name.as_str());
        if is(header::TRANSFER_ENCODING) || is(header::UPGRADE) {
            return None;
        }
        if is(header::CONNECTION) && !field.value.eq_ignore_ascii_case(b"keep-alive") {
            return None;
        }
        if is(header::CONTENT_LENGTH) {
            let digits = Some(field.value).filter(|value| !value.is_empty() && value.iter().all(u8::is_ascii_digit))?;
            let bytes: u64 = str::from_utf8(digits).ok()?.parse().ok()?;
            if length.replace(bytes).is_some() {
                return None;
            }
        }
        if is(header::EXPECT) {
            expects = field.value.eq_ignore_ascii_case(b"100-continue");
            if !expects {
                return None;
            }
        }
        is_encoded |= is(header::CONTENT_ENCODING) && !field.value.eq_ignore_ascii_case(b"identity");
    }
    let path = parsed.path?.split('?').next().unwrap_or_default();
    let is_update = matches!(parsed.method, Some("PUT" | "PATCH")) && path.contains("/updates/") && length.is_some();
    let is_file = path.ends_with("/model") || path.starts_with("/v1/peer/");
    let is_model = parsed.method == Some("GET") && is_file && length.unwrap_or(0) == 0;
    Some(Frame { body_bytes: length.unwrap_or(0), expects, may_be_direct: (is_update && !is_encoded) || is_model })
}

/// The head as the router takes it. `None`: something in it is not to the types' liking; hyper will say what.
fn request(parsed: &httparse::Request<'_, '_>) -> Option<http::Request<()>> {
    let mut request = http::Request::new(());
    *request.method_mut() = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    *request.uri_mut() = parsed.path?.parse::<Uri>().ok()?;
    *request.version_mut() = Version::HTTP_11;
    for field in &*parsed.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        request.headers_mut().append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(text: &str) -> String {
        let mut bytes = BytesMut::from(text.as_bytes());
        match classify(&mut bytes) {
            None => "more".to_owned(),
            Some(Way::Direct { request, body_bytes, expects }) => {
                format!(
                    "direct {} +{body_bytes}{} then {}",
                    request.uri(),
                    if expects { "?" } else { "" },
                    str::from_utf8(&bytes).unwrap()
                )
            }
            Some(Way::Hyper { request_bytes }) => {
                assert_eq!(bytes.len(), text.len(), "hyper gets the head");
                format!("hyper {request_bytes:?}")
            }
        }
    }

    #[test]
    fn only_plain_updates_and_models_are_direct() {
        let update = "PUT /v1/jobs/a/rounds/1/updates/c?weight=2 HTTP/1.1\r\n";
        let direct = "direct /v1/jobs/a/rounds/1/updates/c?weight=2";
        assert_eq!(way(&format!("{update}Content-Length: 7\r\n\r\nbody")), format!("{direct} +7 then body"));
        let expects = way(&format!("{update}content-length: 7\r\nExpect: 100-Continue\r\n\r\n"));
        assert_eq!(expects, format!("{direct} +7? then "));
        let rest = "PATCH /v1/jobs/a/rounds/1/updates/c HTTP/1.1\r\nUpload-Offset: 3\r\n";
        assert_eq!(
            way(&format!("{rest}Content-Length: 4\r\n\r\nbodyGET")),
            "direct /v1/jobs/a/rounds/1/updates/c +4 then bodyGET"
        );
        assert_eq!(way("HEAD /v1/jobs/a/rounds/1/updates/c HTTP/1.1\r\n\r\n"), "hyper Some(47)");
        assert_eq!(
            way("GET /v1/jobs/a/model?version=1 HTTP/1.1\r\n\r\n"),
            "direct /v1/jobs/a/model?version=1 +0 then "
        );
        for (fields, expected) in [
            ("Transfer-Encoding: chunked\r\n", "hyper None"),
            ("Content-Length: 7\r\nTransfer-Encoding: chunked\r\n", "hyper None"),
            ("Content-Length: 7\r\nContent-Length: 7\r\n", "hyper None"),
            ("Content-Length: +7\r\n", "hyper None"),
            ("Content-Length: 99999999999999999999999\r\n", "hyper None"),
            ("Content-Length: 7\r\nConnection: close\r\n", "hyper None"),
            ("Content-Length: 18446744073709551615\r\n", "hyper None"),
            ("Content-Length: 7\r\nUpgrade: h2c\r\n", "hyper None"),
            ("Content-Length: 7\r\nExpect: magic\r\n", "hyper None"),
            ("Content-Length: 7\r\nContent-Encoding: gzip\r\n", "hyper Some(105)"),
        ] {
            assert_eq!(way(&format!("{update}{fields}\r\n")), expected, "{fields}");
        }
        assert_eq!(way("PUT /v1/jobs/a/rounds/1/updates/c HTTP/1.0\r\nContent-Length: 7\r\n\r\n"), "hyper None");
        assert_eq!(way("GET /metrics HTTP/1.1\r\n\r\nGET"), "hyper Some(25)");
        assert_eq!(way("GET /metrics HTTP/1.1\r\n"), "more");
        assert_eq!(way("\x16\x03\x01 no http\r\n\r\n"), "hyper None");
    }
}
