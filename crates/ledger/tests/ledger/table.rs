//! What an update meets, case by case of the interface's table.

use crate::common::*;
use catchment_ledger::{AcceptOutcome, Outcome, Phase};
use catchment_types::{CloseReason, JobAction, JobState, JobUid, Record};

const GOAL_2: &str = r#","goal":2,"rounds":3,"deadline":null"#;

/// What the state says before the body is read, and with it.
fn judged(fixture: &Fixture, round: u64, number: u64, body: u8) -> [Option<AcceptOutcome>; 2] {
    let (client, digest) = (client(number), digest(body));
    [None, Some(&digest)].map(|digest| fixture.state.judge(JOB, round, &client, digest))
}

/// Both judgements and the log agree on one refusal.
#[track_caller]
fn refused(fixture: &mut Fixture, round: u64, number: u64, expected: AcceptOutcome) {
    assert_eq!(judged(fixture, round, number, 0), [Some(expected); 2]);
    let before = fixture.state.clone();
    assert_eq!(fixture.accept(round, number, 0), expected);
    assert_eq!(fixture.job(), before.job(JOB).unwrap(), "a refused update leaves no trace");
}

#[test]
fn an_update_is_accepted_once() {
    let mut fixture = Fixture::running(GOAL_2);
    assert_eq!(judged(&fixture, 1, 7, 0), [None, None]);
    let receipt = fixture.accepted(1, 7);
    assert_eq!(fixture.accept(1, 7, 0), AcceptOutcome::Duplicate(receipt));
    assert_eq!(fixture.round().received(), 1);
    let shown = fixture.receipt(receipt);
    assert_eq!((shown.round, shown.client, shown.digest), (1, client(7), digest(0)));
}

#[test]
fn other_bytes_of_the_same_client_conflict_and_the_first_stand() {
    let mut fixture = Fixture::running(GOAL_2);
    let receipt = fixture.accepted(1, 7);
    assert_eq!(fixture.accept(1, 7, 1), AcceptOutcome::Conflict(receipt));
    assert_eq!(
        judged(&fixture, 1, 7, 1),
        [Some(AcceptOutcome::Duplicate(receipt)), Some(AcceptOutcome::Conflict(receipt))]
    );
    assert_eq!(fixture.round().update_of(&client(7)).unwrap().accept.digest, digest(0));
}

#[test]
fn within_one_group_the_first_counts() {
    let mut fixture = Fixture::running(GOAL_2);
    let group = vec![
        accept(JOB, 1, 1, 0),
        accept(JOB, 1, 1, 0),
        accept(JOB, 1, 1, 1),
        accept(JOB, 1, 2, 0),
        accept(JOB, 1, 3, 0),
    ];
    let Outcome::Accepts(outcomes) = fixture.apply(Record::Accepted(group)) else { panic!("a group") };
    let AcceptOutcome::Accepted(first) = outcomes[0] else { panic!("{:?}", outcomes[0]) };
    assert_eq!(outcomes[1..3], [AcceptOutcome::Duplicate(first), AcceptOutcome::Conflict(first)]);
    assert!(outcomes[3].is_accepted());
    assert_eq!(outcomes[4], AcceptOutcome::RoundClosed { next: Some(2) }, "the fourth reached the goal");
}

#[test]
fn the_goal_closes_the_round_without_a_record() {
    let mut fixture = Fixture::running(GOAL_2);
    let before = fixture.job().revision;
    fixture.accepted(1, 1);
    assert_eq!((fixture.round().phase, fixture.job().revision), (Phase::Open, before), "pollers sleep on");
    fixture.accepted(1, 2);
    assert_eq!((fixture.round().phase, fixture.job().revision), (Phase::Aggregating, fixture.state.sequence()));
    refused(&mut fixture, 1, 3, AcceptOutcome::RoundClosed { next: Some(2) });
    refused(&mut fixture, 2, 3, AcceptOutcome::NotOpenYet { current: 1 });
}

#[test]
fn a_closed_round_answers_what_it_knows() {
    let mut fixture = Fixture::running(GOAL_2);
    let receipts = [fixture.accepted(1, 1), fixture.accepted(1, 2)];
    let check = |fixture: &mut Fixture, next| {
        assert_eq!(fixture.accept(1, 1, 0), AcceptOutcome::Duplicate(receipts[0]));
        assert_eq!(fixture.accept(1, 2, 9), AcceptOutcome::Conflict(receipts[1]));
        refused(fixture, 1, 3, AcceptOutcome::RoundClosed { next });
    };
    check(&mut fixture, Some(2));
    fixture.fold_pending();
    fixture.commit();
    check(&mut fixture, Some(2));
    fixture.open(2);
    check(&mut fixture, Some(2));
    for number in [1, 2] {
        fixture.accepted(2, number);
    }
    check(&mut fixture, Some(3));
    fixture.fold_pending();
    fixture.commit();
    fixture.run_round(3, [1, 2]);
    assert_eq!(fixture.job().state, JobState::Completed);
    check(&mut fixture, None);
}

