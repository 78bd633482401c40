//! The event log and the events of Catchment, over NATS or inside one process.
//!
//! Two different things cross a bus, and they are kept apart on purpose:
//!
//! - [`EventLog`] is the truth. One ordered log for all jobs; a record is stored before its append
//!   returns, and a decision is guarded by the sequence its writer believed to be the last. Whatever
//!   a coordinator knows it can read back from here, so without this crate no `202` could be kept.
//! - [`Events`] are hints, at most once: an update was accepted, a model was published. A lost hint
//!   costs time (a sweep finds the work again), never an update.
//!
//! Three implementations have the same meaning, and one suite tests them all: [`Bus::nats`]
//! (JetStream), [`Bus::embedded`] (redb on disk, events in process) and [`Bus::in_memory`] (tests
//! and simulation). This is the only crate that knows async-nats and redb.
//!
//! What a record or a payload contains is none of this crate's business: bytes in, bytes out.
#![forbid(unsafe_code)]

mod embedded;
mod error;
mod events;
mod feed;
mod growth;
mod local;
mod log;
mod memory;
mod nats;
pub mod offline;
mod sealed;
mod snapshot;
mod subject;

use futures::future::BoxFuture;
use std::path::Path;
use std::sync::Arc;

pub use embedded::LOG_FILE;
pub use error::{BusError, LogError};
pub use events::{Events, Headers, Message};
pub use feed::{QUEUED_BYTES_MAX, QUEUED_MESSAGES_MAX, Subscription};
pub use local::PAYLOAD_BYTES_MAX;
pub use log::{EventLog, Pushed};
pub use memory::RECORD_BYTES_MAX;
pub use nats::NatsConfig;
pub use sealed::{BadKey, ClusterKey, SEALED_MARK, Sealing};
pub use snapshot::Snapshot;
pub use subject::SUBJECT_BYTES_MAX;

/// A log and the events beside it.
#[derive(Clone)]
pub struct Bus {
    /// The truth: ordered, durable records.
    pub log: Arc<dyn EventLog>,
    /// The hints: messages to whoever listens now.
    pub events: Arc<dyn Events>,
}

impl Bus {
    /// The log in `data_dir` (made when missing), events inside this process.
    ///
    /// One process at a time may have a data directory open. The file is checked as a whole before
    /// use, which reads all of it. When the last clone of the bus is dropped, the drop waits for the
    /// commit in progress and then gives the file free.
    ///
    /// # Errors
    /// [`BusError::InUse`], [`BusError::Corrupt`], [`BusError::Open`].
    pub fn embedded(data_dir: &Path) -> BoxFuture<'_, Result<Self, BusError>> {
        Box::pin(async {
            Ok(Self {
                log: Arc::new(embedded::EmbeddedLog::open(data_dir).await?),
                events: Arc::new(local::LocalEvents::default()),
            })
        })
    }

    /// Log and events on a NATS server, 2.9 or newer, with JetStream enabled.
    ///
    /// # Errors
    /// [`BusError::Config`], [`BusError::Connect`] after [`NatsConfig::connect_timeout`] at the
    /// latest, [`BusError::Stream`] when JetStream is off or the log's stream would lose records.
    pub fn nats(config: NatsConfig) -> BoxFuture<'static, Result<Self, BusError>> {
        // In a box: the client of NATS is then compiled here, once, and not again in each program that connects.
        Box::pin(nats::open(config))
    }

    /// Everything in this process's memory: the same meaning, and nothing outlives it.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { log: Arc::new(memory::MemoryLog::default()), events: Arc::new(local::LocalEvents::default()) }
    }
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("connected", &self.events.is_connected()).finish_non_exhaustive()
    }
}
