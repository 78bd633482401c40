//! Logs of a data directory that have snapshots and have forgotten their beginning, taken away and made anew. That the
//! result is a log is for a ledger to say.

use super::export::{Export, SnapshotExport};
use super::restore::{Restore, SnapshotRestore};
use super::verify::Verify;
use crate::output::{Format, Output};
use anyhow::Result;
use catchment_bus::{Bus, BusError, Snapshot};
use catchment_ledger::{Ledger, Phase, State};
use catchment_types::{
    CloseReason, Digest, Footprint, JobAction, JobUid, LogId, ModelCommit, NodeId, Record, SpecPatch,
};
use clap::Parser;
use std::path::Path;
use tempfile::TempDir;

const OUTPUT: Output = Output { format: Format::Json, terminal: false };

#[derive(Parser)]
enum Cli {
    Export(Export),
    SnapshotExport(SnapshotExport),
    Restore(Restore),
    SnapshotRestore(SnapshotRestore),
    Verify(Verify),
}

async fn run(line: &str) -> Result<()> {
    match Cli::try_parse_from(["log"].into_iter().chain(line.split_whitespace()))? {
        Cli::Export(command) => command.run(OUTPUT).await,
        Cli::SnapshotExport(command) => command.run(OUTPUT).await,
        Cli::Restore(command) => command.run(OUTPUT).await,
        Cli::SnapshotRestore(command) => command.run(OUTPUT).await,
        Cli::Verify(command) => command.run(OUTPUT).await,
    }
}

async fn fails(line: &str, says: &str) {
    let error = format!("{:#}", run(line).await.expect_err(line));
    assert!(error.contains(says), "`{line}` says: {error}");
}

