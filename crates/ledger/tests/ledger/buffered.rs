//! Asynchronous jobs: updates go into the buffer that is open, by the version they were trained from.

use crate::common::*;
use catchment_ledger::{AcceptOutcome, Outcome, Phase};
use catchment_types::{Accept, ReceiptId, Record};

const BUFFERED: &str =
    r#","mode":{"async":{"buffer":2,"staleness_max":2}},"update":"delta","rounds":6,"deadline":null"#;

fn trained_from(base: u64, round: u64, number: u64, body: u8) -> Accept {
    Accept { base: Some(base), ..accept(JOB, round, number, body) }
}

fn send(fixture: &mut Fixture, base: u64, round: u64, number: u64, body: u8) -> AcceptOutcome {
    match fixture.apply(Record::Accepted(vec![trained_from(base, round, number, body)])) {
        Outcome::Accepts(outcomes) => outcomes[0],
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn sent(fixture: &mut Fixture, base: u64, round: u64, number: u64) -> ReceiptId {
    match send(fixture, base, round, number, 0) {
        AcceptOutcome::Accepted(receipt) => receipt,
        other => panic!("{other:?}"),
    }
}

fn fill(fixture: &mut Fixture) {
    assert_eq!(fixture.fold_pending(), Outcome::Done);
    assert_eq!(fixture.commit(), Outcome::Done);
    let next = fixture.job().round_number() + 1;
    assert_eq!(fixture.open(next), Outcome::Done);
}

#[test]
fn an_update_goes_into_the_buffer_that_is_open() {
    let mut fixture = Fixture::running(BUFFERED);
    let (first, _) = (sent(&mut fixture, 0, 1, 1), sent(&mut fixture, 0, 1, 2));
    assert_eq!(fixture.round().phase, Phase::Aggregating);
    assert_eq!(send(&mut fixture, 0, 1, 3, 0), AcceptOutcome::Moved, "full: it is for the next one");
    fill(&mut fixture);
    assert_eq!(send(&mut fixture, 0, 1, 3, 0), AcceptOutcome::Moved, "it names one that is over");
    let late = sent(&mut fixture, 0, 2, 3);
    let update = fixture.round().update(late).unwrap();
    assert_eq!((update.staleness, fixture.round().model_version), (1, 1));
    assert_eq!(fixture.receipt(first).model_version, Some(1));
    assert_eq!(fixture.receipt(late).round, 2);
}

#[test]
fn a_client_counts_once_for_each_version_it_trained_from() {
    let mut fixture = Fixture::running(BUFFERED);
    let first = sent(&mut fixture, 0, 1, 1);
    assert_eq!(send(&mut fixture, 0, 1, 1, 0), AcceptOutcome::Duplicate(first));
    assert_eq!(send(&mut fixture, 0, 1, 1, 1), AcceptOutcome::Conflict(first));
    sent(&mut fixture, 0, 1, 2);
    fill(&mut fixture);
    assert_eq!(send(&mut fixture, 0, 2, 1, 0), AcceptOutcome::Duplicate(first), "it is in the buffer before");
    let second = sent(&mut fixture, 1, 2, 1);
    assert_ne!(first, second);
    // The same client may be in one buffer twice, from different versions.
    let third = send(&mut fixture, 0, 2, 3, 0);
    assert!(third.is_accepted());
    fill(&mut fixture);
    let (old, new) = (sent(&mut fixture, 1, 3, 3), sent(&mut fixture, 2, 3, 3));
    assert_ne!(old, new);
    assert_eq!(fixture.round().received(), 2);
}

#[test]
fn what_is_too_old_or_of_no_version_is_refused() {
    let mut fixture = Fixture::running(BUFFERED);
    for _ in 0..3 {
        let (version, round) = (fixture.round().model_version, fixture.round().number);
        sent(&mut fixture, version, round, 1);
        sent(&mut fixture, version, round, 2);
        fill(&mut fixture);
    }
    assert_eq!(send(&mut fixture, 0, 4, 9, 0), AcceptOutcome::RoundClosed { next: Some(3) }, "three versions behind");
    assert!(send(&mut fixture, 1, 4, 9, 0).is_accepted(), "two behind");
    assert_eq!(send(&mut fixture, 4, 4, 8, 0), AcceptOutcome::Moved, "a version to come is waited for");
    assert_eq!(fixture.state.judge(JOB, 4, &client(8), None), Some(AcceptOutcome::NotOpenYet { current: 4 }));
}

#[test]
fn what_is_lost_may_be_sent_again() {
    let mut fixture = Fixture::running(BUFFERED);
    let (first, other) = (sent(&mut fixture, 0, 1, 1), sent(&mut fixture, 0, 1, 2));
    assert_eq!(fixture.lose(1, &[first]), Outcome::Done);
    let again = sent(&mut fixture, 0, 1, 1);
    assert!(again != first && again != other);
    assert_eq!(fixture.round().received(), 2);
}

#[test]
fn after_the_last_buffer_nothing_is_waited_for() {
    let mut fixture = Fixture::running(&BUFFERED.replace(r#""rounds":6"#, r#""rounds":1"#));
    let (first, _) = (sent(&mut fixture, 0, 1, 1), sent(&mut fixture, 0, 1, 2));
    assert_eq!(fixture.round().phase, Phase::Aggregating);
    assert_eq!(send(&mut fixture, 0, 1, 3, 0), AcceptOutcome::RoundClosed { next: None });
    assert_eq!(fixture.lose(1, &[first]), Outcome::Done);
    assert!(send(&mut fixture, 0, 1, 3, 0).is_accepted(), "there is a place again");
}
