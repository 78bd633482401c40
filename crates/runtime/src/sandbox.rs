//! An instance's address space: mapping files into it, and taking them away.
//!
//! The invariant is one sentence: between calls, nothing but the instance's own memory is mapped in its address space.
//! A pool slot passes from function to function, so whatever stayed mapped would be another job's to read.
#![allow(unsafe_code, reason = "mmap at a fixed address")]

use crate::HostError;
use crate::host::Host;
use crate::place::{Area, Place};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use std::fs::File;
use std::os::fd::BorrowedFd;
use wasmtime::{AsContextMut, Memory, Store, StoreContextMut};

/// What a guest may do with a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    ReadWrite,
}

/// One window of a call, placed.
pub struct Mapping<'a> {
    pub fd: BorrowedFd<'a>,
    pub place: Place,
    pub access: Access,
    /// What it is, for errors.
    pub what: String,
}

/// A store with one instance in it, and the part of its address space that windows may use.
pub struct Sandbox {
    /// There until the sandbox is dropped.
    store: Option<Store<Host>>,
    memory: Memory,
    area: Area,
    /// Host addresses that could not be unmapped.
    stuck: Option<(u64, u64)>,
}

impl Sandbox {
    /// Takes over a store whose only instance owns `memory`. `heap_bytes_max` is the cap that the engine was made
    /// with, so that this instance's memory can never grow into the windows.
    pub fn new(mut store: Store<Host>, memory: Memory, heap_bytes_max: u64) -> Result<Self, HostError> {
        let base = memory.data_ptr(&store) as u64;
        let page = rustix::param::page_size() as u64;
        if !base.is_multiple_of(page) {
            return Err(HostError::Engine(format!("memory starts at {base:#x}, which is not on a page")));
        }
        let size = memory.data_size(&mut store) as u64;
        if size > heap_bytes_max || memory.page_size(&store) != 65_536 {
            return Err(HostError::Engine(format!("memory of {size} bytes; the cap is {heap_bytes_max}")));
        }
        Ok(Self { store: Some(store), memory, area: Area::new(base, heap_bytes_max, page), stuck: None })
    }

    /// Where windows may go.
    pub fn area(&self) -> Area {
        self.area
    }

    /// The instance's own memory.
    pub fn memory(&self) -> &[u8] {
        self.memory.data(self.store.as_ref().expect("there until drop"))
    }

    /// The instance's own memory.
    pub fn memory_mut(&mut self) -> &mut [u8] {
        self.memory.data_mut(self.store.as_mut().expect("there until drop"))
    }

    /// Runs something with no window mapped.
    pub fn enter<R>(&mut self, run: impl FnOnce(StoreContextMut<'_, Host>) -> R) -> R {
        let store = self.store.as_mut().expect("there until drop");
        store.data_mut().view.sees(std::iter::empty());
        run(store.as_context_mut())
    }

    /// Maps the windows, runs something, and unmaps them, whatever comes.
    pub fn with_windows<R>(
        &mut self,
        mappings: &[Mapping<'_>],
        run: impl FnOnce(StoreContextMut<'_, Host>) -> R,
    ) -> Result<R, HostError> {
        if self.stuck.is_some() {
            return Err(HostError::Spent);
        }
        let guard = Guard { area: self.area, mappings, stuck: &mut self.stuck };
        for mapping in mappings {
            guard.map(mapping)?;
        }
        let store = self.store.as_mut().expect("there until drop");
        store.data_mut().view.sees(mappings.iter().map(|mapping| mapping.place.seen(self.area)));
        let result = run(store.as_context_mut());
        store.data_mut().view.sees(std::iter::empty());
        drop(guard);
        Ok(result)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let Some((low, high)) = self.stuck else { return };
        if unmap(self.area, low, high).is_err() {
            // The slot must never be used again: keep it taken for good.
            tracing::error!(low, high, "windows stay mapped; their instance's slot is given up");
            std::mem::forget(self.store.take());
        }
    }
}

/// Unmaps windows when dropped.
struct Guard<'a> {
    area: Area,
    mappings: &'a [Mapping<'a>],
    stuck: &'a mut Option<(u64, u64)>,
}

impl Guard<'_> {
    fn map(&self, mapping: &Mapping<'_>) -> Result<(), HostError> {
        let Place { address, len, offset, .. } = mapping.place;
        let page = self.area.page;
        assert!(address >= self.area.low && address + len <= self.area.high, "a window lies in the area");
        assert!(address.is_multiple_of(page) && len.is_multiple_of(page) && offset.is_multiple_of(page));
        let protection = match mapping.access {
            Access::Read => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // A fold reads all of every window, so page tables are filled at once rather than fault by fault.
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE | MapFlags::POPULATE;
        // SAFETY: the range lies in the area: within the 4 GiB that this sandbox's instance has reserved and above
        // every byte its memory may grow to. The host holds no reference into it and never reads or writes there; only
        // the guest does, and it runs only while `with_windows` holds the sandbox. The guard takes the mapping away
        // before the slot can pass on.
        let mapped = unsafe { mmap(address as *mut _, len as usize, protection, flags, mapping.fd, offset) };
        match mapped {
            Ok(at) => {
                assert_eq!(at as u64, address, "MAP_FIXED maps where it is told");
                Ok(())
            }
            Err(error) => Err(HostError::Map { what: mapping.what.clone(), reason: reason(error, mapping) }),
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let (Some(first), Some(last)) = (self.mappings.first(), self.mappings.last()) else { return };
        let (low, high) = (first.place.address, last.place.address + last.place.len);
        if unmap(self.area, low, high).is_err() {
            *self.stuck = Some((low, high));
        }
    }
}

/// Takes everything between two host addresses of an area away, leaving the range reserved and inaccessible, as the
/// engine made it.
fn unmap(area: Area, low: u64, high: u64) -> Result<(), rustix::io::Errno> {
    assert!(area.low <= low && low < high && high <= area.high, "windows lie in the area");
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: as for mapping: the range is this sandbox's, and nothing refers to it. The pages are replaced in one
    // step, so the range is never free for another mapping.
    unsafe { mmap_anonymous(low as *mut _, (high - low) as usize, ProtFlags::empty(), flags) }.map(|_| ())
}

fn reason(error: rustix::io::Errno, mapping: &Mapping<'_>) -> String {
    let hint = match (error, mapping.access) {
        (rustix::io::Errno::ACCESS, Access::Read) => " (the file is not open for reading)",
        (rustix::io::Errno::ACCESS | rustix::io::Errno::PERM, Access::ReadWrite) => {
            " (the file is not open for reading and writing, or is sealed)"
        }
        (rustix::io::Errno::NOMEM, _) => " (see vm.max_map_count)",
        _ => "",
    };
    format!("{error}{hint}")
}

/// How long a file is, and which file it is. Reading beyond its end would raise SIGBUS, which nobody handles.
pub fn identify(fd: BorrowedFd<'_>) -> Result<(u64, (u64, u64)), rustix::io::Errno> {
    let stat = rustix::fs::fstat(fd)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(rustix::io::Errno::NODEV);
    }
    Ok((u64::try_from(stat.st_size).unwrap_or(0), (stat.st_dev, stat.st_ino)))
}

/// A file in memory with these bytes; the probe maps it.
pub fn memory_file(bytes: &[u8]) -> std::io::Result<File> {
    use std::io::Write;
    let mut file = File::from(rustix::fs::memfd_create("catchment-probe", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file)
}
