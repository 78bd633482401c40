//! What the log stores, and what a ledger makes of what it finds there.

use crate::common::*;
use crate::driver::running;
use crate::faulty::framed;
use bytes::Bytes;
use catchment_bus::{Bus, EventLog, LogError};
use catchment_ledger::{AcceptOutcome, Envelope, Guard, Ledger, LedgerError, Outcome, State, Stocked};
use catchment_types::{
    CloseReason, Code, JobAction, JobState, JobUid, LEVEL_MAX, LogId, NodeId, ReceiptId, ReceiptState, Record,
    SpecPatch, StateHash,
};
use std::sync::Arc;

const LOG: LogId = LogId::from_bytes([8; 16]);

fn raised(level: u32) -> Record {
    Record::LevelRaised { level, log: LOG, at_ms: 1 }
}

/// One of each, in the order of their numbers.
fn records() -> Vec<Record> {
    let (uid, round, at_ms, receipts, model) = (JOB, 1, 5, Vec::new(), initial_model());
    let reason = || "why".to_owned();
    let receipt = ReceiptId::from_bytes([3; 16]);
    vec![
        created(uid, spec("a", "")),
        Record::JobPatched { uid, patch: SpecPatch::default(), at_ms },
        Record::JobActed { uid, action: JobAction::Pause, at_ms },
        Record::JobFailed { uid, reason: reason(), at_ms },
        Record::ModelPut { uid, model: model.clone(), needs: Default::default(), at_ms },
        Record::RoundOpened { uid, round, deadline_ms: None, places: Vec::new(), at_ms },
        Record::RoundExtended { uid, round, deadline_ms: None },
        Record::RoundClosed { uid, round, reason: CloseReason::Deadline, at_ms },
        Record::Accepted(Vec::new()),
        Record::Folded { uid, round, receipts },
        Record::Discarded { uid, round, receipt, code: Code::FunctionTrap, reason: reason() },
        Record::Lost { uid, round, receipts: Vec::new(), at_ms },
        Record::Committed { uid, round, model, at_ms },
        Record::RoundPlaced { uid, round, places: Vec::new() },
        Record::NodeLost { node: NodeId(1), incarnation: 0, at_ms },
        Record::Evaluated { uid, version: 0, results: Vec::new() },
        Record::JobCompleted { uid, reason: reason(), at_ms },
        Record::RoundGivenUp { uid, round, contribution: digest(1), reason: reason(), at_ms },
        raised(2),
        Record::NodeStarted { node: NodeId(1), at_ms },
        Record::SumLost { uid, round, node: NodeId(1), leaf: 0, at_ms },
        Record::StateHashed { sequence: 4096, hash: StateHash::from_bytes([5; 16]) },
    ]
}

fn envelope(record: Record) -> Envelope {
    Envelope { writer: [7; 16], number: 3, guard: None, seen: None, record }
}

fn read(bytes: &[u8], level: u32) -> Result<Stocked, LogError> {
    Envelope::read(9, bytes, level)
}

/// In the log a variant's number stands for it: what was there before keeps its own, what is new comes after.
#[test]
fn records_have_the_numbers_that_they_had() {
    let number = |bytes: &[u8], at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    for (record, expected) in records().into_iter().zip(0..) {
        let (level, envelope) = (record.level(), envelope(record));
        if level == 1 {
            // Version, writer, number.
            assert_eq!(number(&envelope.to_bytes(1, 1 << 20).unwrap(), 25), expected, "{envelope:?}");
        }
        // Mark and sum before, the tags of what is left out behind.
        assert_eq!(number(&envelope.to_bytes(2, 1 << 20).unwrap(), 47), expected, "{envelope:?}");
    }
}

#[test]
fn a_record_is_read_at_every_level_and_written_at_its_own() {
    for record in records() {
        let needed = record.level();
        let guarded =
            Envelope { guard: Some(Guard { uid: JOB, revision: 4, received: None }), ..envelope(record.clone()) };
        for envelope in [envelope(record.clone()), guarded] {
            for level in 1..=LEVEL_MAX {
                let written = envelope.to_bytes(level, 1 << 20);
                if level < needed && !matches!(record, Record::LevelRaised { .. }) {
                    let why = written.unwrap_err();
                    assert!(why.contains("older release") && why.contains(&needed.to_string()), "{why}");
                    continue;
                }
                let guard = envelope.guard.filter(|_| level.max(needed) > 1);
                let expected = Stocked::Record(Box::new(Envelope { guard, ..envelope.clone() }));
                for reading in 1..=LEVEL_MAX {
                    assert_eq!(read(written.as_ref().unwrap(), reading).unwrap(), expected);
                }
            }
        }
    }
}

