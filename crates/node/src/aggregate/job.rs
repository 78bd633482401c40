//! One job's aggregation: folds what was accepted, and makes the model when the round is ready.

use super::finish;
use super::fresh;
use super::input::Input;
use super::lanes::{Lanes, Level};
use super::leaf::{BATCH_MAX, Leaf, LeafKey, Plan, Shape, Unusable};
use super::pieces::Taken;
use super::ranges::{Range, cut};
use super::recover::LOST_MAX;
use super::sizing::Sizing;
use super::trouble::said;
use super::worker::Worker;
use crate::context::Context;
use crate::functions::{Functions, lacking};
use crate::peers::functions::fetch;
use crate::peers::models::ensure;
use catchment_ledger::{Job, LedgerError, State, Update};
use catchment_runtime::{Call, FoldArgs, FunctionError, HostError, Reply};
use catchment_slab::SlabError;
use catchment_types::{Code, JobSpec, JobUid, NodeId, ReceiptId, ReceiptState, Record, SlabId, Step};
use futures::FutureExt;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tracing::Instrument;

/// How long a job's task, and with it its instances, outlives its last work.
const IDLE: Duration = Duration::from_secs(2);
/// How long to wait before trying again after a failure outside the function.
const RETRY: Duration = Duration::from_millis(500);
/// How long it waits at most where nobody has its function's module.
const MODULE_RETRY_MAX: Duration = Duration::from_secs(8);

/// What a job's task should do now.
#[derive(Debug)]
pub enum Work {
    /// Keep the module that the job is pinned to.
    Keep(Arc<JobSpec>),
    /// Fold these updates, which all belong to one leaf.
    Fold(LeafKey, Vec<Update>),
    /// Make this round's model.
    Finish(u64),
    /// Make what other nodes have ordered.
    Pieces,
    /// Wait.
    Nothing,
}

/// Looks for work that this node can do. Where a job's function takes a round's updates all at once, there is nothing to do
/// before the round is closed.
pub fn next_work(state: &State, uid: JobUid, node: NodeId, functions: &Functions) -> Work {
    let Some(job) = state.job(uid) else { return Work::Nothing };
    // What is lacking is looked for before there is anything to fold: other nodes may have it for no longer than the next
    // build is on its way. What is only not written down yet holds up nothing.
    let is_kept = job.state.is_over() || functions.keeps(&job.spec);
    if !is_kept && !functions.is_loaded(&job.spec) {
        return Work::Keep(job.spec.clone());
    }
    match work_of_round(state, job, node, functions) {
        Work::Nothing if !is_kept => Work::Keep(job.spec.clone()),
        work => work,
    }
}

fn work_of_round(state: &State, job: &Job, node: NodeId, functions: &Functions) -> Work {
    let (uid, Some(round)) = (job.uid, job.active_round()) else { return Work::Nothing };
    if functions.gathers(&job.spec) {
        let is_ours = round.is_complete() && round.top() == Some(node);
        return if is_ours { Work::Finish(round.number) } else { Work::Nothing };
    }
    let mut leaves: BTreeMap<u32, Vec<&Update>> = BTreeMap::new();
    for update in round.pending_on(node) {
        leaves.entry(update.leaf).or_default().push(update);
    }
    match leaves.into_iter().max_by_key(|(_, updates)| updates.len()) {
        Some((leaf, updates)) => {
            let key = LeafKey { uid, round: round.number, leaf, incarnation: state.incarnation(node) };
            Work::Fold(key, updates.into_iter().take(BATCH_MAX).cloned().collect())
        }
        None if round.is_ready() && round.top() == Some(node) => Work::Finish(round.number),
        None => Work::Nothing,
    }
}

/// Why a step came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The function cannot work, whatever clients send; the job fails.
    #[error("{0}")]
    Job(String),
    /// No model can be made of what clients sent for a round; it is given up.
    #[error("{0}")]
    Round(String),
    /// A mistake in this program; the step is tried again.
    #[error("a panic: {0}")]
    Panicked(String),
    /// Something outside the function; the step is tried again.
    #[error("{0}")]
    Again(String),
    /// The same: the data directory refused a write.
    #[error("{0}")]
    Disk(String),
    /// The job cannot go on with an accumulator.
    #[error("leaf {leaf}: {why}", leaf = .0.leaf, why = .1)]
    BadLeaf(LeafKey, Unusable),
    /// An accepted update is not in shared memory any more.
    #[error("the slab of {receipt} is missing")]
    Missing {
        /// Its round.
        round: u64,
        /// The update.
        receipt: ReceiptId,
    },
}

