//! What can go wrong, sorted by what the caller has to do about it.

use std::path::PathBuf;

/// Why a call to the log failed.
///
/// The difference that matters is between "not stored" and "perhaps stored": a receipt may be refused
/// after the first, but not after the second.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Another record came first. Nothing was stored.
    #[error("another record was appended first: the log's last sequence is {last}")]
    Conflict {
        /// The last sequence when the append was refused. In a cluster it may count records that
        /// cannot be read yet.
        last: u64,
    },
    /// Definitely not stored: the record is too large, the disk is full, a quota is used up.
    #[error("the log refused the record: {0}")]
    Refused(String),
    /// Unknown whether it was stored, or (for reads) nothing could be read. An append that ended so
    /// may still arrive later: see [`EventLog::settle`](crate::EventLog::settle).
    #[error("the log cannot be reached: {0}")]
    Unavailable(String),
    /// The records asked for have been forgotten, because a snapshot stands for them: go on from
    /// [`EventLog::snapshot`](crate::EventLog::snapshot).
    #[error("the log begins at record {first}; a snapshot stands for those before it")]
    Forgotten {
        /// The first record there is.
        first: u64,
    },
    /// The log is not what was written: records are missing, or its guard does not hold. Going on
    /// would build on a wrong history; a person has to look.
    #[error("the log is damaged: {0}")]
    Damaged(String),
}

/// Why a bus could not be opened or a message not be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// A subscription ended though nobody ended it: nothing would come any more.
    #[error("the bus ended a subscription; start again")]
    Ended,
    /// Another process (or another bus in this one) has the log open.
    #[error(
        "{} is in use by another process: stop that one, or give this one a data directory of its own",
        path.display()
    )]
    InUse {
        /// The log's file.
        path: PathBuf,
    },
    /// The log's file is not one, or its content was changed.
    #[error(
        "{} is corrupt: {reason}; do not move it away, which forgets every job: `catchment log verify --data` says what can \
         be saved",
        path.display()
    )]
    Corrupt {
        /// The log's file.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// The data directory or the log's file could not be opened or made.
    #[error("cannot open {}: {reason}", path.display())]
    Open {
        /// What was to be opened.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// The configuration cannot work.
    #[error("bus configuration: {0}")]
    Config(String),
    /// No NATS server answered, or it did not let this client in.
    #[error("cannot connect to NATS at {url}: {reason}")]
    Connect {
        /// The URL, without credentials.
        url: String,
        /// What was wrong.
        reason: String,
    },
    /// The NATS server is there, but the log's stream is not usable.
    #[error("the stream {stream} on NATS at {url} cannot hold the log: {reason}")]
    Stream {
        /// The URL, without credentials.
        url: String,
        /// The stream.
        stream: String,
        /// What was wrong and what to do.
        reason: String,
    },
    /// The connection to the server is down. It is being restored, for as long as it takes.
    #[error("not connected to NATS at {url}: it is being tried again")]
    Disconnected {
        /// The URL, without credentials.
        url: String,
    },
    /// Not a subject, not a pattern, not a queue group.
    #[error("{subject:?} is not usable: {reason}")]
    Subject {
        /// What was given.
        subject: String,
        /// What was wrong.
        reason: &'static str,
    },
    /// A header's name or value cannot be sent.
    #[error("header {name:?} cannot be sent: {reason}")]
    Header {
        /// The header's name.
        name: String,
        /// What was wrong.
        reason: &'static str,
    },
    /// The message is larger than the bus takes.
    #[error("a message of {bytes} bytes is over the bus's limit of {limit_bytes}")]
    TooLarge {
        /// Payload and headers.
        bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// Nobody listens on the subject of a request.
    #[error("nobody answers on {subject}")]
    NoResponders {
        /// The request's subject.
        subject: String,
    },
    /// Somebody listened, but no reply came.
    #[error("no reply from {subject} within {timeout_ms} ms")]
    NoReply {
        /// The request's subject.
        subject: String,
        /// How long a reply was awaited at most.
        timeout_ms: u64,
    },
    /// The message to be answered was not a request.
    #[error("the message on {subject} asks for no reply")]
    NotARequest {
        /// The message's subject.
        subject: String,
    },
    /// The NATS client failed in a way that has no name above.
    #[error("NATS client: {0}")]
    Client(String),
}
