//! One HTTP answer, and what every answer must keep to.

use bytes::Bytes;
use reqwest::header::HeaderMap;
use serde_json::Value;

/// Codes after which the same call may succeed, as published.
const RETRYABLE: [&str; 7] =
    ["truncated", "too_slow", "checksum", "no_room", "internal", "log_unavailable", "not_ready"];

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// A header's text; empty when it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a header in ASCII"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        let parsed = serde_json::from_slice(&self.body);
        parsed.unwrap_or_else(|error| panic!("{error} in the answer {}: {}", self.status, self.text()))
    }

    /// Checks the status and gives the answer on.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// Checks that this is the problem `code` with `status`, in the shape every problem has, and gives it.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text());
        let problem = self.json();
        check_problem(&problem, status, code);
        if [429, 503].contains(&status) {
            let seconds: u64 = self.header("retry-after").parse().expect("Retry-After is a number of seconds");
            assert!((1..=60).contains(&seconds), "Retry-After: {seconds}");
        }
        problem
    }
}

/// Checks the members that every problem has.
#[track_caller]
pub(crate) fn check_problem(problem: &Value, status: u16, code: &str) {
    assert_eq!(problem["code"], code, "{problem}");
    assert_eq!(problem["status"], status, "{problem}");
    assert_eq!(problem["type"], "about:blank", "{problem}");
    assert_eq!(problem["retryable"], RETRYABLE.contains(&code), "{problem}");
    for text in ["title", "detail"] {
        assert!(problem[text].as_str().is_some_and(|text| text.len() > 3), "{text} of {problem}");
    }
}
