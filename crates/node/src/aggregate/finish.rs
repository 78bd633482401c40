//! From the leaves of a ready round, or from its updates, to its committed model.
//!
//! The leaves are the truth; middles, the top and the new model are worked out from them and thrown away again, so a
//! crash anywhere here only costs the time to do it once more.

use super::gather::{Gather, is_failure};
use super::job::{Input, JobAggregation, StepError, blocking, is_outside, rule, unreadable};
use super::lanes::Level;
use super::leaf::{BATCH_MAX, Leaf, LeafKey, block_bytes};
use super::ranges::Range;
use super::remote::{self, RemoteLeaf};
use super::total::exact_sum;
use crate::peers::models::{ensure, spread};
use crate::subjects;
use catchment_ingest::{Scatter, first_non_finite};
use catchment_ledger::{Outcome, Round, Update};
use catchment_runtime::{Call, FinalizeArgs, FunctionError, HostError, MergeArgs, TypedWindow, Window};
use catchment_slab::{Accumulator, Slab, SlabError, SlabStore};
use catchment_types::{Digest, Dtype, ModelCommit, Record, Step, Topology, UpdateKind};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes copied to the checkpoint at one time.
const COPY_BYTES: usize = 1 << 20;

/// What the model is made of, read from the ledger in one look.
pub struct Facts {
    round: u64,
    /// Leaves of this node.
    leaves: Vec<LeafKey>,
    /// Leaves of others.
    remote: Vec<RemoteLeaf>,
    /// The updates, in the order of their clients' names.
    gathered: Vec<Update>,
    /// The sum of weights.
    pub total_weight: f64,
    updates: u64,
    previous: ModelCommit,
    version: u64,
    contribution: Digest,
    metrics: BTreeMap<String, f64>,
    opened_ms: u64,
    accepted_ms: Vec<u64>,
}

/// Makes a round's model and commits it.
pub async fn finish(job: &JobAggregation, round: u64) -> Result<(), StepError> {
    let Some(facts) = facts(job, round) else { return Ok(()) };
    let facts = Arc::new(facts);
    ensure(&job.context, job.uid, &facts.previous).await.map_err(|problem| StepError::Again(problem.detail))?;
    let worker = Arc::new(Worker {
        context: job.context.clone(),
        uid: job.uid,
        spec: job.spec.clone(),
        model: job.model.clone(),
        ranges: job.ranges.clone(),
        lanes: job.lanes.clone(),
    });
    let known = facts.clone();
    let made = if job.model.takes.gathers() {
        let (inputs, _copies) = inputs(&worker, &facts).await?;
        worker.working(move |worker| worker.make_gathered(&inputs, &known)).await?
    } else {
        let top = merge_all(&worker, &facts).await?;
        worker.working(move |worker| worker.make_folded(&top, &known)).await?
    };
    match made {
        Made::Model(commit) => {
            spread(&job.context, job.uid, commit.version, commit.etag).await;
            commit_model(job, round, *commit, &facts).await
        }
        Made::Culprits(culprits) => {
            for (update, error) in &culprits {
                job.discard(round, update, error).await?;
            }
            Ok(())
        }
    }
}

/// Merges this node's leaves, and then, one after the other, those of the other nodes: each moves over the network once,
/// and takes memory only while it is merged.
async fn merge_all(worker: &Arc<Worker>, facts: &Facts) -> Result<Partial, StepError> {
    let mut leaves = Vec::new();
    for key in &facts.leaves {
        let leaf = worker.context.holdings.leaf(*key);
        leaves.push(leaf.ok_or_else(|| StepError::Again(format!("the accumulator of leaf {} is missing", key.leaf)))?);
    }
    let mut top = worker.working(move |worker| worker.climb(&leaves)).await?;
    for remote in &facts.remote {
        let memory = remote::partial(worker, facts.round, remote).await?;
        let block_bytes = block_bytes(worker.model.layout.elements());
        let fetched = Partial::Merged { memory, block: 0, block_bytes };
        top = worker.working(move |worker| worker.merge(Level::Top, &[top, fetched])).await?;
    }
    worker.context.done(Step::Merged);
    Ok(top)
}

