//! An update on its way from its body into a slab.
//!
//! Everything that going on takes is in one value, because a body may come in several pieces: when its connection breaks,
//! the upload waits in [`crate::parking`] for the next one.

use crate::aggregate;
use crate::bases::bounded;
use crate::buffers::ends;
use crate::context::Context;
use crate::gateway::body::Body;
use crate::head::{ReadHead, read_head};
use crate::holders::Pressed;
use crate::layouts::ModelLayout;
use crate::peers::models::ensure;
use crate::slab_meta::SlabMeta;
use crate::submit::{Submission, internal, refusal};
use catchment_ingest::{Scatter, UpdateDigest, layout_problem};
use catchment_ledger::AcceptOutcome;
use catchment_slab::{Slab, SlabError, SlabMut};
use catchment_types::{Code, Digest, Fit, JobUid, Mode, Problem, SlabId, Step};
use std::sync::Arc;
use tokio::time::{Instant, sleep_until};

/// Slabs of at least this many bytes are taken on a thread that may block.
const BLOCKING_BYTES: u64 = 1 << 20;

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
        let fit = model.fit(&header, &submission.spec).map_err(|e| layout_problem(&e))?;
        let fit = model.weighed(fit, &submission.spec, submission.weight());
        if header.data_begin + header.data_bytes > limit {
            return Err(body.too_large(limit));
        }
        let (fit, base) = bounded(context, &submission, kept.round(), &model, fit).await;
        let spare = aggregate::finish_bytes(context, &submission.spec, &model);
        let (store, bytes) = (context.store.clone(), fit.slab_bytes);
        // First what folding needs: updates that fill the memory before would never leave it.
        let incarnation = context.ledger.read(|state| state.incarnation(context.node));
        prepare(context, &submission, kept.round(), incarnation, &model).await?;
        let mut slab = with_room(context, bytes, move || store.grant_sparing(bytes, spare)).await?;
        context.done(Step::Granted);
        if let Some(at) = fit.head_at {
            slab.bytes_mut()[at as usize..][..head.bytes().len()].copy_from_slice(head.bytes());
        }
        drop((head, buffer));
        let fit = Arc::new(fit);
        let mut scatter = Scatter::of_deltas(fit.clone(), base);
        digest.feed(&rest);
        scatter.feed(&rest, slab.bytes_mut())?;
        let (head_bytes, length) = (header.data_begin, body.length());
        Ok(Self { submission, model, incarnation, fit, scatter, digest, head_bytes, length, slab, kept })
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

    /// Takes note of the digest that its body shall have. Returns whether that agrees with what was said before.
    pub fn declare(&mut self, digest: Digest) -> bool {
        *self.submission.body_digest.get_or_insert(digest) == digest
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
    let (worker, spec, uid, model) = (context.clone(), submission.spec.clone(), submission.uid, model.clone());
    let bytes = model.layout.elements() * 16;
    with_room(context, bytes, move || aggregate::prepare(&worker, &spec, uid, round, incarnation, &model)).await
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
        let unused = context.ledger.read(|state| context.holdings.end_upload(state, *uid, *round));
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
    let etag = initial.etag;
    let find = move || context.layouts.get(&context.models, &context.functions, uid, &spec, etag);
    let layout = tokio::task::spawn_blocking(find).await;
    layout.map_err(internal)?.map_err(internal)
}

/// Takes shared memory for `bytes` bytes. Parked uploads give way, the oldest first; then those that stand still, the one
/// that gained least first; then it waits a while for room. The body stays unread meanwhile, so memory is bounded by what
/// was granted.
pub async fn with_room<T: Send + 'static>(
    context: &Context,
    bytes: u64,
    take: impl Fn() -> Result<T, SlabError> + Clone + Send + 'static,
) -> Result<T, Problem> {
    let until = Instant::now() + context.config.room_wait;
    loop {
        let (room, is_last) = (context.room.notified(), Instant::now() >= until);
        // Entering a large slab's pages takes milliseconds.
        let taken = match bytes {
            BLOCKING_BYTES.. => tokio::task::spawn_blocking(take.clone()).await.map_err(internal)?,
            _ => take(),
        };
        match taken {
            Ok(taken) => return Ok(taken),
            Err(SlabError::NoRoom { .. }) if context.parking.give_way() => continue,
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
