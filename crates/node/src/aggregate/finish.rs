//! From the leaves of a ready round, or from its updates, to its committed model.
//!
//! The leaves are the truth; middles, the top and the new model are worked out from them and thrown away again, so a
//! crash anywhere here only costs the time to do it once more.

use super::gather::{Gather, is_failure};
use super::input::Input;
use super::job::{JobAggregation, StepError, rule};
use super::lanes::Level;
use super::merge::Partial;
use super::scratch::{Scratch, ScratchSlab};
use super::total::exact_sum;
use super::worker::Worker;
use super::{remote, slices, tree};
use crate::peers::models::{ensure, spread};
use crate::subjects;
use catchment_ingest::{first_inexact, first_non_finite, largest};
use catchment_ledger::{Outcome, Round, Update};
use catchment_runtime::{Call, FinalizeArgs, FunctionError, HostError, TypedWindow};
use catchment_types::{Digest, Dtype, ModelCommit, NodeId, Placed, Record, Step, UpdateKind};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes copied to the checkpoint at one time.
const COPY_BYTES: usize = 1 << 20;
/// Characters of a reason in the log: names of tensors may be long.
const REASON_CHARS_MAX: usize = 1000;

/// What the model is made of, read from the ledger in one look.
pub struct Facts {
    /// The round.
    pub round: u64,
    /// Nodes that hold its updates.
    pub holders: BTreeSet<NodeId>,
    /// The updates, in the order of their clients' names, for functions that need them all.
    pub gathered: Vec<Update>,
    /// The sum of weights.
    pub total_weight: f64,
    updates: u64,
    /// The model before it.
    pub previous: ModelCommit,
    version: u64,
    /// The updates, as the commit names them.
    pub contribution: Digest,
    metrics: BTreeMap<String, f64>,
    opened_ms: u64,
    accepted_ms: Vec<u64>,
}

/// Makes a round's model and commits it.
pub async fn finish(job: &JobAggregation, round: u64) -> Result<(), StepError> {
    let worker = &job.worker;
    let Some(facts) = Facts::read(worker, round) else { return Ok(()) };
    let (context, facts) = (&worker.context, Arc::new(facts));
    ensure(context, worker.uid, &facts.previous).await.map_err(|problem| StepError::Again(problem.detail))?;
    let made = match make(worker, &facts).await {
        Err(StepError::Round(reason)) => return give_up(job, &facts, &reason).await,
        made => made?,
    };
    match made {
        Made::Model(commit) => {
            spread(context, worker.uid, commit.version, commit.etag).await;
            commit_model(job, round, *commit, &facts).await
        }
        Made::Culprits(culprits) => {
            for (update, reason) in culprits {
                job.discard(round, &update, reason).await?;
            }
            Ok(())
        }
    }
}

async fn make(worker: &Arc<Worker>, facts: &Arc<Facts>) -> Result<Made, StepError> {
    if !facts.total_weight.is_finite() {
        return Err(StepError::Round("the weights of its updates add up to more than any number".to_owned()));
    }
    let known = facts.clone();
    if !worker.model.takes.gathers() {
        let top = tree::whole(worker, facts).await?;
        worker.context.done(Step::Merged);
        return worker.working(move |worker| worker.make_folded(&top, &known)).await;
    }
    if let Some(out) = slices::whole(worker, facts).await? {
        let known = facts.clone();
        match worker.working(move |worker| worker.keep(&out, &known)).await {
            // Only with all updates at hand is it seen which of them is to blame.
            Err(StepError::Round(_)) => {}
            made => return made,
        }
    }
    let inputs = remote::inputs(worker, facts, None).await?;
    worker.working(move |worker| worker.make_gathered(&inputs, &known)).await
}

/// Ends a round of which no model can be made. The job goes on: what one client sends must not end it.
async fn give_up(job: &JobAggregation, facts: &Facts, reason: &str) -> Result<(), StepError> {
    let Worker { context, uid, spec, .. } = &*job.worker;
    let (uid, round, contribution, at_ms) = (*uid, facts.round, facts.contribution, context.clock.now_ms());
    let reason = shortened(reason);
    tracing::error!(job = %spec.name, round, reason, "the round is given up");
    let record = Record::RoundGivenUp { uid, round, contribution, reason, at_ms };
    match context.ledger.propose(record).await? {
        Outcome::Ignored(why) => tracing::info!(job = %spec.name, round, why, "the round was not given up"),
        _ => {
            let labels = [spec.namespace.as_str(), spec.name.as_str(), "given_up"];
            context.metrics.rounds.with_label_values(&labels).inc();
        }
    }
    Ok(())
}

