//! How many accepts a second one to three processes' ledgers take on one NATS server, what contention costs them, and
//! how evenly it is shared: `cargo run --release -p catchment-ledger --example accept_rate`.
#![forbid(unsafe_code)]

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../bus/tests/common/nats_server.rs"]
mod nats_server;

use catchment_bus::{Bus, NatsConfig};
use catchment_ledger::Ledger;
use catchment_types::{Accept, Digest, JobUid, ModelCommit, NodeId, Record, SlabId};
use futures::future::join_all;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const JOB: JobUid = JobUid::from_bytes([1; 16]);
const TIME: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() {
    println!("ledgers  clients each  accepts/s  each          records/s  p50 ms  p99 ms  max ms");
    for clients in [1, 16, 256] {
        for ledgers in [1, 2, 3] {
            measure(ledgers, clients).await;
        }
    }
}

async fn measure(count: u64, clients: u64) {
    let server = nats_server::NatsServer::start();
    let mut ledgers = Vec::new();
    for writer in 0..count {
        let log = Bus::nats(NatsConfig::new(server.url())).await.unwrap().log;
        ledgers.push(Ledger::open(log, [writer as u8; 16]).await.unwrap());
    }
    for record in begin() {
        ledgers[0].propose(record).await.unwrap();
    }
    let before = ledgers[0].read(catchment_ledger::State::sequence);
    for ledger in &ledgers {
        ledger.watch().wait_for(|applied| *applied >= before).await.unwrap();
    }
    let begin = Instant::now();
    let writers = ledgers.iter().enumerate().map(|(writer, ledger)| {
        let work = (0..clients).map(move |client| {
            let ledger = ledger.clone();
            let first = (writer as u64 * clients + client) << 32;
            tokio::spawn(async move {
                let mut waits = Vec::new();
                while begin.elapsed() < TIME {
                    let sent = Instant::now();
                    let accept = accept(first + waits.len() as u64);
                    assert!(ledger.accept(accept).await.unwrap().is_accepted());
                    waits.push(sent.elapsed());
                }
                waits
            })
        });
        async { join_all(work).await.into_iter().flat_map(Result::unwrap).collect::<Vec<_>>() }
    });
    let waits: Vec<Vec<Duration>> = join_all(writers).await;
    let seconds = begin.elapsed().as_secs_f64();
    let last = ledgers.iter().map(|ledger| ledger.read(catchment_ledger::State::sequence)).max().unwrap();
    let rate = |number: usize| (number as f64 / seconds).round();
    let each: Vec<f64> = waits.iter().map(|waits| rate(waits.len())).collect();
    let mut all: Vec<Duration> = waits.into_iter().flatten().collect();
    all.sort_unstable();
    let ms = |part: f64| all[((all.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!(
        "{count:7}  {clients:12}  {:9}  {:12}  {:9}  {:6.1}  {:6.1}  {:6.1}",
        rate(all.len()),
        each.iter().map(ToString::to_string).collect::<Vec<_>>().join("/"),
        rate((last - before) as usize),
        ms(0.5),
        ms(0.99),
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
        metrics: BTreeMap::new(),
        bytes: 1 << 20,
        node: NodeId(1),
        incarnation: 0,
        slab: SlabId::from_u64(number),
        at_ms: 5,
    }
}
