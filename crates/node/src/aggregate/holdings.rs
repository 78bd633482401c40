//! What this node holds in shared memory for rounds that are not over, and the way to let go of it.
//!
//! Everything waits for the one lock here, so nothing is done under it but a few map operations. An accumulator may take
//! seconds to make: its place is reserved first, it is made without the lock, and then it is put in its place. Nor is the
//! lock taken within [`Ledger::read`](catchment_ledger::Ledger::read): who writes to the ledger waits for its readers, and
//! everybody else for the writer.

use super::leaf::{Leaf, LeafKey};
use catchment_types::{JobUid, SlabId};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// A round, and the node's incarnation that holds something for it. Once it is over it stays over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OfRound {
    /// The job.
    pub uid: JobUid,
    /// The round.
    pub round: u64,
    /// The node's incarnation when it took it.
    pub incarnation: u64,
}

/// Whose a slab is.
struct Slab {
    of: OfRound,
    /// Whether the log has spoken. Before that it is its submission's, whatever becomes of rounds.
    is_confirmed: bool,
}

/// An accumulator.
enum Place {
    /// Somebody makes it. The number tells this try from a later one.
    Reserved(u64, CancellationToken),
    There(Leaf),
}

/// Updates of a round that are on their way.
#[derive(Default)]
struct Uploads {
    now: u64,
    /// Since the first of those that are on their way now.
    ever: u64,
}

#[derive(Default)]
struct Held {
    slabs: HashMap<SlabId, Slab>,
    leaves: HashMap<LeafKey, Place>,
    /// How often a place was reserved.
    reservations: u64,
    /// Updates being received or parked, by round.
    uploads: HashMap<(JobUid, u64), Uploads>,
    /// Whether no more are to be taken.
    is_closed: bool,
}

/// Slabs and accumulators of active rounds.
#[derive(Default)]
pub struct Holdings {
    held: Mutex<Held>,
}

/// How it stands with an accumulator that somebody wants.
pub enum Wanted {
    /// It is there.
    There(Leaf),
    /// It is to be made by who asked.
    Reserved(Reservation),
    /// Somebody else makes it: ask again once this is cancelled.
    Awaited(CancellationToken),
}

/// An accumulator's place, reserved for who makes it. Whoever waits for it is told when this is gone, and, when it was not
/// made, makes it instead.
pub struct Reservation {
    holdings: Arc<Holdings>,
    key: LeafKey,
    number: u64,
    gone: CancellationToken,
}

impl Holdings {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a slab is to belong to a round.
    pub fn hold(&self, slab: SlabId, of: OfRound) {
        self.lock().slabs.insert(slab, Slab { of, is_confirmed: false });
    }

    /// Notes that it does belong to this round, unless it was let go of meanwhile.
    pub fn confirm(&self, slab: SlabId, round: u64) {
        if let Some(held) = self.lock().slabs.get_mut(&slab) {
            (held.of.round, held.is_confirmed) = (round, true);
        }
    }

    /// Whether updates are on their way, or wait for the log.
    pub fn is_busy(&self) -> bool {
        let held = self.lock();
        held.uploads.values().any(|uploads| uploads.now > 0) || held.slabs.values().any(|slab| !slab.is_confirmed)
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
        let mut held = self.lock();
        let uploads = held.uploads.entry((uid, round)).or_default();
        uploads.now += 1;
        uploads.ever += 1;
    }

    /// Notes that it is. Takes out the round's accumulators if nothing was accepted, which `is_empty` says, and nothing
    /// more is coming; the caller releases them.
    pub fn end_upload(&self, uid: JobUid, round: u64, is_empty: impl FnOnce() -> bool) -> Vec<SlabId> {
        let at = (uid, round);
        let ever = {
            let mut held = self.lock();
            let uploads = held.uploads.get_mut(&at).expect("begun before");
            uploads.now -= 1;
            if uploads.now > 0 {
                return Vec::new();
            }
            uploads.ever
        };
        // Asked without the lock, so an update may come and go meanwhile, and be accepted. Then its end asks again.
        let is_empty = is_empty();
        let mut held = self.lock();
        if held.uploads.get(&at).is_none_or(|uploads| uploads.ever != ever) {
            return Vec::new();
        }
        held.uploads.remove(&at);
        if is_empty { held.take_leaves(|key| (key.uid, key.round) == at) } else { Vec::new() }
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
        match self.lock().leaves.get(&key) {
            Some(Place::There(leaf)) => Some(leaf.clone()),
            _ => None,
        }
    }

    /// Takes out the accumulator with this key; the caller releases it.
    pub fn take_leaf(&self, key: LeafKey) -> Vec<SlabId> {
        self.lock().take_leaves(|at| *at == key)
    }

    /// The accumulator with this key, or who makes it.
    pub fn want(self: &Arc<Self>, key: LeafKey) -> Wanted {
        let mut held = self.lock();
        let held = &mut *held;
        match held.leaves.entry(key) {
            Entry::Occupied(place) => match place.get() {
                Place::There(leaf) => Wanted::There(leaf.clone()),
                Place::Reserved(_, gone) => Wanted::Awaited(gone.clone()),
            },
            Entry::Vacant(place) => {
                held.reservations += 1;
                let (number, gone) = (held.reservations, CancellationToken::new());
                place.insert(Place::Reserved(number, gone.clone()));
                Wanted::Reserved(Reservation { holdings: self.clone(), key, number, gone })
            }
        }
    }

