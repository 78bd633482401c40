//! A log as an operator's tools see it: everything that is stored, sound or not, while no process works on it.
//!
//! [`EventLog`](crate::EventLog) gives whole histories or none, which is right for whoever builds on them. Whoever
//! repairs a log needs what is left of it: each record by itself, or why it is not there.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{BusError, LogError, NatsConfig, Snapshot};

/// The first and the last record of a log. Without records the last one is before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The first record there is, or would be.
    pub first: u64,
    /// The last one.
    pub last: u64,
}

impl Bounds {
    /// How many records lie between.
    #[must_use]
    pub const fn records(self) -> u64 {
        (self.last + 1).saturating_sub(self.first)
    }
}

/// A record and its sequence, or why it is not there.
pub type Found = (u64, Result<Bytes, String>);

/// What is stored of a log. Reading changes nothing that a log's process would see.
#[async_trait]
pub trait StoredLog: Send + Sync {
    /// The first and the last record.
    ///
    /// # Errors
    /// [`LogError::Unavailable`], [`LogError::Damaged`].
    async fn bounds(&self) -> Result<Bounds, LogError>;

    /// The records from `from` on, as many as there are, but `limit` at most.
    ///
    /// # Errors
    /// [`LogError::Unavailable`]; a record that is not there is none.
    async fn read(&self, from: u64, limit: usize) -> Result<Vec<Found>, LogError>;

    /// The sequences of the snapshots that are kept, the oldest first, whether they are sound or not.
    ///
    /// # Errors
    /// [`LogError::Unavailable`], [`LogError::Damaged`].
    async fn snapshots(&self) -> Result<Vec<u64>, LogError>;

    /// One of them.
    ///
    /// # Errors
    /// [`LogError::Unavailable`], [`LogError::Damaged`].
    async fn snapshot(&self, sequence: u64) -> Result<Snapshot, LogError>;

    /// What is wrong with the store as a whole, if anything is: what was read of it then need not be what was written.
    fn unsound(&self) -> Option<&str>;
}

/// A log in the making, beside what is there. Until it is finished, no process opens either of the two, and one that
/// was left half-way is begun anew.
#[async_trait]
pub trait NewLog: Send {
    /// The largest record it takes.
    fn record_bytes_max(&self) -> usize;

    /// Appends the next records.
    ///
    /// # Errors
    /// Every [`LogError`]: the new log is of no use then.
    async fn append(&mut self, records: Vec<Bytes>) -> Result<(), LogError>;

    /// Puts it where processes look for it, with these snapshots, the oldest first, in place of whatever was there.
    ///
    /// # Errors
    /// Every [`LogError`].
    async fn finish(self: Box<Self>, snapshots: Vec<Snapshot>) -> Result<(), LogError>;
}

/// Where a log is kept.
#[derive(Debug, Clone)]
pub enum Place<'a> {
    /// In a data directory.
    Data(&'a Path),
    /// On a NATS server.
    Nats(&'a NatsConfig),
}

impl Place<'_> {
    /// Opens what is stored there. `None` when there is nothing at all.
    ///
    /// # Errors
    /// [`BusError::InUse`] while a process has it open, where that can be known; [`BusError::Open`],
    /// [`BusError::Corrupt`] when nothing of it can be read, [`BusError::Connect`], [`BusError::Config`],
    /// [`BusError::Stream`].
    pub async fn open(&self) -> Result<Option<Box<dyn StoredLog>>, BusError> {
        match self {
            Self::Data(dir) => crate::embedded::offline::open(dir).await,
            Self::Nats(config) => crate::nats::offline::open(config).await,
        }
    }

    /// Whether somebody says something on `subject` within `patience`: processes that work on a server's log cannot be kept
    /// from it, but they can be heard. Nobody is in a data directory: it cannot be opened while a process has it.
    ///
    /// # Errors
    /// As [`Place::open`].
    pub async fn hears(&self, subject: &str, patience: Duration) -> Result<bool, BusError> {
        match self {
            Self::Data(_) => Ok(false),
            Self::Nats(config) => crate::nats::offline::hears(config, subject, patience).await,
        }
    }

    /// Begins a log there whose first record is `first`. With `replaces`, in place of whatever is there; else there must
    /// be nothing when it is finished.
    ///
    /// # Errors
    /// As [`Place::open`].
    pub async fn begin(&self, first: u64, replaces: bool) -> Result<Box<dyn NewLog>, BusError> {
        match self {
            Self::Data(dir) => crate::embedded::offline::begin(dir, first, replaces).await,
            Self::Nats(config) => crate::nats::offline::begin(config, first, replaces).await,
        }
    }
}
