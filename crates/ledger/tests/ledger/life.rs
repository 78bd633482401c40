//! The life of jobs, rounds and receipts.

use crate::common::*;
use catchment_ledger::{AcceptOutcome, LISTED_MAX, Outcome, Phase, State};
use catchment_types::{
    CloseReason, DurationText, JobAction, JobState, JobUid, LogId, ReceiptId, ReceiptState, Record, SpecPatch,
};

const GOAL_3: &str = r#","goal":3,"min_updates":2,"rounds":3,"deadline":null"#;

fn closed(round: u64, reason: CloseReason) -> Record {
    Record::RoundClosed { uid: JOB, round, reason, at_ms: 50 }
}

fn states(fixture: &Fixture, receipts: &[ReceiptId]) -> Vec<ReceiptState> {
    receipts.iter().map(|receipt| fixture.receipt(*receipt).state).collect()
}

#[test]
fn a_round_goes_from_open_to_committed() {
    let mut fixture = Fixture::running(GOAL_3);
    let receipts = [1, 2, 3].map(|number| fixture.accepted(1, number));
    assert!(!fixture.round().is_ready());
    assert_eq!(fixture.fold(1, &receipts[..2]), Outcome::Done);
    assert!(!fixture.round().is_ready());
    assert_eq!(fixture.fold(1, &receipts), Outcome::Done, "one of the three is new");
    assert!(fixture.round().is_ready());
    assert_eq!(fixture.commit(), Outcome::Done);
    assert_eq!(fixture.round().phase, Phase::Committed(1));
    assert_eq!(states(&fixture, &receipts), [ReceiptState::Committed; 3]);
    assert_eq!(fixture.receipt(receipts[0]).model_version, Some(1));
    assert_eq!(fixture.job().newest_model().unwrap().commit.contributors, 3);
}

#[test]
fn folding_twice_is_folding_once() {
    let mut fixture = Fixture::running(GOAL_3);
    let receipts = [1, 2].map(|number| fixture.accepted(1, number));
    assert_eq!(fixture.fold(1, &receipts), Outcome::Done);
    let before = fixture.job().clone();
    assert!(is_ignored(&fixture.fold(1, &receipts)));
    assert!(is_ignored(&fixture.fold(1, &[])));
    assert!(is_ignored(&fixture.fold(2, &receipts)), "another round's number");
    assert_eq!(*fixture.job(), before);
}

#[test]
fn a_commit_of_something_else_is_ignored() {
    let mut fixture = Fixture::running(GOAL_3);
    for number in [1, 2, 3] {
        fixture.accepted(1, number);
    }
    let early = commit_of(fixture.job(), fixture.round());
    assert!(is_ignored(&fixture.commit_as(early)), "not all is folded");
    fixture.fold_pending();
    let right = commit_of(fixture.job(), fixture.round());
    for wrong in [
        catchment_types::ModelCommit { version: 0, ..right.clone() },
        catchment_types::ModelCommit { version: 2, ..right.clone() },
        catchment_types::ModelCommit { contribution: None, ..right.clone() },
        catchment_types::ModelCommit { contribution: Some(digest(3)), ..right.clone() },
    ] {
        assert!(is_ignored(&fixture.commit_as(wrong)));
    }
    assert_eq!(fixture.commit_as(right.clone()), Outcome::Done);
    assert!(is_ignored(&fixture.commit_as(right)), "a second time");
    assert_eq!(fixture.job().models.next(), 2);
}

/// A model made from the slabs needs no fold, only a closed round.
#[test]
fn a_gathered_commit_takes_accepted_updates() {
    let mut fixture = Fixture::running(GOAL_3);
    let mut receipts: Vec<_> = [1, 2].map(|number| fixture.accepted(1, number)).to_vec();
    let gathered = |fixture: &Fixture| {
        let commit = commit_of(fixture.job(), fixture.round());
        catchment_types::ModelCommit { gathered: true, ..commit }
    };
    let early = gathered(&fixture);
    assert!(is_ignored(&fixture.commit_as(early)), "the round is open");
    receipts.push(fixture.accepted(1, 3));
    let right = gathered(&fixture);
    let wrong = catchment_types::ModelCommit { contribution: Some(digest(3)), ..right.clone() };
    assert!(is_ignored(&fixture.commit_as(wrong)));
    assert_eq!(fixture.commit_as(right), Outcome::Done);
    assert_eq!(states(&fixture, &receipts), [ReceiptState::Committed; 3]);
}

