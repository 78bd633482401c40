//! Counts of what the runtime did, for whoever publishes metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A snapshot of a runtime's counts, all since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RuntimeMetrics {
    /// Instances made (cold starts).
    pub instances_created: u64,
    /// Instances alive now.
    pub instances_live: u64,
    /// Time spent making instances, from nothing to initialised.
    pub instantiate_ns: u64,
    /// Calls of fold, merge and finalise.
    pub calls: u64,
    /// CPU time of those calls.
    pub cpu_ns: u64,
    /// Calls that ended in a trap, a time-out or for want of memory.
    pub calls_failed: u64,
}

#[derive(Debug, Default)]
pub struct Counters {
    created: AtomicU64,
    dropped: AtomicU64,
    instantiate_ns: AtomicU64,
    calls: AtomicU64,
    cpu_ns: AtomicU64,
    failed: AtomicU64,
}

impl Counters {
    pub fn instance_created(&self) {
        self.created.fetch_add(1, Relaxed);
    }

    pub fn instantiated(&self, took_ns: u64) {
        self.instantiate_ns.fetch_add(took_ns, Relaxed);
    }

    pub fn instance_dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    pub fn call_done(&self, cpu_ns: u64, failed: bool) {
        self.calls.fetch_add(1, Relaxed);
        self.cpu_ns.fetch_add(cpu_ns, Relaxed);
        self.failed.fetch_add(u64::from(failed), Relaxed);
    }

    pub fn snapshot(&self) -> RuntimeMetrics {
        // Read in this order, a creation in between never makes the difference negative.
        let dropped = self.dropped.load(Relaxed);
        let created = self.created.load(Relaxed);
        RuntimeMetrics {
            instances_created: created,
            instances_live: created.saturating_sub(dropped),
            instantiate_ns: self.instantiate_ns.load(Relaxed),
            calls: self.calls.load(Relaxed),
            cpu_ns: self.cpu_ns.load(Relaxed),
            calls_failed: self.failed.load(Relaxed),
        }
    }
}
