//! How many instances of a function a node needs.

use crate::config::Config;
use serde::{Deserialize, Serialize};

/// Seconds of CPU that folding a byte of an update takes, where nothing was measured yet: what rounds of sixteen 45 MB updates
/// took (`docs/benchmarks.md`).
pub const FOLD_S_PER_BYTE: f64 = 0.25e-9;

/// What a node has to do for one job.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct InstancesDemand {
    /// Updates a second, as estimated.
    pub arrivals_per_s: f64,
    /// Core-seconds of folding one, as estimated.
    pub service_s: f64,
    /// Updates that wait to be folded.
    pub waiting: u64,
    /// Instances it may have at most: the least of the job's limit and the cores there are.
    pub most: u32,
}

/// Instances wanted.
///
/// Little's law: `λ · S` of them are busy on average, so `λ · S / utilisation` keep queues short. What waits already is to
/// be gone within `lag_s`, and its next batch, which is cut over all instances, within `call_s`: an instance starts in
/// microseconds, and a core that nobody uses costs nothing. With nothing coming and nothing waiting there is none.
pub fn instances(demand: &InstancesDemand, config: &Config) -> u32 {
    let good = |number: f64| if number.is_finite() { number.max(0.0) } else { 0.0 };
    let (rate, service_s) = (good(demand.arrivals_per_s), good(demand.service_s));
    let busy = rate * service_s / config.utilisation.clamp(0.01, 1.0);
    let gone = demand.waiting as f64 * service_s / config.lag_s.max(0.001);
    let batch = demand.waiting.min(config.batch_updates) as f64 * service_s / config.call_s.max(0.001);
    // An arrival every few hours is nothing coming: the next one starts its own instance in microseconds.
    let is_idle = demand.waiting == 0 && rate * config.idle_ms as f64 / 1000.0 < 1.0;
    if is_idle {
        return 0;
    }
    // A thousandth less, so that an exact fit is not rounded up by a float's last bit.
    ((busy.max(gone).max(batch) - 0.001).ceil().max(1.0) as u32).min(demand.most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(arrivals_per_s: f64, service_s: f64, waiting: u64) -> u32 {
        instances(&InstancesDemand { arrivals_per_s, service_s, waiting, most: 8 }, &Config::default())
    }

    #[test]
    fn it_is_littles_law_at_the_utilisation() {
        assert_eq!(wanted(70.0, 0.01, 0), 1);
        assert_eq!(wanted(70.0, 0.02, 0), 2);
        assert_eq!(wanted(71.0, 0.02, 0), 3);
        assert_eq!(wanted(1000.0, 1.0, 0), 8, "no more than there may be");
    }

    #[test]
    fn what_waits_is_worked_off_within_the_lag_and_a_batch_within_a_call() {
        assert_eq!(wanted(0.0, 0.002, 3000), 6);
        assert_eq!(wanted(0.0, 0.1, 1), 2);
        assert_eq!(wanted(0.0, 0.01, 16), 4);
        assert_eq!(wanted(0.0, 0.0, 1), 1);
    }

    #[test]
    fn nothing_to_do_is_nothing() {
        assert_eq!(wanted(0.0, 0.1, 0), 0);
        assert_eq!(wanted(0.001, 0.1, 0), 0);
        assert_eq!(wanted(0.01, 0.1, 0), 1);
    }
}
