//! The processes that take updates: all in one (`up`), and a node alone (`node`).

use crate::cluster::{ClusterArgs, ScaleArgs, without_secrets};
use crate::coordinator::{beat, named};
use crate::node_args::{NodeArgs, OpenLink};
use crate::signals::end_on_signal;
use crate::system::{SystemClock, SystemEntropy, steps};
use anyhow::{Context as _, Result, bail};
use catchment_bus::Bus;
use catchment_coordinator::{Coordinator, Scale};
use catchment_ledger::Ledger;
use catchment_node::{Beside, Ending, Environment, Node};
use catchment_types::{Clock, Entropy};
use std::sync::Arc;

/// Run the whole platform in one process: gateway, coordinator and functions.
///
/// State is kept in the data directory and in shared memory, so that a killed instance goes on where it was when it is
/// started again with the same `--data`. With `--nats`, several of them are one cluster.
#[derive(Debug, clap::Args)]
pub struct Up {
    /// Keep the event log on this NATS server (JetStream) instead of in the data directory.
    #[arg(long, value_name = "URL", env = "CATCHMENT_NATS")]
    nats: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    scale: ScaleArgs,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Run a node of a cluster: a gateway, shared memory and functions. Some coordinator must run, too.
#[derive(Debug, clap::Args)]
pub struct NodeRole {
    /// The cluster's NATS server (JetStream).
    #[arg(long, value_name = "URL", env = "CATCHMENT_NATS")]
    nats: String,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    pub node: NodeArgs,
}

impl Up {
    /// Runs until SIGINT, or until SIGTERM and what that waits for.
    pub async fn run(self, link: Option<OpenLink>) -> Result<()> {
        serve(&self.node, self.nats.as_deref(), &self.cluster, Some(self.scale.scale()), link).await
    }
}

impl NodeRole {
    /// Runs until SIGINT, or until SIGTERM and what that waits for.
    pub async fn run(self, link: Option<OpenLink>) -> Result<()> {
        serve(&self.node, Some(&self.nats), &self.cluster, None, link).await
    }
}

/// Runs a node, and a coordinator beside it that counts nodes by `scale`, if there is one.
async fn serve(
    node: &NodeArgs,
    nats: Option<&str>,
    cluster: &ClusterArgs,
    scale: Option<Scale>,
    link: Option<OpenLink>,
) -> Result<()> {
    crate::node_args::raise_descriptor_limit();
    std::fs::create_dir_all(&node.data).with_context(|| format!("create data directory {}", node.data.display()))?;
    let listener = node.listen.bind().await?;
    let config = node.node_config()?;
    let runners = link.map(|link| node.runners_config(config.lanes, link)).transpose()?;
    let functions = node.functions()?;
    let (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
    let beside = scale.map(|scale| named(scale, entropy.as_ref()));
    let address = listener.local_addr()?;
    let pace = nats.map(|_| cluster.pace()).transpose()?;
    let membership = node.membership(address, pace, beside.as_ref().map(shown_beside))?;
    let bus = match nats {
        Some(url) => cluster.connect(url).await?,
        None => Bus::embedded(&node.data).await?,
    };
    let ledger = Ledger::open(bus.log.clone(), entropy.bytes16()).await.context("replay the event log")?;
    let ending = Ending::default();
    let environment = Environment { clock: clock.clone(), entropy, steps: steps(), ending: ending.clone() };
    let opened = Node::open(config, runners, bus, ledger.clone(), functions, environment, membership).await?;
    let fleet = opened.fleet();
    let mut coordinator = tokio::spawn(async move {
        match beside {
            Some(coordinator) => catchment_coordinator::run(ledger, fleet, clock, coordinator).await,
            None => std::future::pending().await,
        }
    });
    tokio::spawn(end_on_signal(ending.clone()));
    tracing::info!(%address, data = %node.data.display(), bus = nats.map_or("embedded".to_owned(), without_secrets), "ready");
    println!("catchment is up: http://{address}");
    let mut running = std::pin::pin!(opened.run(listener));
    let result = tokio::select! {
        result = &mut running => result,
        ended = &mut coordinator => {
            // Without it updates would be taken and rounds never end.
            tracing::error!(?ended, "the coordinator has stopped; so does the node");
            ending.end();
            running.await?;
            bail!("the coordinator has stopped; the log says why");
        }
    };
    coordinator.abort();
    tracing::info!("stopped");
    result.map_err(anyhow::Error::from)
}

/// What a node says and shows of the coordinator in its process.
fn shown_beside(coordinator: &Coordinator) -> Beside {
    let metrics = coordinator.metrics.registry().clone();
    let coordinator = coordinator.clone();
    Beside { speak: Arc::new(move || beat(&coordinator)), metrics }
}
