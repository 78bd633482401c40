//! The processes of a cluster: all in one (`up`), and each alone (`node`, `coordinator`).

use crate::cluster::{ClusterArgs, without_secrets};
use crate::node_args::{NodeArgs, OpenLink};
use crate::system::{SystemClock, SystemEntropy, steps};
use anyhow::{Context as _, Result, bail};
use catchment_bus::Bus;
use catchment_fleet::{Beat, CoordinatorBeat, Fleet, Speak};
use catchment_ledger::Ledger;
use catchment_node::{Environment, Node};
use catchment_types::{Clock, Entropy};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

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

/// Run a coordinator of a cluster: it opens and closes rounds, and gives up nodes that are lost. Of several, one decides
/// and the others stand by.
#[derive(Debug, clap::Args)]
pub struct CoordinatorRole {
    /// The cluster's NATS server (JetStream).
    #[arg(long, value_name = "URL", env = "CATCHMENT_NATS")]
    nats: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl Up {
    /// Runs until SIGINT or SIGTERM.
    pub async fn run(self, link: Option<OpenLink>) -> Result<()> {
        serve(&self.node, self.nats.as_deref(), &self.cluster, true, link).await
    }
}

impl NodeRole {
    /// Runs until SIGINT or SIGTERM.
    pub async fn run(self, link: Option<OpenLink>) -> Result<()> {
        serve(&self.node, Some(&self.nats), &self.cluster, false, link).await
    }
}

impl CoordinatorRole {
    /// Runs until SIGINT or SIGTERM.
    pub async fn run(self) -> Result<()> {
        let bus = self.cluster.connect(&self.nats).await?;
        let entropy = SystemEntropy;
        let ledger = Ledger::open(bus.log.clone(), entropy.bytes16()).await.context("replay the event log")?;
        let id = coordinator_id(&entropy);
        let speak: Speak = Arc::new(move || vec![Beat::Coordinator(CoordinatorBeat { id })]);
        let fleet = Fleet::join(bus.events.clone(), speak, self.cluster.pace()?, entropy.bytes16()).await?;
        let stop = CancellationToken::new();
        tokio::spawn(stop_on_signal(stop.clone()));
        tracing::info!(bus = without_secrets(&self.nats), "ready");
        println!("catchment coordinator is up");
        tokio::select! {
            () = catchment_coordinator::run(ledger, fleet, Arc::new(SystemClock), id) => {
                bail!("the coordinator has stopped; the log says why")
            }
            () = stop.cancelled() => Ok(()),
        }
    }
}

/// Runs a node, and a coordinator beside it if it `coordinates`.
async fn serve(
    node: &NodeArgs,
    nats: Option<&str>,
    cluster: &ClusterArgs,
    coordinates: bool,
    link: Option<OpenLink>,
) -> Result<()> {
    crate::node_args::raise_descriptor_limit();
    std::fs::create_dir_all(&node.data).with_context(|| format!("create data directory {}", node.data.display()))?;
    let listener = TcpListener::bind(node.listen).await.with_context(|| format!("listen on {}", node.listen))?;
    let config = node.node_config()?;
    let runners = link.map(|link| node.runners_config(config.lanes, link)).transpose()?;
    let functions = node.functions()?;
    let (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
    let id = coordinator_id(entropy.as_ref());
    let address = listener.local_addr()?;
    let pace = nats.map(|_| cluster.pace()).transpose()?;
    let membership = node.membership(address, pace, coordinates.then_some(id))?;
    let bus = match nats {
        Some(url) => cluster.connect(url).await?,
        None => Bus::embedded(&node.data).await?,
    };
    let ledger = Ledger::open(bus.log.clone(), entropy.bytes16()).await.context("replay the event log")?;
    let environment = Environment { clock: clock.clone(), entropy, steps: steps() };
    let opened = Node::open(config, runners, bus, ledger.clone(), functions, environment, membership).await?;
    let stop = CancellationToken::new();
    let coordinator = catchment_coordinator::run(ledger, opened.fleet(), clock, id);
    let mut coordinator =
        tokio::spawn(async move { if coordinates { coordinator.await } else { std::future::pending().await } });
    tokio::spawn(stop_on_signal(stop.clone()));
    tracing::info!(%address, data = %node.data.display(), bus = nats.map_or("embedded".to_owned(), without_secrets), "ready");
    println!("catchment is up: http://{address}");
    let mut running = std::pin::pin!(opened.run(listener, stop.clone()));
    let result = tokio::select! {
        result = &mut running => result,
        ended = &mut coordinator => {
            // Without it updates would be taken and rounds never end.
            tracing::error!(?ended, "the coordinator has stopped; so does the node");
            stop.cancel();
            running.await?;
            bail!("the coordinator has stopped; the log says why");
        }
    };
    coordinator.abort();
    tracing::info!("stopped");
    result.map_err(anyhow::Error::from)
}

fn coordinator_id(entropy: &dyn Entropy) -> u64 {
    u64::from_le_bytes(*entropy.bytes16().first_chunk().expect("sixteen bytes have eight"))
}

async fn stop_on_signal(stop: CancellationToken) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::error!("listen for signals");
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping: finishing what is in progress");
    stop.cancel();
}
