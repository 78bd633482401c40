//! How many instances fold a job's next batch: what the planner makes of what comes, waits, and takes.

use catchment_planner::{Arrivals, Config, Ewma, FOLD_S_PER_BYTE, InstancesDemand, instances};
use catchment_types::TimeMs;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long one batch should take while cores are free. An instance starts in microseconds and waking a thread takes some
/// tens, so work of less than this is not worth cutting.
const CALL_S: f64 = 0.005;

struct Seen {
    arrivals: Arrivals,
    service_s: Ewma,
}

/// What a job's work has been like on this node, while its task lives.
pub struct Sizing {
    config: Config,
    /// Bytes of an update, for as long as nothing was measured.
    update_bytes: u64,
    seen: Mutex<Seen>,
}

impl Sizing {
    /// Of a job with updates of this size.
    pub fn new(update_bytes: u64) -> Self {
        let config = Config { call_s: CALL_S, ..Config::default() };
        let seen = Seen { arrivals: Arrivals::default(), service_s: Ewma::default() };
        Self { config, update_bytes, seen: Mutex::new(seen) }
    }

    /// Instances for the next batch, at least one: `waiting` updates are there, and it may have `most`.
    pub fn instances(&self, waiting: u64, most: usize, now_ms: TimeMs) -> usize {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let demand = InstancesDemand {
            arrivals_per_s: seen.arrivals.per_s(now_ms, self.config.alpha, self.config.period_ms),
            service_s: seen.service_s.value().unwrap_or(self.update_bytes as f64 * FOLD_S_PER_BYTE),
            waiting: waiting.max(1),
            most: u32::try_from(most).unwrap_or(u32::MAX),
        };
        (instances(&demand, &self.config) as usize).max(1)
    }

    /// Notes that so many updates took so much of a function's time.
    pub fn folded(&self, updates: u64, took: Duration, now_ms: TimeMs) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Config { alpha, period_ms, .. } = self.config;
        seen.arrivals.observe(updates, now_ms, alpha, period_ms);
        seen.service_s.observe(took.as_secs_f64() / updates.max(1) as f64, now_ms, alpha, period_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_work_is_not_cut_and_large_work_is() {
        let small = Sizing::new(100_000);
        assert_eq!(small.instances(1, 8, 0), 1);
        assert_eq!(small.instances(1000, 8, 0), 1, "sixteen of them take less than a millisecond");
        let large = Sizing::new(232_000_000);
        assert_eq!(large.instances(1, 8, 0), 8);
        assert_eq!(large.instances(1, 2, 0), 2);
    }

    #[test]
    fn what_was_measured_counts() {
        let sizing = Sizing::new(100_000);
        sizing.folded(4, Duration::from_millis(80), 1000);
        assert_eq!(sizing.instances(1, 8, 1000), 4, "20 ms a piece");
        assert_eq!(sizing.instances(16, 8, 1000), 8);
    }
}
