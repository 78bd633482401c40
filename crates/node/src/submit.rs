//! Takes one update from its head to its receipt, whatever brought it.
//!
//! The order is the promise: check, grant, receive, freeze, log, answer. A slab is the store's until it is frozen, the
//! submission's until the log has spoken, and the round's after that; on every other way out it is given back.

use crate::aggregate;
use crate::context::Context;
use crate::gateway::body::Body;
use crate::head::{ReadHead, read_head};
use crate::layouts::ModelLayout;
use crate::slab_meta::SlabMeta;
use bytes::Bytes;
use catchment_ingest::{Scatter, UpdateDigest, layout_problem};
use catchment_ledger::{AcceptOutcome, LedgerError, Phase};
use catchment_slab::{Slab, SlabError};
use catchment_types::{
    Accept, ClientId, Code, Descriptor, Digest, FunctionId, JobSpec, JobState, JobUid, Kind, Problem, Receipt,
    UpdateKind,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

/// Seconds after which a refused client should try again.
pub const RETRY_AFTER_S: u64 = 1;

/// Slabs of at least this many bytes are taken on a thread that may block.
const BLOCKING_BYTES: u64 = 1 << 20;

/// How long an update waits for its round to open.
const ROUND_WAIT: Duration = Duration::from_secs(5);
/// Smallest weight: with less, an update's numbers could vanish in the sum.
const WEIGHT_MIN: f64 = 1e-30;

/// What is said of an update, outside its body.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The job.
    pub uid: JobUid,
    /// Its spec.
    pub spec: Arc<JobSpec>,
    /// The round.
    pub round: u64,
    /// The client.
    pub client: ClientId,
    /// The weight, when it is said.
    pub weight: Option<f64>,
    /// Samples it was trained on, when that is said.
    pub num_samples: Option<u64>,
    /// What the client measured.
    pub metrics: BTreeMap<String, f64>,
    /// The model it was trained from, when that is said.
    pub base: Option<Digest>,
    /// Digest of the body alone, when it is declared.
    pub body_digest: Option<Digest>,
}

/// How an accepted update is answered.
#[derive(Debug)]
pub enum Submitted {
    /// New: 202.
    Accepted(Receipt),
    /// Known already: 200.
    Duplicate(Receipt),
}

impl Submission {
    fn weight(&self) -> f64 {
        self.weight.unwrap_or_else(|| self.num_samples.map_or(1.0, |samples| samples as f64))
    }
}

/// Takes the update in `body`.
///
/// # Errors
/// Every code of the interface's table; nothing is kept of an update that is refused.
pub async fn submit(context: &Arc<Context>, submission: Submission, body: &mut Body) -> Result<Submitted, Problem> {
    let span = tracing::info_span!(
        "update",
        job = %submission.spec.name,
        round = submission.round,
        client = %submission.client,
        slab = tracing::field::Empty,
    );
    let taken = async move {
        let taken = take(context, submission, body).await;
        if let Err(problem) = &taken {
            tracing::info!(code = %problem.code, detail = %problem.detail, "update refused");
        }
        taken
    };
    taken.instrument(span).await
}

async fn take(context: &Arc<Context>, submission: Submission, body: &mut Body) -> Result<Submitted, Problem> {
    check_weight(&submission)?;
    let known = match check_round(context, &submission) {
        Err(_) if opens_next(context, &submission) => {
            await_round(context, &submission).await?;
            check_round(context, &submission)?
        }
        checked => checked?,
    };
    if known {
        return take_again(context, &submission, body).await;
    }
    check_base(context, &submission)?;
    if !context.ledger.is_reachable() {
        return Err(log_unavailable());
    }
    let _upload = Upload::begin(context, &submission);
    let (digest, slab) = receive(context, &submission, body).await?;
    accept(context, submission, digest, slab).await
}

