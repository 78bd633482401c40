//! Rounds of whose updates no model can be made.

use crate::common::*;
use catchment_ledger::{AcceptOutcome, Outcome, Phase, State};
use catchment_types::{Accept, CloseReason, JobAction, JobState, ReceiptState, Record, SpecPatch};

const TWO: &str = r#","goal":2,"rounds":2,"deadline":null"#;

#[test]
fn every_receipt_says_why_and_the_round_is_asked_again() {
    let mut fixture = Fixture::running(TWO);
    let receipts = [fixture.accepted(1, 1), fixture.accepted(1, 2)];
    fixture.fold_pending();
    assert_eq!(fixture.give_up(), Outcome::Done);
    assert_eq!((fixture.round().phase, fixture.round().received()), (Phase::Skipped, 0));
    for receipt in receipts {
        let receipt = fixture.receipt(receipt);
        assert_eq!((receipt.state, receipt.code.as_deref()), (ReceiptState::Discarded, Some("round_given_up")));
        let reason = receipt.reason.unwrap();
        for said in ["round 1 was given up", "element 3 of tensor `w`", "model version 0 stands", "as round 2"] {
            assert!(reason.contains(said), "{said}: {reason}");
        }
    }
    let view = fixture.job().view();
    assert_eq!((view.state, view.spec.rounds, view.model_version), (JobState::Running, 3, Some(0)));
    assert!(view.reason.as_deref().is_some_and(|reason| reason.contains("round 1 was given up")), "{view:?}");
    assert_eq!(fixture.job().next_round(), Some(2));
    // The number is not used again: what stood there stands, and no other update takes its place.
    assert_eq!(fixture.accept(1, 1, 0), AcceptOutcome::Duplicate(receipts[0]));
    assert_eq!(fixture.accept(1, 3, 0), AcceptOutcome::RoundClosed { next: Some(2) });
    assert!(is_ignored(&fixture.open(1)));
    assert_eq!(fixture.open(2), Outcome::Done);
    assert!(fixture.job().round_view().reason.is_some(), "the round that is open is the last one again");
    for number in [1, 2] {
        fixture.accepted(2, number);
    }
    fixture.fold_pending();
    assert_eq!(fixture.commit(), Outcome::Done);
    assert_eq!((fixture.job().view().reason, fixture.job().round_view().reason), (None, None));
    fixture.run_round(3, [1, 2]);
    assert_eq!(
        (fixture.job().state, fixture.job().models.next()),
        (JobState::Completed, 3),
        "as many as there were to be"
    );
}

/// Whoever decided it may have looked at another set of updates.
#[test]
fn only_what_was_looked_at_is_given_up() {
    let mut fixture = Fixture::running(TWO);
    let first = fixture.accepted(1, 1);
    let early = fixture.round().contribution();
    assert!(is_ignored(&fixture.give_up_as(1, early)), "it takes updates still");
    fixture.accepted(1, 2);
    assert!(is_ignored(&fixture.give_up_as(1, early)));
    let both = fixture.round().contribution();
    fixture.lose(1, &[first]);
    assert!(is_ignored(&fixture.give_up_as(1, both)), "one was lost since");
    fixture.accepted(1, 3);
    for (round, contribution) in [(1, both), (2, fixture.round().contribution()), (0, fixture.round().contribution())] {
        assert!(is_ignored(&fixture.give_up_as(round, contribution)));
    }
    assert_eq!(fixture.give_up(), Outcome::Done);
    assert!(is_ignored(&fixture.give_up()), "once");
    fixture.act(JobAction::Stop);
    assert!(is_ignored(&fixture.give_up()));
}

/// Rounds that were not folded, as those of functions which take all updates at once.
#[test]
fn what_lies_in_slabs_is_given_up_as_well() {
    let mut fixture = Fixture::running(TWO);
    let receipt = fixture.accepted(1, 1);
    let trapped = fixture.accepted(1, 2);
    fixture.discard(1, trapped);
    assert_eq!((fixture.round().is_complete(), fixture.round().is_ready()), (true, false));
    assert_eq!(fixture.give_up(), Outcome::Done);
    assert_eq!(fixture.receipt(receipt).code.as_deref(), Some("round_given_up"));
    assert_eq!(fixture.receipt(trapped).code.as_deref(), Some("function_trap"), "that has its own reason");
    assert!(fixture.round().given_up().is_some());
}