/// The reason goes into the log, and from there to every receipt.
fn shortened(reason: &str) -> String {
    match reason.char_indices().nth(REASON_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &reason[..end]),
        None => reason.to_owned(),
    }
}

/// What came of a round.
enum Made {
    Model(Box<ModelCommit>),
    /// The function makes no model of these, and why; the rest goes on without them.
    Culprits(Vec<(Update, String)>),
}

async fn commit_model(job: &JobAggregation, round: u64, model: ModelCommit, facts: &Facts) -> Result<(), StepError> {
    let Worker { context, uid, spec, .. } = &*job.worker;
    let (uid, at_ms) = (*uid, context.clock.now_ms());
    let record = Record::Committed { uid, round, model: model.clone(), at_ms };
    if let Outcome::Ignored(why) = context.ledger.propose(record).await? {
        tracing::info!(job = %spec.name, round, why, "the model was not committed");
        return Ok(());
    }
    context.done(Step::Committed);
    let labels = [spec.namespace.as_str(), spec.name.as_str()];
    let metrics = &context.metrics;
    let seconds = |since_ms: u64| at_ms.saturating_sub(since_ms) as f64 / 1000.0;
    metrics.round_duration.with_label_values(&labels).observe(seconds(facts.opened_ms));
    let waits = metrics.accept_to_commit.with_label_values(&labels);
    facts.accepted_ms.iter().for_each(|accepted| waits.observe(seconds(*accepted)));
    metrics.rounds.with_label_values(&[labels[0], labels[1], "committed"]).inc();
    tracing::info!(job = %spec.name, round, version = model.version, contributors = model.contributors, "model committed");
    let payload = serde_json::json!({ "uid": uid, "namespace": labels[0], "job": labels[1], "round": round,
        "version": model.version, "etag": model.etag, "contributors": model.contributors, "metrics": model.metrics });
    let subject = subjects::model_published(spec);
    if let Err(error) = context.bus.events.publish(&subject, payload.to_string().into()).await {
        tracing::debug!(%error, "publish model");
    }
    context.done(Step::Published);
    context.prune_models(uid).await;
    Ok(())
}

impl Facts {
    /// Of a round that is closed, and whose updates are where its function wants them. `None`: it is not.
    pub fn read(worker: &Worker, number: u64) -> Option<Self> {
        worker.context.ledger.read(|state| {
            let found = state.job(worker.uid)?;
            let gathers = worker.model.takes.gathers();
            let is_ready = |round: &&Round| if gathers { round.is_complete() } else { round.is_ready() };
            let round: &Round = found.active_round().filter(|round| round.number == number).filter(is_ready)?;
            let mut gathered: Vec<Update> = round.contributors().filter(|_| gathers).cloned().collect();
            gathered.sort_by(|a, b| a.accept.client.cmp(&b.accept.client));
            Some(Self {
                round: number,
                holders: round.shares().map(|(node, _)| node).collect(),
                gathered,
                total_weight: exact_sum(round.contributors().map(|update| update.accept.weight)),
                updates: round.received(),
                previous: found.model(round.model_version)?.commit.clone(),
                version: found.models.next(),
                contribution: round.contribution(),
                metrics: round.metrics(),
                opened_ms: round.opened_ms,
                accepted_ms: round.contributors().map(|update| update.accept.at_ms).collect(),
            })
        })
    }
}

impl Worker {
    fn make_folded(&self, top: &Partial, facts: &Facts) -> Result<Made, StepError> {
        let out = self.scratch(self.model.own.slab_bytes)?;
        let previous = self.previous(&facts.previous)?;
        self.context.done(Step::Scratched);
        self.finalize(top, &out, previous.as_ref(), facts)?;
        drop(previous);
        self.keep(&out, facts)
    }

    /// Makes the model out of all updates at once, or names those that it cannot be made of.
    fn make_gathered(&self, inputs: &[Input], facts: &Facts) -> Result<Made, StepError> {
        let out = self.scratch(self.model.own.slab_bytes)?;
        let previous = self.previous(&facts.previous)?;
        self.context.done(Step::Scratched);
        let gather = Gather::new(self, facts, previous.as_ref(), &out);
        let (failed, is_spoilt) = match gather.run(inputs) {
            Ok(()) => match self.keep(&out, facts) {
                Err(StepError::Round(reason)) => (StepError::Round(reason), true),
                made => return made,
            },
            Err(error) => (self.failure("combine", error.clone()), is_failure(&error)),
        };
        let culprits = if is_spoilt { gather.culprits(inputs)? } else { Vec::new() };
        // When no update makes a model, it is not for one of them to be left out.
        if culprits.is_empty() || (culprits.len() == inputs.len() && inputs.len() > 1) {
            return Err(failed);
        }
        Ok(Made::Culprits(culprits.into_iter().map(|(i, reason)| (facts.gathered[i].clone(), reason)).collect()))
    }

