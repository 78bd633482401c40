//! Backpressure: how many descriptors may be under way to one runner.

use std::sync::atomic::{AtomicU32, Ordering};

/// A window of descriptors that were sent and not yet handled.
#[derive(Debug)]
pub(crate) struct Credits {
    in_flight: AtomicU32,
    window: u32,
}

impl Credits {
    pub(crate) fn new(window: u32) -> Self {
        Self { in_flight: AtomicU32::new(0), window }
    }

    /// Takes one, unless the window is full.
    pub(crate) fn take(&self) -> bool {
        let more = |taken| (taken < self.window).then_some(taken + 1);
        // The order does not matter: the count guards memory, and no data is published by it.
        self.in_flight.try_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Gives back. A runner that gives back more than it got cannot widen the window.
    pub(crate) fn give(&self, count: u32) {
        self.in_flight.update(Ordering::Relaxed, Ordering::Relaxed, |taken| taken.saturating_sub(count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_neither_leaks_nor_widens() {
        let credits = Credits::new(2);
        assert!(credits.take() && credits.take() && !credits.take());
        credits.give(1);
        assert!(credits.take() && !credits.take());
        credits.give(u32::MAX);
        assert!(credits.take() && credits.take() && !credits.take());
    }
}
