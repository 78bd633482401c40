//! The store's books: which slabs are in use, by whom, which files wait to be reused, and how many bytes each
//! state holds.
//!
//! Everything here happens under the store's one lock and touches no file, so that the lock is held for a few map
//! operations however large the slabs are.

use crate::extent::{Extent, recyclable_bytes_max};
use crate::header::Kind;
use crate::owner::Owner;
use catchment_types::SlabId;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What a frozen slab says of itself.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) id: SlabId,
    pub(crate) file_bytes: u64,
    pub(crate) extent: Extent,
    pub(crate) meta: Box<[u8]>,
}

/// A file of the store and the use it is in (or, when free, was last in).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) id: SlabId,
    pub(crate) file_bytes: u64,
    /// What the file is for, in all its uses: other processes may have had an accumulator open for writing, so it never
    /// becomes an update.
    pub(crate) kind: Kind,
    /// Who uses it, or, when free, used it last. `None`: nobody knows, because an earlier process did.
    pub(crate) owner: Option<Owner>,
}

/// Bytes of the store by state, headers and rounding included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Granted, not yet frozen.
    pub granted_bytes: u64,
    /// Frozen, and either not released or still held by a reader.
    pub frozen_bytes: u64,
    /// Accumulators.
    pub accumulator_bytes: u64,
    /// Free files kept for reuse.
    pub free_bytes: u64,
    /// The most that all of these may be together.
    pub budget_bytes: u64,
}

impl Usage {
    /// Bytes that belong to somebody: everything but the free files. Zero once every slab is released and dropped.
    pub fn in_use_bytes(&self) -> u64 {
        self.granted_bytes + self.frozen_bytes + self.accumulator_bytes
    }

    fn total_bytes(&self) -> u64 {
        self.in_use_bytes() + self.free_bytes
    }
}

/// What the next step towards a grant is.
#[derive(Debug)]
pub(crate) enum Step {
    /// A free file serves, in its new use; it is entered as granted.
    Recycled {
        /// The file.
        place: Place,
        /// Whether it may hold what another owner wrote.
        is_foreign: bool,
    },
    /// There is room for a new file; its bytes are counted as granted.
    Reserved,
    /// There would be room if free files of `shortfall_bytes` were unlinked.
    Crowded {
        /// Bytes that have to go.
        shortfall_bytes: u64,
    },
    /// Unlinking every free file would not make room.
    Full {
        /// What could be granted.
        free_bytes: u64,
    },
}

/// How a use of a slab has come along.
#[derive(Debug)]
enum Life {
    Granted,
    Frozen(Arc<Facts>),
    Accumulator,
}

#[derive(Debug)]
struct Use {
    place: Place,
    life: Life,
    /// The store itself still holds it: frozen or an accumulator, and not released.
    kept: bool,
    /// Live holds: one for each handle that is not a clone, and one for the store while `kept`.
    holds: u64,
}

/// The books of one store.
#[derive(Debug)]
pub(crate) struct Table {
    uses: HashMap<u32, Use>,
    /// Free files by kind, who used them last, and size. The last one in is the first one out: its pages are the warmest.
    free: BTreeMap<(Kind, Option<Owner>, u64), Vec<Place>>,
    /// The same files by kind and size: whose there are.
    owners: BTreeMap<(Kind, u64), BTreeSet<Option<Owner>>>,
    usage: Usage,
}

