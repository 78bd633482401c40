//! The buses under test, each with what it needs to run.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod nats_server;

use std::time::Duration;

use bytes::Bytes;
use catchment_bus::{Bus, LogError, Message, NatsConfig, Subscription};
use futures::StreamExt;
use nats_server::NatsServer;

pub struct Fixture {
    pub bus: Bus,
    pub server: Option<NatsServer>,
    pub dir: Option<tempfile::TempDir>,
}

pub async fn in_memory() -> Fixture {
    Fixture { bus: Bus::in_memory(), server: None, dir: None }
}

pub async fn embedded() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    Fixture { bus: Bus::embedded(dir.path()).await.unwrap(), server: None, dir: Some(dir) }
}

pub async fn nats() -> Fixture {
    let server = NatsServer::start();
    let bus = Bus::nats(config(&server)).await.unwrap();
    Fixture { bus, server: Some(server), dir: None }
}

/// Short timeouts, so that a failure shows quickly.
pub fn config(server: &NatsServer) -> NatsConfig {
    NatsConfig { request_timeout: Duration::from_secs(2), ..NatsConfig::new(server.url()) }
}

pub fn record(text: impl ToString) -> Bytes {
    Bytes::from(text.to_string())
}

/// The whole log, read in small pieces.
pub async fn read_all(bus: &Bus) -> Vec<(u64, Bytes)> {
    let mut all: Vec<(u64, Bytes)> = vec![];
    loop {
        let after = all.last().map_or(0, |(sequence, _)| *sequence);
        let piece = bus.log.read(after, 7).await.unwrap();
        let end = piece.len() < 7;
        all.extend(piece);
        if end {
            return all;
        }
    }
}

/// Appends after whatever is last, as a writer among several does.
pub async fn append_somewhere(bus: &Bus, record: Bytes) -> u64 {
    let mut last = bus.log.last().await.unwrap();
    loop {
        match bus.log.append(record.clone(), last).await {
            Ok(sequence) => return sequence,
            Err(LogError::Conflict { last: now }) => last = now,
            Err(error) => panic!("append: {error}"),
        }
    }
}

/// The next message, or None after a while.
pub async fn next(subscription: &mut Subscription) -> Option<Message> {
    tokio::time::timeout(Duration::from_secs(5), subscription.next()).await.ok().flatten()
}

/// Whether nothing more arrives.
pub async fn is_quiet(subscription: &mut Subscription) -> bool {
    tokio::time::timeout(Duration::from_millis(150), subscription.next()).await.is_err()
}

/// Waits until `condition` holds, for ten seconds at most.
pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    for _ in 0..200 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within ten seconds: {what}");
}
