//! What can go wrong with a store, said so that an operator can act on it.

use std::io;
use std::path::{Path, PathBuf};

/// Why a store could not be opened, or could not grant, freeze or map a slab.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlabError {
    /// The budget, or the file system under it, has no room. Passing: room comes back as slabs are released.
    #[error(
        "no room in {dir} for {wanted_bytes} bytes: {free_bytes} can be had of a budget of {budget_bytes}; \
         try again once slabs are released, or raise the budget or the file system's size",
        dir = .dir.display()
    )]
    NoRoom {
        /// The store's directory.
        dir: PathBuf,
        /// What the grant needed, header and rounding included.
        wanted_bytes: u64,
        /// What could have been granted: what the budget leaves, or less when the file system itself is full.
        free_bytes: u64,
        /// The store's budget.
        budget_bytes: u64,
    },

    /// The metadata does not fit the header page.
    #[error("{len} bytes of metadata do not fit a slab's header, which holds {limit}; keep the rest elsewhere")]
    MetaTooLong {
        /// Bytes given.
        len: usize,
        /// [`META_BYTES_MAX`](crate::META_BYTES_MAX).
        limit: usize,
    },

    /// More control words than an accumulator may have.
    #[error("{words} control words asked of an accumulator, which has at most {limit}")]
    ControlTooLong {
        /// Words asked for.
        words: usize,
        /// [`CONTROL_WORDS_MAX`](crate::CONTROL_WORDS_MAX).
        limit: usize,
    },

    /// Another process, or another store in this one, holds the directory.
    #[error(
        "the slab store in {dir} is in use; stop the other node, drop this one's slabs, or choose another directory",
        dir = .dir.display()
    )]
    InUse {
        /// The store's directory.
        dir: PathBuf,
    },

    /// Others than this user could change what is in the directory: replace an update by another one, or cut a file
    /// that is mapped, which kills the process. Nothing was changed.
    #[error(
        "the slab store in {dir} is not this user's alone: {reason}; see that nobody else put anything there, or choose \
         another directory",
        dir = .dir.display()
    )]
    Exposed {
        /// The store's directory.
        dir: PathBuf,
        /// Who could, and what to do.
        reason: String,
    },

    /// The system does not let this user.
    #[error(
        "no permission to {action} {path}; run as the user who owns the store, or choose another directory",
        path = .path.display()
    )]
    Denied {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },

    /// A file of a later Catchment. Nothing was changed.
    #[error(
        "{path} has format version {found}, and this build knows {known}; start the newer build on this directory, \
         or choose another one",
        path = .path.display()
    )]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version this build reads.
        known: u32,
    },

    /// A file is not as the store left it: someone else wrote to it, cut it or removed it.
    #[error(
        "{path} is damaged: {reason}; keep other programs out of the store, and remove the directory to start empty",
        path = .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },

    /// Every index has named a file once, and none may name a second.
    #[error(
        "the slab store in {dir} has used up its 2^32 names; stop the node and remove the directory",
        dir = .dir.display()
    )]
    NamesUsedUp {
        /// The store's directory.
        dir: PathBuf,
    },

    /// Any other refusal by the system.
    #[error("could not {action} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

impl SlabError {
    /// Sorts the system's error into [`SlabError::Denied`] or [`SlabError::Io`]; use it in `map_err`.
    pub(crate) fn doing<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| {
            let source = source.into();
            match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Self::Denied { action, path, source }
                }
                _ => Self::Io { action, path, source },
            }
        }
    }
}
