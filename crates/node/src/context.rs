//! What every part of a node works with.

use crate::aggregate::offered::Digests;
use crate::aggregate::{Holdings, Pieces, Trouble, Wakes};
use crate::bases::Bases;
use crate::buffers::Buffers;
use crate::desk::Desk;
use crate::drafts::Drafts;
use crate::functions::{Functions, lacking};
use crate::holders::Holders;
use crate::identity::Identity;
use crate::layouts::Layouts;
use crate::metrics::Metrics;
use crate::models::{Draft, Models};
use crate::parking::Parking;
use crate::peers::Peers;
use crate::readiness::Readiness;
use catchment_bus::Bus;
use catchment_fleet::CoordinatorBeat;
use catchment_ledger::Ledger;
use catchment_proxy::{Link, Report};
use catchment_runner::{Runners, Setup};
use catchment_slab::SlabStore;
use catchment_types::{Clock, Entropy, JobSpec, JobUid, NodeId, Problem, Step, Steps};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

/// How a node is set up.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Where checkpoints and the node's name are kept.
    pub data_dir: PathBuf,
    /// Where slabs are kept: a directory on a tmpfs.
    pub slab_dir: PathBuf,
    /// Shared memory that updates and accumulators may take.
    pub slab_budget_bytes: u64,
    /// Threads that fold.
    pub lanes: usize,
    /// How a body must arrive.
    pub pace: Pace,
    /// The longest time in which a client may read nothing of its answer.
    pub read_silence: Duration,
    /// How long a body waits for room before it is refused.
    pub room_wait: Duration,
    /// How long a client waits for the log before it is told to try again.
    pub accept_wait: Duration,
    /// How long an upload whose connection broke is kept in shared memory.
    pub park_time: Duration,
    /// Bytes on disk that such uploads may take, as long as their rounds are open.
    pub park_bytes_max: u64,
    /// How long a node that drains waits for others to take what it holds.
    pub drain_time: Duration,
    /// Connections served at one time; more wait.
    pub connections_max: usize,
    /// Memory for heads and decoders of bodies that are being received.
    pub buffer_bytes: u64,
    /// Initial models that are received at one time.
    pub drafts_max: usize,
    /// Bytes on disk that they may take together.
    pub draft_bytes_max: u64,
}

/// What a node does not have of itself: handed in, so that tests may choose it.
pub struct Environment {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Told of every step.
    pub steps: Arc<dyn Steps>,
    /// How it is told to end.
    pub ending: Ending,
}

/// How a node is told to end. Whoever ends it cancels both, or first the one and then the other.
#[derive(Debug, Clone, Default)]
pub struct Ending {
    /// Ends soon: it hands over what it holds.
    pub drain: CancellationToken,
    /// Ends now.
    pub stop: CancellationToken,
}

/// The coordinator in a node's process.
#[derive(Clone)]
pub struct Beside {
    /// What it says of itself.
    pub speak: Arc<dyn Fn() -> CoordinatorBeat + Send + Sync>,
    /// What it counts, to be shown with what the node counts.
    pub metrics: prometheus::Registry,
}

/// How a node is known to others.
#[derive(Clone)]
pub struct Membership {
    /// Its name for people.
    pub name: String,
    /// Where its gateway is reached: `http://host:port`.
    pub url: String,
    /// Where it stands; empty when nobody said.
    pub zone: String,
    /// Bytes a second that its link brings in.
    pub link_bytes_per_s: f64,
    /// How often it speaks; `None` for a node that is alone.
    pub pace: Option<catchment_fleet::Pace>,
    /// The coordinator in the same process, if there is one.
    pub coordinator: Option<Beside>,
}

/// Processes that make the calls of functions.
pub struct RunnersConfig {
    /// How descriptors reach them.
    pub link: (Arc<dyn Link>, Report),
    /// The program to start for each, with its arguments; it calls `catchment_runner::serve`.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// How many.
    pub count: u32,
    /// How each is set up.
    pub setup: Setup,
    /// Environment variables for the first ones, and not for those that replace them.
    pub once: Vec<&'static str>,
}

/// How fast a body must arrive: after `grace`, at least `rate_min` bytes a second over any time longer than `silence`, which
/// is the most that may pass without any.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Time that is free.
    pub grace: Duration,
    /// Bytes a second.
    pub rate_min: u64,
    /// The longest silence.
    pub silence: Duration,
}

