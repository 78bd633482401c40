//! The log's records as they are stored, sent by the server without being asked for each.
//!
//! An ordered consumer of the stream, which the client library makes anew after a gap or a lost connection. Nothing depends
//! on it: whoever follows sees by the numbers that records follow on each other, and asks the stream when none come.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::with_sources;

/// Messages that one request of the consumer asks for.
const BATCH: i64 = 256;
/// Records that wait for whoever follows. With more the server sends no more for now.
const HELD_MAX: usize = 4096;
const HELD_BYTES_MAX: usize = 8 << 20;
/// How long until the consumer is made again where it could not be.
const RETRY: Duration = Duration::from_secs(1);

/// What was sent, and has not been passed yet.
#[derive(Default)]
struct Held {
    records: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

struct Shared {
    held: Mutex<Held>,
    /// The last record that has come.
    last: watch::Sender<u64>,
    /// There is room again.
    room: Notify,
}

/// The records after a certain one. Ends when dropped.
pub(super) struct Tail {
    begins_after: u64,
    shared: Arc<Shared>,
    receiving: AbortHandle,
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.receiving.abort();
    }
}

impl Tail {
    pub(super) fn begin(stream: Stream, after: u64) -> Self {
        let (last, room) = (watch::Sender::new(after), Notify::new());
        let shared = Arc::new(Shared { held: Mutex::default(), last, room });
        let receiving = tokio::spawn(receive(stream, after, shared.clone())).abort_handle();
        Self { begins_after: after, shared, receiving }
    }

    /// Whether it goes on, and has not left out what comes after this record.
    pub(super) fn covers(&self, after: u64) -> bool {
        let held = self.shared.held();
        let next = held.records.front().map_or_else(|| *self.shared.last.borrow() + 1, |(sequence, _)| *sequence);
        !self.receiving.is_finished() && self.begins_after <= after && next <= after + 1
    }

    /// Waits for records after this one. Nothing is lost when this is dropped: they are let go of once a later one is asked
    /// for.
    pub(super) async fn past(&self, after: u64, limit: usize) -> Vec<(u64, Bytes)> {
        // The sender is `self`, so the channel does not close meanwhile.
        let _ = self.shared.last.subscribe().wait_for(|last| *last > after).await;
        let mut held = self.shared.held();
        while let Some((_, record)) = held.records.pop_front_if(|(sequence, _)| *sequence <= after) {
            held.bytes -= record.len();
        }
        self.shared.room.notify_one();
        held.records.iter().take(limit).cloned().collect()
    }
}

impl Shared {
    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False: it does not follow on what came before.
    async fn take(&self, sequence: u64, record: Bytes) -> bool {
        if sequence != *self.last.borrow() + 1 {
            return false;
        }
        loop {
            {
                let mut held = self.held();
                if held.records.len() < HELD_MAX && held.bytes < HELD_BYTES_MAX {
                    held.bytes += record.len();
                    held.records.push_back((sequence, record));
                    break;
                }
            }
            self.room.notified().await;
        }
        self.last.send_replace(sequence);
        true
    }
}

/// Takes what the server sends, until there is a gap: then those records are forgotten, or the server has lost some.
async fn receive(stream: Stream, after: u64, shared: Arc<Shared>) {
    let config = pull::OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
        max_batch: BATCH,
        description: Some("A process of Catchment that follows the log.".to_owned()),
        ..pull::OrderedConfig::default()
    };
    let consumer = loop {
        match stream.create_consumer(config.clone()).await {
            Ok(consumer) => break consumer,
            Err(error) => {
                let error = with_sources(&error);
                tracing::debug!(error, "the server sends no records by itself: they are asked for");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let mut messages = match consumer.messages().await {
        Ok(messages) => messages,
        Err(error) => return tracing::debug!(error = with_sources(&error), "the log is followed anew"),
    };
    while let Some(message) = messages.next().await {
        let message = match message {
            Ok(message) => message,
            Err(error) => return tracing::debug!(error = with_sources(&error), "the log is followed anew"),
        };
        let Ok(sequence) = message.info().map(|info| info.stream_sequence) else { return };
        if !shared.take(sequence, message.message.payload).await {
            return;
        }
    }
}
