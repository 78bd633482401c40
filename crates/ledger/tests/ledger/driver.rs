//! The writer on logs that do as they should.

use crate::common::*;
use crate::faulty::{Faulty, account, stored};
use catchment_bus::{Bus, BusError, EventLog};
use catchment_ledger::{AcceptOutcome, Envelope, Ledger, LedgerError, Outcome, State};
use catchment_types::{Accept, CloseReason, JobAction, JobUid, LogId, Record, SlabId, SpecPatch, StateHash};
use futures::future::join_all;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Opens a ledger and, in it, job `JOB` with its first round open.
pub async fn running(log: Arc<dyn EventLog>, writer: u8, fields: &str) -> Ledger {
    running_at(1, log, writer, fields).await
}

/// The same at this feature level.
pub async fn running_at(level: u32, log: Arc<dyn EventLog>, writer: u8, fields: &str) -> Ledger {
    let ledger = Ledger::open(log, [writer; 16]).await.unwrap();
    if level > 1 {
        let raised = Record::LevelRaised { level, log: LogId::from_bytes([1; 16]), at_ms: 0 };
        assert_eq!(ledger.propose(raised).await.unwrap(), Outcome::Done);
    }
    for record in [
        created(JOB, spec("a", fields)),
        Record::ModelPut { uid: JOB, model: initial_model(), needs: Default::default(), at_ms: 0 },
        Record::RoundOpened { uid: JOB, round: 1, deadline_ms: None, places: vec![], at_ms: 0 },
    ] {
        assert_eq!(ledger.propose(record).await.unwrap(), Outcome::Done);
    }
    ledger
}

fn snapshot(ledger: &Ledger) -> State {
    ledger.read(State::clone)
}

fn accept_in_slab(number: u64, body: u8, slab: u32) -> Accept {
    Accept { slab: SlabId::new(slab, 1), ..accept(JOB, 1, number, body) }
}

