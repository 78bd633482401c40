//! An accumulator that survives the death of its process.
//!
//! It has two blocks. A batch is first written down as a plan (sequence and slabs) in the control words; then each
//! range is folded from its old block into its spare one and flipped by storing one word (sequence, block). Whoever
//! opens the accumulator after a crash knows exactly which ranges lack the batch and does only those again; so every
//! update is folded once, whenever the process died.
//!
//! ```text
//! word 0        sequence of the newest plan, stored last
//! words 2–19    an even plan: number of slabs, sequence it builds on, slabs
//! words 20–37   an odd plan: the same (so writing a plan never touches the one before it)
//! words 38, 39  of an even and an odd plan: 1 + the updates that are in the sum once it is complete; 0: not counted
//! word 64 + i   what range i holds: sequence << 1 | block; sequence 0 holds nothing
//! ```
//!
//! A plan that is taken back is followed by an empty one, so that nobody folds it again.
//!
//! The words and the data lie in a file each, because runners get the data's for writing: who could write the words could
//! say what is in the sum. Nothing that they say ends this process, all the same: an earlier release kept both in one file,
//! and memory that outlives processes may be damaged.

use super::holdings::OfRound;
use super::ranges::Range;
use crate::functions::Maker;
use catchment_runtime::Window;
use catchment_slab::{Accumulator, HUGE_BYTES, Owner, PAGE_BYTES, SlabError, SlabStore};
use catchment_types::{Digest, JobUid, SlabId};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Updates of one batch at most.
pub const BATCH_MAX: usize = 16;
const PLAN_WORDS: usize = BATCH_MAX + 2;
const COUNTS: usize = 2 + 2 * PLAN_WORDS;
const FIRST_RANGE: usize = 64;
/// Bytes of one coordinate of a partial: an f64.
const PARTIAL_BYTES: u64 = 8;
/// Control words of an accumulator, about: for a layout of thousands of ranges.
const CONTROL_WORDS_MAX: usize = 2048;
/// More plans than any round has. (The words have a bit less for a sequence.)
const SEQUENCE_MAX: u64 = 1 << 62;
/// What is noted of the file with the data. Its words' file names it.
const DATA_META: &[u8] = b"leaf data";

/// Which leaf of which round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeafKey {
    /// The job.
    pub uid: JobUid,
    /// The round.
    pub round: u64,
    /// The leaf.
    pub leaf: u32,
    /// Of which of the node's incarnations.
    pub incarnation: u64,
}

impl LeafKey {
    /// The round that it is for.
    pub fn of_round(&self) -> OfRound {
        OfRound { uid: self.uid, round: self.round, incarnation: self.incarnation }
    }
}

/// An accumulator to be made.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Which.
    pub key: LeafKey,
    /// Whose.
    pub owner: Owner,
    /// Its coordinates.
    pub elements: u64,
    /// How many ranges they are cut into.
    pub ranges: usize,
    /// Who folds into it.
    pub maker: Maker,
}

/// What an earlier release noted of a file with words and data.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct WholeMeta {
    key: LeafKey,
    elements: u64,
    ranges: u64,
}

/// What is noted of a file with words: the same, where the data is, and who folds into it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct WordsMeta {
    key: LeafKey,
    elements: u64,
    ranges: u64,
    data: u64,
    maker: Maker,
}

catchment_codec::first_version!(WholeMeta);
// A version of its own: an older release is to find nothing that it would misread.
catchment_codec::first_version!(WordsMeta = 2);

/// An accumulator whose words contradict each other: nobody knows what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the control words of an accumulator contradict each other")]
pub struct BadWords;

/// Why a job cannot go on with an accumulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Nobody knows what is in it.
    #[error(transparent)]
    Words(#[from] BadWords),
    /// Another function's sum is in it, which this one would misread. (Of jobs that are not pinned.)
    #[error("an accumulator was made by {made}, and is wanted by {wanted}")]
    Maker {
        /// Who made it.
        made: Maker,
        /// Who would go on with it.
        wanted: Maker,
    },
}

/// The batch that is being folded, or was last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    sequence: u64,
    base: u64,
    /// Its updates.
    pub slabs: Vec<SlabId>,
}

