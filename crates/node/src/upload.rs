//! An update on its way from its body into a slab.
//!
//! Everything that going on takes is in one value, because a body may come in several pieces: when its connection breaks,
//! the upload waits in [`crate::parking`] for the next one.

use crate::aggregate::{self, OfRound, taken};
use crate::bases::bounded;
use crate::buffers::ends;
use crate::context::Context;
use crate::gateway::body::Body;
use crate::head::{ReadHead, read_head};
use crate::holders::Pressed;
use crate::layouts::ModelLayout;
use crate::owner::owner;
use crate::parking::{Standstill, unknown};
use crate::peers::models::ensure;
use crate::shelf::{self, Facts, KeptHead, Outgoing};
use crate::slab_meta::SlabMeta;
use crate::submit::{Submission, internal, refusal};
use catchment_ingest::{Base, DigestState, Scatter, UpdateDigest, layout_problem};
use catchment_ledger::{AcceptOutcome, State};
use catchment_slab::{Slab, SlabError, SlabMut};
use catchment_types::{Code, Digest, Fit, Header, JobSpec, JobUid, Limits, Mode, Problem, SlabId, Step};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::task::JoinError;
use tokio::time::{Instant, sleep_until};

/// An update of which the head and some of the data are here.
// Fields drop in this order: the slab is free before the round's accumulators are, if they go.
pub struct Upload {
    submission: Submission,
    model: Arc<ModelLayout>,
    /// The node's, when it took memory for it.
    incarnation: u64,
    fit: Arc<Fit>,
    scatter: Scatter,
    digest: UpdateDigest,
    /// The head of its file, if it is needed and there was room for it.
    head: Option<KeptHead>,
    /// Bytes before the data.
    head_bytes: u64,
    /// Bytes of the whole body, when they were declared.
    length: Option<u64>,
    slab: SlabMut,
    kept: Kept,
}

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the body that are here.
    pub offset: u64,
    /// Bytes it has.
    pub length: u64,
}

/// An update that waits for the log.
pub struct Frozen {
    /// What is said of it.
    pub submission: Submission,
    /// The layout of its job's model.
    pub model: Arc<ModelLayout>,
    /// The node's incarnation that took it.
    pub incarnation: u64,
    /// Its digest.
    pub digest: Digest,
    /// Bytes of its body.
    pub body_bytes: u64,
    /// Where it lies.
    pub held: HeldSlab,
    /// What folding it will take.
    pub kept: Kept,
}

impl Upload {
    /// Reads the head and takes the memory that it asks for. What has come of the data is in its place.
    ///
    /// # Errors
    /// The head does not hold together or does not fit; there is no room; it came too slowly or not at all.
    pub async fn begin(context: &Arc<Context>, submission: Submission, body: &mut Body) -> Result<Self, Problem> {
        let kept = Kept::new(context, &submission);
        if context.holdings.is_closed() {
            return Err(Problem::new(Code::NotReady, "this node is about to end: send the update to another one"));
        }
        let limit = submission.spec.limits.update_bytes;
        body.check_length(limit)?;
        let model = model_layout(context, &submission).await?;
        let ReadHead { head, header, rest, buffer } = read_head(context, body).await?;
        let mut digest = UpdateDigest::default();
        digest.feed(head.bytes());
        if header.data_begin + header.data_bytes > limit {
            return Err(body.too_large(limit));
        }
        let mut place = Place::grant(context, &submission, &kept, &model, &header, head.bytes()).await?;
        context.done(Step::Granted);
        let length = body.length();
        // Of a body that is here already nothing is ever parked.
        let is_more = length.is_some_and(|length| length > header.data_begin + rest.len() as u64);
        let head = is_more.then(|| context.parking.keep_head(head.bytes())).flatten();
        drop(buffer);
        let mut scatter = Scatter::of_deltas(place.fit.clone(), place.base);
        digest.feed(&rest);
        scatter.feed(&rest, place.slab.bytes_mut())?;
        let Place { incarnation, fit, slab, .. } = place;
        let head_bytes = header.data_begin;
        Ok(Self { submission, model, incarnation, fit, scatter, digest, head, head_bytes, length, slab, kept })
    }

