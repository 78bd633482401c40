//! Machine code on its way from the process that compiled a function to those that run it.
//!
//! Compiling takes a second; mapping what was compiled takes a millisecond. Without this every runner would compile
//! every function again.
//!
//! Machine code is believed, not checked: [`Compiled::trusted`] is for what the process that compiled it has handed over
//! itself.
#![allow(unsafe_code, reason = "machine code is believed")]

use crate::engine::Runtime;
use crate::error::LoadError;
use crate::function::Function;
use crate::host::chain;
use crate::load;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use std::fs::File;
use std::io::{Error, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use wasmtime::Module;

const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE);

/// A function's machine code, in a file in memory that nobody can change any more.
#[derive(Debug, Clone)]
pub struct Compiled {
    file: Arc<OwnedFd>,
    digest: String,
}

impl Compiled {
    pub(crate) fn of(module: &Module, digest: &str) -> std::io::Result<Self> {
        let code = module.serialize().map_err(|error| Error::other(chain(&error)))?;
        let file = memfd_create("catchment-function", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut file = File::from(file);
        file.write_all(&code)?;
        fcntl_add_seals(&file, SEALS | SealFlags::SEAL)?;
        Ok(Self { file: Arc::new(file.into()), digest: digest.to_owned() })
    }

    /// Takes what [`Compiled::file`] of another process gave. `digest` is the function's.
    ///
    /// The caller answers for where `file` comes from: whoever made it decides what this process does.
    ///
    /// # Errors
    /// A file that could still be changed.
    pub fn trusted(file: OwnedFd, digest: String) -> std::io::Result<Self> {
        if !fcntl_get_seals(&file)?.contains(SEALS) {
            return Err(Error::other("the file of a compiled function is not sealed"));
        }
        Ok(Self { file: Arc::new(file), digest })
    }

    /// The file, to be handed to another process.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn load(self, runtime: &Runtime) -> Result<Function, LoadError> {
        let invalid = |reason: String| LoadError::Invalid(format!("compiled code: {reason}"));
        let file = self.file.try_clone().map_err(|error| invalid(error.to_string()))?;
        // SAFETY: the bytes are what a runtime of this project has compiled: `of` made them in this process, or the
        // caller of `trusted` answers for the process that did. Seals keep them from changing under the mapping.
        let module = unsafe { Module::deserialize_open_file(runtime.engine(), File::from(file)) };
        let module = module.map_err(|error| invalid(chain(&error)))?;
        load::check(runtime, &module, self.digest)
    }
}