    /// Puts an accumulator that was found in its place.
    pub fn put(&self, key: LeafKey, leaf: Leaf) {
        self.lock().leaves.insert(key, Place::There(leaf));
    }

    /// Takes out everything that belongs to a round of those that `over` picks out; the caller releases it.
    pub fn take_ended(&self, over: impl FnOnce(HashSet<OfRound>) -> HashSet<OfRound>) -> Vec<SlabId> {
        let rounds: HashSet<OfRound> = {
            let held = self.lock();
            let confirmed = held.slabs.values().filter(|slab| slab.is_confirmed).map(|slab| slab.of);
            confirmed.chain(held.leaves.keys().map(LeafKey::of_round)).collect()
        };
        if rounds.is_empty() {
            return Vec::new();
        }
        // Asked without the lock: what comes meanwhile is of other rounds, or of one that is over, too.
        let over = over(rounds);
        if over.is_empty() {
            return Vec::new();
        }
        let mut held = self.lock();
        let mut ended = held.take_leaves(|key| over.contains(&key.of_round()));
        held.slabs.retain(|slab, held| {
            let keep = !held.is_confirmed || !over.contains(&held.of);
            if !keep {
                ended.push(*slab);
            }
            keep
        });
        ended
    }
}

impl Held {
    /// Takes out accumulators. Who is about to make one finds its place gone.
    fn take_leaves(&mut self, ends: impl Fn(&LeafKey) -> bool) -> Vec<SlabId> {
        let taken = self.leaves.extract_if(|key, _| ends(key));
        let slabs = |place| match place {
            Place::There(leaf) => leaf.slabs().collect::<Vec<_>>(),
            Place::Reserved(..) => Vec::new(),
        };
        taken.flat_map(|(_, place)| slabs(place)).collect()
    }
}

impl Reservation {
    /// The accumulator is made: it takes its place. Returns whether that is still there; if not, its round is over, and
    /// the caller releases it.
    pub fn fill(self, leaf: &Leaf) -> bool {
        let mut held = self.holdings.lock();
        let is_ours = self.is_ours(&held);
        if is_ours {
            held.leaves.insert(self.key, Place::There(leaf.clone()));
        }
        is_ours
    }

    fn is_ours(&self, held: &Held) -> bool {
        matches!(held.leaves.get(&self.key), Some(Place::Reserved(number, _)) if *number == self.number)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut held = self.holdings.lock();
        if self.is_ours(&held) {
            held.leaves.remove(&self.key);
        }
        drop(held);
        self.gone.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: JobUid = JobUid::from_bytes([1; 16]);
    const KEY: LeafKey = LeafKey { uid: UID, round: 1, leaf: 0, incarnation: 0 };

    fn reserve(holdings: &Arc<Holdings>) -> Reservation {
        match holdings.want(KEY) {
            Wanted::Reserved(reservation) => reservation,
            _ => panic!("the place is free"),
        }
    }

    fn awaited(holdings: &Arc<Holdings>) -> CancellationToken {
        match holdings.want(KEY) {
            Wanted::Awaited(gone) => gone,
            _ => panic!("somebody makes it"),
        }
    }

    #[test]
    fn a_place_that_was_given_up_goes_to_the_next_who_asks() {
        let holdings = Arc::<Holdings>::default();
        let first = reserve(&holdings);
        let gone = awaited(&holdings);
        assert!(holdings.leaf(KEY).is_none() && !gone.is_cancelled());
        drop(first);
        assert!(gone.is_cancelled());
        let second = reserve(&holdings);
        // Its round ends while it is made, and somebody begins anew.
        assert!(holdings.take_ended(|rounds| rounds).is_empty());
        let third = reserve(&holdings);
        drop(second);
        assert!(!awaited(&holdings).is_cancelled(), "an older try takes nothing from a newer one");
        drop(third);
    }

    /// Between the last look at the ledger and the lock an update may come, be accepted and go.
    #[test]
    fn accumulators_of_a_round_that_got_an_update_meanwhile_stay() {
        let holdings = Arc::<Holdings>::default();
        let keep = reserve(&holdings);
        holdings.begin_upload(UID, 1);
        let nothing = holdings.end_upload(UID, 1, || {
            holdings.begin_upload(UID, 1);
            assert!(holdings.is_busy());
            assert!(holdings.end_upload(UID, 1, || false).is_empty());
            true
        });
        assert!(nothing.is_empty() && !holdings.is_busy());
        assert!(keep.is_ours(&holdings.lock()), "the round is not empty");
        holdings.begin_upload(UID, 1);
        holdings.end_upload(UID, 1, || true);
        assert!(!keep.is_ours(&holdings.lock()), "now it is");
        assert!(holdings.lock().uploads.is_empty());
    }

    /// The ledger's readers and writers wait for each other: nobody may ask it with this lock in hand.
    #[test]
    fn nothing_is_asked_under_the_lock() {
        let holdings = Arc::<Holdings>::default();
        let _reservation = reserve(&holdings);
        let free = || holdings.held.try_lock().is_ok();
        holdings.begin_upload(UID, 1);
        holdings.end_upload(UID, 1, || {
            assert!(free());
            false
        });
        let all = holdings.take_ended(|rounds| {
            assert!(free());
            assert_eq!(rounds, HashSet::from([KEY.of_round()]));
            HashSet::new()
        });
        assert!(all.is_empty());
    }
}
