//! The log in a file of this machine, for a Catchment without a server.
//!
//! One thread owns the file. Calls queue up to it, and the appends that wait together become one
//! commit and one fsync, their guards checked in order; so appends in flight share the disk's
//! latency, and no runtime thread ever waits for a disk.

pub(crate) mod offline;
mod salvage;
mod snapshots;
mod store;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::growth::Growth;
use crate::memory::{RECORD_BYTES_MAX, check_sequence, check_size};
use crate::{BusError, EventLog, LogError, Pushed, Snapshot};
use store::Store;

pub use store::LOG_FILE;

/// Calls that may wait for the thread; more wait before they are queued.
const QUEUE_MAX: usize = 256;

/// Records in one commit at most; with the largest record that bounds its memory.
const GROUP_MAX: usize = 64;

type Answer<T> = oneshot::Sender<Result<T, LogError>>;

enum Call {
    Append { record: Bytes, expected_last: Option<u64>, answer: Answer<u64> },
    Read { after: u64, limit: usize, answer: Answer<Vec<(u64, Bytes)>> },
    Last { answer: Answer<u64> },
    Forget { until: u64, answer: Answer<bool> },
}

struct Append {
    record: Bytes,
    /// `None`: wherever the log ends.
    expected_last: Option<u64>,
    answer: Answer<u64>,
}

pub(crate) struct EmbeddedLog {
    /// Present until the drop.
    calls: Option<mpsc::Sender<Call>>,
    thread: Option<JoinHandle<()>>,
    growth: Arc<Growth>,
    dir: PathBuf,
    /// Held while a snapshot is written.
    writing: Arc<Mutex<()>>,
}

impl EmbeddedLog {
    pub(crate) async fn open(data_dir: &Path) -> Result<Self, BusError> {
        let (calls, queue) = mpsc::channel(QUEUE_MAX);
        let (opened, when_opened) = oneshot::channel();
        let dir = data_dir.to_owned();
        let growth = Arc::new(Growth::default());
        let known = growth.clone();
        let failed = |reason: String| BusError::Open { path: data_dir.to_owned(), reason };
        let thread = std::thread::Builder::new()
            .name("catchment-log".to_owned())
            .spawn(move || match Store::open(&dir) {
                Ok(store) => {
                    let _ = opened.send(Ok(()));
                    serve(store, queue, &known);
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                }
            })
            .map_err(|error| failed(format!("start the log's thread: {error}")))?;
        when_opened.await.map_err(|_| failed("the log's thread died".to_owned()))??;
        let dir = data_dir.to_owned();
        Ok(Self { calls: Some(calls), thread: Some(thread), growth, dir, writing: Arc::default() })
    }

    async fn call<T>(&self, call: Call, answer: oneshot::Receiver<Result<T, LogError>>) -> Result<T, LogError> {
        let calls = self.calls.as_ref().ok_or_else(stopped)?;
        calls.send(call).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

fn stopped() -> LogError {
    LogError::Unavailable("the log's thread has stopped; restart this process".to_owned())
}

/// Works on files where that holds up no other task. It is done to its end also when nobody waits for it any more.
async fn on_files<T: Send + 'static>(
    dir: &Path,
    work: impl FnOnce(&Path) -> std::io::Result<T> + Send + 'static,
) -> Result<T, LogError> {
    let dir = dir.to_owned();
    let worked = tokio::task::spawn_blocking(move || {
        work(&dir).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => LogError::Damaged(format!("snapshot in {}: {error}", dir.display())),
            _ => LogError::Unavailable(format!("snapshot in {}: {error}", dir.display())),
        })
    });
    worked.await.map_err(|error| LogError::Unavailable(format!("work on a snapshot: {error}")))?
}

#[async_trait]
impl EventLog for EmbeddedLog {
    async fn append(&self, record: Bytes, expected_last: u64) -> Result<u64, LogError> {
        check_size(&record, RECORD_BYTES_MAX)?;
        let (answer, answered) = oneshot::channel();
        self.call(Call::Append { record, expected_last: Some(expected_last), answer }, answered).await
    }

    async fn push(&self, record: Bytes) -> Result<Pushed, LogError> {
        check_size(&record, RECORD_BYTES_MAX)?;
        let (answer, answered) = oneshot::channel();
        let calls = self.calls.as_ref().ok_or_else(stopped)?;
        calls.send(Call::Append { record, expected_last: None, answer }).await.map_err(|_| stopped())?;
        Ok(answered.map(|answer| answer.unwrap_or_else(|_| Err(stopped()))).boxed())
    }

    async fn read(&self, after: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        let (answer, answered) = oneshot::channel();
        self.call(Call::Read { after, limit, answer }, answered).await
    }

    async fn last(&self) -> Result<u64, LogError> {
        let (answer, answered) = oneshot::channel();
        self.call(Call::Last { answer }, answered).await
    }

