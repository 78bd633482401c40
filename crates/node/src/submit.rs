//! Takes one update from its head to its receipt, whatever brought it.
//!
//! The order is the promise: check, grant, receive, freeze, log, answer. A slab is the store's until it is frozen, the
//! submission's until the log has spoken, and the round's after that; on every other way out it is given back.

use crate::aggregate::OfRound;
use crate::buffers::ends;
use crate::context::{Context, Late};
use crate::gateway::body::Body;
use crate::parking::{Address, Live};
use crate::upload::{Frozen, Upload, prepare};
use bytes::Bytes;
use catchment_ingest::{UpdateDigest, check_samples};
use catchment_ledger::{AcceptOutcome, LedgerError};
use catchment_types::{
    Accept, ClientId, Code, Descriptor, Digest, FunctionId, JobSpec, JobUid, Kind, Mode, Problem, Receipt, Step,
    UpdateKind,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tracing::Instrument;

/// Seconds after which a refused client should try again.
pub const RETRY_AFTER_S: u64 = 1;

/// How long an update waits for its round to open.
const ROUND_WAIT: Duration = Duration::from_secs(5);
/// Smallest weight: with less, an update's numbers could vanish in the sum. (Those of F64 can with a little more, and are
/// refused then, see `ModelLayout::weighed`.)
const WEIGHT_MIN: f64 = 1e-30;
/// What a body ends with that may be gone on with.
const BROKEN_OFF: [Code; 3] = [Code::Truncated, Code::TooSlow, Code::WrongOffset];

/// What is said of an update, outside its body.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The job.
    pub uid: JobUid,
    /// Its spec.
    pub spec: Arc<JobSpec>,
    /// The round; in asynchronous jobs the version it was trained from.
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
    /// Where it is sent to.
    pub fn address(&self) -> Address {
        Address { uid: self.uid, round: self.round, client: self.client.clone() }
    }

    /// What it counts.
    pub fn weight(&self) -> f64 {
        self.weight.unwrap_or_else(|| self.num_samples.map_or(1.0, |samples| samples as f64))
    }

    /// The digest of the whole update, whose body has the digest `body`.
    ///
    /// # Errors
    /// `checksum`, when another one was declared.
    pub fn digest(&self, body: &UpdateDigest) -> Result<Digest, Problem> {
        if let Some(declared) = self.body_digest {
            let found = body.body();
            if found != declared {
                let detail =
                    format!("the body's BLAKE3 digest is {found}, Catchment-Digest declares {declared}: send it again");
                return Err(Problem::new(Code::Checksum, detail));
            }
        }
        Ok(body.finish(self.weight(), self.num_samples.unwrap_or(1), &self.metrics))
    }
}

/// Takes the update in `body`.
///
/// # Errors
/// Every code of the interface's table; nothing is kept of an update that is refused.
pub async fn submit(context: &Arc<Context>, submission: Submission, body: &mut Body) -> Result<Submitted, Problem> {
    let address = submission.address();
    let span = span(&submission.spec, &address);
    told(take(context, submission, body)).instrument(span).await
}

/// What is logged below it is about this update.
pub fn span(spec: &JobSpec, address: &Address) -> tracing::Span {
    tracing::info_span!(
        "update",
        job = %spec.name,
        round = address.round,
        client = %address.client,
        slab = tracing::field::Empty,
    )
}

/// Logs a refusal.
pub async fn told<T>(taken: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    let taken = taken.await;
    if let Err(problem) = &taken {
        tracing::info!(code = %problem.code, detail = %problem.detail, "update refused");
    }
    taken
}

async fn take(context: &Arc<Context>, submission: Submission, body: &mut Body) -> Result<Submitted, Problem> {
    check_weight(&submission)?;
    let mut checked = check_round(context, &submission);
    if checked.is_err() {
        // Another node may have opened the round already.
        context.refresh().await;
        checked = check_round(context, &submission);
    }
    let known = match checked {
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
    let address = submission.address();
    // Who sends it whole again has no use for what came before.
    context.parking.forget(&address);
    let upload = Upload::begin(context, submission, body).await?;
    let live = upload.is_resumable().then(|| context.parking.begin(address));
    let (_live, upload) = receive(context, live, upload, body).await?;
    accept(context, upload.freeze()?).await
}

/// Receives what `body` has of an upload. One that breaks off is parked, if it can be. So is one that stands still while
/// somebody waits for room, and whoever waits then has what it needs of it.
pub async fn receive<'p>(
    context: &Context,
    live: Option<Live<'p>>,
    mut upload: Upload,
    body: &mut Body,
) -> Result<(Option<Live<'p>>, Upload), Problem> {
    tracing::Span::current().record("slab", tracing::field::display(upload.slab_id()));
    let holding = context.holders.begin();
    let gives_way = holding.gives_way();
    body.hold(Some(holding));
    let is_taken_over = async {
        match &live {
            Some(live) => live.taken_over().await,
            None => std::future::pending().await,
        }
    };
    let received = tokio::select! {
        biased;
        () = is_taken_over => Err(taken_over()),
        () = gives_way.cancelled() => Err(stands_still()),
        received = upload.receive(body) => received,
    };
    body.hold(None);
    let Err(problem) = received else { return Ok((live, upload)) };
    // A node that ends lets go of it, too: it is gone on with once the node is back.
    let is_end = context.ending.stop.is_cancelled() && problem.detail == ends().detail;
    let is_broken = is_end || BROKEN_OFF.iter().any(|code| problem.is(*code));
    match live {
        Some(live) if is_broken => {
            live.park(upload, |address| address.is_open(context));
        }
        live => {
            drop(upload);
            // Refused for good: what is in a file of it is of no use either.
            live.into_iter().filter(|_| !problem.retryable).for_each(Live::over);
        }
    }
    context.room.notify_waiters();
    Err(problem)
}