#[test]
fn what_is_damaged_newer_or_foreign_is_told_apart() {
    let written = envelope(records().remove(1)).to_bytes(2, 1 << 20).unwrap();
    let damaged = |bytes: &[u8], level, why: &str| {
        let error = read(bytes, level).unwrap_err().to_string();
        assert!(error.contains("record 9") && error.contains(why), "{error}");
    };
    for at in 4..written.len() {
        let mut changed = written.clone();
        changed[at] ^= 0x10;
        damaged(&changed, 2, "checksum");
    }
    for cut in 4..written.len() {
        damaged(&written[..cut], 2, if cut < 20 { "cut off" } else { "checksum" });
    }
    // What a release with another variant or version writes has a sum as well.
    let newer = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut message = written[20..].to_vec();
        change(&mut message);
        framed(&message)
    };
    damaged(&newer(&|message| message[0] = 3), 2, "newer release");
    damaged(&newer(&|message| message[26] = 200), 2, "newer release");
    let spec = created(JOB, r#"{"name":"a","function":"f","mode":{"together":{}}}"#.to_owned());
    for level in 1..=LEVEL_MAX {
        damaged(&envelope(spec.clone()).to_bytes(level, 1 << 20).unwrap(), level, "newer release");
    }
    // Of the first form nobody can say what is foreign; from level 2 on nobody writes it.
    let old = envelope(records().remove(1)).to_bytes(1, 1 << 20).unwrap();
    damaged(&old[..old.len() - 1], 1, "middle of a field");
    for (bytes, level) in [(&old[..old.len() - 1], 2), (b"x", 1), (b"x", 2), (b"", 1), (b"", 2), (&written[..3], 2)] {
        assert!(matches!(read(bytes, level), Ok(Stocked::Foreign(_))), "{bytes:?} at {level}");
    }
}

