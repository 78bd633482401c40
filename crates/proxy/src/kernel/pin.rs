//! Routing that outlives the process: maps, and with them the program, under names on a bpffs.
//!
//! `<directory>/<version>/<map>`, where the version is made from the program's bytes. Whoever uses the directory holds a
//! lock on it. A directory named `<version>-new` was not finished.

use super::maps::Maps;
use aya::maps::{Map, MapData, MapError};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// `BPF_FS_MAGIC`.
const BPFFS: u64 = 0xcafe_4a11;

/// A directory of pins that this process holds.
#[derive(Debug)]
pub(super) struct Pins {
    directory: PathBuf,
    version: String,
    _lock: OwnedFd,
}

/// Why pins cannot be used.
#[derive(Debug)]
pub(super) enum Refused {
    /// Another process that is alive uses them.
    Busy,
    /// Or something else.
    Unusable(String),
}

impl Pins {
    /// Locks the directory, makes it if need be, and removes what another version left in it.
    pub(super) fn open(directory: &Path, object: &[u8]) -> Result<Self, Refused> {
        let digest = blake3::hash(object).to_hex();
        let (directory, version) = (directory.to_path_buf(), digest[..16].to_string());
        let lock = lock(&directory).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Refused::Busy,
            _ => Refused::Unusable(format!("{}: {error}", directory.display())),
        })?;
        let pins = Self { directory, version, _lock: lock };
        for left in pins.others() {
            match remove(&left) {
                Ok(()) => tracing::info!(pins = %left.display(), "replaced routing that another version had pinned"),
                Err(error) => tracing::warn!(pins = %left.display(), %error, "remove what another version had pinned"),
            }
        }
        Ok(pins)
    }

    /// The maps as a process before this one left them, if it did.
    pub(super) fn adopt(&self) -> Option<Maps> {
        let home = self.finished();
        if !home.is_dir() {
            return None;
        }
        match Maps::new(|name| Map::from_map_data(MapData::from_pin(home.join(name))?)) {
            Ok(maps) => Some(maps),
            Err(error) => {
                self.discard(&error.to_string());
                None
            }
        }
    }

    /// Removes what a process before this one left, because it cannot be used.
    pub(super) fn discard(&self, why: &str) {
        let home = self.finished();
        tracing::warn!(pins = %home.display(), why, "pinned routing cannot be used, and is replaced");
        if let Err(error) = remove(&home) {
            tracing::warn!(pins = %home.display(), %error, "remove pinned routing");
        }
    }

    /// Pins a map among those that are not complete yet.
    pub(super) fn add(&self, map: &Map, name: &str) -> Result<(), MapError> {
        let home = self.unfinished();
        let pinned = fs::create_dir_all(&home).map_err(MapError::from).and_then(|()| {
            let error = |error| MapError::PinError { name: Some(name.to_string()), error };
            map.pin(home.join(name)).map_err(error)
        });
        pinned.inspect_err(|_| drop(remove(&home)))
    }

    /// Everything is pinned and attached: from now on it may be adopted.
    pub(super) fn complete(&self) -> io::Result<()> {
        fs::rename(self.unfinished(), self.finished())
    }

    fn finished(&self) -> PathBuf {
        self.directory.join(&self.version)
    }

    fn unfinished(&self) -> PathBuf {
        self.directory.join(format!("{}-new", self.version))
    }

    fn others(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| *path != self.finished()).collect()
    }
}

fn lock(directory: &Path) -> io::Result<OwnedFd> {
    // What is there already is used as it is: making it may take rights that using it does not.
    if !directory.is_dir() {
        fs::create_dir_all(directory)?;
    }
    if rustix::fs::statfs(directory)?.f_type as u64 != BPFFS {
        return Err(io::Error::other("this is no bpffs (mount -t bpf bpf /sys/fs/bpf)"));
    }
    let directory = rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(directory),
        Err(Errno::WOULDBLOCK) => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a directory of pins, or a stray pin.
fn remove(path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        return fs::remove_file(path);
    }
    for entry in fs::read_dir(path)? {
        fs::remove_file(entry?.path())?;
    }
    fs::remove_dir(path)
}
