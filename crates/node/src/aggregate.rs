//! From accepted updates to a committed model.
//!
//! One task per job that has something to do; it ends when there is nothing left, and its instances with it. What must
//! outlive a task, and the process, lies in shared memory: see [`leaf`].

mod finish;
mod fresh;
mod gather;
mod holdings;
mod input;
mod job;
mod lanes;
mod leaf;
mod merge;
pub mod offered;
mod pieces;
mod ranges;
mod recover;
mod remote;
mod scratch;
mod sizing;
mod slices;
mod total;
mod tree;
mod trouble;
mod wakes;
mod worker;

pub use fresh::taken;
pub use holdings::{Holdings, OfRound};
use job::StepError;
pub use pieces::{ORDER_BYTES_MAX, Order, Pieces};
pub use ranges::Range;
pub use recover::recover;
pub use trouble::Trouble;
pub use wakes::Wakes;

use crate::context::Context;
use crate::layouts::ModelLayout;
use crate::metrics::Metrics;
use crate::owner::owner;
use crate::peers::models::keep_in_step;
use catchment_ledger::{Job, State};
use catchment_slab::{SlabError, SlabStore};
use catchment_types::{JobSpec, JobUid, Name, NodeId, Topology};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// How often the sweep looks for updates whose task has ended or failed, while any are waiting.
const SWEEP: Duration = Duration::from_secs(1);
/// How long free slabs are kept for the next update while nothing comes.
const TRIM: Duration = Duration::from_secs(60);
/// How long a stopping node waits for folds in progress.
const STOP_TIME: Duration = Duration::from_secs(10);

/// Sets a round's accumulators aside. Before an update is accepted, so that folding never waits for memory that only
/// folding would give back.
///
/// # Errors
/// The thread panicked, or the process ends; inside, no room.
pub async fn prepare(
    context: &Arc<Context>,
    spec: &JobSpec,
    of: OfRound,
    model: &ModelLayout,
) -> Result<Result<(), SlabError>, JoinError> {
    if model.takes.gathers() {
        return Ok(Ok(()));
    }
    let OfRound { uid, round, incarnation } = of;
    let (owner, elements, ranges) = (owner(spec, uid), model.layout.elements(), ranges::cut(&model.layout).len());
    let maker = model.takes.maker;
    for leaf in 0..spec.topology.leaves() {
        let key = leaf::LeafKey { uid, round, leaf, incarnation };
        if let Err(error) = fresh::leaf(context, leaf::Shape { key, owner, elements, ranges, maker }).await? {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

/// Shared memory that a job needs at least: its accumulators, what its finish takes beside them, and one update.
pub fn bytes_needed(context: &Context, spec: &JobSpec, model: &ModelLayout) -> u64 {
    if model.takes.gathers() {
        // Every update of a round, and beside them what finishing takes.
        let update = SlabStore::file_bytes(0, model.update_bytes_max(spec));
        return spec.tasks_per_round().saturating_mul(update).saturating_add(finish_bytes(context, spec, model));
    }
    let leaves = leaf::Leaf::bytes(model.layout.elements()) * u64::from(spec.topology.leaves());
    leaves + finish_bytes(context, spec, model) + SlabStore::file_bytes(0, model.own.slab_bytes)
}

/// Shared memory that finishing a round takes beside its leaves or updates: merged partials, the old model and the new
/// one. Updates leave it free, because finishing is what gives their memory back.
pub fn finish_bytes(context: &Context, spec: &JobSpec, model: &ModelLayout) -> u64 {
    if model.takes.gathers() {
        // And a little to measure in.
        return 2 * SlabStore::file_bytes(0, model.own.slab_bytes) + (64 << 10);
    }
    let merged = match spec.topology {
        Topology::Auto => 0,
        Topology::Tree { middles, .. } => u64::from(middles) + 1,
    };
    // Another node's partial, and what it is merged with before and after; each is half of a leaf.
    let fetched = if context.peers.has_others() { 2 } else { 0 };
    leaf::Leaf::bytes(model.layout.elements()) * (merged + fetched) + 2 * SlabStore::file_bytes(0, model.own.slab_bytes)
}

/// Starts a job's task when there is work, until `stop`.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut changes = context.ledger.watch();
    let shared = context.clone();
    let (pieces, wakes) = (&shared.pieces, &shared.wakes);
    let mut dispatcher = Dispatcher {
        context,
        tasks: JoinSet::new(),
        jobs: HashMap::new(),
        wakers: HashMap::new(),
        seen: HashMap::new(),
    };
    // What was found at the start is known from now on: a job that is deleted next is missed.
    dispatcher.follow();
    // And what was found of a job that is deleted by now.
    dispatcher.context.release_ended();
    let mut waiting = dispatcher.sweep();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            woken = wakes.next() => {
                woken.into_iter().for_each(|uid| dispatcher.wake(uid));
                waiting = true;
            }
            changed = changes.changed() => {
                if changed.is_err() { break }
                dispatcher.follow();
            }
            () = pieces.came.notified() => pieces.waiting().into_iter().for_each(|uid| dispatcher.wake(uid)),
            ended = dispatcher.tasks.join_next_with_id(), if !dispatcher.tasks.is_empty() => {
                // One that panicked is started again by the sweep, after a while.
                waiting = !dispatcher.ended(ended) || dispatcher.sweep();
            }
            () = tokio::time::sleep(SWEEP), if waiting => waiting = dispatcher.sweep(),
            () = tokio::time::sleep(TRIM), if dispatcher.may_trim(waiting) => dispatcher.trim(),
        }
    }
    dispatcher.wakers.clear();
    let rest = async { while dispatcher.tasks.join_next().await.is_some() {} };
    tokio::time::timeout(STOP_TIME, rest).await.ok();
    drop(dispatcher);
    // Pieces hold memory, and memory this context.
    pieces.clear();
}

