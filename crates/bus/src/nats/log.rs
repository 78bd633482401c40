//! The log as one JetStream stream with one subject.
//!
//! Every append carries the stream-wide last sequence it expects, so the server itself refuses a
//! second writer. Records are read from whichever server has them, as they are; only the stream's
//! leader is believed that one is missing: a replica could lag behind, and a record that was stored
//! but not found would be taken for lost.
//!
//! Followers are sent the records by the server (`tail.rs`), and look at the stream's end every second
//! besides, because the connection may be gone without a word. Whoever has appended with a guard says
//! so on a plain subject beside the stream's, eight bytes of sequence, at most once: that is for other
//! writers of guarded appends, and for followers of the first release.

use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, PublishError, PublishErrorKind};
use async_nats::jetstream::stream::{Config, RawMessageErrorKind, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, HeaderMap, Subject, Subscriber, header};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use tokio::task::AbortHandle;

use super::patience::Patience;
use super::snapshots::Snapshots;
use super::tail::Tail;
use super::{NatsConfig, is_connected, publish, with_sources};
use crate::growth::Growth;
use crate::memory::{check_sequence, check_size};
use crate::{BusError, EventLog, LogError, Pushed, Snapshot};

/// Requests for records in flight during a read.
pub(super) const READS_IN_FLIGHT: usize = 64;

/// Room for the guard's header within the server's limit for a message.
pub(super) const HEADER_BYTES_MAX: usize = 1024;

/// What a stream says of itself while it is filled by `catchment log restore`.
pub(super) const RESTORING: &str = "Being restored by `catchment log restore`. No process may use it yet.";

/// How often a follower looks at the stream's end, whatever hints say.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct NatsLog {
    client: Client,
    context: Context,
    stream: Stream,
    stream_name: String,
    subject: String,
    /// Where hints of growth go.
    grown: Subject,
    growth: Arc<Growth>,
    listening: AbortHandle,
    snapshots: Snapshots,
    /// For whoever follows; nobody does before the first asks.
    tail: Mutex<Option<Arc<Tail>>>,
}

impl Drop for NatsLog {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl NatsLog {
    /// Makes the stream, or checks the one that is there.
    pub(super) async fn open(client: Client, config: &NatsConfig, url: &str) -> Result<Self, BusError> {
        let mut context = jetstream::new(client.clone());
        context.set_timeout(config.request_timeout);
        let wanted = wanted(config);
        let failed = |reason: String| BusError::Stream { url: url.to_owned(), stream: wanted.name.clone(), reason };
        let stream = make(&context, &wanted, url, config.connect_timeout).await.map_err(failed)?;
        let found = &stream.cached_info().config;
        if let Some(reason) = unsuitable(&wanted, found) {
            return Err(failed(reason));
        }
        if found.num_replicas != wanted.num_replicas {
            let (found, wanted) = (found.num_replicas, wanted.num_replicas);
            tracing::warn!(stream = %config.prefix, found, wanted, "the log's stream exists with other replicas");
        }
        let subject = wanted.subjects[0].clone();
        let grown = Subject::from(grown_subject(config));
        let hints = client.subscribe(grown.clone()).await.map_err(|error| failed(with_sources(&error)))?;
        let growth = Arc::new(Growth::default());
        let listening = tokio::spawn(listen(hints, growth.clone())).abort_handle();
        let snapshots = Snapshots::new(client.clone(), context.clone(), config);
        let stream_name = wanted.name;
        let tail = Mutex::default();
        Ok(Self { client, context, stream, stream_name, subject, grown, growth, listening, snapshots, tail })
    }

    fn check_connected(&self) -> Result<(), LogError> {
        if is_connected(&self.client) {
            return Ok(());
        }
        Err(LogError::Unavailable("not connected to NATS; it is being tried again".to_owned()))
    }

    /// First and last sequence the stream holds.
    async fn bounds(&self) -> Result<(u64, u64), LogError> {
        self.check_connected()?;
        let known_before = self.growth.known();
        let info = self.stream.get_info().await;
        let state = info.map_err(|error| LogError::Unavailable(with_sources(&error)))?.state;
        self.growth.correct(known_before, state.last_sequence);
        Ok((state.first_sequence, state.last_sequence))
    }

    /// Records, in order, each as it was found or not.
    async fn get_all(&self, sequences: impl Iterator<Item = u64>) -> Vec<Result<(u64, Bytes), LogError>> {
        stream::iter(sequences).map(|sequence| self.get(sequence)).buffered(READS_IN_FLIGHT).collect().await
    }

    /// Says to whoever waits how far the log is. A hint that is lost costs them a second.
    async fn tell(&self, sequence: u64) {
        self.growth.note(sequence);
        let payload = Bytes::copy_from_slice(&sequence.to_be_bytes());
        if let Err(error) = publish(&self.client, self.grown.clone(), payload).await {
            tracing::debug!(%error, "others are not told how far the log is");
        }
    }