    /// Takes up one that is in a file.
    ///
    /// # Errors
    /// `not_found` when its file is not what it was written as; what [`Upload::begin`] says of room.
    pub async fn restore(context: &Arc<Context>, spec: Arc<JobSpec>, path: PathBuf) -> Result<Self, Problem> {
        let unreadable = |error: &dyn std::fmt::Display| {
            tracing::warn!(%error, "a parked upload cannot be gone on with; it is forgotten");
            unknown()
        };
        let read = tokio::task::spawn_blocking(move || shelf::read(&path)).await.map_err(internal)?;
        let (mut file, facts) = read.map_err(|error| unreadable(&error))?;
        let Facts { uid, round, client, weight, num_samples, metrics, base, body_digest, .. } = facts.clone();
        let submission = Submission { uid, spec, round, client, weight, num_samples, metrics, base, body_digest };
        let kept = Kept::new(context, &submission);
        if context.holdings.is_closed() {
            return Err(Problem::new(Code::NotReady, "this node is about to end: send the update to another one"));
        }
        let model = model_layout(context, &submission).await?;
        let text = facts.head.get(Header::PREFIX_BYTES..).unwrap_or_default();
        let header = Header::parse(text, &Limits::default()).map_err(|error| unreadable(&error))?;
        let Place { incarnation, fit, base, mut slab } =
            Place::grant(context, &submission, &kept, &model, &header, &facts.head).await?;
        let state =
            DigestState { blocks: facts.blocks, subtrees: facts.subtrees.clone(), newest: facts.newest.clone() };
        let position = facts.offset.checked_sub(header.data_begin);
        let scatter = position.and_then(|position| Scatter::resumed(fit.clone(), base, position));
        let digest = UpdateDigest::resumed(state).filter(|digest| digest.bytes() == facts.offset);
        let (Some(scatter), Some(digest)) = (scatter, digest) else { return Err(unreadable(&"its facts do not fit")) };
        let (places, length, head) = (scatter.places(), facts.length, context.parking.keep_head(&facts.head));
        let fill = move || shelf::read_data(&mut file, &facts, &places, slab.bytes_mut()).map(|()| slab);
        let slab = tokio::task::spawn_blocking(fill).await.map_err(internal)?.map_err(|error| unreadable(&error))?;
        let (head_bytes, length) = (header.data_begin, Some(length));
        Ok(Self { submission, model, incarnation, fit, scatter, digest, head, head_bytes, length, slab, kept })
    }

    /// Receives what the body has.
    ///
    /// # Errors
    /// `truncated` and `too_slow`, after which it may be gone on with; every other refusal is for good.
    pub async fn receive(&mut self, body: &mut Body) -> Result<(), Problem> {
        while body.receive(&mut self.scatter, self.slab.bytes_mut(), &mut self.digest).await? {}
        Ok(())
    }

    /// How far it is. `None` for a body that did not say its length: only its own connection knows where it ends.
    pub fn progress(&self) -> Option<Progress> {
        self.length.map(|length| Progress { offset: self.head_bytes + self.scatter.position(), length })
    }

    /// Whether something is missing that another connection could bring.
    pub fn is_resumable(&self) -> bool {
        self.progress().is_some_and(|progress| progress.offset < progress.length)
    }

    /// How far it is while nobody receives it, and what its body shall have.
    pub fn standstill(&self) -> Option<Standstill> {
        Some(Standstill { progress: self.progress()?, body_digest: self.submission.body_digest })
    }

