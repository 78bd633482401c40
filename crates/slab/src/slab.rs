//! The two lives of a slab: granted, with one writer; frozen, with any number of readers.

use crate::error::SlabError;
use crate::extent::Extent;
use crate::header::{Header, Kind, State, check_meta};
use crate::map::{ReadMap, WriteMap};
use crate::shared::Hold;
use crate::table::Facts;
use catchment_types::SlabId;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

/// A granted slab: its one owner writes an update into it, then freezes it. Dropped unfrozen, as when a client hangs
/// up half-way, it goes back to the store.
// Fields drop in this order: the mapping is gone before the hold ends and the file can serve another.
#[derive(Debug)]
pub struct SlabMut {
    map: WriteMap,
    file: File,
    file_bytes: u64,
    extent: Extent,
    hold: Hold,
}

impl SlabMut {
    pub(crate) fn new(hold: Hold, file: File, file_bytes: u64, extent: Extent) -> Result<Self, SlabError> {
        let path = hold.store.directory.slab_path(hold.id.index());
        let mut map =
            WriteMap::new(&file, extent.data_offset(), extent.data_room()).map_err(SlabError::doing("map", &path))?;
        // Windows show whole pages: what an earlier update left behind this one's end must not show.
        map.bytes_mut()[extent.data_len() as usize..].fill(0);
        Ok(Self { map, file, file_bytes, extent, hold })
    }

    /// This use of the slab.
    pub fn id(&self) -> SlabId {
        self.hold.id
    }

    /// Bytes of the update, as granted.
    pub fn len(&self) -> u64 {
        self.extent.data_len()
    }

    /// Whether the update has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The update's bytes, beginning on a page. They hold zeros or whatever an earlier use of the same owner left; the
    /// writer sets every one of them, gaps between tensors included, because functions will see them all.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.extent.data_len() as usize;
        &mut self.map.bytes_mut()[..len]
    }

    /// Reads what is written, on another thread: its memory serves nobody else before that is dropped, whatever becomes
    /// of this.
    ///
    /// # Errors
    /// What the system refuses (descriptors used up).
    pub fn reader(&self) -> Result<SlabReader, SlabError> {
        let Self { file, extent, hold, .. } = self;
        let path = hold.store.directory.slab_path(hold.id.index());
        let file = file.try_clone().map_err(SlabError::doing("duplicate the descriptor of", &path))?;
        hold.store.table().hold_granted(hold.id);
        let hold = Hold { store: Arc::clone(&hold.store), id: hold.id };
        Ok(SlabReader { file, extent: *extent, hold })
    }

    /// Ends writing for good and gives the slab, with `meta` in its header, to the store: from here on it outlives
    /// this process.
    ///
    /// # Errors
    /// [`SlabError::MetaTooLong`] and what the system refuses; the slab is then back in the store, unfrozen.
    pub fn freeze(self, meta: &[u8]) -> Result<Slab, SlabError> {
        check_meta(meta)?;
        let Self { map, file, file_bytes, extent, hold } = self;
        drop(map);
        let facts = Arc::new(Facts { id: hold.id, file_bytes, extent, meta: meta.into() });
        let header = Header { kind: Kind::Update, id: hold.id, file_bytes, extent, meta: meta.into() };
        let directory = &hold.store.directory;
        directory.write_header(&file, &header, State::Writing)?;
        directory.write_state(&file, hold.id.index(), State::Kept)?;
        drop(file);
        hold.store.table().freeze(&facts);
        Ok(Slab::new(hold, facts))
    }
}

/// Reads a granted slab beside its writer, through the file: bytes that the writer sets meanwhile may be old or new.
// Fields drop in this order: the descriptor is gone before the hold ends and the file can serve another.
#[derive(Debug)]
pub struct SlabReader {
    file: File,
    extent: Extent,
    hold: Hold,
}

impl SlabReader {
    /// Which use of the slab it reads.
    pub fn id(&self) -> SlabId {
        self.hold.id
    }

    /// Reads the update's bytes from `at` on.
    ///
    /// # Errors
    /// They are not all within the update, and what the system refuses.
    pub fn read_at(&self, at: u64, into: &mut [u8]) -> std::io::Result<()> {
        let end = at.checked_add(into.len() as u64).filter(|end| *end <= self.extent.data_len());
        end.ok_or(std::io::ErrorKind::UnexpectedEof)?;
        self.file.read_exact_at(into, self.extent.data_offset() + at)
    }
}

/// A frozen slab, read-only for good. Clones share one descriptor and one mapping, each made when first asked for
/// and gone with the last clone, so that a waiting update costs neither. Dropping clones never loses the update:
/// only [`SlabStore::release`](crate::SlabStore::release) lets go of it.
#[derive(Debug, Clone)]
pub struct Slab {
    reading: Arc<Reading>,
}

// Fields drop in this order: descriptor and mapping are gone before the hold ends and the file can serve another.
#[derive(Debug)]
struct Reading {
    map: OnceLock<ReadMap>,
    fd: OnceLock<File>,
    facts: Arc<Facts>,
    hold: Hold,
}

impl Slab {
    pub(crate) fn new(hold: Hold, facts: Arc<Facts>) -> Self {
        assert_eq!(hold.id, facts.id, "a hold and its facts are of one use");
        Self { reading: Arc::new(Reading { map: OnceLock::new(), fd: OnceLock::new(), facts, hold }) }
    }

    fn open(&self) -> Result<File, SlabError> {
        let Reading { facts, hold, .. } = &*self.reading;
        hold.store.directory.open_to_read(facts.id.index(), facts.file_bytes)
    }

    /// This use of the slab.
    pub fn id(&self) -> SlabId {
        self.reading.facts.id
    }

    /// Bytes of the update.
    pub fn len(&self) -> u64 {
        self.reading.facts.extent.data_len()
    }

    /// Whether the update has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was noted with the update when it was frozen.
    pub fn meta(&self) -> &[u8] {
        &self.reading.facts.meta
    }

    /// Where the update's bytes begin in the file of [`Slab::fd`]: a multiple of 4096. Up to the end of their last
    /// page they are followed by zeros.
    pub fn data_offset(&self) -> u64 {
        self.reading.facts.extent.data_offset()
    }

    /// The update's bytes, through a read-only mapping.
    ///
    /// # Errors
    /// What the system refuses (descriptors or mappings used up), and [`SlabError::Damaged`].
    pub fn bytes(&self) -> Result<&[u8], SlabError> {
        let Reading { map, facts, hold, .. } = &*self.reading;
        let room = match map.get() {
            Some(map) => map.bytes(),
            None => {
                let path = hold.store.directory.slab_path(facts.id.index());
                let made = ReadMap::new(&self.open()?, facts.extent.data_offset(), facts.extent.data_room())
                    .map_err(SlabError::doing("map", &path))?;
                map.get_or_init(|| made).bytes()
            }
        };
        Ok(&room[..facts.extent.data_len() as usize])
    }

    /// The slab's file, opened read-only, to be mapped into a window or handed to a runner: the kernel refuses to
    /// map it, or to change a mapping of it, for writing.
    ///
    /// # Errors
    /// What the system refuses (descriptors used up), and [`SlabError::Damaged`].
    pub fn fd(&self) -> Result<BorrowedFd<'_>, SlabError> {
        if let Some(file) = self.reading.fd.get() {
            return Ok(file.as_fd());
        }
        let made = self.open()?;
        Ok(self.reading.fd.get_or_init(|| made).as_fd())
    }
}
