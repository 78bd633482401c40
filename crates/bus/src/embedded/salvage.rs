//! Records out of a log's file that redb does not open any more, because a page of it is not what was written.
//!
//! redb opens a file for writing only when every page's checksum holds. As a reader beside a writer it checks nothing
//! and follows pages as they are. So the file is opened as such a reader sees it, by way of a backend that says that
//! the file was left in order and that every lock is free. Each record is then asked for by itself: what lies behind a
//! damaged page fails, or panics, and the others come out. Nothing is written.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;
use redb::{BackendError, ConcurrencyMode, ReadOnlyDatabase, ReadableDatabase, ReadableTable, StorageBackend};

use super::store::{ABOUT, CACHE_BYTES, FIRST, RECORDS};
use crate::offline::{Bounds, Found};

/// The byte of the file's header with its state, and what in it says that the file was not closed.
const STATE_BYTE: u64 = 9;
const NOT_CLOSED: u8 = 2 | 8;

/// Records that are asked for in vain, one after the other, before there are taken to be no more.
const VAIN_MAX: u64 = 4096;

pub(super) struct Salvage {
    database: ReadOnlyDatabase,
    bounds: Bounds,
}

impl Salvage {
    /// Opens the file as it is; otherwise why nothing can be read of it.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let bytes = file.metadata().map_err(|error| error.to_string())?.len();
        let database = guarded(|| {
            let mut builder = redb::Builder::new();
            builder.set_cache_size(CACHE_BYTES).set_concurrency_mode(ConcurrencyMode::SingleWriter);
            builder.open_read_only_with_backend(AsItIs { file, bytes }).map_err(|error| error.to_string())
        })?;
        let mut salvage = Self { database, bounds: Bounds { first: 1, last: 0 } };
        salvage.bounds = salvage.look_for_bounds()?;
        Ok(salvage)
    }

    pub(super) fn bounds(&self) -> Bounds {
        self.bounds
    }

    pub(super) fn read(&self, from: u64, limit: usize) -> Vec<Found> {
        let end = self.bounds.last.min(from.saturating_add(limit as u64).saturating_sub(1));
        (from..=end).map(|sequence| (sequence, self.get(sequence))).collect()
    }

    fn get(&self, sequence: u64) -> Result<Bytes, String> {
        let got = guarded(|| {
            let read = self.database.begin_read().map_err(|error| error.to_string())?;
            let table = read.open_table(RECORDS).map_err(|error| error.to_string())?;
            let row = table.get(sequence).map_err(|error| error.to_string())?;
            Ok(row.map(|row| Bytes::copy_from_slice(row.value())))
        })?;
        got.ok_or_else(|| "it is not in the file".to_owned())
    }

    /// The bounds, as far as they can be seen past the damage.
    fn look_for_bounds(&self) -> Result<Bounds, String> {
        let first = guarded(|| {
            let read = self.database.begin_read().map_err(|error| error.to_string())?;
            let about = read.open_table(ABOUT).map_err(|error| error.to_string())?;
            Ok(about.get(FIRST).map_err(|error| error.to_string())?.map_or(1, |first| first.value()))
        });
        let end = |of_last: bool| {
            guarded(|| {
                let read = self.database.begin_read().map_err(|error| error.to_string())?;
                let table = read.open_table(RECORDS).map_err(|error| error.to_string())?;
                let row = if of_last { table.last() } else { table.first() };
                Ok(row.map_err(|error| error.to_string())?.map(|(key, _)| key.value()))
            })
        };
        // What the file says of its beginning, or where records begin: either may be what is damaged.
        let first = match (first, end(false)) {
            (Ok(first), _) | (Err(_), Ok(Some(first))) => first.max(1),
            (Err(error), _) => return Err(error),
        };
        if let Ok(Some(last)) = end(true)
            && last.checked_sub(first).is_some_and(|records| records < 1 << 40)
        {
            return Ok(Bounds { first, last });
        }
        let (mut last, mut sequence) = (first - 1, first);
        while sequence - last <= VAIN_MAX {
            if self.get(sequence).is_ok() {
                last = sequence;
            }
            sequence += 1;
        }
        Ok(Bounds { first, last })
    }
}

/// A panic inside redb is a finding like an error.
fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("its page makes no sense".to_owned()))
}

/// The file for reading, as if it had been closed and nobody else had it.
#[derive(Debug)]
struct AsItIs {
    file: File,
    bytes: u64,
}

impl StorageBackend for AsItIs {
    fn len(&self) -> Result<u64, Error> {
        Ok(self.bytes)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact_at(out, offset)?;
        let state = STATE_BYTE.checked_sub(offset).and_then(|at| out.get_mut(usize::try_from(at).ok()?));
        if let Some(state) = state {
            *state &= !NOT_CLOSED;
        }
        Ok(())
    }

    fn set_len(&self, _: u64) -> Result<(), Error> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_data(&self) -> Result<(), Error> {
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), Error> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn query_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(false)
    }
}
