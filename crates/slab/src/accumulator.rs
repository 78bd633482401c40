//! A slab that is folded into: control words every process may change, and data that windows map.

use crate::error::SlabError;
use crate::extent::{Extent, PAGE_BYTES};
use crate::header::State;
use crate::map::ControlMap;
use crate::shared::Hold;
use catchment_types::SlabId;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An accumulator. The store keeps it, control words and data, through any crash until it is released; clones share
/// one descriptor and one mapping of the control words. Nobody maps the data here: windows do.
#[derive(Debug, Clone)]
pub struct Accumulator {
    parts: Arc<Parts>,
}

// Fields drop in this order: descriptor and mapping are gone before the hold ends and the file can serve another.
#[derive(Debug)]
struct Parts {
    control: ControlMap,
    file: File,
    extent: Extent,
    meta: Box<[u8]>,
    hold: Hold,
}

impl Accumulator {
    /// The granted file becomes an accumulator: its words are zeroed, and only then does a restart find it.
    pub(crate) fn begin(hold: Hold, file: File, extent: Extent, meta: &[u8]) -> Result<Self, SlabError> {
        let accumulator = Self::new(hold, file, extent, meta.into())?;
        for word in accumulator.control() {
            word.store(0, Ordering::Relaxed);
        }
        let Parts { file, hold, .. } = &*accumulator.parts;
        hold.store.directory.write_state(file, hold.id.index(), State::Kept)?;
        hold.store.table().make_accumulator(hold.id);
        Ok(accumulator)
    }

    pub(crate) fn new(hold: Hold, file: File, extent: Extent, meta: Box<[u8]>) -> Result<Self, SlabError> {
        let path = hold.store.directory.slab_path(hold.id.index());
        let control = ControlMap::new(&file, PAGE_BYTES, extent.control_words() as usize)
            .map_err(SlabError::doing("map the control words of", &path))?;
        Ok(Self { parts: Arc::new(Parts { control, file, extent, meta, hold }) })
    }

    /// This use of the slab.
    pub fn id(&self) -> SlabId {
        self.parts.hold.id
    }

    /// What was noted when it was granted.
    pub fn meta(&self) -> &[u8] {
        &self.parts.meta
    }

    /// The control words, zero when granted, shared with every process that maps them. What was stored before a
    /// process was killed is there when the store is opened again.
    pub fn control(&self) -> &[AtomicU64] {
        self.parts.control.words()
    }

    /// The accumulator's file, opened for reading and writing.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.parts.file.as_fd()
    }

    /// Where the data begins in the file of [`Accumulator::fd`]: a multiple of 4096. When granted, the data and the
    /// rest of its last page hold zeros, or whatever an earlier use of the same owner left there.
    pub fn data_offset(&self) -> u64 {
        self.parts.extent.data_offset()
    }

    /// Bytes of data, as granted.
    pub fn data_len(&self) -> u64 {
        self.parts.extent.data_len()
    }
}