/// Every update of the round, and the memory of those that were copied from other nodes.
async fn inputs(worker: &Arc<Worker>, facts: &Facts) -> Result<(Vec<Input>, Vec<ScratchSlab>), StepError> {
    let (mut inputs, mut copies) = (Vec::new(), Vec::new());
    for update in &facts.gathered {
        if update.accept.node == worker.context.node {
            inputs.push(Input::find(&worker.context, update, worker.spec.mode)?);
        } else {
            let (input, copy) = remote::update(worker, update).await?;
            inputs.push(input);
            copies.push(copy);
        }
    }
    Ok((inputs, copies))
}

/// What came of a round.
enum Made {
    Model(Box<ModelCommit>),
    /// The function fails on these, and the rest goes on without them.
    Culprits(Vec<(Update, FunctionError)>),
}

async fn commit_model(job: &JobAggregation, round: u64, model: ModelCommit, facts: &Facts) -> Result<(), StepError> {
    let (context, at_ms) = (&job.context, job.context.clock.now_ms());
    let record = Record::Committed { uid: job.uid, round, model: model.clone(), at_ms };
    if let Outcome::Ignored(why) = context.ledger.propose(record).await? {
        tracing::info!(job = %job.spec.name, round, why, "the model was not committed");
        return Ok(());
    }
    context.done(Step::Committed);
    let labels = [job.spec.namespace.as_str(), job.spec.name.as_str()];
    let metrics = &context.metrics;
    let seconds = |since_ms: u64| at_ms.saturating_sub(since_ms) as f64 / 1000.0;
    metrics.round_duration.with_label_values(&labels).observe(seconds(facts.opened_ms));
    let waits = metrics.accept_to_commit.with_label_values(&labels);
    facts.accepted_ms.iter().for_each(|accepted| waits.observe(seconds(*accepted)));
    metrics.rounds.with_label_values(&[labels[0], labels[1], "committed"]).inc();
    metrics.last_commit.with_label_values(&labels).set((at_ms / 1000) as i64);
    metrics.publish(labels, &model.metrics);
    tracing::info!(job = %job.spec.name, round, version = model.version, contributors = model.contributors, "model committed");
    let payload = serde_json::json!({ "uid": job.uid, "namespace": labels[0], "job": labels[1], "round": round,
        "version": model.version, "etag": model.etag, "contributors": model.contributors, "metrics": model.metrics });
    let subject = subjects::model_published(&job.spec);
    if let Err(error) = context.bus.events.publish(&subject, payload.to_string().into()).await {
        tracing::debug!(%error, "publish model");
    }
    context.done(Step::Published);
    context.prune_models(job.uid).await;
    Ok(())
}

fn facts(job: &JobAggregation, number: u64) -> Option<Facts> {
    job.context.ledger.read(|state| {
        let found = state.job(job.uid)?;
        let gathers = job.model.takes.gathers();
        let is_ready = |round: &&Round| if gathers { round.is_complete() } else { round.is_ready() };
        let round: &Round = found.active_round().filter(|round| round.number == number).filter(is_ready)?;
        let mut gathered: Vec<Update> = round.contributors().filter(|_| gathers).cloned().collect();
        gathered.sort_by(|a, b| a.accept.client.cmp(&b.accept.client));
        let holders = round.contributors().filter(|_| !gathers).map(|update| (update.accept.node, update.leaf));
        let (ours, others): (BTreeSet<_>, BTreeSet<_>) = holders.partition(|(node, _)| *node == job.context.node);
        let (uid, incarnation) = (job.uid, state.incarnation(job.context.node));
        let leaf_of = |(_, leaf)| LeafKey { uid, round: number, leaf, incarnation };
        let remote_of = |(node, leaf)| RemoteLeaf { node, leaf, contribution: round.contribution_of(node, leaf) };
        Some(Facts {
            round: number,
            leaves: ours.into_iter().map(leaf_of).collect(),
            remote: others.into_iter().map(remote_of).collect(),
            gathered,
            total_weight: exact_sum(round.contributors().map(|update| update.accept.weight)),
            updates: round.received(),
            previous: found.model(round.model_version)?.commit.clone(),
            version: found.models.len() as u64,
            contribution: round.contribution(),
            metrics: round.metrics(),
            opened_ms: round.opened_ms,
            accepted_ms: round.contributors().map(|update| update.accept.at_ms).collect(),
        })
    })
}