#[tokio::test]
async fn many_concurrent_accepts_share_records() {
    let log = Bus::in_memory().log;
    let ledger = running(log.clone(), 1, r#","goal":1500,"deadline":null"#).await;
    let answers = join_all((0..2000).map(|number| ledger.accept(accept(JOB, 1, number, 0)))).await;
    let receipts: BTreeSet<_> = answers
        .iter()
        .filter_map(|answer| match answer.as_ref().unwrap() {
            AcceptOutcome::Accepted(receipt) => Some(*receipt),
            AcceptOutcome::RoundClosed { next: Some(2) } => None,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(receipts.len(), 1500);
    let account = account(&log).await;
    assert_eq!(account.state, snapshot(&ledger));
    assert!(receipts.iter().all(|receipt| account.state.receipt(*receipt).is_some()));
    assert!(account.records.len() < 30, "{} records for 2000 accepts", account.records.len());
}

#[tokio::test]
async fn duplicates_of_one_client_get_one_receipt() {
    let log = Bus::in_memory().log;
    let ledger = running(log.clone(), 1, r#","goal":9,"deadline":null"#).await;
    let accepts = (0..600).map(|slab| accept_in_slab(1, u8::from(slab % 3 == 2), slab));
    let answers = join_all(accepts.map(|accept| ledger.accept(accept))).await;
    let mut accepted = Vec::new();
    for (slab, answer) in answers.into_iter().enumerate() {
        match answer.unwrap() {
            AcceptOutcome::Accepted(receipt) => accepted.push(receipt),
            AcceptOutcome::Duplicate(receipt) => assert!(accepted[0] == receipt && slab % 3 != 2),
            AcceptOutcome::Conflict(receipt) => assert!(accepted[0] == receipt && slab % 3 == 2),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(accepted.len(), 1);
    assert!(stored(&log).await.len() <= 5, "known duplicates cost no record");
}

#[tokio::test]
async fn accepts_and_records_keep_their_order() {
    let ledger = running(Bus::in_memory().log, 1, r#","goal":9,"deadline":null"#).await;
    let close = Record::JobActed { uid: JOB, action: JobAction::Stop, at_ms: 1 };
    // Polled in this order, hence queued in this order.
    let (before, stopped, after) =
        tokio::join!(ledger.accept(accept(JOB, 1, 1, 0)), ledger.propose(close), ledger.accept(accept(JOB, 1, 2, 0)));
    assert!(before.unwrap().is_accepted());
    assert_eq!(stopped.unwrap(), Outcome::Done);
    assert_eq!(after.unwrap(), AcceptOutcome::RoundClosed { next: None });
}

#[tokio::test]
async fn a_stale_decision_is_not_stored() {
    let log = Bus::in_memory().log;
    let ledger = running(log.clone(), 1, r#","goal":9,"deadline":null"#).await;
    let stop = Record::JobActed { uid: JOB, action: JobAction::Stop, at_ms: 1 };
    let on = || ledger.read(|state| state.decided(&stop));
    let before = on();
    ledger.accept(accept(JOB, 1, 1, 0)).await.unwrap();
    let error = ledger.decide(stop.clone(), before).await.unwrap_err();
    assert!(matches!(error, LedgerError::Stale { sequence } if sequence == before.sequence + 1), "{error}");
    assert_eq!(log.last().await.unwrap(), before.sequence + 1);
    assert_eq!(ledger.decide(stop.clone(), on()).await.unwrap(), Outcome::Done);
}

#[tokio::test]
async fn from_level_2_a_decision_is_stale_when_what_it_was_taken_on_has_changed() {
    let close = |reason| Record::RoundClosed { uid: JOB, round: 1, reason, at_ms: 1 };
    let patch = Record::JobPatched { uid: JOB, patch: SpecPatch::default(), at_ms: 1 };
    let another = created(JobUid::from_bytes([9; 16]), spec("another", ""));
    let update = Record::Accepted(vec![accept(JOB, 1, 1, 0)]);
    let complete = Record::JobCompleted { uid: JOB, reason: "it gets no better".to_owned(), at_ms: 1 };
    let extend = Record::RoundExtended { uid: JOB, round: 1, deadline_ms: None };
    for (decision, meanwhile, is_stale) in [
        (close(CloseReason::Deadline), &another, false),
        (close(CloseReason::Deadline), &update, false),
        (close(CloseReason::Deadline), &patch, true),
        // They say that there are too few updates.
        (close(CloseReason::Shortfall), &update, true),
        (extend, &update, true),
        (complete.clone(), &update, true),
        (complete, &another, false),
    ] {
        let ledger = running_at(2, Bus::in_memory().log, 1, r#","goal":9,"deadline":null"#).await;
        let on = ledger.read(|state| state.decided(&decision));
        ledger.propose(meanwhile.clone()).await.unwrap();
        match ledger.decide(decision.clone(), on).await {
            Ok(Outcome::Done) if !is_stale => {}
            Err(LedgerError::Stale { .. }) if is_stale => {}
            other => panic!("{decision:?} after {meanwhile:?}: {other:?}"),
        }
        let again = ledger.decide(decision.clone(), ledger.read(|state| state.decided(&decision))).await;
        assert!(!is_stale || matches!(again, Ok(Outcome::Done)), "taken anew it counts: {again:?}");
    }
}

/// Every process says now and then what it has come to, and whoever has come to something else stops there.
#[tokio::test]
async fn processes_that_come_to_different_states_find_out() {
    let log = Bus::in_memory().log;
    let ledger = running_at(2, log.clone(), 1, r#","goal":9,"deadline":null"#).await;
    let other = Ledger::open(log.clone(), [2; 16]).await.unwrap();
    for number in 0..4_200 {
        ledger.propose(Record::Accepted(Vec::new())).await.unwrap();
        if number % 1_000 == 0 {
            other.accept(accept(JOB, 1, number / 1_000, 0)).await.unwrap();
        }
    }
    let hashes = |envelopes: Vec<Envelope>| {
        let said = |envelope: Envelope| match envelope.record {
            Record::StateHashed { sequence, hash } => Some((sequence, hash)),
            _ => None,
        };
        envelopes.into_iter().filter_map(said).collect::<Vec<_>>()
    };
    let said = hashes(stored(&log).await);
    assert_eq!(said.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [4096]);
    other.refresh().await.unwrap();
    assert!(other.fault().is_none());
    // Whoever opens the log comes to the same.
    let third = Ledger::open(log.clone(), [3; 16]).await.unwrap();
    assert!(third.fault().is_none() && third.read(State::clone) == ledger.read(State::clone));
    let right = Record::StateHashed { sequence: 4096, hash: said[0].1 };
    assert_eq!(third.propose(right).await.unwrap(), Outcome::Done);
    let forgotten = Record::StateHashed { sequence: 4095, hash: said[0].1 };
    assert!(matches!(third.propose(forgotten).await.unwrap(), Outcome::Ignored(_)));
    // One that has folded otherwise: all the others stop, and nobody makes a snapshot of what is doubtful.
    let wrong = Record::StateHashed { sequence: 4096, hash: StateHash::from_bytes([7; 16]) };
    let last = log.last().await.unwrap();
    let envelope = Envelope { writer: [9; 16], number: 1, guard: None, seen: Some(last), record: wrong };
    log.append(envelope.to_bytes(2, 1 << 20).unwrap().into(), last).await.unwrap();
    for ledger in [&ledger, &other, &third] {
        let stopped = async {
            while ledger.fault().is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), stopped).await.expect("it stops");
        let why = ledger.fault().unwrap();
        assert!(why.contains(&format!("record {}", last + 1)) && why.contains("another state"), "{why}");
        assert!(ledger.accept(accept(JOB, 1, 77, 0)).await.is_err());
    }
    let refused = Ledger::open(log, [4; 16]).await.err().expect("it cannot be followed").to_string();
    assert!(refused.contains("another state"), "{refused}");
}

#[tokio::test]
async fn one_too_large_update_does_not_drag_the_others_along() {
    let ledger = running(Bus::in_memory().log, 1, r#","goal":900,"deadline":null"#).await;
    let mut large = accept(JOB, 1, 700, 0);
    large.metrics = (0..40_000).map(|i| (format!("metric-with-a-long-name-{i}"), 0.0)).collect();
    let others = (0..600).map(|number| accept(JOB, 1, number, 0));
    let accepts: Vec<_> = others.clone().take(300).chain([large]).chain(others.skip(300)).collect();
    let answers = join_all(accepts.into_iter().map(|accept| ledger.accept(accept))).await;
    for (i, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(AcceptOutcome::Accepted(_)) if i != 300 => {}
            Err(LedgerError::Refused(why)) if i == 300 => assert!(why.contains("limit"), "{why}"),
            other => panic!("{i}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn groups_fit_a_log_of_small_records() {
    let inner = Bus::in_memory().log;
    let log = Faulty::scripted(inner.clone(), &[]);
    log.record_bytes_max.store(2_000, Ordering::Relaxed);
    let ledger = running(log, 1, r#","goal":900,"deadline":null"#).await;
    let long = |number| Accept { client: format!("{number:0128}").parse().unwrap(), ..accept(JOB, 1, number, 0) };
    let answers = join_all((0..500).map(|number| ledger.accept(long(number)))).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap().is_accepted()));
    let sizes = inner.read(0, usize::MAX).await.unwrap().into_iter().map(|(_, record)| record.len());
    assert!(sizes.max().unwrap() <= 2_000);
}

#[tokio::test]
async fn watchers_wake_for_their_own_job() {
    let ledger = running(Bus::in_memory().log, 1, r#","goal":2,"deadline":null"#).await;
    let other = JobUid::from_bytes([2; 16]);
    ledger.propose(created(other, spec("b", ""))).await.unwrap();
    let (mut all, mut own, mut others) = (ledger.watch(), ledger.watch_job(JOB), ledger.watch_job(other));
    ledger.accept(accept(JOB, 1, 1, 0)).await.unwrap();
    assert!(all.has_changed().unwrap() && !own.has_changed().unwrap(), "an accept below the goal is no revision");
    ledger.accept(accept(JOB, 1, 2, 0)).await.unwrap();
    assert!(own.has_changed().unwrap() && !others.has_changed().unwrap());
    assert_eq!(*own.borrow_and_update(), ledger.read(|state| state.job(JOB).unwrap().revision));
    ledger.propose(Record::JobActed { uid: other, action: JobAction::Delete, at_ms: 1 }).await.unwrap();
    assert!(others.has_changed().unwrap() && !own.has_changed().unwrap());
    others.mark_unchanged();
    ledger.propose(Record::Accepted(Vec::new())).await.unwrap();
    assert!(!others.has_changed().unwrap(), "it is gone once");
    all.changed().await.unwrap();
}

#[tokio::test]
async fn two_writers_share_a_log() {
    let log = Bus::in_memory().log;
    let one = running(log.clone(), 1, r#","goal":400,"deadline":null"#).await;
    let two = Ledger::open(log.clone(), [2; 16]).await.unwrap();
    // Each client submits the same bytes at both.
    let (at_one, at_two) = tokio::join!(
        join_all((0..300).map(|number| one.accept(accept_in_slab(number, 0, number as u32)))),
        join_all((0..300).map(|number| two.accept(accept_in_slab(number, 0, 1000 + number as u32)))),
    );
    for (a, b) in at_one.into_iter().zip(at_two) {
        match (a.unwrap(), b.unwrap()) {
            (AcceptOutcome::Accepted(a), AcceptOutcome::Duplicate(b))
            | (AcceptOutcome::Duplicate(a), AcceptOutcome::Accepted(b)) => assert_eq!(a, b),
            other => panic!("{other:?}"),
        }
    }
    // Whoever writes next has read all before.
    for ledger in [&one, &two, &one] {
        ledger.propose(Record::Accepted(Vec::new())).await.unwrap();
    }
    assert_eq!(account(&log).await.state, snapshot(&one));
}

/// Opens the embedded bus, waiting for the writer of a dropped ledger to let go of the file.
pub async fn reopened(dir: &std::path::Path) -> Bus {
    for _ in 0..500 {
        match Bus::embedded(dir).await {
            Err(BusError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            bus => return bus.unwrap(),
        }
    }
    panic!("the log's file was never let go");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_log_brings_the_state_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = {
        let ledger = running(reopened(dir.path()).await.log, 1, r#","goal":500,"deadline":null"#).await;
        let accepts = join_all((0..200).map(|number| ledger.accept(accept(JOB, 1, number, 0)))).await;
        assert!(accepts.into_iter().all(|answer| answer.unwrap().is_accepted()));
        snapshot(&ledger)
    };
    for life in 2..5 {
        let ledger = Ledger::open(reopened(dir.path()).await.log, [life; 16]).await.unwrap();
        assert_eq!(snapshot(&ledger), expected);
        let AcceptOutcome::Duplicate(receipt) = ledger.accept(accept(JOB, 1, 7, 0)).await.unwrap() else {
            panic!("it was accepted in the first life")
        };
        assert!(expected.receipt(receipt).is_some());
        assert!(ledger.accept(accept(JOB, 1, 1000 + u64::from(life), 0)).await.unwrap().is_accepted());
        expected = snapshot(&ledger);
    }
}
