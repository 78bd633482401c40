//! Uploads whose connection broke, kept for a while so that their clients can go on from there.
//!
//! An upload belongs to the connection that receives it, or it is parked here, and at each address at most one of the two
//! is known. What is parked is a courtesy to its client and must cost nobody else: it expires, gives way as soon as
//! anybody needs its memory, ends with its round, and is limited in number and bytes. The log knows nothing of it, so a
//! restart gives its slab back like any other that was not frozen.

use crate::context::Context;
use crate::upload::{Progress, Upload};
use catchment_types::{ClientId, Code, JobUid, Problem};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// Uploads that may be parked at one time: each holds a descriptor and a mapping.
const PARKED_MAX: usize = 256;
/// Of the shared memory, the part they may take: one over this many.
const PARKED_SHARE: u64 = 2;
/// Times that one upload may be parked, so that a client which sends a byte a minute is done with some day.
const PARKINGS_MAX: u32 = 64;

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
    /// Whether an update could be accepted there.
    pub fn is_open(&self, context: &Context) -> bool {
        context.ledger.read(|state| state.judge(self.uid, self.round, &self.client, None).is_none())
    }
}

/// Uploads by address: who receives them, or that nobody does.
pub struct Parking {
    table: Mutex<Table>,
    /// Told whenever a connection lets go of an upload.
    changed: Notify,
    time: Duration,
    bytes_max: u64,
    this: Weak<Self>,
}

#[derive(Default)]
struct Table {
    live: HashMap<Address, Receiver>,
    parked: HashMap<Address, Parked>,
    /// Connections that ever received one.
    receivers: u64,
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

impl Parking {
    /// Keeps uploads for `time`, beside a budget of `budget_bytes` of shared memory.
    pub fn new(time: Duration, budget_bytes: u64) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            table: Mutex::default(),
            changed: Notify::new(),
            time,
            bytes_max: budget_bytes / PARKED_SHARE,
            this: this.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a connection receives an upload. Whatever was known at its address is no longer: a parked upload is
    /// gone, and one that another connection receives will not be parked.
    pub fn begin(&self, address: Address) -> Live<'_> {
        let mut table = self.lock();
        let gone = table.parked.remove(&address);
        let live = self.receiver(&mut table, address, 0);
        drop(table);
        drop(gone);
        live
    }

    fn receiver(&self, table: &mut Table, address: Address, parkings: u32) -> Live<'_> {
        table.receivers += 1;
        let (number, stop) = (table.receivers, CancellationToken::new());
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
        fits: impl FnOnce(&mut Upload) -> Result<(), Problem>,
    ) -> Result<(Live<'_>, Upload), Problem> {
        let mut table = self.lock();
        if table.live.contains_key(&address) {
            let detail = "another connection sends this update; HEAD on its address takes it over";
            return Err(Problem::new(Code::WrongOffset, detail));
        }
        let Entry::Occupied(mut entry) = table.parked.entry(address.clone()) else { return Err(unknown()) };
        fits(&mut entry.get_mut().upload)?;
        let Parked { upload, parkings, .. } = entry.remove();
        Ok((self.receiver(&mut table, address, parkings), upload))
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
        table.parked.contains_key(address) || table.live.contains_key(address)
    }

    /// How far a parked upload is.
    pub fn progress(&self, address: &Address) -> Option<Progress> {
        self.lock().parked.get(address).and_then(|parked| parked.upload.progress())
    }

    /// Drops what is parked at an address.
    pub fn forget(&self, address: &Address) {
        let gone = self.lock().parked.remove(address);
        drop(gone);
    }

    /// Drops the upload that was parked first. Returns whether there was one.
    pub fn give_way(&self) -> bool {
        let gone = self.lock().take_oldest();
        if let Some(Parked { upload, .. }) = &gone {
            tracing::info!(slab = %upload.slab_id(), "parked upload gives way");
        }
        gone.is_some()
    }

    /// Takes out every upload of an address that is not `open`; the caller drops them.
    #[must_use]
    pub fn take_unless(&self, open: impl Fn(&Address) -> bool) -> Vec<Upload> {
        let mut table = self.lock();
        table.parked.extract_if(|address, _| !open(address)).map(|(_, parked)| parked.upload).collect()
    }

    /// Drops everything, for good.
    pub fn close(&self) {
        let mut table = self.lock();
        table.is_closed = true;
        let gone = std::mem::take(&mut table.parked);
        drop(table);
        drop(gone);
    }

    /// Uploads that are parked, by job.
    pub fn counts(&self) -> HashMap<JobUid, i64> {
        let mut counts = HashMap::new();
        for address in self.lock().parked.keys() {
            *counts.entry(address.uid).or_default() += 1;
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
}

impl Table {
    fn take_oldest(&mut self) -> Option<Parked> {
        let oldest = self.parked.iter().min_by_key(|(_, parked)| parked.since);
        let address = oldest.map(|(address, _)| address.clone())?;
        self.parked.remove(&address)
    }

    fn bytes(&self) -> u64 {
        self.parked.values().map(|parked| parked.upload.slab_bytes()).sum()
    }
}

/// There is nothing to go on with.
pub fn unknown() -> Problem {
    Problem::new(Code::NotFound, "nothing is kept of this update: PUT it whole")
}

/// Drops uploads when their time is over, as long as there are any.
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

    /// Parks it, unless another connection has begun the same one anew, it was parked too often, or its address is not
    /// `open` any more. Returns whether it is.
    pub fn park(self, upload: Upload, open: impl FnOnce(&Address) -> bool) -> bool {
        let (parking, address) = (self.parking, self.address.clone());
        let Some(progress) = upload.progress() else { return false };
        let mut gone = Vec::new();
        let mut table = parking.lock();
        let is_ours = table.live.get(&address).is_some_and(|receiver| receiver.number == self.number);
        let fits = upload.slab_bytes() <= parking.bytes_max;
        if !is_ours || !fits || table.is_closed || self.parkings >= PARKINGS_MAX {
            return false;
        }
        while table.parked.len() >= PARKED_MAX || table.bytes() + upload.slab_bytes() > parking.bytes_max {
            gone.extend(table.take_oldest());
        }
        let (since, parkings) = (Instant::now(), self.parkings + 1);
        table.live.remove(&address);
        table.parked.insert(address.clone(), Parked { upload, since, parkings });
        if !std::mem::replace(&mut table.is_timed, true) {
            tokio::spawn(expire(parking.this.clone()));
        }
        drop(table);
        drop(gone);
        tracing::info!(offset = progress.offset, length = progress.length, "upload parked");
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
        if table.live.get(&self.address).is_some_and(|receiver| receiver.number == self.number) {
            table.live.remove(&self.address);
        }
        drop(table);
        self.parking.changed.notify_waiters();
    }
}
