//! The log on a NATS server, while no process of its cluster works on it.
//!
//! A stream's records cannot be changed, and its numbers only grow: what was taken off its end leaves a gap for ever. So
//! a log is restored as a new stream of the same name. While it is filled it has a limit that deletes nothing but that
//! every process refuses, of this release and of older ones: nobody takes the part for the whole.

use std::time::Duration;

use async_nats::jetstream::context::{GetStreamErrorKind, PublishAckFuture};
use async_nats::jetstream::stream::{Config, RawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, HeaderMap, header};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};

use super::log::{HEADER_BYTES_MAX, READS_IN_FLIGHT, RESTORING, is_being_restored, unsuitable, wanted};
use super::security::Security;
use super::snapshots::Snapshots;
use super::{NatsConfig, check, connect, parse, with_sources};
use crate::memory::check_size;
use crate::offline::{Bounds, Found, NewLog, StoredLog};
use crate::{BusError, LogError, Snapshot};

/// Times the making of a stream is tried when a process that should have been stopped makes one at the same moment.
const MAKE_TRIES: usize = 5;
/// Before the next of them.
const MAKE_PAUSE: Duration = Duration::from_millis(200);

struct Server {
    client: Client,
    context: Context,
    config: NatsConfig,
    url: String,
}

impl Server {
    async fn connect(config: &NatsConfig) -> Result<Self, BusError> {
        check(config)?;
        let target = parse(&config.url)?;
        let security = Security::read(config, target.user.is_some()).await?;
        let client = connect(&target, config, &security).await?;
        let mut context = jetstream::new(client.clone());
        context.set_timeout(config.request_timeout);
        Ok(Self { client, context, config: config.clone(), url: target.shown })
    }

    fn failed(&self, reason: String) -> BusError {
        let stream = wanted(&self.config).name;
        BusError::Stream { url: self.url.clone(), stream, reason }
    }

    async fn stream(&self, name: &str) -> Result<Option<Stream>, BusError> {
        match self.context.get_stream(name).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(server) if server.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                _ => Err(self.failed(with_sources(&error))),
            },
        }
    }

    fn snapshots(&self) -> Snapshots {
        Snapshots::new(self.client.clone(), self.context.clone(), &self.config)
    }
}

/// Opens what is on the server.
pub(crate) async fn open(config: &NatsConfig) -> Result<Option<Box<dyn StoredLog>>, BusError> {
    let server = Server::connect(config).await?;
    let stream = server.stream(&wanted(config).name).await?;
    let snapshots = server.snapshots();
    let unsound = match &stream {
        Some(stream) => unsuitable(&wanted(config), &stream.cached_info().config),
        None => match snapshots.sequences().await {
            Ok(found) if found.is_empty() => return Ok(None),
            _ => Some("the log's stream is not there, but that of its snapshots is".to_owned()),
        },
    };
    let stored = Box::new(Stored { _client: server.client, stream, snapshots, unsound });
    Ok(Some(match &config.sealing {
        Some(sealing) => sealing.anew().around_stored(stored),
        None => stored,
    }))
}

/// Whether anything comes on a subject.
pub(crate) async fn hears(config: &NatsConfig, subject: &str, patience: Duration) -> Result<bool, BusError> {
    let server = Server::connect(config).await?;
    let subject = format!("{}.{subject}", config.prefix.to_ascii_lowercase());
    let heard = server.client.subscribe(subject).await;
    let mut heard = heard.map_err(|error| BusError::Client(with_sources(&error)))?;
    Ok(tokio::time::timeout(patience, heard.next()).await.is_ok_and(|message| message.is_some()))
}

struct Stored {
    _client: Client,
    stream: Option<Stream>,
    snapshots: Snapshots,
    unsound: Option<String>,
}