/// Answers a client that has sent something for this round already. Whether this is the same again only its digest can
/// tell.
async fn take_again(context: &Context, submission: &Submission, body: &mut Body) -> Result<Submitted, Problem> {
    body.check_length(submission.spec.limits.update_bytes)?;
    let (uid, round, client) = (submission.uid, submission.round, &submission.client);
    let known = context.ledger.read(|state| state.job(uid)?.update_at(round, client).map(|update| update.accept.bytes));
    let lost =
        || Problem::new(Code::NotReady, "the update that stood here was lost while this one was read; send it again");
    let body = body.digest(known.ok_or_else(lost)?).await?;
    let judged = match &body {
        Some(body) => {
            let digest = submission.digest(body)?;
            context.ledger.read(|state| state.judge(uid, round, client, Some(&digest)))
        }
        // It has another length, so it is another update, whatever its bytes are.
        None => match context.ledger.read(|state| state.judge(uid, round, client, None)) {
            Some(AcceptOutcome::Duplicate(receipt)) => Some(AcceptOutcome::Conflict(receipt)),
            judged => judged,
        },
    };
    answer(context, submission, judged.ok_or_else(lost)?)
}

fn check_weight(submission: &Submission) -> Result<(), Problem> {
    check_samples(submission.num_samples)?;
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
        Some(other) => Err(refusal(&submission.spec, &submission.address(), other)),
    }
}

/// Whether the round is the next one, and about to open.
fn opens_next(context: &Context, submission: &Submission) -> bool {
    context.ledger.read(|state| state.job(submission.uid).is_some_and(|job| job.is_about_to_take(submission.round)))
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
    context.within(ROUND_WAIT, opened).await.map_err(|late| match late {
        Late::Ends => ends(),
        Late::Time => {
            let detail = format!("round {} is about to open: send the update again", submission.round);
            Problem::new(Code::NotReady, detail)
        }
    })
}

