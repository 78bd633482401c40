//! Puts a node together, starts it, and stops it in order.

use crate::aggregate::offered::Digests;
use crate::aggregate::{self, Holdings, Trouble};
use crate::buffers::Buffers;
use crate::context::{Context, Ending, Environment, Membership, NodeConfig, RunnersConfig};
use crate::desk::{self, Desk};
use crate::drafts::Drafts;
use crate::functions::Functions;
use crate::holders::Holders;
use crate::identity::{self, Identity};
use crate::layouts::Layouts;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::parking::{Address, Parking};
use crate::peers::Peers;
use crate::readiness::Readiness;
use crate::shelf::{Found, Shelf};
use crate::{drain, gateway, orphans, small};
use catchment_bus::Bus;
use catchment_fleet::{Beat, Fleet, NodeBeat, Speak};
use catchment_ledger::Ledger;
use catchment_runner::{InProcess, Processes, ProcessesConfig, Runners};
use catchment_slab::{Recovered, SlabError, SlabStore, StoreConfig};
use catchment_types::{JobSpec, JobUid, LEVEL_MAX, LogId, NodeId};
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};

/// How often, and after which pauses, a store that another process holds is tried again.
const STORE_TRIES: usize = 50;
const STORE_PAUSE: Duration = Duration::from_millis(100);
/// How long a node that ends waits for uploads that broke off to be in their files.
const WRITE_TIME: Duration = Duration::from_secs(5);
/// How long a runner may be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// A node that could not be put together.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum NodeError {
    #[error("data directory {path}: {error}")]
    Data { path: String, error: std::io::Error },
    #[error(transparent)]
    Slabs(#[from] catchment_slab::SlabError),
    #[error(
        "the event log knows model version {version} of job `{job}`, and data directory {path} does not have its file: \
         the log belongs to another data directory, or the nodes that have it are not running"
    )]
    Foreign { job: String, version: u64, path: String },
    #[error(
        "data directory {path} belongs to event log {remembered}, and this is {found}: start the node with the log or the data \
         directory that it had; to give the directory to another log, move its `models` and `log-id` away first"
    )]
    OtherLog { path: String, remembered: LogId, found: String },
    #[error(
        "another process has started as node {node}: two of them share a data directory, or one has a copy of it; nothing \
         more is taken here. Let one of them run; a copy becomes a node of its own when its `node-id` is removed ({path})"
    )]
    Replaced { node: NodeId, path: String },
    #[error(transparent)]
    Runners(#[from] catchment_runner::StartError),
    #[error("record what was lost: {0}")]
    Ledger(#[from] catchment_ledger::LedgerError),
    #[error(transparent)]
    Bus(#[from] catchment_bus::BusError),
    #[error("prepare to call other nodes: {0}")]
    Http(#[from] reqwest::Error),
}

/// One machine's gateway, shared memory and instances.
///
/// What runs for long is returned in a box: it is then compiled here, once, and not again in each program that waits
/// for it.
pub struct Node {
    context: Arc<Context>,
}

impl Node {
    /// Opens what the node keeps and matches it with the log. `runners`: the processes that make the calls of functions,
    /// or this one. `membership`: how it joins the others.
    ///
    /// # Errors
    /// A data or slab directory that cannot be used, or a log that cannot be reached, each named.
    pub fn open(
        config: NodeConfig,
        runners: Option<RunnersConfig>,
        bus: Bus,
        ledger: Ledger,
        functions: Functions,
        environment: Environment,
        membership: Membership,
    ) -> BoxFuture<'static, Result<Self, NodeError>> {
        Box::pin(async move {
            let Environment { clock, entropy, .. } = &environment;
            let data = |error| NodeError::Data { path: config.data_dir.display().to_string(), error };
            let node = identity::node_id(&config.data_dir, entropy.as_ref()).map_err(data)?;
            let identity = Identity::open(node, &config.data_dir).map_err(data)?;
            identity.check_log(&ledger)?;
            let models = Models::open(&config.data_dir).map_err(data)?;
            let slabs = StoreConfig { dir: config.slab_dir.clone(), budget_bytes: config.slab_budget_bytes };
            let (store, recovered) = open_slabs(slabs).await?;
            let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
            let patience = membership.pace.map_or(Duration::ZERO, |pace| 2 * pace.interval);
            let peers = join(&bus, &store, &metrics, &config, node, membership, &environment).await?;
            check_models(&ledger, &models, &peers, patience).await?;
            identity.remember_log(&ledger).map_err(data)?;
            models.sweep().map_err(data)?;
            orphans::set_aside(&models, &config.data_dir, clock.now_ms(), |uid| {
                ledger.read(|state| state.job(uid).is_some())
            })
            .map_err(data)?;
            let needing: Vec<Arc<JobSpec>> = ledger.read(|state| {
                let jobs = state.jobs().filter(|job| !job.state.is_over());
                jobs.map(|job| job.spec.clone()).collect()
            });
            functions.sweep(clock.now_ms(), needing.iter().map(Arc::as_ref)).map_err(data)?;
            // Before anything is said of what this node has: from here on no other process speaks for it.
            identity.take_over(&ledger, clock.now_ms()).await?;
            let runners = start_runners(runners, &store).await?;
            let holdings = Arc::<Holdings>::default();
            aggregate::recover(&ledger, &store, &holdings, recovered, &functions, node, clock.now_ms()).await?;
            let Environment { clock, entropy, steps, ending } = environment;
            let room = Arc::new(Notify::new());
            let shelf = open_shelf(&config, &ledger).map_err(data)?;
            let parking = Parking::new(config.park_time, config.slab_budget_bytes, shelf, room.clone());
            let buffers = Buffers::new(config.buffer_bytes, metrics.buffer_bytes.clone());
            let context = Arc::new(Context {
                node,
                identity,
                ledger,
                bus,
                store,
                models,
                layouts: Layouts::default(),
                bases: Default::default(),
                functions,
                runners,
                metrics,
                desk: Desk::new(entropy.bytes16(), peers.fleet.is_alone()),
                holdings,
                peers,
                digests: Digests::default(),
                pieces: Default::default(),
                wakes: Default::default(),
                readiness: Readiness::default(),
                trouble: Trouble::new(clock.clone()),
                parking,
                lanes: Arc::new(Semaphore::new(config.lanes)),
                buffers,
                holders: Holders::new(config.pace.grace.min(config.room_wait / 2), config.pace.rate_min),
                drafts: Drafts::new(config.drafts_max, config.draft_bytes_max),
                room,
                clock,
                entropy,
                steps,
                ending,
                config,
            });
            Ok(Self { context })
        })
    }

    /// Who is there, as this node sees it.
    pub fn fleet(&self) -> Fleet {
        self.context.peers.fleet.clone()
    }

    /// Serves and aggregates until it is told to end and what was in progress has ended.
    ///
    /// # Errors
    /// When the bus cannot be listened to.
    pub fn run(self, listener: TcpListener) -> BoxFuture<'static, Result<(), NodeError>> {
        Box::pin(async move {
            let context = self.context;
            let Ending { drain, stop } = &context.ending;
            let aggregation = aggregate::run(context.clone(), stop.clone());
            // Requests come to any node of a group: to those that stay.
            let requests = small::run(context.clone(), drain.clone());
            let checkins = desk::run(context.clone(), stop.clone());
            let (rate_min, silence) = (context.config.pace.rate_min, context.config.read_silence);
            let served = gateway::Served {
                router: gateway::router(context.clone()),
                clock: context.clock.clone(),
                ending: context.ending.clone(),
                pace: gateway::ReadPace { rate_min, silence },
            };
            let server = gateway::serve(served, listener, context.config.connections_max);
            let ((), answered, checked_in, replaced, (), ()) = tokio::join!(
                aggregation,
                end_on_error(requests, &context.ending),
                end_on_error(checkins, &context.ending),
                end_on_error(identity::keep(context.clone()), &context.ending),
                server,
                drain::run(context.clone()),
            );
            context.parking.close();
            // What broke off with the last connections is gone on with once the node is back.
            context.parking.written(WRITE_TIME).await;
            answered?;
            checked_in?;
            replaced?;
            context.store.trim();
            Ok(())
        })
    }
}

/// Begins to tell the others of this node, and to hear of them.
async fn join(
    bus: &Bus,
    store: &SlabStore,
    metrics: &Metrics,
    config: &NodeConfig,
    node: NodeId,
    membership: Membership,
    environment: &Environment,
) -> Result<Peers, NodeError> {
    let (entropy, draining) = (environment.entropy.as_ref(), environment.ending.drain.clone());
    let Membership { name, url, zone, link_bytes_per_s, pace, coordinator } = membership;
    let pass = format!("{:032x}", u128::from_le_bytes(entropy.bytes16()));
    if let Some(beside) = &coordinator {
        metrics.show_too(beside.metrics.clone());
    }
    let metrics = metrics.clone();
    let (store, shown, lanes, memory_bytes) = (store.clone(), pass.clone(), config.lanes, config.slab_budget_bytes);
    let speak: Speak = Arc::new(move || {
        let usage = store.usage();
        let beat = NodeBeat {
            node,
            name: name.clone(),
            url: url.clone(),
            pass: shown.clone(),
            zone: zone.clone(),
            cores: lanes as u32,
            memory_bytes,
            memory_free_bytes: memory_bytes.saturating_sub(usage.frozen_bytes + usage.accumulator_bytes),
            link_bytes_per_s,
            cpu_s_per_byte: metrics.cpu_s_per_byte(),
            draining: draining.is_cancelled(),
            level: LEVEL_MAX,
        };
        let coordinator = coordinator.as_ref().map(|beside| Beat::Coordinator((beside.speak)()));
        std::iter::once(Beat::Node(beat)).chain(coordinator).collect()
    });
    let fleet = match pace {
        Some(pace) => Fleet::join(bus.events.clone(), speak, pace, entropy.bytes16()).await?,
        None => Fleet::alone(&speak),
    };
    Ok(Peers::new(fleet, node, pass)?)
}

/// Opens the folder of uploads that broke off, and finds those that can be gone on with. `None`: there are to be none.
fn open_shelf(config: &NodeConfig, ledger: &Ledger) -> std::io::Result<Option<(Shelf, Found)>> {
    if config.park_bytes_max == 0 {
        return Ok(None);
    }
    let is_open = |address: &Address| ledger.read(|state| address.is_open_in(state));
    let (shelf, found) = Shelf::open(&config.data_dir, config.park_bytes_max, is_open)?;
    if !found.is_empty() {
        tracing::info!(uploads = found.len(), "uploads that broke off can be gone on with");
    }
    Ok(Some((shelf, found)))
}

/// Opens the store. Runners of a node that was killed end by themselves, and hold the store until they have.
async fn open_slabs(config: StoreConfig) -> Result<(SlabStore, Recovered), SlabError> {
    for _ in 0..STORE_TRIES {
        match SlabStore::open(config.clone()) {
            Err(SlabError::InUse { .. }) => tokio::time::sleep(STORE_PAUSE).await,
            other => return other,
        }
    }
    SlabStore::open(config)
}

async fn start_runners(config: Option<RunnersConfig>, store: &SlabStore) -> Result<Arc<dyn Runners>, NodeError> {
    let Some(RunnersConfig { link, program, arguments, count, setup, once }) = config else {
        return Ok(Arc::new(InProcess::default()));
    };
    let lock = store.lock()?;
    let config = ProcessesConfig { program, arguments, count, setup, once, lock, patience: PATIENCE };
    let started = tokio::task::spawn_blocking(move || Processes::start(config, link)).await;
    Ok(Arc::new(started.expect("starting processes does not panic")?))
}

async fn end_on_error<E>(part: impl Future<Output = Result<(), E>>, ending: &Ending) -> Result<(), E> {
    let result = part.await;
    if result.is_err() {
        ending.end();
    }
    result
}

/// The log and the data directory belong together: with another's log, models would be missing. Unless there are other
/// nodes, who have them; whoever is there is heard within `patience`.
async fn check_models(ledger: &Ledger, models: &Models, peers: &Peers, patience: Duration) -> Result<(), NodeError> {
    let newest = ledger.read(|state| {
        let models = state.jobs().filter_map(|job| Some((job.uid, job.spec.name.to_string(), job.newest_model()?)));
        models.map(|(uid, job, model)| (uid, job, model.commit.version, model.commit.etag)).collect::<Vec<_>>()
    });
    let missing = newest.into_iter().find(|(uid, _, version, etag)| !models.has(*uid, *version, *etag));
    let Some((_, job, version, _)) = missing else { return Ok(()) };
    let mut members = peers.fleet.watch();
    let heard = async { while !peers.has_others() && members.changed().await.is_ok() {} };
    match tokio::time::timeout(patience, heard).await {
        Ok(()) => Ok(()),
        Err(_) => Err(NodeError::Foreign { job, version, path: models.dir().display().to_string() }),
    }
}

impl Context {
    /// Lets go of everything that a deleted job had on this node.
    pub(crate) fn forget_job(&self, uid: JobUid) {
        self.layouts.forget(uid);
        self.bases.forget(uid);
        self.runners.erase(uid);
        self.trouble.clear(uid);
        if let Err(error) = self.models.remove(uid) {
            tracing::warn!(%error, job = %uid, "remove the models of a deleted job");
        }
    }
}
