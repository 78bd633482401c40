//! The contract of the event log.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;

use crate::{LogError, Snapshot};

/// How long a follower waits for records that are stored but cannot be read yet.
const LAG: Duration = Duration::from_millis(5);

/// The sequence of a record that is on its way, once the log has it.
pub type Pushed = BoxFuture<'static, Result<u64, LogError>>;

/// An ordered log of records, numbered from 1 without gaps. Every record is durable when its append
/// has returned.
///
/// Appends in flight at the same time may arrive in any order; their guards hold whatever it is.
/// A caller that drops an append's future before it is done knows as much as after
/// [`LogError::Unavailable`].
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Appends one record and returns its sequence, `expected_last + 1`.
    ///
    /// `expected_last` is the sequence the caller believes is the last (0 for an empty log); when it
    /// is not, nothing is stored.
    ///
    /// # Errors
    /// [`LogError::Conflict`] and [`LogError::Refused`]: not stored. [`LogError::Unavailable`]:
    /// unknown, see [`EventLog::settle`].
    async fn append(&self, record: Bytes, expected_last: u64) -> Result<u64, LogError>;

    /// Sends one record to wherever the log ends by then, and returns once it is on its way: what is returned is its sequence,
    /// once the log has it. Records that one caller sends one after the other are stored in that order while the connection
    /// holds.
    ///
    /// It has no guard, so one that ended in [`LogError::Unavailable`] cannot be settled by another append: it may come later,
    /// or never. Whoever reads the log must be able to tell one that comes too late.
    ///
    /// # Errors
    /// [`LogError::Refused`]: not stored. [`LogError::Unavailable`] at once: it was not sent; of what is returned: unknown.
    async fn push(&self, record: Bytes) -> Result<Pushed, LogError>;

    /// The records after `after`, in order, without gaps: all that were stored at the time of the
    /// call, but `limit` at most. Fewer than `limit` therefore means the end.
    ///
    /// The caller's `limit` bounds the memory taken: `limit` times [`EventLog::record_bytes_max`].
    ///
    /// # Errors
    /// [`LogError::Unavailable`]; [`LogError::Forgotten`] when the first of them is before the log's beginning;
    /// [`LogError::Damaged`] when a record in the range is missing.
    async fn read(&self, after: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, LogError>;

    /// Waits until there are records after `after`, whoever appended, and returns the first of them, in order, without gaps,
    /// `limit` at most. What it does not return may be stored all the same: [`EventLog::read`] says what is.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// Those of [`EventLog::read`] and of [`EventLog::grown`].
    async fn follow(&self, after: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        loop {
            self.grown(after).await?;
            let records = self.read(after, limit).await?;
            if !records.is_empty() {
                return Ok(records);
            }
            // What is stored cannot be read yet, or there was nothing.
            tokio::time::sleep(LAG).await;
        }
    }

    /// The sequence of the last record, 0 when there is none.
    ///
    /// # Errors
    /// [`LogError::Unavailable`].
    async fn last(&self) -> Result<u64, LogError>;

    /// Waits until the log may have gone past `after`, whoever appended: [`EventLog::read`] says whether it has. A follower
    /// reads, then waits for what comes after what it read. On a server that is within milliseconds of an append, and
    /// within a second or two when the hint of it was lost.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] when the log cannot be asked: nobody can say how far it has come. It is found out within
    /// a second or so, or within a request's timeout, so that a follower knows what its state is worth.
    async fn grown(&self, after: u64) -> Result<(), LogError>;

    /// The newest snapshot that is whole. One that was torn or damaged is passed over while there is an older one.
    ///
    /// # Errors
    /// [`LogError::Unavailable`]; [`LogError::Damaged`] when there are snapshots and none is whole.
    async fn snapshot(&self) -> Result<Option<Snapshot>, LogError>;

    /// The sequence of the newest snapshot, 0 when there is none. Cheap.
    ///
    /// # Errors
    /// [`LogError::Unavailable`].
    async fn snapshot_sequence(&self) -> Result<u64, LogError>;

    /// Stores a snapshot whole or not at all, whenever the process dies. Then forgets the records that are in the
    /// snapshot *before* it, so that whoever is reading a little behind still finds the records between the two. False
    /// when there is one as new already, and then nothing happens. Appends go on meanwhile.
    ///
    /// # Errors
    /// [`LogError::Unavailable`], [`LogError::Refused`]: perhaps stored, perhaps nothing forgotten. There is nothing to
    /// settle; the next snapshot does what this one did not.
    async fn put_snapshot(&self, snapshot: Snapshot) -> Result<bool, LogError>;

    /// The largest record an append takes now. A writer that groups entries splits by it.
    fn record_bytes_max(&self) -> usize;

    /// Finds out what became of an append that ended in [`LogError::Unavailable`], by appending the
    /// same record again with the same `expected_last`.
    ///
    /// Reading alone cannot tell: an append whose acknowledgement was lost may still be on its way
    /// (in a socket, in a server that was paused) and arrive after the read. Only another append with
    /// the same guard settles it, because of the two at most one can be stored. Call it until it
    /// answers otherwise than `Unavailable`; append nothing else and drop nothing that the record
    /// speaks of before that.
    ///
    /// `Ok` is the sequence of the record, now or already stored; `Conflict` means that another
    /// record has its place and it never was and never will be stored. For that, records must be
    /// unique: let each carry something of its writer.
    ///
    /// # Errors
    /// [`LogError::Conflict`], [`LogError::Unavailable`], [`LogError::Damaged`]; never `Refused`,
    /// because a refusal of the second says nothing of the first.
    async fn settle(&self, record: Bytes, expected_last: u64) -> Result<u64, LogError> {
        let last = match self.append(record.clone(), expected_last).await {
            Err(LogError::Conflict { last }) if last > expected_last => last,
            Err(LogError::Refused(reason)) => {
                return Err(LogError::Unavailable(format!(
                    "still unknown whether the record after {expected_last} was stored: {reason}"
                )));
            }
            settled => return settled,
        };
        match self.read(expected_last, 1).await?.first() {
            Some((sequence, stored)) if *stored == record => Ok(*sequence),
            Some(_) => Err(LogError::Conflict { last }),
            // A cluster's leader counts records that its replicas have not confirmed yet.
            None => Err(LogError::Unavailable(format!("record {} exists but cannot be read yet", expected_last + 1))),
        }
    }
}