    fn keep(&self, out: &Scratch, facts: &Facts) -> Result<Made, StepError> {
        self.context.done(Step::Finalized);
        let (etag, bytes) = self.write(out, facts)?;
        self.context.done(Step::Kept);
        let function = self.context.functions.digest(&self.spec);
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

    /// Writes the checkpoint: the initial file's head, folded tensors from `out`, the rest from the version before.
    fn write(&self, out: &Scratch, facts: &Facts) -> Result<(Digest, u64), StepError> {
        let disk = |error: std::io::Error| StepError::Disk(format!("write model version {}: {error}", facts.version));
        let models = &self.context.models;
        let before = models.file(self.uid, facts.previous.version, facts.previous.etag).map_err(disk)?;
        let made = out.accumulator.fd().try_clone_to_owned().map(std::fs::File::from).map_err(disk)?;
        let mut draft = self.context.draft(self.uid, &format!("version-{}", facts.version)).map_err(disk)?;
        draft.write(&self.model.head).map_err(disk)?;
        let mut sizes = Vec::with_capacity(self.model.own.tensors.len());
        for tensor in &self.model.own.tensors {
            let (file, offset) = match tensor.slab_offset {
                Some(offset) => (&made, out.accumulator.data_offset() + offset),
                None => (&before, self.model.header.data_begin + tensor.begin),
            };
            let mut seen = Seen::default();
            copy(file, offset, tensor.end - tensor.begin, |bytes| {
                seen.look(tensor, bytes);
                draft.write(bytes)
            })
            .map_err(disk)?;
            if let Some(what) = seen.spoilt(tensor) {
                // Published, it would spoil every model after it.
                return Err(StepError::Round(what));
            }
            sizes.push(seen.largest);
        }
        let (etag, bytes) = models.keep(draft, self.uid, facts.version).map_err(disk)?;
        if self.spec.update == UpdateKind::Delta {
            let file = models.file(self.uid, facts.version, etag).map_err(disk)?;
            self.context.bases.note(self.uid, etag, file, self.model.header.data_begin, sizes);
        }
        Ok((etag, bytes))
    }

    /// What keeps the numbers in `out` from being a model, if anything does.
    pub fn spoilt(&self, out: &Scratch) -> Result<Option<String>, StepError> {
        let disk = |error: std::io::Error| StepError::Again(format!("read a new model: {error}"));
        let made = out.accumulator.fd().try_clone_to_owned().map(std::fs::File::from).map_err(disk)?;
        for tensor in &self.model.own.tensors {
            let Some(offset) = tensor.slab_offset else { continue };
            let mut seen = Seen::default();
            copy(&made, out.accumulator.data_offset() + offset, tensor.end - tensor.begin, |bytes| {
                seen.look(tensor, bytes);
                Ok(())
            })
            .map_err(disk)?;
            if let Some(what) = seen.spoilt(tensor) {
                return Ok(Some(what));
            }
        }
        Ok(None)
    }
}

/// What was seen of a new model's tensor, piece by piece.
#[derive(Default)]
struct Seen {
    elements: usize,
    /// How far from zero they are at most.
    largest: f64,
    /// The first that no model may have, and what is wrong with it.
    bad: Option<(usize, &'static str)>,
}

impl Seen {
    fn look(&mut self, tensor: &Placed, bytes: &[u8]) {
        // What is not folded is as its owner gave it.
        if tensor.slab_offset.is_none() || self.bad.is_some() {
            return;
        }
        self.largest = self.largest.max(largest(tensor.dtype, bytes));
        let too_large = "is NaN or infinite in the new model: what the updates come to is too large for its dtype";
        let rounded = "is beyond 2^53 - 1 in the new model, from where on f64 cannot tell whole numbers apart";
        let not_finite = if self.largest.is_finite() { None } else { first_non_finite(tensor.dtype, bytes) };
        let bad = not_finite.map(|index| (index, too_large));
        let bad = bad.or_else(|| first_inexact(tensor.dtype, bytes).map(|index| (index, rounded)));
        self.bad = bad.map(|(index, what)| (self.elements + index, what));
        self.elements += bytes.len() / (tensor.dtype.bits() / 8).max(1) as usize;
    }

    fn spoilt(&self, tensor: &Placed) -> Option<String> {
        let (index, what) = self.bad?;
        Some(format!("element {index} of tensor `{}` {what} ({})", tensor.name, tensor.dtype))
    }
}

/// Reads `length` bytes at `offset`, piece by piece.
pub fn copy(
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
