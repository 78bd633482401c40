//! Accepts connections, as many as there is room for, and ends them in order.

use crate::context::Context;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a request's head may take.
const HEAD_TIME: Duration = Duration::from_secs(15);
/// Bytes read from a connection at one time; also the most that the head of a request may have.
const READ_BYTES: usize = 512 << 10;
/// How long open requests may go on once the node stops.
const STOP_TIME: Duration = Duration::from_secs(5);

/// Serves until `stop` is cancelled, then lets open requests finish.
pub async fn serve(context: Arc<Context>, listener: TcpListener, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(context.config.connections_max));
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
        stream.set_nodelay(true).ok();
        let service = TowerToHyperService::new(router.clone());
        let stop = stop.clone();
        tasks.spawn(async move {
            let _place = place;
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(READ_BYTES);
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                result = connection.as_mut() => log_end(result),
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::time::timeout(STOP_TIME, connection).await.ok();
                }
            }
        });
    }
    drop(listener);
    tasks.close();
    tokio::time::timeout(STOP_TIME, tasks.wait()).await.ok();
}

fn log_end(result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}

/// Out of descriptors or memory: wait for some to come back instead of spinning.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}