impl From<LedgerError> for StepError {
    fn from(error: LedgerError) -> Self {
        Self::Again(error.to_string())
    }
}

impl From<SlabError> for StepError {
    fn from(error: SlabError) -> Self {
        Self::Again(error.to_string())
    }
}

/// A job's aggregation while there is something to do.
pub struct JobAggregation {
    /// What works on its rounds.
    pub worker: Arc<Worker>,
    /// How many instances fold a batch.
    sizing: Sizing,
    /// Time spent folding since the last commit.
    folding_ns: AtomicU64,
}

/// Works for one job until there has been nothing to do for a while.
pub async fn run(context: Arc<Context>, uid: JobUid, waker: Arc<Notify>) {
    let (mut aggregation, mut module_pause) = (None, RETRY);
    loop {
        let mut work = context.ledger.read(|state| next_work(state, uid, context.node, &context.functions));
        if context.pieces.waits_for(uid) {
            work = Work::Pieces;
        }
        if matches!(work, Work::Nothing) {
            context.trouble.clear(uid);
            tokio::select! {
                biased;
                () = waker.notified() => continue,
                () = tokio::time::sleep(IDLE) => return,
                // A node that ends waits for its tasks, and this one waits for nothing.
                () = context.ending.stop.cancelled() => return,
            }
        }
        // Who only helps does not fail the job.
        let (is_help, is_module) = (matches!(work, Work::Pieces), matches!(work, Work::Keep(_)));
        let step = AssertUnwindSafe(async {
            if let Work::Keep(spec) = &work {
                return keep_function(&context, spec).await;
            }
            if aggregation.is_none() {
                // The function is compiled now, and its class known: look again.
                aggregation = Some(JobAggregation::begin(&context, uid).await.inspect_err(|error| {
                    // Whoever ordered something does without.
                    while let Some(taken) = Taken::next(&context, uid) {
                        taken.refuse(&error.to_string());
                    }
                })?);
                return Ok(());
            }
            match &aggregation {
                Some(aggregation) => aggregation.step(work).await,
                None => Ok(()),
            }
        });
        let came = step.catch_unwind().await.unwrap_or_else(|panic| Err(StepError::Panicked(said(&*panic))));
        match came {
            Ok(()) => context.trouble.clear(uid),
            Err(StepError::Job(reason)) if !is_help => fail(&context, uid, reason).await,
            Err(StepError::Missing { round, receipt }) => {
                // Somebody removed it: the client is asked again.
                tracing::error!(job = %uid, round, %receipt, "an update is lost: its slab is missing");
                let record = Record::Lost { uid, round, receipts: vec![receipt], at_ms: context.clock.now_ms() };
                if let Err(error) = context.ledger.propose(record).await {
                    context.trouble.set(uid, format!("record that an update is lost: {error}"));
                    tokio::time::sleep(RETRY).await;
                }
            }
            Err(StepError::BadLeaf(key, why)) => lose_leaf(&context, key, why).await,
            Err(error) => {
                if matches!(error, StepError::Panicked(_)) {
                    // Nobody knows what it left behind; what counts lies in shared memory.
                    aggregation = None;
                }
                context.trouble.failed(&context, uid, &error);
                tokio::time::sleep(RETRY).await;
                if !is_module {
                    continue;
                }
                // Nobody may have it for long. Whoever sends an update asks again.
                tokio::select! {
                    () = tokio::time::sleep(module_pause) => {}
                    () = waker.notified() => {}
                    () = context.ending.stop.cancelled() => return,
                }
                module_pause = (module_pause * 2).min(MODULE_RETRY_MAX);
            }
        }
    }
}

async fn fail(context: &Context, uid: JobUid, reason: String) {
    tracing::error!(job = %uid, %reason, "the job fails");
    let record = Record::JobFailed { uid, reason, at_ms: context.clock.now_ms() };
    if let Err(error) = context.ledger.propose(record).await {
        tracing::warn!(%error, "record the failure");
        context.trouble.set(uid, format!("record that the job fails: {error}"));
        tokio::time::sleep(RETRY).await;
    }
}

/// Writes down the module that a job is pinned to; another node may have it.
async fn keep_function(context: &Arc<Context>, spec: &Arc<JobSpec>) -> Result<(), StepError> {
    let Some(digest) = spec.function_digest() else { return Ok(()) };
    let (of, job) = (context.clone(), spec.clone());
    if !blocking(move || Ok(of.functions.has(&job))).await? {
        let came = fetch(context, digest).await;
        let came =
            came.map_err(|last| StepError::Again(format!("{}; asked the others: {last}", lacking(spec).detail)))?;
        context.functions.came(came);
    }
    let of = context.clone();
    let disk = move |error: std::io::Error| StepError::Disk(format!("write a function's module: {error}"));
    blocking(move || of.functions.keep(digest).map_err(disk)).await
}

