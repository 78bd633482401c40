//! The log in memory, for tests and simulation. It answers as the others do, and is deterministic.

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Mutex;

use crate::growth::Growth;
use crate::{EventLog, LogError};

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

#[derive(Default)]
pub(crate) struct MemoryLog {
    /// Record `i` has sequence `i + 1`.
    records: Mutex<Vec<Bytes>>,
    growth: Growth,
}

#[async_trait]
impl EventLog for MemoryLog {
    async fn append(&self, record: Bytes, expected_last: u64) -> Result<u64, LogError> {
        check_size(&record, RECORD_BYTES_MAX)?;
        let mut records = self.records.lock().await;
        let last = records.len() as u64;
        if expected_last != last {
            return Err(LogError::Conflict { last });
        }
        records.push(record);
        self.growth.note(last + 1);
        Ok(last + 1)
    }

    async fn read(&self, after: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        let records = self.records.lock().await;
        let skip = usize::try_from(after).unwrap_or(usize::MAX);
        let found = records.iter().enumerate().skip(skip).take(limit);
        Ok(found.map(|(i, r)| (i as u64 + 1, r.clone())).collect())
    }

    async fn last(&self) -> Result<u64, LogError> {
        Ok(self.records.lock().await.len() as u64)
    }

    async fn grown(&self, after: u64) -> Result<(), LogError> {
        self.growth.past(after).await;
        Ok(())
    }

    fn record_bytes_max(&self) -> usize {
        RECORD_BYTES_MAX
    }
}
