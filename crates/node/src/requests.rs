//! Requests that come over the bus, answered a limited number at a time.

use crate::context::Context;
use catchment_bus::{BusError, Message};
use futures::StreamExt;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Requests of one kind worked on at one time; more wait in the subscription's bounded queue.
const AT_ONCE: usize = 64;

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
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let request = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            request = requests.next() => match request {
                Some(request) => Arc::new(request),
                None => return Err(BusError::Ended),
            },
        };
        let place = places.clone().acquire_owned().await.expect("never closed");
        let answered = answer(context.clone(), request.clone());
        tokio::spawn(async move {
            if let Err(error) = request.respond(answered.await.into()).await {
                tracing::debug!(%error, subject = request.subject, "reply to a request");
            }
            drop(place);
        });
    }
}