impl Table {
    pub(crate) fn new(budget_bytes: u64) -> Self {
        let usage = Usage { budget_bytes, ..Usage::default() };
        Self { uses: HashMap::new(), free: BTreeMap::new(), owners: BTreeMap::new(), usage }
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// Decides how `owner`'s wish for a file of `wanted_bytes` goes on that leaves `spare_bytes` for others.
    pub(crate) fn step(&mut self, owner: Owner, kind: Kind, wanted_bytes: u64, spare_bytes: u64) -> Step {
        let free_bytes = self.usage.budget_bytes.saturating_sub(self.usage.in_use_bytes());
        if wanted_bytes.saturating_add(spare_bytes) > free_bytes {
            return Step::Full { free_bytes: free_bytes.saturating_sub(spare_bytes) };
        }
        if let Some((place, is_foreign)) = self.take_recycled(owner, kind, wanted_bytes) {
            return Step::Recycled { place, is_foreign };
        }
        let total_after = self.usage.total_bytes().saturating_add(wanted_bytes);
        if total_after <= self.usage.budget_bytes {
            self.usage.granted_bytes += wanted_bytes;
            return Step::Reserved;
        }
        Step::Crowded { shortfall_bytes: total_after - self.usage.budget_bytes }
    }

    /// A free file that `owner` used last, which costs nothing, or else another one, which costs less than a fresh one.
    fn take_recycled(&mut self, owner: Owner, kind: Kind, wanted_bytes: u64) -> Option<(Place, bool)> {
        let largest = recyclable_bytes_max(wanted_bytes);
        let own = (kind, Some(owner), wanted_bytes)..=(kind, Some(owner), largest);
        let own = self.free.range(own).next().map(|(class, _)| *class);
        let class = own.or_else(|| {
            let (&(_, file_bytes), owners) = self.owners.range((kind, wanted_bytes)..=(kind, largest)).next()?;
            // First those that nobody can have for nothing any more: `None` comes before every owner.
            Some((kind, *owners.first().expect("an empty set is removed"), file_bytes))
        })?;
        let last = self.pop_free(class);
        let generation = last.id.generation().checked_add(1).expect("a place in its last generation is not freed");
        let place = Place { id: SlabId::new(last.id.index(), generation), owner: Some(owner), ..last };
        self.usage.free_bytes -= place.file_bytes;
        self.usage.granted_bytes += place.file_bytes;
        self.enter(place, Life::Granted, false);
        Some((place, own.is_none()))
    }

    /// Takes the free file that best covers `shortfall_bytes`, or the largest. It stays counted as free until
    /// [`Table::forget_free`], so that nobody counts on its memory before it is back.
    pub(crate) fn take_free(&mut self, shortfall_bytes: u64) -> Option<Place> {
        let covers = |kind| self.owners.range((kind, shortfall_bytes)..=(kind, u64::MAX)).next();
        let closest = Kind::ALL.into_iter().filter_map(covers).min_by_key(|(class, _)| class.1);
        let largest = || self.owners.iter().max_by_key(|(class, _)| class.1);
        let (&(kind, file_bytes), owners) = closest.or_else(largest)?;
        let owner = *owners.first().expect("an empty set is removed");
        Some(self.pop_free((kind, owner, file_bytes)))
    }

    fn pop_free(&mut self, class: (Kind, Option<Owner>, u64)) -> Place {
        let places = self.free.get_mut(&class).expect("the class was just found");
        let place = places.pop().expect("an empty class is removed");
        if places.is_empty() {
            self.free.remove(&class);
            let (kind, owner, file_bytes) = class;
            let owners = self.owners.get_mut(&(kind, file_bytes)).expect("every class has its owners");
            owners.remove(&owner);
            if owners.is_empty() {
                self.owners.remove(&(kind, file_bytes));
            }
        }
        place
    }

    /// The file of a place from [`Table::take_free`] is gone.
    pub(crate) fn forget_free(&mut self, place: Place) {
        self.usage.free_bytes -= place.file_bytes;
    }

    /// The file for a reserved wish exists: its use begins.
    pub(crate) fn enter_granted(&mut self, place: Place) {
        self.enter(place, Life::Granted, false);
    }

    /// The file for a reserved wish could not be made.
    pub(crate) fn unreserve(&mut self, wanted_bytes: u64) {
        self.usage.granted_bytes -= wanted_bytes;
    }

    fn enter(&mut self, place: Place, life: Life, kept: bool) {
        let entry = Use { place, life, kept, holds: 1 + u64::from(kept) };
        assert!(self.uses.insert(place.id.index(), entry).is_none(), "slab {} is in use already", place.id);
    }

    /// Enters a frozen slab found at start, held by the store and by one handle.
    pub(crate) fn enter_frozen(&mut self, facts: &Arc<Facts>) {
        self.usage.frozen_bytes += facts.file_bytes;
        let place = Place { id: facts.id, file_bytes: facts.file_bytes, kind: Kind::Update, owner: None };
        self.enter(place, Life::Frozen(Arc::clone(facts)), true);
    }

    /// Enters an accumulator found at start, held by the store and by one handle.
    pub(crate) fn enter_accumulator(&mut self, place: Place) {
        self.usage.accumulator_bytes += place.file_bytes;
        self.enter(place, Life::Accumulator, true);
    }

    /// Enters a free file found at start.
    pub(crate) fn enter_free(&mut self, place: Place) {
        let Place { kind, owner, file_bytes, .. } = place;
        self.usage.free_bytes += file_bytes;
        self.owners.entry((kind, file_bytes)).or_default().insert(owner);
        self.free.entry((kind, owner, file_bytes)).or_default().push(place);
    }

    /// A granted slab is frozen; the store holds it from now on, beside its handle.
    pub(crate) fn freeze(&mut self, facts: &Arc<Facts>) {
        self.keep(facts.id, Life::Frozen(Arc::clone(facts)));
        self.usage.frozen_bytes += facts.file_bytes;
    }

    /// A granted slab has become an accumulator; the store holds it from now on, beside its handle.
    pub(crate) fn make_accumulator(&mut self, id: SlabId) {
        self.usage.accumulator_bytes += self.keep(id, Life::Accumulator);
    }

    fn keep(&mut self, id: SlabId, life: Life) -> u64 {
        let entry = self.uses.get_mut(&id.index()).expect("its handle holds it");
        assert!(entry.place.id == id && matches!(entry.life, Life::Granted), "slab {id} was granted");
        entry.life = life;
        entry.kept = true;
        entry.holds += 1;
        self.usage.granted_bytes -= entry.place.file_bytes;
        entry.place.file_bytes
    }

    /// Adds a hold on a granted slab, beside its writer's.
    pub(crate) fn hold_granted(&mut self, id: SlabId) {
        let entry = self.uses.get_mut(&id.index()).expect("its handle holds it");
        assert!(entry.place.id == id && matches!(entry.life, Life::Granted), "slab {id} was granted");
        entry.holds += 1;
    }

    /// Adds a hold on a frozen, unreleased slab.
    pub(crate) fn hold_frozen(&mut self, id: SlabId) -> Option<Arc<Facts>> {
        let entry = self.uses.get_mut(&id.index()).filter(|entry| entry.kept && entry.place.id == id)?;
        let Life::Frozen(facts) = &entry.life else { return None };
        entry.holds += 1;
        Some(Arc::clone(facts))
    }

    /// Ends the store's own keeping; its hold stays until [`Table::let_go`]. `None` if it kept no such slab.
    pub(crate) fn end_keep(&mut self, id: SlabId) -> Option<Place> {
        let entry = self.uses.get_mut(&id.index()).filter(|entry| entry.kept && entry.place.id == id)?;
        entry.kept = false;
        Some(entry.place)
    }

    /// Drops one hold. With the last one the file becomes free, or, after its last generation, is returned to be
    /// unlinked; it stays counted as free until [`Table::forget_free`].
    pub(crate) fn let_go(&mut self, id: SlabId) -> Option<Place> {
        let entry = self.uses.get_mut(&id.index()).expect("a hold keeps its entry");
        assert!(entry.place.id == id && entry.holds > u64::from(entry.kept), "slab {id} was held");
        entry.holds -= 1;
        if entry.holds > 0 {
            return None;
        }
        let entry = self.uses.remove(&id.index()).expect("it was just there");
        let Place { file_bytes, .. } = entry.place;
        match entry.life {
            Life::Granted => self.usage.granted_bytes -= file_bytes,
            Life::Frozen(_) => self.usage.frozen_bytes -= file_bytes,
            Life::Accumulator => self.usage.accumulator_bytes -= file_bytes,
        }
        if id.generation() == u32::MAX {
            self.usage.free_bytes += file_bytes;
            return Some(entry.place);
        }
        self.enter_free(entry.place);
        None
    }

    /// A granted slab's file has gone missing or is damaged: nothing of it is kept or counted.
    pub(crate) fn strike_granted(&mut self, place: Place) {
        let entry = self.uses.remove(&place.id.index()).expect("its grant holds it");
        assert!(matches!(entry.life, Life::Granted) && entry.holds == 1, "nobody has seen it yet");
        self.usage.granted_bytes -= place.file_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;
    const OWNER: Owner = Owner::new([1; 32]);
    const OTHER: Owner = Owner::new([2; 32]);

    fn free(table: &mut Table, index: u32, pages: u64) {
        table.enter_free(Place {
            id: SlabId::new(index, 1),
            file_bytes: pages * PAGE,
            kind: Kind::Update,
            owner: Some(OWNER),
        });
    }

    #[test]
    fn the_closest_class_is_recycled_and_a_wasteful_one_is_not() {
        let mut table = Table::new(10_000 * PAGE);
        free(&mut table, 0, 130);
        free(&mut table, 1, 110);
        free(&mut table, 2, 99);
        let Step::Recycled { place, .. } = table.step(OWNER, Kind::Update, 100 * PAGE, 0) else {
            panic!("110 pages serve 100")
        };
        assert_eq!((place.id, place.file_bytes), (SlabId::new(1, 2), 110 * PAGE));
        assert!(
            matches!(table.step(OWNER, Kind::Update, 100 * PAGE, 0), Step::Reserved),
            "130 pages are too many, 99 too few"
        );
    }

    #[test]
    fn an_accumulators_file_never_becomes_an_update() {
        let mut table = Table::new(1000 * PAGE);
        table.enter_free(Place {
            id: SlabId::new(0, 1),
            file_bytes: 10 * PAGE,
            kind: Kind::Accumulator,
            owner: Some(OWNER),
        });
        assert!(matches!(table.step(OWNER, Kind::Update, 10 * PAGE, 0), Step::Reserved));
        assert!(matches!(table.step(OWNER, Kind::Accumulator, 10 * PAGE, 0), Step::Recycled { .. }));
        table.enter_free(Place {
            id: SlabId::new(2, 1),
            file_bytes: 30 * PAGE,
            kind: Kind::Accumulator,
            owner: Some(OWNER),
        });
        free(&mut table, 1, 20);
        assert_eq!(table.take_free(15 * PAGE).expect("files of either kind make room").id.index(), 1);
        assert_eq!(table.take_free(40 * PAGE).expect("the largest").id.index(), 2);
    }

    /// Whoever used a file last gets it back as it is, however many others fit better; all others get it as foreign.
    #[test]
    fn a_file_of_ones_own_comes_first_and_any_other_is_foreign() {
        let mut table = Table::new(1000 * PAGE);
        let mut enter = |index, pages, owner| {
            let file_bytes = pages * PAGE;
            table.enter_free(Place { id: SlabId::new(index, 1), file_bytes, kind: Kind::Update, owner });
        };
        enter(0, 100, Some(OTHER));
        enter(1, 100, None);
        enter(2, 110, Some(OWNER));
        enter(3, 100, Some(OTHER));
        let mut taken = |owner| match table.step(owner, Kind::Update, 100 * PAGE, 0) {
            Step::Recycled { place, is_foreign } => (place.id.index(), is_foreign, place.owner == Some(owner)),
            other => panic!("{other:?}"),
        };
        assert_eq!(taken(OWNER), (2, false, true));
        assert_eq!(taken(OWNER), (1, true, true), "nobody's first");
        assert_eq!(taken(OTHER), (3, false, true));
        assert_eq!(taken(OWNER), (0, true, true));
        assert!(matches!(table.step(OWNER, Kind::Update, 100 * PAGE, 0), Step::Reserved));
        assert!(table.free.is_empty() && table.owners.is_empty());
        // From now on it is the newer owner's.
        assert_eq!(table.let_go(SlabId::new(0, 2)), None);
        let step = table.step(OTHER, Kind::Update, 100 * PAGE, 0);
        assert!(matches!(step, Step::Recycled { is_foreign: true, .. }), "{step:?}");
    }

    #[test]
    fn room_is_made_by_the_class_that_covers_the_shortfall() {
        let mut table = Table::new(1000 * PAGE);
        free(&mut table, 0, 700);
        free(&mut table, 1, 200);
        free(&mut table, 2, 50);
        // 50 pages are left, so 140 are 90 short.
        let Step::Crowded { shortfall_bytes } = table.step(OWNER, Kind::Update, 140 * PAGE, 0) else {
            panic!("eviction makes room")
        };
        assert_eq!(shortfall_bytes, 90 * PAGE);
        let victim = table.take_free(shortfall_bytes).expect("free files are there");
        assert_eq!(victim.id.index(), 1);
        assert_eq!(table.usage().free_bytes, 950 * PAGE, "counted until its file is gone");
        table.forget_free(victim);
        assert!(matches!(table.step(OWNER, Kind::Update, 140 * PAGE, 0), Step::Reserved));
    }

    #[test]
    fn a_wish_past_the_budget_evicts_nothing() {
        let mut table = Table::new(1000 * PAGE);
        free(&mut table, 0, 500);
        assert!(
            matches!(table.step(OWNER, Kind::Update, 1001 * PAGE, 0), Step::Full { free_bytes } if free_bytes == 1000 * PAGE)
        );
        assert!(matches!(table.step(OWNER, Kind::Update, u64::MAX / 2, 0), Step::Full { .. }));
        assert!(
            matches!(table.step(OWNER, Kind::Update, 600 * PAGE, 500 * PAGE), Step::Full { free_bytes } if free_bytes == 500 * PAGE)
        );
        assert_eq!(table.usage().free_bytes, 500 * PAGE);
    }

    #[test]
    fn a_place_in_its_last_generation_is_handed_out_for_unlinking() {
        let mut table = Table::new(1000 * PAGE);
        table.enter_free(Place {
            id: SlabId::new(3, u32::MAX - 1),
            file_bytes: PAGE,
            kind: Kind::Update,
            owner: Some(OWNER),
        });
        let Step::Recycled { place, .. } = table.step(OWNER, Kind::Update, PAGE, 0) else {
            panic!("one generation is left")
        };
        assert_eq!(place.id.generation(), u32::MAX);
        assert_eq!(table.let_go(place.id), Some(place));
        table.forget_free(place);
        assert_eq!(table.usage().total_bytes(), 0);
    }
}
