//! Uploads whose connection broke, kept so that their clients can go on from there.
//!
//! An upload belongs to the connection that receives it, or it is parked here, and at each address at most one of the two
//! is known. What is parked is a courtesy to its client and must cost nobody else: it ends with its round, is limited in
//! number and bytes, and leaves shared memory after a while, or as soon as anybody needs that. From the moment it is parked
//! it is written to a file ([`crate::shelf`]); the file stays as long as its round is open, also through the end of the
//! process. The log knows nothing of it.

use crate::context::Context;
use crate::shelf::{self, Found, KeptHead, Outgoing, Shelf, Stored};
use crate::upload::{Progress, Upload};
use catchment_ledger::AcceptOutcome;
use catchment_types::{ClientId, Code, JobUid, Problem};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// Uploads that may be parked in memory at one time: each holds a descriptor and a mapping.
const PARKED_MAX: usize = 256;
/// Uploads that may be in files at one time.
const STORED_MAX: usize = 4096;
/// Of the shared memory, the part they may take: one over this many.
const PARKED_SHARE: u64 = 2;
/// Times that one upload may be parked, so that a client which sends a byte a minute is done with some day.
const PARKINGS_MAX: u32 = 64;
/// Uploads that are written at one time: the disk is the event log's, too.
const WRITERS: usize = 2;

/// Where an update is sent to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// The job.
    pub uid: JobUid,
    /// The round.
    pub round: u64,
    /// The client.
    pub client: ClientId,
}

impl Address {
    /// Whether an update could be accepted there, now or once the job goes on.
    pub fn is_open(&self, context: &Context) -> bool {
        context.ledger.read(|state| self.is_open_in(state))
    }

    /// The same.
    pub fn is_open_in(&self, state: &catchment_ledger::State) -> bool {
        match state.judge(self.uid, self.round, &self.client, None) {
            None => true,
            // A job that is paused goes on, with the same round.
            Some(AcceptOutcome::WrongState(job)) => !job.is_over(),
            Some(_) => false,
        }
    }
}

/// Uploads by address: who receives them, or that nobody does.
pub struct Parking {
    table: Mutex<Table>,
    /// Told whenever a connection lets go of an upload, or one is in its file.
    changed: Notify,
    /// Told whenever shared memory may be had.
    room: Arc<Notify>,
    time: Duration,
    bytes_max: u64,
    shelf: Option<Arc<Shelf>>,
    writers: Arc<Semaphore>,
    this: Weak<Self>,
}

#[derive(Default)]
struct Table {
    live: HashMap<Address, Receiver>,
    parked: HashMap<Address, Parked>,
    stored: HashMap<Address, InFile>,
    /// On their way to files, by the order in which they were parked.
    writing: HashMap<u64, Writing>,
    /// Numbers that were given out.
    numbers: u64,
    /// Something waits for the next to expire.
    is_timed: bool,
    is_closed: bool,
}

struct Receiver {
    number: u64,
    stop: CancellationToken,
}

struct Parked {
    upload: Upload,
    since: Instant,
    parkings: u32,
}

struct InFile {
    stored: Stored,
    /// A higher one was parked later.
    order: u64,
}

struct Writing {
    address: Address,
    standstill: Standstill,
    bytes: u64,
    /// Another update came to its address, or none is taken there any more.
    unwanted: CancellationToken,
}

