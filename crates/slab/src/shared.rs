//! What every handle of a store shares, and how a grant comes by its file.
//!
//! The order of book and file operations lives here: bytes are counted before a file is made and until it is gone,
//! and a new id is on file before anyone learns it. With another order two grants could count on the same memory, or
//! a restart could give the same id twice.

use crate::directory::Directory;
use crate::error::SlabError;
use crate::extent::Extent;
use crate::header::{Header, Kind, State};
use crate::owner::Owner;
use crate::table::{Place, Step, Table};
use catchment_types::SlabId;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What every handle keeps alive: the lock on the directory lasts until the last of them is gone.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) directory: Directory,
    table: Mutex<Table>,
    /// Held while free files are unlinked for somebody, so that a second grant waits for the memory instead of
    /// being refused. Taken before `table`, never after.
    making_room: Mutex<()>,
}

/// A file for a wish.
struct Found {
    place: Place,
    file: File,
    /// Whether it may hold what another owner wrote.
    is_foreign: bool,
}

/// One hold on one use of one slab; dropping it lets go.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) store: Arc<Inner>,
    pub(crate) id: SlabId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.store.let_go(self.id);
    }
}

impl Inner {
    pub(crate) fn new(directory: Directory, table: Table) -> Self {
        Self { directory, table: Mutex::new(table), making_room: Mutex::new(()) }
    }

    /// The books, also after a panic elsewhere: no operation on them is left half-done by one.
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds or makes a file for `extent` and writes the new use into its header before anyone learns its id: an
    /// id that was seen once is on file, and never comes again.
    pub(crate) fn place(
        self: &Arc<Self>,
        owner: Owner,
        kind: Kind,
        extent: Extent,
        spare_bytes: u64,
        meta: &[u8],
    ) -> Result<(Hold, File, u64), SlabError> {
        let Found { place, file, is_foreign } = self.find_file(owner, kind, extent.file_bytes(), spare_bytes)?;
        let Place { id, file_bytes, .. } = place;
        let hold = Hold { store: Arc::clone(self), id };
        if is_foreign {
            // Before the header says whose it is now: a kill in between leaves a file that is nobody's, and is zeroed
            // again. All of the file, not the extent alone: other processes are handed the whole of it.
            self.directory.zero(&file, id.index(), file_bytes)?;
        }
        let header = Header { kind, id, file_bytes, extent, meta: meta.into() };
        self.directory.write_header(&file, &header, State::Writing)?;
        Ok((hold, file, file_bytes))
    }