/// One accumulator.
#[derive(Clone)]
pub struct Leaf {
    words: Accumulator,
    /// The same in one file, where an earlier release made it.
    data: Accumulator,
    elements: u64,
    ranges: usize,
    /// Who folds into it. An earlier release did not note it.
    maker: Option<Maker>,
}

impl Leaf {
    /// Bytes of shared memory of an accumulator for this many coordinates, about.
    pub fn bytes(elements: u64) -> u64 {
        SlabStore::file_bytes(CONTROL_WORDS_MAX, 1) + SlabStore::file_bytes(1, 2 * block_bytes(elements))
    }

    /// A new, empty accumulator, in the form that every member of a cluster at this feature level reads: while some are of
    /// the first release, their node may be one of it again, and finds nothing in the newer form.
    pub fn create(store: &SlabStore, shape: Shape, level: u32) -> Result<Self, SlabError> {
        let Shape { key, owner, elements, ranges, maker } = shape;
        let (words, bytes) = (FIRST_RANGE + ranges, 2 * block_bytes(elements));
        if level < 2 {
            let noted = WholeMeta { key, elements, ranges: ranges as u64 };
            let noted = catchment_codec::encode(&noted, catchment_slab::META_BYTES_MAX).expect("a few numbers fit");
            let whole = store.grant_accumulator(owner, words, bytes, &noted)?;
            return Ok(Self { words: whole.clone(), data: whole, elements, ranges, maker: Some(maker) });
        }
        // The data first: words that name it exist only if it does.
        let data = store.grant_accumulator(owner, 1, bytes, DATA_META)?;
        let noted = WordsMeta { key, elements, ranges: ranges as u64, data: data.id().get(), maker };
        let noted = catchment_codec::encode(&noted, catchment_slab::META_BYTES_MAX).expect("a few numbers fit");
        match store.grant_accumulator(owner, words, 1, &noted) {
            Ok(words) => Ok(Self { words, data, elements, ranges, maker: Some(maker) }),
            Err(error) => {
                let unused = data.id();
                drop(data);
                store.release(unused);
                Err(error)
            }
        }
    }

    /// An accumulator found after a restart among `all`; `None` when these are no words of ours, or lack their data.
    pub fn found(words: &Accumulator, all: &HashMap<SlabId, Accumulator>) -> Option<(LeafKey, Self)> {
        let (meta, limit) = (words.meta(), catchment_slab::META_BYTES_MAX);
        let (key, elements, ranges, data, maker) = match catchment_codec::decode::<WordsMeta>(meta, limit) {
            Ok(meta) => {
                (meta.key, meta.elements, meta.ranges, all.get(&SlabId::from_u64(meta.data))?, Some(meta.maker))
            }
            Err(_) => {
                let meta: WholeMeta = catchment_codec::decode(meta, limit).ok()?;
                (meta.key, meta.elements, meta.ranges, words, None)
            }
        };
        let ranges = usize::try_from(ranges).ok()?;
        // Before anything is computed from it, which could be too large.
        let has_room =
            elements <= data.data_len() / (2 * PARTIAL_BYTES) && data.data_len() >= 2 * block_bytes(elements);
        let fits = has_room && words.control().len().checked_sub(FIRST_RANGE) == Some(ranges);
        fits.then(|| (key, Self { words: words.clone(), data: data.clone(), elements, ranges, maker }))
    }

    /// Whether it is one for a layout of so many coordinates, cut into so many ranges.
    pub fn is_for(&self, elements: u64, ranges: usize) -> bool {
        (self.elements, self.ranges) == (elements, ranges)
    }

    /// Whether this one may go on with it.
    ///
    /// # Errors
    /// Another has made it.
    pub fn check_maker(&self, wanted: Maker) -> Result<(), Unusable> {
        match self.maker {
            Some(made) if made != wanted => Err(Unusable::Maker { made, wanted }),
            _ => Ok(()),
        }
    }

    /// Whether this function may have made it.
    pub fn is_of(&self, function: Digest) -> bool {
        self.maker.is_none_or(|made| made.function == function)
    }

    /// Its names in the store. The words' first: data that no words name is found by nobody.
    pub fn slabs(&self) -> impl Iterator<Item = SlabId> + use<> {
        let (words, data) = (self.words.id(), self.data.id());
        std::iter::once(words).chain(Some(data).filter(|data| *data != words))
    }

