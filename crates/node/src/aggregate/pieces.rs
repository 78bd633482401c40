//! Pieces of rounds that other nodes have ordered here: what they need to make a model, made where its parts lie.
//!
//! A piece is a help and never a condition. Whoever ordered one that does not come takes what it is made of instead.

use super::job::{StepError, blocking};
use super::lanes::Level;
use super::merge::Partial;
use super::offered::{digest, file_of};
use super::scratch::Scratch;
use super::tree::Branch;
use super::worker::Worker;
use super::{slices, tree};
use crate::context::Context;
use crate::functions::Maker;
use catchment_ledger::{Ledger, Round, State};
use catchment_types::{Digest, JobUid, NodeId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Largest order that is read.
pub const ORDER_BYTES_MAX: usize = 1 << 20;
/// How long an order's caller waits before it is told to ask again.
const PATIENCE: Duration = Duration::from_secs(10);

/// What may be ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Piece {
    /// The partial of a branch, whose node is the one that is asked.
    Partial(Branch),
    /// The model's coordinates from `begin` to `end`, for functions that need every update of a coordinate.
    Slice {
        /// The first coordinate; a range begins here.
        begin: u64,
        /// The coordinate after the last; a range ends here.
        end: u64,
    },
}

/// A piece of a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The job.
    pub uid: JobUid,
    /// The round.
    pub round: u64,
    /// The updates that it is made of, as the log has them.
    pub contribution: Digest,
    /// Who must make it. Nodes of the first release do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maker: Option<Maker>,
    /// The piece.
    pub piece: Piece,
}

impl Order {
    /// What it is asked for by.
    pub fn name(&self) -> Digest {
        blake3::hash(&self.encode()).into()
    }

    /// As it goes to another node.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain fields serialise")
    }

    /// Whether the log has the round as the order does, and everything is where the piece can be made of it.
    pub fn fits(&self, state: &State, node: NodeId) -> bool {
        let round = state.job(self.uid).and_then(|job| job.active_round()).filter(|round| round.number == self.round);
        round.is_some_and(|round| match &self.piece {
            Piece::Partial(branch) => {
                let nodes: BTreeSet<NodeId> = branch.nodes().into_iter().collect();
                branch.node == node && round.is_ready() && self.contribution == contribution(round, &nodes)
            }
            Piece::Slice { .. } => round.is_complete() && self.contribution == round.contribution(),
        })
    }
}

/// Digest over what these nodes hold of a round.
pub fn contribution(round: &Round, nodes: &BTreeSet<NodeId>) -> Digest {
    round.contribution_where(|update| nodes.contains(&update.accept.node))
}

/// A piece that is there: a stretch of shared memory.
pub struct Made {
    /// The memory.
    pub memory: Scratch,
    /// Where in its file the piece begins.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its digest.
    pub etag: Digest,
}

/// How far an order is.
#[derive(Clone)]
pub enum Progress {
    /// Nobody has begun.
    Waiting,
    /// It is being made.
    Begun,
    /// It is there.
    Made(Arc<Made>),
    /// It could not be made, and why.
    Failed(String),
}

struct Entry {
    order: Order,
    progress: watch::Sender<Progress>,
}

impl Entry {
    fn waits_for(&self, uid: JobUid) -> bool {
        self.order.uid == uid && matches!(*self.progress.borrow(), Progress::Waiting)
    }
}

/// An order that is being made. One that is dropped before it is done has failed.
pub struct Taken {
    context: Arc<Context>,
    name: Digest,
    order: Order,
}

impl Taken {
    /// One of a job's orders that nobody has begun.
    pub fn next(context: &Arc<Context>, uid: JobUid) -> Option<Self> {
        let ordered = context.pieces.lock();
        let (name, entry) = ordered.iter().find(|(_, entry)| entry.waits_for(uid))?;
        entry.progress.send_replace(Progress::Begun);
        Some(Self { context: context.clone(), name: *name, order: entry.order.clone() })
    }

