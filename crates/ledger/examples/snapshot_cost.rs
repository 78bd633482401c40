//! What a snapshot of 100,000 updates costs, and what accepts notice of one being taken:
//! `cargo run --release -p catchment-ledger --example snapshot_cost [directory]`.
#![forbid(unsafe_code)]

use catchment_bus::{Bus, EventLog};
use catchment_ledger::{Ledger, SnapshotPace, State};
use catchment_types::{Accept, Digest, JobUid, ModelCommit, NodeId, Record, SlabId};
use futures::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const JOB: JobUid = JobUid::from_bytes([1; 16]);
const UPDATES: u64 = 100_000;
const CLIENTS: u64 = 8;
const TIME: Duration = Duration::from_secs(6);

#[tokio::main]
async fn main() {
    let dir = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(dir).unwrap();
    let log = Bus::embedded(dir.path()).await.unwrap().log;
    let ledger = Ledger::open_paced(log.clone(), [1; 16], SnapshotPace::NEVER).await.unwrap();
    for record in begin() {
        ledger.propose(record).await.unwrap();
    }
    for first in (0..UPDATES).step_by(500) {
        let answers = join_all((first..first + 500).map(|number| ledger.accept(accept(number)))).await;
        assert!(answers.into_iter().all(|answer| answer.unwrap().is_accepted()));
    }
    let state = ledger.read(State::clone);
    drop(ledger);
    let time = |what: &str, since: Instant| println!("{what}: {:.0} ms", since.elapsed().as_secs_f64() * 1e3);
    let since = Instant::now();
    let bytes = state.to_snapshot().unwrap();
    time(&format!("encode {UPDATES} updates to {:.1} MB", bytes.len() as f64 / 1e6), since);
    let since = Instant::now();
    let read = State::from_snapshot(&bytes).unwrap();
    time("decode them", since);
    assert!(read == state);
    let since = Instant::now();
    read.audit().unwrap();
    time("audit them", since);
    let since = Instant::now();
    drop(state.clone());
    time("a copy of them under a lock, which is not made", since);
    let since = Instant::now();
    drop(Ledger::open_paced(log.clone(), [2; 16], SnapshotPace::NEVER).await.unwrap());
    time("open without a snapshot", since);
    println!("pace             accepts/s  p50 ms  p99 ms  p99.9 ms  max ms  snapshots");
    let often = SnapshotPace { records: 200, bytes: u64::MAX };
    for (name, pace) in [("never", SnapshotPace::NEVER), ("all the time", often), ("never", SnapshotPace::NEVER)] {
        measure(name, &log, pace).await;
    }
    let since = Instant::now();
    drop(Ledger::open_paced(log.clone(), [2; 16], SnapshotPace::NEVER).await.unwrap());
    time("open with one", since);
}

/// Some clients that send all the time, while snapshots are taken at this pace.
async fn measure(name: &str, log: &Arc<dyn EventLog>, pace: SnapshotPace) {
    let ledger = Ledger::open_paced(log.clone(), [3; 16], pace).await.unwrap();
    let (mut snapshots, mut newest) = (0, log.snapshot_sequence().await.unwrap());
    let first = ledger.read(State::sequence) << 20;
    let begin = Instant::now();
    let work: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let mut waits = Vec::new();
                while begin.elapsed() < TIME {
                    let sent = Instant::now();
                    let accept = accept(first + (client << 40) + waits.len() as u64);
                    assert!(ledger.accept(accept).await.unwrap().is_accepted());
                    waits.push(sent.elapsed());
                }
                waits
            })
        })
        .collect();
    while begin.elapsed() < TIME {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = log.snapshot_sequence().await.unwrap();
        snapshots += u64::from(now != newest);
        newest = now;
    }
    let mut waits: Vec<Duration> = join_all(work).await.into_iter().flat_map(Result::unwrap).collect();
    waits.sort_unstable();
    let ms = |part: f64| waits[((waits.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!(
        "{name:15}  {:9.0}  {:6.1}  {:6.1}  {:8.1}  {:6.1}  {snapshots:9}",
        waits.len() as f64 / TIME.as_secs_f64(),
        ms(0.5),
        ms(0.99),
        ms(0.999),
        ms(1.0)
    );
}

fn begin() -> [Record; 3] {
    let spec = r#"{"name":"a","function":"fedavg","goal":100000000,"deadline":null}"#.to_owned();
    let model = ModelCommit::initial(Digest::from_bytes([0; 32]), 64, NodeId(1));
    [
        Record::JobCreated { uid: JOB, spec, at_ms: 0 },
        Record::ModelPut { uid: JOB, model, needs: Default::default(), at_ms: 0 },
        Record::RoundOpened { uid: JOB, round: 1, deadline_ms: None, places: Vec::new(), at_ms: 0 },
    ]
}

fn accept(number: u64) -> Accept {
    Accept {
        uid: JOB,
        round: 1,
        base: None,
        client: format!("client-{number:032}").parse().unwrap(),
        digest: Digest::from_bytes([7; 32]),
        weight: 1.0,
        num_samples: 1,
        metrics: BTreeMap::from([("loss".to_owned(), 0.5), ("accuracy".to_owned(), 0.5)]),
        bytes: 1 << 20,
        node: NodeId(1),
        incarnation: 0,
        slab: SlabId::from_u64(number),
        at_ms: 5,
    }
}