impl Stored {
    async fn get(stream: &Stream, sequence: u64) -> Result<Found, LogError> {
        if stream.cached_info().config.allow_direct
            && let Ok(message) = stream.direct_get(sequence).await
            && message.sequence == sequence
        {
            return Ok((sequence, Ok(message.payload)));
        }
        match stream.get_raw_message(sequence).await {
            Ok(message) => Ok((sequence, Ok(message.payload))),
            Err(error) if matches!(error.kind(), RawMessageErrorKind::NoMessageFound) => {
                Ok((sequence, Err("it is not in the stream: somebody deleted it, or its file is damaged".to_owned())))
            }
            Err(error) => Err(LogError::Unavailable(format!("read record {sequence}: {}", with_sources(&error)))),
        }
    }
}

#[async_trait]
impl StoredLog for Stored {
    async fn bounds(&self) -> Result<Bounds, LogError> {
        let Some(stream) = &self.stream else { return Ok(Bounds { first: 1, last: 0 }) };
        let info = stream.get_info().await;
        let state = info.map_err(|error| LogError::Unavailable(with_sources(&error)))?.state;
        // A stream without messages may say 0 for its first.
        Ok(Bounds { first: state.first_sequence.max(1), last: state.last_sequence })
    }

    async fn read(&self, from: u64, limit: usize) -> Result<Vec<Found>, LogError> {
        let Some(log) = &self.stream else { return Ok(vec![]) };
        let Bounds { first, last } = self.bounds().await?;
        let from = from.max(first);
        let end = last.min(from.saturating_add(limit as u64).saturating_sub(1));
        let found = stream::iter(from..=end).map(|sequence| Self::get(log, sequence)).buffered(READS_IN_FLIGHT);
        found.collect::<Vec<_>>().await.into_iter().collect()
    }

    async fn snapshots(&self) -> Result<Vec<u64>, LogError> {
        self.snapshots.sequences().await
    }

    async fn snapshot(&self, sequence: u64) -> Result<Snapshot, LogError> {
        self.snapshots.at(sequence).await
    }

    fn unsound(&self) -> Option<&str> {
        self.unsound.as_deref()
    }
}

/// Begins a log on the server.
pub(crate) async fn begin(config: &NatsConfig, first: u64, replaces: bool) -> Result<Box<dyn NewLog>, BusError> {
    let mut server = Server::connect(config).await?;
    let wanted = wanted(config);
    let log = server.stream(&wanted.name).await?;
    let of_snapshots = server.snapshots().stream_name().to_owned();
    let snapshots = server.stream(&of_snapshots).await?;
    for found in log.iter().chain(&snapshots) {
        let state = &found.cached_info().state;
        if !replaces && (state.last_sequence > 0 || state.messages > 0) {
            return Err(server.failed("there is a log already".to_owned()));
        }
    }
    if let Some(log) = &log {
        let found = log.cached_info().config.clone();
        // The new one has as many copies as the old one.
        server.config.replicas = server.config.replicas.max(found.num_replicas);
        // Whoever starts before the old one is gone is kept out of it: it goes piece by piece. One that no process takes
        // need not be marked, and perhaps cannot be.
        if unsuitable(&wanted, &found).is_none() {
            let marked = server.context.update_stream(marked(found)).await;
            marked.map_err(|error| server.failed(format!("mark it as being restored: {}", with_sources(&error))))?;
        }
    }
    for name in [snapshots.map(|_| of_snapshots), log.map(|_| wanted.name.clone())].into_iter().flatten() {
        let deleted = server.context.delete_stream(&name).await;
        deleted.map_err(|error| server.failed(format!("delete {name}: {}", with_sources(&error))))?;
    }
    let stream = make(&server, first).await?;
    let subject = wanted.subjects[0].clone();
    let draft = Box::new(Draft { server, stream, subject, first, next: first });
    Ok(match &config.sealing {
        Some(sealing) => sealing.anew().around_new(draft, first),
        None => draft,
    })
}

fn marked(config: Config) -> Config {
    Config { description: Some(RESTORING.to_owned()), max_messages: i64::MAX, ..config }
}

