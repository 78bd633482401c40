//! The writer ends where it never should: whoever runs the process is told, and nothing hangs.

use crate::common::*;
use crate::driver::running;
use async_trait::async_trait;
use bytes::Bytes;
use catchment_bus::{Bus, EventLog, LogError, Snapshot};
use catchment_ledger::{Ledger, LedgerError};
use catchment_types::Record;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

/// A log with a mistake in it, which shows once it is armed.
struct Mistaken {
    log: Arc<dyn EventLog>,
    armed: AtomicBool,
}

#[async_trait]
impl EventLog for Mistaken {
    async fn append(&self, record: Bytes, expected_last: u64) -> Result<u64, LogError> {
        assert!(!self.armed.load(Relaxed), "a mistake in the log");
        self.log.append(record, expected_last).await
    }

    async fn read(&self, after: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        self.log.read(after, limit).await
    }

    async fn last(&self) -> Result<u64, LogError> {
        self.log.last().await
    }

    async fn grown(&self, after: u64) -> Result<(), LogError> {
        self.log.grown(after).await
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

async fn mistaken() -> (Arc<Mistaken>, Ledger) {
    let log = Arc::new(Mistaken { log: Bus::in_memory().log, armed: AtomicBool::new(false) });
    let ledger = running(log.clone(), 1, r#","goal":9,"deadline":null"#).await;
    (log, ledger)
}

#[tokio::test]
async fn a_panic_of_the_writer_is_told_and_nobody_waits_for_it() {
    let (log, ledger) = mistaken().await;
    assert!(ledger.accept(accept(JOB, 1, 1, 0)).await.unwrap().is_accepted());
    assert!(timeout(Duration::from_millis(50), ledger.ended()).await.is_err(), "it goes on for as long as it works");
    log.armed.store(true, Relaxed);
    let waits = tokio::spawn({
        let ledger = ledger.clone();
        async move { ledger.ended().await }
    });
    let fate = timeout(PATIENCE, ledger.accept(accept(JOB, 1, 2, 0))).await.expect("an answer");
    assert!(matches!(fate, Err(LedgerError::Stopped)), "{fate:?}");
    let why = timeout(PATIENCE, waits).await.expect("it is told").unwrap();
    assert!(why.contains("a mistake in the log"), "{why}");
    assert!(!ledger.is_reachable(), "the state is of the past");
    // Whoever comes later is told at once, by any handle.
    assert_eq!(timeout(PATIENCE, ledger.clone().ended()).await.expect("at once"), why);
    let refused = timeout(PATIENCE, ledger.propose(Record::Accepted(Vec::new()))).await.expect("an answer");
    assert!(matches!(refused, Err(LedgerError::Unavailable)), "{refused:?}");
    assert_eq!(ledger.read(|state| state.job(JOB).unwrap().round.as_ref().unwrap().received()), 1);
}
