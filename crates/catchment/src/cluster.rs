//! How the processes of a cluster find each other.

use anyhow::{Context as _, Result, bail};
use catchment_bus::{Bus, NatsConfig};
use catchment_fleet::Pace;
use catchment_types::DurationText;
use std::time::Duration;

/// The shortest interval between heartbeats: with less, they would be most of what a cluster does.
const HEARTBEAT_MS_MIN: u64 = 50;

/// What the processes of a cluster have in common; only with NATS.
#[derive(Debug, clap::Args)]
pub struct ClusterArgs {
    /// How often the processes of a cluster tell each other that they are there.
    #[arg(long, default_value = "1s", env = "CATCHMENT_HEARTBEAT")]
    heartbeat: DurationText,
    /// After this much silence a node is given up: its updates are lost, and their clients are asked again.
    #[arg(long, default_value = "10s", env = "CATCHMENT_NODE_TIMEOUT")]
    node_timeout: DurationText,
}

impl ClusterArgs {
    /// How often they speak, and what silence means.
    pub fn pace(&self) -> Result<Pace> {
        let (heartbeat, timeout) = (self.heartbeat.ms(), self.node_timeout.ms());
        if heartbeat < HEARTBEAT_MS_MIN {
            bail!("--heartbeat is at least {HEARTBEAT_MS_MIN}ms");
        }
        if timeout < 3 * heartbeat {
            bail!("--node-timeout is at least three times --heartbeat: one that is late is not lost");
        }
        Ok(Pace { interval: Duration::from_millis(heartbeat), lost_after: Duration::from_millis(timeout) })
    }

    /// Connects to the cluster's NATS server.
    pub async fn connect(&self, url: &str) -> Result<Bus> {
        let connected = Bus::nats(NatsConfig::new(url)).await;
        connected.with_context(|| format!("use the NATS server at {url} (an address is like nats://host:4222)"))
    }
}