    fn find_file(&self, owner: Owner, kind: Kind, wanted_bytes: u64, spare_bytes: u64) -> Result<Found, SlabError> {
        let mut system_was_full = false;
        // Each turn ends here, takes a damaged file off the books, or is the second with the system full.
        loop {
            if let Some((place, is_foreign)) = self.make_room(owner, kind, wanted_bytes, spare_bytes)? {
                if let Some(file) = self.open_recycled(place)? {
                    return Ok(Found { place, file, is_foreign });
                }
                continue;
            }
            match self.make_file(owner, kind, wanted_bytes) {
                // The kernel zeroes what it gives.
                Ok(Some((place, file))) => return Ok(Found { place, file, is_foreign: false }),
                Ok(None) if system_was_full => {
                    return Err(self.no_room(wanted_bytes, self.directory.available_bytes()));
                }
                Ok(None) => {
                    system_was_full = true;
                    self.trim();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A free file in its new use and whether another owner used it last, or nothing and `wanted_bytes` reserved for a
    /// new one.
    fn make_room(
        &self,
        owner: Owner,
        kind: Kind,
        wanted_bytes: u64,
        spare_bytes: u64,
    ) -> Result<Option<(Place, bool)>, SlabError> {
        let mut turn = None;
        loop {
            let step = self.table().step(owner, kind, wanted_bytes, spare_bytes);
            match (step, &turn) {
                (Step::Recycled { place, is_foreign }, _) => return Ok(Some((place, is_foreign))),
                (Step::Reserved, _) => return Ok(None),
                (Step::Full { free_bytes }, _) => return Err(self.no_room(wanted_bytes, free_bytes)),
                // Look again with the turn: whoever had it may have made the room.
                (Step::Crowded { .. }, None) => turn = Some(self.take_turn()),
                (Step::Crowded { shortfall_bytes }, Some(_)) => {
                    let victim = self.table().take_free(shortfall_bytes);
                    self.unlink_free(victim.ok_or_else(|| self.no_room(wanted_bytes, 0))?);
                }
            }
        }
    }

    fn take_turn(&self) -> MutexGuard<'_, ()> {
        self.making_room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a recycled file; nothing, and no trace of it in the books, if somebody removed or cut it.
    fn open_recycled(&self, place: Place) -> Result<Option<File>, SlabError> {
        match self.directory.open_to_write(place.id.index(), place.file_bytes) {
            Ok(file) => Ok(Some(file)),
            Err(error @ SlabError::Damaged { .. }) => {
                tracing::warn!(%error, "a free slab is dropped");
                self.directory.unlink_slab(place.id.index());
                self.table().strike_granted(place);
                Ok(None)
            }
            Err(error) if is_missing(&error) => {
                tracing::warn!(%error, "a free slab is gone; keep other programs out of the store");
                self.table().strike_granted(place);
                Ok(None)
            }
            Err(error) => {
                self.let_go(place.id);
                Err(error)
            }
        }
    }

    /// Makes the file for reserved bytes and enters it, or gives the reservation up.
    fn make_file(&self, owner: Owner, kind: Kind, file_bytes: u64) -> Result<Option<(Place, File)>, SlabError> {
        let made = self.directory.record().new_index().and_then(|index| {
            let index = index.ok_or_else(|| SlabError::NamesUsedUp { dir: self.directory.path().to_owned() })?;
            Ok(self.directory.create_slab(index, file_bytes)?.map(|file| (index, file)))
        });
        let mut table = self.table();
        match made {
            Ok(Some((index, file))) => {
                let place = Place { id: SlabId::new(index, 1), file_bytes, kind, owner: Some(owner) };
                table.enter_granted(place);
                Ok(Some((place, file)))
            }
            Ok(None) => {
                table.unreserve(file_bytes);
                Ok(None)
            }
            Err(error) => {
                table.unreserve(file_bytes);
                Err(error)
            }
        }
    }

    pub(crate) fn mark_free(&self, place: Place) -> Result<(), SlabError> {
        let index = place.id.index();
        let file = self.directory.open_to_write(index, place.file_bytes)?;
        self.directory.write_state(&file, index, State::Free)
    }

    pub(crate) fn let_go(&self, id: SlabId) {
        let spent = self.table().let_go(id);
        if let Some(place) = spent {
            self.unlink_free(place);
        }
    }

    fn unlink_free(&self, place: Place) {
        self.directory.unlink_slab(place.id.index());
        self.table().forget_free(place);
    }

    pub(crate) fn trim(&self) {
        let _turn = self.take_turn();
        loop {
            let victim = self.table().take_free(0);
            let Some(place) = victim else { return };
            self.unlink_free(place);
        }
    }

    fn no_room(&self, wanted_bytes: u64, free_bytes: u64) -> SlabError {
        SlabError::NoRoom {
            dir: self.directory.path().to_owned(),
            wanted_bytes,
            free_bytes,
            budget_bytes: self.table().usage().budget_bytes,
        }
    }

    /// The extent of a wish; one that no file could hold is past any budget.
    pub(crate) fn extent(&self, control_words: u64, data_len: u64) -> Result<Extent, SlabError> {
        Extent::new(control_words, data_len).ok_or_else(|| {
            let usage = self.table().usage();
            self.no_room(u64::MAX, usage.budget_bytes.saturating_sub(usage.in_use_bytes()))
        })
    }
}

fn is_missing(error: &SlabError) -> bool {
    matches!(error, SlabError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}
