//! Accepts connections, as many as there is room for, and ends them in order.

use super::connection;
use crate::context::Ending;
use axum::Router;
use catchment_types::Clock;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// How long open requests may go on once the node stops.
const STOP_TIME: Duration = Duration::from_secs(5);

/// Serves until it is told to end, then lets open requests finish. From when it drains on, connections end with the
/// request that they are at, so that clients which reconnect come to another node. `connections_max`: connections served
/// at one time; more wait.
pub async fn serve(
    router: Router,
    listener: TcpListener,
    connections_max: usize,
    clock: Arc<dyn Clock>,
    ending: &Ending,
) {
    let places = Arc::new(Semaphore::new(connections_max));
    let tasks = TaskTracker::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("never closed");
        let stream = tokio::select! {
            () = ending.stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    pause_after(&error).await;
                    continue;
                }
            },
        };
        let (router, clock, ending) = (router.clone(), clock.clone(), ending.clone());
        tasks.spawn(async move {
            let _place = place;
            if let Err(error) = connection::serve(stream, router, clock, ending).await {
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
