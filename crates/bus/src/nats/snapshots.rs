//! Snapshots in a stream of their own: pieces first, each snapshot's under a name that nobody else uses, then one
//! message that lists the newest snapshots. Only what that message lists exists; it is replaced under the guard of its
//! own sequence, so a writer that died half-way, or was overtaken, leaves pieces that are nobody's, and they are purged
//! with the next snapshot.

use std::collections::BTreeSet;

use async_nats::jetstream::context::{GetStreamErrorKind, PublishError, PublishErrorKind};
use async_nats::jetstream::stream::{Config, RawMessageErrorKind, Stream};
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{Client, HeaderMap, header};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};

use super::log::kept;
use super::{NatsConfig, with_sources};
use crate::snapshot::KEPT;
use crate::{LogError, Snapshot};

/// Bytes of one piece, where messages may be as large.
const PIECE_BYTES: usize = 512 << 10;
/// Pieces on their way at one time.
const IN_FLIGHT: usize = 8;
/// Times a reader begins anew because what it reads was replaced meanwhile.
const READS_MAX: usize = 4;
/// The layout of the list.
const VERSION: u8 = 1;

/// One snapshot of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    sequence: u64,
    bytes: u64,
    pieces: u32,
    digest: [u8; 32],
    /// The name of this attempt to write it.
    token: String,
}

/// The newest snapshots, newest first, and the message that lists them.
struct Listed {
    entries: Vec<Entry>,
    /// The sequence of the list's message in this stream, 0 when there is none.
    at: u64,
}

pub(super) struct Snapshots {
    client: Client,
    context: Context,
    config: Config,
    /// What subjects begin with.
    prefix: String,
}

impl Snapshots {
    pub(super) fn new(client: Client, context: Context, config: &NatsConfig) -> Self {
        let prefix = format!("{}.v1.snapshot", config.prefix.to_ascii_lowercase());
        let description = "Snapshots of Catchment's event log. Nothing may expire here.";
        let config = kept(config, "SNAPSHOTS", format!("{prefix}.>"), description);
        Self { client, context, config, prefix }
    }

    /// Sequence of the newest snapshot, 0 when there is none.
    pub(super) async fn newest(&self) -> Result<u64, LogError> {
        let Some(stream) = self.stream().await? else { return Ok(0) };
        Ok(self.list(&stream).await?.entries.first().map_or(0, |entry| entry.sequence))
    }

    /// The stream they are kept in.
    pub(super) fn stream_name(&self) -> &str {
        &self.config.name
    }

    /// Sequences of the snapshots that are listed, the oldest first.
    pub(super) async fn sequences(&self) -> Result<Vec<u64>, LogError> {
        let Some(stream) = self.stream().await? else { return Ok(vec![]) };
        Ok(self.list(&stream).await?.entries.iter().rev().map(|entry| entry.sequence).collect())
    }

    /// The snapshot of this sequence.
    pub(super) async fn at(&self, sequence: u64) -> Result<Snapshot, LogError> {
        let gone = || LogError::Damaged(format!("there is no snapshot at {sequence}"));
        let stream = self.stream().await?.ok_or_else(gone)?;
        let listed = self.list(&stream).await?.entries.into_iter().find(|entry| entry.sequence == sequence);
        self.read(&stream, &listed.ok_or_else(gone)?).await
    }

