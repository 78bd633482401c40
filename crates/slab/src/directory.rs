//! The store's directory: every file operation of the crate, one function each.
//!
//! Headers go through `pwrite` rather than a mapping: system calls happen in program order and a write inside one
//! page happens whole or not at all under `kill -9`, so that recovery's rules need no argument about compilers.

use crate::error::SlabError;
use crate::extent::{HUGE_BYTES, HUGE_FROM_BYTES, PAGE_BYTES};
use crate::header::{Header, Page, STATE_OFFSET, State};
use crate::map::collapse;
use crate::record::{RECORD_NAME, Record, SHARED_NAME};
use rustix::fs::{AtFlags, Dir, FallocateFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const TMPFS_MAGIC: u64 = 0x0102_1994;

/// A locked store directory.
#[derive(Debug)]
pub(crate) struct Directory {
    /// Its name, for people: whatever is done goes through `dir`, the very directory that was looked at.
    path: PathBuf,
    dir: OwnedFd,
    record: Record,
    /// Large files made of huge pages.
    huge: AtomicU64,
    /// Large files that could not be.
    small: AtomicU64,
}

/// One name in the directory.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    /// The index it spells, if it is spelt like a slab's.
    pub(crate) index: Option<u32>,
    pub(crate) is_file: bool,
}

impl Directory {
    /// Creates `path` where it is missing, sees that it is this user's alone, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, SlabError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(SlabError::doing("create", path))?;
        let dir = open_own(path)?;
        let record = Record::open(&dir, path)?;
        let system = rustix::fs::fstatfs(&dir).map_err(SlabError::doing("look at the file system of", path))?;
        if system.f_type as u64 != TMPFS_MAGIC {
            tracing::warn!(
                dir = %path.display(),
                "the slab store is not on a tmpfs: slabs will be written to a disk, slowly, and are still not kept \
                 through a loss of power; put it under /dev/shm or on a memory volume"
            );
        }
        Ok(Self { path: path.to_owned(), dir, record, huge: AtomicU64::new(0), small: AtomicU64::new(0) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Where the slab of `index` lies.
    pub(crate) fn slab_path(&self, index: u32) -> PathBuf {
        self.path.join(slab_name(index))
    }

    fn open_slab(&self, index: u32, flags: OFlags, file_bytes: u64) -> Result<File, SlabError> {
        let path = self.slab_path(index);
        let file = open_in(&self.dir, &slab_name(index), flags).map_err(SlabError::doing("open", &path))?;
        let len = file.metadata().map_err(SlabError::doing("look at", &path))?.len();
        if len != file_bytes {
            let reason = format!("it has {len} bytes and was made with {file_bytes}");
            return Err(SlabError::Damaged { path, reason });
        }
        Ok(file)
    }

    /// Opens a slab of `file_bytes` for reading only.
    pub(crate) fn open_to_read(&self, index: u32, file_bytes: u64) -> Result<File, SlabError> {
        self.open_slab(index, OFlags::RDONLY, file_bytes)
    }

    /// Opens a slab of `file_bytes` for reading and writing.
    pub(crate) fn open_to_write(&self, index: u32, file_bytes: u64) -> Result<File, SlabError> {
        self.open_slab(index, OFlags::RDWR, file_bytes)
    }

    /// Makes a file and sets all its blocks aside, so that no later touch can meet a full file system; `None`, and
    /// no file, when there is no room for them.
    pub(crate) fn create_slab(&self, index: u32, file_bytes: u64) -> Result<Option<File>, SlabError> {
        let path = self.slab_path(index);
        let created = open_in(&self.dir, &slab_name(index), OFlags::RDWR | OFlags::CREATE | OFlags::EXCL);
        let file = match created {
            Err(error) if no_space(&error) => return Ok(None),
            other => other.map_err(SlabError::doing("create", &path))?,
        };
        self.make_huge(&file, file_bytes);
        let set_aside =
            rustix::io::retry_on_intr(|| rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, file_bytes));
        match set_aside.map_err(io::Error::from) {
            Ok(()) => Ok(Some(file)),
            Err(error) => {
                self.unlink_slab(index);
                if no_space(&error) {
                    return Ok(None);
                }
                Err(SlabError::doing("set blocks aside (as a tmpfs can) for", &path)(error))
            }
        }
    }

    /// Asks for huge pages, where they pay; without them everything works, slower. Before the blocks are set aside: one
    /// byte in each is enough for the kernel to make a huge page around it, and all others need not be cleared twice.
    fn make_huge(&self, file: &File, file_bytes: u64) {
        // What the file system has no room for is refused when its blocks are set aside, before a page is touched.
        if file_bytes < HUGE_FROM_BYTES || file_bytes > self.available_bytes() {
            return;
        }
        let touched = file.set_len(file_bytes).and_then(|()| {
            (0..file_bytes / HUGE_BYTES).try_for_each(|page| file.write_all_at(&[0], page * HUGE_BYTES))
        });
        match touched.and_then(|()| collapse(file, file_bytes)) {
            Ok(()) => self.huge.fetch_add(1, Relaxed),
            Err(error) => {
                tracing::debug!(%error, "the kernel gives no huge pages");
                self.small.fetch_add(1, Relaxed)
            }
        };
    }

    /// Large files that were made of huge pages, and those that could not be.
    pub(crate) fn huge_files(&self) -> (u64, u64) {
        (self.huge.load(Relaxed), self.small.load(Relaxed))
    }

    /// Overwrites all of a slab's file but its header with zeros. Its pages stay: to give them back and take others
    /// would cost a fault for each.
    pub(crate) fn zero(&self, file: &File, index: u32, file_bytes: u64) -> Result<(), SlabError> {
        const ZEROS: &[u8] = &[0; 256 << 10];
        let mut at = PAGE_BYTES;
        while at < file_bytes {
            let take = (file_bytes - at).min(ZEROS.len() as u64);
            file.write_all_at(&ZEROS[..take as usize], at)
                .map_err(|error| SlabError::doing("zero", &self.slab_path(index))(error))?;
            at += take;
        }
        Ok(())
    }

    /// Writes a slab's header over whatever the page held.
    pub(crate) fn write_header(&self, file: &File, header: &Header, state: State) -> Result<(), SlabError> {
        file.write_all_at(&header.encode(state), 0)
            .map_err(|error| SlabError::doing("write the header of", &self.slab_path(header.id.index()))(error))
    }

    /// Changes a slab's state, and nothing else.
    pub(crate) fn write_state(&self, file: &File, index: u32, state: State) -> Result<(), SlabError> {
        file.write_all_at(&state.word().to_le_bytes(), STATE_OFFSET)
            .map_err(|error| SlabError::doing("write the state of", &self.slab_path(index))(error))
    }

    /// Reads the header page and the size of the slab file at `index`; a file shorter than a page reads as zeros.
    pub(crate) fn read_page(&self, index: u32) -> Result<(Page, u64), SlabError> {
        let path = self.slab_path(index);
        let opened = open_in(&self.dir, &slab_name(index), OFlags::RDONLY);
        let file = opened.map_err(SlabError::doing("open", &path))?;
        let len = file.metadata().map_err(SlabError::doing("look at", &path))?.len();
        let mut page = [0; PAGE_BYTES as usize];
        let held = len.min(PAGE_BYTES) as usize;
        file.read_exact_at(&mut page[..held], 0).map_err(SlabError::doing("read", &path))?;
        Ok((Header::decode(&page), len))
    }

    /// Gives a slab's memory back to the system once its last descriptor and mapping are gone. A file that will not
    /// go is reported and forgotten: its name is never used again.
    pub(crate) fn unlink_slab(&self, index: u32) {
        let unlinked = rustix::fs::unlinkat(&self.dir, slab_name(index), AtFlags::empty());
        if let Err(error) = unlinked
            && error != Errno::NOENT
        {
            let path = self.slab_path(index);
            tracing::error!(path = %path.display(), %error, "could not unlink a slab; its memory stays taken");
        }
    }

    /// What the file system itself has left.
    pub(crate) fn available_bytes(&self) -> u64 {
        rustix::fs::fstatvfs(&self.dir).map_or(0, |system| system.f_bavail.saturating_mul(system.f_frsize))
    }

    /// Every name in the directory but the record's.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, SlabError> {
        let mut entries = Vec::new();
        for item in Dir::read_from(&self.dir).map_err(SlabError::doing("list", &self.path))? {
            let item = item.map_err(SlabError::doing("list", &self.path))?;
            let name = OsStr::from_bytes(item.file_name().to_bytes());
            if name == "." || name == ".." || name == RECORD_NAME || name == SHARED_NAME {
                continue;
            }
            let is_file = match item.file_type() {
                // Some file systems do not say.
                FileType::Unknown => rustix::fs::statat(&self.dir, item.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_file()),
                kind => kind.is_file(),
            };
            let index = name.to_str().and_then(slab_index);
            entries.push(Entry { path: self.path.join(name), index, is_file });
        }
        Ok(entries)
    }
}