/// Shared memory that is given back when it is no longer needed.
pub struct Scratch {
    context: Arc<crate::context::Context>,
    /// The memory.
    pub accumulator: Accumulator,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.context.release([self.accumulator.id()]);
    }
}

/// The same for a frozen slab.
pub struct ScratchSlab {
    context: Arc<crate::context::Context>,
    slab: Slab,
}

impl Drop for ScratchSlab {
    fn drop(&mut self) {
        self.context.release([self.slab.id()]);
    }
}

impl ScratchSlab {
    /// Takes charge of a slab.
    pub fn new(context: Arc<crate::context::Context>, slab: Slab) -> Self {
        Self { context, slab }
    }

    /// A stretch of it.
    pub fn window(&self, offset: u64, len_bytes: u64) -> Result<Window<BorrowedFd<'_>>, FunctionError> {
        let fd = self.slab.fd().map_err(unreadable)?;
        Ok(Window { file: fd, offset_bytes: self.slab.data_offset() + offset, len_bytes })
    }
}

/// A partial of one level: a leaf's accumulator or a merged one.
enum Partial {
    Leaf(Leaf),
    Merged { memory: Scratch, block: u64, block_bytes: u64 },
}

impl Partial {
    fn window(&self, index: usize, range: &Range) -> Option<Window<BorrowedFd<'_>>> {
        match self {
            Self::Leaf(leaf) => leaf.partial(index, range),
            Self::Merged { memory, block, block_bytes } => Some(merged_window(memory, *block, *block_bytes, range)),
        }
    }
}

fn merged_window<'a>(memory: &'a Scratch, block: u64, block_bytes: u64, range: &Range) -> Window<BorrowedFd<'a>> {
    memory.window(block * block_bytes + range.base * 8, range.elements * 8)
}

/// What makes a model.
pub struct Worker {
    /// What the node works with.
    pub context: Arc<crate::context::Context>,
    /// The job.
    pub uid: catchment_types::JobUid,
    /// Its spec.
    pub spec: Arc<catchment_types::JobSpec>,
    /// The job's model.
    pub model: Arc<crate::layouts::ModelLayout>,
    /// The cut.
    pub ranges: Arc<[Range]>,
    /// The job's instances.
    pub lanes: Arc<super::lanes::Lanes>,
}

