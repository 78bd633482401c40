//! The crate's unsafe code: three mappings of a slab file, and nothing else.
//!
//! A mapped file is memory that anyone with a writable descriptor can change and that anyone who cuts the file can
//! turn into SIGBUS. What makes these mappings sound is the store's discipline:
//!
//! * every block of a file is set aside before its first mapping, and no file is ever cut, only unlinked;
//! * a directory belongs to one process (its lock) and one user (mode 0700, files 0600);
//! * at most one [`WriteMap`] of a file exists, and never beside a [`ReadMap`]: the writer is gone before a slab is
//!   frozen, and a frozen slab is recycled only when its last reader is gone;
//! * an accumulator's words are only ever touched as atomics, here as in every other process.

use memmap2::{Mmap, MmapMut, MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU64;

fn usize_of(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "larger than the address space"))
}

/// A granted slab's data, writable by its one owner.
#[derive(Debug)]
pub(crate) struct WriteMap(MmapMut);

impl WriteMap {
    /// Maps `len` bytes of `file` from `offset` on. The caller holds the slab's grant, and the file is longer.
    ///
    /// All pages are entered at once: one by one, as the writer came to them, they would cost four times as much
    /// (eight recycled updates of 232 MB: 0.26 s to grant and fill instead of 1.1 s).
    pub(crate) fn new(file: &File, offset: u64, len: u64) -> io::Result<Self> {
        let mut options = MmapOptions::new();
        options.offset(offset).len(usize_of(len)?).populate();
        // SAFETY: the grant is exclusive, so no other mapping or descriptor in use reaches these bytes while this
        // one lives; the blocks are set aside and the file is never cut, so no access faults.
        unsafe { options.map_mut(file) }.map(Self)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// A frozen slab's data, read-only.
#[derive(Debug)]
pub(crate) struct ReadMap(Mmap);

impl ReadMap {
    /// Maps `len` bytes of `file`, opened read-only, from `offset` on. The caller holds the frozen slab.
    pub(crate) fn new(file: &File, offset: u64, len: u64) -> io::Result<Self> {
        let mut options = MmapOptions::new();
        options.offset(offset).len(usize_of(len)?);
        // SAFETY: a frozen slab has no writer left and gets none until its last holder, the caller included, is
        // gone, so the bytes stand still; the blocks are set aside and the file is never cut.
        unsafe { options.map(file) }.map(Self)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// An accumulator's control words, shared with every process that maps them.
#[derive(Debug)]
pub(crate) struct ControlMap {
    map: MmapRaw,
    words: usize,
}

impl ControlMap {
    /// Maps `words` words of `file` from `offset` on. The caller holds the accumulator, and the file is longer.
    pub(crate) fn new(file: &File, offset: u64, words: usize) -> io::Result<Self> {
        let bytes = words.max(1).checked_mul(size_of::<AtomicU64>()).ok_or(io::ErrorKind::InvalidInput)?;
        let map = MmapOptions::new().offset(offset).len(bytes).map_raw(file)?;
        Ok(Self { map, words })
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        let first = self.map.as_mut_ptr().cast::<AtomicU64>();
        assert!(self.map.len() >= self.words * size_of::<AtomicU64>() && first.is_aligned());
        // SAFETY: the mapping is page-aligned, at least that long (asserted), initialised (files begin as zeros), and
        // lives as long as `self`; the words are atomics, so other mappings may change them at any time. The
        // blocks are set aside and the file is never cut.
        unsafe { std::slice::from_raw_parts(first, self.words) }
    }
}
