//! The bounded queue between a bus and one subscriber. A subscriber that does not keep up loses its
//! oldest messages, and they are counted; without the bounds it would take the process's memory.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures::Stream;
use tokio::task::AbortHandle;

use crate::Message;

/// The most messages that wait for one subscriber.
pub const QUEUED_MESSAGES_MAX: usize = 4096;

/// The most bytes that wait for one subscriber (one message is always kept).
pub const QUEUED_BYTES_MAX: usize = 16 << 20;

#[derive(Default)]
struct Queue {
    messages: VecDeque<Message>,
    bytes: usize,
    dropped: u64,
    /// No more messages will come.
    ended: bool,
    /// Nobody will take any.
    abandoned: bool,
    waker: Option<Waker>,
}

type Shared = Arc<Mutex<Queue>>;

/// Held for a few instructions, never across an await.
fn lock(shared: &Shared) -> MutexGuard<'_, Queue> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bus's end.
pub(crate) struct Feeder(Shared);

/// The messages for one subscriber, a stream that ends only with the bus. Dropping it unsubscribes.
pub struct Subscription {
    shared: Shared,
    pump: Option<AbortHandle>,
}

pub(crate) fn feed() -> (Feeder, Subscription) {
    let shared = Shared::default();
    let subscription = Subscription { shared: shared.clone(), pump: None };
    (Feeder(shared), subscription)
}

impl Feeder {
    pub(crate) fn push(&self, message: Message) {
        let mut queue = lock(&self.0);
        if queue.abandoned {
            return;
        }
        queue.bytes += message.size_bytes();
        queue.messages.push_back(message);
        while queue.messages.len() > QUEUED_MESSAGES_MAX || (queue.bytes > QUEUED_BYTES_MAX && queue.messages.len() > 1)
        {
            queue.pop();
            queue.dropped += 1;
        }
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        lock(&self.0).abandoned
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        let mut queue = lock(&self.0);
        queue.ended = true;
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Queue {
    fn pop(&mut self) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.size_bytes();
        Some(message)
    }
}

impl Subscription {
    /// How many messages were dropped so far because they were not taken in time.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        lock(&self.shared).dropped
    }

    /// Ends `pump`, which feeds this subscription, together with it.
    pub(crate) fn fed_by(mut self, pump: AbortHandle) -> Self {
        self.pump = Some(pump);
        self
    }
}

impl Stream for Subscription {
    type Item = Message;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        let mut queue = lock(&self.shared);
        match queue.pop() {
            Some(message) => Poll::Ready(Some(message)),
            None if queue.ended => Poll::Ready(None),
            None => {
                queue.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared);
        queue.abandoned = true;
        queue.messages = VecDeque::new();
        queue.bytes = 0;
        drop(queue);
        if let Some(pump) = &self.pump {
            pump.abort();
        }
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queue = lock(&self.shared);
        f.debug_struct("Subscription").field("queued", &queue.messages.len()).field("dropped", &queue.dropped).finish()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::{FutureExt, StreamExt};

    use super::*;

    fn message(number: usize, payload: usize) -> Message {
        Message { subject: number.to_string(), headers: vec![], payload: Bytes::from(vec![0; payload]), reply: None }
    }

    #[test]
    fn the_oldest_messages_give_way_by_count() {
        let (feeder, mut subscription) = feed();
        for number in 0..QUEUED_MESSAGES_MAX + 10 {
            feeder.push(message(number, 0));
        }
        assert_eq!(subscription.dropped(), 10);
        let first = subscription.next().now_or_never().flatten().unwrap();
        assert_eq!(first.subject, "10");
    }

    #[test]
    fn the_oldest_messages_give_way_by_bytes() {
        let (feeder, mut subscription) = feed();
        for number in 0..40 {
            feeder.push(message(number, 1 << 20));
        }
        // Subjects count too, so one less than sixteen fit.
        assert_eq!(subscription.dropped(), 25);
        let first = subscription.next().now_or_never().flatten().unwrap();
        assert_eq!(first.subject, "25");
        feeder.push(message(99, QUEUED_BYTES_MAX + 1));
        let only = subscription.next().now_or_never().flatten().unwrap();
        assert_eq!(only.subject, "99");
        assert!(subscription.next().now_or_never().is_none());
        assert_eq!(lock(&subscription.shared).bytes, 0);
    }

    #[test]
    fn both_ends_learn_of_the_other_end() {
        let (feeder, mut subscription) = feed();
        feeder.push(message(1, 0));
        drop(feeder);
        assert!(subscription.next().now_or_never().flatten().is_some());
        assert!(matches!(subscription.next().now_or_never(), Some(None)));

        let (feeder, subscription) = feed();
        drop(subscription);
        assert!(feeder.is_abandoned());
        feeder.push(message(1, 0));
        assert!(lock(&feeder.0).messages.is_empty());
    }
}