/// Answers a client that has sent something for this round already. Whether this is the same again only its digest can
/// tell.
async fn take_again(context: &Context, submission: &Submission, body: &mut Body) -> Result<Submitted, Problem> {
    body.check_length(submission.spec.limits.update_bytes)?;
    let digest = read_digest(submission, body).await?;
    let judged =
        context.ledger.read(|state| state.judge(submission.uid, submission.round, &submission.client, Some(&digest)));
    let lost = "the update that stood here was lost while this one was read; send it again";
    let judged = judged.ok_or_else(|| Problem::new(Code::NotReady, lost))?;
    answer(context, submission, judged)
}

fn check_weight(submission: &Submission) -> Result<(), Problem> {
    if submission.num_samples == Some(0) {
        return Err(Problem::new(Code::OutOfRange, "num_samples is 0: an update of no samples has nothing to say"));
    }
    let (weight, max) = (submission.weight(), submission.spec.weight_max());
    if !(weight.is_finite() && weight > 0.0) {
        return Err(Problem::new(Code::OutOfRange, format!("weight {weight} is not a finite positive number")));
    }
    if weight < WEIGHT_MIN {
        let detail = format!("weight {weight} is too small to count: the least is {WEIGHT_MIN}");
        return Err(Problem::new(Code::OutOfRange, detail));
    }
    if weight > max {
        let exact = submission.spec.exact.is_some_and(|exact| exact.weight_max == max);
        let field = if exact { "exact.weight_max" } else { "limits.weight_max" };
        let detail = format!("weight {weight} is over the job's {field} of {max}");
        return Err(Problem::new(Code::OutOfRange, detail));
    }
    Ok(())
}

/// Whether the client has sent something for this round already; refusals that need no body.
fn check_round(context: &Context, submission: &Submission) -> Result<bool, Problem> {
    let judged = context.ledger.read(|state| state.judge(submission.uid, submission.round, &submission.client, None));
    match judged {
        None => Ok(false),
        Some(AcceptOutcome::Duplicate(_)) => Ok(true),
        Some(other) => Err(refusal(submission, other)),
    }
}

/// Whether the round is the next one, and about to open.
fn opens_next(context: &Context, submission: &Submission) -> bool {
    context.ledger.read(|state| {
        let job = state.job(submission.uid).filter(|job| job.state == JobState::Running);
        job.is_some_and(|job| {
            let is_open = job.round.as_ref().is_some_and(|round| round.phase == Phase::Open);
            !is_open && job.next_round() == Some(submission.round)
        })
    })
}

/// Waits for the next round: a client that trains faster than the model is made, or that sends its first update right
/// after the initial model, has done nothing wrong.
async fn await_round(context: &Context, submission: &Submission) -> Result<(), Problem> {
    let mut revisions = context.ledger.watch_job(submission.uid);
    let opened = async {
        while opens_next(context, submission) {
            if revisions.changed().await.is_err() {
                break;
            }
        }
    };
    tokio::time::timeout(ROUND_WAIT, opened).await.map_err(|_| {
        let detail = format!("round {} is about to open: send the update again", submission.round);
        Problem::new(Code::NotReady, detail)
    })
}

fn check_base(context: &Context, submission: &Submission) -> Result<(), Problem> {
    let etag = context.ledger.read(|state| {
        let job = state.job(submission.uid)?;
        let version = job.round_numbered(submission.round)?.model_version;
        Some((version, job.model(version)?.commit.etag))
    });
    let Some((version, etag)) = etag else { return Ok(()) };
    match submission.base {
        None if submission.spec.update == UpdateKind::Delta => {
            let detail = format!(
                "this job takes deltas: send Catchment-Base with the ETag of the model they start from (version {version}, {etag})"
            );
            Err(Problem::new(Code::BadRequest, detail))
        }
        Some(base) if base != etag => {
            let detail = format!(
                "round {} trains from model version {version} ({etag}), not from {base}: fetch that model and train again",
                submission.round
            );
            Err(Problem::new(Code::StaleBase, detail).with("model_version", version).with("etag", etag.to_string()))
        }
        _ => Ok(()),
    }
}