/// Lets go of an accumulator that the job cannot go on with, and says that what was folded into it is lost. What was
/// not is folded again, into a new one.
async fn lose_leaf(context: &Context, key: LeafKey, why: Unusable) {
    let LeafKey { uid, round, leaf, .. } = key;
    tracing::error!(job = %uid, round, leaf, %why, "an accumulator begins anew");
    // First the memory: a life that begins before the log is told finds none, and says the same.
    context.release(context.holdings.take_leaf(key));
    let is_in_it = |update: &&Update| {
        let Update { accept, state, leaf: of, .. } = update;
        (accept.node, *of, *state) == (context.node, leaf, ReceiptState::Folded)
    };
    loop {
        let receipts: Vec<ReceiptId> = context.ledger.read(|state| {
            let round = state.job(uid).and_then(|job| job.active_round()).filter(|active| active.number == round);
            round.into_iter().flat_map(|round| round.contributors()).filter(is_in_it).map(|u| u.receipt).collect()
        });
        if receipts.is_empty() {
            return;
        }
        let at_ms = context.clock.now_ms();
        // From level 2 on a sum is lost as a whole.
        let record = if context.ledger.read(|state| state.level()) >= 2 {
            Record::SumLost { uid, round, node: context.node, leaf, at_ms }
        } else {
            let receipts = receipts.into_iter().take(LOST_MAX).collect();
            Record::Lost { uid, round, receipts, at_ms }
        };
        if let Err(error) = context.ledger.propose(record).await {
            context.trouble.set(uid, format!("record that updates are lost: {error}"));
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = context.ending.stop.cancelled() => return,
            }
        }
    }
}

/// Runs blocking work on a thread of its own.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepError> + Send + 'static,
) -> Result<T, StepError> {
    let span = tracing::Span::current();
    let joined = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    joined.map_err(|error| match error.try_into_panic() {
        Ok(panic) => StepError::Panicked(said(&*panic)),
        // The process ends.
        Err(error) => StepError::Again(error.to_string()),
    })?
}

impl JobAggregation {
    async fn begin(context: &Arc<Context>, uid: JobUid) -> Result<Self, StepError> {
        let known = context.ledger.read(|state| {
            let job = state.job(uid)?;
            Some((job.spec.clone(), job.model(0)?.commit.clone()))
        });
        let (spec, initial) = known.ok_or_else(|| StepError::Again("the job is gone".to_owned()))?;
        let (context, etag) = (context.clone(), initial.etag);
        ensure(&context, uid, &initial).await.map_err(|problem| StepError::Again(problem.detail))?;
        blocking(move || {
            let model = context
                .layouts
                .get(&context.models, &context.functions, uid, &spec, etag)
                .map_err(|e| StepError::Again(e.to_string()))?;
            let lanes = Lanes::new(&context, uid, &spec).map_err(|problem| StepError::Again(problem.detail))?;
            let ranges = cut(&model.layout).into();
            let sizing = Sizing::new(model.own.slab_bytes);
            let worker = Worker { context, uid, spec, model, ranges, lanes: Arc::new(lanes) };
            Ok(Self { worker: Arc::new(worker), sizing, folding_ns: AtomicU64::new(0) })
        })
        .await
    }

    async fn step(&self, work: Work) -> Result<(), StepError> {
        let labels = [self.worker.spec.namespace.as_str(), self.worker.spec.name.as_str()];
        match work {
            // It is kept before there is an aggregation.
            Work::Keep(_) | Work::Nothing => Ok(()),
            Work::Pieces => {
                while let Some(taken) = Taken::next(&self.worker.context, self.worker.uid) {
                    let span = tracing::info_span!("piece", job = %self.worker.spec.name);
                    taken.make(&self.worker).instrument(span).await?;
                }
                Ok(())
            }
            Work::Fold(key, updates) => {
                let begun = Instant::now();
                let span =
                    tracing::info_span!("fold", job = %self.worker.spec.name, round = key.round, leaf = key.leaf);
                for Update { accept, .. } in &updates {
                    span.in_scope(
                        || tracing::debug!(client = %accept.client, slab = %accept.slab, "take into a batch"),
                    );
                }
                let result = self.fold(key, updates).instrument(span).await;
                self.folding_ns.fetch_add(begun.elapsed().as_nanos() as u64, Relaxed);
                result
            }
            Work::Finish(round) => {
                let begun = Instant::now();
                let span = tracing::info_span!("finish", job = %self.worker.spec.name, round);
                finish::finish(self, round).instrument(span).await?;
                let took = begun.elapsed() + Duration::from_nanos(self.folding_ns.swap(0, Relaxed));
                self.worker.context.metrics.aggregation.with_label_values(&labels).observe(took.as_secs_f64());
                Ok(())
            }
        }
    }

