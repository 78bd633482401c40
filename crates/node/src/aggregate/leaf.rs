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
//! word 64 + i   what range i holds: sequence << 1 | block; sequence 0 holds nothing
//! ```
//!
//! A plan that is taken back is followed by an empty one, so that nobody folds it again.

use super::ranges::Range;
use catchment_runtime::Window;
use catchment_slab::{Accumulator, HUGE_BYTES, PAGE_BYTES, SlabError, SlabStore};
use catchment_types::{JobUid, SlabId};
use serde::{Deserialize, Serialize};
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Updates of one batch at most.
pub const BATCH_MAX: usize = 16;
const PLAN_WORDS: usize = BATCH_MAX + 2;
const FIRST_RANGE: usize = 64;
/// Bytes of one coordinate of a partial: an f64.
const PARTIAL_BYTES: u64 = 8;
/// Control words of an accumulator, about: for a layout of thousands of ranges.
const CONTROL_WORDS_MAX: usize = 2048;

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

#[derive(Serialize, Deserialize)]
struct Meta {
    key: LeafKey,
    elements: u64,
    ranges: u64,
}

catchment_codec::first_version!(Meta);

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
    accumulator: Accumulator,
    elements: u64,
    ranges: usize,
}

impl Leaf {
    /// Bytes of shared memory of an accumulator for this many coordinates, about.
    pub fn bytes(elements: u64) -> u64 {
        SlabStore::file_bytes(CONTROL_WORDS_MAX, 2 * block_bytes(elements))
    }

    /// A new, empty accumulator.
    pub fn create(store: &SlabStore, key: LeafKey, elements: u64, ranges: usize) -> Result<Self, SlabError> {
        let meta = Meta { key, elements, ranges: ranges as u64 };
        let meta = catchment_codec::encode(&meta, catchment_slab::META_BYTES_MAX).expect("a few numbers fit");
        let accumulator = store.grant_accumulator(FIRST_RANGE + ranges, 2 * block_bytes(elements), &meta)?;
        Ok(Self { accumulator, elements, ranges })
    }

    /// An accumulator found after a restart; `None` when it is none of ours.
    pub fn found(accumulator: Accumulator) -> Option<(LeafKey, Self)> {
        let meta: Meta = catchment_codec::decode(accumulator.meta(), catchment_slab::META_BYTES_MAX).ok()?;
        let ranges = usize::try_from(meta.ranges).ok()?;
        let fits = accumulator.control().len() == FIRST_RANGE + ranges
            && accumulator.data_len() >= 2 * block_bytes(meta.elements);
        fits.then_some((meta.key, Self { accumulator, elements: meta.elements, ranges }))
    }

    /// Its name in the store.
    pub fn slab(&self) -> SlabId {
        self.accumulator.id()
    }

    /// The newest plan; `None` before the first. Empty after one was taken back.
    pub fn plan(&self) -> Option<Plan> {
        let sequence = self.accumulator.control()[0].load(Acquire);
        let words = self.slot(sequence);
        let count = words[0].load(Relaxed).min(BATCH_MAX as u64) as usize;
        let slabs = words[2..2 + count].iter().map(|word| SlabId::from_u64(word.load(Relaxed))).collect();
        (sequence > 0).then(|| Plan { sequence, base: words[1].load(Relaxed), slabs })
    }

    fn slot(&self, sequence: u64) -> &[AtomicU64] {
        let first = 2 + (sequence % 2) as usize * PLAN_WORDS;
        &self.accumulator.control()[first..first + PLAN_WORDS]
    }

    /// Writes down the next batch. The one before it must be complete or taken back.
    pub fn begin(&self, slabs: &[SlabId]) -> Plan {
        assert!((1..=BATCH_MAX).contains(&slabs.len()), "a batch has 1 to {BATCH_MAX} updates");
        self.write(slabs)
    }

    fn write(&self, slabs: &[SlabId]) -> Plan {
        let base = if self.ranges == 0 { 0 } else { self.held(0).0 };
        assert!((0..self.ranges).all(|range| self.held(range).0 == base), "every range holds the same batches");
        let latest = &self.accumulator.control()[0];
        let sequence = latest.load(Relaxed) + 1;
        let words = self.slot(sequence);
        words[0].store(slabs.len() as u64, Relaxed);
        words[1].store(base, Relaxed);
        for (word, slab) in words[2..].iter().zip(slabs) {
            word.store(slab.get(), Relaxed);
        }
        latest.store(sequence, Release);
        Plan { sequence, base, slabs: slabs.to_vec() }
    }

    /// The ranges that lack the plan's batch.
    pub fn lagging(&self, plan: &Plan) -> Vec<usize> {
        let lags = |range: &usize| !plan.slabs.is_empty() && self.held(*range).0 != plan.sequence;
        (0..self.ranges).filter(lags).collect()
    }

    /// Marks a range as folded: its spare block becomes its block.
    pub fn flip(&self, plan: &Plan, range: usize) {
        let (held, block) = self.held(range);
        assert_ne!(held, plan.sequence, "a range is flipped once a plan");
        self.accumulator.control()[FIRST_RANGE + range].store(plan.sequence << 1 | (block ^ 1), Release);
    }

    /// Takes a batch back: its spare blocks still hold what was there before.
    pub fn undo(&self, plan: &Plan) {
        for range in 0..self.ranges {
            let (held, block) = self.held(range);
            if held == plan.sequence {
                self.accumulator.control()[FIRST_RANGE + range].store(plan.base << 1 | (block ^ 1), Release);
            }
        }
        self.write(&[]);
    }

    fn held(&self, range: usize) -> (u64, u64) {
        assert!(range < self.ranges);
        let word = self.accumulator.control()[FIRST_RANGE + range].load(Acquire);
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
        let offset = self.accumulator.data_offset() + block * block_bytes(self.elements);
        is_whole.then_some((offset, self.elements * PARTIAL_BYTES))
    }

    /// A descriptor of its file.
    pub fn file(&self) -> std::io::Result<std::fs::File> {
        super::offered::file_of(self.accumulator.fd())
    }

    /// Where a range's next partial goes.
    pub fn spare(&self, index: usize, range: &Range) -> Window<BorrowedFd<'_>> {
        self.window(self.held(index).1 ^ 1, range)
    }

    fn window(&self, block: u64, range: &Range) -> Window<BorrowedFd<'_>> {
        assert!(range.base + range.elements <= self.elements);
        Window {
            file: self.accumulator.fd(),
            offset_bytes: self.accumulator.data_offset()
                + block * block_bytes(self.elements)
                + range.base * PARTIAL_BYTES,
            len_bytes: range.elements * PARTIAL_BYTES,
        }
    }
}

/// Bytes of one block: whole pages, huge ones if it is large.
pub fn block_bytes(elements: u64) -> u64 {
    let bytes = elements * PARTIAL_BYTES;
    bytes.next_multiple_of(if bytes < 4 * HUGE_BYTES { PAGE_BYTES } else { HUGE_BYTES })
}