#[test]
fn a_commit_made_before_a_loss_is_ignored_after_it() {
    let mut fixture = Fixture::running(GOAL_3);
    let receipts = [1, 2, 3].map(|number| fixture.accepted(1, number));
    fixture.fold_pending();
    let model = commit_of(fixture.job(), fixture.round());
    fixture.lose(1, &receipts[..1]);
    assert!(is_ignored(&fixture.commit_as(model.clone())), "the round is open again");
    fixture.apply(closed(1, CloseReason::Deadline));
    assert!(fixture.round().is_ready());
    assert!(is_ignored(&fixture.commit_as(model)), "of another contribution set");
    assert_eq!(fixture.commit(), Outcome::Done);
}

#[test]
fn a_loss_reopens_the_round_for_a_new_attempt() {
    let mut fixture = Fixture::running(GOAL_3);
    let receipts = [1, 2, 3].map(|number| fixture.accepted(1, number));
    fixture.fold(1, &receipts[..1]);
    assert_eq!(fixture.lose(1, &receipts[..2]), Outcome::Done);
    assert_eq!(fixture.job().revision, fixture.state.sequence());
    let round = fixture.round();
    assert_eq!((round.phase, round.received(), round.folded()), (Phase::Open, 1, 0));
    assert!(is_ignored(&fixture.lose(1, &receipts[..2])), "lost twice is lost once");
    assert!(is_ignored(&fixture.fold(1, &receipts[..1])), "what is lost is not folded");
    assert_eq!(fixture.receipt(receipts[0]).state, ReceiptState::Lost);
    assert_eq!(fixture.receipt(receipts[0]).code.as_deref(), Some("not_ready"));
    // The same bytes and other bytes, both new attempts; a third client stays out until there is room.
    let again = fixture.accepted(1, 1);
    assert_ne!(again, receipts[0]);
    assert_eq!(fixture.accept(1, 1, 0), AcceptOutcome::Duplicate(again));
    let AcceptOutcome::Accepted(other) = fixture.accept(1, 2, 9) else { panic!("the address is open again") };
    assert_eq!(fixture.round().phase, Phase::Aggregating);
    fixture.fold_pending();
    assert_eq!(fixture.commit(), Outcome::Done);
    assert_eq!(states(&fixture, &[receipts[2], again, other]), [ReceiptState::Committed; 3]);
    assert_eq!(states(&fixture, &receipts[..2]), [ReceiptState::Lost; 2]);
    assert!(is_ignored(&fixture.lose(1, &[again])), "nothing is lost once it is in a model");
}

#[test]
fn a_discard_after_the_close_leaves_the_rest() {
    let mut fixture = Fixture::running(GOAL_3);
    let receipts = [1, 2, 3].map(|number| fixture.accepted(1, number));
    fixture.fold(1, &receipts[1..]);
    assert_eq!(fixture.discard(1, receipts[0]), Outcome::Done);
    assert!(is_ignored(&fixture.discard(1, receipts[0])));
    assert_eq!((fixture.round().phase, fixture.round().received()), (Phase::Aggregating, 2));
    assert!(fixture.round().is_ready(), "two of three are enough");
    assert_eq!(fixture.commit(), Outcome::Done);
    assert_eq!(fixture.job().newest_model().unwrap().commit.contributors, 2);
    assert_eq!(fixture.receipt(receipts[0]).state, ReceiptState::Discarded);
    assert_eq!(fixture.receipt(receipts[0]).model_version, None);
}

