//! Stored bytes are a contract that outlives the release that wrote them: what release 90cd469 wrote is read, and every
//! record has the bytes that it has always had.
//!
//! The files lie in `tests/fixtures/90cd469`; its README says how they were made.

use crate::common::*;
use crate::faulty::encode;
use bytes::Bytes;
use catchment_bus::Bus;
use catchment_ledger::{Envelope, Guard, Ledger, State, Stocked};
use catchment_types::{
    CloseReason, Code, EvaluationResult, Footprint, FunctionClass, JobAction, JobState, LEVEL_MAX, LogId, ModelCommit,
    NodeId, Place, ReceiptId, ReceiptState, Record, SpecPatch, StateHash,
};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where a record's variant lies: after the version, who wrote it, and its number there.
const VARIANT_AT: usize = 1 + 16 + 8;
/// Every variant that the release writes.
const VARIANTS: u32 = 17;
/// What a snapshot's file begins with, before its content: see `bus/src/embedded/snapshots.rs`.
const SNAPSHOT_HEAD_BYTES: usize = 8 + 8 + 8 + 32;

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/90cd469").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The raw records of a cluster's log, in order.
fn records() -> Vec<Bytes> {
    let (bytes, mut records) = (fixture("records.bin"), Vec::new());
    let mut rest = bytes.as_slice();
    while let Some((length, after)) = rest.split_first_chunk() {
        let (record, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        records.push(Bytes::copy_from_slice(record));
        rest = after;
    }
    assert!(rest.is_empty() && records.len() > 100);
    records
}

fn variant(record: &[u8]) -> u32 {
    u32::from_le_bytes(*record[VARIANT_AT..].first_chunk().unwrap())
}

fn decode(record: &[u8]) -> Envelope {
    match Envelope::read(1, record, 1).unwrap() {
        Stocked::Record(envelope) => *envelope,
        Stocked::Foreign(why) => panic!("{why}"),
    }
}

#[test]
fn every_record_is_read_and_written_again_to_the_same_bytes() {
    let mut counts = BTreeMap::new();
    for record in records() {
        let envelope = decode(&record);
        *counts.entry(variant(&record)).or_insert(0) += 1;
        assert!(encode(&envelope) == record, "{envelope:?}");
    }
    assert!(counts.keys().copied().eq(0..VARIANTS), "every variant is among them: {counts:?}");
}

/// Besides the variants, everything that a field may be.
#[test]
fn the_records_have_something_in_every_field() {
    let all: Vec<Record> = records().iter().map(|record| decode(record).record).collect();
    let has = |what: &str, is: &dyn Fn(&Record) -> bool| assert!(all.iter().any(is), "no record has {what}");
    for action in [JobAction::Pause, JobAction::Resume, JobAction::Stop, JobAction::Delete] {
        has(&format!("{action:?}"), &|record| matches!(record, Record::JobActed { action: a, .. } if *a == action));
    }
    for reason in [CloseReason::Deadline, CloseReason::Shortfall] {
        has(&format!("{reason:?}"), &|record| matches!(record, Record::RoundClosed { reason: r, .. } if *r == reason));
    }
    let classes = [FunctionClass::Additive, FunctionClass::CoordinateWise, FunctionClass::Whole];
    for class in classes {
        has(&format!("{class:?}"), &|record| matches!(record, Record::ModelPut { needs, .. } if needs.class == class));
    }
    for gathered in [false, true] {
        has("such a commit", &|record| matches!(record, Record::Committed { model, .. } if model.gathered == gathered));
    }
    let accepts = |is: fn(&catchment_types::Accept) -> bool| move |record: &Record| matches!(record, Record::Accepted(group) if group.iter().any(is));
    has("metrics", &accepts(|accept| !accept.metrics.is_empty()));
    has("a base", &accepts(|accept| accept.base.is_some_and(|base| base != accept.round)));
    has("a weight", &accepts(|accept| accept.weight != 1.0 && accept.base.is_none()));
    has("all of a patch", &|record| {
        matches!(record, Record::JobPatched { patch, .. }
            if patch.rounds.is_some() && patch.goal.is_some() && patch.deadline.is_some())
    });
    for some in [false, true] {
        has(
            "such a deadline",
            &|r| matches!(r, Record::RoundOpened { deadline_ms, .. } if deadline_ms.is_some() == some),
        );
    }
}

/// How far each job of the fixtures is; `world.rs` of the end-to-end tests makes them.
const JOBS: [(&str, JobState, Option<u64>); 12] = [
    ("buffered", JobState::Running, Some(1)),
    ("closed", JobState::Completed, Some(1)),
    ("exact", JobState::Running, Some(1)),
    ("extended", JobState::Stopped, Some(0)),
    ("failed", JobState::Failed, Some(0)),
    ("gathered", JobState::Running, Some(1)),
    ("measured", JobState::Completed, Some(2)),
    ("patched", JobState::Paused, Some(0)),
    ("skipped", JobState::Completed, Some(0)),
    ("stack", JobState::Running, Some(0)),
    ("trapped", JobState::Completed, Some(1)),
    ("waiting", JobState::WaitingForModel, None),
];

fn assert_jobs(state: &State, more: usize) {
    state.audit().unwrap();
    let found = |name: &str| state.jobs().find(|job| job.spec.name.as_str() == name);
    for (name, is, version) in JOBS {
        let job = found(name).unwrap_or_else(|| panic!("{name} has vanished"));
        assert_eq!((job.state, job.newest_model().map(|model| model.commit.version)), (is, version), "{name}");
    }
    assert_eq!(state.jobs().count(), JOBS.len() + more);
    assert_eq!(found("patched").unwrap().spec.rounds, 7);
    // Of what was in hand, the snapshot's node has everything; of the cluster's nodes one was lost with what it held.
    let in_hand = if more == 0 { (2, 3, 3, 1) } else { (2, 0, 0, 0) };
    let round = |name: &str| found(name).unwrap().round.as_ref().unwrap();
    let (exact, buffered) = (round("exact"), round("buffered"));
    assert_eq!((exact.number, exact.received(), exact.folded(), buffered.received()), in_hand);
}

#[tokio::test]
async fn a_ledger_opens_on_the_old_log_and_finds_everything() {
    let log = Bus::in_memory().log;
    let records = records();
    for (record, last) in records.iter().zip(0..) {
        log.append(record.clone(), last).await.unwrap();
    }
    let ledger = Ledger::open(log.clone(), [9; 16]).await.unwrap();
    assert!(ledger.is_reachable());
    let state = ledger.read(State::clone);
    assert_eq!(state.sequence(), records.len() as u64);
    // Two were spread over the nodes, of which two lost their memory.
    assert_jobs(&state, 2);
    for record in records.iter().map(|record| decode(record).record) {
        let Record::Lost { receipts, .. } = record else { continue };
        assert!(!receipts.is_empty());
        for receipt in receipts {
            assert_eq!(state.receipt(receipt).unwrap().state, ReceiptState::Lost);
        }
    }
    // It is the same state that its own snapshot has.
    assert!(State::from_snapshot(&state.to_snapshot().unwrap()).unwrap() == state);
}

#[test]
fn the_old_snapshot_is_read() {
    let file = fixture("snapshot.bin");
    let state = State::from_snapshot(&file[SNAPSHOT_HEAD_BYTES..]).unwrap();
    assert_jobs(&state, 0);
    for cut in [0, 1, 1000] {
        assert!(State::from_snapshot(&file[SNAPSHOT_HEAD_BYTES..file.len() - 1 - cut]).is_err());
    }
}

/// One record of each variant, every field with something in it.
fn one_of_each() -> Vec<Record> {
    let places = vec![Place { node: NodeId(3), updates: 4 }];
    let metrics = BTreeMap::from([("loss".to_owned(), 0.25)]);
    let receipts = vec![ReceiptId::from_bytes([7; 16]), ReceiptId::from_bytes([8; 16])];
    let model = ModelCommit {
        version: 2,
        etag: digest(5),
        bytes: 640,
        node: NodeId(3),
        function: Some(digest(6)),
        contributors: 9,
        contribution: Some(digest(7)),
        gathered: true,
        metrics: metrics.clone(),
    };
    let needs = Footprint { class: FunctionClass::TwoPhase, update_bytes: 100, partial_bytes: 200 };
    let patch = SpecPatch { rounds: Some(5), goal: Some(3), deadline: Some("90s".parse().unwrap()) };
    let result = EvaluationResult { client: client(4), num_samples: 12, metrics };
    let accepted = catchment_types::Accept { base: Some(1), incarnation: 2, ..accept(JOB, 2, 3, 4) };
    let (uid, round, at_ms, reason) = (JOB, 2, 1_700_000_000_000, "because".to_owned());
    vec![
        Record::JobCreated { uid, spec: spec("a", ""), at_ms },
        Record::JobPatched { uid, patch, at_ms },
        Record::JobActed { uid, action: JobAction::Delete, at_ms },
        Record::JobFailed { uid, reason: reason.clone(), at_ms },
        Record::ModelPut { uid, model: ModelCommit::initial(digest(1), 64, NodeId(1)), needs, at_ms },
        Record::RoundOpened { uid, round, deadline_ms: Some(at_ms + 1), places: places.clone(), at_ms },
        Record::RoundExtended { uid, round, deadline_ms: Some(at_ms + 2) },
        Record::RoundClosed { uid, round, reason: CloseReason::Stopped, at_ms },
        Record::Accepted(vec![accepted]),
        Record::Folded { uid, round, receipts: receipts.clone() },
        Record::Discarded { uid, round, receipt: receipts[0], code: Code::FunctionTrap, reason: reason.clone() },
        Record::Lost { uid, round, receipts, at_ms },
        Record::Committed { uid, round, model, at_ms },
        Record::RoundPlaced { uid, round, places },
        Record::NodeLost { node: NodeId(3), incarnation: 1, at_ms },
        Record::Evaluated { uid, version: 1, results: vec![result] },
        Record::JobCompleted { uid, reason: reason.clone(), at_ms },
        Record::RoundGivenUp { uid, round, contribution: digest(9), reason, at_ms },
        Record::LevelRaised { level: 2, log: LogId::from_bytes([6; 16]), at_ms },
        Record::NodeStarted { node: NodeId(3), at_ms },
        Record::SumLost { uid, round, node: NodeId(3), leaf: 1, at_ms },
        Record::StateHashed { sequence: 8192, hash: StateHash::from_bytes([5; 16]) },
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// When this fails a stored record has other bytes than before, and what is stored is not read any more: give the record
/// another variant or version instead. The file has a line for each, in the order of the variants.
#[test]
fn every_variant_has_the_bytes_that_it_has_always_had() {
    let number = 0x0102_0304;
    let guard = |level| (level > 1).then_some(Guard { uid: JOB, revision: 7, received: Some(5) });
    let seen = |level| (level > 1).then_some(6);
    let envelope =
        |level, record| Envelope { writer: [0xaa; 16], number, guard: guard(level), seen: seen(level), record };
    for (level, file) in [(1, include_str!("records-1.hex")), (2, include_str!("records-2.hex"))] {
        let records = one_of_each().into_iter().filter(|record| record.level() <= level);
        let envelopes: Vec<Envelope> = records.map(|record| envelope(level, record)).collect();
        let now: Vec<String> =
            envelopes.iter().map(|envelope| hex(&envelope.to_bytes(level, 1 << 20).unwrap())).collect();
        let pinned: Vec<&str> = file.lines().collect();
        let written = &pinned[..now.len().min(pinned.len())];
        assert!(now == written, "the bytes of level {level} are now\n{}", now.join("\n"));
        // Builds before the second level wrote one more variant in the first form. It is read.
        for (line, record) in pinned.iter().zip(one_of_each()) {
            let pairs = (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap());
            let read = Envelope::read(1, &pairs.collect::<Vec<u8>>(), LEVEL_MAX).unwrap();
            assert_eq!(read, Stocked::Record(Box::new(envelope(level, record))));
        }
    }
}