fn created(number: u64) -> Record {
    let spec = format!(r#"{{"name":"job-{number}","function":"fedavg"}}"#);
    Record::JobCreated { uid: uid(number), spec, at_ms: number }
}

fn uid(number: u64) -> JobUid {
    JobUid::from_bytes(u128::from(number).to_le_bytes())
}

/// A log of jobs, each created and stopped, with a snapshot every ten records. Gives each state on the way.
async fn fill(dir: &Path, jobs: u64) -> Vec<State> {
    let bus = Bus::embedded(dir).await.unwrap();
    let ledger = Ledger::open(bus.log.clone(), [1; 16]).await.unwrap();
    let mut states = vec![State::default()];
    for number in 0..jobs {
        for record in [created(number), Record::JobActed { uid: uid(number), action: JobAction::Stop, at_ms: 9 }] {
            ledger.propose(record).await.unwrap();
            let state = ledger.read(State::clone);
            if state.sequence() % 10 == 0 {
                let snapshot = Snapshot { sequence: state.sequence(), bytes: state.to_snapshot().unwrap().into() };
                assert!(bus.log.put_snapshot(snapshot).await.unwrap());
            }
            states.push(state);
        }
    }
    drop((bus, ledger));
    released(dir).await;
    states
}

/// What a process has when it opens the log, and that it can go on.
async fn opened(dir: &Path) -> State {
    let bus = Bus::embedded(dir).await.unwrap();
    let ledger = Ledger::open(bus.log.clone(), [2; 16]).await.unwrap();
    let state = ledger.read(State::clone);
    ledger.propose(Record::Accepted(vec![])).await.unwrap();
    assert_eq!(bus.log.last().await.unwrap(), state.sequence() + 1);
    drop((bus, ledger));
    released(dir).await;
    state
}

/// A ledger's writer lets go of the log a moment after the ledger is gone.
async fn released(dir: &Path) {
    while matches!(Bus::embedded(dir).await, Err(BusError::InUse { .. })) {
        tokio::task::yield_now().await;
    }
}

struct Folders(TempDir);

impl Folders {
    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_forgot_its_beginning_comes_back() {
    let folders = Folders(TempDir::new().unwrap());
    let (log, file, new) = (folders.path("log"), folders.path("a.catchlog"), folders.path("new"));
    let states = fill(log.as_ref(), 60).await;
    let first = {
        let source = super::source::Where::Data(log.clone().into()).open().await.unwrap();
        assert_eq!(source.snapshots.len(), 2);
        source.bounds.first
    };
    assert!(first > 1, "it has forgotten its beginning");
    run(&format!("verify --data {log}")).await.unwrap();
    run(&format!("export --data {log} --out {file}")).await.unwrap();
    fails(&format!("export --data {log} --out {file}"), "is there already").await;
    run(&format!("verify --file {file}")).await.unwrap();
    run(&format!("restore --data {new} --from {file}")).await.unwrap();
    assert!(opened(new.as_ref()).await == states[120]);
    fails(&format!("restore --data {new} --from {file}"), "with --replace").await;
    // Cut after any record that is there.
    for until in [119, 111, first] {
        run(&format!("restore --data {new} --from {file} --until {until} --replace")).await.unwrap();
        assert!(opened(new.as_ref()).await == states[until as usize], "until {until}");
    }
    fails(&format!("restore --data {new} --from {file} --until {} --replace", first - 20), "no sound snapshot").await;
    assert!(opened(new.as_ref()).await.sequence() > first, "it was left alone");
}

/// A record that reads: what it did is gone, with what followed from it, and the others keep their numbers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_is_left_out() {
    let folders = Folders(TempDir::new().unwrap());
    let (log, file, new) = (folders.path("log"), folders.path("a.catchlog"), folders.path("new"));
    fill(log.as_ref(), 4).await;
    run(&format!("export --data {log} --out {file}")).await.unwrap();
    run(&format!("restore --data {new} --from {file} --skip 5")).await.unwrap();
    let state = opened(new.as_ref()).await;
    assert_eq!(state.sequence(), 8);
    let jobs: Vec<_> = state.jobs().map(|job| (job.uid, job.revision)).collect();
    assert_eq!(jobs, [(uid(0), 2), (uid(1), 4), (uid(3), 8)]);
}

/// Decisions that were taken on a record that is left out count all the same: else the job would stand still from there on.
/// What a state came to that had it is left out as well: else nobody could open the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_outlive_what_they_were_taken_on() {
    let folders = Folders(TempDir::new().unwrap());
    let (log, file, new) = (folders.path("log"), folders.path("a.catchlog"), folders.path("new"));
    let model = ModelCommit::initial(Digest::from_bytes([7; 32]), 64, NodeId(1));
    {
        let bus = Bus::embedded(log.as_ref()).await.unwrap();
        let ledger = Ledger::open(bus.log.clone(), [1; 16]).await.unwrap();
        let patch = Record::JobPatched { uid: uid(0), patch: SpecPatch::default(), at_ms: 2 };
        let put = Record::ModelPut { uid: uid(0), model, needs: Footprint::default(), at_ms: 1 };
        let raised = Record::LevelRaised { level: 2, log: LogId::from_bytes([4; 16]), at_ms: 0 };
        for record in [raised, created(0), put, patch] {
            ledger.propose(record).await.unwrap();
        }
        for _ in 4..4_100 {
            ledger.propose(Record::Accepted(vec![])).await.unwrap();
        }
        let open = Record::RoundOpened { uid: uid(0), round: 1, deadline_ms: None, places: Vec::new(), at_ms: 3 };
        let close = Record::RoundClosed { uid: uid(0), round: 1, reason: CloseReason::Deadline, at_ms: 4 };
        let before = ledger.read(|state| state.decided(&open));
        for (decision, on) in [(&open, Some(before)), (&open, Some(before)), (&close, None)] {
            let on = on.unwrap_or_else(|| ledger.read(|state| state.decided(decision)));
            // The second one is stale.
            ledger.decide(decision.clone(), on).await.ok();
        }
        // With what the state came to after 4096 records, which is not so any more without the fourth.
        assert_eq!(ledger.read(State::sequence), 4_104);
    }
    released(log.as_ref()).await;
    run(&format!("export --data {log} --out {file}")).await.unwrap();
    run(&format!("restore --data {new} --from {file} --skip 4")).await.unwrap();
    let state = opened(new.as_ref()).await;
    let round = state.job(uid(0)).unwrap().round.clone().unwrap();
    assert_eq!((round.number, round.phase), (1, Phase::Aggregating));
    assert_eq!(state.job(uid(0)).unwrap().revision, 4_104);
    run(&format!("verify --data {new}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_alone_is_a_beginning() {
    let folders = Folders(TempDir::new().unwrap());
    let (log, file, new) = (folders.path("log"), folders.path("s.catchlog"), folders.path("new"));
    let states = fill(log.as_ref(), 60).await;
    run(&format!("snapshot-export --data {log} --out {file}")).await.unwrap();
    run(&format!("snapshot-restore --data {new} --from {file}")).await.unwrap();
    let state = opened(new.as_ref()).await;
    assert!(state == states[state.sequence() as usize]);
    run(&format!("verify --data {new}")).await.unwrap();
    // The records of the log are gone, and its snapshots are not.
    std::fs::write(Path::new(&log).join(catchment_bus::LOG_FILE), b"no log").unwrap();
    fails(&format!("verify --data {log}"), "not sound").await;
    let whole = folders.path("whole.catchlog");
    run(&format!("export --data {log} --out {whole}")).await.unwrap();
    let third = folders.path("third");
    run(&format!("restore --data {third} --from {whole}")).await.unwrap();
    assert!(opened(third.as_ref()).await == state, "an export without records has the snapshots");
    let again = folders.path("again.catchlog");
    run(&format!("snapshot-export --data {log} --out {again}")).await.unwrap();
    run(&format!("snapshot-restore --data {log} --from {again} --replace")).await.unwrap();
    assert!(opened(log.as_ref()).await == state);
    assert!(Path::new(&format!("{again}.replaced.redb")).is_file(), "what could not be read is kept");
}

/// A snapshot that is not what its records come to: a process would go on from it without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_another_log_is_found() {
    let folders = Folders(TempDir::new().unwrap());
    let (log, other) = (folders.path("log"), folders.path("other"));
    fill(log.as_ref(), 4).await;
    {
        let bus = Bus::embedded(other.as_ref()).await.unwrap();
        let ledger = Ledger::open(bus.log.clone(), [1; 16]).await.unwrap();
        for number in 10..18 {
            ledger.propose(created(number)).await.unwrap();
        }
        let bytes = ledger.read(State::to_snapshot).unwrap().into();
        let bus = Bus::embedded(log.as_ref()).await.unwrap();
        bus.log.put_snapshot(Snapshot { sequence: 8, bytes }).await.unwrap();
    }
    fails(&format!("verify --data {log}"), "the snapshot of this record is not what").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_log_is_said() {
    let folders = Folders(TempDir::new().unwrap());
    let (log, file) = (folders.path("log"), folders.path("a.catchlog"));
    fails(&format!("verify --data {log}"), "there is no log in").await;
    fails(&format!("export --data {log} --out {file}"), "there is no log in").await;
    assert!(!Path::new(&log).exists(), "looking makes nothing");
    std::fs::write(&file, b"something else").unwrap();
    fails(&format!("restore --data {log} --from {file}"), "not an exported log").await;
    fails("verify", "required").await;
    fails(&format!("verify --data {log} --file {file}"), "cannot be used with").await;
}