#[test]
fn what_is_folded_cannot_be_discarded() {
    let mut fixture = Fixture::running(GOAL_3);
    let receipts = [1, 2, 3].map(|number| fixture.accepted(1, number));
    fixture.fold_pending();
    assert!(is_ignored(&fixture.discard(1, receipts[0])), "its sum has it for good");
    assert_eq!(fixture.commit(), Outcome::Done);
    assert_eq!(states(&fixture, &receipts), [ReceiptState::Committed; 3]);
}

#[test]
fn too_many_discards_make_the_round_wait_again() {
    let mut fixture = Fixture::running(GOAL_3);
    let receipts = [1, 2, 3].map(|number| fixture.accepted(1, number));
    fixture.discard(1, receipts[0]);
    fixture.discard(1, receipts[1]);
    fixture.fold_pending();
    assert!(!fixture.round().is_ready(), "one is too few");
    let extended = Record::RoundExtended { uid: JOB, round: 1, deadline_ms: Some(99) };
    assert_eq!(fixture.apply(extended), Outcome::Done);
    assert_eq!((fixture.round().phase, fixture.round().deadline_ms), (Phase::Open, Some(99)));
    fixture.accepted(1, 4);
    fixture.fold_pending();
    fixture.apply(closed(1, CloseReason::Deadline));
    assert_eq!(fixture.commit(), Outcome::Done);
}

#[test]
fn a_skipped_round_discards_what_it_has() {
    let mut fixture = Fixture::running(GOAL_3);
    let receipts = [1, 2].map(|number| fixture.accepted(1, number));
    fixture.fold(1, &receipts[..1]);
    assert_eq!(fixture.apply(closed(1, CloseReason::Shortfall)), Outcome::Done);
    assert_eq!((fixture.round().phase, fixture.round().received()), (Phase::Skipped, 0));
    assert_eq!(states(&fixture, &receipts), [ReceiptState::Discarded; 2]);
    assert_eq!(fixture.receipt(receipts[0]).code.as_deref(), Some("round_closed"));
    assert!(is_ignored(&fixture.commit()));
    fixture.run_round(2, [1, 2, 3]);
    assert_eq!(fixture.job().newest_model().unwrap().commit.version, 1, "a skipped round takes no version");
}

#[test]
fn the_last_round_completes_the_job_even_skipped_or_paused() {
    let one = r#","goal":1,"rounds":1,"deadline":null"#;
    let mut fixture = Fixture::running(one);
    fixture.apply(closed(1, CloseReason::Shortfall));
    assert_eq!(fixture.job().state, JobState::Completed);
    let mut fixture = Fixture::running(one);
    fixture.accepted(1, 1);
    fixture.act(JobAction::Pause);
    fixture.fold_pending();
    assert_eq!(fixture.commit(), Outcome::Done, "what is closed is finished in a pause");
    assert_eq!(fixture.job().state, JobState::Completed);
}

#[test]
fn rounds_open_one_after_another() {
    let mut fixture = Fixture::waiting(GOAL_3);
    assert!(is_ignored(&fixture.open(1)), "there is no model");
    fixture.put_model();
    assert!(is_ignored(&fixture.open(0)) && is_ignored(&fixture.open(2)));
    assert_eq!(fixture.open(1), Outcome::Done);
    assert!(is_ignored(&fixture.open(1)) && is_ignored(&fixture.open(2)), "one is open");
    fixture.apply(closed(1, CloseReason::Shortfall));
    fixture.act(JobAction::Pause);
    assert!(is_ignored(&fixture.open(2)), "the job is paused");
    fixture.act(JobAction::Resume);
    for round in [2, 3] {
        fixture.run_round(round, [1, 2, 3]);
    }
    assert!(is_ignored(&fixture.open(4)), "there are three");
}

#[test]
fn the_initial_model_is_put_once_and_is_version_0() {
    let mut fixture = Fixture::waiting(GOAL_3);
    let later = catchment_types::ModelCommit { version: 1, ..initial_model() };
    assert!(is_ignored(&fixture.apply(Record::ModelPut {
        uid: JOB,
        model: later,
        needs: Default::default(),
        at_ms: 1
    })));
    assert_eq!(fixture.put_model(), Outcome::Done);
    assert!(is_ignored(&fixture.put_model()));
}

