//! Events of which some are sealed.

use super::{Kind, Looked, Sealing};
use crate::feed::feed;
use crate::{BusError, Events, Headers, Message, Subscription};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct SealedEvents {
    pub inner: Arc<dyn Events>,
    pub sealing: Sealing,
}

#[async_trait]
impl Events for SealedEvents {
    async fn publish(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        // Once the log is: before that some member may not know of seals.
        let seals = (self.sealing.seals_event)(subject) && self.sealing.has_begun();
        let payload = if seals { self.sealing.seal(Kind::Event(subject), &payload) } else { payload };
        self.inner.publish(subject, payload).await
    }

    async fn subscribe(&self, pattern: &str, group: Option<&str>) -> Result<Subscription, BusError> {
        let mut subscription = self.inner.subscribe(pattern, group).await?;
        if !(self.sealing.seals_event)(pattern) {
            return Ok(subscription);
        }
        let ((feeder, opened), sealing) = (feed(), self.sealing.clone());
        let pump = tokio::spawn(async move {
            while let Some(message) = subscription.next().await {
                if let Some(message) = open(&sealing, message) {
                    feeder.push(message);
                }
            }
        });
        Ok(opened.fed_by(pump.abort_handle()))
    }

    async fn request(
        &self,
        subject: &str,
        headers: Headers,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Message, BusError> {
        self.inner.request(subject, headers, payload, timeout).await
    }

    fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }
}

/// What is in a message; `None` when it is nobody's.
fn open(sealing: &Sealing, message: Message) -> Option<Message> {
    match sealing.look(Kind::Event(&message.subject), &message.payload) {
        Looked::Good(payload) => Some(Message { payload, ..message }),
        Looked::None if !sealing.has_begun() => Some(message),
        Looked::None | Looked::Bad => {
            tracing::debug!(subject = message.subject, "an event has no seal of this cluster's key; it is left out");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ClusterKey;
    use super::*;
    use crate::Bus;

    fn sealing(key: [u8; 32]) -> Sealing {
        Sealing::new(ClusterKey::from_bytes(key), |_| true, |subject| subject == "beats")
    }

    #[tokio::test]
    async fn once_records_are_sealed_so_are_some_events() {
        let bus = Bus::in_memory();
        let (one, other) = (sealing([1; 32]).around(bus.clone()), sealing([2; 32]).around(bus.clone()));
        let (mut heard, mut wakes) =
            (one.events.subscribe("beats", None).await.unwrap(), one.events.subscribe("wakes", None).await.unwrap());
        bus.events.publish("beats", "plain".into()).await.unwrap();
        assert_eq!(heard.next().await.unwrap().payload, "plain", "sealing has not begun");
        one.log.append("first".into(), 0).await.unwrap();
        other.log.append("first".into(), 1).await.unwrap();
        for events in [&bus.events, &other.events, &one.events] {
            events.publish("beats", "said".into()).await.unwrap();
            events.publish("wakes", "said".into()).await.unwrap();
        }
        one.events.publish("beats", "the end".into()).await.unwrap();
        assert_eq!(heard.next().await.unwrap().payload, "said");
        assert_eq!(heard.next().await.unwrap().payload, "the end");
        for _ in 0..3 {
            assert_eq!(wakes.next().await.unwrap().payload, "said");
        }
    }
}
