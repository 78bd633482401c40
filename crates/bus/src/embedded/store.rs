//! The redb file: one table of records by sequence.
//!
//! redb refuses every call after an I/O error until the file is opened again. So an error here closes
//! the file, opens it again and looks whether the records are there; only when that fails too is the
//! outcome unknown. A full disk then costs the appends made while it is full, not the log.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError};
use redb::{ReadOnlyTable, TableDefinition};

use crate::{BusError, LogError};

/// The log's file in the data directory.
pub const LOG_FILE: &str = "log.redb";

pub(super) const RECORDS: TableDefinition<u64, &[u8]> = TableDefinition::new("records");
pub(super) const ABOUT: TableDefinition<&str, u64> = TableDefinition::new("about");

/// The first record that is kept, under `ABOUT`; 1 where nothing says so.
pub(super) const FIRST: &str = "first";

/// The layout of the two tables, stored under `ABOUT["format"]`.
pub(super) const FORMAT: u64 = 1;

/// What the format says of a log that is about to be replaced.
pub(super) const RESTORING: u64 = u64::MAX;

/// The log is written once and read once, at start: a large cache would hold it for nothing.
pub(super) const CACHE_BYTES: usize = 8 << 20;

/// Records forgotten in one commit.
const FORGET_MAX: u64 = 512;

pub(super) struct Store {
    path: PathBuf,
    /// None after an error, until the file could be opened again.
    database: Option<Database>,
    bounds: Bounds,
}

/// The first and the last record there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    first: u64,
    last: u64,
}

impl Store {
    pub(super) fn open(data_dir: &Path) -> Result<Self, BusError> {
        let failed = |error: std::io::Error| BusError::Open { path: data_dir.to_owned(), reason: error.to_string() };
        std::fs::create_dir_all(data_dir).map_err(failed)?;
        let path = data_dir.join(LOG_FILE);
        let (database, bounds) = open(&path)?;
        // A file whose name is lost with the power is no log.
        File::open(data_dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(Self { path, database: Some(database), bounds })
    }

    pub(super) fn last(&mut self) -> Result<u64, LogError> {
        self.database()?;
        Ok(self.bounds.last)
    }

    /// The first record there is, or would be.
    pub(super) fn first(&self) -> u64 {
        self.bounds.first
    }

    pub(super) fn read(&mut self, after: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        let last = self.last()?;
        let wanted = last.saturating_sub(after).min(limit as u64);
        if wanted == 0 {
            return Ok(vec![]);
        }
        let first = self.bounds.first;
        if after + 1 < first {
            return Err(LogError::Forgotten { first });
        }
        let database = self.database()?;
        let found = records_of(database).and_then(|table| {
            let range = table.range(after + 1..)?.take(limit);
            range.map(|row| row.map(|(key, value)| (key.value(), Bytes::copy_from_slice(value.value())))).collect()
        });
        let found: Vec<(u64, Bytes)> = match found {
            Ok(found) => found,
            Err(error) => {
                self.database = None;
                return Err(LogError::Unavailable(format!("read {}: {error}", self.path.display())));
            }
        };
        let complete = found.len() as u64 == wanted && found.iter().zip(after + 1..).all(|((s, _), e)| *s == e);
        if complete {
            return Ok(found);
        }
        Err(LogError::Damaged(format!("{} lacks records between {after} and {last}", self.path.display())))
    }

    /// Stores all of `records`, whose sequences follow on the last one, or none.
    pub(super) fn append(&mut self, records: &[(u64, Bytes)]) -> Result<(), LogError> {
        let Some((after, _)) = records.last() else {
            return Ok(());
        };
        let before = self.last()?;
        assert_eq!(*after, before + records.len() as u64, "sequences have no gaps");
        match commit(self.database()?, records) {
            Ok(()) => {
                self.bounds.last = *after;
                Ok(())
            }
            Err(error) => self.settle(before, *after, &error),
        }
    }

    /// Removes some of the records up to `until`. Whether there are more to remove. The last record stays in any case:
    /// it is what new ones are numbered after.
    pub(super) fn forget(&mut self, until: u64) -> Result<bool, LogError> {
        let until = until.min(self.last()?.saturating_sub(1));
        let first = self.bounds.first;
        if first > until {
            return Ok(false);
        }
        let end = until.min(first + FORGET_MAX - 1);
        if let Err(error) = remove(self.database()?, first, end) {
            self.database = None;
            return Err(LogError::Unavailable(format!("forget records in {}: {error}", self.path.display())));
        }
        self.bounds.first = end + 1;
        Ok(end < until)
    }

    /// After a failed commit: are the records there?
    fn settle(&mut self, before: u64, after: u64, error: &redb::Error) -> Result<(), LogError> {
        let path = self.path.display().to_string();
        self.database = None;
        self.database().map_err(|closed| {
            LogError::Unavailable(format!("write {path}: {error}; unknown whether it was stored ({closed})"))
        })?;
        match self.bounds.last {
            last if last == after => Ok(()),
            last if last == before => Err(LogError::Refused(format!("write {path}: {error}{}", advice(error)))),
            last => Err(LogError::Damaged(format!("{path} ends at {last} after appending {before} to {after}"))),
        }
    }

    /// The open file, opened again when an error closed it.
    pub(super) fn database(&mut self) -> Result<&Database, LogError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => {
                let (database, bounds) = open(&self.path).map_err(|error| {
                    LogError::Unavailable(format!("the log is closed after an error and does not open: {error}"))
                })?;
                self.bounds = bounds;
                database
            }
        };
        Ok(self.database.insert(database))
    }
}