    /// One process owns the file, so nobody else appends.
    async fn grown(&self, after: u64) -> Result<(), LogError> {
        self.growth.past(after).await;
        Ok(())
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>, LogError> {
        on_files(&self.dir, snapshots::newest).await
    }

    async fn snapshot_sequence(&self) -> Result<u64, LogError> {
        on_files(&self.dir, |dir| Ok(snapshots::list(dir)?.first().copied().unwrap_or(0))).await
    }

    async fn put_snapshot(&self, snapshot: Snapshot) -> Result<bool, LogError> {
        check_sequence(&snapshot, self.last().await?)?;
        let writing = self.writing.clone().lock_owned().await;
        let kept = on_files(&self.dir, move |dir| {
            let _writing = writing;
            if snapshots::list(dir)?.first().is_some_and(|newest| *newest >= snapshot.sequence) {
                return Ok(None);
            }
            snapshots::write(dir, &snapshot)?;
            snapshots::prune(dir).map(Some)
        });
        let Some(before) = kept.await? else { return Ok(false) };
        // In pieces, between which appends have their turn.
        while let Some(until) = before {
            let (answer, answered) = oneshot::channel();
            if !self.call(Call::Forget { until, answer }, answered).await? {
                break;
            }
        }
        Ok(true)
    }

    fn record_bytes_max(&self) -> usize {
        RECORD_BYTES_MAX
    }
}

impl Drop for EmbeddedLog {
    /// Waits for the commit in progress: whoever opens the file next finds it free.
    fn drop(&mut self) {
        self.calls = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves calls in the order they came until the log is dropped.
fn serve(mut store: Store, mut queue: mpsc::Receiver<Call>, growth: &Growth) {
    growth.note(store.last().unwrap_or(0));
    let mut group = Vec::with_capacity(GROUP_MAX);
    while let Some(call) = queue.blocking_recv() {
        let mut next = Some(call);
        while let Some(call) = next.take() {
            match call {
                Call::Append { record, expected_last, answer } => {
                    group.push(Append { record, expected_last, answer });
                    if group.len() < GROUP_MAX {
                        next = queue.try_recv().ok();
                    }
                }
                Call::Read { after, limit, answer } => {
                    append(&mut store, &mut group, growth);
                    let _ = answer.send(store.read(after, limit));
                }
                Call::Forget { until, answer } => {
                    append(&mut store, &mut group, growth);
                    let _ = answer.send(store.forget(until));
                }
                Call::Last { answer } => {
                    append(&mut store, &mut group, growth);
                    let _ = answer.send(store.last());
                }
            }
        }
        append(&mut store, &mut group, growth);
    }
}

/// Commits those of the group whose guard holds, then answers all.
fn append(store: &mut Store, group: &mut Vec<Append>, growth: &Growth) {
    if group.is_empty() {
        return;
    }
    let stored = store.last().and_then(|mut last| {
        let mut records = Vec::with_capacity(group.len());
        for append in &*group {
            if append.expected_last.is_none_or(|expected| expected == last) {
                last += 1;
                records.push((last, append.record.clone()));
            }
        }
        store.append(&records)?;
        growth.note(last);
        Ok(records.into_iter().map(|(sequence, _)| sequence))
    });
    let mut stored = match stored {
        Ok(stored) => stored.peekable(),
        Err(error) => {
            for append in group.drain(..) {
                let _ = append.answer.send(Err(error.clone()));
            }
            return;
        }
    };
    for append in group.drain(..) {
        // In order: the next stored record belongs to the next append whose guard it satisfies.
        let is_its = |sequence: &u64| append.expected_last.is_none_or(|expected| *sequence - 1 == expected);
        let sequence = stored.next_if(is_its);
        let answer = sequence.map_or_else(|| store.last().and_then(|last| Err(LogError::Conflict { last })), Ok);
        let _ = append.answer.send(answer);
    }
    assert!(stored.next().is_none(), "every stored record was answered for");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_checked_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let expectations = [0, 1, 1, 0, 2, 600, u64::MAX, 3];
        let (mut group, answers): (Vec<_>, Vec<_>) = expectations
            .into_iter()
            .map(|expected_last| {
                let (answer, answered) = oneshot::channel();
                let record = Bytes::from(expected_last.to_string());
                (Append { record, expected_last: Some(expected_last), answer }, answered)
            })
            .unzip();
        append(&mut store, &mut group, &Growth::default());
        assert!(group.is_empty());
        let conflict = Err(LogError::Conflict { last: 4 });
        let c = || conflict.clone();
        let expected = [Ok(1), Ok(2), c(), c(), Ok(3), c(), c(), Ok(4)];
        for (answer, expected) in answers.into_iter().zip(expected) {
            assert_eq!(answer.blocking_recv().unwrap(), expected);
        }
        let stored: Vec<_> = store.read(0, 10).unwrap().into_iter().map(|(_, record)| record).collect();
        assert_eq!(stored, ["0", "1", "2", "3"]);
    }
}