    /// Makes what was ordered; whoever ordered it is told what came of it.
    ///
    /// # Errors
    /// An update is missing, or there was a panic; everything else concerns nobody but who ordered.
    pub async fn make(self, worker: &Arc<Worker>) -> Result<(), StepError> {
        let fits = || {
            let fits = self.context.ledger.read(|state| self.order.fits(state, self.context.node));
            fits.then_some(()).ok_or_else(|| StepError::Again("the round has changed".to_owned()))
        };
        let made = async {
            fits()?;
            let made = make(worker, &self.order).await?;
            fits().map(|()| made)
        };
        match made.await {
            Ok(made) => self.context.pieces.end(self.name, Progress::Made(Arc::new(made))),
            Err(error) => {
                tracing::debug!(round = self.order.round, %error, "a piece was not made");
                self.context.pieces.end(self.name, Progress::Failed(error.to_string()));
                if matches!(error, StepError::Missing { .. } | StepError::Panicked(_)) {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Tells whoever ordered it that it is not made.
    pub fn refuse(self, why: &str) {
        self.context.pieces.end(self.name, Progress::Failed(why.to_owned()));
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.context.pieces.end(self.name, Progress::Failed("it was left half made".to_owned()));
    }
}

async fn make(worker: &Arc<Worker>, order: &Order) -> Result<Made, StepError> {
    let here = worker.model.takes.maker;
    if let Some(wanted) = order.maker.filter(|wanted| *wanted != here) {
        return Err(StepError::Again(format!("it is ordered of {wanted}, and here it would be made by {here}")));
    }
    let (memory, offset, bytes) = match &order.piece {
        Piece::Partial(branch) => {
            let Partial::Merged { memory, block, block_bytes } =
                tree::merge(worker, order.round, branch, Level::Middle).await?
            else {
                return Err(StepError::Again("there is nothing to merge".to_owned()));
            };
            (memory, block * block_bytes, worker.model.layout.elements() * 8)
        }
        Piece::Slice { begin, end } => slices::piece(worker, order.round, *begin, *end).await?,
    };
    let disk = |error: io::Error| StepError::Again(format!("read a piece: {error}"));
    let file = file_of(memory.accumulator.fd()).map_err(disk)?;
    let offset = memory.accumulator.data_offset() + offset;
    let etag = blocking(move || digest(&file, offset, bytes).map_err(disk)).await?;
    Ok(Made { memory, offset, bytes, etag })
}

/// Orders of rounds that are not over.
#[derive(Default)]
pub struct Pieces {
    ordered: Mutex<HashMap<Digest, Entry>>,
    /// Told of each new order.
    pub came: Notify,
}

impl Pieces {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Entry>> {
        self.ordered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an order, and waits for a while until it is made. One that failed is tried again.
    pub async fn order(&self, name: Digest, order: Order) -> Progress {
        let mut progress = {
            let mut ordered = self.lock();
            let entry = ordered.entry(name).or_insert_with(|| {
                let progress = watch::Sender::new(Progress::Failed("nobody has ordered it".to_owned()));
                Entry { order, progress }
            });
            if matches!(*entry.progress.borrow(), Progress::Failed(_)) {
                entry.progress.send_replace(Progress::Waiting);
                self.came.notify_one();
            }
            entry.progress.subscribe()
        };
        let is_over = |progress: &Progress| matches!(progress, Progress::Made(_) | Progress::Failed(_));
        match tokio::time::timeout(PATIENCE, progress.wait_for(is_over)).await {
            Ok(Ok(progress)) => progress.clone(),
            Ok(Err(_)) => Progress::Failed("the round is over".to_owned()),
            Err(_) => Progress::Begun,
        }
    }

    /// A piece that is there.
    pub fn get(&self, name: Digest) -> Option<Arc<Made>> {
        match &*self.lock().get(&name)?.progress.borrow() {
            Progress::Made(made) => Some(made.clone()),
            _ => None,
        }
    }

    /// Jobs of which something is ordered that nobody has begun.
    pub fn waiting(&self) -> Vec<JobUid> {
        let ordered = self.lock();
        let waiting = ordered.values().filter(|entry| matches!(*entry.progress.borrow(), Progress::Waiting));
        waiting.map(|entry| entry.order.uid).collect()
    }

    /// Whether one of them is of this job.
    pub fn waits_for(&self, uid: JobUid) -> bool {
        self.lock().values().any(|entry| entry.waits_for(uid))
    }

    /// Notes what came of an order that somebody had begun with.
    fn end(&self, name: Digest, progress: Progress) {
        if let Some(entry) = self.lock().get(&name)
            && matches!(*entry.progress.borrow(), Progress::Begun)
        {
            entry.progress.send_replace(progress);
        }
    }

    /// Gives a piece up for its memory. Returns whether there was one.
    pub fn give_way(&self) -> bool {
        let given = {
            let ordered = self.lock();
            let mut made = ordered.values().filter(|entry| matches!(*entry.progress.borrow(), Progress::Made(_)));
            made.next()
                .map(|entry| entry.progress.send_replace(Progress::Failed("it gave way to other work".to_owned())))
        };
        given.is_some()
    }

    /// Forgets what belongs to rounds that are over, or have changed since.
    pub fn retain(&self, ledger: &Ledger, node: NodeId) {
        let ended: Vec<Entry> = ledger.read(|state| {
            let mut ordered = self.lock();
            ordered.extract_if(|_, entry| !entry.order.fits(state, node)).map(|(_, entry)| entry).collect()
        });
        // Their memory is given back without the lock.
        drop(ended);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *self.lock());
        drop(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes of the first release do not say who must make a piece; theirs are called what they call them.
    #[test]
    fn an_order_says_who_must_make_it_and_one_of_the_first_release_is_as_it_was() {
        let digest = Digest::from_bytes([1; 32]);
        let maker = Maker { function: digest, abi: 4 };
        let piece = Piece::Slice { begin: 0, end: 9 };
        let order = Order { uid: JobUid::from_bytes([2; 16]), round: 3, contribution: digest, maker: None, piece };
        let text = |order: &Order| String::from_utf8(order.encode()).unwrap();
        assert!(!text(&order).contains("maker"), "{}", text(&order));
        let pinned = Order { maker: Some(maker), ..order.clone() };
        let other = Order { maker: Some(Maker { abi: 5, ..maker }), ..order.clone() };
        for sent in [&order, &pinned, &other] {
            let read: Order = serde_json::from_slice(&sent.encode()).unwrap();
            assert_eq!((&read, read.name()), (sent, sent.name()));
        }
        assert!(order.name() != pinned.name() && pinned.name() != other.name());
    }
}
