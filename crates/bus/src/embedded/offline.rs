//! The log of a data directory, while no process works on it.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use redb::{Database, Durability};

use super::salvage::Salvage;
use super::snapshots;
use super::store::{ABOUT, CACHE_BYTES, FIRST, FORMAT, LOG_FILE, RECORDS, RESTORING, Store};
use crate::memory::{RECORD_BYTES_MAX, check_size};
use crate::offline::{Bounds, Found, NewLog, StoredLog};
use crate::{BusError, LogError, Snapshot};

/// What a new log is called until it is whole.
const DRAFT: &str = "log.redb.draft";

/// Opens what is in `data_dir`. While it is open, no process can open it.
pub(crate) async fn open(data_dir: &Path) -> Result<Option<Box<dyn StoredLog>>, BusError> {
    let dir = data_dir.to_owned();
    on_thread(move || open_now(dir)).await
}

/// Begins a log in `data_dir`.
pub(crate) async fn begin(data_dir: &Path, first: u64, replaces: bool) -> Result<Box<dyn NewLog>, BusError> {
    let dir = data_dir.to_owned();
    on_thread(move || Draft::begin(dir, first, replaces).map(|draft| Box::new(draft) as Box<dyn NewLog>)).await
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BusError> + Send + 'static,
) -> Result<T, BusError> {
    let worked = tokio::task::spawn_blocking(work).await;
    worked.unwrap_or_else(|error| Err(BusError::Config(format!("open the log: {error}"))))
}

fn open_now(dir: PathBuf) -> Result<Option<Box<dyn StoredLog>>, BusError> {
    let path = dir.join(LOG_FILE);
    let failed = |error: std::io::Error| BusError::Open { path: dir.clone(), reason: error.to_string() };
    let has_file = path.try_exists().map_err(failed)?;
    let snapshots = match snapshots::list(&dir) {
        Ok(snapshots) => snapshots,
        Err(error) if error.kind() == ErrorKind::NotFound => vec![],
        Err(error) => return Err(failed(error)),
    };
    let (records, unsound) = match has_file.then(|| Store::open(&dir)).transpose() {
        Ok(Some(store)) => (Records::Sound(store), None),
        Ok(None) if snapshots.is_empty() => return Ok(None),
        Ok(None) => (Records::None, Some(format!("{LOG_FILE} is not there, but snapshots are"))),
        Err(BusError::Corrupt { reason, .. }) => match Salvage::open(&path) {
            Ok(salvage) => (Records::Salvaged(salvage), Some(format!("{LOG_FILE} is corrupt: {reason}"))),
            Err(why) => {
                let unsound = format!("{LOG_FILE} is corrupt ({reason}), and no record can be read of it: {why}");
                (Records::None, Some(unsound))
            }
        },
        Err(error) => return Err(error),
    };
    Ok(Some(Box::new(Stored { dir, records: Arc::new(Mutex::new(records)), unsound })))
}

enum Records {
    Sound(Store),
    Salvaged(Salvage),
    /// There are none, or none that could be read.
    None,
}

impl Records {
    fn bounds(&mut self) -> Result<Bounds, LogError> {
        match self {
            Self::Sound(store) => store.last().map(|last| Bounds { first: store.first(), last }),
            Self::Salvaged(salvage) => Ok(salvage.bounds()),
            Self::None => Ok(Bounds { first: 1, last: 0 }),
        }
    }

    fn read(&mut self, from: u64, limit: usize) -> Result<Vec<Found>, LogError> {
        let from = from.max(self.bounds()?.first);
        match self {
            Self::Sound(store) => {
                let found = store.read(from - 1, limit)?;
                Ok(found.into_iter().map(|(sequence, bytes)| (sequence, Ok(bytes))).collect())
            }
            Self::Salvaged(salvage) => Ok(salvage.read(from, limit)),
            Self::None => Ok(vec![]),
        }
    }
}

struct Stored {
    dir: PathBuf,
    records: Arc<Mutex<Records>>,
    unsound: Option<String>,
}

impl Stored {
    async fn records<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Records) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let records = self.records.clone();
        blocking(move || work(&mut records.lock().unwrap_or_else(PoisonError::into_inner))).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    let worked = tokio::task::spawn_blocking(work).await;
    worked.unwrap_or_else(|error| Err(LogError::Unavailable(format!("work on the log's file: {error}"))))
}

#[async_trait]
impl StoredLog for Stored {
    async fn bounds(&self) -> Result<Bounds, LogError> {
        self.records(Records::bounds).await
    }

    async fn read(&self, from: u64, limit: usize) -> Result<Vec<Found>, LogError> {
        self.records(move |records| records.read(from, limit)).await
    }

    async fn snapshots(&self) -> Result<Vec<u64>, LogError> {
        let mut found = super::on_files(&self.dir, snapshots::list).await?;
        found.reverse();
        Ok(found)
    }

    async fn snapshot(&self, sequence: u64) -> Result<Snapshot, LogError> {
        super::on_files(&self.dir, move |dir| snapshots::read(dir, sequence)).await
    }

    fn unsound(&self) -> Option<&str> {
        self.unsound.as_deref()
    }
}