#[test]
fn three_in_a_row_pause_the_job_and_resuming_counts_anew() {
    let mut fixture = Fixture::running(TWO);
    for number in [1, 2] {
        fixture.accepted(1, number);
    }
    fixture.fold_pending();
    fixture.give_up();
    fixture.spoil_round(2, [1, 2]);
    assert_eq!(fixture.job().state, JobState::Running);
    fixture.now_ms = 50;
    fixture.spoil_round(3, [1, 2]);
    let view = fixture.job().view();
    let reason = view.reason.unwrap();
    assert_eq!(view.state, JobState::Paused);
    for said in ["3 rounds in a row", "round 3", "element 3 of tensor `w`", "resume the job"] {
        assert!(reason.contains(said), "{said}: {reason}");
    }
    assert!(is_ignored(&fixture.open(4)), "it waits for its owner");
    assert_eq!(fixture.act(JobAction::Resume), Outcome::Done);
    assert_eq!((fixture.job().state, &fixture.job().reason), (JobState::Running, &None));
    for round in [4, 5] {
        fixture.spoil_round(round, [1, 2]);
        assert_eq!(fixture.job().state, JobState::Running, "round {round}");
    }
    let restored = State::from_snapshot(&fixture.state.to_snapshot().unwrap()).unwrap();
    assert_eq!(restored, fixture.state);
    fixture.state = restored;
    fixture.spoil_round(6, [1, 2]);
    assert_eq!(fixture.job().state, JobState::Paused);
    fixture.act(JobAction::Resume);
    fixture.run_round(7, [1, 2]);
    for round in [8, 9] {
        fixture.spoil_round(round, [1, 2]);
    }
    assert_eq!(fixture.job().state, JobState::Running, "a model came between");
    fixture.run_round(10, [1, 2]);
    assert_eq!(fixture.job().state, JobState::Completed);
    assert_eq!(fixture.job().models.next(), 3);
}

/// A round that had too few updates is no sign of a client that spoils them; one whose receipts are kept no longer may be.
#[test]
fn only_rounds_given_up_count_as_far_as_is_known() {
    for (receipts, state) in [("24h", JobState::Running), ("0ms", JobState::Paused)] {
        let mut fixture = Fixture::running(&format!(
            r#","goal":2,"min_updates":2,"rounds":9,"deadline":null,"on_shortfall":"skip","receipts":"{receipts}""#
        ));
        for round in [1, 2] {
            fixture.accepted(round, 1);
            let reason = CloseReason::Shortfall;
            fixture.apply(Record::RoundClosed { uid: JOB, round, reason, at_ms: fixture.now_ms });
            fixture.now_ms += 10;
            fixture.open(round + 1);
        }
        for number in [1, 2] {
            fixture.accepted(3, number);
        }
        fixture.fold_pending();
        assert_eq!(fixture.give_up(), Outcome::Done);
        assert_eq!(fixture.job().state, state, "{receipts}");
    }
}

#[test]
fn what_an_owner_asked_for_meanwhile_holds() {
    // Paused: it stays so, and says why it would have paused.
    let mut fixture = Fixture::running(TWO);
    for round in [1, 2, 3] {
        fixture.open(round);
        fixture.accepted(round, 1);
        fixture.accepted(round, 2);
        fixture.fold_pending();
        if round == 3 {
            fixture.act(JobAction::Pause);
        }
        assert_eq!(fixture.give_up(), Outcome::Done);
    }
    assert_eq!(fixture.job().state, JobState::Paused);
    assert!(fixture.job().reason.is_some());
    // Stopped: that is why it ended, and nothing else.
    assert_eq!(fixture.act(JobAction::Stop), Outcome::Done);
    assert_eq!((fixture.job().state, &fixture.job().reason), (JobState::Stopped, &None));

    // Cut short: the round that is asked again is its last.
    let mut fixture = Fixture::running(r#","goal":2,"rounds":5,"deadline":null"#);
    fixture.accepted(1, 1);
    fixture.accepted(1, 2);
    fixture.patch(SpecPatch { rounds: Some(1), ..SpecPatch::default() });
    fixture.fold_pending();
    fixture.give_up();
    assert_eq!(fixture.job().state, JobState::Running);
    fixture.run_round(2, [1, 2]);
    assert_eq!(fixture.job().state, JobState::Completed);
}

/// The next buffer trains from the same version: its clients could otherwise never send again.
#[test]
fn clients_of_a_buffer_given_up_may_send_from_its_version_again() {
    let mode = r#","mode":{"async":{"buffer":2,"staleness_max":2}},"update":"delta","rounds":6,"deadline":null"#;
    let mut fixture = Fixture::running(mode);
    let trained = |round, number, body| Accept { base: Some(0), ..accept(JOB, round, number, body) };
    let send = |fixture: &mut Fixture, round, number, body| match fixture
        .apply(Record::Accepted(vec![trained(round, number, body)]))
    {
        Outcome::Accepts(outcomes) => outcomes[0],
        other => panic!("{other:?}"),
    };
    let AcceptOutcome::Accepted(first) = send(&mut fixture, 1, 1, 0) else { panic!("it is open") };
    assert!(send(&mut fixture, 1, 2, 0).is_accepted());
    fixture.fold_pending();
    assert_eq!(fixture.give_up(), Outcome::Done);
    assert_eq!(fixture.receipt(first).code.as_deref(), Some("round_given_up"));
    assert_eq!(fixture.open(2), Outcome::Done);
    assert_eq!(fixture.round().model_version, 0);
    assert!(!fixture.job().has_trained(fixture.round(), &client(1)));
    let AcceptOutcome::Accepted(again) = send(&mut fixture, 2, 1, 0) else { panic!("it may send again") };
    assert_ne!(again, first);
    assert!(send(&mut fixture, 2, 2, 1).is_accepted(), "and something else, too");
    fixture.fold_pending();
    assert_eq!(fixture.commit(), Outcome::Done);
    assert_eq!(fixture.receipt(again).model_version, Some(1));
}
