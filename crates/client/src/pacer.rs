//! Waiting and randomness between attempts, as a thing handed in: tests run a minute of backoff in no time, and the
//! same seed gives the same delays.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Where time and randomness come from.
pub trait Pacer: Send + Sync + 'static {
    /// Time since some fixed moment; never goes back.
    fn now(&self) -> Duration;
    /// Returns after `delay`.
    fn sleep(&self, delay: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    /// A random number, at least 0 and below 1.
    fn fraction(&self) -> f64;
}

/// Real time, and a generator of its own.
#[derive(Debug)]
pub struct SystemPacer {
    begun: Instant,
    rng: Mutex<StdRng>,
}

impl SystemPacer {
    /// Randomness from the operating system, so that clients which failed together do not come back together.
    pub fn new() -> Self {
        Self::with(rand::make_rng())
    }

    /// Randomness from `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self::with(StdRng::seed_from_u64(seed))
    }

    fn with(rng: StdRng) -> Self {
        Self { begun: Instant::now(), rng: Mutex::new(rng) }
    }
}

impl Default for SystemPacer {
    fn default() -> Self {
        Self::new()
    }
}

impl Pacer for SystemPacer {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn sleep(&self, delay: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(delay))
    }

    fn fraction(&self) -> f64 {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).random()
    }
}
