//! Estimates: exponentially weighted moving averages, updated with explicit times.
//!
//! LIFL updates `Q(t) = α · Q(t−1) + (1−α) · q(t)` once a period. Here the old weighs `α^(elapsed / period)`, which is the
//! same at one sample a period and does not depend on when somebody looks otherwise.

use catchment_types::TimeMs;
use serde::{Deserialize, Serialize};

/// The moving average of something sampled, such as a service time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Ewma {
    value: f64,
    at_ms: Option<TimeMs>,
}

impl Ewma {
    /// Takes a sample. One that is not finite, or negative, is ignored; the first one counts alone, and of several within a
    /// millisecond each weighs as much as a millisecond does.
    pub fn observe(&mut self, sample: f64, at_ms: TimeMs, alpha: f64, period_ms: u64) {
        if !sample.is_finite() || sample < 0.0 {
            return;
        }
        let Some(before_ms) = self.at_ms else {
            (self.value, self.at_ms) = (sample, Some(at_ms));
            return;
        };
        let old = weight_of_old(alpha, period_ms, at_ms.saturating_sub(before_ms).max(1));
        self.value = old * self.value + (1.0 - old) * sample;
        self.at_ms = Some(at_ms.max(before_ms));
    }

    /// The average, if anything was observed.
    pub fn value(&self) -> Option<f64> {
        self.at_ms.map(|_| self.value)
    }
}

/// The moving average of a rate, from counted events.
///
/// Events are gathered for a period; then their rate is a sample. While nothing comes, the rate falls by `α` a period.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Arrivals {
    per_s: f64,
    since_ms: Option<TimeMs>,
    count: u64,
    /// Whether a whole period has been counted.
    is_known: bool,
}

impl Arrivals {
    /// Begins with a rate that is expected, so that the first period's does not count alone.
    pub fn expecting(per_s: f64, now_ms: TimeMs) -> Self {
        let is_known = per_s.is_finite() && per_s > 0.0;
        Self { per_s: if is_known { per_s } else { 0.0 }, since_ms: Some(now_ms), count: 0, is_known }
    }

    /// Counts events. Times that run backwards count as the latest seen.
    pub fn observe(&mut self, count: u64, at_ms: TimeMs, alpha: f64, period_ms: u64) {
        self.advance(at_ms, alpha, period_ms);
        self.since_ms.get_or_insert(at_ms);
        self.count += count;
    }

    /// Events a second, as of now.
    pub fn per_s(&self, now_ms: TimeMs, alpha: f64, period_ms: u64) -> f64 {
        let mut copy = *self;
        copy.advance(now_ms, alpha, period_ms);
        if copy.is_known {
            return copy.per_s;
        }
        // Less than a period is known: what has come by now is the best guess.
        copy.count as f64 * 1000.0 / period_ms.max(1) as f64
    }

    fn advance(&mut self, now_ms: TimeMs, alpha: f64, period_ms: u64) {
        let Some(since_ms) = self.since_ms else { return };
        let period_ms = period_ms.max(1);
        let periods = now_ms.saturating_sub(since_ms) / period_ms;
        if periods == 0 {
            return;
        }
        let sample = self.count as f64 * 1000.0 / period_ms as f64;
        let old = if self.is_known { clamped(alpha) } else { 0.0 };
        let first = old * self.per_s + (1.0 - old) * sample;
        // In the other periods nothing came.
        self.per_s = first * weight_of_old(alpha, period_ms, (periods - 1).saturating_mul(period_ms));
        (self.count, self.is_known) = (0, true);
        self.since_ms = Some(since_ms + periods * period_ms);
    }
}

fn clamped(alpha: f64) -> f64 {
    if alpha.is_finite() { alpha.clamp(0.0, 1.0) } else { 0.0 }
}

fn weight_of_old(alpha: f64, period_ms: u64, elapsed_ms: u64) -> f64 {
    clamped(alpha).powf(elapsed_ms as f64 / period_ms.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sample_a_period_is_the_papers_formula() {
        let mut ewma = Ewma::default();
        assert_eq!(ewma.value(), None);
        ewma.observe(10.0, 0, 0.7, 1000);
        ewma.observe(20.0, 1000, 0.7, 1000);
        assert!((ewma.value().unwrap() - 13.0).abs() < 1e-9);
        ewma.observe(f64::NAN, 2000, 0.7, 1000);
        assert!((ewma.value().unwrap() - 13.0).abs() < 1e-9);
    }

    #[test]
    fn a_rate_is_known_after_a_period_and_falls_while_nothing_comes() {
        let mut arrivals = Arrivals::default();
        (0..100).for_each(|i| arrivals.observe(1, i * 10, 0.7, 1000));
        assert_eq!(arrivals.per_s(990, 0.7, 1000), 100.0);
        assert_eq!(arrivals.per_s(1000, 0.7, 1000), 100.0);
        assert!((arrivals.per_s(3000, 0.7, 1000) - 49.0).abs() < 1e-9);
        assert!(arrivals.per_s(60_000, 0.7, 1000) < 1e-6);
    }

    #[test]
    fn a_burst_weighs_less_against_what_was_expected() {
        let mut arrivals = Arrivals::expecting(10.0, 0);
        (0..100).for_each(|i| arrivals.observe(1, i * 10, 0.7, 1000));
        assert!((arrivals.per_s(1000, 0.7, 1000) - 37.0).abs() < 1e-9);
    }

    #[test]
    fn looking_changes_nothing() {
        let mut arrivals = Arrivals::default();
        arrivals.observe(5, 100, 0.5, 1000);
        let before = arrivals;
        arrivals.per_s(10_000, 0.5, 1000);
        assert_eq!(arrivals, before);
    }
}
