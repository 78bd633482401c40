//! A coordinator as a process of its own (`coordinator`), and how one is named wherever it runs.

use crate::address::Listen;
use crate::cluster::{ClusterArgs, ScaleArgs, without_secrets};
use crate::signals::end_on_signal;
use crate::system::{SystemClock, SystemEntropy};
use crate::up::{REPLAY, writer_ended};
use anyhow::{Context as _, Result, bail};
use catchment_bus::Bus;
use catchment_coordinator::{Coordinator, Metrics, Scale, Shown};
use catchment_fleet::{Beat, CoordinatorBeat, Fleet, Pace, Speak};
use catchment_ledger::Ledger;
use catchment_node::{Ending, gateway};
use catchment_types::{Clock, Entropy, LEVEL_MAX, LogId};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// Connections of operators served at one time; more wait.
const CONNECTIONS_MAX: usize = 256;
/// How fast they must read.
const READ_PACE: gateway::ReadPace = gateway::ReadPace { rate_min: 1 << 10, silence: Duration::from_secs(60) };

/// Run a coordinator of a cluster: it opens and closes rounds, and gives up nodes that are lost. Of several, one decides
/// and the others stand by.
#[derive(Debug, clap::Args)]
pub struct CoordinatorRole {
    /// Address to serve /healthz, /readyz, /metrics and /v1/nodes on: an address or a host's name, and a port; port 0 picks
    /// a free one.
    #[arg(long, default_value = "127.0.0.1:7071", value_name = "HOST:PORT", env = "CATCHMENT_COORDINATOR_LISTEN")]
    listen: Listen,
    /// The cluster's NATS server (JetStream).
    #[arg(long, value_name = "URL", env = "CATCHMENT_NATS")]
    nats: String,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    scale: ScaleArgs,
}

impl CoordinatorRole {
    /// Runs until SIGINT or SIGTERM.
    pub async fn run(self) -> Result<()> {
        let listener = self.listen.bind().await?;
        let (pace, scale) = (self.cluster.pace()?, (self.scale.scale(), self.cluster.feature_level()));
        coordinate(listener, pace, scale, (self.cluster.connect(&self.nats), &without_secrets(&self.nats))).await
    }
}

/// Decides for the cluster on a bus.
async fn coordinate(
    listener: TcpListener,
    pace: Pace,
    scale: (Scale, u32),
    (connect, bus_name): (impl Future<Output = Result<Bus>>, &str),
) -> Result<()> {
    let address = listener.local_addr()?;
    let (clock, entropy): (Arc<dyn Clock>, _) = (Arc::new(SystemClock), SystemEntropy);
    let mut coordinator = named(scale, &entropy);
    coordinator.metrics = coordinator.metrics.of_version(env!("CARGO_PKG_VERSION"));
    let (shown, ending) = (Shown::new(coordinator.metrics.clone()), Ending::default());
    let server = {
        let (router, clock, ending) = (shown.clone().router(), clock.clone(), ending.clone());
        let served = gateway::Served { router, clock, ending, pace: READ_PACE };
        AbortOnDropHandle::new(tokio::spawn(gateway::serve(served, listener, CONNECTIONS_MAX)))
    };
    let bus = connect.await?;
    let ledger = Ledger::open(bus.log.clone(), entropy.bytes16()).await.context(REPLAY)?;
    coordinator.begin(&ledger, clock.now_ms()).await.context("begin the event log")?;
    let said = coordinator.clone();
    let speak: Speak = Arc::new(move || vec![Beat::Coordinator(beat(&said))]);
    let fleet = Fleet::join(bus.events.clone(), speak, pace, entropy.bytes16()).await?;
    shown.begin(ledger.clone(), fleet.clone());
    tokio::spawn(end_on_signal(ending.clone()));
    tracing::info!(%address, bus = bus_name, "ready");
    println!("catchment coordinator is up: http://{address}");
    tokio::select! {
        // First of all, because the coordinator ends with it.
        biased;
        why = ledger.ended() => return Err(writer_ended(&why)),
        () = catchment_coordinator::run(ledger.clone(), fleet, clock, coordinator) => {
            bail!("the coordinator has stopped; the log says why")
        }
        // It holds nothing, so it has nothing to drain.
        () = ending.drain.cancelled() => {}
    }
    ending.end();
    server.await.context("serve operators")
}

/// A coordinator with a name of its own.
pub fn named((scale, level_max): (Scale, u32), entropy: &dyn Entropy) -> Coordinator {
    let id = u64::from_le_bytes(*entropy.bytes16().first_chunk().expect("sixteen bytes have eight"));
    let log = LogId::from_bytes(entropy.bytes16());
    Coordinator { id, metrics: Metrics::new(), scale, level_max, log }
}

/// What a coordinator says of itself.
pub fn beat(coordinator: &Coordinator) -> CoordinatorBeat {
    CoordinatorBeat { id: coordinator.id, wanted: coordinator.metrics.wanted(), level: LEVEL_MAX }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mistaken::{Mistaken, ready};
    use std::time::Duration;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_coordinator_ends_with_the_writer_of_its_log() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (log, bus) = Mistaken::bus();
        let pace = Pace { interval: Duration::from_millis(50), lost_after: Duration::from_secs(1) };
        let running =
            tokio::spawn(coordinate(listener, pace, (Scale::default(), LEVEL_MAX), (async { Ok(bus) }, "in memory")));
        ready(address).await;
        log.trip_up().await;
        let ended = tokio::time::timeout(Duration::from_secs(20), running).await.expect("it ends").unwrap();
        let error = ended.expect_err("it says why").to_string();
        assert!(error.contains("the writer of the event log has ended") && error.contains("a mistake"), "{error}");
    }
}