    async fn get(&self, sequence: u64) -> Result<(u64, Bytes), LogError> {
        if self.stream.cached_info().config.allow_direct
            && let Ok(message) = self.stream.direct_get(sequence).await
            && message.sequence == sequence
        {
            return Ok((sequence, message.payload));
        }
        match self.stream.get_raw_message(sequence).await {
            Ok(message) if message.sequence == sequence => Ok((sequence, message.payload)),
            Ok(message) => Err(LogError::Damaged(format!(
                "asked {} for record {sequence}, got {}",
                self.stream_name, message.sequence
            ))),
            Err(error) if matches!(error.kind(), RawMessageErrorKind::NoMessageFound) => {
                Err(LogError::Damaged(format!("record {sequence} is missing from {}", self.stream_name)))
            }
            Err(error) => Err(LogError::Unavailable(format!("read record {sequence}: {}", with_sources(&error)))),
        }
    }

    /// The tail that has the records after this one.
    fn tail(&self, after: u64) -> Arc<Tail> {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tail) = tail.as_ref().filter(|tail| tail.covers(after)) {
            return tail.clone();
        }
        tail.insert(Arc::new(Tail::begin(self.stream.clone(), after))).clone()
    }

    /// What a refused append means.
    async fn explain(&self, error: PublishError) -> LogError {
        let server = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
        match error.kind() {
            PublishErrorKind::WrongLastSequence => match server.and_then(|error| sequence_in(&error.to_string())) {
                Some(last) => {
                    // Sooner than its writer's hint.
                    self.growth.note(last);
                    LogError::Conflict { last }
                }
                None => self.last().await.map_or_else(|error| error, |last| LogError::Conflict { last }),
            },
            _ => pushed_in_vain(&error, &self.stream_name, &self.subject),
        }
    }
}

/// What it means that a record without a guard was not acknowledged.
fn pushed_in_vain(error: &PublishError, stream: &str, subject: &str) -> LogError {
    let server = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    let code = server.map(jetstream::Error::error_code);
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => LogError::Refused(with_sources(error)),
        PublishErrorKind::StreamNotFound => LogError::Unavailable(no_stream(stream, subject)),
        _ if code.is_some_and(|code| NOT_STORED.contains(&code)) => LogError::Refused(no_room(stream, error)),
        _ => LogError::Unavailable(with_sources(error)),
    }
}

fn no_stream(stream: &str, subject: &str) -> String {
    format!(
        "no stream answers on {subject}: the server has just started or has lost JetStream, or {stream} was deleted"
    )
}

fn no_room(stream: &str, error: &PublishError) -> String {
    format!("NATS has no room for {stream}: {}; give JetStream more storage", with_sources(error))
}

/// Answers that are given before anything is written. A failed write ("stream store failed") is not
/// among them: what it left on the disk is unknown.
const NOT_STORED: [ErrorCode; 3] = [
    ErrorCode::INSUFFICIENT_RESOURCES,
    ErrorCode::STORAGE_RESOURCES_EXCEEDED,
    ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM,
];