    /// The same to be written down. `None`: too much is missing for that.
    pub fn outgoing(&self, parkings: u32) -> Option<Outgoing> {
        let Progress { offset, length } = self.progress()?;
        let reader = self.slab.reader().inspect_err(|error| tracing::debug!(%error, "write an upload down")).ok()?;
        let Submission { uid, round, client, weight, num_samples, metrics, base, body_digest, .. } = &self.submission;
        let DigestState { blocks, subtrees, newest } = self.digest.state();
        let facts = Facts {
            uid: *uid,
            round: *round,
            client: client.clone(),
            weight: *weight,
            num_samples: *num_samples,
            metrics: metrics.clone(),
            base: *base,
            body_digest: *body_digest,
            length,
            offset,
            parkings,
            head: self.head.as_ref()?.bytes.to_vec(),
            blocks,
            subtrees,
            newest,
            data_bytes: 0,
            data_digest: Digest::from_bytes([0; 32]),
        };
        Some(Outgoing { facts, places: self.scatter.places(), reader })
    }

    /// Takes note of the digest that its body shall have, unless that was said before.
    pub fn declare(&mut self, digest: Digest) {
        self.submission.body_digest.get_or_insert(digest);
    }

    /// Its slab.
    pub fn slab_id(&self) -> SlabId {
        self.slab.id()
    }

    /// Bytes of shared memory it has.
    pub fn slab_bytes(&self) -> u64 {
        self.slab.len()
    }

    /// Ends it.
    ///
    /// # Errors
    /// `truncated`, `checksum`.
    pub fn freeze(self) -> Result<Frozen, Problem> {
        // What is bound last goes first: who waits for room is told once the slab is free.
        let Self { kept, submission, model, incarnation, fit, scatter, digest, head_bytes, mut slab, .. } = self;
        let body_bytes = head_bytes + scatter.position();
        scatter.finish(slab.bytes_mut())?;
        kept.context.done(Step::Received);
        let digest = submission.digest(&digest)?;
        let (uid, round) = (submission.uid, kept.round());
        let head = fit.head_at.map(|at| (at, head_bytes));
        let meta = SlabMeta { uid, round, digest, sections: fit.sections.clone(), head };
        let slab = slab.freeze(&meta.encode()?).map_err(internal)?;
        kept.context.done(Step::Frozen);
        let held = HeldSlab { context: kept.context.clone(), slab: Some(slab) };
        Ok(Frozen { submission, model, incarnation, digest, body_bytes, held, kept })
    }
}

/// Where an update goes.
struct Place {
    /// The node's incarnation, when it took memory for it.
    incarnation: u64,
    fit: Arc<Fit>,
    base: Option<Arc<dyn Base>>,
    slab: SlabMut,
}

impl Place {
    /// Fits an update's header to the model, and takes the memory that it asks for.
    async fn grant(
        context: &Arc<Context>,
        submission: &Submission,
        kept: &Kept,
        model: &Arc<ModelLayout>,
        header: &Header,
        head: &[u8],
    ) -> Result<Self, Problem> {
        let (spec, uid, round) = (&submission.spec, submission.uid, kept.round());
        let fit = model.fit(header, spec).map_err(|e| layout_problem(&e))?;
        let fit = model.weighed(fit, spec, submission.weight());
        let (fit, base) = bounded(context, submission, round, model, fit).await;
        let (store, owner, bytes) = (context.store.clone(), owner(spec, uid), fit.slab_bytes);
        let spare = aggregate::finish_bytes(context, spec, model);
        // First what folding needs: updates that fill the memory before would never leave it.
        let incarnation = context.ledger.read(|state| state.incarnation(context.node));
        prepare(context, submission, round, incarnation, model).await?;
        let grant = move || store.grant_sparing(owner, bytes, spare);
        let mut slab = with_room(context, || taken(context, bytes, grant.clone())).await?;
        if let Some(at) = fit.head_at {
            slab.bytes_mut()[at as usize..][..head.len()].copy_from_slice(head);
        }
        Ok(Self { incarnation, fit: Arc::new(fit), base, slab })
    }
}