    async fn fold(&self, key: LeafKey, updates: Vec<Update>) -> Result<(), StepError> {
        let leaf = self.leaf(key).await?;
        if self.settle(key, &leaf).await? {
            // What was pending may be folded by now: look again.
            return Ok(());
        }
        match self.fold_batch(key, &leaf, &updates).await? {
            None => self.folded(key, &updates).await,
            Some(error) if updates.len() == 1 => self.failed_on(key.round, &updates[0], &error).await,
            Some(error) => {
                tracing::warn!(job = %self.worker.spec.name, round = key.round, %error, "a batch failed; folding its updates one by one");
                for update in &updates {
                    let one = std::slice::from_ref(update);
                    match self.fold_batch(key, &leaf, one).await? {
                        None => self.folded(key, one).await?,
                        Some(error) => self.failed_on(key.round, update, &error).await?,
                    }
                }
                Ok(())
            }
        }
    }

    /// The accumulator of a leaf. It was set aside before the first update was accepted; where it is gone, what can give way
    /// does.
    pub async fn leaf(&self, key: LeafKey) -> Result<Leaf, StepError> {
        let Worker { context, model, ranges, .. } = &*self.worker;
        let (elements, ranges) = (model.layout.elements(), ranges.len());
        let maker = model.takes.maker;
        let shape = Shape { key, owner: self.worker.owner(), elements, ranges, maker };
        let leaf = loop {
            match fresh::leaf(context, shape).await.map_err(|error| StepError::Again(error.to_string()))? {
                Err(SlabError::NoRoom { .. }) if self.worker.gets_room() => {}
                other => break other.map_err(StepError::from)?,
            }
        };
        self.worker.check(key, &leaf).map(|()| leaf)
    }

    /// Completes what a crash interrupted: redoes ranges that lag behind the newest plan, and records its updates as
    /// folded if the log does not have them so. Returns whether there was anything to do.
    pub async fn settle(&self, key: LeafKey, leaf: &Leaf) -> Result<bool, StepError> {
        let Some(plan) = leaf.plan() else { return Ok(false) };
        let updates = self.worker.context.ledger.read(|state| {
            let round = state.job(self.worker.uid).and_then(|job| job.round_numbered(key.round));
            let planned = |update: &&Update| plan.slabs.contains(&update.accept.slab);
            round.map(|round| round.pending_on(self.worker.context.node).filter(planned).cloned().collect::<Vec<_>>())
        });
        let updates = updates.unwrap_or_default();
        if updates.is_empty() {
            return Ok(false);
        }
        tracing::info!(job = %self.worker.spec.name, round = key.round, leaf = key.leaf, updates = updates.len(), "complete an interrupted batch");
        if leaf.lagging(&plan).is_empty() {
            return self.folded(key, &updates).await.map(|()| true);
        }
        if let Some(error) = self.fold_plan(key, leaf, plan, &updates).await? {
            // The plan is taken back: its updates are pending again and meet the ordinary way.
            tracing::warn!(%error, "an interrupted batch failed");
            return Ok(true);
        }
        self.folded(key, &updates).await.map(|()| true)
    }

    /// Folds one batch. `Some`: the function failed, and the accumulator is as it was.
    async fn fold_batch(
        &self,
        key: LeafKey,
        leaf: &Leaf,
        updates: &[Update],
    ) -> Result<Option<FunctionError>, StepError> {
        let slabs: Vec<SlabId> = updates.iter().map(|update| update.accept.slab).collect();
        let plan = leaf.begin(&slabs).map_err(|bad| StepError::BadLeaf(key, bad.into()))?;
        self.fold_plan(key, leaf, plan, updates).await
    }

