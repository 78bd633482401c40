//! When a snapshot of the log is taken, and by whom.

use crate::snapshot::{self, SnapshotPace};
use catchment_bus::EventLog;
use futures::FutureExt;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Says when a snapshot is due, and has it taken.
pub(crate) struct Keeper {
    pace: SnapshotPace,
    /// The newest snapshot may be at this sequence, and is not after it as far as is known.
    known: u64,
    /// Records and their bytes since the last attempt.
    records: u64,
    bytes: u64,
    /// Whether the last of those was this process's own.
    is_own: bool,
    /// Gives the sequence of the snapshot that this process took.
    taking: Option<JoinHandle<Option<u64>>>,
}

impl Keeper {
    pub(crate) fn new(pace: SnapshotPace, known: u64) -> Self {
        Self { pace, known, records: 0, bytes: 0, is_own: false, taking: None }
    }

    pub(crate) fn count(&mut self, bytes: usize, is_own: bool) {
        self.records += 1;
        self.bytes = self.bytes.saturating_add(bytes as u64);
        self.is_own = is_own;
    }

    /// Begins one when it is due. Of several processes that one does, about, whose record was the last; should it have
    /// died, another does at the double. Two at once are harmless: the log keeps one.
    pub(crate) fn look(&mut self, log: &Arc<dyn EventLog>, sequence: u64) {
        let times = if self.is_own { 1 } else { 2 };
        let due = |count: u64, pace: u64| count / times >= pace.max(1);
        let is_due = due(self.records, self.pace.records) || due(self.bytes, self.pace.bytes);
        if !is_due || self.taking.as_ref().is_some_and(|taking| !taking.is_finished()) {
            return;
        }
        // It may be of a later record than the one at which it was due, and is not another process's.
        let taken = self.taking.take().and_then(|taking| taking.now_or_never()?.ok()?);
        let known = self.known.max(taken.unwrap_or(0));
        (self.records, self.bytes) = (0, 0);
        self.known = sequence;
        let log = log.clone();
        self.taking = Some(tokio::spawn(async move {
            match snapshot::take(log, known).await {
                Ok(Some(sequence)) => {
                    tracing::info!(sequence, "took a snapshot of the log");
                    return Some(sequence);
                }
                Ok(None) => tracing::debug!("another process took a snapshot of the log"),
                Err(error) => tracing::warn!(%error, "took no snapshot of the log; the next one may work"),
            }
            None
        }));
    }
}

impl Drop for Keeper {
    /// The log is let go of when its writer has ended.
    fn drop(&mut self) {
        if let Some(taking) = &self.taking {
            taking.abort();
        }
    }
}