impl Worker {
    /// Works on threads that may block, as many of them as there are lanes to be had.
    async fn working<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, StepError> + Send + 'static,
    ) -> Result<T, StepError> {
        let permits = self.ranges.len().clamp(1, self.context.config.lanes) as u32;
        let lanes = self.context.lanes.clone().acquire_many_owned(permits).await.expect("never closed");
        let worker = self.clone();
        blocking(move || {
            let done = work(&worker);
            drop(lanes);
            done
        })
        .await
    }

    fn make_folded(&self, top: &Partial, facts: &Facts) -> Result<Made, StepError> {
        let out = self.scratch(self.model.own.slab_bytes)?;
        let previous = self.previous(facts)?;
        self.context.done(Step::Scratched);
        self.finalize(top, &out, previous.as_ref(), facts)?;
        drop(previous);
        self.keep(&out, facts)
    }

    fn make_gathered(&self, inputs: &[Input], facts: &Facts) -> Result<Made, StepError> {
        let out = self.scratch(self.model.own.slab_bytes)?;
        let previous = self.previous(facts)?;
        self.context.done(Step::Scratched);
        let culprits = self.gather(inputs, &out, previous.as_ref(), facts)?;
        drop(previous);
        if culprits.is_empty() { self.keep(&out, facts) } else { Ok(Made::Culprits(culprits)) }
    }

    fn keep(&self, out: &Scratch, facts: &Facts) -> Result<Made, StepError> {
        self.context.done(Step::Finalized);
        let (etag, bytes) = self.write(out, facts)?;
        self.context.done(Step::Kept);
        let function = self.context.functions.digest(&self.spec.function);
        let commit = ModelCommit {
            version: facts.version,
            etag,
            bytes,
            node: self.context.node,
            function,
            contributors: facts.updates,
            contribution: Some(facts.contribution),
            gathered: self.model.takes.gathers(),
            metrics: facts.metrics.clone(),
        };
        Ok(Made::Model(Box::new(commit)))
    }

    /// Makes the model out of all updates at once. Gives those that the function fails on, when they are known.
    fn gather(
        &self,
        inputs: &[Input],
        out: &Scratch,
        previous: Option<&ScratchSlab>,
        facts: &Facts,
    ) -> Result<Vec<(Update, FunctionError)>, StepError> {
        let gather = Gather { worker: self, facts, seed: self.seed(facts.round), previous, out };
        let error = match gather.run(inputs) {
            Ok(()) => return Ok(Vec::new()),
            Err(error) => error,
        };
        let culprits = if is_failure(&error) { gather.culprits(inputs) } else { Vec::new() };
        // When it fails on every single one, the function is to blame.
        if culprits.is_empty() || (culprits.len() == inputs.len() && inputs.len() > 1) {
            return Err(self.failure("combine", error));
        }
        Ok(culprits.into_iter().map(|(i, error)| (facts.gathered[i].clone(), error)).collect())
    }

    /// The round's only randomness.
    fn seed(&self, round: u64) -> u64 {
        let mut seed = [0; 8];
        seed.copy_from_slice(&blake3::hash(&[&self.uid.as_bytes()[..], &round.to_le_bytes()].concat()).as_bytes()[..8]);
        u64::from_le_bytes(seed)
    }

    /// What updates are, as the function is told.
    pub fn kind(&self) -> catchment_runtime::Kind {
        match self.spec.update {
            UpdateKind::Weights => catchment_runtime::Kind::Weights,
            UpdateKind::Delta => catchment_runtime::Kind::Delta,
        }
    }

    /// Offset, length and dtype of a range in the model's canonical layout.
    pub fn canonical(&self, range: &Range) -> (u64, u64, catchment_runtime::Dtype) {
        let section = &self.model.own.sections[range.segment];
        let width = section.dtype.bits() / 8;
        (section.offset + range.first * width, range.elements * width, function_dtype(section.dtype))
    }

    /// Every range.
    pub fn every_range(&self) -> Vec<usize> {
        (0..self.ranges.len()).collect()
    }

    /// Memory for a while.
    pub fn scratch(&self, bytes: u64) -> Result<Scratch, StepError> {
        let accumulator = self.grant(|store| store.grant_accumulator(1, bytes.max(1), b"scratch"))?;
        Ok(Scratch { context: self.context.clone(), accumulator })
    }

    /// Takes memory, for which uploads that broke off give way.
    pub fn grant<T>(&self, take: impl Fn(&SlabStore) -> Result<T, SlabError>) -> Result<T, SlabError> {
        loop {
            match take(&self.context.store) {
                Err(SlabError::NoRoom { .. }) if self.context.parking.give_way() => {}
                other => return other,
            }
        }
    }

    /// Merges the leaves through the levels of the topology.
    fn climb(&self, leaves: &[Leaf]) -> Result<Partial, StepError> {
        let mut level: Vec<Partial> = leaves.iter().cloned().map(Partial::Leaf).collect();
        if let Topology::Tree { middles, .. } = self.spec.topology
            && middles > 0
        {
            let mut groups: BTreeMap<usize, Vec<Partial>> = BTreeMap::new();
            for (i, leaf) in level.into_iter().enumerate() {
                groups.entry(i % middles as usize).or_default().push(leaf);
            }
            level = groups.into_values().map(|group| self.merge(Level::Middle, &group)).collect::<Result<_, _>>()?;
        }
        match (level.len(), self.spec.topology) {
            (1, Topology::Auto) => Ok(level.remove(0)),
            _ => self.merge(Level::Top, &level),
        }
    }

    /// Merges partials into a fresh one, sixteen at a time.
    fn merge(&self, level: Level, partials: &[Partial]) -> Result<Partial, StepError> {
        let block_bytes = block_bytes(self.model.layout.elements());
        let batches = partials.len().div_ceil(BATCH_MAX) as u64;
        let memory = self.scratch(batches.min(2) * block_bytes)?;
        let calls = |index: usize| {
            let range = &self.ranges[index];
            let window = |step: u64| merged_window(&memory, step % 2, block_bytes, range);
            let mut calls = Vec::new();
            for (step, batch) in (0..).zip(partials.chunks(BATCH_MAX)) {
                calls.push(Call::Merge(MergeArgs {
                    elements: range.elements,
                    rule: rule(range),
                    acc_in: u64::checked_sub(step, 1).map(window),
                    acc_out: window(step),
                    partials: batch.iter().filter_map(|partial| partial.window(index, range)).collect(),
                }));
            }
            Ok(calls)
        };
        let merged = self.lanes.run(level, &self.every_range(), calls, |_, _| {});
        merged.map_err(|error| self.failure("merge", error))?;
        Ok(Partial::Merged { memory, block: (batches - 1) % 2, block_bytes })
    }

    /// The model before the round, in canonical layout, when the function reads it.
    fn previous(&self, facts: &Facts) -> Result<Option<ScratchSlab>, StepError> {
        if self.spec.update == UpdateKind::Weights && !self.lanes.needs_previous() {
            return Ok(None);
        }
        let version = facts.previous.version;
        let disk = |error: std::io::Error| StepError::Again(format!("read model version {version}: {error}"));
        let file = self.context.models.file(self.uid, version, facts.previous.etag).map_err(disk)?;
        let mut slab = self.grant(|store| store.grant(self.model.own.slab_bytes))?;
        let mut scatter = Scatter::new(self.model.own.clone());
        copy(&file, self.model.header.data_begin, self.model.header.data_bytes, |bytes| {
            scatter.feed(bytes, slab.bytes_mut()).map_err(std::io::Error::other)
        })
        .map_err(disk)?;
        scatter.finish(slab.bytes_mut()).map_err(|problem| StepError::Job(problem.detail))?;
        let slab = slab.freeze(b"previous model")?;
        Ok(Some(ScratchSlab { context: self.context.clone(), slab }))
    }

    fn finalize(
        &self,
        top: &Partial,
        out: &Scratch,
        previous: Option<&ScratchSlab>,
        facts: &Facts,
    ) -> Result<(), StepError> {
        let seed = self.seed(facts.round);
        let calls = |index: usize| {
            let range = &self.ranges[index];
            let (offset, len_bytes, dtype) = self.canonical(range);
            let partial = top.window(index, range);
            let empty = HostError::Contract("a ready round has an empty range".to_owned());
            let previous = previous.map(|previous| {
                Ok::<_, FunctionError>(TypedWindow { window: previous.window(offset, len_bytes)?, dtype })
            });
            Ok(vec![Call::Finalize(FinalizeArgs {
                elements: range.elements,
                rule: rule(range),
                kind: self.kind(),
                partial: partial.ok_or(empty)?,
                previous: previous.transpose()?,
                out: TypedWindow { window: out.window(offset, len_bytes), dtype },
                total_weight: facts.total_weight,
                updates: facts.updates,
                seed,
            })])
        };
        let finalized = self.lanes.run(Level::Top, &self.every_range(), calls, |_, _| {});
        finalized.map_err(|error| self.failure("finalise", error))
    }

    fn failure(&self, doing: &str, error: FunctionError) -> StepError {
        match error {
            error if is_outside(&error) => StepError::Again(format!("{doing}: {error}")),
            error => StepError::Job(format!("function `{}` failed to {doing} the round: {error}", self.spec.function)),
        }
    }

    /// Writes the checkpoint: the initial file's head, folded tensors from `out`, the rest from the version before.
    fn write(&self, out: &Scratch, facts: &Facts) -> Result<(Digest, u64), StepError> {
        let disk = |error: std::io::Error| StepError::Again(format!("write model version {}: {error}", facts.version));
        let models = &self.context.models;
        let before = models.file(self.uid, facts.previous.version, facts.previous.etag).map_err(disk)?;
        let made = out.accumulator.fd().try_clone_to_owned().map(std::fs::File::from).map_err(disk)?;
        let mut draft = models.draft(self.uid, &format!("version-{}", facts.version)).map_err(disk)?;
        draft.write(&self.model.head).map_err(disk)?;
        for tensor in &self.model.own.tensors {
            let (file, offset) = match tensor.slab_offset {
                Some(offset) => (&made, out.accumulator.data_offset() + offset),
                None => (&before, self.model.header.data_begin + tensor.begin),
            };
            let (mut seen, mut bad) = (0, None);
            let width = (tensor.dtype.bits() / 8).max(1) as usize;
            copy(file, offset, tensor.end - tensor.begin, |bytes| {
                if tensor.slab_offset.is_some() && bad.is_none() {
                    bad = first_non_finite(tensor.dtype, bytes).map(|index| seen + index);
                    seen += bytes.len() / width;
                }
                draft.write(bytes)
            })
            .map_err(disk)?;
            if let Some(index) = bad {
                // Published, it would spoil every model after it.
                return Err(StepError::Job(format!(
                    "round {}: element {index} of tensor `{}` is NaN or infinite in the new model; the updates or their \
                     weights are too large for its dtype",
                    facts.round, tensor.name
                )));
            }
        }
        models.keep(draft, self.uid, facts.version).map_err(disk)
    }
}