#[test]
fn rounds_that_never_were_are_closed_or_not_open_yet() {
    let mut fixture = Fixture::waiting(GOAL_2);
    refused(&mut fixture, 1, 1, AcceptOutcome::WrongState(JobState::WaitingForModel));
    fixture.put_model();
    refused(&mut fixture, 1, 1, AcceptOutcome::NotOpenYet { current: 0 });
    refused(&mut fixture, 0, 1, AcceptOutcome::RoundClosed { next: Some(1) });
    fixture.open(1);
    refused(&mut fixture, 0, 1, AcceptOutcome::RoundClosed { next: Some(1) });
    refused(&mut fixture, u64::MAX, 1, AcceptOutcome::NotOpenYet { current: 1 });
}

#[test]
fn a_paused_job_takes_nothing_new() {
    let mut fixture = Fixture::running(GOAL_2);
    let receipt = fixture.accepted(1, 1);
    assert_eq!(fixture.act(JobAction::Pause), Outcome::Done);
    refused(&mut fixture, 1, 2, AcceptOutcome::WrongState(JobState::Paused));
    assert_eq!(fixture.accept(1, 1, 0), AcceptOutcome::Duplicate(receipt));
    assert_eq!(fixture.act(JobAction::Resume), Outcome::Done);
    fixture.accepted(1, 2);
}

#[test]
fn a_stopped_or_failed_job_has_no_next_round() {
    let failed = Record::JobFailed { uid: JOB, reason: "finalize trapped".to_owned(), at_ms: 1 };
    let stopped = Record::JobActed { uid: JOB, action: JobAction::Stop, at_ms: 1 };
    for end in [failed, stopped] {
        let mut fixture = Fixture::running(GOAL_2);
        let receipt = fixture.accepted(1, 1);
        assert_eq!(fixture.apply(end), Outcome::Done);
        refused(&mut fixture, 1, 2, AcceptOutcome::RoundClosed { next: None });
        refused(&mut fixture, 2, 2, AcceptOutcome::RoundClosed { next: None });
        assert_eq!(fixture.accept(1, 1, 0), AcceptOutcome::Duplicate(receipt));
    }
}

#[test]
fn strangers_and_the_dead_are_unknown() {
    let mut fixture = Fixture::running(GOAL_2);
    let stranger = JobUid::from_bytes([9; 16]);
    assert_eq!(fixture.state.judge(stranger, 1, &client(1), None), Some(AcceptOutcome::UnknownJob));
    let receipt = fixture.accepted(1, 1);
    assert_eq!(fixture.act(JobAction::Delete), Outcome::Done);
    assert_eq!(fixture.accept(1, 1, 0), AcceptOutcome::UnknownJob);
    assert_eq!(fixture.state.receipt(receipt), None);
    // Its namesake is another job: the straggler does not land there.
    let namesake = JobUid::from_bytes([2; 16]);
    assert_eq!(fixture.apply(created(namesake, spec("a", GOAL_2))), Outcome::Done);
    assert_eq!(fixture.accept(1, 1, 0), AcceptOutcome::UnknownJob);
}

#[test]
fn a_round_closed_at_its_deadline_takes_nothing() {
    let mut fixture = Fixture::running(GOAL_2);
    fixture.accepted(1, 1);
    let closed = Record::RoundClosed { uid: JOB, round: 1, reason: CloseReason::Deadline, at_ms: 9 };
    assert_eq!(fixture.apply(closed), Outcome::Done);
    refused(&mut fixture, 1, 2, AcceptOutcome::RoundClosed { next: Some(2) });
}

#[test]
fn a_discarded_update_keeps_its_place() {
    let mut fixture = Fixture::running(GOAL_2);
    let receipt = fixture.accepted(1, 1);
    assert_eq!(fixture.discard(1, receipt), Outcome::Done);
    assert_eq!(fixture.accept(1, 1, 0), AcceptOutcome::Duplicate(receipt));
    assert_eq!(fixture.accept(1, 1, 1), AcceptOutcome::Conflict(receipt));
    let shown = fixture.receipt(receipt);
    assert_eq!((shown.code.as_deref(), shown.reason.as_deref()), (Some("function_trap"), Some("trap")));
}