/// What every part of a node works with.
pub struct Context {
    /// How it is set up.
    pub config: NodeConfig,
    /// Its name.
    pub node: NodeId,
    /// Which log its data is of, and whether another process has its name.
    pub identity: Identity,
    /// The truth.
    pub ledger: Ledger,
    /// Log and events.
    pub bus: Bus,
    /// Its shared memory.
    pub store: SlabStore,
    /// Its checkpoints.
    pub models: Models,
    /// Its jobs' layouts.
    pub layouts: Layouts,
    /// The models that deltas are added to.
    pub bases: Bases,
    /// Its functions.
    pub functions: Functions,
    /// Who makes their calls.
    pub runners: Arc<dyn Runners>,
    /// What it counts.
    pub metrics: Metrics,
    /// Who trains or measures what.
    pub desk: Desk,
    /// What it holds in shared memory for active rounds.
    pub holdings: Arc<Holdings>,
    /// The other nodes.
    pub peers: Peers,
    /// Digests of what they were given.
    pub digests: Digests,
    /// What they have ordered.
    pub pieces: Pieces,
    /// Jobs of which it has just taken an update.
    pub wakes: Wakes,
    /// What keeps jobs from going on here.
    pub trouble: Trouble,
    /// Whether it can write.
    pub readiness: Readiness,
    /// Uploads whose connection broke.
    pub parking: Arc<Parking>,
    /// Threads that may fold at one time.
    pub lanes: Arc<Semaphore>,
    /// Memory for heads and decoders of bodies.
    pub buffers: Buffers,
    /// Bodies that hold shared memory.
    pub holders: Arc<Holders>,
    /// Initial models that are being received.
    pub drafts: Arc<Drafts>,
    /// Told whenever shared memory is given back.
    pub room: Arc<Notify>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Told of every step.
    pub steps: Arc<dyn Steps>,
    /// How it is told to end.
    pub ending: Ending,
}

/// How long a request may wait for something once the node ends: what is about to come still comes.
const LAST_WAIT: Duration = Duration::from_millis(250);

/// How long a request waits for a function's module that this node is fetching.
const FUNCTION_WAIT: Duration = Duration::from_secs(3);

/// A wait that ended in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// It took too long.
    Time,
    /// The node ends.
    Ends,
}

impl Context {
    /// Waits for something that a request wants, for `limit` at most, and for a moment only once the node ends: whoever asked
    /// is to be answered before its connection is cut.
    ///
    /// # Errors
    /// Why it did not come.
    pub async fn within<T>(&self, limit: Duration, wanted: impl Future<Output = T>) -> Result<T, Late> {
        let ends = async {
            self.ending.stop.cancelled().await;
            tokio::time::sleep(LAST_WAIT).await;
        };
        tokio::select! {
            biased;
            wanted = wanted => Ok(wanted),
            () = tokio::time::sleep(limit) => Err(Late::Time),
            () = ends => Err(Late::Ends),
        }
    }

    /// Waits a while for the module that a job is pinned to.
    ///
    /// # Errors
    /// `not_ready`: this node lacks it.
    pub async fn function_ready(self: &Arc<Self>, uid: JobUid, spec: &JobSpec) -> Result<(), Problem> {
        if self.functions.is_loaded(spec) {
            return Ok(());
        }
        let (of, job) = (self.clone(), spec.clone());
        if tokio::task::spawn_blocking(move || of.functions.has(&job)).await.unwrap_or(false) {
            return Ok(());
        }
        // One that was damaged on the disk is missed only now.
        self.wakes.wake(uid);
        self.within(FUNCTION_WAIT, self.functions.ready(spec)).await.map_err(|_| lacking(spec))
    }

    /// Reads on in the log, before something is called unknown that another node may have written. Alone, nobody has.
    pub async fn refresh(&self) {
        if !self.peers.fleet.is_alone()
            && let Ok(Err(error)) = self.within(Duration::MAX, self.ledger.refresh()).await
        {
            tracing::debug!(%error, "read on in the event log");
        }
    }

    /// Begins a checkpoint's file of a job that exists.
    ///
    /// # Errors
    /// The job is deleted, or its folder cannot be written to.
    pub fn draft(&self, uid: JobUid, name: &str) -> std::io::Result<Draft> {
        let draft = self.models.draft(uid, name)?;
        // Only now: whoever deletes the job after this look removes what was made before it.
        if self.ledger.read(|state| state.job(uid).is_some()) {
            return Ok(draft);
        }
        drop(draft);
        self.models.remove(uid)?;
        Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the job is deleted"))
    }

    /// Removes the files of versions that the log keeps no longer.
    pub async fn prune_models(&self, uid: JobUid) {
        let keeps = self.ledger.read(|state| {
            let job = state.job(uid)?;
            let kept = job.models.iter().filter(|model| job.keeps(model.commit.version));
            let kept = kept.map(|model| (model.commit.version, model.commit.etag));
            Some((job.models.next(), kept.collect::<BTreeMap<_, _>>()))
        });
        let models = self.models.clone();
        let prune = move || {
            let (next, keeps) = keeps.unwrap_or_default();
            // What the log does not know may be about to be proposed.
            let kept = |version: u64, etag| version >= next || keeps.get(&version) == Some(&etag);
            models.prune(uid, kept)
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(prune).await {
            tracing::warn!(%error, "remove old checkpoints");
        }
    }

    /// Says that a step is done.
    pub fn done(&self, step: Step) {
        self.steps.done(step);
    }

    /// Gives slabs back and tells those who wait for room.
    pub fn release(&self, slabs: impl IntoIterator<Item = catchment_types::SlabId>) {
        for slab in slabs {
            self.store.release(slab);
        }
        self.room.notify_waiters();
    }
}
