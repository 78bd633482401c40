//! The processes that take updates: all in one (`up`), and a node alone (`node`).

use crate::cluster::{ClusterArgs, ScaleArgs, without_secrets};
use crate::coordinator::{beat, named};
use crate::node_args::{NodeArgs, OpenLink};
use crate::signals::end_on_signal;
use crate::system::{SystemClock, SystemEntropy, hooks};
use anyhow::{Context as _, Result, bail};
use catchment_bus::Bus;
use catchment_coordinator::{Coordinator, Scale};
use catchment_fleet::Pace;
use catchment_ledger::Ledger;
use catchment_node::{Beside, Ending, Environment, Node, NodeConfig, RunnersConfig, create_dir_durably};
use catchment_types::{Clock, Entropy};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// How long requests in progress may take once nothing can be written down any more.
const END_TIME: Duration = Duration::from_secs(5);

/// What a process does before anything else, and what to do when that fails.
pub const REPLAY: &str =
    "replay the event log (`catchment log verify` says whether it is damaged, docs/cluster.md what then)";

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
        serve(
            &self.node,
            self.nats.as_deref(),
            &self.cluster,
            Some((self.scale.scale(), self.cluster.feature_level())),
            link,
        )
        .await
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
    scale: Option<(Scale, u32)>,
    link: Option<OpenLink>,
) -> Result<()> {
    crate::node_args::raise_descriptor_limit();
    create_dir_durably(&node.data).with_context(|| format!("create data directory {}", node.data.display()))?;
    crate::private::mend(&node.data);
    let listener = node.listen.bind().await?;
    let pace = nats.map(|_| cluster.pace()).transpose()?;
    let config = node.node_config()?;
    let runners = link.map(|link| node.runners_config(config.lanes, link)).transpose()?;
    let connect = async {
        match nats {
            Some(url) => cluster.connect(url).await,
            None => Ok(Bus::embedded(&node.data).await?),
        }
    };
    let bus_name = nats.map_or("embedded".to_owned(), without_secrets);
    serve_on(node, listener, (config, runners), pace, scale, (connect, &bus_name)).await
}

/// The same on a bus.
async fn serve_on(
    node: &NodeArgs,
    listener: TcpListener,
    (config, runners): (NodeConfig, Option<RunnersConfig>),
    pace: Option<Pace>,
    scale: Option<(Scale, u32)>,
    (connect, bus_name): (impl Future<Output = Result<Bus>>, &str),
) -> Result<()> {
    let functions = node.functions()?;
    let (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
    let beside = scale.map(|scale| named(scale, entropy.as_ref()));
    let address = listener.local_addr()?;
    let membership = node.membership(address, pace, beside.as_ref().map(shown_beside))?;
    let bus = connect.await?;
    let ledger = Ledger::open(bus.log.clone(), entropy.bytes16()).await.context(REPLAY)?;
    if let Some(coordinator) = &beside {
        coordinator.begin(&ledger, clock.now_ms()).await.context("begin the event log")?;
    }
    let ending = Ending::default();
    let steps = (hooks().steps)();
    let environment = Environment { clock: clock.clone(), entropy, steps, ending: ending.clone() };
    let opened = Node::open(config, runners, bus, ledger.clone(), functions, environment, membership).await?;
    let fleet = opened.fleet();
    let written = ledger.clone();
    let mut coordinator = tokio::spawn(async move {
        match beside {
            Some(coordinator) => catchment_coordinator::run(ledger, fleet, clock, coordinator).await,
            None => std::future::pending().await,
        }
    });
    tokio::spawn(end_on_signal(ending.clone()));
    tracing::info!(%address, data = %node.data.display(), bus = bus_name, "ready");
    println!("catchment is up: http://{address}");
    let mut running = std::pin::pin!(opened.run(listener));
    let result = tokio::select! {
        // First of all, because the coordinator ends with it.
        biased;
        why = written.ended() => {
            coordinator.abort();
            // Nothing can be written down any more, so there is nothing to be finished.
            ending.end();
            tokio::time::timeout(END_TIME, running).await.ok();
            return Err(writer_ended(&why));
        }
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

/// Why a process ends that can write nothing into the event log any more.
pub fn writer_ended(why: &str) -> anyhow::Error {
    tracing::error!(why, "the writer of the event log has ended; so does this process");
    anyhow::anyhow!(
        "the writer of the event log has ended ({why}), so nothing more can be accepted; start the process again: it goes on \
         from what the log has"
    )
}

/// What a node says and shows of the coordinator in its process.
fn shown_beside(coordinator: &Coordinator) -> Beside {
    let metrics = coordinator.metrics.registry().clone();
    let coordinator = coordinator.clone();
    Beside { speak: Arc::new(move || beat(&coordinator)), metrics }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mistaken::{Mistaken, ready};
    use catchment_types::LEVEL_MAX;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        up: Up,
    }

    /// A node, with a coordinator beside it and without, whose log's writer panics.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_ends_with_the_writer_of_its_log() {
        for scale in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let (data, slabs) = (folder.path().join("data"), folder.path().join("slabs"));
            std::fs::create_dir_all(&data).unwrap();
            let (data, slabs) = (data.to_str().unwrap(), slabs.to_str().unwrap());
            let cli = Cli::parse_from(["up", "--data", data, "--slabs", slabs, "--slab-mib", "16"]);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (log, bus) = Mistaken::bus();
            let running = tokio::spawn(async move {
                let (node, scale) = (&cli.up.node, scale.then(|| (cli.up.scale.scale(), LEVEL_MAX)));
                let config = (node.node_config()?, None);
                serve_on(node, listener, config, None, scale, (async { Ok(bus) }, "in memory")).await
            });
            ready(address).await;
            log.trip_up().await;
            let ended = tokio::time::timeout(4 * END_TIME, running).await.expect("it ends").unwrap();
            let error = ended.expect_err("it says why").to_string();
            assert!(error.contains("the writer of the event log has ended") && error.contains("a mistake"), "{error}");
        }
    }
}
