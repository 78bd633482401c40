//! What members of a cluster write is sealed with the cluster's key, so that whoever else reaches the server can write
//! nothing that counts.
//!
//! ```text
//! record, snapshot or event:   "CTK1" | BLAKE3 keyed with the key over what it is, where it stands and its bytes: 16 bytes | bytes
//! ```
//!
//! Nothing is hidden: a seal says who wrote, and TLS keeps others from reading. A copy of a record has its seal, because nobody
//! knows beforehand where a record comes to lie; that a writer's record is there already is seen by who reads it (its writer
//! numbers it). Which records are sealed is said by who makes the bus ([`Sealing::new`]): while a
//! member of an older release could still read them, they are not. With the first record that is, sealing has begun, for
//! everybody at the same place: from there on what has no good seal is nobody's, and every member passes it over.

mod events;
mod key;
mod log;
mod offline;

pub use key::{BadKey, ClusterKey};

use crate::offline::{NewLog, StoredLog};
use crate::{Bus, LogError};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What sealed bytes begin with.
pub const SEALED_MARK: [u8; 4] = *b"CTK1";
const SEAL_BYTES: usize = 16;
/// What a seal adds to a record.
const HEAD_BYTES: usize = SEALED_MARK.len() + SEAL_BYTES;
/// What a record is given out as that counts for nothing. It is no record of any version.
const NOBODYS: &[u8] = b"without a seal of this cluster's key";
/// Sealing has not begun as far as is known.
const NOT_BEGUN: u64 = u64::MAX;

/// What is sealed, where a seal is for one thing alone.
#[derive(Clone, Copy)]
enum Kind<'a> {
    /// A record.
    Record,
    /// A snapshot, by the last record that is in it.
    Snapshot(u64),
    /// An event, by its subject.
    Event(&'a str),
}

/// A cluster's key, and what is sealed with it. Clones are one.
#[derive(Clone)]
pub struct Sealing {
    key: ClusterKey,
    /// The first sealed record that is known of.
    begun: Arc<AtomicU64>,
    seals_record: fn(&[u8]) -> bool,
    seals_event: fn(&str) -> bool,
}

/// How it stands with the seal of some bytes.
enum Looked {
    /// It is good: what is in it.
    Good(Bytes),
    /// It is another key's, or the bytes were changed.
    Bad,
    /// There is none.
    None,
}

impl Sealing {
    /// Seals with `key` the records of which `seals_record` says that every member of the cluster reads the release's newest
    /// form, and the events whose subject `seals_event` picks out.
    pub fn new(key: ClusterKey, seals_record: fn(&[u8]) -> bool, seals_event: fn(&str) -> bool) -> Self {
        Self { key, begun: Arc::new(AtomicU64::new(NOT_BEGUN)), seals_record, seals_event }
    }

    /// A bus on which this is done.
    pub(crate) fn around(self, bus: Bus) -> Bus {
        Bus {
            log: Arc::new(log::SealedLog { inner: bus.log, sealing: self.clone() }),
            events: Arc::new(events::SealedEvents { inner: bus.events, sealing: self }),
        }
    }

    /// A stored log in which this is seen.
    pub(crate) fn around_stored(self, inner: Box<dyn StoredLog>) -> Box<dyn StoredLog> {
        Box::new(offline::SealedStored { inner, sealing: self })
    }

    /// A new log, whose first record is `first`, in which this is done.
    pub(crate) fn around_new(self, inner: Box<dyn NewLog>, first: u64) -> Box<dyn NewLog> {
        Box::new(offline::SealedNew { inner, sealing: self, next: first })
    }

    /// The same for another log, of which nothing is known yet.
    pub(crate) fn anew(&self) -> Self {
        Self { begun: Arc::new(AtomicU64::new(NOT_BEGUN)), ..self.clone() }
    }

    fn note(&self, sequence: u64) {
        self.begun.fetch_min(sequence, Ordering::AcqRel);
    }

    /// Whether sealing has begun.
    fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire) != NOT_BEGUN
    }

    /// Whether sealing had begun with a record before this one.
    fn had_begun(&self, sequence: u64) -> bool {
        self.begun.load(Ordering::Acquire) < sequence
    }

    /// Whether the first sealed record is in a snapshot of this one.
    fn is_in_snapshot(&self, sequence: u64) -> bool {
        self.begun.load(Ordering::Acquire) <= sequence
    }

    fn seal(&self, kind: Kind<'_>, bytes: &[u8]) -> Bytes {
        [&SEALED_MARK[..], &self.key.seal(kind, bytes), bytes].concat().into()
    }

    fn look(&self, kind: Kind<'_>, bytes: &Bytes) -> Looked {
        let Some(rest) = bytes.strip_prefix(&SEALED_MARK) else { return Looked::None };
        match rest.split_first_chunk::<SEAL_BYTES>() {
            Some((seal, inside)) if self.key.is_seal(kind, inside, seal) => Looked::Good(bytes.slice_ref(inside)),
            _ => Looked::Bad,
        }
    }

    /// A record as it is stored: as it is, or sealed.
    fn record(&self, record: Bytes) -> Bytes {
        let seals = self.has_begun() || (self.seals_record)(&record);
        if seals { self.seal(Kind::Record, &record) } else { record }
    }

    /// A record as its readers get it.
    fn open_record(&self, sequence: u64, stored: Bytes) -> Bytes {
        match self.look(Kind::Record, &stored) {
            Looked::Good(record) => {
                self.note(sequence);
                record
            }
            // Before the first good one a bad seal is another key's, and whoever reads on would leave out all that counts: the
            // reader is to stop there. So it gets the seal, which is no record.
            Looked::None | Looked::Bad if !self.had_begun(sequence) => stored,
            Looked::None | Looked::Bad => Bytes::from_static(NOBODYS),
        }
    }

    fn snapshot(&self, sequence: u64, bytes: Bytes) -> Bytes {
        if self.is_in_snapshot(sequence) { self.seal(Kind::Snapshot(sequence), &bytes) } else { bytes }
    }

    fn open_snapshot(&self, sequence: u64, bytes: Bytes) -> Result<Bytes, LogError> {
        match self.look(Kind::Snapshot(sequence), &bytes) {
            Looked::Good(inside) => {
                self.note(sequence);
                Ok(inside)
            }
            Looked::None if !self.is_in_snapshot(sequence) => Ok(bytes),
            Looked::None => Err(LogError::Damaged(format!(
                "the snapshot of record {sequence} has no seal, though records before it have one: it is not this cluster's"
            ))),
            Looked::Bad => Err(LogError::Damaged(format!(
                "the snapshot of record {sequence} is sealed with another key, or was changed"
            ))),
        }
    }
}

impl std::fmt::Debug for Sealing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealing").field("key", &self.key).field("has_begun", &self.has_begun()).finish_non_exhaustive()
    }
}
