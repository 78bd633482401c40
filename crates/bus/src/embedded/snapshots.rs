//! Snapshots as files beside the log's: written whole under another name, then renamed. They are not in the log's own
//! file because a commit of tens of megabytes there would have every append wait for it.

use std::fs::File;
use std::io::{Error, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::Snapshot;
use crate::snapshot::KEPT;

const MAGIC: &[u8; 8] = b"catchsn1";
/// Magic, sequence, length, digest.
const HEAD_BYTES: usize = 8 + 8 + 8 + 32;
const PREFIX: &str = "snapshot-";
const SUFFIX: &str = ".bin";
/// What a snapshot is called until it is whole.
const DRAFT: &str = "snapshot.draft";

/// Sequences of the snapshots in `dir`, newest first; whether they are sound is not looked at.
pub(super) fn list(dir: &Path) -> Result<Vec<u64>, Error> {
    let names = std::fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.file_name()));
    let mut found = Vec::new();
    for name in names {
        let name = name?;
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX));
        found.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// The newest sound snapshot. `Err` also when there are some and none is sound.
pub(super) fn newest(dir: &Path) -> Result<Option<Snapshot>, Error> {
    let mut unsound = None;
    for sequence in list(dir)? {
        match read(dir, sequence) {
            Ok(snapshot) => return Ok(Some(snapshot)),
            Err(error) => {
                let path = path(dir, sequence);
                tracing::warn!(path = %path.display(), %error, "a snapshot is not usable; an older one may be");
                unsound = Some(error);
            }
        }
    }
    unsound.map_or(Ok(None), Err)
}

/// Writes a snapshot; when this has returned, it is there after a power failure too.
pub(super) fn write(dir: &Path, snapshot: &Snapshot) -> Result<(), Error> {
    let draft = dir.join(DRAFT);
    let mut file = File::create(&draft)?;
    file.write_all(MAGIC)?;
    file.write_all(&snapshot.sequence.to_le_bytes())?;
    file.write_all(&(snapshot.bytes.len() as u64).to_le_bytes())?;
    file.write_all(&snapshot.digest())?;
    file.write_all(&snapshot.bytes)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&draft, path(dir, snapshot.sequence))?;
    File::open(dir)?.sync_all()
}

/// Removes all but the newest ones. The sequence of the oldest that is kept, when there are as many as are to be kept.
pub(super) fn prune(dir: &Path) -> Result<Option<u64>, Error> {
    let found = list(dir)?;
    for old in found.iter().skip(KEPT) {
        std::fs::remove_file(path(dir, *old))?;
    }
    Ok(found.get(KEPT - 1).copied())
}

pub(super) fn path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{sequence:020}{SUFFIX}"))
}

pub(super) fn read(dir: &Path, sequence: u64) -> Result<Snapshot, Error> {
    let mut file = Bytes::from(std::fs::read(path(dir, sequence))?);
    let wrong = |what: &str| Err(Error::new(std::io::ErrorKind::InvalidData, what.to_owned()));
    if file.len() < HEAD_BYTES || &file[..8] != MAGIC {
        return wrong("it is not a snapshot that this build knows");
    }
    let head = file.split_to(HEAD_BYTES);
    let snapshot = Snapshot { sequence, bytes: file };
    let lengths = [sequence.to_le_bytes(), (snapshot.bytes.len() as u64).to_le_bytes()].concat();
    if head[8..24] != lengths || head[24..] != snapshot.digest() {
        return wrong("its content is not what was written");
    }
    Ok(snapshot)
}