    /// The newest plan; `None` before the first. Empty after one was taken back.
    pub fn plan(&self) -> Option<Plan> {
        let sequence = self.words.control()[0].load(Acquire);
        let words = self.slot(sequence);
        let count = words[0].load(Relaxed).min(BATCH_MAX as u64) as usize;
        let slabs = words[2..2 + count].iter().map(|word| SlabId::from_u64(word.load(Relaxed))).collect();
        (sequence > 0).then(|| Plan { sequence, base: words[1].load(Relaxed), slabs })
    }

    fn slot(&self, sequence: u64) -> &[AtomicU64] {
        let first = 2 + (sequence % 2) as usize * PLAN_WORDS;
        &self.words.control()[first..first + PLAN_WORDS]
    }

    /// Writes down the next batch. The one before it must be complete or taken back.
    ///
    /// # Errors
    /// Its ranges do not say that they hold the same batches, of those that there were.
    pub fn begin(&self, slabs: &[SlabId]) -> Result<Plan, BadWords> {
        assert!((1..=BATCH_MAX).contains(&slabs.len()), "a batch has 1 to {BATCH_MAX} updates");
        self.write(slabs, self.updates().map(|updates| updates.saturating_add(slabs.len() as u64)))
    }

    /// How many updates are in the sum once the newest plan is complete. `None`: an earlier release did not count them.
    pub fn updates(&self) -> Option<u64> {
        match self.words.control()[0].load(Acquire) {
            0 => Some(0),
            sequence => self.words.control()[COUNTS + (sequence % 2) as usize].load(Relaxed).checked_sub(1),
        }
    }

    fn write(&self, slabs: &[SlabId], updates: Option<u64>) -> Result<Plan, BadWords> {
        let base = if self.ranges == 0 { 0 } else { self.held(0).0 };
        let latest = &self.words.control()[0];
        let sequence = latest.load(Relaxed);
        let agree = base <= sequence && (0..self.ranges).all(|range| self.held(range).0 == base);
        if !agree || sequence >= SEQUENCE_MAX {
            return Err(BadWords);
        }
        let sequence = sequence + 1;
        let count = &self.words.control()[COUNTS + (sequence % 2) as usize];
        count.store(updates.map_or(0, |updates| updates.saturating_add(1)), Relaxed);
        let words = self.slot(sequence);
        words[0].store(slabs.len() as u64, Relaxed);
        words[1].store(base, Relaxed);
        for (word, slab) in words[2..].iter().zip(slabs) {
            word.store(slab.get(), Relaxed);
        }
        latest.store(sequence, Release);
        Ok(Plan { sequence, base, slabs: slabs.to_vec() })
    }

    /// The ranges that lack the plan's batch.
    pub fn lagging(&self, plan: &Plan) -> Vec<usize> {
        let lags = |range: &usize| !plan.slabs.is_empty() && self.held(*range).0 != plan.sequence;
        (0..self.ranges).filter(lags).collect()
    }

    /// Marks a range as folded: its spare block becomes its block. A range that says it is stays as it is.
    pub fn flip(&self, plan: &Plan, range: usize) {
        let (held, block) = self.held(range);
        if held == plan.sequence {
            return;
        }
        self.words.control()[FIRST_RANGE + range].store(plan.sequence << 1 | (block ^ 1), Release);
    }

    /// Takes a batch back: its spare blocks still hold what was there before.
    ///
    /// # Errors
    /// As [`Leaf::begin`].
    pub fn undo(&self, plan: &Plan) -> Result<(), BadWords> {
        for range in 0..self.ranges {
            let (held, block) = self.held(range);
            if held == plan.sequence {
                self.words.control()[FIRST_RANGE + range].store(plan.base << 1 | (block ^ 1), Release);
            }
        }
        let before = self.updates().map(|updates| updates.saturating_sub(plan.slabs.len() as u64));
        self.write(&[], before).map(drop)
    }

    fn held(&self, range: usize) -> (u64, u64) {
        assert!(range < self.ranges);
        let word = self.words.control()[FIRST_RANGE + range].load(Acquire);
        (word >> 1, word & 1)
    }

