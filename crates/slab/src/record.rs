//! The store's own file: the lock, and the two facts that must outlive every slab.
//!
//! Without it a slab's name could come twice. A slab's generation lives in its header and ends with its file, so an
//! index whose file is unlinked is never used again; this record says how far the indexes have been used.

use crate::directory::open_in;
use crate::error::SlabError;
use rustix::fs::OFlags;
use std::fs::{File, TryLockError};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The record's name in the store's directory.
pub(crate) const RECORD_NAME: &str = "store";
/// The name of the lock that processes share which work on the store's files. It is empty, and they cannot write it.
pub(crate) const SHARED_NAME: &str = "in-use";

const MAGIC: [u8; 8] = *b"CTCHSTOR";
const VERSION: u32 = 1;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Fixed {
    magic: [u8; 8],
    version: U32,
    spare: U32,
    incarnation: U64,
    next_index: U64,
    checksum: U64,
}

impl Fixed {
    fn new(incarnation: u64, next_index: u64) -> Self {
        let mut fixed = Self {
            magic: MAGIC,
            version: VERSION.into(),
            spare: U32::ZERO,
            incarnation: incarnation.into(),
            next_index: next_index.into(),
            checksum: U64::ZERO,
        };
        fixed.checksum = fixed.checksum().into();
        fixed
    }

    fn checksum(&self) -> u64 {
        let digest = blake3::hash(Self { checksum: U64::ZERO, ..*self }.as_bytes());
        let (head, _) = digest.as_bytes().split_first_chunk().expect("a digest is longer than a word");
        u64::from_le_bytes(*head)
    }
}

/// The locked record of one store. Dropping it lets the next process in.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    file: File,
    shared: File,
    incarnation: u64,
    next_index: Mutex<u64>,
}

