//! What this node gives others of a closed round: partials of its leaves, its updates, and pieces that they ordered.
//!
//! It gives a partial only if the log, as far as it has read it, says that exactly what was asked for is in it, and the
//! accumulator agrees. Then nothing will change there any more before the round ends: the round takes no updates, and a
//! node that is given up begins a new accumulator.

use super::input::Input;
use super::leaf::LeafKey;
use super::pieces::{Order, Progress};
use crate::context::Context;
use crate::functions::Maker;
use crate::gateway::stretch::Stretch;
use crate::peers::Excerpt;
use catchment_ledger::{Phase, State, Update};
use catchment_runtime::Window;
use catchment_types::{Code, Digest, JobUid, Mode, Problem, ReceiptId, ReceiptState};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Digests that are remembered: for those who go on with a stream that broke off.
const DIGESTS_MAX: usize = 256;
/// How long somebody who asks is kept waiting for what this node has not read of the log yet.
const BEHIND: Duration = Duration::from_secs(1);
/// Bytes digested at one time.
const READ_BYTES: usize = 1 << 20;

/// Digests of stretches that do not change, by what they are made of.
#[derive(Default)]
pub struct Digests {
    known: Mutex<HashMap<Digest, Digest>>,
}

impl Digests {
    fn get(&self, key: Digest) -> Option<Digest> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied()
    }

    fn put(&self, key: Digest, digest: Digest) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= DIGESTS_MAX {
            known.clear();
        }
        known.insert(key, digest);
    }
}

/// What the log says, as soon as this node has read so far: whoever asks may be a moment ahead.
async fn settled<T>(context: &Context, look: impl Fn(&State) -> Result<T, Problem>) -> Result<T, Problem> {
    let mut changes = context.ledger.watch();
    let patience = tokio::time::sleep(BEHIND);
    tokio::pin!(patience);
    loop {
        let refused = match context.ledger.read(&look) {
            Ok(found) => return Ok(found),
            Err(refused) => refused,
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Err(refused) },
            () = &mut patience => return Err(refused),
        }
    }
}

/// Takes an order for a piece of a round.
///
/// # Errors
/// `not_ready` when the log says that it cannot be made here, or it could not.
pub async fn order(context: &Context, name: Digest, order: Order) -> Result<Ordered, Problem> {
    if name != order.name() {
        return Err(Problem::new(Code::BadRequest, "the order has another name"));
    }
    let otherwise = || not_now("the log, as far as it has read it, says otherwise");
    settled(context, |state| order.fits(state, context.node).then_some(()).ok_or_else(otherwise)).await?;
    match context.pieces.order(name, order).await {
        Progress::Made(_) => Ok(Ordered::Made),
        Progress::Waiting | Progress::Begun => Ok(Ordered::StillAtIt),
        Progress::Failed(why) => Err(not_now(&why)),
    }
}

/// How far an order is.
pub enum Ordered {
    /// It may be fetched.
    Made,
    /// It is to be asked for again.
    StillAtIt,
}

/// A piece that was ordered, and the memory that it is in for as long as it is being sent.
///
/// # Errors
/// `not_ready` when it is not there.
pub fn piece(context: &Context, name: Digest) -> Result<Stretch, Problem> {
    let made = context.pieces.get(name).ok_or_else(|| not_now("the piece is not made"))?;
    let file = file_of(made.memory.accumulator.fd()).map_err(crate::submit::internal)?;
    Ok(Stretch::new(file, made.offset, made.offset + made.bytes, made.etag).keeping(made))
}

/// A leaf's partial with exactly this contribution set, made by `maker` where that is said.
///
/// # Errors
/// `not_ready` while it is something else.
pub async fn partial(
    context: &Arc<Context>,
    uid: JobUid,
    round: u64,
    leaf: u32,
    contribution: Digest,
    maker: Option<Maker>,
) -> Result<Stretch, Problem> {
    let key = settled(context, |state| check_partial(context, state, uid, round, leaf, contribution)).await?;
    let leaf = context.holdings.leaf(key).ok_or_else(|| not_now("the accumulator is not in memory"))?;
    if let Some(wanted) = maker {
        leaf.check_maker(wanted).map_err(|error| not_now(&error.to_string()))?;
    }
    let (offset, bytes) = leaf.whole().ok_or_else(|| not_now("a batch of it is not done yet"))?;
    stretch(context, leaf.file(), offset, bytes, contribution).await
}