struct Dispatcher {
    context: Arc<Context>,
    tasks: JoinSet<()>,
    jobs: HashMap<Id, JobUid>,
    wakers: HashMap<JobUid, Arc<Notify>>,
    seen: HashMap<JobUid, Seen>,
}

/// A job as it was when it was last looked at.
struct Seen {
    revision: u64,
    /// Rounds that had ended.
    ended: u64,
    /// Of those, rounds without a model.
    without: u64,
    namespace: Name,
    name: Name,
}

impl Dispatcher {
    /// Wakes a job's task, or starts one.
    fn wake(&mut self, uid: JobUid) {
        if let Some(waker) = self.wakers.get(&uid) {
            waker.notify_one();
            return;
        }
        let waker = Arc::new(Notify::new());
        self.wakers.insert(uid, waker.clone());
        let context = self.context.clone();
        let task = self.tasks.spawn(job::run(context, uid, waker));
        self.jobs.insert(task.id(), uid);
    }

    /// Forgets a task that has ended; the sweep starts it again if there is work left. Returns whether it ended well.
    fn ended(&mut self, ended: Option<Result<(Id, ()), JoinError>>) -> bool {
        let (id, error) = match ended {
            Some(Ok((id, ()))) => (id, None),
            Some(Err(error)) => (error.id(), Some(error)),
            None => return true,
        };
        let uid = self.jobs.remove(&id);
        uid.iter().for_each(|uid| drop(self.wakers.remove(uid)));
        // What it was in the middle of when its job was deleted may have brought something back.
        let deleted = uid.filter(|uid| self.context.ledger.read(|state| state.job(*uid).is_none()));
        deleted.iter().for_each(|uid| self.context.forget_job(*uid));
        let panicked = uid.zip(error).map(|(uid, error)| (uid, StepError::Panicked(error.to_string())));
        panicked.iter().for_each(|(uid, error)| self.context.trouble.failed(&self.context, *uid, error));
        panicked.is_none()
    }

    /// Whether nothing is going on, and free slabs are kept that the system could use.
    fn may_trim(&self, waiting: bool) -> bool {
        !waiting && self.tasks.is_empty() && self.context.store.usage().free_bytes > 0
    }

    fn trim(&self) {
        let store = self.context.store.clone();
        tracing::debug!(bytes = store.usage().free_bytes, "give idle shared memory back");
        tokio::task::spawn_blocking(move || store.trim());
    }

