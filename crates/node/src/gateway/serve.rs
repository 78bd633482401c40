//! Accepts connections, as many as there is room for, and ends them in order.

use super::connection;
use crate::context::Context;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long open requests may go on once the node stops.
const STOP_TIME: Duration = Duration::from_secs(5);

/// Serves until `stop` is cancelled, then lets open requests finish.
pub async fn serve(context: Arc<Context>, listener: TcpListener, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(context.config.connections_max));
    let clock = context.clock.clone();
    let router = super::router(context);
    let tasks = TaskTracker::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("never closed");
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    pause_after(&error).await;
                    continue;
                }
            },
        };
        let (router, clock, stop) = (router.clone(), clock.clone(), stop.clone());
        tasks.spawn(async move {
            let _place = place;
            if let Err(error) = connection::serve(stream, router, clock, stop).await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
    drop(listener);
    tasks.close();
    tokio::time::timeout(STOP_TIME, tasks.wait()).await.ok();
}

/// Out of descriptors or memory: wait for some to come back instead of spinning.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}