    /// The newest sound snapshot.
    pub(super) async fn get(&self) -> Result<Option<Snapshot>, LogError> {
        let Some(stream) = self.stream().await? else { return Ok(None) };
        let mut unsound = None;
        let mut seen = None;
        for _ in 0..READS_MAX {
            let listed = self.list(&stream).await?;
            if seen == Some(listed.at) {
                break;
            }
            seen = Some(listed.at);
            for entry in listed.entries {
                match self.read(&stream, &entry).await {
                    Ok(snapshot) => return Ok(Some(snapshot)),
                    Err(LogError::Damaged(why)) => {
                        tracing::warn!(sequence = entry.sequence, why, "a snapshot is not usable; an older one may be");
                        unsound = Some(LogError::Damaged(why));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        unsound.map_or(Ok(None), Err)
    }

    /// Stores a snapshot, unless there is one as new. `Some` with the sequence of the oldest one kept, 0 while there are
    /// fewer than are kept, when it was stored.
    pub(super) async fn put(&self, snapshot: &Snapshot, piece_bytes: usize) -> Result<Option<u64>, LogError> {
        let stream = self.context.get_or_create_stream(self.config.clone()).await;
        let stream = stream.map_err(|error| LogError::Unavailable(with_sources(&error)))?;
        let listed = self.list(&stream).await?;
        if listed.entries.first().is_some_and(|newest| newest.sequence >= snapshot.sequence) {
            return Ok(None);
        }
        // The client makes names that are unique.
        let token = self.client.new_inbox().rsplit('.').next().unwrap_or_default().to_owned();
        let pieces: Vec<Bytes> = pieces(&snapshot.bytes, PIECE_BYTES.min(piece_bytes));
        let entry = Entry {
            sequence: snapshot.sequence,
            bytes: snapshot.bytes.len() as u64,
            pieces: u32::try_from(pieces.len()).map_err(|_| LogError::Refused("a snapshot is too large".to_owned()))?,
            digest: snapshot.digest(),
            token,
        };
        stream::iter(pieces.into_iter().zip(0..))
            .map(|(piece, number)| self.publish(self.piece(&entry, number), HeaderMap::new(), piece))
            .buffered(IN_FLIGHT)
            .try_for_each(|()| std::future::ready(Ok(())))
            .await
            .map_err(|error| refusal(&error))?;
        let mut entries = listed.entries;
        entries.insert(0, entry);
        entries.truncate(KEPT);
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, listed.at.to_string());
        match self.publish(self.list_subject(), headers, encode(&entries)).await {
            Ok(()) => {}
            // Somebody else was quicker. The pieces are purged with the next snapshot.
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => return Ok(None),
            Err(error) => return Err(refusal(&error)),
        }
        self.purge(&stream, &entries).await?;
        Ok(Some(entries.get(KEPT - 1).map_or(0, |entry| entry.sequence)))
    }

    async fn stream(&self) -> Result<Option<Stream>, LogError> {
        match self.context.get_stream(&self.config.name).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(server) if server.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                _ => Err(LogError::Unavailable(with_sources(&error))),
            },
        }
    }

    fn list_subject(&self) -> String {
        format!("{}.list", self.prefix)
    }

    fn piece(&self, entry: &Entry, number: u32) -> String {
        format!("{}.{}.{}.{number}", self.prefix, entry.sequence, entry.token)
    }

    async fn publish(&self, subject: String, headers: HeaderMap, payload: Bytes) -> Result<(), PublishError> {
        self.context.publish_with_headers(subject, headers, payload).await?.await.map(drop)
    }

    /// Asks the stream's leader: a replica may not have heard of the newest.
    async fn list(&self, stream: &Stream) -> Result<Listed, LogError> {
        match stream.get_last_raw_message_by_subject(&self.list_subject()).await {
            Ok(message) => {
                let entries = decode(message.payload).ok_or_else(|| {
                    LogError::Damaged(format!("the list of snapshots in {} is of no known layout", self.config.name))
                })?;
                Ok(Listed { entries, at: message.sequence })
            }
            Err(error) if matches!(error.kind(), RawMessageErrorKind::NoMessageFound) => {
                Ok(Listed { entries: vec![], at: 0 })
            }
            Err(error) => Err(LogError::Unavailable(format!("read the list of snapshots: {}", with_sources(&error)))),
        }
    }

    async fn read(&self, stream: &Stream, entry: &Entry) -> Result<Snapshot, LogError> {
        let pieces: Vec<Bytes> = stream::iter(0..entry.pieces)
            .map(|number| self.read_piece(stream, self.piece(entry, number)))
            .buffered(IN_FLIGHT)
            .try_collect()
            .await?;
        let snapshot = Snapshot { sequence: entry.sequence, bytes: pieces.concat().into() };
        if snapshot.bytes.len() as u64 != entry.bytes || snapshot.digest() != entry.digest {
            return Err(LogError::Damaged(format!("the snapshot at {} is not what was written", entry.sequence)));
        }
        Ok(snapshot)
    }

    async fn read_piece(&self, stream: &Stream, subject: String) -> Result<Bytes, LogError> {
        if let Ok(message) = stream.direct_get_last_for_subject(&subject).await {
            return Ok(message.payload);
        }
        match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => Ok(message.payload),
            Err(error) if matches!(error.kind(), RawMessageErrorKind::NoMessageFound) => {
                Err(LogError::Damaged(format!("{subject} is missing from {}", self.config.name)))
            }
            Err(error) => Err(LogError::Unavailable(format!("read {subject}: {}", with_sources(&error)))),
        }
    }