/// Reads the body for its digest alone.
async fn read_digest(submission: &Submission, body: &mut Body) -> Result<Digest, Problem> {
    finish_digest(submission, &body.digest().await?)
}

fn finish_digest(submission: &Submission, digest: &UpdateDigest) -> Result<Digest, Problem> {
    if let Some(declared) = submission.body_digest {
        let found = digest.body();
        if found != declared {
            let detail =
                format!("the body's BLAKE3 digest is {found}, Catchment-Digest declares {declared}: send it again");
            return Err(Problem::new(Code::Checksum, detail));
        }
    }
    Ok(digest.finish(submission.weight(), submission.num_samples.unwrap_or(1), &submission.metrics))
}

/// An update on its way in: what its round needs is kept for it.
struct Upload {
    context: Arc<Context>,
    uid: JobUid,
    round: u64,
}

impl Upload {
    fn begin(context: &Arc<Context>, submission: &Submission) -> Self {
        context.holdings.begin_upload(submission.uid, submission.round);
        Self { context: context.clone(), uid: submission.uid, round: submission.round }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Self { context, uid, round } = self;
        let unused = context.ledger.read(|state| context.holdings.end_upload(state, *uid, *round));
        context.release(unused);
    }
}

/// Receives the body into a slab and freezes it.
async fn receive(
    context: &Arc<Context>,
    submission: &Submission,
    body: &mut Body,
) -> Result<(Digest, HeldSlab), Problem> {
    body.check_length(submission.spec.limits.update_bytes)?;
    let model = model_layout(context, submission).await?;
    let ReadHead { head, header, rest, room } = read_head(context, body).await?;
    let mut digest = UpdateDigest::default();
    digest.feed(head.bytes());
    let fit = model.fit(&header, &submission.spec).map_err(|e| layout_problem(&e))?;
    if header.data_begin + header.data_bytes > submission.spec.limits.update_bytes {
        return Err(body.too_large(submission.spec.limits.update_bytes));
    }
    drop(room);
    let waited = Instant::now();
    let (worker, spec, uid, round) = (context.clone(), submission.spec.clone(), submission.uid, submission.round);
    let (store, bytes, spare) = (context.store.clone(), fit.slab_bytes, aggregate::finish_bytes(&spec, &model));
    let most = bytes.max(model.layout.elements() * 16);
    // First what folding needs: updates that fill the memory before would never leave it.
    let prepare = move || aggregate::prepare(&worker, &spec, uid, round, &model);
    with_room(context, most, prepare).await?;
    let mut slab = with_room(context, bytes, move || store.grant_sparing(bytes, spare)).await?;
    body.excuse(waited.elapsed());
    tracing::Span::current().record("slab", tracing::field::display(slab.id()));
    let fit = Arc::new(fit);
    let mut scatter = Scatter::new(fit.clone());
    digest.feed(&rest);
    scatter.feed(&rest, slab.bytes_mut())?;
    while body.receive(&mut scatter, slab.bytes_mut(), &mut digest).await? {}
    scatter.finish(slab.bytes_mut())?;
    let kept = fit.head_at.map(|at| (at, head.bytes().len() as u64));
    if let Some((at, len)) = kept {
        slab.bytes_mut()[at as usize..][..len as usize].copy_from_slice(head.bytes());
    }
    let digest = finish_digest(submission, &digest)?;
    let (uid, round) = (submission.uid, submission.round);
    let meta = SlabMeta { uid, round, digest, sections: fit.sections.clone(), head: kept };
    let slab = slab.freeze(&meta.encode()?).map_err(internal)?;
    Ok((digest, HeldSlab { context: context.clone(), slab: Some(slab) }))
}