/// Makes the stream, which must not be there.
async fn make(server: &Server, first: u64) -> Result<Stream, BusError> {
    let first_sequence = (first > 1).then_some(first);
    let wanted = marked(Config { first_sequence, ..wanted(&server.config) });
    let mut tries = 0;
    let made = loop {
        let why = match server.context.create_stream(wanted.clone()).await {
            Ok(stream) => break stream,
            Err(error) => with_sources(&error),
        };
        tries += 1;
        // Somebody has made an empty one meanwhile. One with records is not ours to remove.
        match server.stream(&wanted.name).await? {
            Some(other) if tries < MAKE_TRIES && other.cached_info().state.last_sequence == 0 => {
                server.context.delete_stream(&wanted.name).await.ok();
            }
            None if tries < MAKE_TRIES => {}
            _ => return Err(server.failed(why)),
        }
        tokio::time::sleep(MAKE_PAUSE).await;
    };
    let last = made.cached_info().state.last_sequence;
    if last + 1 == first && is_being_restored(&made.cached_info().config) {
        return Ok(made);
    }
    server.context.delete_stream(&wanted.name).await.ok();
    Err(server.failed(format!(
        "it should begin at record {first}, and this server begins it at {}: a log that has forgotten its beginning is \
         restored by nats-server 2.10 or newer",
        last + 1
    )))
}

/// A new log, in a stream that no process takes for one yet.
struct Draft {
    server: Server,
    stream: Stream,
    subject: String,
    first: u64,
    next: u64,
}

impl Draft {
    async fn publish(&self, sequence: u64, record: Bytes) -> Result<PublishAckFuture, LogError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_EXPECTED_LAST_SEQUENCE, (sequence - 1).to_string());
        let published = self.server.context.publish_with_headers(self.subject.clone(), headers, record).await;
        published.map_err(|error| LogError::Unavailable(with_sources(&error)))
    }
}

#[async_trait]
impl NewLog for Draft {
    fn record_bytes_max(&self) -> usize {
        self.server.client.max_payload().saturating_sub(HEADER_BYTES_MAX)
    }

    async fn append(&mut self, records: Vec<Bytes>) -> Result<(), LogError> {
        records.iter().try_for_each(|record| check_size(record, self.record_bytes_max()))?;
        // All are sent, in order, before the first is waited for: each names the one before it.
        let mut waiting = Vec::with_capacity(records.len());
        for (sequence, record) in (self.next..).zip(records) {
            waiting.push((sequence, self.publish(sequence, record).await?));
        }
        for (sequence, acknowledged) in waiting {
            let acknowledged = acknowledged.await.map_err(|error| {
                LogError::Unavailable(format!("record {sequence} was not stored: {}", with_sources(&error)))
            })?;
            if acknowledged.sequence != sequence {
                return Err(LogError::Damaged(format!("record {sequence} was stored as {}", acknowledged.sequence)));
            }
            self.next = sequence + 1;
        }
        Ok(())
    }

    async fn finish(self: Box<Self>, snapshots: Vec<Snapshot>) -> Result<(), LogError> {
        assert!(self.next > self.first, "what snapshots stand for is a record");
        let stored = self.server.snapshots();
        for snapshot in &snapshots {
            if stored.put(snapshot, self.record_bytes_max()).await?.is_none() {
                return Err(LogError::Damaged(format!(
                    "somebody else has stored snapshots before {}",
                    snapshot.sequence
                )));
            }
        }
        let info = self.stream.get_info().await.map_err(|error| LogError::Unavailable(with_sources(&error)))?;
        if info.state.last_sequence + 1 != self.next {
            let last = info.state.last_sequence;
            return Err(LogError::Damaged(format!(
                "it should end at {}, and somebody has written up to {last}",
                self.next - 1
            )));
        }
        let plain = wanted(&self.server.config);
        let (description, max_messages) = (plain.description, plain.max_messages);
        let opened = Config { description, max_messages, ..info.config };
        let opened = self.server.context.update_stream(opened).await;
        opened.map_err(|error| LogError::Unavailable(format!("open it for processes: {}", with_sources(&error))))?;
        Ok(())
    }
}