fn check_partial(
    context: &Context,
    state: &State,
    uid: JobUid,
    number: u64,
    leaf: u32,
    contribution: Digest,
) -> Result<LeafKey, Problem> {
    let round = state.job(uid).and_then(|job| job.active_round()).filter(|round| round.number == number);
    let round = round.ok_or_else(|| not_now("the round is not active here"))?;
    let share = round.share(context.node).ok_or_else(|| not_now("it holds nothing of the round"))?;
    let is_whole = round.phase == Phase::Aggregating && share.folded == share.updates;
    if !is_whole || round.contribution_of(context.node, leaf) != contribution {
        return Err(not_now("the log, as far as it has read it, says otherwise"));
    }
    Ok(LeafKey { uid, round: number, leaf, incarnation: state.incarnation(context.node) })
}

/// An update of a closed round, and what is noted of its slab.
///
/// # Errors
/// `not_ready` when it is not here, or not in a closed round.
pub async fn update(context: &Arc<Context>, receipt: ReceiptId) -> Result<(Stretch, Vec<u8>), Problem> {
    let input = input(context, receipt).await?;
    let window = input.whole().map_err(|error| not_now(&error.to_string()))?;
    of_input(context, &input, window, blake3::hash(receipt.as_bytes()).into()).await
}

/// Some elements of it, and what is noted of its slab.
///
/// # Errors
/// As [`update`], and when it does not have so many.
pub async fn excerpt(
    context: &Arc<Context>,
    receipt: ReceiptId,
    excerpt: Excerpt,
) -> Result<(Stretch, Vec<u8>), Problem> {
    let input = input(context, receipt).await?;
    let Excerpt { segment, first, elements } = excerpt;
    let window = input.elements(segment as usize, first, elements);
    let window = window.ok_or_else(|| not_now("the update does not have so many elements"))?;
    let window = window.map_err(|error| not_now(&error.to_string()))?;
    of_input(context, &input, window, blake3::hash(format!("{receipt} {excerpt}").as_bytes()).into()).await
}

async fn of_input(
    context: &Arc<Context>,
    input: &Input,
    window: Window<BorrowedFd<'_>>,
    key: Digest,
) -> Result<(Stretch, Vec<u8>), Problem> {
    let sent = stretch(context, file_of(window.file), window.offset_bytes, window.len_bytes, key).await?;
    Ok((sent, input.noted().to_vec()))
}

async fn input(context: &Context, receipt: ReceiptId) -> Result<Input, Problem> {
    let otherwise = || not_now("the log, as far as it has read it, says otherwise");
    let update = settled(context, |state| find_update(context, state, receipt).ok_or_else(otherwise)).await?;
    Input::find(context, &update, Mode::Sync).map_err(|error| not_now(&error.to_string()))
}

fn find_update(context: &Context, state: &State, receipt: ReceiptId) -> Option<Update> {
    let round = state.receipt(receipt).and_then(|found| state.job(found.uid)?.active_round())?;
    let update = round.update(receipt)?;
    let is_here = update.accept.node == context.node && update.state == ReceiptState::Accepted;
    (round.phase == Phase::Aggregating && is_here).then(|| update.clone())
}

/// Digests a stretch, unless that was done before.
async fn stretch(
    context: &Arc<Context>,
    file: io::Result<File>,
    begin: u64,
    bytes: u64,
    key: Digest,
) -> Result<Stretch, Problem> {
    let failed = |error: io::Error| crate::submit::internal(error);
    let file = file.map_err(failed)?;
    if let Some(etag) = context.digests.get(key) {
        return Ok(Stretch::new(file, begin, begin + bytes, etag));
    }
    let digested = tokio::task::spawn_blocking(move || digest(&file, begin, bytes).map(|etag| (file, etag)));
    let (file, etag) = digested.await.map_err(io::Error::other).map_err(failed)?.map_err(failed)?;
    context.digests.put(key, etag);
    Ok(Stretch::new(file, begin, begin + bytes, etag))
}

/// Reads at offsets of its own: all descriptors of a slab share one position, and several requests may digest at a time.
pub fn digest(file: &File, begin: u64, bytes: u64) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let (mut buffer, mut done) = (vec![0; READ_BYTES], 0);
    while done < bytes {
        let take = (bytes - done).min(READ_BYTES as u64) as usize;
        file.read_exact_at(&mut buffer[..take], begin + done)?;
        hasher.update(&buffer[..take]);
        done += take as u64;
    }
    Ok(hasher.finalize().into())
}

/// A descriptor of its own, because answers outlive what they are taken from.
pub fn file_of(fd: BorrowedFd<'_>) -> io::Result<File> {
    fd.try_clone_to_owned().map(File::from)
}

fn not_now(why: &str) -> Problem {
    Problem::new(Code::NotReady, format!("this node does not have it in that form: {why}"))
}
