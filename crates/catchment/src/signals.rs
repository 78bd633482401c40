//! What signals mean to a server.

use catchment_node::Ending;
use tokio::signal::unix::{SignalKind, signal};

/// An interrupt ends it at once, with what is in progress finished; SIGTERM lets it drain first, and a second signal of
/// either kind ends that.
pub async fn end_on_signal(ending: Ending) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::error!("listen for signals");
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {
            ending.drain.cancel();
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                () = ending.stop.cancelled() => {}
            }
        }
    }
    tracing::info!("stopping: finishing what is in progress");
    ending.end();
}
