//! How long the other side of a connection may take for its next bytes.
//!
//! Bytes earn time at the minimum rate, and what is earned is not saved up for long: who sent a gigabyte fast may then be
//! silent for as long as anybody else. So both the silence between two bytes and the rate over any longer time have a
//! limit, where a mean since the beginning would have none.

use std::time::Duration;
use tokio::time::Instant;

/// The time that one side has left.
#[derive(Debug)]
pub struct Slack {
    bytes_per_s: u64,
    grace: Duration,
    silence: Duration,
    /// When what came will have been too little.
    until: Instant,
    /// When nothing will have come for too long.
    silent_until: Instant,
    /// Since when this side has been at something else than waiting for the other.
    busy_since: Option<Instant>,
}

impl Slack {
    /// `grace` is free at the beginning. Between two bytes at most `silence` may pass.
    pub fn new(grace: Duration, bytes_per_s: u64, silence: Duration) -> Self {
        let now = Instant::now();
        let (until, silent_until) = (now + grace, now + grace.max(silence));
        Self { bytes_per_s: bytes_per_s.max(1), grace, silence, until, silent_until, busy_since: None }
    }

    /// Begins to wait for the other side. Gives the time at which it will have been too slow.
    ///
    /// Only time spent waiting counts: what this side takes to find room for gigabytes, or to write them down, is not the
    /// other's doing.
    pub fn wait(&mut self) -> Instant {
        if let Some(since) = self.busy_since.take() {
            let busy = since.elapsed();
            self.until += busy;
            self.silent_until += busy;
        }
        self.until.min(self.silent_until)
    }

    /// Ends a wait, after which `bytes` bytes have moved.
    pub fn gain(&mut self, bytes: usize) {
        let now = Instant::now();
        let most = self.silence.max(self.grace);
        // What is too much to be saved up is too much to be counted.
        let earned = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64).min(most);
        self.until = (self.until + earned).min(now + most);
        if bytes > 0 {
            self.silent_until = now + self.silence;
        }
        self.busy_since = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const S: Duration = Duration::from_secs(1);

    fn left(slack: &mut Slack) -> Duration {
        slack.wait().saturating_duration_since(Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn time_is_earned_and_not_saved_up() {
        let mut slack = Slack::new(10 * S, 100, 60 * S);
        assert_eq!(left(&mut slack), 10 * S);
        advance(4 * S).await;
        slack.gain(500);
        assert_eq!(left(&mut slack), 11 * S);
        // A fast begin buys no more than anybody has.
        slack.gain(1 << 30);
        assert_eq!(left(&mut slack), 60 * S);
        // And a byte now and then buys next to nothing.
        for _ in 0..5 {
            advance(11 * S).await;
            slack.gain(1);
        }
        assert!(left(&mut slack) < 6 * S);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_has_a_limit_of_its_own() {
        let mut slack = Slack::new(60 * S, 100, 2 * S);
        assert_eq!(left(&mut slack), 60 * S, "it need not begin at once");
        advance(30 * S).await;
        slack.gain(1);
        assert_eq!(left(&mut slack), 2 * S);
        for _ in 0..29 {
            advance(S).await;
            slack.gain(1);
            assert!(left(&mut slack) > Duration::ZERO, "in its grace it may trickle");
        }
        advance(S).await;
        slack.gain(1);
        assert!(left(&mut slack) < S);
    }

    #[tokio::test(start_paused = true)]
    async fn time_of_this_side_does_not_count() {
        let mut slack = Slack::new(10 * S, 100, 10 * S);
        advance(9 * S).await;
        slack.gain(0);
        advance(100 * S).await;
        assert_eq!(left(&mut slack), S);
        // Waiting again goes on where it was.
        advance(S / 2).await;
        assert_eq!(left(&mut slack), S / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_keeps_to_the_rate_goes_on_for_ever() {
        let mut slack = Slack::new(S, 1000, 2 * S);
        for _ in 0..1000 {
            advance(S / 2).await;
            assert!(left(&mut slack) > Duration::ZERO);
            slack.gain(510);
        }
    }
}