fn check_base(context: &Context, submission: &Submission) -> Result<(), Problem> {
    let etag = context.ledger.read(|state| {
        let commit = &state.job(submission.uid)?.base_at(submission.round)?.commit;
        Some((commit.version, commit.etag))
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

/// Appends to the log and answers. The waiting goes on when the client hangs up: the slab's fate hangs on the log.
pub async fn accept(context: &Arc<Context>, frozen: Frozen) -> Result<Submitted, Problem> {
    let Frozen { mut kept, submission, model, incarnation, digest, body_bytes, mut held } = frozen;
    let slab = held.slab.as_ref().expect("held until the log has spoken");
    let slab_bytes = slab.len();
    let accept = Accept {
        uid: submission.uid,
        round: kept.round(),
        base: (submission.spec.mode != Mode::Sync).then_some(submission.round),
        client: submission.client.clone(),
        digest,
        weight: submission.weight(),
        num_samples: submission.num_samples.unwrap_or(1),
        metrics: submission.metrics.clone(),
        bytes: body_bytes,
        node: context.node,
        incarnation,
        slab: slab.id(),
        at_ms: context.clock.now_ms(),
    };
    context.holdings.hold(accept.slab, OfRound { uid: accept.uid, round: accept.round, incarnation });
    let task_context = context.clone();
    let task_submission = submission.clone();
    let task = async move {
        let (context, submission) = (task_context, task_submission);
        let spec = submission.spec.clone();
        let mut accept = accept;
        let outcome = loop {
            let outcome = context.ledger.accept(accept.clone()).await;
            if !matches!(outcome, Ok(AcceptOutcome::Moved)) {
                break outcome.map_err(Unaccepted::Log);
            }
            // Its buffer closed meanwhile: it goes into the next one.
            if await_round(&context, &submission).await.is_err() {
                break outcome.map_err(Unaccepted::Log);
            }
            kept = kept.moved(&submission);
            accept.round = kept.round();
            // Before the log is asked: what it accepts must never wait for memory.
            if let Err(problem) = prepare(&context, &submission, accept.round, incarnation, &model).await {
                break Err(Unaccepted::NoRoom(problem));
            }
        };
        context.done(Step::Logged);
        let is_accepted = outcome.as_ref().is_ok_and(|outcome| outcome.is_accepted());
        let unknown = matches!(outcome, Err(Unaccepted::Log(LedgerError::Unreadable(_) | LedgerError::Stopped)));
        if is_accepted || unknown {
            // The round's now. Or the log may have it: the next start decides, and until then the slab waits for its round
            // to end.
            held.slab.take();
            context.holdings.confirm(accept.slab, accept.round);
        }
        if is_accepted {
            tracing::debug!(client = %accept.client, "accepted");
            context.wakes.wake(accept.uid);
            announce(&context, &spec, body_bytes, &descriptor(&context, &accept, slab_bytes, &spec)).await;
        }
        let active = context.ledger.read(|state| Some(state.job(accept.uid)?.active_round()?.number));
        // The round may have ended while this update was on its way, or set its accumulators aside.
        if !is_accepted || active != Some(accept.round) {
            context.release_ended();
        }
        drop(kept);
        outcome
    };
    let task = tokio::spawn(task.in_current_span());
    match context.within(context.config.accept_wait, task).await {
        // It may still be stored: then the same bytes, sent again, find their receipt.
        Err(_) => Err(Problem::new(
            Code::LogUnavailable,
            "the event log does not answer, so it is not known whether the update will be accepted; send it again, the same \
             bytes are counted once",
        )),
        Ok(Err(error)) => Err(internal(error)),
        Ok(Ok(Err(Unaccepted::NoRoom(problem)))) => Err(problem),
        Ok(Ok(Err(Unaccepted::Log(LedgerError::Refused(why))))) => {
            Err(Problem::new(Code::LogUnavailable, format!("the event log refused to store the update: {why}")))
        }
        Ok(Ok(Err(_))) => Err(log_unavailable()),
        Ok(Ok(Ok(outcome))) => answer(context, &submission, outcome),
    }
}

/// Why the log has not said what becomes of an update.
enum Unaccepted {
    /// It cannot.
    Log(LedgerError),
    /// It was not asked again: there is no room for what folding would take.
    NoRoom(Problem),
}

fn descriptor(context: &Context, accept: &Accept, slab_bytes: u64, spec: &JobSpec) -> Descriptor {
    let function = context.functions.digest(spec).map_or(FunctionId(0), |digest| FunctionId::of(&digest));
    Descriptor {
        function,
        job: accept.uid,
        round: accept.round,
        slab: accept.slab,
        offset: 0,
        kind: Kind::Update,
        length: slab_bytes,
        weight: accept.weight,
    }
}

/// Tells whoever listens outside.
async fn announce(context: &Context, spec: &JobSpec, body_bytes: u64, descriptor: &Descriptor) {
    let labels = [spec.namespace.as_str(), spec.name.as_str()];
    context.metrics.updates_received.with_label_values(&labels).inc();
    context.metrics.update_bytes.with_label_values(&labels).inc_by(body_bytes);
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
        other => Err(refusal(&submission.spec, &submission.address(), other)),
    }
}

/// Why the log does not take an update.
pub fn refusal(spec: &JobSpec, address: &Address, outcome: AcceptOutcome) -> Problem {
    let (round, client, name) = (address.round, &address.client, &spec.name);
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
        AcceptOutcome::Moved => Problem::new(Code::NotReady, "the next buffer is about to open: send the update again"),
        AcceptOutcome::NodeLost => Problem::new(
            Code::NotReady,
            "this node was given up for lost while it took the update; it is back: send the update again",
        ),
        AcceptOutcome::UnknownJob => Problem::new(Code::NotFound, format!("job `{name}` does not exist any more")),
    }
}

fn stands_still() -> Problem {
    let detail = "the body stands still, and others wait for the memory that it holds: HEAD on its address says whether, and \
                  from where, it can be gone on with";
    Problem::new(Code::TooSlow, detail)
}

fn taken_over() -> Problem {
    Problem::new(Code::WrongOffset, "the client asked on another connection how far it is: this one is over")
}

/// Nothing can be accepted now.
pub fn log_unavailable() -> Problem {
    Problem::new(
        Code::LogUnavailable,
        "the event log cannot be reached, so the update was not accepted; send it again, the same bytes are counted once",
    )
}

/// An inside failure: the log says what, the caller only that.
pub fn internal(error: impl std::fmt::Display) -> Problem {
    tracing::error!(%error, "take update");
    Problem::new(Code::Internal, "the node failed to take the update; its log says why")
}