/// An upload that its client goes on with.
pub enum Taken<'p> {
    /// It was in shared memory.
    Memory(Live<'p>, Box<Upload>),
    /// It is in a file, which stays until the upload is parked again, is accepted or is refused.
    File(Live<'p>, Stored),
}

/// How far an upload is that nobody receives, and the digest that its body shall have, if that was said.
#[derive(Debug, Clone, Copy)]
pub struct Standstill {
    /// How far.
    pub progress: Progress,
    /// The digest.
    pub body_digest: Option<catchment_types::Digest>,
}

impl Parking {
    /// Keeps uploads in memory for `time`, beside a budget of `budget_bytes` of shared memory, and in files on `shelf`, where
    /// these were found. Tells `room` when memory may be had.
    pub fn new(time: Duration, budget_bytes: u64, shelf: Option<(Shelf, Found)>, room: Arc<Notify>) -> Arc<Self> {
        let (shelf, found) = shelf.map_or((None, Vec::new()), |(shelf, found)| (Some(Arc::new(shelf)), found));
        let mut table = Table::default();
        for (address, stored) in found {
            let order = table.number();
            table.stored.insert(address, InFile { stored, order });
        }
        Arc::new_cyclic(|this| Self {
            table: Mutex::new(table),
            changed: Notify::new(),
            room,
            time,
            bytes_max: budget_bytes / PARKED_SHARE,
            shelf,
            writers: Arc::new(Semaphore::new(WRITERS)),
            this: this.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the head of an update's file, which its own file will need.
    pub fn keep_head(&self, head: &[u8]) -> Option<KeptHead> {
        self.shelf.as_ref()?.keep_head(head)
    }

    /// Notes that a connection receives an upload. Whatever was known at its address is no longer: a parked upload is
    /// gone, and one that another connection receives will not be parked.
    pub fn begin(&self, address: Address) -> Live<'_> {
        let mut table = self.lock();
        let gone = table.forget(&address);
        let live = self.receiver(&mut table, address, 0);
        drop(table);
        gone.end();
        live
    }

    fn receiver(&self, table: &mut Table, address: Address, parkings: u32) -> Live<'_> {
        let (number, stop) = (table.number(), CancellationToken::new());
        table.live.insert(address.clone(), Receiver { number, stop: stop.clone() });
        Live { parking: self, address, number, stop, parkings }
    }

    /// Takes a parked upload for a connection that goes on with it, if `fits` is content with it.
    ///
    /// # Errors
    /// `not_found` when nothing is known of it, `wrong_offset` when another connection has it, and what `fits` says: it
    /// stays parked then.
    pub fn resume(
        &self,
        address: Address,
        fits: impl FnOnce(Standstill) -> Result<(), Problem>,
    ) -> Result<Taken<'_>, Problem> {
        let mut table = self.lock();
        if table.live.contains_key(&address) {
            let detail = "another connection sends this update; HEAD on its address takes it over";
            return Err(Problem::new(Code::WrongOffset, detail));
        }
        fits(table.standstill(&address).ok_or_else(unknown)?)?;
        if let Some(Parked { upload, parkings, .. }) = table.parked.remove(&address) {
            return Ok(Taken::Memory(self.receiver(&mut table, address, parkings), Box::new(upload)));
        }
        if table.is_written(&address) {
            // Somebody needed its memory meanwhile.
            return Err(Problem::new(Code::NotReady, "the update is on its way to the disk: ask again"));
        }
        let stored = table.stored.get(&address).ok_or_else(unknown)?.stored.clone();
        let live = self.receiver(&mut table, address, stored.parkings);
        Ok(Taken::File(live, stored))
    }

    /// Makes the connection that receives this upload let go of it: its client asks on another one, so it has given that
    /// one up. Returns whether nobody receives it now.
    pub async fn settle(&self, address: &Address, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            let changed = self.changed.notified();
            match self.lock().live.get(address) {
                None => return true,
                Some(receiver) => receiver.stop.cancel(),
            }
            if timeout_at(until, changed).await.is_err() {
                return false;
            }
        }
    }

    /// Whether an upload is parked at an address, or a connection sends one.
    pub fn knows(&self, address: &Address) -> bool {
        let table = self.lock();
        table.standstill(address).is_some() || table.live.contains_key(address)
    }

    /// How far a parked upload is.
    pub fn progress(&self, address: &Address) -> Option<Progress> {
        self.lock().standstill(address).map(|standstill| standstill.progress)
    }

    /// Drops what is parked at an address.
    pub fn forget(&self, address: &Address) {
        let gone = self.lock().forget(address);
        gone.end();
    }

    /// Takes an upload out of shared memory: the one that was parked first of those in files. While some are still on their
    /// way there, the others are dropped only `at_once`. Returns whether there was one.
    pub fn give_way(&self, at_once: bool) -> bool {
        let gone = {
            let mut table = self.lock();
            let stored = |table: &Table| {
                let in_file = |(address, parked): &(&Address, &Parked)| table.is_stored(address, parked);
                table.oldest(in_file)
            };
            let oldest = match stored(&table) {
                None if at_once || table.writing.is_empty() => table.oldest(|_| true),
                stored => stored,
            };
            oldest.and_then(|address| table.parked.remove(&address))
        };
        if let Some(Parked { upload, .. }) = &gone {
            tracing::info!(slab = %upload.slab_id(), "parked upload gives way");
        }
        gone.is_some()
    }

    /// Drops every upload of an address that is not `open`.
    pub fn retain(&self, open: impl Fn(&Address) -> bool) {
        let parked: HashSet<Address> = {
            let table = self.lock();
            let written = table.writing.values().map(|writing| &writing.address);
            table.parked.keys().chain(table.stored.keys()).chain(written).cloned().collect()
        };
        // Asked without the lock: the answer is the ledger's, whose readers may be waiting for it.
        let over: Vec<Address> = parked.into_iter().filter(|address| !open(address)).collect();
        if over.is_empty() {
            return;
        }
        let gone: Vec<Gone> = {
            let mut table = self.lock();
            over.iter().map(|address| table.forget(address)).collect()
        };
        gone.into_iter().for_each(Gone::end);
    }

    /// Drops everything, for good. What is in files stays there for the next process.
    pub fn close(&self) {
        let mut table = self.lock();
        table.is_closed = true;
        let gone = std::mem::take(&mut table.parked);
        table.stored.clear();
        drop(table);
        drop(gone);
    }

    /// Waits until what is parked is in files, for `limit` at most.
    pub async fn written(&self, limit: Duration) {
        let until = Instant::now() + limit;
        loop {
            let changed = self.changed.notified();
            if self.lock().writing.is_empty() || timeout_at(until, changed).await.is_err() {
                return;
            }
        }
    }

    /// Uploads that are parked, by job: all of them, and those in files.
    pub fn counts(&self) -> HashMap<JobUid, (i64, i64)> {
        let mut counts: HashMap<JobUid, (i64, i64)> = HashMap::new();
        let table = self.lock();
        for address in table.stored.keys() {
            // While somebody goes on with it, its file is only there for the case that this process ends.
            if !table.live.contains_key(address) {
                let count = counts.entry(address.uid).or_default();
                *count = (count.0 + 1, count.1 + 1);
            }
        }
        for address in table.parked.keys().filter(|address| !table.stored.contains_key(address)) {
            counts.entry(address.uid).or_default().0 += 1;
        }
        counts
    }

    /// Takes out what has expired, and says when the next will; `None` when nothing is left.
    fn take_expired(&self) -> (Vec<Parked>, Option<Instant>) {
        let mut table = self.lock();
        let end = Instant::now();
        let gone = table.parked.extract_if(|_, parked| parked.since + self.time <= end).map(|(_, parked)| parked);
        let gone = gone.collect();
        let next = table.parked.values().map(|parked| parked.since + self.time).min();
        table.is_timed = next.is_some();
        (gone, next)
    }

    /// Makes room for a file of so many bytes among those there are. Returns whether there is some, and those that have
    /// given way for it.
    fn reserve(&self, table: &mut Table, bytes: u64) -> (bool, Vec<Stored>) {
        let limit = self.shelf.as_ref().map_or(0, |shelf| shelf.bytes_max);
        let mut gone = Vec::new();
        if bytes > limit {
            return (false, gone);
        }
        loop {
            let is_full = table.stored.len() + table.writing.len() >= STORED_MAX;
            if !is_full && table.file_bytes() + bytes <= limit {
                return (true, gone);
            }
            // The oldest first; not those that are on their way, which are newer.
            let oldest = table.stored.iter().min_by_key(|(_, file)| file.order);
            let Some(address) = oldest.map(|(address, _)| address.clone()) else { return (false, gone) };
            gone.extend(table.stored.remove(&address).map(|file| file.stored));
        }
    }

    /// Writes an upload that is parked to its file.
    async fn write(self: Arc<Self>, shelf: Arc<Shelf>, order: u64, outgoing: Outgoing, unwanted: CancellationToken) {
        let (address, slab) = (outgoing.facts.address(), outgoing.reader.id());
        let _turn = self.writers.clone().acquire_owned().await.expect("never closed");
        let told = unwanted.clone();
        let written = tokio::task::spawn_blocking(move || shelf.write(outgoing, &told)).await;
        let written = written.map_err(std::io::Error::other).and_then(|written| written);
        let mut table = self.lock();
        table.writing.remove(&order);
        let is_newest = table.stored.get(&address).is_none_or(|file| file.order < order);
        let mut gone = None;
        match written {
            Ok(stored) if unwanted.is_cancelled() || !is_newest => gone = Some(stored),
            // It stays for the next process: this one ends.
            Ok(_) if table.is_closed => {}
            Ok(stored) => {
                tracing::debug!(%slab, bytes = stored.bytes, "parked upload is in its file");
                gone = table.stored.insert(address, InFile { stored, order }).map(|older| older.stored);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => tracing::warn!(%slab, %error, "a parked upload stays in memory for a while only"),
        }
        drop(table);
        self.changed.notify_waiters();
        // Whoever waits for room gets what is in a file now.
        self.room.notify_waiters();
        if let Some(stored) = gone {
            remove(vec![stored]);
        }
    }
}

impl Table {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn standstill(&self, address: &Address) -> Option<Standstill> {
        if let Some(Parked { upload, .. }) = self.parked.get(address) {
            return upload.standstill();
        }
        let written = self.writing.iter().filter(|(_, writing)| writing.address == *address);
        if let Some((_, writing)) = written.max_by_key(|(order, _)| **order) {
            return Some(writing.standstill);
        }
        let Stored { offset, length, body_digest, .. } = self.stored.get(address)?.stored;
        Some(Standstill { progress: Progress { offset, length }, body_digest })
    }

    fn is_written(&self, address: &Address) -> bool {
        self.writing.values().any(|writing| writing.address == *address)
    }

    /// Whether an upload in memory is in a file as it is.
    fn is_stored(&self, address: &Address, parked: &Parked) -> bool {
        let at = parked.upload.progress().map(|progress| progress.offset);
        self.stored.get(address).is_some_and(|file| Some(file.stored.offset) == at)
    }

    fn oldest(&self, of: impl Fn(&(&Address, &Parked)) -> bool) -> Option<Address> {
        let oldest = self.parked.iter().filter(of).min_by_key(|(_, parked)| parked.since);
        oldest.map(|(address, _)| address.clone())
    }

    fn bytes(&self) -> u64 {
        self.parked.values().map(|parked| parked.upload.slab_bytes()).sum()
    }

    fn file_bytes(&self) -> u64 {
        let stored: u64 = self.stored.values().map(|file| file.stored.bytes).sum();
        stored + self.writing.values().map(|writing| writing.bytes).sum::<u64>()
    }

    fn forget(&mut self, address: &Address) -> Gone {
        let (parked, stored) = (self.parked.remove(address), self.stored.remove(address));
        self.writing
            .values()
            .filter(|writing| writing.address == *address)
            .for_each(|writing| writing.unwanted.cancel());
        Gone { parked, stored: stored.map(|file| file.stored) }
    }
}

/// What is known no longer; dropped without the lock.
struct Gone {
    parked: Option<Parked>,
    stored: Option<Stored>,
}

impl Gone {
    fn end(self) {
        drop(self.parked);
        remove(self.stored.into_iter().collect());
    }
}

/// Removes files on a thread that may block.
fn remove(files: Vec<Stored>) {
    if !files.is_empty() {
        tokio::task::spawn_blocking(move || files.iter().for_each(|stored| shelf::remove(&stored.path)));
    }
}

/// There is nothing to go on with.
pub fn unknown() -> Problem {
    Problem::new(Code::NotFound, "nothing is kept of this update: PUT it whole")
}

/// Drops uploads from memory when their time there is over, as long as there are any.
async fn expire(parking: Weak<Parking>) {
    loop {
        let Some((gone, next)) = parking.upgrade().map(|parking| parking.take_expired()) else { return };
        drop(gone);
        let Some(next) = next else { return };
        tokio::time::sleep_until(next).await;
    }
}

/// An upload that a connection receives.
pub struct Live<'p> {
    parking: &'p Parking,
    address: Address,
    number: u64,
    stop: CancellationToken,
    parkings: u32,
}

