//! What this node holds in shared memory for rounds that are not over, and the way to let go of it.

use super::leaf::{Leaf, LeafKey};
use catchment_ledger::State;
use catchment_types::{JobUid, NodeId, SlabId};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Whose a slab is.
struct Slabs {
    uid: JobUid,
    round: u64,
    /// The node's, when it took it.
    incarnation: u64,
    /// Whether the log has spoken. Before that it is its submission's, whatever becomes of rounds.
    is_confirmed: bool,
}

#[derive(Default)]
struct Held {
    slabs: HashMap<SlabId, Slabs>,
    leaves: HashMap<LeafKey, Leaf>,
    /// Updates being received or parked, by round.
    uploads: HashMap<(JobUid, u64), u64>,
    /// Whether no more are to be taken.
    is_closed: bool,
}

/// Slabs and accumulators of active rounds.
#[derive(Default)]
pub struct Holdings {
    held: Mutex<Held>,
}

impl Holdings {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a slab is to belong to a round.
    pub fn hold(&self, slab: SlabId, uid: JobUid, round: u64, incarnation: u64) {
        self.lock().slabs.insert(slab, Slabs { uid, round, incarnation, is_confirmed: false });
    }

    /// Notes that it does belong to this round, unless it was let go of meanwhile.
    pub fn confirm(&self, slab: SlabId, round: u64) {
        if let Some(held) = self.lock().slabs.get_mut(&slab) {
            (held.round, held.is_confirmed) = (round, true);
        }
    }

    /// Whether updates are on their way, or wait for the log.
    pub fn is_busy(&self) -> bool {
        let held = self.lock();
        !held.uploads.is_empty() || held.slabs.values().any(|slab| !slab.is_confirmed)
    }

    /// Takes no more updates: the node is about to end.
    pub fn close(&self) {
        self.lock().is_closed = true;
    }

    /// Whether no more updates are taken.
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Notes that an update of this round is on its way: its accumulators stay until it is there, refused or given up.
    pub fn begin_upload(&self, uid: JobUid, round: u64) {
        *self.lock().uploads.entry((uid, round)).or_default() += 1;
    }

    /// Notes that it is. Takes out the round's accumulators if nothing was accepted and nothing more is coming; the
    /// caller releases them.
    pub fn end_upload(&self, state: &State, uid: JobUid, round: u64) -> Vec<SlabId> {
        let mut held = self.lock();
        let left = held.uploads.get_mut(&(uid, round)).expect("begun before");
        *left -= 1;
        if *left > 0 {
            return Vec::new();
        }
        held.uploads.remove(&(uid, round));
        let is_empty = state.job(uid).and_then(|job| job.round_numbered(round)).is_none_or(|round| round.is_empty());
        let mut ended = Vec::new();
        held.leaves.retain(|key, leaf| {
            let keep = !is_empty || (key.uid, key.round) != (uid, round);
            if !keep {
                ended.extend(leaf.slabs());
            }
            keep
        });
        ended
    }

    /// Forgets slabs; the caller releases them.
    pub fn let_go(&self, slabs: &[SlabId]) {
        let mut held = self.lock();
        for slab in slabs {
            held.slabs.remove(slab);
        }
    }

    /// The accumulator with this key.
    pub fn leaf(&self, key: LeafKey) -> Option<Leaf> {
        self.lock().leaves.get(&key).cloned()
    }

    /// Takes out the accumulator with this key; the caller releases it.
    pub fn take_leaf(&self, key: LeafKey) -> Vec<SlabId> {
        self.lock().leaves.remove(&key).iter().flat_map(Leaf::slabs).collect()
    }

    /// The accumulator with this key, made by `create` when there is none.
    pub fn leaf_or<E>(&self, key: LeafKey, create: impl FnOnce() -> Result<Leaf, E>) -> Result<Leaf, E> {
        let mut held = self.lock();
        if let Some(leaf) = held.leaves.get(&key) {
            return Ok(leaf.clone());
        }
        let leaf = create()?;
        held.leaves.insert(key, leaf.clone());
        Ok(leaf)
    }

    /// Takes out everything that belongs to a round which is over, and what this node held when it was given up; the
    /// caller releases it.
    pub fn take_ended(&self, state: &State, node: NodeId) -> Vec<SlabId> {
        let now = state.incarnation(node);
        let active = |uid: JobUid, round: u64, incarnation: u64| {
            let job = state.job(uid).and_then(|job| job.active_round());
            incarnation == now && job.is_some_and(|active| active.number == round)
        };
        let mut held = self.lock();
        let mut ended = Vec::new();
        held.slabs.retain(|slab, of| {
            let keep = !of.is_confirmed || active(of.uid, of.round, of.incarnation);
            if !keep {
                ended.push(*slab);
            }
            keep
        });
        held.leaves.retain(|key, leaf| {
            let keep = active(key.uid, key.round, key.incarnation);
            if !keep {
                ended.extend(leaf.slabs());
            }
            keep
        });
        ended
    }
}