impl Record {
    /// Locks the store in `dir`, which `name` is for people, and reads its record or begins one.
    pub(crate) fn open(dir: &OwnedFd, name: &Path) -> Result<Self, SlabError> {
        let path = name.join(RECORD_NAME);
        let opened = open_in(dir, RECORD_NAME, OFlags::RDWR | OFlags::CREATE);
        let file = opened.map_err(SlabError::doing("open", &path))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => SlabError::InUse { dir: name.to_owned() },
            TryLockError::Error(error) => SlabError::doing("lock", &path)(error),
        })?;
        let shared = Self::lock_shared(dir, name)?;
        let (incarnation, next_index, fresh) = match Self::read(&file, &path)? {
            Some((incarnation, next_index)) => (incarnation, next_index, false),
            None => (Self::draw_incarnation(&path)?, 0, true),
        };
        let record = Self { path, file, shared, incarnation, next_index: Mutex::new(next_index) };
        if fresh {
            record.write(0)?;
        }
        Ok(record)
    }

    fn lock_shared(dir: &OwnedFd, name: &Path) -> Result<File, SlabError> {
        let path = name.join(SHARED_NAME);
        let created = open_in(dir, SHARED_NAME, OFlags::WRONLY | OFlags::CREATE);
        created.map_err(SlabError::doing("create", &path))?;
        let file = open_in(dir, SHARED_NAME, OFlags::RDONLY).map_err(SlabError::doing("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(SlabError::InUse { dir: name.to_owned() }),
            Err(TryLockError::Error(error)) => Err(SlabError::doing("lock", &path)(error)),
        }
    }

    /// The incarnation and the next index, or nothing where no process has come as far as writing them.
    fn read(file: &File, path: &Path) -> Result<Option<(u64, u64)>, SlabError> {
        let len = file.metadata().map_err(SlabError::doing("look at", path))?.len();
        if len == 0 {
            return Ok(None);
        }
        let mut bytes = [0; size_of::<Fixed>()];
        let damaged = |reason: &str| SlabError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
        if len < bytes.len() as u64 {
            return Err(damaged("it is too short"));
        }
        file.read_exact_at(&mut bytes, 0).map_err(SlabError::doing("read", path))?;
        let fixed: Fixed = zerocopy::transmute!(bytes);
        if fixed.magic != MAGIC {
            return Err(damaged("it is no slab store's record"));
        }
        if fixed.version.get() > VERSION {
            return Err(SlabError::NewerVersion { path: path.to_owned(), found: fixed.version.get(), known: VERSION });
        }
        if fixed.checksum() != fixed.checksum.get() {
            return Err(damaged("its checksum does not fit"));
        }
        Ok(Some((fixed.incarnation.get(), fixed.next_index.get())))
    }

    fn draw_incarnation(path: &Path) -> Result<u64, SlabError> {
        let mut bytes = [0; 8];
        let drawn =
            rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()))
                .map_err(SlabError::doing("draw a random number for", path))?;
        assert_eq!(drawn, bytes.len(), "the kernel never cuts so short a draw");
        Ok(u64::from_le_bytes(bytes))
    }

    /// One write inside one page, which a kill either lets happen or does not.
    fn write(&self, next_index: u64) -> Result<(), SlabError> {
        let fixed = Fixed::new(self.incarnation, next_index);
        self.file.write_all_at(fixed.as_bytes(), 0).map_err(SlabError::doing("write", &self.path))
    }

    /// Another hold on the lock: the store stays locked until this is closed too.
    pub(crate) fn lock(&self) -> Result<OwnedFd, SlabError> {
        Ok(self.shared.try_clone().map_err(SlabError::doing("duplicate the lock beside", &self.path))?.into())
    }

    /// Drawn when the directory was first used; see [`SlabStore::incarnation`](crate::SlabStore::incarnation).
    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// An index that no file has had before, recorded as used before it is given out. `None` when there is none.
    pub(crate) fn new_index(&self) -> Result<Option<u32>, SlabError> {
        let mut next = self.next_index.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(index) = u32::try_from(*next) else { return Ok(None) };
        self.write(*next + 1)?;
        *next += 1;
        Ok(Some(index))
    }

    /// Never gives out an index below `end`: names found in the directory are used, whatever the record says.
    pub(crate) fn skip_to(&self, end: u64) -> Result<(), SlabError> {
        let mut next = self.next_index.lock().unwrap_or_else(PoisonError::into_inner);
        if *next < end {
            self.write(end)?;
            *next = end;
        }
        Ok(())
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Closing would do, were it not for a child between fork and exec, which still holds the descriptor. The shared
        // lock is only closed: whoever else has it still works on the files.
        if let Err(error) = self.file.unlock() {
            tracing::warn!(path = %self.path.display(), %error, "could not unlock the slab store");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &tempfile::TempDir) -> Result<Record, SlabError> {
        let opened = OwnedFd::from(File::open(dir.path()).expect("it is there"));
        Record::open(&opened, dir.path())
    }

    #[test]
    fn indexes_never_repeat_and_end_with_the_last() {
        let dir = tempfile::tempdir().expect("a directory");
        let record = open(&dir).expect("opens");
        assert_eq!(record.new_index().expect("writes"), Some(0));
        let incarnation = record.incarnation();
        drop(record);

        let record = open(&dir).expect("opens again");
        assert_eq!(record.incarnation(), incarnation);
        assert_eq!(record.new_index().expect("writes"), Some(1));
        record.skip_to(u64::from(u32::MAX)).expect("writes");
        record.skip_to(5).expect("nothing to do");
        assert_eq!(record.new_index().expect("writes"), Some(u32::MAX));
        assert_eq!(record.new_index().expect("nothing to write"), None);
        drop(record);
        let record = open(&dir).expect("opens again");
        assert_eq!(record.new_index().expect("nothing to write"), None);
    }

    #[test]
    fn a_foreign_cut_or_newer_record_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(RECORD_NAME);
        drop(open(&dir).expect("opens"));
        let good = std::fs::read(&path).expect("was written");

        let mut newer = good.clone();
        newer[8] = 2;
        let mut flipped = good.clone();
        flipped[20] ^= 1;
        for (bytes, words) in [
            (newer, "version 2"),
            (flipped, "checksum"),
            (good[..10].to_vec(), "too short"),
            (vec![b'x'; 64], "no slab store's record"),
        ] {
            std::fs::write(&path, &bytes).expect("writes");
            let error = open(&dir).expect_err("refused").to_string();
            assert!(error.contains(words), "{error}");
            assert_eq!(std::fs::read(&path).expect("still there"), bytes);
        }
    }
}
