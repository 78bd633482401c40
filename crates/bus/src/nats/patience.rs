//! Waiting for a server that is not there yet.

use std::time::{Duration, Instant};

/// The first pause between two attempts, and the longest: a server that comes is not to be kept waiting.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often it is said that something is waited for.
const TELL: Duration = Duration::from_secs(5);

/// How long something is tried, once at least.
pub(super) struct Patience {
    begun: Instant,
    limit: Duration,
    told: Option<Instant>,
    pause: Duration,
}

impl Patience {
    /// From now on.
    pub(super) fn new(limit: Duration) -> Self {
        Self { begun: Instant::now(), limit, told: None, pause: PAUSE }
    }

    /// Waits after an attempt that failed, longer each time, and says every few seconds why. Returns whether to try again.
    pub(super) async fn pause(&mut self, url: &str, reason: &str) -> bool {
        let left = self.limit.saturating_sub(self.begun.elapsed());
        if left.is_zero() {
            return false;
        }
        if self.told.is_none_or(|told| told.elapsed() >= TELL) {
            self.told = Some(Instant::now());
            tracing::warn!(url, reason, left_s = left.as_secs(), "waiting for NATS");
        }
        tokio::time::sleep(self.pause.min(left)).await;
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        true
    }
}
