//! Accepts connections, as many as there is room for, and ends them in order.

use super::connection::{self, Served};
use futures::future::BoxFuture;
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
pub fn serve(served: Served, listener: TcpListener, connections_max: usize) -> BoxFuture<'static, ()> {
    // In a box: what serves a connection is then compiled here, once, and not again in each program that serves.
    Box::pin(async move {
        let places = Arc::new(Semaphore::new(connections_max));
        let tasks = TaskTracker::new();
        loop {
            let place = tokio::select! {
                place = places.clone().acquire_owned() => place.expect("never closed"),
                () = served.ending.stop.cancelled() => break,
            };
            let stream = tokio::select! {
                () = served.ending.stop.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        pause_after(&error).await;
                        continue;
                    }
                },
            };
            let served = served.clone();
            tasks.spawn(async move {
                let _place = place;
                if let Err(error) = connection::serve(served, stream).await {
                    tracing::debug!(%error, "connection ended");
                }
            });
        }
        drop(listener);
        tasks.close();
        tokio::time::timeout(STOP_TIME, tasks.wait()).await.ok();
    })
}

/// Out of descriptors or memory: wait for some to come back instead of spinning.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}
