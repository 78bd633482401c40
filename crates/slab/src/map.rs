//! The crate's unsafe code: the mappings of a slab file, and nothing else.
//!
//! A mapped file is memory that anyone with a writable descriptor can change and that anyone who cuts the file can
//! turn into SIGBUS. What makes these mappings sound is the store's discipline:
//!
//! * every block of a file is set aside before its first mapping, and no file is ever cut, only unlinked;
//! * a directory belongs to one process (its lock) and one user (its owner and mode 0700, looked at when it is opened and
//!   through the descriptor that everything else goes through; files 0600);
//! * at most one [`WriteMap`] of a file exists, and never beside a [`ReadMap`]: the writer is gone before a slab is
//!   frozen, and a frozen slab is recycled only when its last reader is gone;
//! * an accumulator's words are only ever touched as atomics, here as in every other process.

use crate::extent::{HUGE_BYTES, PAGE_BYTES};
use memmap2::{Mmap, MmapOptions, MmapRaw};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::fs::File;
use std::sync::atomic::AtomicU64;
use std::{io, ptr};

fn usize_of(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "larger than the address space"))
}

/// A mapping of a file from its beginning, at an address that is a multiple of the huge page: only so can the kernel map
/// a file's huge pages as such.
#[derive(Debug)]
struct Aligned {
    address: *mut c_void,
    len: usize,
}

impl Aligned {
    fn new(file: &File, len: usize, flags: MapFlags) -> io::Result<Self> {
        let (huge, none) = (HUGE_BYTES as usize, ProtFlags::empty());
        let reserved_len = len.checked_add(huge).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh reservation at an address of the kernel's choice touches no memory of ours.
        let reserved = unsafe { mmap_anonymous(ptr::null_mut(), reserved_len, none, MapFlags::PRIVATE) }?;
        let skipped = reserved.addr().next_multiple_of(huge) - reserved.addr();
        let address = reserved.wrapping_byte_add(skipped);
        // From here on dropping it gives the reservation back.
        let whole = Self { address: reserved, len: reserved_len };
        // SAFETY: the range lies within the reservation just made, which nobody else knows.
        unsafe {
            mmap(address, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED | flags, file, 0)
        }?;
        std::mem::forget(whole);
        let mapped = len.next_multiple_of(PAGE_BYTES as usize);
        let rest = (address.wrapping_byte_add(mapped), reserved_len - skipped - mapped);
        for (from, bytes) in [(reserved, skipped), rest] {
            if bytes > 0 {
                // SAFETY: what is left of the reservation on either side of the mapping; nobody knows it.
                unsafe { munmap(from, bytes) }?;
            }
        }
        Ok(Self { address, len })
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's alone, and no slice of it outlives it.
        if let Err(error) = unsafe { munmap(self.address, self.len) } {
            tracing::error!(%error, "unmap a slab");
        }
    }
}

/// Has the kernel make a file's pages huge ones. They stay so for as long as the file is there. It may refuse; then the
/// file is as it was.
pub(crate) fn collapse(file: &File, len: u64) -> io::Result<()> {
    let map = Aligned::new(file, usize_of(len - len % HUGE_BYTES)?, MapFlags::empty())?;
    // SAFETY: the advice changes which pages hold the mapping's content, never the content.
    let refused = unsafe { libc::madvise(map.address, map.len, libc::MADV_COLLAPSE) } != 0;
    if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A granted slab's data, writable by its one owner.
#[derive(Debug)]
pub(crate) struct WriteMap {
    map: Aligned,
    offset: usize,
}

// SAFETY: the mapping belongs to this value alone, whichever thread has it.
unsafe impl Send for WriteMap {}
// SAFETY: a shared reference gives no access to the bytes.
unsafe impl Sync for WriteMap {}

impl WriteMap {
    /// Maps `len` bytes of `file` from `offset` on. The caller holds the slab's grant, and the file is as long.
    ///
    /// All pages are entered at once: one by one, as the writer came to them, they would cost four times as much
    /// (eight recycled updates of 232 MB: 0.26 s to grant and fill instead of 1.1 s).
    pub(crate) fn new(file: &File, offset: u64, len: u64) -> io::Result<Self> {
        let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        let map = Aligned::new(file, usize_of(end)?, MapFlags::POPULATE)?;
        Ok(Self { map, offset: usize_of(offset)? })
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let (first, len) = (self.map.address.wrapping_byte_add(self.offset), self.map.len - self.offset);
        // SAFETY: the range lies within the mapping. The grant is exclusive and so is this reference, so no other
        // mapping or descriptor in use reaches these bytes meanwhile; the blocks are set aside and the file is never
        // cut, so no access faults.
        unsafe { std::slice::from_raw_parts_mut(first.cast(), len) }
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