#[test]
fn names_and_identities_are_taken_once() {
    let (other, third) = (JobUid::from_bytes([2; 16]), JobUid::from_bytes([3; 16]));
    let mut fixture = Fixture::running(GOAL_3);
    assert!(is_ignored(&fixture.apply(created(other, spec("a", "")))), "the name is taken");
    assert!(is_ignored(&fixture.apply(created(JOB, spec("b", "")))), "the identity is taken");
    assert!(is_ignored(&fixture.apply(created(third, "{}".to_owned()))), "no spec");
    assert_eq!(fixture.apply(created(other, spec("a", r#","namespace":"n""#))), Outcome::Done);
    assert_eq!(fixture.state.job_named(&name("n"), &name("a")).unwrap().uid, other);
    assert_eq!(fixture.state.jobs_by_name().map(|job| job.uid).collect::<Vec<_>>(), [JOB, other]);
}

#[test]
fn deleting_forgets_everything() {
    let mut fixture = Fixture::running(GOAL_3);
    let old = [1, 2, 3].map(|number| fixture.accepted(1, number));
    fixture.fold_pending();
    fixture.commit();
    fixture.open(2);
    let new = fixture.accepted(2, 1);
    assert_eq!(fixture.act(JobAction::Delete), Outcome::Done);
    assert!(old.iter().chain([&new]).all(|receipt| fixture.state.receipt(*receipt).is_none()));
    assert_eq!(fixture.state.jobs().count(), 0);
    assert!(is_ignored(&fixture.act(JobAction::Delete)) && is_ignored(&fixture.fold(2, &[new])));
}

#[test]
fn retention_drops_receipts_with_their_rounds() {
    let mut fixture = Fixture::waiting(r#","goal":1,"rounds":9,"deadline":null,"receipts":"100ms""#);
    fixture.put_model();
    let mut receipts = Vec::new();
    for (round, now_ms) in [(1, 0), (2, 60), (3, 120), (4, 180)] {
        fixture.now_ms = now_ms;
        receipts.extend(fixture.run_round(round, [round]));
    }
    // When round 4 opened at 180, round 1 had ended 180 ms ago, round 2 120 ms, round 3 60 ms.
    let kept: Vec<_> = receipts.iter().map(|receipt| fixture.state.receipt(*receipt).is_some()).collect();
    assert_eq!(kept, [false, false, true, true]);
    let rounds: Vec<_> = (0..=5).map(|round| fixture.job().round_numbered(round).map(|r| r.number)).collect();
    assert_eq!(rounds, [None, None, None, Some(3), Some(4), None]);
    assert_eq!(fixture.accept(1, 1, 0), AcceptOutcome::RoundClosed { next: Some(5) }, "forgotten, but closed");
    assert_eq!(fixture.accept(3, 3, 0), AcceptOutcome::Duplicate(receipts[2]));
}

#[test]
fn the_newest_ended_round_outlives_the_cap_on_receipts() {
    let mut fixture = Fixture::waiting(r#","goal":200001,"rounds":9,"deadline":null"#);
    fixture.put_model();
    let mut last = Vec::new();
    // Not through the fixture, which would recount everything after each record.
    let mut apply = |record| fixture.state.apply(fixture.state.sequence() + 1, &record);
    let open = |round| Record::RoundOpened { uid: JOB, round, deadline_ms: None, places: vec![], at_ms: 0 };
    for (round, clients) in [(1, 1), (2, 200_001)] {
        apply(open(round));
        let group = (0..clients).map(|number| accept(JOB, round, number, 0)).collect();
        let Outcome::Accepts(outcomes) = apply(Record::Accepted(group)) else { panic!("a group") };
        let Some(AcceptOutcome::Accepted(receipt)) = outcomes.last() else { panic!("accepted") };
        last.push(*receipt);
        apply(closed(round, CloseReason::Shortfall));
    }
    apply(open(3));
    fixture.state.audit().unwrap();
    let kept: Vec<_> = last.iter().map(|receipt| fixture.state.receipt(*receipt).is_some()).collect();
    assert_eq!(kept, [false, true]);
}

#[test]
fn a_pause_does_not_use_up_the_deadline() {
    let mut fixture = Fixture::waiting(GOAL_3);
    fixture.put_model();
    fixture.open_until(1, Some(1_000));
    fixture.now_ms = 600;
    fixture.act(JobAction::Pause);
    assert!(is_ignored(&fixture.act(JobAction::Pause)));
    fixture.now_ms = 5_600;
    fixture.act(JobAction::Resume);
    assert_eq!(fixture.round().deadline_ms, Some(6_000));
    assert!(is_ignored(&fixture.act(JobAction::Resume)));
    assert_eq!(fixture.round().deadline_ms, Some(6_000));
}

#[test]
fn actions_hold_to_the_job_state() {
    let mut fixture = Fixture::waiting(GOAL_3);
    assert!(is_ignored(&fixture.act(JobAction::Pause)) && is_ignored(&fixture.act(JobAction::Resume)));
    assert_eq!(fixture.act(JobAction::Stop), Outcome::Done);
    assert_eq!(fixture.job().state, JobState::Stopped);
    for action in [JobAction::Pause, JobAction::Resume, JobAction::Stop] {
        assert!(is_ignored(&fixture.act(action)));
    }
    assert!(is_ignored(&fixture.put_model()) && is_ignored(&fixture.patch(SpecPatch::default())));
    let failed = Record::JobFailed { uid: JOB, reason: "late".to_owned(), at_ms: 1 };
    assert!(is_ignored(&fixture.apply(failed)));
}

#[test]
fn stopping_discards_the_round_in_progress() {
    let mut fixture = Fixture::running(GOAL_3);
    let receipts = [1, 2, 3].map(|number| fixture.accepted(1, number));
    fixture.fold(1, &receipts[..1]);
    let model = commit_of(fixture.job(), fixture.round());
    fixture.act(JobAction::Stop);
    assert_eq!(states(&fixture, &receipts), [ReceiptState::Discarded; 3]);
    assert!(is_ignored(&fixture.commit_as(model)), "too late");
    assert_eq!(fixture.job().models.next(), 1);
}

#[test]
fn a_patch_holds_from_the_next_round_on() {
    let mut fixture = Fixture::running(GOAL_3);
    let goal = SpecPatch { goal: Some(1), deadline: Some(DurationText::from_ms(0)), ..SpecPatch::default() };
    assert_eq!(fixture.patch(goal), Outcome::Done);
    assert_eq!((fixture.job().spec.goal, fixture.job().spec.min_updates, fixture.round().goal), (1, 1, 3));
    assert_eq!(fixture.job().spec.deadline.unwrap().ms(), 100, "the spec's own lower bound");
    for number in [1, 2, 3] {
        fixture.accepted(1, number);
    }
    fixture.fold_pending();
    fixture.commit();
    fixture.run_round(2, [1]);
    assert_eq!(fixture.patch(SpecPatch { rounds: Some(2), ..SpecPatch::default() }), Outcome::Done);
    assert_eq!(fixture.job().state, JobState::Completed, "two rounds are done");
}

#[test]
fn fewer_rounds_do_not_cut_the_one_in_progress() {
    let mut fixture = Fixture::running(GOAL_3);
    fixture.patch(SpecPatch { rounds: Some(0), ..SpecPatch::default() });
    assert_eq!(fixture.job().state, JobState::Running);
    for number in [1, 2, 3] {
        fixture.accepted(1, number);
    }
    fixture.fold_pending();
    fixture.commit();
    assert_eq!(fixture.job().state, JobState::Completed);
}

#[test]
fn updates_wait_in_the_order_they_came_and_spread_over_the_leaves() {
    let mut fixture = Fixture::running(r#","goal":100,"deadline":null,"topology":{"tree":{"leaves":3,"middles":0}}"#);
    let receipts: Vec<_> = (0..10).map(|number| fixture.accepted(1, number)).collect();
    fixture.fold(1, &receipts[2..5]);
    let waiting: Vec<_> = fixture.round().pending().map(|u| (u.receipt, u.accept.slab.index(), u.leaf)).collect();
    let expected: Vec<_> = [0, 1, 5, 6, 7, 8, 9].map(|i| (receipts[i as usize], i, i % 3)).into();
    assert_eq!(waiting, expected);
}

#[test]
fn metrics_are_weighted_by_samples() {
    let mut fixture = Fixture::running(GOAL_3);
    for number in [0, 1, 2] {
        fixture.accepted(1, number);
    }
    // Samples 10, 20, 30; losses 0, 1, 2.
    assert!((fixture.round().metrics()["loss"] - 80.0 / 60.0).abs() < 1e-12);
}

#[test]
fn checkpoints_keep_the_first_and_the_newest() {
    let mut fixture = Fixture::waiting(r#","goal":1,"rounds":9,"deadline":null,"checkpoints":{"keep_last":2}"#);
    fixture.put_model();
    for round in 1..=4 {
        fixture.run_round(round, [1]);
    }
    let kept: Vec<_> = (0..=4).map(|version| fixture.job().keeps(version)).collect();
    assert_eq!(kept, [true, false, false, true, true]);
}

/// A job that makes models for years: what is known of old ones goes, and everything that is still asked for stays.
#[test]
fn old_versions_are_forgotten_from_level_2_on() {
    let more = LISTED_MAX + 20;
    for level in [1, 2] {
        let mut fixture = Fixture::waiting(r#","goal":1,"rounds":20000,"deadline":null,"receipts":"0s""#);
        if level > 1 {
            fixture.apply(Record::LevelRaised { level, log: LogId::from_bytes([1; 16]), at_ms: 0 });
        }
        fixture.put_model();
        for round in 1..=more {
            // Without an audit of thousands of models after each record.
            let mut apply = |record| {
                let outcome = fixture.state.apply(fixture.state.sequence() + 1, &record);
                assert!(!is_ignored(&outcome), "{record:?}");
                outcome
            };
            apply(Record::RoundOpened { uid: JOB, round, deadline_ms: None, places: Vec::new(), at_ms: round });
            let Outcome::Accepts(each) = apply(Record::Accepted(vec![accept(JOB, round, 1, 0)])) else { panic!() };
            let AcceptOutcome::Accepted(receipt) = each[0] else { panic!("{each:?}") };
            apply(Record::Folded { uid: JOB, round, receipts: vec![receipt] });
            let model = commit_of(fixture.job(), fixture.round());
            let committed = Record::Committed { uid: JOB, round, model, at_ms: round };
            assert_eq!(fixture.state.apply(fixture.state.sequence() + 1, &committed), Outcome::Done);
        }
        fixture.state.audit().unwrap();
        let job = fixture.job();
        let known: Vec<u64> = job.models.iter().map(|model| model.commit.version).collect();
        let oldest = if level == 1 { 1 } else { more + 1 - LISTED_MAX };
        assert!(known.iter().copied().eq([0].into_iter().chain(oldest..=more)), "{:?}", &known[..30]);
        assert_eq!((job.models.next(), job.newest_model().unwrap().commit.version), (more + 1, more));
        assert_eq!((job.model(0).is_some(), job.model(3).is_some()), (true, level == 1));
        assert!(State::from_snapshot(&fixture.state.to_snapshot().unwrap()).unwrap() == fixture.state);
    }
}

#[test]
#[should_panic(expected = "the log has no gaps")]
fn a_gap_in_the_log_is_never_applied() {
    let mut fixture = Fixture::running(GOAL_3);
    let next = fixture.state.sequence() + 2;
    fixture.state.apply(next, &Record::Accepted(Vec::new()));
}
