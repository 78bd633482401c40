//! The store: grants, look-ups and releases.

use crate::accumulator::Accumulator;
use crate::directory::Directory;
use crate::error::SlabError;
use crate::extent::{Extent, HUGE_BYTES};
use crate::header::{Kind, check_meta};
use crate::owner::Owner;
use crate::recover;
use crate::shared::{Hold, Inner};
use crate::slab::{Slab, SlabMut};
use crate::table::Usage;
use catchment_types::SlabId;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most control words an accumulator may have: 8 MiB of them.
pub const CONTROL_WORDS_MAX: usize = 1 << 20;

/// Where a store lives and how large it may grow.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The store's own directory, on a tmpfs; made if missing. Nothing else may write there.
    pub dir: PathBuf,
    /// Most bytes of all its files together, headers, rounding and free files included. Keep it below what the file
    /// system and the process's cgroup allow: past a cgroup's limit the kernel kills rather than refuses.
    pub budget_bytes: u64,
}

/// What a store found when it was opened, by index.
#[derive(Debug)]
pub struct Recovered {
    /// Every slab that was frozen and not released.
    pub slabs: Vec<Slab>,
    /// Every accumulator that was not released.
    pub accumulators: Vec<Accumulator>,
}

/// The slabs of one node. Clones are the same store.
#[derive(Debug, Clone)]
pub struct SlabStore {
    inner: Arc<Inner>,
}

impl SlabStore {
    /// Opens the store in `config.dir`, or begins one, and takes it for this process until the store and every
    /// handle from it are dropped. Frozen slabs and accumulators are given back; slabs that were being written are
    /// reclaimed, released ones reused.
    ///
    /// # Errors
    /// [`SlabError::InUse`], [`SlabError::Denied`], [`SlabError::NewerVersion`] and, for the store's own record,
    /// [`SlabError::Damaged`]; nothing has been changed then.
    pub fn open(config: StoreConfig) -> Result<(Self, Recovered), SlabError> {
        let directory = Directory::open(&config.dir)?;
        let (table, found) = recover::recover(&directory, config.budget_bytes)?;
        let inner = Arc::new(Inner::new(directory, table));
        let recovered = found.into_handles(&inner)?;
        Ok((Self { inner }, recovered))
    }

    /// Grants `owner` a slab for an update of `len_bytes` bytes, its pages ready to be written. Blocks for a few
    /// milliseconds per 100 MB over a recycled file, some ten over another owner's and some hundred over a fresh one,
    /// outside the store's lock.
    ///
    /// # Errors
    /// [`SlabError::NoRoom`], which passes; and what the system refuses.
    pub fn grant(&self, owner: Owner, len_bytes: u64) -> Result<SlabMut, SlabError> {
        self.grant_sparing(owner, len_bytes, 0)
    }

    /// The same, if `spare_bytes` of the budget are still free afterwards: for those whose work gives memory back.
    ///
    /// # Errors
    /// As [`SlabStore::grant`].
    pub fn grant_sparing(&self, owner: Owner, len_bytes: u64, spare_bytes: u64) -> Result<SlabMut, SlabError> {
        let extent = self.inner.extent(0, len_bytes)?;
        let (hold, file, file_bytes) = self.inner.place(owner, Kind::Update, extent, spare_bytes, &[])?;
        SlabMut::new(hold, file, file_bytes, extent)
    }

    /// Grants `owner` an accumulator with `control_words` zeroed words and `data_len` bytes of data, which holds zeros
    /// or whatever an earlier use of the same owner left there. It is kept, like a frozen slab, from the moment this
    /// returns.
    ///
    /// # Errors
    /// [`SlabError::NoRoom`], [`SlabError::MetaTooLong`], [`SlabError::ControlTooLong`]; and what the system refuses.
    pub fn grant_accumulator(
        &self,
        owner: Owner,
        control_words: usize,
        data_len: u64,
        meta: &[u8],
    ) -> Result<Accumulator, SlabError> {
        check_meta(meta)?;
        if control_words > CONTROL_WORDS_MAX {
            return Err(SlabError::ControlTooLong { words: control_words, limit: CONTROL_WORDS_MAX });
        }
        let extent = self.inner.extent(control_words as u64, data_len)?;
        let (hold, file, _) = self.inner.place(owner, Kind::Accumulator, extent, 0, meta)?;
        Accumulator::begin(hold, file, extent, meta)
    }

    /// The frozen slab of exactly this id; `None` once it is released, and for every other generation.
    pub fn get(&self, id: SlabId) -> Option<Slab> {
        let facts = self.inner.table().hold_frozen(id)?;
        Some(Slab::new(Hold { store: Arc::clone(&self.inner), id }, facts))
    }

    /// Ends the store's own hold on a frozen slab or an accumulator: [`SlabStore::get`] and a restart no longer find
    /// it, and its memory becomes free when the last handle is gone. Returns whether there was one to release, so
    /// repeating it is harmless.
    pub fn release(&self, id: SlabId) -> bool {
        let Some(place) = self.inner.table().end_keep(id) else { return false };
        if let Err(error) = self.inner.mark_free(place) {
            tracing::warn!(slab = %id, %error, "a released slab could not be marked; a restart would find it again");
        }
        self.inner.let_go(id);
        true
    }

    /// Bytes by state.
    pub fn usage(&self) -> Usage {
        self.inner.table().usage()
    }

    /// Whether a wish for so much data may have to wait for other files to be unlinked.
    pub fn is_crowded(&self, data_len: u64) -> bool {
        let usage = self.usage();
        let wanted_bytes = Self::file_bytes(0, data_len).saturating_add(HUGE_BYTES);
        usage.in_use_bytes().saturating_add(usage.free_bytes).saturating_add(wanted_bytes) > usage.budget_bytes
    }

    /// Large files that were made of huge pages since the store was opened, and those that could not be.
    pub fn huge_files(&self) -> (u64, u64) {
        self.inner.directory.huge_files()
    }

    /// Bytes that a file with so many control words and so much data takes of the budget.
    pub fn file_bytes(control_words: usize, data_len: u64) -> u64 {
        Extent::new(control_words as u64, data_len).map_or(u64::MAX, Extent::file_bytes)
    }

    /// Gives the free files' memory back to the system. The next grants pay for fresh pages, so this is for idle
    /// nodes.
    pub fn trim(&self) {
        self.inner.trim();
    }

    /// Another hold on the store's lock, for a process that works on its files: no other process opens the store before
    /// that one has ended too.
    ///
    /// # Errors
    /// What the system refuses (descriptors used up).
    pub fn lock(&self) -> Result<OwnedFd, SlabError> {
        self.inner.directory.record().lock()
    }

    /// Drawn at random when the directory was first used, and kept with it. A [`SlabId`] never repeats within one
    /// incarnation; when a machine comes back with its memory lost, another incarnation tells its slabs from those
    /// the log still names.
    pub fn incarnation(&self) -> u64 {
        self.inner.directory.record().incarnation()
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        self.inner.directory.path()
    }
}
