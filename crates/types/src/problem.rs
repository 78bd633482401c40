//! Errors as callers meet them: RFC 9457 problem details with a published `code`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident $text:literal $status:literal $retryable:literal),* $(,)?) => {
        /// Why a call was refused. The list is published; later versions may add to it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum Code {
            $($(#[$doc])* $variant),*
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its text in JSON and in metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// The HTTP status it comes with.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status),* }
            }

            /// Whether the same call may succeed later.
            pub const fn is_retryable(self) -> bool {
                match self { $(Self::$variant => $retryable),* }
            }
        }
    };
}

codes! {
    /// The request does not parse.
    BadRequest "bad_request" 400 false,
    /// The body ended before its declared length, or came too slowly.
    Truncated "truncated" 400 true,
    /// The body came more slowly than the minimum rate.
    TooSlow "too_slow" 408 true,
    /// There is no such job, model, round, receipt or function.
    NotFound "not_found" 404 false,
    /// The method does not exist on this address.
    MethodNotAllowed "method_not_allowed" 405 false,
    /// A job of this name exists.
    Exists "exists" 409 false,
    /// The same client or task already submitted other bytes or another weight for this round.
    Conflict "conflict" 409 false,
    /// The update's base is not the model this round trains.
    StaleBase "stale_base" 409 false,
    /// The job's state does not allow the call.
    WrongState "wrong_state" 409 false,
    /// The upload does not stand where the request would go on: `upload_offset` says where it does, if it is known.
    WrongOffset "wrong_offset" 409 false,
    /// The round takes no more updates; `next_round` says which does.
    RoundClosed "round_closed" 410 false,
    /// The body is larger than the job's or the node's limit.
    TooLarge "too_large" 413 false,
    /// The body's Content-Encoding is not one that is read.
    UnsupportedEncoding "unsupported_encoding" 415 false,
    /// The job spec has bad fields, each named in `fields`.
    InvalidSpec "invalid_spec" 422 false,
    /// The body is not a safetensors file that holds together.
    InvalidSafetensors "invalid_safetensors" 422 false,
    /// The tensors are not the model's.
    Layout "layout" 422 false,
    /// An element is NaN or infinite.
    NotFinite "not_finite" 422 false,
    /// An element or weight is outside the range the job allows.
    OutOfRange "out_of_range" 422 false,
    /// The body does not have the digest its header declared.
    Checksum "checksum" 422 true,
    /// The function refused the configuration or the work.
    FunctionRefused "function_refused" 422 false,
    /// The function trapped on this update, or makes no finite model of it alone.
    FunctionTrap "function_trap" 422 false,
    /// No room for another body; try again after Retry-After.
    NoRoom "no_room" 429 true,
    /// The node failed; its log says why.
    Internal "internal" 500 true,
    /// The event log cannot be reached or cannot store; nothing was accepted.
    LogUnavailable "log_unavailable" 503 true,
    /// The node is starting or stopping.
    NotReady "not_ready" 503 true,
    // The log's snapshots hold codes by their place in this list: new ones go to the end.
    /// No model could be made of the round's updates; the round is asked again as the next one.
    RoundGivenUp "round_given_up" 410 false,
    /// Several jobs have had this name: the call must say which it means, by `uid`, task or base.
    UidRequired "uid_required" 409 false,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One bad field of a job spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FieldError {
    /// Path of the field, dots between levels.
    pub field: String,
    /// What was wrong and what would be right.
    pub message: String,
}

/// An answer that is an error (RFC 9457, `application/problem+json`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// `about:blank`: the code carries the meaning.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Short text of the code.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong, where, and what to do.
    #[serde(default)]
    pub detail: String,
    /// The published code. A string, because later versions may answer with a code this one does not know.
    pub code: String,
    /// Whether the same call may succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// Members that belong to the code: `tensor`, `index`, `next_round`, `fields`, …
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub extra: Map<String, Value>,
}

impl Problem {
    /// A problem with this code.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank".to_owned(),
            title: code.as_str().replace('_', " "),
            status: code.status(),
            detail: detail.into(),
            code: code.as_str().to_owned(),
            retryable: code.is_retryable(),
            extra: Map::new(),
        }
    }

    /// Whether it has this code.
    pub fn is(&self, code: Code) -> bool {
        self.code == code.as_str()
    }

    /// Adds a member.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(name.to_owned(), value.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} {})", self.detail, self.status, self.code)
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_agree_with_their_json() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }

    /// Logs and snapshots hold a code's place.
    #[test]
    fn codes_keep_their_places() {
        let places = [
            "bad_request",
            "truncated",
            "too_slow",
            "not_found",
            "method_not_allowed",
            "exists",
            "conflict",
            "stale_base",
            "wrong_state",
            "wrong_offset",
            "round_closed",
            "too_large",
            "unsupported_encoding",
            "invalid_spec",
            "invalid_safetensors",
            "layout",
            "not_finite",
            "out_of_range",
            "checksum",
            "function_refused",
            "function_trap",
            "no_room",
            "internal",
            "log_unavailable",
            "not_ready",
            "round_given_up",
            "uid_required",
        ];
        assert!(Code::ALL.iter().map(|code| code.as_str()).eq(places), "a new code comes last");
    }

    #[test]
    fn members_lie_beside_the_standard_ones() {
        let problem = Problem::new(Code::RoundClosed, "round 3 is closed").with("next_round", 4);
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!((json["status"].as_u64(), json["next_round"].as_u64()), (Some(410), Some(4)));
        assert_eq!(serde_json::from_value::<Problem>(json).unwrap(), problem);
    }
}
