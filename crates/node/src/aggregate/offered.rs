//! What this node gives others of a closed round: partials of its leaves, or its updates.
//!
//! It gives a partial only if the log, as far as it has read it, says that exactly what was asked for is in it, and the
//! accumulator agrees. Then nothing will change there any more before the round ends: the round takes no updates, and a
//! node that is given up begins a new accumulator.

use super::job::Input;
use super::leaf::LeafKey;
use crate::context::Context;
use crate::gateway::stretch::Stretch;
use catchment_ledger::{Phase, State, Update};
use catchment_types::{Code, Digest, JobUid, Mode, Problem, ReceiptId, ReceiptState};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

/// Digests that are remembered: for those who go on with a stream that broke off.
const DIGESTS_MAX: usize = 256;
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

/// A leaf's partial with exactly this contribution set.
///
/// # Errors
/// `not_ready` while it is something else.
pub async fn partial(
    context: &Arc<Context>,
    uid: JobUid,
    round: u64,
    leaf: u32,
    contribution: Digest,
) -> Result<Stretch, Problem> {
    let key = context.ledger.read(|state| check_partial(context, state, uid, round, leaf, contribution))?;
    let leaf = context.holdings.leaf(key).ok_or_else(|| not_now("the accumulator is not in memory"))?;
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
    let found = context.ledger.read(|state| find_update(context, state, receipt));
    let update = found.ok_or_else(|| not_now("the log, as far as it has read it, says otherwise"))?;
    let input = Input::find(context, &update, Mode::Sync).map_err(|error| not_now(&error.to_string()))?;
    let window = input.whole().map_err(|error| not_now(&error.to_string()))?;
    let key = blake3::hash(receipt.as_bytes()).into();
    let meta = input.noted().to_vec();
    let sent = stretch(context, file_of(window.file), window.offset_bytes, window.len_bytes, key).await?;
    Ok((sent, meta))
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
        return Ok(Stretch { file, begin, end: begin + bytes, etag });
    }
    let digested = tokio::task::spawn_blocking(move || digest(&file, begin, bytes).map(|etag| (file, etag)));
    let (file, etag) = digested.await.map_err(io::Error::other).map_err(failed)?.map_err(failed)?;
    context.digests.put(key, etag);
    Ok(Stretch { file, begin, end: begin + bytes, etag })
}

/// Reads at offsets of its own: all descriptors of a slab share one position, and several requests may digest at a time.
fn digest(file: &File, begin: u64, bytes: u64) -> io::Result<Digest> {
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
