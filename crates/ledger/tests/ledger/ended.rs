//! The writer ends where it never should: whoever runs the process is told, and nothing hangs.

use crate::common::*;
use crate::driver::running;
use crate::faulty::{Fault, Faulty};
use catchment_bus::Bus;
use catchment_ledger::{Ledger, LedgerError};
use catchment_types::Record;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

/// A log that has a mistake in it once its test says so.
async fn mistaken() -> (Arc<Faulty>, Ledger) {
    let log = Faulty::scripted(Bus::in_memory().log, &[]);
    let ledger = running(log.clone(), 1, r#","goal":9,"deadline":null"#).await;
    (log, ledger)
}

#[tokio::test]
async fn a_panic_of_the_writer_is_told_and_nobody_waits_for_it() {
    let (log, ledger) = mistaken().await;
    assert!(ledger.accept(accept(JOB, 1, 1, 0)).await.unwrap().is_accepted());
    assert!(timeout(Duration::from_millis(50), ledger.ended()).await.is_err(), "it goes on for as long as it works");
    log.then(&[Fault::Panics]);
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
