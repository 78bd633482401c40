//! Requests that come over the bus, answered a limited number at a time.

use crate::context::Context;
use catchment_bus::{BusError, Message};
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Requests of one kind worked on at one time; more wait in the subscription's bounded queue.
const AT_ONCE: usize = 64;
/// How long those that are being worked on may take once the node ends.
const LAST_TIME: Duration = Duration::from_secs(1);

/// Answers requests on `subject` until `stop`; of the nodes in one `group`, one gets each.
///
/// # Errors
/// When the subject cannot be subscribed to.
pub async fn serve<F>(
    context: Arc<Context>,
    subject: &str,
    group: Option<&str>,
    stop: CancellationToken,
    answer: fn(Arc<Context>, Arc<Message>) -> F,
) -> Result<(), BusError>
where
    F: Future<Output = Vec<u8>> + Send + 'static,
{
    let mut requests = context.bus.events.subscribe(subject, group).await?;
    let (places, tasks) = (Arc::new(Semaphore::new(AT_ONCE)), TaskTracker::new());
    let ended = loop {
        let next = async {
            let place = places.clone().acquire_owned().await.expect("never closed");
            (place, requests.next().await)
        };
        let (place, request) = tokio::select! {
            () = stop.cancelled() => break Ok(()),
            (place, request) = next => match request {
                Some(request) => (place, Arc::new(request)),
                None => break Err(BusError::Ended),
            },
        };
        let answered = answer(context.clone(), request.clone());
        tasks.spawn(async move {
            if let Err(error) = request.respond(answered.await.into()).await {
                tracing::debug!(%error, subject = request.subject, "reply to a request");
            }
            drop(place);
        });
    };
    // Who has been asked answers. What it waits for ends soon after the node does.
    tasks.close();
    tokio::select! {
        () = tasks.wait() => {}
        () = async { context.ending.stop.cancelled().await; tokio::time::sleep(LAST_TIME).await } => {}
    }
    ended
}
