//! What can go wrong with a call, told apart by what a caller can do about it.

use catchment_types::{Code, Digest, Problem};
use std::path::PathBuf;
use std::time::Duration;

/// Why a call failed, after every attempt that made sense.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server refused, and said why.
    #[error("{problem}")]
    Problem {
        /// Status, code, detail and the members that belong to the code.
        problem: Box<Problem>,
        /// When to try again, if the server said.
        retry_after: Option<Duration>,
    },
    /// An error that is no problem document: something between here and the server answered, or no Catchment at all.
    #[error("{url} answered {status} without a problem document: {excerpt}")]
    Status {
        /// The address without its query.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The begin of the body.
        excerpt: String,
        /// When to try again, if the answer said.
        retry_after: Option<Duration>,
    },
    /// No connection could be made. The server has not seen the call.
    #[error("no connection to {url}: {why}; is the server running?")]
    Unreachable {
        /// The address without its query.
        url: String,
        /// The innermost cause.
        why: String,
    },
    /// The connection broke, or the answer did not come in time. The server may have acted on the call.
    #[error("the call to {url} broke off: {why}")]
    Broken {
        /// The address without its query.
        url: String,
        /// The innermost cause.
        why: String,
    },
    /// The model that arrived is not the one its ETag names.
    #[error("the model arrived damaged: its BLAKE3 digest is {found}, its ETag says {expected}")]
    Damaged {
        /// What the ETag says.
        expected: Digest,
        /// What arrived.
        found: Digest,
    },
    /// The answer is a success but does not read as what it should be.
    #[error("the answer of {url} does not read: {why}")]
    Answer {
        /// The address without its query.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The answer is larger than the caller's limit.
    #[error("the answer has more than {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// An argument that no server would take; nothing was sent.
    #[error("{0}")]
    Argument(String),
    /// A local file cannot be read or written.
    #[error("{doing} {}: {source}", path.display())]
    File {
        /// What was tried, like `read`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl ClientError {
    /// The HTTP status, when there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Problem { problem, .. } => Some(problem.status),
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The problem document, when there was one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem { problem, .. } => Some(problem),
            _ => None,
        }
    }

    /// Whether the server refused with this code.
    pub fn is(&self, code: Code) -> bool {
        self.problem().is_some_and(|problem| problem.is(code))
    }

    /// When to try again, if the server said.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Problem { retry_after, .. } | Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Problem { problem, .. } => problem.retryable || is_passing(problem.status),
            Self::Status { status, .. } => is_passing(*status),
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Damaged { .. } => true,
            Self::Answer { .. } | Self::TooLarge { .. } | Self::Argument(_) | Self::File { .. } => false,
        }
    }

    /// Whether the server may have acted on the call although it failed.
    pub fn may_have_acted(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Argument(_) | Self::File { .. } => false,
            Self::Problem { .. } | Self::Status { .. } => !matches!(self.status(), Some(400..=499 | 503)),
            _ => true,
        }
    }
}

/// Whether a status tells of a state of the server that passes.
fn is_passing(status: u16) -> bool {
    matches!(status, 429 | 500 | 502..=504)
}