fn advice(error: &redb::Error) -> &'static str {
    match error {
        redb::Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => {
            "; make room on that disk, the log goes on by itself"
        }
        _ => "",
    }
}

fn records_of(database: &Database) -> Result<ReadOnlyTable<u64, &'static [u8]>, StorageError> {
    let read = database.begin_read().map_err(|error| StorageError::Corrupted(error.to_string()))?;
    read.open_table(RECORDS).map_err(|error| StorageError::Corrupted(error.to_string()))
}

fn commit(database: &Database, records: &[(u64, Bytes)]) -> Result<(), redb::Error> {
    let mut write = database.begin_write()?;
    write.set_durability(Durability::Immediate)?;
    {
        let mut table = write.open_table(RECORDS)?;
        for (sequence, record) in records {
            table.insert(sequence, record.as_ref())?;
        }
    }
    write.commit()?;
    Ok(())
}

/// Removes the records from `first` to `end`.
fn remove(database: &Database, first: u64, end: u64) -> Result<(), redb::Error> {
    let mut write = database.begin_write()?;
    write.set_durability(Durability::Immediate)?;
    {
        let mut records = write.open_table(RECORDS)?;
        for sequence in first..=end {
            records.remove(sequence)?;
        }
        write.open_table(ABOUT)?.insert(FIRST, end + 1)?;
    }
    write.commit()?;
    Ok(())
}

/// Opens and checks the file; with it come the bounds. The check reads every page, because
/// redb may panic on a file that was changed behind its back, and a panic inside it is the same
/// finding.
fn open(path: &Path) -> Result<(Database, Bounds), BusError> {
    let corrupt = |reason: String| BusError::Corrupt { path: path.to_owned(), reason };
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let database = redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create(path)
            .map_err(|error| explain(path, error))?;
        let bounds = prepare(&database).map_err(|error| match error {
            redb::Error::Io(io) => BusError::Open { path: path.to_owned(), reason: io.to_string() },
            error => corrupt(error.to_string()),
        })?;
        let bounds = bounds.map_err(corrupt)?;
        Ok((database, bounds))
    }));
    opened.unwrap_or_else(|_| Err(corrupt("its pages do not fit together".to_owned())))
}

/// Makes the tables when the file is new. The bounds, or what is wrong with the content.
fn prepare(database: &Database) -> Result<Result<Bounds, String>, redb::Error> {
    let write = database.begin_write()?;
    let bounds = {
        let mut about = write.open_table(ABOUT)?;
        let records = write.open_table(RECORDS)?;
        let format = about.get("format")?.map(|format| format.value());
        match format {
            Some(FORMAT) => {}
            Some(RESTORING) => {
                let what = "`catchment log restore` was replacing it and did not come to its end; run it again";
                return Ok(Err(what.to_owned()));
            }
            Some(other) => return Ok(Err(format!("its format is {other}, and this build knows {FORMAT}"))),
            None if records.is_empty()? => {
                about.insert("format", FORMAT)?;
            }
            None => return Ok(Err("it holds records of no known format".to_owned())),
        }
        let wanted = about.get(FIRST)?.map_or(1, |first| first.value());
        let first = records.first()?.map_or(1, |(key, _)| key.value());
        let last = records.last()?.map_or(0, |(key, _)| key.value());
        if first != wanted || Some(records.len()?) != (last + 1).checked_sub(first) {
            let found = records.len()?;
            return Ok(Err(format!("it holds {found} records numbered {first} to {last}, and begins at {wanted}")));
        }
        Bounds { first, last }
    };
    write.commit()?;
    Ok(Ok(bounds))
}

fn explain(path: &Path, error: DatabaseError) -> BusError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => BusError::InUse { path },
        DatabaseError::Storage(StorageError::Io(io)) if io.kind() != std::io::ErrorKind::InvalidData => {
            BusError::Open { path, reason: io.to_string() }
        }
        error => BusError::Corrupt { path, reason: error.to_string() },
    }
}
