//! Events inside one process, with the meaning they have on NATS: wildcards, queue groups, requests.
//! Members of a group take turns, so a run with the same calls delivers the same way.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Mutex, mpsc};

use crate::events::{Reply, check_headers, headers_size_bytes};
use crate::feed::{Feeder, feed};
use crate::subject::{check_group, check_pattern, check_subject, matches};
use crate::{BusError, Events, Headers, Message, Subscription};

/// The largest payload and headers together, as a NATS server has it by default.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// The subject a reply arrives on; nothing can be sent to it.
const REPLY_SUBJECT: &str = "_INBOX.local";

#[derive(Default)]
pub(crate) struct LocalEvents {
    listeners: Mutex<Listeners>,
}

#[derive(Default)]
struct Listeners {
    all: Vec<Listener>,
    /// Whose turn it is in a group.
    turn: usize,
}

struct Listener {
    pattern: String,
    group: Option<String>,
    feeder: Feeder,
}

impl Listeners {
    fn forget_abandoned(&mut self) {
        self.all.retain(|listener| !listener.feeder.is_abandoned());
    }

    /// Gives the message to everyone concerned and says how many that were.
    fn deliver(&mut self, message: &Message) -> usize {
        self.forget_abandoned();
        let mut groups: BTreeMap<&str, Vec<&Feeder>> = BTreeMap::new();
        let mut delivered = 0;
        for listener in &self.all {
            if !matches(&listener.pattern, &message.subject) {
                continue;
            }
            if let Some(group) = &listener.group {
                groups.entry(group).or_default().push(&listener.feeder);
            } else {
                listener.feeder.push(message.clone());
                delivered += 1;
            }
        }
        for members in groups.values() {
            members[self.turn % members.len()].push(message.clone());
            delivered += 1;
        }
        self.turn = self.turn.wrapping_add(1);
        delivered
    }
}

fn check_size(headers: &Headers, payload: &Bytes) -> Result<(), BusError> {
    let bytes = headers_size_bytes(headers) + payload.len();
    if bytes <= PAYLOAD_BYTES_MAX {
        return Ok(());
    }
    Err(BusError::TooLarge { bytes, limit_bytes: PAYLOAD_BYTES_MAX })
}

/// Answers a request of this process. A requester that has gone does not matter.
pub(crate) fn respond(sender: &mpsc::Sender<Message>, payload: Bytes) -> Result<(), BusError> {
    let headers = vec![];
    check_size(&headers, &payload)?;
    let _ = sender.try_send(Message { subject: REPLY_SUBJECT.to_owned(), headers, payload, reply: None });
    Ok(())
}

#[async_trait]
impl Events for LocalEvents {
    async fn publish(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        check_subject(subject)?;
        check_size(&vec![], &payload)?;
        self.listeners.lock().await.deliver(&Message {
            subject: subject.to_owned(),
            headers: vec![],
            payload,
            reply: None,
        });
        Ok(())
    }

    async fn subscribe(&self, pattern: &str, group: Option<&str>) -> Result<Subscription, BusError> {
        check_pattern(pattern)?;
        group.map_or(Ok(()), check_group)?;
        let (feeder, subscription) = feed();
        let mut listeners = self.listeners.lock().await;
        listeners.forget_abandoned();
        listeners.all.push(Listener { pattern: pattern.to_owned(), group: group.map(str::to_owned), feeder });
        Ok(subscription)
    }

    async fn request(
        &self,
        subject: &str,
        headers: Headers,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Message, BusError> {
        check_subject(subject)?;
        check_headers(&headers)?;
        check_size(&headers, &payload)?;
        let (sender, mut replies) = mpsc::channel(1);
        let subject = subject.to_owned();
        let delivered = self.listeners.lock().await.deliver(&Message {
            subject: subject.clone(),
            headers,
            payload,
            reply: Some(Reply::Local(sender)),
        });
        if delivered == 0 {
            return Err(BusError::NoResponders { subject });
        }
        // Ends early when every receiver dropped the request unanswered.
        match tokio::time::timeout(timeout, replies.recv()).await {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) | Err(_) => {
                Err(BusError::NoReply { subject, timeout_ms: timeout.as_millis().try_into().unwrap_or(u64::MAX) })
            }
        }
    }

    fn is_connected(&self) -> bool {
        true
    }
}
