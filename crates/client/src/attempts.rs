//! When a call is made again, and after how long.
//!
//! Exponential backoff with full jitter (M. Brooker, *Exponential Backoff And Jitter*, AWS Architecture Blog, 2015):
//! thousands of clients that lost the same server must not come back in step. A server that names a time is believed,
//! and the jitter comes on top of it.

use crate::error::ClientError;
use crate::pacer::Pacer;
use std::time::Duration;

/// How often and how long a call is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Most attempts of one call, the first included.
    pub attempts_max: u32,
    /// Upper end of the first delay; it doubles with every attempt.
    pub delay_first: Duration,
    /// Upper end of every delay, but for what the server asks.
    pub delay_max: Duration,
    /// Time after a call's begin when no further attempt is begun. A running attempt is not cut short by it, and the time
    /// that an upload took before it broke off does not count.
    pub deadline: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 10,
            delay_first: Duration::from_millis(100),
            delay_max: Duration::from_secs(5),
            deadline: Duration::from_secs(60),
        }
    }
}

impl RetryPolicy {
    /// One attempt, no retry.
    pub const fn once() -> Self {
        Self { attempts_max: 1, delay_first: Duration::ZERO, delay_max: Duration::ZERO, deadline: Duration::ZERO }
    }

    /// The delay after the failed attempt number `attempt`, counted from 1; `fraction` is random, from 0 to 1.
    pub fn delay(&self, attempt: u32, fraction: f64) -> Duration {
        let doubled = self.delay_first.saturating_mul(1u32.checked_shl(attempt - 1).unwrap_or(u32::MAX));
        doubled.min(self.delay_max).mul_f64(fraction.clamp(0.0, 1.0))
    }
}

/// Which failures allow another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// Doing it twice is doing it once: every passing failure allows another attempt.
    Safe,
    /// Only failures after which the server cannot have acted.
    UnlessActed,
}

/// The attempts of one call.
pub struct Attempts<'a> {
    policy: &'a RetryPolicy,
    pacer: &'a dyn Pacer,
    repeat: Repeat,
    begun: Duration,
    made: u32,
    may_have_acted: bool,
}

impl<'a> Attempts<'a> {
    /// None made yet.
    pub fn new(policy: &'a RetryPolicy, pacer: &'a dyn Pacer, repeat: Repeat) -> Self {
        Self { policy, pacer, repeat, begun: pacer.now(), made: 0, may_have_acted: false }
    }

    /// Whether the server may have acted on an attempt that failed.
    pub fn may_have_acted(&self) -> bool {
        self.may_have_acted
    }

    /// Time since some moment, to measure an attempt by.
    pub fn now(&self) -> Duration {
        self.pacer.now()
    }

    /// Does not count the time since `from`: it was not spent in vain.
    pub fn excuse_since(&mut self, from: Duration) {
        self.begun += self.pacer.now().saturating_sub(from);
    }

    /// Waits until the next attempt is due.
    ///
    /// # Errors
    /// Gives `error`, that of the attempt just made, back when there shall be no other.
    pub async fn after(&mut self, error: ClientError) -> Result<(), ClientError> {
        self.made += 1;
        let acted = error.may_have_acted();
        let allowed = error.is_retryable() && (self.repeat == Repeat::Safe || !acted);
        if !allowed || self.made >= self.policy.attempts_max {
            return Err(error);
        }
        self.may_have_acted |= acted;
        let jitter = self.policy.delay(self.made, self.pacer.fraction());
        let delay = error.retry_after().unwrap_or_default().saturating_add(jitter);
        if self.pacer.now().saturating_sub(self.begun).saturating_add(delay) > self.policy.deadline {
            return Err(error);
        }
        tracing::debug!(%error, attempt = self.made, delay_ms = delay.as_millis() as u64, "call again");
        self.pacer.sleep(delay).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::sync::Mutex;

    #[test]
    fn delays_double_up_to_their_limit_and_never_overflow() {
        let policy = RetryPolicy::default();
        let delays: Vec<u64> = (1..=8).map(|n| policy.delay(n, 1.0).as_millis() as u64).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(policy.delay(3, 0.25), Duration::from_millis(100));
        assert_eq!(policy.delay(u32::MAX, 1.0), policy.delay_max);
    }

    /// Time that is only as late as it is told.
    #[derive(Default)]
    struct Told(Mutex<Duration>);

    impl Pacer for Told {
        fn now(&self) -> Duration {
            *self.0.lock().unwrap()
        }

        fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
            Box::pin(std::future::ready(()))
        }

        fn fraction(&self) -> f64 {
            0.0
        }
    }

    #[tokio::test]
    async fn an_upload_that_broke_off_after_long_may_go_on() {
        let (policy, pacer) = (RetryPolicy::default(), Told::default());
        let broken = || ClientError::Broken { url: String::new(), why: String::new() };
        let mut attempts = Attempts::new(&policy, &pacer, Repeat::Safe);
        for minutes in 1..5 {
            let begun = attempts.now();
            *pacer.0.lock().unwrap() = Duration::from_secs(minutes * 600);
            attempts.excuse_since(begun);
            attempts.after(broken()).await.unwrap();
        }
        *pacer.0.lock().unwrap() += policy.deadline + Duration::from_secs(1);
        assert!(attempts.after(broken()).await.is_err());
    }
}
