//! What of a guest's address space the host touches on the guest's behalf, and the check of every address before it does.
//!
//! A guest's own loads and stores are checked by the machine; the host's would take whatever they hit, in this guest's
//! address space or another's.
#![allow(unsafe_code, reason = "reading and writing at a guest's addresses")]

use crate::half;
use wasmtime::{AsContext, Memory, Trap};

/// What a guest can see.
#[derive(Default)]
pub struct View {
    memory: Option<Memory>,
    /// Each window that is mapped: its first address, and one past its last. Ascending.
    windows: Vec<(u32, u32)>,
}

impl View {
    /// The instance's own memory is this.
    pub fn owns(&mut self, memory: Memory) {
        self.memory = Some(memory);
    }

    /// These windows are mapped from now on, and no others.
    pub fn sees(&mut self, windows: impl Iterator<Item = (u32, u32)>) {
        self.windows.clear();
        self.windows.extend(windows);
        assert!(self.windows.is_sorted(), "windows are placed one after the other");
    }

    /// Converts `count` F16 at address `from`, in one window or the instance's own memory, to F32 at address `to`, in its
    /// own memory.
    pub fn widen(&self, store: impl AsContext, from: u32, to: u32, count: u32) -> Result<(), Trap> {
        let memory = self.memory.ok_or(Trap::MemoryOutOfBounds)?;
        let own_bytes = memory.data_size(&store) as u64;
        let (read_bytes, written_bytes) = (2 * u64::from(count), 4 * u64::from(count));
        let read_end = u64::from(from) + read_bytes;
        let written_end = u64::from(to) + written_bytes;
        let is_apart = read_end <= u64::from(to) || written_end <= u64::from(from);
        let can_read = read_end <= own_bytes || self.has(from, read_end);
        if !(can_read && written_end <= own_bytes && is_apart) {
            return Err(Trap::MemoryOutOfBounds);
        }
        let base = memory.data_ptr(&store);
        // SAFETY: what is written lies in the instance's own memory, to which the host holds no reference while its guest
        // runs, and the guest waits for this call. What is read lies there too, apart from it, or in a window, which
        // stays mapped until the guest has returned.
        unsafe { half::widen(base.add(from as usize), base.add(to as usize), count as usize) };
        Ok(())
    }

    /// Whether one window has the bytes from `first` to `end`.
    fn has(&self, first: u32, end: u64) -> bool {
        let after = self.windows.partition_point(|(start, _)| *start <= first);
        after.checked_sub(1).is_some_and(|at| end <= u64::from(self.windows[at].1))
    }
}
