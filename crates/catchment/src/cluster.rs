//! How the processes of a cluster find each other.

use anyhow::{Context as _, Result, bail};
use catchment_bus::{Bus, ClusterKey, NatsConfig, Sealing};
use catchment_coordinator::Scale;
use catchment_fleet::{BEATS, Pace};
use catchment_ledger::is_newest_form;
use catchment_types::{DurationText, LEVEL_MAX};
use std::path::PathBuf;
use std::time::Duration;

/// The shortest interval between heartbeats: with less, they would be most of what a cluster does.
const HEARTBEAT_MS_MIN: u64 = 50;

/// How patiently a coordinator counts the nodes that are wanted (`catchment_nodes_wanted`).
#[derive(Debug, clap::Args)]
pub struct ScaleArgs {
    /// How long fewer nodes must have been enough before the number wanted goes down.
    #[arg(long, default_value = "60s", env = "CATCHMENT_SCALE_SETTLE")]
    scale_settle: DurationText,
    /// How long no node must have been wanted before the number goes down to 0.
    #[arg(long, default_value = "5m", env = "CATCHMENT_SCALE_IDLE")]
    scale_idle: DurationText,
}

impl ScaleArgs {
    /// The same, as durations.
    pub fn scale(&self) -> Scale {
        let duration = |text: DurationText| Duration::from_millis(text.ms());
        Scale { settle: duration(self.scale_settle), idle: duration(self.scale_idle) }
    }
}

/// What the processes of a cluster have in common; only with NATS.
#[derive(Debug, clap::Args)]
pub struct ClusterArgs {
    /// How often the processes of a cluster tell each other that they are there.
    #[arg(long, default_value = "1s", env = "CATCHMENT_HEARTBEAT")]
    heartbeat: DurationText,
    /// After this much silence a node is given up: its updates are lost, and their clients are asked again.
    #[arg(long, default_value = "10s", env = "CATCHMENT_NODE_TIMEOUT")]
    node_timeout: DurationText,
    /// The highest feature level that the cluster is raised to, once all of its members read it; the newest when absent. A
    /// lower one keeps the way back to an older release open.
    #[arg(long, value_name = "LEVEL", env = "CATCHMENT_FEATURE_LEVEL",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(LEVEL_MAX)))]
    feature_level: Option<u32>,
    #[command(flatten)]
    nats: NatsArgs,
}

/// How the cluster's NATS server is reached, beside its address.
#[derive(Debug, Clone, clap::Args)]
pub struct NatsArgs {
    /// Certificates (PEM) of the authorities that the NATS server's certificate may be from, instead of the system's.
    #[arg(long, value_name = "FILE", env = "CATCHMENT_NATS_CA")]
    nats_ca: Option<PathBuf>,
    /// This process's certificate (PEM), where the NATS server wants one.
    #[arg(long, value_name = "FILE", env = "CATCHMENT_NATS_CERT", requires = "nats_key")]
    nats_cert: Option<PathBuf>,
    /// The key (PEM) of that certificate.
    #[arg(long, value_name = "FILE", env = "CATCHMENT_NATS_KEY", requires = "nats_cert")]
    nats_key: Option<PathBuf>,
    /// A NATS credentials file (.creds), instead of a user and password in the address.
    #[arg(long, value_name = "FILE", env = "CATCHMENT_NATS_CREDS")]
    nats_creds: Option<PathBuf>,
    /// What the names of this cluster's streams on the NATS server begin with, and in lower case its subjects: 1 to 32 of A-Z,
    /// 0-9, - and _. The same for all its processes. Clusters on one server with different prefixes see nothing of each other.
    #[arg(long, default_value = "CATCHMENT", value_name = "PREFIX", env = "CATCHMENT_NATS_PREFIX")]
    nats_prefix: String,
    /// The key that all members of the cluster share (`catchment key new` makes one): what they write into the event log, and
    /// their heartbeats, are sealed with it, and what has no seal counts for nothing. Without one, whoever the NATS server lets
    /// in can write what counts.
    #[arg(long, value_name = "FILE", env = "CATCHMENT_CLUSTER_KEY", value_parser = crate::key::read)]
    cluster_key: Option<ClusterKey>,
    /// Copies of each record of the event log in a cluster of NATS servers, 1 to 5; used when the log is made.
    #[arg(long, default_value_t = 1, value_name = "N", env = "CATCHMENT_NATS_REPLICAS")]
    nats_replicas: usize,
    /// How long to wait at the start for a NATS server that does not answer yet. 0s: try once.
    #[arg(long, default_value = "30s", env = "CATCHMENT_NATS_WAIT")]
    nats_wait: DurationText,
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

    /// The highest feature level that the cluster is raised to.
    pub fn feature_level(&self) -> u32 {
        self.feature_level.unwrap_or(LEVEL_MAX)
    }

    /// Connects to the cluster's NATS server.
    pub async fn connect(&self, url: &str) -> Result<Bus> {
        if self.nats.cluster_key.is_none() {
            tracing::warn!(
                "no --cluster-key: whoever the NATS server lets in can write into the event log; `catchment key new` makes a key"
            );
        }
        let connected = Bus::nats(self.nats.config(url)).await;
        let shown = without_secrets(url);
        connected.with_context(|| format!("use the NATS server at {shown} (an address is like nats://host:4222)"))
    }
}

impl NatsArgs {
    /// The same, as the bus takes it.
    pub fn config(&self, url: &str) -> NatsConfig {
        NatsConfig {
            ca: self.nats_ca.clone(),
            cert: self.nats_cert.clone(),
            key: self.nats_key.clone(),
            credentials: self.nats_creds.clone(),
            prefix: self.nats_prefix.clone(),
            replicas: self.nats_replicas,
            connect_timeout: Duration::from_millis(self.nats_wait.ms()),
            sealing: self.cluster_key.clone().map(|key| Sealing::new(key, is_newest_form, |subject| subject == BEATS)),
            ..NatsConfig::new(url)
        }
    }
}

/// Addresses of NATS servers as they may be shown: a user, password or token in them stays unsaid.
pub fn without_secrets(urls: &str) -> String {
    let shown = |url: &str| match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        _ => url.to_owned(),
    };
    urls.split(',').map(shown).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_addresses_are_not_shown() {
        let urls = "nats://user:p%40ss@one:4222,tls://token@two,nats://three:4222";
        assert_eq!(without_secrets(urls), "nats://one:4222,tls://two,nats://three:4222");
    }
}