impl Live<'_> {
    /// Returns once somebody else asks for it.
    pub async fn taken_over(&self) {
        self.stop.cancelled().await;
    }

    /// Nothing will ever come of it: it is accepted, or refused for good.
    pub fn over(self) {
        let mut table = self.parking.lock();
        let gone = self.is_ours(&table).then(|| table.forget(&self.address));
        drop(table);
        gone.into_iter().for_each(Gone::end);
    }

    fn is_ours(&self, table: &Table) -> bool {
        table.live.get(&self.address).is_some_and(|receiver| receiver.number == self.number)
    }

    /// Parks it, unless another connection has begun the same one anew, it was parked too often, or its address is not
    /// `open` any more. Returns whether it is.
    pub fn park(self, upload: Upload, open: impl FnOnce(&Address) -> bool) -> bool {
        let (parking, address) = (self.parking, self.address.clone());
        let Some(standstill) = upload.standstill() else { return false };
        let (mut gone, parkings) = (Vec::new(), self.parkings + 1);
        let outgoing = parking.shelf.clone().zip(upload.outgoing(parkings));
        let mut table = parking.lock();
        let is_ours = self.is_ours(&table);
        let fits = upload.slab_bytes() <= parking.bytes_max;
        if !is_ours || !fits || table.is_closed || self.parkings >= PARKINGS_MAX {
            let forgotten = (is_ours && self.parkings >= PARKINGS_MAX).then(|| table.forget(&address));
            drop(table);
            forgotten.into_iter().for_each(Gone::end);
            return false;
        }
        while table.parked.len() >= PARKED_MAX || table.bytes() + upload.slab_bytes() > parking.bytes_max {
            let oldest = table.oldest(|_| true).expect("what fits alone fits once the others are gone");
            gone.extend(table.parked.remove(&oldest));
        }
        let order = table.number();
        let (mut files, unwanted) = (Vec::new(), CancellationToken::new());
        let outgoing = outgoing.filter(|(_, outgoing)| {
            let bytes = outgoing.bytes();
            let (is_room, given_way) = parking.reserve(&mut table, bytes);
            files = given_way;
            if is_room {
                let (address, unwanted) = (address.clone(), unwanted.clone());
                table.writing.insert(order, Writing { address, standstill, bytes, unwanted });
            }
            is_room
        });
        table.live.remove(&address);
        let since = Instant::now();
        table.parked.insert(address.clone(), Parked { upload, since, parkings });
        if !std::mem::replace(&mut table.is_timed, true) {
            tokio::spawn(expire(parking.this.clone()));
        }
        drop(table);
        drop(gone);
        remove(files);
        if let Some((shelf, outgoing)) = outgoing {
            let parking = parking.this.upgrade().expect("it is borrowed");
            tokio::spawn(parking.write(shelf, order, outgoing, unwanted));
        }
        let Progress { offset, length } = standstill.progress;
        tracing::info!(offset, length, "upload parked");
        // Asked last, so that a round which ends meanwhile finds it here, or is found to have ended.
        let is_open = open(&address);
        if !is_open {
            parking.forget(&address);
        }
        is_open
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        let mut table = self.parking.lock();
        if self.is_ours(&table) {
            table.live.remove(&self.address);
        }
        drop(table);
        self.parking.changed.notify_waiters();
    }
}