async fn model_layout(context: &Arc<Context>, submission: &Submission) -> Result<Arc<ModelLayout>, Problem> {
    let (context, uid, spec) = (context.clone(), submission.uid, submission.spec.clone());
    let etag = context.ledger.read(|state| Some(state.job(uid)?.model(0)?.commit.etag));
    let etag = etag.ok_or_else(|| refusal(submission, AcceptOutcome::UnknownJob))?;
    let find = move || context.layouts.get(&context.models, &context.functions, uid, &spec, etag);
    let layout = tokio::task::spawn_blocking(find).await;
    layout.map_err(internal)?.map_err(internal)
}

/// Takes shared memory for `bytes` bytes of updates, waiting a while for room. The body stays unread meanwhile, so memory
/// is bounded by what was granted.
async fn with_room<T: Send + 'static>(
    context: &Context,
    bytes: u64,
    take: impl Fn() -> Result<T, SlabError> + Clone + Send + 'static,
) -> Result<T, Problem> {
    let until = Instant::now() + context.config.room_wait;
    loop {
        let room = context.room.notified();
        // Entering a large slab's pages takes milliseconds.
        let taken = match bytes {
            BLOCKING_BYTES.. => tokio::task::spawn_blocking(take.clone()).await.map_err(internal)?,
            _ => take(),
        };
        match taken {
            Ok(taken) => return Ok(taken),
            Err(error @ SlabError::NoRoom { .. }) => {
                if timeout_at(until, room).await.is_err() {
                    let detail = format!("{error}; try again when earlier updates have been folded");
                    return Err(Problem::new(Code::NoRoom, detail));
                }
            }
            Err(error) => return Err(internal(error)),
        }
    }
}

/// A frozen slab that is given back unless a round takes it.
struct HeldSlab {
    context: Arc<Context>,
    slab: Option<Slab>,
}

impl Drop for HeldSlab {
    fn drop(&mut self) {
        if let Some(slab) = self.slab.take() {
            let id = slab.id();
            drop(slab);
            self.context.holdings.let_go(&[id]);
            self.context.release([id]);
        }
    }
}

/// Appends to the log and answers. The waiting goes on when the client hangs up: the slab's fate hangs on the log.
async fn accept(
    context: &Arc<Context>,
    submission: Submission,
    digest: Digest,
    mut held: HeldSlab,
) -> Result<Submitted, Problem> {
    let slab = held.slab.as_ref().expect("held until the log has spoken");
    let accept = Accept {
        uid: submission.uid,
        round: submission.round,
        client: submission.client.clone(),
        digest,
        weight: submission.weight(),
        num_samples: submission.num_samples.unwrap_or(1),
        metrics: submission.metrics.clone(),
        bytes: slab.len(),
        node: context.node,
        slab: slab.id(),
        at_ms: context.clock.now_ms(),
    };
    context.holdings.hold(accept.slab, accept.uid, accept.round);
    let task_context = context.clone();
    let spec = submission.spec.clone();
    let task = async move {
        let context = task_context;
        let descriptor = descriptor(&context, &accept, &spec);
        let client = accept.client.clone();
        let outcome = context.ledger.accept(accept).await;
        let unknown = matches!(outcome, Err(LedgerError::Unreadable(_) | LedgerError::Stopped));
        if outcome.as_ref().is_ok_and(|outcome| outcome.is_accepted()) {
            // The round's now.
            held.slab.take();
            tracing::debug!(client = %client, "accepted");
            announce(&context, &spec, &descriptor).await;
        } else if unknown {
            // The log may have it: the next start decides, and until then the slab waits for its round to end.
            held.slab.take();
        } else {
            // The round may have ended while this update set its accumulators aside.
            let ended = context.ledger.read(|state| context.holdings.take_ended(state));
            context.release(ended);
        }
        outcome
    };
    let task = tokio::spawn(task.in_current_span());
    match tokio::time::timeout(context.config.accept_wait, task).await {
        Err(_) => Err(log_unavailable()),
        Ok(Err(error)) => Err(internal(error)),
        Ok(Ok(Err(LedgerError::Refused(why)))) => {
            Err(Problem::new(Code::LogUnavailable, format!("the event log refused to store the update: {why}")))
        }
        Ok(Ok(Err(_))) => Err(log_unavailable()),
        Ok(Ok(Ok(outcome))) => answer(context, &submission, outcome),
    }
}

