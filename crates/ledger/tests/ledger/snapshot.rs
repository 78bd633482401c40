//! Ledgers on logs that forget: what a snapshot stands for is there all the same.

use crate::common::*;
use crate::driver::{reopened, running};
use crate::faulty::{Faulty, Hoard, account};
use crate::nats_server::NatsServer;
use bytes::Bytes;
use catchment_bus::{Bus, EventLog, LogError, NatsConfig, Snapshot};
use catchment_ledger::{Ledger, LedgerError, SNAPSHOT_VERSION, SnapshotPace, State};
use catchment_types::{JobAction, JobUid, LogId, Record, SpecPatch};
use futures::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

const GOAL_900: &str = r#","goal":900,"deadline":null"#;
const EVERY_5: SnapshotPace = SnapshotPace { records: 5, bytes: u64::MAX };

async fn open(log: &Arc<dyn EventLog>, writer: u8, pace: SnapshotPace) -> Ledger {
    Ledger::open_paced(log.clone(), [writer; 16], pace).await.unwrap()
}

/// Accepts of these clients, one record each.
async fn accept_each(ledger: &Ledger, clients: std::ops::Range<u64>) {
    for number in clients {
        assert!(ledger.accept(accept(JOB, 1, number, 0)).await.unwrap().is_accepted());
        // Time for snapshots in between.
        sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until a snapshot of at least this sequence is stored and the log has forgotten something.
async fn forgets(log: &Arc<dyn EventLog>, sequence: u64) {
    for _ in 0..500 {
        let is_forgotten = matches!(log.read(0, 1).await, Err(LogError::Forgotten { .. }));
        if is_forgotten && log.snapshot_sequence().await.unwrap() >= sequence {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("no snapshot at {sequence}: {:?}", log.snapshot_sequence().await);
}

/// Many processes' lives on one log that forgets; each finds what the ones before it left.
async fn lives(mut reopen: impl AsyncFnMut() -> Arc<dyn EventLog>) {
    let log = reopen().await;
    drop(running(log.clone(), 1, GOAL_900).await);
    drop(log);
    let mut expected = State::default();
    for life in 0..6 {
        let log = reopen().await;
        let ledger = open(&log, 10 + life, EVERY_5).await;
        if life > 0 {
            assert!(ledger.read(|state| *state == expected), "life {life}");
        }
        let first = u64::from(life) * 20;
        // A little at a time, so that several snapshots are taken on the way.
        for begin in [first, first + 7, first + 14] {
            accept_each(&ledger, begin..(begin + 7).min(first + 20)).await;
            sleep(Duration::from_millis(30)).await;
        }
        ledger.propose(Record::JobPatched { uid: JOB, patch: SpecPatch::default(), at_ms: 1 }).await.unwrap();
        forgets(&log, first + 10).await;
        expected = ledger.read(State::clone);
        expected.audit().unwrap();
        assert_eq!(expected.job(JOB).unwrap().round.as_ref().unwrap().received(), first + 20);
    }
}

#[tokio::test]
async fn lives_on_a_log_in_memory() {
    let log = Bus::in_memory().log;
    lives(async || log.clone()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lives_on_an_embedded_log() {
    let dir = tempfile::tempdir().unwrap();
    lives(async || reopened(dir.path()).await.log).await;
    let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let snapshots = names.filter(|name| name.to_string_lossy().starts_with("snapshot")).count();
    assert!((1..=3).contains(&snapshots), "{snapshots} snapshots are kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn lives_on_a_server() {
    let server = NatsServer::start();
    lives(async || Bus::nats(NatsConfig::new(server.url())).await.unwrap().log).await;
}

#[tokio::test(start_paused = true)]
async fn a_ledger_far_behind_goes_on_from_the_snapshot() {
    let hoard = Hoard::new(Bus::in_memory().log);
    let log: Arc<dyn EventLog> = hoard.clone();
    let one = running(log.clone(), 1, GOAL_900).await;
    drop(one);
    let one = open(&log, 2, EVERY_5).await;
    let slow = Faulty::scripted(log.clone(), &[]);
    let two = Ledger::open_paced(slow.clone(), [3; 16], SnapshotPace::NEVER).await.unwrap();
    slow.fail_reads(&[true; 40]);
    let (mut all, mut own) = (two.watch(), two.watch_job(JOB));
    accept_each(&one, 0..40).await;
    one.propose(Record::JobPatched { uid: JOB, patch: SpecPatch::default(), at_ms: 1 }).await.unwrap();
    forgets(&log, 30).await;
    assert_eq!(two.read(State::sequence), 3);
    all.wait_for(|sequence| *sequence >= 44).await.unwrap();
    assert!(two.is_reachable() && own.has_changed().unwrap());
    assert!(two.read(State::clone) == one.read(State::clone));
    accept_each(&two, 40..50).await;
    assert_eq!(account(&hoard.whole().await).await.state, two.read(State::clone));
    own.mark_unchanged();
}

#[tokio::test(start_paused = true)]
async fn what_became_of_a_record_may_be_forgotten() {
    let hoard = Hoard::new(Bus::in_memory().log);
    let log: Arc<dyn EventLog> = hoard.clone();
    drop(running(log.clone(), 1, GOAL_900).await);
    let one = open(&log, 2, EVERY_5).await;
    for is_stored in [true, false] {
        let fault = if is_stored { crate::faulty::Fault::Unacknowledged } else { crate::faulty::Fault::Lost };
        let slow = Faulty::scripted(log.clone(), &[fault]);
        let two = Ledger::open_paced(slow.clone(), [3 + u8::from(is_stored); 16], SnapshotPace::NEVER).await.unwrap();
        slow.fail_reads(&[true; 40]);
        let first = u64::from(is_stored) * 100;
        let waiting = tokio::spawn({
            let two = two.clone();
            async move { two.accept(accept(JOB, 1, first + 99, 0)).await }
        });
        sleep(Duration::from_millis(10)).await;
        accept_each(&one, first..first + 40).await;
        forgets(&log, one.read(State::sequence) - 20).await;
        let answer = waiting.await.unwrap();
        assert!(matches!(&answer, Err(LedgerError::Unreadable(why)) if why.contains("forgotten")), "{answer:?}");
        // That was about one record. The ledger goes on.
        assert!(two.is_reachable());
        accept_each(&two, first + 50..first + 55).await;
        let stored = account(&hoard.whole().await).await;
        let found = stored.state.job(JOB).unwrap().round.as_ref().unwrap().update_of(&client(first + 99)).is_some();
        assert_eq!(found, is_stored);
        one.refresh().await.unwrap();
    }
}

#[tokio::test]
async fn a_snapshot_that_does_not_read_is_named_or_replayed() {
    for version in [SNAPSHOT_VERSION + 1, SNAPSHOT_VERSION] {
        let log = Bus::in_memory().log;
        let one = running(log.clone(), 1, GOAL_900).await;
        accept_each(&one, 0..10).await;
        let expected = one.read(State::clone);
        let unreadable = |sequence| Snapshot { sequence, bytes: Bytes::copy_from_slice(&[9, 9, 9, version]) };
        assert!(log.put_snapshot(unreadable(5)).await.unwrap());
        // The log still has everything.
        let two = Ledger::open(log.clone(), [2; 16]).await.unwrap();
        assert!(two.read(|state| *state == expected));
        // Now it has not.
        assert!(log.put_snapshot(unreadable(10)).await.unwrap());
        let error = Ledger::open(log.clone(), [3; 16]).await.map(drop).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, LedgerError::Unreadable(_)) && text.contains("begins at record 6"), "{text}");
        assert_eq!(text.contains(&format!("of version {version}")), version != SNAPSHOT_VERSION, "{text}");
    }
}

#[tokio::test]
async fn a_snapshot_of_another_moment_is_not_taken_for_this_one() {
    let log = Bus::in_memory().log;
    let one = running(log.clone(), 1, GOAL_900).await;
    let bytes = Bytes::from(one.read(State::to_snapshot).unwrap());
    accept_each(&one, 0..5).await;
    assert!(log.put_snapshot(Snapshot { sequence: 4, bytes }).await.unwrap());
    let two = Ledger::open(log.clone(), [2; 16]).await.unwrap();
    assert!(two.read(State::clone) == one.read(State::clone), "the whole log was replayed instead");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_processes_one_takes_the_snapshot() {
    let server = NatsServer::start();
    let mut ledgers = Vec::new();
    for writer in 1..4 {
        let log = Bus::nats(NatsConfig::new(server.url())).await.unwrap().log;
        if writer == 1 {
            drop(running(log.clone(), 9, GOAL_900).await);
        }
        ledgers.push((open(&log, writer, SnapshotPace { records: 20, bytes: u64::MAX }).await, log));
    }
    let work =
        ledgers.iter().zip(0..).map(|((ledger, _), writer)| accept_each(ledger, writer * 200..writer * 200 + 150));
    join_all(work).await;
    let (ledger, log) = &ledgers[0];
    ledger.refresh().await.unwrap();
    forgets(log, ledger.read(State::sequence) - 60).await;
    let expected = ledger.read(State::clone);
    assert_eq!(expected.job(JOB).unwrap().round.as_ref().unwrap().received(), 450);
    let fresh = open(log, 9, SnapshotPace::NEVER).await;
    assert!(fresh.read(State::clone) == expected);
}

/// When this fails the layout has changed: raise `SNAPSHOT_VERSION`, and see that the version before is still read.
#[test]
fn the_layout_is_what_its_version_says() {
    for (level, version, hash) in [
        (1, 1, "3d275218697b53e2202feeebd5ab64726a476aff0c4fef3b75205d793011d512"),
        (2, SNAPSHOT_VERSION, "d1dc05f5464b9de1078946b0be4b1b536fb564b855f05b80ec6b044b7cde6ab9"),
    ] {
        let mut fixture = Fixture::running(r#","goal":3,"client_config":{"lr":0.1}"#);
        fixture.accepted(1, 7);
        fixture.patch(SpecPatch { goal: Some(2), ..SpecPatch::default() });
        if level > 1 {
            fixture.apply(Record::LevelRaised { level, log: LogId::from_bytes([4; 16]), at_ms: 1 });
        }
        let bytes = fixture.state.to_snapshot().unwrap();
        assert_eq!(State::from_snapshot(&bytes).unwrap(), fixture.state);
        assert_eq!((bytes.last().copied(), blake3::hash(&bytes).to_hex().as_str()), (Some(version), hash));
        for cut in [0, 1, 4, 20, bytes.len() / 2, bytes.len() - 1] {
            assert!(State::from_snapshot(&bytes[..cut]).is_err());
        }
    }
}

/// Of the form that others read a byte that has changed is found, wherever it is.
#[test]
fn a_damaged_snapshot_is_never_taken_for_a_sound_one() {
    let mut fixture = Fixture::running("");
    fixture.apply(Record::LevelRaised { level: 2, log: LogId::from_bytes([4; 16]), at_ms: 1 });
    fixture.accepted(1, 7);
    let bytes = fixture.state.to_snapshot().unwrap();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(State::from_snapshot(&changed).is_err(), "byte {at}");
    }
}

/// The layout test's state as release 0.1 wrote it.
const WRITTEN_BEFORE: &[u8] = include_bytes!("snapshot-1.bin");

#[test]
fn a_snapshot_of_the_release_before_is_read() {
    let mut fixture = Fixture::running(r#","goal":3,"client_config":{"lr":0.1}"#);
    fixture.accepted(1, 7);
    fixture.patch(SpecPatch { goal: Some(2), ..SpecPatch::default() });
    assert_eq!(
        blake3::hash(WRITTEN_BEFORE).to_hex().as_str(),
        "3d275218697b53e2202feeebd5ab64726a476aff0c4fef3b75205d793011d512"
    );
    let read = State::from_snapshot(WRITTEN_BEFORE).unwrap();
    assert_eq!(read, fixture.state);
    assert!(read.is_first_of_its_name(read.job(JOB).unwrap()));
}

#[test]
fn a_snapshot_carries_the_names_of_deleted_jobs() {
    let mut fixture = Fixture::running("");
    fixture.apply(Record::LevelRaised { level: 2, log: LogId::from_bytes([4; 16]), at_ms: 1 });
    fixture.act(JobAction::Delete);
    let (other, again) = (JobUid::from_bytes([2; 16]), JobUid::from_bytes([3; 16]));
    fixture.apply(created(other, spec("b", "")));
    fixture.apply(created(again, spec("a", "")));
    let read = State::from_snapshot(&fixture.state.to_snapshot().unwrap()).unwrap();
    assert!(read == fixture.state);
    for state in [&read, &fixture.state] {
        let is_first = |uid| state.is_first_of_its_name(state.job(uid).unwrap());
        assert_eq!((is_first(other), is_first(again)), (true, false));
    }
}

/// What builds between the first two releases wrote where jobs had been deleted.
#[test]
fn a_snapshot_with_names_beside_the_state_is_read() {
    let fixture = Fixture::running("");
    let mut bytes = fixture.state.to_snapshot().unwrap();
    assert_eq!(bytes.pop(), Some(1));
    // One hash, and that there are no more than are kept.
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(7u64.to_le_bytes());
    bytes.extend([0, 0x81]);
    let read = State::from_snapshot(&bytes).unwrap();
    fixture.state.audit().unwrap();
    assert_eq!(read.job(JOB), fixture.state.job(JOB));
    for cut in [0, 1, bytes.len() / 2, bytes.len() - 2, bytes.len() - 1] {
        assert!(State::from_snapshot(&bytes[..cut]).is_err());
    }
    // Neither form is taken for the other.
    let marked = |bytes: &[u8], mark| [&bytes[..bytes.len() - 1], &[mark]].concat();
    assert!(State::from_snapshot(&marked(&bytes, 1)).is_err());
    assert!(State::from_snapshot(&marked(&fixture.state.to_snapshot().unwrap(), 0x81)).is_err());
}
