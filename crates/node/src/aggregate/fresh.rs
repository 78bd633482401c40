//! Accumulators come to be: each once, on a thread that may block, under no lock.

use super::holdings::{OfRound, Wanted};
use super::leaf::{Leaf, Shape};
use crate::context::Context;
use catchment_ledger::State;
use catchment_slab::SlabError;
use catchment_types::NodeId;
use std::collections::HashSet;
use std::sync::Arc;

/// Memory of at least this many bytes is taken on a thread that may block.
const BLOCKING_BYTES: u64 = 1 << 20;

/// An accumulator that is nobody's yet. The store keeps it until it is told otherwise, so whoever made it and went away
/// gives it back.
struct Fresh {
    context: Arc<Context>,
    leaf: Option<Leaf>,
}

impl Fresh {
    fn make(context: Arc<Context>, shape: Shape) -> Result<Self, SlabError> {
        let level = context.ledger.read(State::level);
        let leaf = Leaf::create(&context.store, shape, level)?;
        Ok(Self { context, leaf: Some(leaf) })
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        self.context.release(self.leaf.take().iter().flat_map(Leaf::slabs));
    }
}

/// Takes memory for `bytes` bytes: on this thread when that takes microseconds, else on one that may block. To enter the
/// pages of a large file takes milliseconds, and so does it to unlink others for it.
///
/// # Errors
/// The thread panicked, or the process ends.
pub async fn taken<T: Send + 'static>(
    context: &Context,
    bytes: u64,
    take: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    if bytes < BLOCKING_BYTES && !context.store.is_crowded(bytes) {
        return Ok(take());
    }
    tokio::task::spawn_blocking(take).await
}

/// An accumulator, made when there is none. While somebody makes it, others wait for that; no thread does.
///
/// # Errors
/// As [`taken`]; inside, what the store says.
pub async fn leaf(context: &Arc<Context>, shape: Shape) -> Result<Result<Leaf, SlabError>, tokio::task::JoinError> {
    let reservation = loop {
        match context.holdings.want(shape.key) {
            Wanted::There(leaf) => return Ok(Ok(leaf)),
            Wanted::Reserved(reservation) => break reservation,
            Wanted::Awaited(gone) => gone.cancelled().await,
        }
    };
    let made = context.clone();
    let made = taken(context, Leaf::bytes(shape.elements), move || Fresh::make(made, shape)).await?;
    Ok(made.map(|mut fresh| {
        let leaf = fresh.leaf.clone().expect("made just now");
        if reservation.fill(&leaf) {
            // The round's from now on.
            fresh.leaf = None;
        }
        leaf
    }))
}

/// Those of these rounds that are over, or whose node's incarnation is.
pub fn over(state: &State, node: NodeId, rounds: HashSet<OfRound>) -> HashSet<OfRound> {
    let now = state.incarnation(node);
    let is_active = |of: &OfRound| {
        let active = state.job(of.uid).and_then(|job| job.active_round());
        of.incarnation == now && active.is_some_and(|active| active.number == of.round)
    };
    rounds.into_iter().filter(|of| !is_active(of)).collect()
}

impl Context {
    /// Lets go of what is held for rounds that are over.
    pub(crate) fn release_ended(&self) {
        let over = |rounds| self.ledger.read(|state| over(state, self.node, rounds));
        self.release(self.holdings.take_ended(over));
    }
}