#[tokio::test]
async fn what_others_send_to_the_log_is_left_out_by_everybody_alike() {
    let log = Bus::in_memory().log;
    let one = running(log.clone(), 1, r#","goal":9"#).await;
    let raise = |number| Envelope { writer: [4; 16], number, guard: None, seen: None, record: raised(2) };
    for (level, foreign) in [(1, "hello"), (2, "hello"), (2, "\u{1}hello")] {
        if one.read(State::level) < level {
            assert_eq!(one.propose(raise(1).record).await.unwrap(), Outcome::Done);
        }
        let last = log.last().await.unwrap();
        log.append(Bytes::copy_from_slice(foreign.as_bytes()), last).await.unwrap();
        assert_eq!(one.accept(accept(JOB, 1, last, 0)).await.map(AcceptOutcome::is_accepted).ok(), Some(true));
    }
    let two = Ledger::open(log.clone(), [2; 16]).await.unwrap();
    assert!(two.read(State::clone) == one.read(State::clone));
    assert_eq!((one.read(State::foreign), one.read(State::level), one.read(State::log)), (3, 2, Some(LOG)));
    assert_eq!(State::from_snapshot(&one.read(State::to_snapshot).unwrap()).unwrap(), one.read(State::clone));
}

/// What a newer release writes at a level that this one does not have ends the following, and nothing is written any more.
#[tokio::test]
async fn a_record_that_is_not_understood_ends_the_following() {
    let log: Arc<dyn EventLog> = Bus::in_memory().log;
    let one = running(log.clone(), 1, "").await;
    let spec = created(JobUid::from_bytes([9; 16]), r#"{"name":"b","function":"f","mode":"together"}"#.to_owned());
    let newer = envelope(spec).to_bytes(1, 1 << 20).unwrap();
    log.append(newer.into(), 3).await.unwrap();
    let error = one.accept(accept(JOB, 1, 1, 0)).await.unwrap_err();
    assert!(matches!(&error, LedgerError::Unreadable(why) if why.contains("newer release")), "{error}");
    assert!(!one.is_reachable());
    assert_eq!((one.read(State::sequence), log.last().await.unwrap()), (3, 4));
    let error = Ledger::open(log.clone(), [2; 16]).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("newer release"), "{error}");
}

#[test]
fn a_decision_counts_while_its_job_is_as_it_was() {
    let mut fixture = Fixture::running("");
    let revision = fixture.job().revision;
    let decided = |revision, action| {
        let record = Record::JobActed { uid: JOB, action, at_ms: 1 };
        let guard = Some(Guard { uid: JOB, revision, received: None });
        Stocked::Record(Box::new(Envelope { guard, ..envelope(record) }))
    };
    let mut take = |stocked: Stocked| fixture.state.take(fixture.state.sequence() + 1, &stocked);
    assert_eq!(take(decided(revision, JobAction::Pause)), Outcome::Done);
    assert!(is_ignored(&take(decided(revision, JobAction::Resume))));
    assert_eq!(fixture.job().state, JobState::Paused);
    // Of a job that is gone nothing is decided any more.
    assert_eq!(fixture.act(JobAction::Delete), Outcome::Done);
    let stocked = decided(fixture.state.sequence(), JobAction::Pause);
    assert!(is_ignored(&fixture.state.take(fixture.state.sequence() + 1, &stocked)));
}

/// Two processes with one node's identity: what the older one writes after the other has begun does not count, and what an
/// accumulator has is lost as a whole or not at all.
#[test]
fn of_two_processes_of_one_node_the_last_counts() {
    let mut fixture = Fixture::running(r#","goal":4"#);
    fixture.apply(raised(2));
    let by = |fixture: &mut Fixture, writer: u8, record: Record| {
        // Each numbers its records.
        let number = fixture.state.sequence();
        let stocked = Stocked::Record(Box::new(Envelope { writer: [writer; 16], number, ..envelope(record) }));
        let outcome = fixture.state.take(fixture.state.sequence() + 1, &stocked);
        fixture.state.audit().unwrap();
        outcome
    };
    let node = NodeId(1);
    let send = |fixture: &mut Fixture, writer, number| match by(
        fixture,
        writer,
        Record::Accepted(vec![accept(JOB, 1, number, 0)]),
    ) {
        Outcome::Accepts(outcomes) => outcomes[0],
        other => panic!("{other:?}"),
    };
    assert_eq!(by(&mut fixture, 1, Record::NodeStarted { node, at_ms: 1 }), Outcome::Done);
    let [a, b, c] = [1, 2, 3].map(|number| match send(&mut fixture, 1, number) {
        AcceptOutcome::Accepted(receipt) => receipt,
        other => panic!("{other:?}"),
    });
    let folded = |receipts: &[ReceiptId]| Record::Folded { uid: JOB, round: 1, receipts: receipts.to_vec() };
    let lost = |receipts: &[ReceiptId]| Record::Lost { uid: JOB, round: 1, receipts: receipts.to_vec(), at_ms: 2 };
    assert_eq!(by(&mut fixture, 1, folded(&[a, b])), Outcome::Done);
    assert_eq!(by(&mut fixture, 2, Record::NodeStarted { node, at_ms: 1 }), Outcome::Done);
    assert_eq!(fixture.state.process(node), Some([2; 16]));
    // The first one does not know yet.
    assert_eq!(send(&mut fixture, 1, 4), AcceptOutcome::NodeLost);
    for record in [folded(&[c]), lost(&[c]), lost(&[a, b, c])] {
        assert!(is_ignored(&by(&mut fixture, 1, record)));
    }
    let sum_lost = Record::SumLost { uid: JOB, round: 1, node, leaf: 0, at_ms: 2 };
    assert!(is_ignored(&by(&mut fixture, 1, sum_lost.clone())));
    // The second has nothing of the first one's sum. To declare half of it lost would have the other half count twice.
    assert!(is_ignored(&by(&mut fixture, 2, lost(&[a]))));
    assert_eq!(by(&mut fixture, 2, lost(&[a, c])), Outcome::Done);
    let states = |fixture: &Fixture| [a, b, c].map(|receipt| fixture.receipt(receipt).state);
    assert_eq!(states(&fixture), [ReceiptState::Folded, ReceiptState::Folded, ReceiptState::Lost]);
    assert_eq!(by(&mut fixture, 2, sum_lost), Outcome::Done);
    assert_eq!((states(&fixture), fixture.round().received()), ([ReceiptState::Lost; 3], 0));
    assert!(send(&mut fixture, 2, 1).is_accepted());
    let state = State::from_snapshot(&fixture.state.to_snapshot().unwrap()).unwrap();
    assert!(state == fixture.state && state.process(node) == Some([2; 16]));
}

#[test]
fn from_level_2_a_discarded_update_frees_its_clients_place() {
    for level in 1..=2 {
        let mut fixture = Fixture::running(r#","goal":3"#);
        fixture.apply(raised(level));
        let receipt = fixture.accepted(1, 1);
        assert_eq!(fixture.discard(1, receipt), Outcome::Done);
        assert_eq!(fixture.accept(1, 1, 0), AcceptOutcome::Duplicate(receipt), "the same would be discarded again");
        let again = fixture.accept(1, 1, 7);
        assert_eq!(again.is_accepted(), level == 2, "{again:?}");
        let state = State::from_snapshot(&fixture.state.to_snapshot().unwrap()).unwrap();
        assert!(state == fixture.state);
        state.audit().unwrap();
    }
}

#[test]
fn an_owner_closes_a_round_with_what_it_has() {
    let mut fixture = Fixture::running(r#","goal":4,"min_updates":3,"deadline":null"#);
    fixture.apply(raised(2));
    let close = || Record::RoundClosed { uid: JOB, round: 1, reason: CloseReason::Asked, at_ms: 1 };
    assert!(is_ignored(&fixture.apply(close())), "there is nothing to make a model of");
    fixture.accepted(1, 1);
    assert_eq!(fixture.apply(close()), Outcome::Done);
    fixture.fold_pending();
    assert_eq!(fixture.commit(), Outcome::Done);
    assert!(is_ignored(&fixture.apply(close())));
}