/// Reads `length` bytes at `offset`, piece by piece.
fn copy(
    file: &std::fs::File,
    offset: u64,
    length: u64,
    mut sink: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES.min(length as usize)];
    let mut done = 0;
    while done < length {
        let take = buffer.len().min((length - done) as usize);
        file.read_exact_at(&mut buffer[..take], offset + done)?;
        sink(&buffer[..take])?;
        done += take as u64;
    }
    Ok(())
}

/// A dtype as functions name it.
pub fn function_dtype(dtype: Dtype) -> catchment_runtime::Dtype {
    use catchment_runtime::Dtype as F;
    match dtype {
        Dtype::F64 => F::F64,
        Dtype::F32 => F::F32,
        Dtype::Bf16 => F::Bf16,
        Dtype::F16 => F::F16,
        Dtype::F8E4M3 => F::F8E4M3,
        Dtype::F8E5M2 => F::F8E5M2,
        Dtype::I64 => F::I64,
        Dtype::I32 => F::I32,
        Dtype::I16 => F::I16,
        Dtype::I8 => F::I8,
        Dtype::U64 => F::U64,
        Dtype::U32 => F::U32,
        Dtype::U16 => F::U16,
        Dtype::U8 => F::U8,
        Dtype::Bool => F::Bool,
        other => unreachable!("{other} is never folded: the layout keeps it"),
    }
}
