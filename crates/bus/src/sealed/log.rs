//! A log whose records and snapshots are sealed.

use super::{HEAD_BYTES, SEALED_MARK, Sealing};
use crate::{EventLog, LogError, Pushed, Snapshot};
use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use std::sync::Arc;

/// Records read at one time while it is looked for where sealing has begun.
const READ: usize = 64;

pub(super) struct SealedLog {
    pub inner: Arc<dyn EventLog>,
    pub sealing: Sealing,
}

impl SealedLog {
    /// In their order: the first sealed one decides over those after it.
    fn open(&self, stored: Vec<(u64, Bytes)>) -> Vec<(u64, Bytes)> {
        let open = |(sequence, record)| (sequence, self.sealing.open_record(sequence, record));
        stored.into_iter().map(open).collect()
    }

    /// Finds out whether sealing had begun by this record, from the records that are still there.
    async fn look_back(&self, sequence: u64) -> Result<(), LogError> {
        let mut after = 0;
        while after < sequence && !self.sealing.has_begun() {
            let records = match self.inner.read(after, READ).await {
                Err(LogError::Forgotten { first }) => {
                    after = first - 1;
                    continue;
                }
                records => records?,
            };
            let Some((last, _)) = records.last() else { return Ok(()) };
            after = *last;
            records.into_iter().for_each(|(sequence, record)| drop(self.sealing.open_record(sequence, record)));
        }
        Ok(())
    }
}

#[async_trait]
impl EventLog for SealedLog {
    async fn append(&self, record: Bytes, expected_last: u64) -> Result<u64, LogError> {
        let (plain, record) = (record.len(), self.sealing.record(record));
        let is_sealed = plain != record.len();
        let sequence = self.inner.append(record, expected_last).await?;
        if is_sealed {
            self.sealing.note(sequence);
        }
        Ok(sequence)
    }

    async fn push(&self, record: Bytes) -> Result<Pushed, LogError> {
        let (plain, record) = (record.len(), self.sealing.record(record));
        let (is_sealed, sealing) = (plain != record.len(), self.sealing.clone());
        let on_its_way = self.inner.push(record).await?;
        let note = move |sequence: Result<u64, LogError>| {
            sequence.inspect(|at| {
                if is_sealed {
                    sealing.note(*at);
                }
            })
        };
        Ok(on_its_way.map(note).boxed())
    }

    async fn read(&self, after: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        Ok(self.open(self.inner.read(after, limit).await?))
    }

    async fn follow(&self, after: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        Ok(self.open(self.inner.follow(after, limit).await?))
    }

    async fn last(&self) -> Result<u64, LogError> {
        self.inner.last().await
    }

