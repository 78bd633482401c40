//! The numbers that an operator may set. Each has a default and a reason.

use serde::{Deserialize, Serialize};

/// How the planner weighs things.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Weight of what was known before, per `period_ms`, in every moving average (0 to 1). Default 0.7.
    pub alpha: f64,
    /// The period that `alpha` is meant for. Default 1000.
    pub period_ms: u64,
    /// How busy cores and links are planned to be at most. Default 0.7: queues grow as 1 / (1 − utilisation).
    pub utilisation: f64,
    /// How long after its last update a round may still be folding. Default 1 s.
    pub lag_s: f64,
    /// How long one call's batch should take while cores are free: more instances then share it. Default 50 ms.
    pub call_s: f64,
    /// A round whose arrivals are unknown is planned to arrive within this, or its deadline. Default 60 s.
    pub unknown_s: f64,
    /// Updates folded in one call, and hence kept room for where there is room. Default 16.
    pub batch_updates: u64,
    /// How long partials may take into one node before a level goes between. Default 1 s.
    pub merge_s: f64,
    /// How long fewer must have been enough before anything is given up. Default 60 s.
    pub settle_ms: u64,
    /// How long nothing must have been wanted before the last is given up. Default 300 s.
    pub idle_ms: u64,
    /// How much smaller a demand must be than what the smaller number of nodes could serve, before a round gives nodes
    /// up. Default 0.2.
    pub margin: f64,
    /// Nodes named in an explanation. Default 16.
    pub explained: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            alpha: 0.7,
            period_ms: 1000,
            utilisation: 0.7,
            lag_s: 1.0,
            call_s: 0.05,
            unknown_s: 60.0,
            batch_updates: 16,
            merge_s: 1.0,
            settle_ms: 60_000,
            idle_ms: 300_000,
            margin: 0.2,
            explained: 16,
        }
    }
}