fn descriptor(context: &Context, accept: &Accept, spec: &JobSpec) -> Descriptor {
    let function = context.functions.digest(&spec.function).map_or(FunctionId(0), |digest| FunctionId::of(&digest));
    Descriptor {
        function,
        job: accept.uid,
        round: accept.round,
        slab: accept.slab,
        offset: 0,
        kind: Kind::Update,
        length: accept.bytes,
        weight: accept.weight,
    }
}

/// Tells whoever folds. A hint: the sweep finds what this misses.
async fn announce(context: &Context, spec: &JobSpec, descriptor: &Descriptor) {
    let labels = [spec.namespace.as_str(), spec.name.as_str()];
    context.metrics.updates_received.with_label_values(&labels).inc();
    context.metrics.update_bytes.with_label_values(&labels).inc_by(descriptor.length);
    let subject = crate::subjects::accepted(spec);
    let payload = Bytes::copy_from_slice(&descriptor.to_bytes());
    if let Err(error) = context.bus.events.publish(&subject, payload).await {
        tracing::debug!(%error, "publish accepted update");
    }
}

fn answer(context: &Context, submission: &Submission, outcome: AcceptOutcome) -> Result<Submitted, Problem> {
    let receipt = |id| context.ledger.read(|state| state.receipt(id)).ok_or_else(|| internal("the receipt is gone"));
    match outcome {
        AcceptOutcome::Accepted(id) => receipt(id).map(Submitted::Accepted),
        AcceptOutcome::Duplicate(id) => receipt(id).map(Submitted::Duplicate),
        other => Err(refusal(submission, other)),
    }
}

fn refusal(submission: &Submission, outcome: AcceptOutcome) -> Problem {
    let (round, client, name) = (submission.round, &submission.client, &submission.spec.name);
    match outcome {
        AcceptOutcome::Accepted(_) | AcceptOutcome::Duplicate(_) => internal("an accepted update is no refusal"),
        AcceptOutcome::Conflict(receipt) => Problem::new(
            Code::Conflict,
            format!("client `{client}` already sent another update for round {round}; the first one stands (receipt {receipt})"),
        )
        .with("receipt", receipt.to_string()),
        AcceptOutcome::RoundClosed { next } => {
            let what = match next {
                Some(next) => format!("train for round {next}"),
                None => "there is no further round".to_owned(),
            };
            Problem::new(Code::RoundClosed, format!("round {round} of job `{name}` is closed: {what}"))
                .with("next_round", next)
        }
        AcceptOutcome::NotOpenYet { current } => Problem::new(
            Code::NotFound,
            format!("round {round} of job `{name}` has not opened; the newest round is {current}"),
        )
        .with("round", current),
        AcceptOutcome::WrongState(state) => Problem::new(
            Code::WrongState,
            format!("job `{name}` is {} and takes no updates now", crate::gateway::state_text(state)),
        ),
        AcceptOutcome::UnknownJob => Problem::new(Code::NotFound, format!("job `{name}` does not exist any more")),
    }
}

fn log_unavailable() -> Problem {
    Problem::new(
        Code::LogUnavailable,
        "the event log cannot be reached, so the update was not accepted; send it again, the same bytes are counted once",
    )
}

/// An inside failure: the log says what, the caller only that.
fn internal(error: impl std::fmt::Display) -> Problem {
    tracing::error!(%error, "take update");
    Problem::new(Code::Internal, "the node failed to take the update; its log says why")
}