/// The number in "wrong last sequence: 17 (code …)".
fn sequence_in(description: &str) -> Option<u64> {
    let (_, rest) = description.split_once("last sequence:")?;
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// Outside the stream's filter, which names one subject.
fn grown_subject(config: &NatsConfig) -> String {
    format!("{}.v1.grown", config.prefix.to_ascii_lowercase())
}

/// Takes hints until the log is dropped. What is no hint is ignored.
async fn listen(mut hints: Subscriber, growth: Arc<Growth>) {
    while let Some(hint) = hints.next().await {
        if let Ok(sequence) = <[u8; 8]>::try_from(hint.payload.as_ref()) {
            growth.note(u64::from_be_bytes(sequence));
        }
    }
}

pub(super) fn wanted(config: &NatsConfig) -> Config {
    let subject = format!("{}.v1.log", config.prefix.to_ascii_lowercase());
    kept(config, "LOG", subject, "Catchment's event log: the truth of all jobs. Nothing may expire by itself.")
}

/// A stream in files, in which nothing expires.
pub(super) fn kept(config: &NatsConfig, name: &str, subject: String, description: &str) -> Config {
    Config {
        name: format!("{}_{name}", config.prefix),
        subjects: vec![subject],
        description: Some(description.to_owned()),
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: config.replicas,
        max_messages: -1,
        max_bytes: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        max_age: Duration::ZERO,
        allow_direct: true,
        ..Config::default()
    }
}

/// A server that has just started may need a moment until JetStream answers.
async fn make(context: &Context, wanted: &Config, url: &str, patience: Duration) -> Result<Stream, String> {
    let mut patience = Patience::new(patience);
    loop {
        let reason = match context.get_or_create_stream(wanted.clone()).await {
            Ok(stream) => return Ok(stream),
            Err(error) if is_final(&error) => return Err(advise(&error)),
            Err(error) => advise(&error),
        };
        if !patience.pause(url, &reason).await {
            return Err(reason);
        }
    }
}

/// What a cluster says until enough of its servers have met.
const NOT_YET: [ErrorCode; 4] = [
    ErrorCode::CLUSTER_NOT_AVAILABLE,
    ErrorCode::CLUSTER_NOT_LEADER,
    ErrorCode::CLUSTER_NO_PEERS,
    ErrorCode::INSUFFICIENT_RESOURCES,
];

fn is_final(error: &CreateStreamError) -> bool {
    match error.kind() {
        CreateStreamErrorKind::JetStream(error) => !NOT_YET.contains(&error.error_code()),
        CreateStreamErrorKind::TimedOut
        | CreateStreamErrorKind::JetStreamUnavailable
        | CreateStreamErrorKind::Response => false,
        _ => true,
    }
}

fn advise(error: &CreateStreamError) -> String {
    let text = with_sources(error);
    let off = match error.kind() {
        CreateStreamErrorKind::JetStream(error) => {
            [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT]
                .contains(&error.error_code())
        }
        CreateStreamErrorKind::JetStreamUnavailable | CreateStreamErrorKind::Response => true,
        _ => false,
    };
    if off { format!("{text}; start the server with JetStream (nats-server -js)") } else { text }
}

/// Whether a stream is a log that is not whole yet.
pub(super) fn is_being_restored(found: &Config) -> bool {
    found.description.as_deref() == Some(RESTORING)
}

/// Why an existing stream would lose records or take foreign ones.
pub(super) fn unsuitable(wanted: &Config, found: &Config) -> Option<String> {
    if is_being_restored(found) {
        let what =
            "it is being restored; wait until `catchment log restore` has ended, or, when that was cut short, run it";
        return Some(format!("{what} again with --replace"));
    }
    let finding = if found.subjects != wanted.subjects {
        format!("its subjects are {:?} instead of {:?}", found.subjects, wanted.subjects)
    } else if found.storage != StorageType::File {
        "it is kept in memory".to_owned()
    } else if found.retention != RetentionPolicy::Limits {
        "its retention deletes what was read".to_owned()
    } else if found.max_age != Duration::ZERO
        || found.max_messages > 0
        || found.max_bytes > 0
        || found.max_messages_per_subject > 0
    {
        "it has a limit of age, messages or bytes, past which records are deleted".to_owned()
    } else if found.sealed || found.no_ack || found.mirror.is_some() {
        "it is sealed, a mirror, or acknowledges nothing".to_owned()
    } else {
        return None;
    };
    Some(format!("{finding}; correct it (nats stream edit {}) or choose another prefix", wanted.name))
}

#[async_trait]
impl EventLog for NatsLog {
    async fn append(&self, record: Bytes, expected_last: u64) -> Result<u64, LogError> {
        check_size(&record, self.record_bytes_max())?;
        self.check_connected()?;
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_EXPECTED_LAST_SEQUENCE, expected_last.to_string());
        let published = async { self.context.publish_with_headers(self.subject.clone(), headers, record).await?.await };
        let acknowledged = match published.await {
            Ok(acknowledged) => acknowledged,
            Err(error) => return Err(self.explain(error).await),
        };
        if acknowledged.stream == self.stream_name && acknowledged.sequence.checked_sub(1) == Some(expected_last) {
            self.tell(acknowledged.sequence).await;
            return Ok(acknowledged.sequence);
        }
        Err(LogError::Damaged(format!(
            "appending after {expected_last} was acknowledged as {} of {}: the server does not hold to the guard",
            acknowledged.sequence, acknowledged.stream
        )))
    }

    async fn push(&self, record: Bytes) -> Result<Pushed, LogError> {
        check_size(&record, self.record_bytes_max())?;
        self.check_connected()?;
        let published = self.context.publish(self.subject.clone(), record).await;
        let on_its_way = published.map_err(|error| LogError::Unavailable(with_sources(&error)))?;
        let (growth, name, subject) = (self.growth.clone(), self.stream_name.clone(), self.subject.clone());
        Ok(async move {
            let acknowledged = on_its_way.await.map_err(|error| pushed_in_vain(&error, &name, &subject))?;
            if acknowledged.stream != name {
                let other = acknowledged.stream;
                return Err(LogError::Damaged(format!(
                    "what is said on {subject} is stored in {other} instead of {name}"
                )));
            }
            growth.note(acknowledged.sequence);
            Ok(acknowledged.sequence)
        }
        .boxed())
    }

    async fn read(&self, after: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        self.check_connected()?;
        // What is hinted at is asked for along with the bounds: a follower then has it after one round trip, not two.
        let limit = limit as u64;
        let hinted = self.growth.known().min(after.saturating_add(limit.min(READS_IN_FLIGHT as u64)));
        let (bounds, mut found) =
            tokio::join!(self.bounds(), self.get_all(after.saturating_add(1)..hinted.saturating_add(1)));
        let (first, last) = bounds?;
        if after >= last || limit == 0 {
            return Ok(vec![]);
        }
        if after + 1 < first {
            return Err(LogError::Forgotten { first });
        }
        // A hint may be wrong. What was not found is asked for again, now that the stream has said it is there.
        let end = last.min(after.saturating_add(limit));
        let sound = found.iter().take_while(|record| record.is_ok()).count();
        found.truncate(sound.min(usize::try_from(end - after).unwrap_or(usize::MAX)));
        found.extend(self.get_all(after + 1 + found.len() as u64..=end).await);
        match found.into_iter().collect() {
            // It may have been forgotten meanwhile.
            Err(LogError::Damaged(why)) => match self.bounds().await?.0 {
                first if after + 1 < first => Err(LogError::Forgotten { first }),
                _ => Err(LogError::Damaged(why)),
            },
            found => found,
        }
    }

    async fn follow(&self, after: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        let mut overdue = 0;
        loop {
            let tail = self.tail(after);
            if let Ok(records) = tokio::time::timeout(LOOK_INTERVAL, tail.past(after, limit)).await {
                // By the numbers: what does not follow is asked for.
                let follows = records.first().is_some_and(|(sequence, _)| *sequence == after + 1);
                return if follows { Ok(records) } else { self.read(after, limit).await };
            }
            if overdue > after {
                // It was there a second ago, and was not sent.
                drop(self.tail.lock().unwrap_or_else(PoisonError::into_inner).take());
                return self.read(after, limit).await;
            }
            overdue = self.last().await?;
        }
    }

    async fn last(&self) -> Result<u64, LogError> {
        Ok(self.bounds().await?.1)
    }

    async fn grown(&self, after: u64) -> Result<(), LogError> {
        loop {
            let hint = tokio::time::timeout(LOOK_INTERVAL, self.growth.past(after)).await;
            if hint.is_ok() {
                return Ok(());
            }
            self.growth.note(self.last().await?);
        }
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>, LogError> {
        self.check_connected()?;
        self.snapshots.get().await
    }

    async fn snapshot_sequence(&self) -> Result<u64, LogError> {
        self.check_connected()?;
        self.snapshots.newest().await
    }

    async fn put_snapshot(&self, snapshot: Snapshot) -> Result<bool, LogError> {
        check_sequence(&snapshot, self.last().await?)?;
        let Some(before) = self.snapshots.put(&snapshot, self.record_bytes_max()).await? else { return Ok(false) };
        // Up to, but without, this sequence, so a record always stays. To a server, 0 and 1 may mean the whole stream.
        if before > 1 {
            let purged = self.stream.purge().sequence(before).await;
            purged.map_err(|error| LogError::Unavailable(format!("forget old records: {}", with_sources(&error))))?;
        }
        Ok(true)
    }

    fn record_bytes_max(&self) -> usize {
        self.client.max_payload().saturating_sub(HEADER_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sequence_is_read_from_the_refusal() {
        assert_eq!(sequence_in("wrong last sequence: 17 (code 400, error code 10071)"), Some(17));
        assert_eq!(sequence_in("wrong last sequence: 0"), Some(0));
        assert_eq!(sequence_in("wrong last sequence"), None);
        assert_eq!(sequence_in("wrong last sequence: 99999999999999999999"), None);
    }

    #[test]
    fn a_stream_that_forgets_is_not_a_log() {
        let wanted = wanted(&NatsConfig::new("nats://h"));
        assert_eq!((wanted.name.as_str(), wanted.subjects[0].as_str()), ("CATCHMENT_LOG", "catchment.v1.log"));
        assert_eq!(unsuitable(&wanted, &wanted), None);
        let bad = [
            Config { max_age: Duration::from_secs(1), ..wanted.clone() },
            Config { max_bytes: 1, ..wanted.clone() },
            Config { max_messages: 1, ..wanted.clone() },
            Config { storage: StorageType::Memory, ..wanted.clone() },
            Config { retention: RetentionPolicy::WorkQueue, ..wanted.clone() },
            Config { subjects: vec!["catchment.>".to_owned()], ..wanted.clone() },
            Config { sealed: true, ..wanted.clone() },
        ];
        for config in bad {
            let reason = unsuitable(&wanted, &config).unwrap();
            assert!(reason.contains("CATCHMENT_LOG"), "{reason}");
        }
    }
}
