//! A stored log and a new one, under a cluster's key.

use super::{HEAD_BYTES, Sealing};
use crate::offline::{Bounds, Found, NewLog, StoredLog};
use crate::{LogError, Snapshot};
use async_trait::async_trait;
use bytes::Bytes;

pub(super) struct SealedStored {
    pub inner: Box<dyn StoredLog>,
    pub sealing: Sealing,
}

#[async_trait]
impl StoredLog for SealedStored {
    async fn bounds(&self) -> Result<Bounds, LogError> {
        self.inner.bounds().await
    }

    async fn read(&self, from: u64, limit: usize) -> Result<Vec<Found>, LogError> {
        let found = self.inner.read(from, limit).await?;
        let open =
            |(sequence, record): Found| (sequence, record.map(|record| self.sealing.open_record(sequence, record)));
        Ok(found.into_iter().map(open).collect())
    }

    async fn snapshots(&self) -> Result<Vec<u64>, LogError> {
        self.inner.snapshots().await
    }

    async fn snapshot(&self, sequence: u64) -> Result<Snapshot, LogError> {
        let Snapshot { sequence, bytes } = self.inner.snapshot(sequence).await?;
        Ok(Snapshot { sequence, bytes: self.sealing.open_snapshot(sequence, bytes)? })
    }

    fn unsound(&self) -> Option<&str> {
        self.inner.unsound()
    }
}

pub(super) struct SealedNew {
    pub inner: Box<dyn NewLog>,
    pub sealing: Sealing,
    /// The sequence of the next record.
    pub next: u64,
}

#[async_trait]
impl NewLog for SealedNew {
    fn record_bytes_max(&self) -> usize {
        self.inner.record_bytes_max() - HEAD_BYTES
    }

    async fn append(&mut self, records: Vec<Bytes>) -> Result<(), LogError> {
        let mut sealed = Vec::with_capacity(records.len());
        for record in records {
            let plain = record.len();
            let record = self.sealing.record(record);
            if record.len() != plain {
                self.sealing.note(self.next);
            }
            sealed.push(record);
            self.next += 1;
        }
        self.inner.append(sealed).await
    }

    async fn finish(self: Box<Self>, snapshots: Vec<Snapshot>) -> Result<(), LogError> {
        let seal = |Snapshot { sequence, bytes }| Snapshot { sequence, bytes: self.sealing.snapshot(sequence, bytes) };
        let snapshots = snapshots.into_iter().map(seal).collect();
        self.inner.finish(snapshots).await
    }
}