    async fn fold_plan(
        &self,
        key: LeafKey,
        leaf: &Leaf,
        plan: Plan,
        updates: &[Update],
    ) -> Result<Option<FunctionError>, StepError> {
        let clock = &self.worker.context.clock;
        let most = self.worker.lanes.most().min(self.worker.ranges.len());
        let instances = self.sizing.instances(self.waiting(), most, clock.now_ms());
        let _lanes = self.worker.context.lanes.acquire_many(instances as u32).await.expect("never closed");
        let cpu_before = self.worker.lanes.cpu();
        let (context, lanes, leaf, ranges) =
            (self.worker.context.clone(), self.worker.lanes.clone(), leaf.clone(), self.worker.ranges.clone());
        let (count, updates, mode) = (updates.len() as u64, updates.to_vec(), self.worker.spec.mode);
        blocking(move || {
            let inputs =
                updates.iter().map(|update| Input::find(&context, update, mode)).collect::<Result<Vec<_>, _>>();
            let undone = || leaf.undo(&plan).map_err(|bad| StepError::BadLeaf(key, bad.into()));
            let inputs = match inputs {
                Ok(inputs) => inputs,
                Err(error) => return undone().and(Err(error)),
            };
            let lagging = leaf.lagging(&plan);
            let calls = |index: usize| {
                let range = &ranges[index];
                Ok(vec![Call::Fold(FoldArgs {
                    elements: range.elements,
                    rule: rule(range),
                    acc_in: leaf.partial(index, range),
                    acc_out: leaf.spare(index, range),
                    updates: inputs.iter().map(|input| input.window(range)).collect::<Result<_, _>>()?,
                })])
            };
            context.done(Step::Planned);
            let flip = |index: usize, _: &[Reply]| {
                leaf.flip(&plan, index);
                context.done(Step::Flipped);
            };
            let folded = lanes.run_on(instances, Level::Leaf, &lagging, calls, flip);
            match folded {
                Ok(()) => Ok(None),
                Err(error) if is_outside(&error) => Err(StepError::Again(error.to_string())),
                Err(error) => undone().map(|()| Some(error)),
            }
        })
        .await
        .inspect(|_| {
            let took = self.worker.lanes.cpu().saturating_sub(cpu_before);
            self.sizing.folded(count, took, clock.now_ms());
        })
    }

    /// Updates of the round that this node has still to fold.
    fn waiting(&self) -> u64 {
        let Worker { context, uid, .. } = &*self.worker;
        context.ledger.read(|state| {
            let share = state.job(*uid).and_then(|job| job.active_round()?.share(context.node));
            share.map_or(0, |share| share.updates - share.folded)
        })
    }

    /// Records updates as folded, then gives their slabs back.
    async fn folded(&self, key: LeafKey, updates: &[Update]) -> Result<(), StepError> {
        let receipts: Vec<ReceiptId> = updates.iter().map(|update| update.receipt).collect();
        self.worker.context.done(Step::Batched);
        self.worker.context.ledger.propose(Record::Folded { uid: key.uid, round: key.round, receipts }).await?;
        self.worker.context.done(Step::Folded);
        self.let_go(updates);
        self.worker.context.done(Step::Released);
        Ok(())
    }

    /// Records that the function fails on an update, and lets go of it.
    async fn failed_on(&self, round: u64, update: &Update, error: &FunctionError) -> Result<(), StepError> {
        let reason = format!("function `{}` failed on this update: {error}", self.worker.spec.function_name());
        self.discard(round, update, reason).await
    }

    /// Records why an update is left out, and lets go of it.
    pub async fn discard(&self, round: u64, update: &Update, reason: String) -> Result<(), StepError> {
        tracing::warn!(job = %self.worker.spec.name, round, client = %update.accept.client, reason, "discard an update");
        let record = Record::Discarded {
            uid: self.worker.uid,
            round,
            receipt: update.receipt,
            code: Code::FunctionTrap,
            reason,
        };
        self.worker.context.ledger.propose(record).await?;
        self.let_go(std::slice::from_ref(update));
        Ok(())
    }

    /// Lets go of those of these updates that are here.
    fn let_go(&self, updates: &[Update]) {
        let ours = updates.iter().filter(|update| update.accept.node == self.worker.context.node);
        let slabs: Vec<SlabId> = ours.map(|update| update.accept.slab).collect();
        self.worker.context.holdings.let_go(&slabs);
        self.worker.context.release(slabs);
    }
}

/// The rule as the function is told it.
pub fn rule(range: &Range) -> catchment_runtime::Rule {
    match range.rule {
        catchment_types::Rule::Max => catchment_runtime::Rule::Max,
        _ => catchment_runtime::Rule::Mean,
    }
}

/// Whether a failure has nothing to do with the function or its input.
pub fn is_outside(error: &FunctionError) -> bool {
    matches!(error, FunctionError::Host(host) if !matches!(host, HostError::Contract(_)))
}