    async fn grown(&self, after: u64) -> Result<(), LogError> {
        self.inner.grown(after).await
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>, LogError> {
        let Some(Snapshot { sequence, bytes }) = self.inner.snapshot().await? else { return Ok(None) };
        // One without a seal counts only where no record before it has one.
        if !bytes.starts_with(&SEALED_MARK) {
            self.look_back(sequence).await?;
        }
        Ok(Some(Snapshot { sequence, bytes: self.sealing.open_snapshot(sequence, bytes)? }))
    }

    async fn snapshot_sequence(&self) -> Result<u64, LogError> {
        self.inner.snapshot_sequence().await
    }

    async fn put_snapshot(&self, Snapshot { sequence, bytes }: Snapshot) -> Result<bool, LogError> {
        self.inner.put_snapshot(Snapshot { sequence, bytes: self.sealing.snapshot(sequence, bytes) }).await
    }

    fn record_bytes_max(&self) -> usize {
        self.inner.record_bytes_max() - HEAD_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ClusterKey, NOBODYS};
    use super::*;
    use crate::Bus;

    const KEY: [u8; 32] = [7; 32];

    /// Records that begin with an "n" are of the newest form.
    fn sealed(bus: &Bus, key: [u8; 32]) -> Arc<dyn EventLog> {
        let is_newest = |record: &[u8]| record.starts_with(b"n");
        Sealing::new(ClusterKey::from_bytes(key), is_newest, |_| false).around(bus.clone()).log
    }

    async fn all(log: &Arc<dyn EventLog>) -> Vec<Bytes> {
        log.read(0, 100).await.unwrap().into_iter().map(|(_, record)| record).collect()
    }

    #[tokio::test]
    async fn sealing_begins_with_the_newest_form_and_nothing_else_counts_from_there() {
        let bus = Bus::in_memory();
        let log = sealed(&bus, KEY);
        log.append("old".into(), 0).await.unwrap();
        bus.log.append("a stranger's".into(), 1).await.unwrap();
        log.append("new".into(), 2).await.unwrap();
        bus.log.append("a stranger's".into(), 3).await.unwrap();
        log.append("old again".into(), 4).await.unwrap();
        // Somebody else's seal, and a part of one.
        sealed(&bus, [8; 32]).append("new".into(), 5).await.unwrap();
        bus.log.append(Bytes::from_static(&SEALED_MARK), 6).await.unwrap();
        log.push("pushed".into()).await.unwrap().await.unwrap();
        let expected = ["old", "a stranger's", "new", "-", "old again", "-", "-", "pushed"];
        let expected: Vec<Bytes> =
            expected.into_iter().map(|text| if text == "-" { NOBODYS.into() } else { text.into() }).collect();
        // For whoever was there all the time, and for whoever comes now.
        assert_eq!(all(&log).await, expected);
        assert_eq!(all(&sealed(&bus, KEY)).await, expected);
        // With another key nothing is left out in silence before it is clear that there is one.
        let other = all(&sealed(&bus, [9; 32])).await;
        assert!(other[2].starts_with(&SEALED_MARK), "{:?}", other[2]);
    }

    #[tokio::test]
    async fn an_append_of_unknown_fate_is_settled_under_a_seal() {
        let bus = Bus::in_memory();
        let log = sealed(&bus, KEY);
        log.append("new".into(), 0).await.unwrap();
        assert_eq!(log.settle("new".into(), 0).await, Ok(1));
        assert_eq!(log.settle("newer".into(), 0).await, Err(LogError::Conflict { last: 1 }));
    }

    #[tokio::test]
    async fn a_snapshot_is_sealed_once_records_are() {
        let bus = Bus::in_memory();
        let log = sealed(&bus, KEY);
        let snapshot = |sequence| Snapshot { sequence, bytes: "state".into() };
        log.append("old".into(), 0).await.unwrap();
        assert_eq!(log.put_snapshot(snapshot(1)).await, Ok(true));
        assert_eq!(bus.log.snapshot().await.unwrap().unwrap().bytes, "state");
        assert_eq!(sealed(&bus, KEY).snapshot().await, Ok(Some(snapshot(1))));
        log.append("new".into(), 1).await.unwrap();
        assert_eq!(log.put_snapshot(snapshot(2)).await, Ok(true));
        assert!(bus.log.snapshot().await.unwrap().unwrap().bytes.starts_with(&SEALED_MARK));
        let fresh = sealed(&bus, KEY);
        assert_eq!(fresh.snapshot().await, Ok(Some(snapshot(2))));
        // From the snapshot on, without having seen the first sealed record.
        bus.log.append("a stranger's".into(), 2).await.unwrap();
        assert_eq!(fresh.read(2, 1).await.unwrap()[0].1, NOBODYS);
        let refused = sealed(&bus, [8; 32]).snapshot().await;
        assert!(matches!(&refused, Err(LogError::Damaged(why)) if why.contains("another key")), "{refused:?}");
        // A stranger's own, though the last record in it is a stranger's, too.
        log.append("old".into(), 3).await.unwrap();
        bus.log.append("a stranger's".into(), 4).await.unwrap();
        bus.log.put_snapshot(snapshot(5)).await.unwrap();
        let refused = sealed(&bus, KEY).snapshot().await;
        assert!(matches!(&refused, Err(LogError::Damaged(why)) if why.contains("no seal")), "{refused:?}");
    }

    #[tokio::test]
    async fn a_record_has_room_for_its_seal() {
        let bus = Bus::in_memory();
        let log = sealed(&bus, KEY);
        let whole = Bytes::from(vec![b'n'; log.record_bytes_max()]);
        assert_eq!(log.append(whole.clone(), 0).await, Ok(1));
        assert_eq!(log.read(0, 1).await.unwrap()[0].1, whole);
    }
}
