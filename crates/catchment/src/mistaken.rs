//! For tests: a bus whose log has a mistake in it, which shows once it is armed.

use async_trait::async_trait;
use bytes::Bytes;
use catchment_bus::{Bus, EventLog, LogError, Pushed, Snapshot};
use catchment_ledger::Ledger;
use catchment_types::Record;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The log.
pub struct Mistaken {
    log: Arc<dyn EventLog>,
    armed: AtomicBool,
}

impl Mistaken {
    /// It, and a bus in memory that has it.
    pub fn bus() -> (Arc<Self>, Bus) {
        let bus = Bus::in_memory();
        let log = Arc::new(Self { log: bus.log.clone(), armed: AtomicBool::new(false) });
        (log.clone(), Bus { log, ..bus })
    }

    /// From now on whoever uses it panics; that is when something else comes into the log.
    pub async fn trip_up(&self) {
        let other = Ledger::open(self.log.clone(), [7; 16]).await.unwrap();
        self.armed.store(true, Relaxed);
        other.propose(Record::Accepted(Vec::new())).await.unwrap();
    }

    fn trip(&self) {
        assert!(!self.armed.load(Relaxed), "a mistake in the log");
    }
}

#[async_trait]
impl EventLog for Mistaken {
    async fn append(&self, record: Bytes, expected_last: u64) -> Result<u64, LogError> {
        self.trip();
        self.log.append(record, expected_last).await
    }

    async fn push(&self, record: Bytes) -> Result<Pushed, LogError> {
        self.trip();
        self.log.push(record).await
    }

    async fn read(&self, after: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        self.trip();
        self.log.read(after, limit).await
    }

    async fn last(&self) -> Result<u64, LogError> {
        self.log.last().await
    }

    async fn grown(&self, after: u64) -> Result<(), LogError> {
        self.log.grown(after).await?;
        self.trip();
        Ok(())
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>, LogError> {
        self.log.snapshot().await
    }

    async fn snapshot_sequence(&self) -> Result<u64, LogError> {
        self.log.snapshot_sequence().await
    }

    async fn put_snapshot(&self, snapshot: Snapshot) -> Result<bool, LogError> {
        self.log.put_snapshot(snapshot).await
    }

    fn record_bytes_max(&self) -> usize {
        self.log.record_bytes_max()
    }
}

/// Waits until the process at this address says that it is ready.
pub async fn ready(address: SocketAddr) {
    let request = "GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let mut last = String::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        last.clear();
        stream.read_to_string(&mut last).await.ok();
        if last.starts_with("HTTP/1.1 200 ") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not ready, the last answer is {last}");
}