    /// Looks at jobs whose rounds opened, closed or ended: wakes those with work, cleans up after the others. Wakes those,
    /// too, whose models are this node's to make and of which another has just folded the rest: no event says so.
    fn follow(&mut self) {
        let (seen, metrics, node) = (&mut self.seen, &self.context.metrics, self.context.node);
        let (mut changed, gone, ready) = self.context.ledger.read(|state| {
            let ready: Vec<JobUid> = state.jobs().filter(|job| is_ready_on(job, node)).map(|job| job.uid).collect();
            let changed: Vec<JobUid> = state.jobs().filter(|job| look(seen, metrics, job)).map(|job| job.uid).collect();
            let gone: Vec<JobUid> = seen.keys().filter(|uid| state.job(**uid).is_none()).copied().collect();
            (changed, gone, ready)
        });
        ready.into_iter().for_each(|uid| self.wake(uid));
        for uid in &gone {
            let Some(job) = self.seen.remove(uid) else { continue };
            self.context.metrics.forget(|named| named == [job.namespace.as_str(), job.name.as_str()]);
            self.context.forget_job(*uid);
        }
        if changed.is_empty() && gone.is_empty() {
            return;
        }
        let over: Vec<JobUid> = self.context.ledger.read(|state| {
            let is_over = |uid: &&JobUid| state.job(**uid).is_some_and(|job| job.state.is_over());
            changed.iter().filter(is_over).copied().collect()
        });
        self.context.parking.retain(|at| at.is_open(&self.context));
        // Nothing is added to their models any more.
        over.iter().for_each(|uid| self.context.bases.forget(*uid));
        self.context.release_ended();
        self.context.pieces.retain(&self.context.ledger, self.context.node);
        self.copy_models(&changed);
        changed.retain(|uid| self.has_work(*uid));
        changed.into_iter().for_each(|uid| self.wake(uid));
    }

    /// Has this node keep the models of these jobs that the log keeps, and no others.
    fn copy_models(&self, jobs: &[JobUid]) {
        if self.context.peers.fleet.is_alone() {
            return;
        }
        for uid in jobs.iter().copied() {
            let context = self.context.clone();
            tokio::spawn(async move { keep_in_step(&context, uid).await });
        }
    }

    fn has_work(&self, uid: JobUid) -> bool {
        let node = self.context.node;
        let functions = &self.context.functions;
        let of_round = |state: &State| !matches!(job::next_work(state, uid, node, functions), job::Work::Nothing);
        self.context.ledger.read(of_round) || self.context.pieces.waits_for(uid)
    }

    /// Wakes every job that has work. Returns whether any has.
    fn sweep(&mut self) -> bool {
        let jobs: HashSet<JobUid> = self.context.ledger.read(|state| state.jobs().map(|job| job.uid).collect());
        self.context.desk.retain(&jobs);
        let working: Vec<JobUid> = jobs.into_iter().filter(|uid| self.has_work(*uid)).collect();
        working.iter().for_each(|uid| self.wake(*uid));
        !working.is_empty()
    }
}

/// Whether a round that lies on several nodes is folded everywhere, and its model is `node`'s to make.
fn is_ready_on(job: &Job, node: NodeId) -> bool {
    let round = job.active_round().filter(|round| round.is_ready());
    round.is_some_and(|round| round.shares().count() > 1 && round.top() == Some(node))
}

/// Notes the job's revision; returns whether it is new. Counts the rounds that were skipped meanwhile. (Who gives a round
/// up counts it.)
fn look(seen: &mut HashMap<JobUid, Seen>, metrics: &Metrics, job: &Job) -> bool {
    let ended = job.round_number() - u64::from(job.active_round().is_some());
    let without = ended.saturating_sub(job.models.next().saturating_sub(1));
    let (namespace, name) = (job.spec.namespace.clone(), job.spec.name.clone());
    let now = Seen { revision: job.revision, ended, without, namespace, name };
    let labels = [job.spec.namespace.as_str(), job.spec.name.as_str(), "skipped"];
    match seen.insert(job.uid, now) {
        None => true,
        Some(before) => {
            let rounds = (before.ended..ended).filter_map(|before| job.round_numbered(before + 1));
            let given_up = rounds.filter(|round| round.given_up().is_some()).count() as u64;
            let skipped = without.saturating_sub(before.without).saturating_sub(given_up);
            if skipped > 0 {
                metrics.rounds.with_label_values(&labels).inc_by(skipped);
            }
            before.revision != job.revision
        }
    }
}