/// A new log, written beside the one it replaces.
struct Draft {
    dir: PathBuf,
    /// Closed before the file gets its name.
    database: Option<Arc<Database>>,
    first: u64,
    next: u64,
    /// The log it replaces, where that can be opened: nobody else can meanwhile.
    held: Option<Store>,
    replaces: bool,
    is_done: bool,
}

impl Draft {
    fn begin(dir: PathBuf, first: u64, replaces: bool) -> Result<Self, BusError> {
        let (path, draft) = (dir.join(LOG_FILE), dir.join(DRAFT));
        let failed = |path: &Path, reason: String| BusError::Open { path: path.to_owned(), reason };
        std::fs::create_dir_all(&dir).map_err(|error| failed(&dir, error.to_string()))?;
        let held = match path.exists().then(|| Store::open(&dir)).transpose() {
            Ok(Some(_)) if !replaces => return Err(failed(&path, "there is a log already".to_owned())),
            Ok(held) => held,
            // Nobody can open it, so nobody need be kept out.
            Err(BusError::Corrupt { .. }) if replaces => None,
            Err(error) => return Err(error),
        };
        // What an earlier attempt left.
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(&draft, error.to_string())),
            _ => {}
        }
        let database = make(&draft, first).map_err(|error| failed(&draft, error.to_string()))?;
        let database = Arc::new(database);
        Ok(Self { dir, database: Some(database), first, next: first, held, replaces, is_done: false })
    }

    fn finish(&mut self, snapshots: &[Snapshot]) -> Result<(), LogError> {
        let (dir, path, draft) = (&self.dir, self.dir.join(LOG_FILE), self.dir.join(DRAFT));
        let failed = |error: std::io::Error| LogError::Unavailable(format!("put a log in {}: {error}", dir.display()));
        // Closed properly, and on the disk before anything goes that it replaces.
        drop(self.database.take());
        File::open(&draft).and_then(|file| file.sync_all()).map_err(failed)?;
        if let Some(held) = &mut self.held {
            // Until the new one has its name, a process that dies between leaves what no process opens.
            held.mark_restoring()?;
        }
        for old in snapshots::list(dir).map_err(failed)? {
            std::fs::remove_file(snapshots::path(dir, old)).map_err(failed)?;
        }
        for snapshot in snapshots {
            snapshots::write(dir, snapshot).map_err(failed)?;
        }
        if self.replaces {
            std::fs::rename(&draft, &path).map_err(failed)?;
        } else {
            // Fails when a process has made a log there meanwhile.
            std::fs::hard_link(&draft, &path).and_then(|()| std::fs::remove_file(&draft)).map_err(failed)?;
        }
        self.is_done = true;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        drop(self.database.take());
        if !self.is_done {
            std::fs::remove_file(self.dir.join(DRAFT)).ok();
        }
    }
}

#[async_trait]
impl NewLog for Draft {
    fn record_bytes_max(&self) -> usize {
        RECORD_BYTES_MAX
    }

    async fn append(&mut self, records: Vec<Bytes>) -> Result<(), LogError> {
        records.iter().try_for_each(|record| check_size(record, RECORD_BYTES_MAX))?;
        let database = self.database.clone().ok_or_else(|| LogError::Unavailable("it is finished".to_owned()))?;
        let (first, next) = (self.next, self.next + records.len() as u64);
        blocking(move || {
            let failed = |error: redb::Error| LogError::Unavailable(format!("write {DRAFT}: {error}"));
            insert(&database, first, &records).map_err(failed)
        })
        .await?;
        self.next = next;
        Ok(())
    }

    async fn finish(mut self: Box<Self>, snapshots: Vec<Snapshot>) -> Result<(), LogError> {
        assert!(self.next > self.first, "what new records are numbered after is a record");
        blocking(move || Self::finish(&mut self, &snapshots)).await
    }
}

/// An empty log whose first record will be `first`.
fn make(path: &Path, first: u64) -> Result<Database, redb::Error> {
    let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create(path)?;
    let write = database.begin_write()?;
    {
        let mut about = write.open_table(ABOUT)?;
        about.insert("format", FORMAT)?;
        about.insert(FIRST, first)?;
        write.open_table(RECORDS)?;
    }
    write.commit()?;
    Ok(database)
}

fn insert(database: &Database, first: u64, records: &[Bytes]) -> Result<(), redb::Error> {
    let mut write = database.begin_write()?;
    write.set_durability(Durability::Immediate)?;
    {
        let mut table = write.open_table(RECORDS)?;
        for (sequence, record) in (first..).zip(records) {
            table.insert(sequence, record.as_ref())?;
        }
    }
    write.commit()?;
    Ok(())
}

impl Store {
    /// Has every process refuse the file.
    fn mark_restoring(&mut self) -> Result<(), LogError> {
        let mark = |database: &Database| -> Result<(), redb::Error> {
            let mut write = database.begin_write()?;
            write.set_durability(Durability::Immediate)?;
            write.open_table(ABOUT)?.insert("format", RESTORING)?;
            write.commit()?;
            Ok(())
        };
        mark(self.database()?).map_err(|error| LogError::Unavailable(format!("write {LOG_FILE}: {error}")))
    }
}