    /// Where a range's partial lies; `None` while it holds nothing.
    pub fn partial(&self, index: usize, range: &Range) -> Option<Window<BorrowedFd<'_>>> {
        let (held, block) = self.held(index);
        (held > 0).then(|| self.window(block, range))
    }

    /// Where the whole partial lies in its file, and how many bytes it has; `None` while a batch is not done, or nothing is
    /// in it. Batches that are done have flipped every range as often, so they are all in one block.
    pub fn whole(&self) -> Option<(u64, u64)> {
        let plan = self.plan()?;
        let (sequence, block) = if self.ranges == 0 { (0, 0) } else { self.held(0) };
        let is_whole =
            self.lagging(&plan).is_empty() && (0..self.ranges).all(|range| self.held(range) == (sequence, block));
        let offset = self.data.data_offset() + block * block_bytes(self.elements);
        is_whole.then_some((offset, self.elements * PARTIAL_BYTES))
    }

    /// A descriptor of its file.
    pub fn file(&self) -> std::io::Result<std::fs::File> {
        super::offered::file_of(self.data.fd())
    }

    /// Where a range's next partial goes.
    pub fn spare(&self, index: usize, range: &Range) -> Window<BorrowedFd<'_>> {
        self.window(self.held(index).1 ^ 1, range)
    }

    fn window(&self, block: u64, range: &Range) -> Window<BorrowedFd<'_>> {
        assert!(range.base + range.elements <= self.elements);
        Window {
            file: self.data.fd(),
            offset_bytes: self.data.data_offset() + block * block_bytes(self.elements) + range.base * PARTIAL_BYTES,
            len_bytes: range.elements * PARTIAL_BYTES,
        }
    }
}

/// Bytes of one block: whole pages, huge ones if it is large.
pub fn block_bytes(elements: u64) -> u64 {
    let bytes = elements * PARTIAL_BYTES;
    bytes.next_multiple_of(if bytes < 4 * HUGE_BYTES { PAGE_BYTES } else { HUGE_BYTES })
}

#[cfg(test)]
mod tests {
    use super::*;
    use catchment_slab::StoreConfig;
    use catchment_types::Rule;
    use proptest::prelude::*;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
    use tempfile::TempDir;

    const RANGES: usize = 3;
    const ELEMENTS: u64 = 3000;
    const KEY: LeafKey = LeafKey { uid: JobUid::from_bytes([7; 16]), round: 2, leaf: 1, incarnation: 5 };
    const MAKER: Maker = Maker { function: catchment_types::Digest::from_bytes([8; 32]), abi: 4 };
    const SHAPE: Shape =
        Shape { key: KEY, owner: Owner::new([3; 32]), elements: ELEMENTS, ranges: RANGES, maker: MAKER };