    /// Removes what `entries` do not list, but nothing newer: that may be another's, not yet listed.
    async fn purge(&self, stream: &Stream, entries: &[Entry]) -> Result<(), LogError> {
        let failed = |what: String| LogError::Unavailable(format!("purge old snapshots: {what}"));
        let newest = entries.first().map_or(0, |entry| entry.sequence);
        let kept: BTreeSet<(u64, &str)> = entries.iter().map(|entry| (entry.sequence, entry.token.as_str())).collect();
        let subjects = stream.info_with_subjects(format!("{}.>", self.prefix)).await;
        let mut subjects = subjects.map_err(|error| failed(with_sources(&error)))?;
        let mut gone = BTreeSet::new();
        while let Some(subject) = subjects.try_next().await.map_err(|error| failed(with_sources(&error)))? {
            let rest = subject.0.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('.'));
            let mut tokens = rest.unwrap_or_default().split('.');
            let (Some(sequence), Some(token)) = (tokens.next().and_then(|s| s.parse().ok()), tokens.next()) else {
                continue;
            };
            if sequence <= newest && !kept.contains(&(sequence, token)) {
                gone.insert(format!("{}.{sequence}.{token}.*", self.prefix));
            }
        }
        for subjects in gone {
            stream.purge().filter(subjects).await.map_err(|error| failed(with_sources(&error)))?;
        }
        stream.purge().filter(self.list_subject()).keep(1).await.map_err(|error| failed(with_sources(&error)))?;
        Ok(())
    }
}

fn refusal(error: &PublishError) -> LogError {
    LogError::Unavailable(format!("store a snapshot: {}", with_sources(error)))
}

fn pieces(bytes: &Bytes, piece_bytes: usize) -> Vec<Bytes> {
    let mut rest = bytes.clone();
    let mut pieces = Vec::with_capacity(bytes.len().div_ceil(piece_bytes.max(1)));
    while !rest.is_empty() {
        pieces.push(rest.split_to(rest.len().min(piece_bytes.max(1))));
    }
    pieces
}

fn encode(entries: &[Entry]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    out.put_u8(u8::try_from(entries.len()).expect("as few as are kept"));
    for entry in entries {
        out.put_u64_le(entry.sequence);
        out.put_u64_le(entry.bytes);
        out.put_u32_le(entry.pieces);
        out.put_slice(&entry.digest);
        out.put_u8(u8::try_from(entry.token.len()).expect("a short name"));
        out.put_slice(entry.token.as_bytes());
    }
    out.freeze()
}

/// None for what is no such list.
fn decode(mut message: Bytes) -> Option<Vec<Entry>> {
    const FIXED_BYTES: usize = 8 + 8 + 4 + 32 + 1;
    if message.remaining() < 2 || message.get_u8() != VERSION {
        return None;
    }
    let mut entries = Vec::new();
    for _ in 0..message.get_u8() {
        if message.remaining() < FIXED_BYTES {
            return None;
        }
        let (sequence, bytes, pieces) = (message.get_u64_le(), message.get_u64_le(), message.get_u32_le());
        let mut digest = [0; 32];
        message.copy_to_slice(&mut digest);
        let token_bytes = usize::from(message.get_u8());
        if message.remaining() < token_bytes {
            return None;
        }
        let token = String::from_utf8(message.split_to(token_bytes).to_vec()).ok()?;
        if !token.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return None;
        }
        entries.push(Entry { sequence, bytes, pieces, digest, token });
    }
    (!message.has_remaining()).then_some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_written_and_read() {
        let entry = |sequence| Entry { sequence, bytes: 7, pieces: 1, digest: [9; 32], token: "abC0".to_owned() };
        for entries in [vec![], vec![entry(5)], vec![entry(u64::MAX), entry(5)]] {
            let message = encode(&entries);
            assert_eq!(decode(message.clone()), Some(entries));
            for cut in 0..message.len() {
                assert_eq!(decode(message.slice(..cut)), None);
            }
            assert_eq!(decode([message, Bytes::from_static(b"x")].concat().into()), None);
        }
        assert_eq!(decode(Bytes::from_static(b"\x02\x00")), None, "another layout");
    }

    #[test]
    fn pieces_make_up_the_whole() {
        for (bytes, piece, count) in [(0, 4, 0), (1, 4, 1), (4, 4, 1), (9, 4, 3), (3, 0, 3)] {
            let whole: Bytes = (0..bytes).collect();
            let cut = pieces(&whole, piece);
            assert_eq!((cut.len(), Bytes::from(cut.concat())), (count, whole));
        }
    }
}