/// The round that an update is to go into: its own, or in asynchronous jobs the one that is open.
fn target(context: &Context, submission: &Submission) -> u64 {
    match submission.spec.mode {
        Mode::Sync => submission.round,
        Mode::Async(_) => context.ledger.read(|state| state.job(submission.uid).map_or(0, |job| job.round_number())),
    }
}

/// Sets aside what folding an update of this round takes, before it is received, and before one that moves to another round
/// is offered to the log.
///
/// # Errors
/// There is no room.
pub async fn prepare(
    context: &Arc<Context>,
    submission: &Submission,
    round: u64,
    incarnation: u64,
    model: &Arc<ModelLayout>,
) -> Result<(), Problem> {
    let of = OfRound { uid: submission.uid, round, incarnation };
    with_room(context, || aggregate::prepare(context, &submission.spec, of, model)).await
}

/// Keeps the accumulators of an update's round while it is on its way.
pub struct Kept {
    context: Arc<Context>,
    uid: JobUid,
    round: u64,
}

impl Kept {
    fn new(context: &Arc<Context>, submission: &Submission) -> Self {
        let (uid, round) = (submission.uid, target(context, submission));
        context.holdings.begin_upload(uid, round);
        Self { context: context.clone(), uid, round }
    }

    /// The round that the update is to go into.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// The same for the round that is open now.
    pub fn moved(self, submission: &Submission) -> Self {
        Self::new(&self.context.clone(), submission)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Self { context, uid, round } = self;
        let is_empty = || {
            let round = |state: &State| Some(state.job(*uid)?.round_numbered(*round)?.is_empty());
            context.ledger.read(round).unwrap_or(true)
        };
        let unused = context.holdings.end_upload(*uid, *round, is_empty);
        context.release(unused);
    }
}

/// A frozen slab that is given back unless a round takes it.
pub struct HeldSlab {
    context: Arc<Context>,
    /// The slab, until it is the round's.
    pub slab: Option<Slab>,
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

async fn model_layout(context: &Arc<Context>, submission: &Submission) -> Result<Arc<ModelLayout>, Problem> {
    let (context, uid, spec) = (context.clone(), submission.uid, submission.spec.clone());
    let initial = context.ledger.read(|state| Some(state.job(uid)?.model(0)?.commit.clone()));
    let initial = initial.ok_or_else(|| refusal(&spec, &submission.address(), AcceptOutcome::UnknownJob))?;
    ensure(&context, uid, &initial).await?;
    context.function_ready(uid, &spec).await?;
    let etag = initial.etag;
    let find = move || context.layouts.get(&context.models, &context.functions, uid, &spec, etag);
    let layout = tokio::task::spawn_blocking(find).await;
    layout.map_err(internal)?.map_err(internal)
}

/// Takes shared memory. Parked uploads give way, the oldest first; then those that stand still, the one
/// that gained least first; then it waits a while for room. The body stays unread meanwhile, so memory is bounded by what
/// was granted.
pub async fn with_room<T, F>(context: &Context, take: impl Fn() -> F) -> Result<T, Problem>
where
    F: Future<Output = Result<Result<T, SlabError>, JoinError>>,
{
    let until = Instant::now() + context.config.room_wait;
    loop {
        let (room, is_last) = (context.room.notified(), Instant::now() >= until);
        match take().await.map_err(internal)? {
            Ok(taken) => return Ok(taken),
            Err(SlabError::NoRoom { .. }) if context.parking.give_way(is_last) => continue,
            Err(error @ SlabError::NoRoom { .. }) if is_last => {
                let detail = format!("{error}; try again when earlier updates have been folded");
                return Err(Problem::new(Code::NoRoom, detail));
            }
            Err(SlabError::NoRoom { .. }) => {}
            Err(error) => return Err(internal(error)),
        }
        let look_again = match context.holders.press() {
            Pressed::One => until,
            Pressed::Nobody(earliest) => earliest.min(until),
        };
        tokio::select! {
            biased;
            () = room => {}
            () = context.ending.stop.cancelled() => return Err(ends()),
            () = sleep_until(look_again) => {}
        }
    }
}