    /// A directory as a store wants it: for nobody else.
    fn shared_memory() -> TempDir {
        tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o700)).tempdir_in("/dev/shm").unwrap()
    }

    fn store() -> (TempDir, SlabStore) {
        let dir = shared_memory();
        let store = open(dir.path());
        (dir, store)
    }

    fn open(dir: &std::path::Path) -> SlabStore {
        SlabStore::open(StoreConfig { dir: dir.to_path_buf(), budget_bytes: 64 << 20 }).unwrap().0
    }

    /// What a life that begins now finds.
    fn found(dir: &std::path::Path) -> Vec<(LeafKey, Leaf)> {
        let (_store, recovered) =
            SlabStore::open(StoreConfig { dir: dir.to_path_buf(), budget_bytes: 64 << 20 }).unwrap();
        let all: HashMap<SlabId, Accumulator> = recovered.accumulators.into_iter().map(|a| (a.id(), a)).collect();
        all.values().filter_map(|words| Leaf::found(words, &all)).collect()
    }

    fn range(index: usize) -> Range {
        Range { segment: 0, rule: Rule::Mean, first: 0, base: index as u64 * 1000, elements: 1000 }
    }

    fn slabs(count: u32) -> Vec<SlabId> {
        (0..count).map(|i| SlabId::new(i, 1)).collect()
    }

    #[test]
    fn the_updates_in_it_are_counted() {
        for level in [1, 2] {
            let (_dir, store) = store();
            let leaf = Leaf::create(&store, SHAPE, level).unwrap();
            assert_eq!(leaf.updates(), Some(0));
            let mut expected = 0;
            for (count, is_undone) in [(2, false), (3, true), (1, false), (4, true), (4, false)] {
                let plan = leaf.begin(&slabs(count)).unwrap();
                assert_eq!(leaf.updates(), Some(expected + count as u64), "as it will be");
                if is_undone {
                    leaf.flip(&plan, 0);
                    leaf.undo(&plan).unwrap();
                } else {
                    (0..RANGES).for_each(|index| leaf.flip(&plan, index));
                    expected += count as u64;
                }
                assert_eq!(leaf.updates(), Some(expected));
            }
            // One that an earlier release began.
            for word in [COUNTS, COUNTS + 1] {
                leaf.words.control()[word].store(0, Relaxed);
            }
            assert_eq!(leaf.updates(), None);
            leaf.begin(&slabs(1)).unwrap();
            assert_eq!(leaf.updates(), None);
        }
    }

    #[test]
    fn what_runners_get_for_writing_has_no_words() {
        let (_dir, store) = store();
        let leaf = Leaf::create(&store, SHAPE, 2).unwrap();
        let plan = leaf.begin(&slabs(2)).unwrap();
        (0..RANGES).for_each(|index| leaf.flip(&plan, index));
        let words: Vec<u64> = leaf.words.control().iter().map(|word| word.load(Relaxed)).collect();
        let of_words = std::fs::File::from(leaf.words.fd().try_clone_to_owned().unwrap());
        for index in 0..RANGES {
            for window in [leaf.partial(index, &range(index)).unwrap(), leaf.spare(index, &range(index))] {
                let file = std::fs::File::from(window.file.try_clone_to_owned().unwrap());
                assert_ne!(file.metadata().unwrap().ino(), of_words.metadata().unwrap().ino());
                // All that a runner could write with it.
                let everything = vec![0xff; file.metadata().unwrap().len() as usize];
                file.write_all_at(&everything, 0).unwrap();
            }
        }
        assert!(leaf.words.control().iter().map(|word| word.load(Relaxed)).eq(words));
        assert_eq!((leaf.plan(), leaf.lagging(&plan)), (Some(plan), vec![]));
    }

    #[test]
    fn a_restart_finds_it_and_one_of_an_earlier_release() {
        for level in [1, 2] {
            let (dir, store) = store();
            let leaf = Leaf::create(&store, SHAPE, level).unwrap();
            let plan = leaf.begin(&slabs(2)).unwrap();
            (0..RANGES).for_each(|index| leaf.flip(&plan, index));
            let next = leaf.begin(&slabs(3)).unwrap();
            leaf.flip(&next, 1);
            let (names, spare) = (leaf.slabs().collect::<Vec<_>>(), leaf.spare(0, &range(0)).offset_bytes);
            drop((leaf, store));
            let [(key, leaf)] = &found(dir.path())[..] else { panic!("one is found") };
            assert_eq!((*key, leaf.slabs().collect::<Vec<_>>()), (KEY, names));
            assert_eq!((leaf.plan(), leaf.lagging(&next)), (Some(next), vec![0, 2]));
            assert_eq!(leaf.spare(0, &range(0)).offset_bytes, spare);
            assert!(leaf.is_for(ELEMENTS, RANGES) && !leaf.is_for(ELEMENTS, RANGES + 1));
            // Noted from the second level on.
            assert_eq!(leaf.check_maker(MAKER), Ok(()));
            let wanted = Maker { abi: 5, ..MAKER };
            let refused = Unusable::Maker { made: MAKER, wanted };
            assert_eq!(leaf.check_maker(wanted), if level < 2 { Ok(()) } else { Err(refused) });
        }
    }

    #[test]
    fn both_notes_are_as_they_were_written() {
        let bytes = |meta: &dyn Fn() -> Vec<u8>| meta().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let limit = catchment_slab::META_BYTES_MAX;
        let whole = WholeMeta { key: KEY, elements: 3, ranges: 4 };
        let words = WordsMeta { key: KEY, elements: 3, ranges: 4, data: 9, maker: MAKER };
        let numbers = "02000000000000000100000005000000000000000300000000000000".to_owned() + "0400000000000000";
        let (key, maker) = ("07".repeat(16), "08".repeat(32));
        assert_eq!(bytes(&|| catchment_codec::encode(&whole, limit).unwrap()), format!("01{key}{numbers}"));
        assert_eq!(
            bytes(&|| catchment_codec::encode(&words, limit).unwrap()),
            format!("02{key}{numbers}0900000000000000{maker}04000000")
        );
        let (whole, words) =
            (catchment_codec::encode(&whole, limit).unwrap(), catchment_codec::encode(&words, limit).unwrap());
        assert!(catchment_codec::decode::<WordsMeta>(&whole, limit).is_err());
        assert!(catchment_codec::decode::<WholeMeta>(&words, limit).is_err());
    }

    #[test]
    fn a_half_of_it_is_none() {
        let (dir, store) = store();
        let leaf = Leaf::create(&store, SHAPE, 2).unwrap();
        let [words, data] = leaf.slabs().collect::<Vec<_>>()[..] else { panic!("two files") };
        drop(leaf);
        assert!(store.release(data));
        drop(store);
        assert!(found(dir.path()).is_empty());
        let store = open(dir.path());
        assert!(store.release(words) && !store.release(data));
        // No room for the words: the data is given back.
        let small = shared_memory();
        let budget_bytes = SlabStore::file_bytes(1, 2 * block_bytes(ELEMENTS)) + 4096;
        let (store, _) = SlabStore::open(StoreConfig { dir: small.path().to_path_buf(), budget_bytes }).unwrap();
        assert!(matches!(Leaf::create(&store, SHAPE, 2), Err(SlabError::NoRoom { .. })));
        assert_eq!(store.usage().accumulator_bytes, 0);
    }

    /// Notes that claim more than there is, or so much that it cannot be computed with.
    #[test]
    fn notes_that_do_not_fit_the_file_are_refused() {
        let (_dir, store) = store();
        for (elements, ranges) in [
            (u64::MAX, RANGES as u64),
            (u64::MAX / 8, RANGES as u64),
            (ELEMENTS * 1000, RANGES as u64),
            (ELEMENTS, u64::MAX),
            (ELEMENTS, u64::MAX - 60),
            (ELEMENTS, 0),
        ] {
            let limit = catchment_slab::META_BYTES_MAX;
            let whole = catchment_codec::encode(&WholeMeta { key: KEY, elements, ranges }, limit).unwrap();
            let whole =
                store.grant_accumulator(SHAPE.owner, FIRST_RANGE + RANGES, 2 * block_bytes(ELEMENTS), &whole).unwrap();
            let words = WordsMeta { key: KEY, elements, ranges, data: whole.id().get(), maker: MAKER };
            let words = catchment_codec::encode(&words, limit).unwrap();
            let words = store.grant_accumulator(SHAPE.owner, FIRST_RANGE + RANGES, 1, &words).unwrap();
            let all = HashMap::from([(whole.id(), whole.clone()), (words.id(), words.clone())]);
            for words in [whole, words] {
                assert!(Leaf::found(&words, &all).is_none(), "{elements} elements, {ranges} ranges");
            }
        }
    }

    /// What a hostile runner of an earlier release could have written.
    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![0..6_u64, Just(u64::MAX), Just(u64::MAX - 1), Just(1 << 63), Just(SEQUENCE_MAX - 1), any::<u64>()]
    }

    proptest! {
        #[test]
        fn no_words_end_the_process(
            forged in proptest::collection::vec((0..FIRST_RANGE + RANGES, word()), 1..12),
            again in proptest::collection::vec((0..FIRST_RANGE + RANGES, word()), 0..6),
        ) {
            let (_dir, store) = store();
            let leaf = Leaf::create(&store, SHAPE, 1).unwrap();
            let forge = |forged: &[(usize, u64)]| {
                forged.iter().for_each(|(index, value)| leaf.words.control()[*index].store(*value, Relaxed));
            };
            let look = || {
                leaf.plan().map(|plan| leaf.lagging(&plan));
                leaf.whole();
                for index in 0..RANGES {
                    let _ = (leaf.partial(index, &range(index)), leaf.spare(index, &range(index)));
                }
            };
            forge(&forged);
            look();
            let plan = leaf.plan();
            let begun = leaf.begin(&slabs(2));
            forge(&again);
            look();
            for plan in plan.into_iter().chain(begun) {
                (0..RANGES).for_each(|index| leaf.flip(&plan, index));
                look();
                leaf.undo(&plan).ok();
                look();
            }
        }
    }
}