/// Opens the directory, unless anybody but this user has access to it. The mappings of its files are sound because nobody
/// else cuts or writes them, and under `/dev/shm` whoever comes first makes a directory of any name.
fn open_own(path: &Path) -> Result<OwnedFd, SlabError> {
    let exposed = |reason: String| SlabError::Exposed { dir: path.to_owned(), reason };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::LOOP | Errno::NOTDIR) => {
            return Err(exposed("it is a symbolic link or no directory: name the directory itself".to_owned()));
        }
        opened => opened.map_err(SlabError::doing("open", path))?,
    };
    let found = rustix::fs::fstat(&dir).map_err(SlabError::doing("look at", path))?;
    let (own, owner, mode) = (rustix::process::geteuid().as_raw(), found.st_uid, found.st_mode & 0o7777);
    if owner != own {
        let reason = format!("it belongs to user {owner}, and this process runs as user {own}: run it as that user");
        return Err(exposed(reason));
    }
    if mode & 0o077 != 0 {
        let reason = format!("its mode is {mode:04o}, which lets its group or others in: make it 0700 (chmod 700)");
        return Err(exposed(reason));
    }
    Ok(dir)
}

/// Opens a file of a store's directory, never through a link. One that is made is this user's alone.
pub(crate) fn open_in(dir: &OwnedFd, name: &str, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::io::retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR));
    Ok(opened?.into())
}

fn slab_name(index: u32) -> String {
    format!("{index:08x}.slab")
}

/// The index a slab's file name spells: exactly what [`slab_name`] writes.
fn slab_index(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".slab")?;
    let index = u32::from_str_radix(digits, 16).ok()?;
    (format!("{index:08x}") == digits).then_some(index)
}

fn no_space(error: &io::Error) -> bool {
    [Errno::NOSPC, Errno::DQUOT, Errno::NOMEM].contains(&Errno::from_io_error(error).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_slabs() {
        assert_eq!(slab_index("0000002a.slab"), Some(42));
        assert_eq!(slab_index("ffffffff.slab"), Some(u32::MAX));
        for name in ["2a.slab", "0000002A.slab", "+000002a.slab", "00000002a.slab", "0000002a", "0000002a.slab~"] {
            assert_eq!(slab_index(name), None, "{name}");
        }
    }
}
