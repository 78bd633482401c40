//! What things cost. Every default was measured (docs/benchmarks.md) or is named here as an assumption.

use serde::{Deserialize, Serialize};

/// What things cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Costs {
    /// Bytes a second that one core receives, digests and screens. Measured: a round's 0.72 GB took 0.90 CPU s, of which
    /// 18% was folding.
    pub ingest_bytes_per_s: f64,
    /// Bytes a second and core of a fold, update bytes and accumulator traffic together. From the table of folds: two
    /// cores fold 1.9 GB/s at one update a call and 5.4 at sixteen, so `(k · update + 1.12 · partial) / 3.08 GB/s`.
    pub fold_bytes_per_s: f64,
    /// How many times a call reads and writes the accumulator, in partials; from the same table.
    pub fold_partials: f64,
    /// Bytes a second and core of merging a partial. Measured: 90 MB in 15.4 ms on two cores.
    pub merge_bytes_per_s: f64,
    /// Bytes a second and core of coordinate-wise and two-phase functions. Assumed: a tenth of folding.
    pub gather_bytes_per_s: f64,
    /// An order to a runner process and its answer. Measured: 0.3 ms.
    pub order_s: f64,
    /// Updates of one call.
    pub batch: u64,
    /// From the last byte to the log's acknowledgement. Measured: 2.2 ms.
    pub log_s: f64,
    /// Writing and publishing a model, beside its bytes. Assumed: 20 ms.
    pub publish_s: f64,
    /// A runner process and its first order. Measured: 8.5 + 1.4 ms.
    pub instance_start_s: f64,
    /// A container with a function in it, for baselines that start those. Assumed: 1 s, from image on disk to ready.
    pub container_start_s: f64,
    /// Beyond a descriptor, core-seconds a byte of a hop through a message broker. Measured: an update of 45 MB takes
    /// 163.7 ms over NATS and 14.3 as an order.
    pub broker_s_per_byte: f64,
    /// How long an instance stays warm when it has nothing to do.
    pub keep_alive_s: f64,
    /// Latency within a zone. Assumed: 0.1 ms.
    pub near_s: f64,
    /// Latency between zones. Assumed: 2 ms.
    pub far_s: f64,
    /// Bytes a second of one transfer between zones. Assumed: 5 Gbit/s.
    pub far_bytes_per_s: f64,
    /// Until a dead node is known to be dead. Assumed: 3 s.
    pub detect_s: f64,
    /// Until a client that was refused or cut off tries again. Assumed: 1 s.
    pub retry_s: f64,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            ingest_bytes_per_s: 0.98e9,
            fold_bytes_per_s: 3.08e9,
            fold_partials: 1.12,
            merge_bytes_per_s: 2.9e9,
            gather_bytes_per_s: 0.3e9,
            order_s: 0.0003,
            batch: 16,
            log_s: 0.0022,
            publish_s: 0.02,
            instance_start_s: 0.0099,
            container_start_s: 1.0,
            broker_s_per_byte: 3.3e-9,
            keep_alive_s: 60.0,
            near_s: 0.0001,
            far_s: 0.002,
            far_bytes_per_s: 0.625e9,
            detect_s: 3.0,
            retry_s: 1.0,
        }
    }
}
