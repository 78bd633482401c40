//! How many appends a second each log takes, one after the other and 64 in flight, and how fast it
//! is read back: `cargo run --release -p catchment-bus --example append_rate [directory]`.
#![forbid(unsafe_code)]

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/common/nats_server.rs"]
mod nats_server;

use std::time::Instant;

use bytes::Bytes;
use catchment_bus::{Bus, LogError, NatsConfig};
use futures::{StreamExt, stream};

const RECORD_BYTES: usize = 256;
const IN_FLIGHT: usize = 64;

#[tokio::main]
async fn main() {
    let dir = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(dir).unwrap();
    measure("embedded", &Bus::embedded(dir.path()).await.unwrap(), 2_000).await;
    let server = nats_server::NatsServer::start();
    measure("nats", &Bus::nats(NatsConfig::new(server.url())).await.unwrap(), 20_000).await;
    measure("in memory", &Bus::in_memory(), 200_000).await;
}

async fn measure(name: &str, bus: &Bus, appends: u64) {
    let log = &bus.log;
    let record = Bytes::from(vec![1; RECORD_BYTES]);
    let rate = |count: u64, since: Instant| (count as f64 / since.elapsed().as_secs_f64()).round();

    let begin = Instant::now();
    for last in 0..appends {
        log.append(record.clone(), last).await.unwrap();
    }
    let serial = rate(appends, begin);

    let begin = Instant::now();
    let total = appends * 10;
    stream::iter(appends..appends + total)
        .map(async |last| {
            // They may arrive in another order than they were sent: then the one before is awaited.
            while let Err(error) = log.append(record.clone(), last).await {
                assert!(matches!(error, LogError::Conflict { last: now } if now < last), "{error}");
            }
        })
        .buffered(IN_FLIGHT)
        .for_each(async |()| ())
        .await;
    let in_flight = rate(total, begin);

    let begin = Instant::now();
    let mut after = 0;
    while let Some((sequence, _)) = log.read(after, 1000).await.unwrap().last() {
        after = *sequence;
    }
    println!("{name}: {serial}/s serial, {in_flight}/s with {IN_FLIGHT} in flight, {}/s read", rate(after, begin));
}
