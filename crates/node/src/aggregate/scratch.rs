//! Shared memory for a while: partials on their way up, copies of other nodes' updates, the new model.

use super::input::unreadable;
use crate::context::Context;
use catchment_runtime::{FunctionError, HostError, Window};
use catchment_slab::{Accumulator, Slab};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Shared memory that is given back when it is no longer needed.
pub struct Scratch {
    context: Arc<Context>,
    /// The memory.
    pub accumulator: Accumulator,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.context.release([self.accumulator.id()]);
    }
}

/// The same for a frozen slab.
pub struct ScratchSlab {
    context: Arc<Context>,
    slab: Slab,
}

impl Drop for ScratchSlab {
    fn drop(&mut self) {
        self.context.release([self.slab.id()]);
    }
}

impl ScratchSlab {
    /// Takes charge of a slab.
    pub fn new(context: Arc<Context>, slab: Slab) -> Self {
        Self { context, slab }
    }

    /// A stretch of it.
    pub fn window(&self, offset: u64, len_bytes: u64) -> Result<Window<BorrowedFd<'_>>, FunctionError> {
        let fd = self.slab.fd().map_err(unreadable)?;
        Ok(Window { file: fd, offset_bytes: self.slab.data_offset() + offset, len_bytes })
    }
}

impl Scratch {
    /// Takes charge of memory.
    pub fn new(context: Arc<Context>, accumulator: Accumulator) -> Self {
        Self { context, accumulator }
    }

    /// A stretch of it.
    pub fn window(&self, offset: u64, len_bytes: u64) -> Window<BorrowedFd<'_>> {
        Window { file: self.accumulator.fd(), offset_bytes: self.accumulator.data_offset() + offset, len_bytes }
    }

    /// A descriptor of its own.
    pub fn file(&self) -> Result<File, FunctionError> {
        let file =
            self.accumulator.fd().try_clone_to_owned().map_err(|error| HostError::argument_of("scratch", error))?;
        Ok(file.into())
    }

    /// Writes zeros: shared memory is recycled.
    pub fn zero(&self, offset: u64, bytes: u64) -> Result<(), FunctionError> {
        self.write(offset, &vec![0; bytes as usize])
    }

    /// Writes bytes.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), FunctionError> {
        let written = self.file()?.write_all_at(bytes, self.accumulator.data_offset() + offset);
        Ok(written.map_err(|error| HostError::argument_of("scratch", error))?)
    }

    /// Reads bytes.
    pub fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, FunctionError> {
        let mut bytes = vec![0; len as usize];
        let read = self.file()?.read_exact_at(&mut bytes, self.accumulator.data_offset() + offset);
        read.map_err(|error| HostError::argument_of("scratch", error))?;
        Ok(bytes)
    }
}
