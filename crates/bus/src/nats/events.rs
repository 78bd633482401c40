//! Events as plain NATS messages, outside every stream.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Request, RequestErrorKind, Subject, SubscribeErrorKind};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;

use super::{is_connected, publish, with_sources};
use crate::events::{Reply, check_headers, headers_size_bytes};
use crate::feed::feed;
use crate::subject::{check_group, check_pattern, check_subject};
use crate::{BusError, Events, Headers, Message, Subscription};

pub(super) struct NatsEvents {
    pub(super) client: Client,
    /// What every subject on the server begins with, its dot included: callers neither say nor see it, so none forgets it.
    pub(super) prefix: String,
    /// For errors: without credentials.
    pub(super) url: String,
    pub(super) request_timeout: Duration,
}

impl NatsEvents {
    /// A subject or pattern as the server knows it.
    fn on_server(&self, subject: &str) -> String {
        format!("{}{subject}", self.prefix)
    }

    fn check_connected(&self) -> Result<(), BusError> {
        if is_connected(&self.client) {
            return Ok(());
        }
        Err(BusError::Disconnected { url: self.url.clone() })
    }

    /// Waits until the server has seen what was sent before: a request to an inbox that nobody has is
    /// answered by the server itself, in order. When it is not, the subscription takes force later.
    async fn wait_for_server(&self) {
        if is_connected(&self.client) {
            let request = Request::new().timeout(Some(self.request_timeout));
            let _ = self.client.send_request(self.client.new_inbox(), request).await;
        }
    }
}

#[async_trait]
impl Events for NatsEvents {
    async fn publish(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        check_subject(subject)?;
        self.check_connected()?;
        publish(&self.client, Subject::from(self.on_server(subject)), payload).await
    }

    async fn subscribe(&self, pattern: &str, group: Option<&str>) -> Result<Subscription, BusError> {
        check_pattern(pattern)?;
        group.map_or(Ok(()), check_group)?;
        let on_server = self.on_server(pattern);
        let subscribing = async {
            match group {
                Some(group) => self.client.queue_subscribe(on_server, group.to_owned()).await,
                None => self.client.subscribe(on_server).await,
            }
        };
        let mut messages = tokio::time::timeout(self.request_timeout, subscribing)
            .await
            .map_err(|_| BusError::Client("the outgoing queue is full".to_owned()))?
            .map_err(|error| match error.kind() {
                SubscribeErrorKind::InvalidSubject | SubscribeErrorKind::InvalidQueueName => {
                    BusError::Subject { subject: pattern.to_owned(), reason: "the NATS client refuses it" }
                }
                _ => BusError::Client(with_sources(&error)),
            })?;
        let (feeder, subscription) = feed();
        let (client, prefix) = (self.client.clone(), self.prefix.clone());
        let pump = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                feeder.push(received(&client, &prefix, message));
            }
        });
        let subscription = subscription.fed_by(pump.abort_handle());
        self.wait_for_server().await;
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
        self.check_connected()?;
        let bytes = headers_size_bytes(&headers) + payload.len();
        let mut request = Request::new().payload(payload).timeout(None);
        if !headers.is_empty() {
            let mut map = HeaderMap::new();
            for (name, value) in &headers {
                map.append(name.as_str(), value.as_str());
            }
            request = request.headers(map);
        }
        let no_reply = || BusError::NoReply {
            subject: subject.to_owned(),
            timeout_ms: timeout.as_millis().try_into().unwrap_or(u64::MAX),
        };
        // One timeout around everything: a full outgoing queue counts too.
        let replied = tokio::time::timeout(timeout, self.client.send_request(self.on_server(subject), request)).await;
        match replied.map_err(|_| no_reply())? {
            Ok(reply) => Ok(received(&self.client, &self.prefix, reply)),
            Err(error) => Err(match error.kind() {
                RequestErrorKind::NoResponders => BusError::NoResponders { subject: subject.to_owned() },
                RequestErrorKind::TimedOut => no_reply(),
                RequestErrorKind::MaxPayloadExceeded => {
                    BusError::TooLarge { bytes, limit_bytes: self.client.max_payload() }
                }
                _ => BusError::Client(with_sources(&error)),
            }),
        }
    }

    fn is_connected(&self) -> bool {
        is_connected(&self.client)
    }
}

fn received(client: &Client, prefix: &str, message: async_nats::Message) -> Message {
    let headers = message.headers.iter().flat_map(HeaderMap::iter);
    let headers = headers
        .flat_map(|(name, values)| values.iter().map(move |value| (name.to_string(), value.as_str().to_owned())));
    Message {
        // A reply comes on an inbox, which is outside.
        subject: message.subject.strip_prefix(prefix).unwrap_or(&message.subject).to_owned(),
        headers: headers.collect(),
        payload: message.payload,
        reply: message.reply.map(|inbox| Reply::Nats(client.clone(), inbox)),
    }
}
