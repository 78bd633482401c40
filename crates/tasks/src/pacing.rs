//! When a client that has to wait asks again.

use catchment_types::TimeMs;

/// Check-ins a second that appointments of one desk amount to at most: a few per cent of what one core answers, so that
/// updates always have the rest.
pub const RATE_MAX_PER_S: f64 = 300.0;
/// Share of that rate which the clients known to wait fill, so that a client finds a place near the one it is drawn to.
const LOAD: f64 = 0.8;
/// Within this time as many should ask as a round can do with.
const FILL_MS: f64 = 1_000.0;
/// Nobody is told to come sooner.
pub const RETRY_MS_MIN: u64 = 100;
/// Nor later, however many wait.
pub const RETRY_MS_MAX: u64 = 3_600_000;
/// The smallest window.
const WINDOW_MS_MIN: f64 = 400.0;
/// The smallest while no round can open: the job is paused, or has no model.
const IDLE_WINDOW_MS_MIN: f64 = 2_000.0;

/// What an appointment depends on.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    /// Clients that wait.
    pub waiting: usize,
    /// Check-ins a second that may come of them.
    pub per_s: f64,
    /// Clients that a round can do with: its tasks, and more where a policy chooses among those who ask.
    pub wanted: u64,
    /// When the next round should open, as far as the last ones tell.
    pub next_ms: Option<TimeMs>,
    /// Whether no round can open.
    pub is_idle: bool,
}

/// The earliest and the latest time, counted from now, at which a client that has to wait is told to come again, before
/// the book looks for a slot with room. With `n` clients waiting and `r` check-ins a second:
///
/// - `n / 0.8 r` is the time in which all of them can come; the window is never smaller, so the rate holds.
/// - `n · 1 s / wanted`: with a window of this length as many come each second as a round can do with. It is no larger, so
///   that a round that opens early finds its clients; it is smaller when the next round is expected sooner.
/// - At least 400 ms (2 s while no round can open), at most an hour. Never sooner than 100 ms.
///
/// 100,000 waiting clients come over 7 minutes, 240 a second, or fewer where a round wants fewer; the three of a small job
/// within a second.
pub fn appointment_bounds(crowd: &Crowd, now_ms: TimeMs) -> (u64, u64) {
    let waiting = crowd.waiting.max(1) as f64;
    let everybody = waiting * 1000.0 / (LOAD * crowd.per_s.max(1e-3));
    let fill = waiting * FILL_MS / crowd.wanted.max(1) as f64;
    let next = crowd.next_ms.map_or(fill, |next| fill.min(next.saturating_sub(now_ms) as f64));
    let least = if crowd.is_idle { IDLE_WINDOW_MS_MIN } else { WINDOW_MS_MIN };
    let window = everybody.max(next).clamp(least, (RETRY_MS_MAX - RETRY_MS_MIN) as f64);
    (RETRY_MS_MIN, RETRY_MS_MIN + window as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(waiting: usize, wanted: u64, next_ms: Option<u64>) -> u64 {
        appointment_bounds(&Crowd { waiting, per_s: RATE_MAX_PER_S, wanted, next_ms, is_idle: false }, 1_000_000).1
    }

    #[test]
    fn the_window_grows_with_the_crowd_and_keeps_to_the_next_round() {
        assert_eq!(bounds(100_000, 520, None), 416_766);
        assert_eq!(bounds(100_000, 130, None), 769_330, "no more than 130 a second are of use");
        assert_eq!(bounds(3, 3, None), 1_100, "few clients come often enough to fill a round in a second");
        assert_eq!(bounds(3, 3, Some(0)), 500, "the round is overdue");
        assert_eq!(bounds(10_000, 130, Some(1_060_000)), 60_100);
        assert_eq!(bounds(usize::MAX, 1, None), RETRY_MS_MAX);
        assert_eq!(bounds(0, 0, None), 1_100);
    }
}
