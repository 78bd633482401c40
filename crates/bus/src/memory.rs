//! The log in memory, for tests and simulation. It answers as the others do, and is deterministic.

use std::collections::VecDeque;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::Mutex;

use crate::growth::Growth;
use crate::snapshot::KEPT;
use crate::{EventLog, LogError, Pushed, Snapshot};

/// The largest record of the logs that live in this process. A little less than a NATS server takes
/// by default, so that what works here works there.
pub const RECORD_BYTES_MAX: usize = (1 << 20) - 1024;

/// Refuses a record over `limit_bytes`.
pub(crate) fn check_size(record: &Bytes, limit_bytes: usize) -> Result<(), LogError> {
    if record.len() <= limit_bytes {
        return Ok(());
    }
    Err(LogError::Refused(format!("a record of {} bytes is over the limit of {limit_bytes}", record.len())))
}

/// Refuses a snapshot of what is not there: it would have the log forget what nobody has read.
pub(crate) fn check_sequence(snapshot: &Snapshot, last: u64) -> Result<(), LogError> {
    if snapshot.sequence <= last {
        return Ok(());
    }
    Err(LogError::Refused(format!("a snapshot at {} of a log that ends at {last}", snapshot.sequence)))
}

#[derive(Default)]
struct Stored {
    /// Records that are forgotten.
    forgotten: u64,
    /// Record `i` has sequence `forgotten + i + 1`.
    records: VecDeque<Bytes>,
    /// Newest first.
    snapshots: Vec<Snapshot>,
}

impl Stored {
    fn last(&self) -> u64 {
        self.forgotten + self.records.len() as u64
    }
}

#[derive(Default)]
pub(crate) struct MemoryLog {
    stored: Mutex<Stored>,
    growth: Growth,
}

#[async_trait]
impl EventLog for MemoryLog {
    async fn append(&self, record: Bytes, expected_last: u64) -> Result<u64, LogError> {
        check_size(&record, RECORD_BYTES_MAX)?;
        let mut stored = self.stored.lock().await;
        let last = stored.last();
        if expected_last != last {
            return Err(LogError::Conflict { last });
        }
        stored.records.push_back(record);
        self.growth.note(last + 1);
        Ok(last + 1)
    }

    async fn push(&self, record: Bytes) -> Result<Pushed, LogError> {
        check_size(&record, RECORD_BYTES_MAX)?;
        let mut stored = self.stored.lock().await;
        stored.records.push_back(record);
        let sequence = stored.last();
        self.growth.note(sequence);
        Ok(std::future::ready(Ok(sequence)).boxed())
    }

    async fn read(&self, after: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        let stored = self.stored.lock().await;
        if after >= stored.last() || limit == 0 {
            return Ok(vec![]);
        }
        let skip = after.checked_sub(stored.forgotten).ok_or(LogError::Forgotten { first: stored.forgotten + 1 })?;
        let found = stored.records.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)).take(limit);
        Ok((after + 1..).zip(found.cloned()).collect())
    }

    async fn last(&self) -> Result<u64, LogError> {
        Ok(self.stored.lock().await.last())
    }

    async fn grown(&self, after: u64) -> Result<(), LogError> {
        self.growth.past(after).await;
        Ok(())
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>, LogError> {
        Ok(self.stored.lock().await.snapshots.first().cloned())
    }

    async fn snapshot_sequence(&self) -> Result<u64, LogError> {
        Ok(self.stored.lock().await.snapshots.first().map_or(0, |snapshot| snapshot.sequence))
    }

    async fn put_snapshot(&self, snapshot: Snapshot) -> Result<bool, LogError> {
        let mut stored = self.stored.lock().await;
        check_sequence(&snapshot, stored.last())?;
        if stored.snapshots.first().is_some_and(|newest| newest.sequence >= snapshot.sequence) {
            return Ok(false);
        }
        stored.snapshots.insert(0, snapshot);
        stored.snapshots.truncate(KEPT);
        let before = stored.snapshots.get(KEPT - 1).map_or(0, |snapshot| snapshot.sequence);
        while stored.forgotten < before {
            stored.records.pop_front();
            stored.forgotten += 1;
        }
        Ok(true)
    }

    fn record_bytes_max(&self) -> usize {
        RECORD_BYTES_MAX
    }
}
