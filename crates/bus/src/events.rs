//! The contract of the events: messages to whoever listens now.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{BusError, Subscription};

/// A message's headers. The order among different names is not kept; names are compared without case.
pub type Headers = Vec<(String, String)>;

/// Publish and subscribe, at most once. An event is a hint: whoever misses one finds the work by
/// sweeping, so nothing here waits for long, and nothing is kept for later.
///
/// Subjects are the cluster's own: on a server they lie under its prefix ([`crate::NatsConfig::prefix`]), which neither the
/// subjects given here nor those of messages received have.
#[async_trait]
pub trait Events: Send + Sync + 'static {
    /// Sends `payload` to whoever listens on `subject` now. Does not wait for anyone to receive it,
    /// nor for a server that is away.
    ///
    /// # Errors
    /// [`BusError::Subject`], [`BusError::TooLarge`], [`BusError::Disconnected`]; a caller for whom
    /// the event is only a hint may ignore them all.
    async fn publish(&self, subject: &str, payload: Bytes) -> Result<(), BusError>;

    /// Listens on every subject that falls under `pattern` (NATS wildcards `*` and `>`), until the
    /// subscription is dropped; it survives reconnects. Of the subscriptions with the same `group`,
    /// one gets each message.
    ///
    /// The subscription is in force when this returns, unless the server is away: then it is once the
    /// connection is back.
    ///
    /// # Errors
    /// [`BusError::Subject`], [`BusError::Client`].
    async fn subscribe(&self, pattern: &str, group: Option<&str>) -> Result<Subscription, BusError>;

    /// Sends a request and waits for the first reply.
    ///
    /// # Errors
    /// [`BusError::NoResponders`] at once when nobody listens, [`BusError::NoReply`] after `timeout`,
    /// [`BusError::Disconnected`], [`BusError::Subject`], [`BusError::Header`],
    /// [`BusError::TooLarge`].
    async fn request(
        &self,
        subject: &str,
        headers: Headers,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Message, BusError>;

    /// Whether the server is reachable, as far as is known; in process, always.
    fn is_connected(&self) -> bool;
}

/// A message received, with the way back when it is a request.
#[derive(Clone)]
pub struct Message {
    /// The subject it was published on, without the cluster's prefix.
    pub subject: String,
    /// Its headers.
    pub headers: Headers,
    /// Its content.
    pub payload: Bytes,
    pub(crate) reply: Option<Reply>,
}

/// The way back to whoever sent a request.
#[derive(Clone)]
pub(crate) enum Reply {
    Local(mpsc::Sender<Message>),
    Nats(async_nats::Client, async_nats::Subject),
}

impl Message {
    /// The first value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.as_str())
    }

    /// Whether the sender waits for a reply.
    #[must_use]
    pub fn is_request(&self) -> bool {
        self.reply.is_some()
    }

    /// Answers a request. The first answer counts; whether it arrives is not known here.
    ///
    /// # Errors
    /// [`BusError::NotARequest`], [`BusError::TooLarge`], [`BusError::Client`].
    pub async fn respond(&self, payload: Bytes) -> Result<(), BusError> {
        match &self.reply {
            None => Err(BusError::NotARequest { subject: self.subject.clone() }),
            Some(Reply::Local(sender)) => crate::local::respond(sender, payload),
            Some(Reply::Nats(client, inbox)) => crate::nats::publish(client, inbox.clone(), payload).await,
        }
    }

    /// What the message takes in a queue.
    pub(crate) fn size_bytes(&self) -> usize {
        self.subject.len() + headers_size_bytes(&self.headers) + self.payload.len()
    }
}

/// What headers take on the wire, about.
pub(crate) fn headers_size_bytes(headers: &Headers) -> usize {
    headers.iter().map(|(n, v)| n.len() + v.len() + 4).sum()
}

/// Refuses what would break the line protocol, or be read back differently.
pub(crate) fn check_headers(headers: &Headers) -> Result<(), BusError> {
    for (name, value) in headers {
        let token = |b: u8| b.is_ascii_graphic() && b != b':';
        let reason = if name.is_empty() || !name.bytes().all(token) {
            "a name is visible ASCII without a colon"
        } else if value.trim() != value || value.contains(|c: char| c.is_control()) {
            "a value has no control characters and no white space around it"
        } else {
            continue;
        };
        return Err(BusError::Header { name: name.clone(), reason });
    }
    Ok(())
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("subject", &self.subject)
            .field("headers", &self.headers)
            .field("payload_bytes", &self.payload.len())
            .field("is_request", &self.is_request())
            .finish()
    }
}
