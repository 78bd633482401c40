//! What a cluster has used so far.

use crate::http::Connection;
use crate::observe::{cpu_seconds, pss_bytes};
use anyhow::{Context, Result, ensure};
use catchment_tests::{Cluster, Metrics};
use std::ops::{AddAssign, Sub};

/// What all its processes have used since they started.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// CPU seconds of nodes and coordinators.
    pub cpu_s: f64,
    /// CPU seconds of NATS.
    pub nats_cpu_s: f64,
    /// Bytes that have left the nodes: to each other, to NATS, to clients.
    pub out_bytes: f64,
}

impl Usage {
    /// Looks.
    pub fn of(cluster: &mut Cluster) -> Result<Self> {
        let nats = cluster.nats().pid();
        let out_bytes = cluster.nodes.iter().map(|node| node.host().bytes_out() as f64).sum();
        let cpu_s = pids(cluster)?.into_iter().map(cpu_seconds).sum::<Result<f64>>()?;
        Ok(Self { cpu_s, nats_cpu_s: cpu_seconds(nats)?, out_bytes })
    }
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            cpu_s: self.cpu_s - before.cpu_s,
            nats_cpu_s: self.nats_cpu_s - before.nats_cpu_s,
            out_bytes: self.out_bytes - before.out_bytes,
        }
    }
}

/// Memory of all nodes and coordinators, shared memory counted once.
pub fn memory_bytes(cluster: &mut Cluster) -> Result<u64> {
    pids(cluster)?.into_iter().map(pss_bytes).sum()
}

fn pids(cluster: &mut Cluster) -> Result<Vec<u32>> {
    cluster.processes().map(|process| process.pid().context("it runs")).collect()
}

/// What nodes counted for one job. A deleted job's counts are gone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Bytes of partials that came from other nodes.
    pub partial_bytes: f64,
    /// Instances that were made.
    pub cold_starts: f64,
}

impl Counts {
    /// Asks every node.
    pub fn of(job: &str, nodes: &[String]) -> Result<Self> {
        let mut counts = Self::default();
        for node in nodes {
            let (status, text) = Connection::open(node)?.call("GET", "/metrics", b"")?;
            ensure!(status == 200, "GET /metrics: {status}");
            let metrics = Metrics::parse(&String::from_utf8_lossy(&text));
            let sum = |name| metrics.sum(name, &[("job", job)]);
            counts += Self {
                partial_bytes: sum("catchment_peer_bytes_total"),
                cold_starts: sum("catchment_cold_starts_total"),
            };
        }
        Ok(counts)
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.partial_bytes += more.partial_bytes;
        self.cold_starts += more.cold_starts;
    }
}
