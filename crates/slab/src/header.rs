//! The first page of a slab file: who the slab is, how far its life has come, and what its owner noted with it.
//!
//! After a crash these pages are all that is known. Without the checksum, a header that was being written would
//! pass for a slab; without the state word, written last and by itself, a slab that was being received would pass
//! for an accepted update.

use crate::error::SlabError;
use crate::extent::{Extent, PAGE_BYTES};
use catchment_types::SlabId;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most bytes of metadata a slab carries in its header page.
pub const META_BYTES_MAX: usize = 3072;

/// The newest header format this build reads, and the one it writes.
pub(crate) const VERSION: u32 = 1;
/// Where the state word lies in the file.
pub(crate) const STATE_OFFSET: u64 = 16;

const MAGIC: [u8; 8] = *b"CTCHSLAB";
const FIXED_BYTES: usize = size_of::<Fixed>();
const _: () = assert!(FIXED_BYTES == 128 && FIXED_BYTES + META_BYTES_MAX <= PAGE_BYTES as usize);

/// What a slab is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Written once, then read.
    Update,
    /// Folded into, again and again.
    Accumulator,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Update, Self::Accumulator];
}

/// How far a slab's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Released: a restart may reuse it.
    Free,
    /// Granted, not yet frozen: a restart reclaims it.
    Writing,
    /// A frozen update or an accumulator: a restart gives it back.
    Kept,
}

impl State {
    /// The state's word: text, far from every other state in bits and legible in a dump.
    pub(crate) const fn word(self) -> u64 {
        u64::from_le_bytes(match self {
            Self::Free => *b"free....",
            Self::Writing => *b"writing.",
            Self::Kept => *b"kept....",
        })
    }

    fn from_word(word: u64) -> Option<Self> {
        [Self::Free, Self::Writing, Self::Kept].into_iter().find(|state| state.word() == word)
    }
}

/// One slab's header, without its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) id: SlabId,
    /// The whole file; a recycled one may be larger than its extent needs.
    pub(crate) file_bytes: u64,
    pub(crate) extent: Extent,
    pub(crate) meta: Box<[u8]>,
}

/// What a header page turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// Never written: the process died while it made the file.
    Blank,
    /// Written by a later format version.
    Newer(u32),
    /// Not a header, or not all of one.
    Damaged(&'static str),
    /// A slab.
    Whole(Header, State),
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Fixed {
    magic: [u8; 8],
    version: U32,
    kind: U32,
    state: U64,
    checksum: U64,
    index: U32,
    generation: U32,
    file_bytes: U64,
    data_offset: U64,
    data_len: U64,
    control_words: U64,
    meta_len: U32,
    spare: [u8; 52],
}

impl Fixed {
    /// Over everything but the state, which changes by itself, and the checksum's own field.
    fn checksum(&self, meta: &[u8]) -> u64 {
        let covered = Self { state: U64::ZERO, checksum: U64::ZERO, ..*self };
        let mut hasher = blake3::Hasher::new();
        hasher.update(covered.as_bytes()).update(meta);
        let digest = hasher.finalize();
        let (head, _) = digest.as_bytes().split_first_chunk().expect("a digest is longer than a word");
        u64::from_le_bytes(*head)
    }
}

impl Header {
    /// The header's bytes, to be written at the start of the file.
    pub(crate) fn encode(&self, state: State) -> Vec<u8> {
        assert!(self.meta.len() <= META_BYTES_MAX, "callers check the metadata's length");
        assert!(self.extent.file_bytes() <= self.file_bytes, "a slab lies inside its file");
        let mut fixed = Fixed {
            magic: MAGIC,
            version: VERSION.into(),
            kind: U32::new(match self.kind {
                Kind::Update => 1,
                Kind::Accumulator => 2,
            }),
            state: state.word().into(),
            checksum: U64::ZERO,
            index: self.id.index().into(),
            generation: self.id.generation().into(),
            file_bytes: self.file_bytes.into(),
            data_offset: self.extent.data_offset().into(),
            data_len: self.extent.data_len().into(),
            control_words: self.extent.control_words().into(),
            meta_len: U32::new(self.meta.len() as u32),
            spare: [0; 52],
        };
        fixed.checksum = fixed.checksum(&self.meta).into();
        [fixed.as_bytes(), &self.meta].concat()
    }

    /// Reads a header page. Nothing in it is trusted before its checksum fits, but the version, whose place no
    /// format changes.
    pub(crate) fn decode(page: &[u8; PAGE_BYTES as usize]) -> Page {
        let (fixed, rest) = Fixed::ref_from_prefix(page).expect("a page is longer than the fixed part");
        if fixed.magic != MAGIC {
            return if page.iter().all(|&byte| byte == 0) { Page::Blank } else { Page::Damaged("not a slab file") };
        }
        if fixed.version.get() > VERSION {
            return Page::Newer(fixed.version.get());
        }
        match Self::parse(fixed, rest) {
            Ok((header, state)) => Page::Whole(header, state),
            Err(reason) => Page::Damaged(reason),
        }
    }

    fn parse(fixed: &Fixed, rest: &[u8]) -> Result<(Self, State), &'static str> {
        let meta_len = fixed.meta_len.get() as usize;
        let meta = rest.get(..meta_len.min(META_BYTES_MAX)).ok_or("its metadata does not fit the page")?;
        if meta_len > META_BYTES_MAX || fixed.checksum(meta) != fixed.checksum.get() {
            return Err("the header's checksum does not fit");
        }
        let state = State::from_word(fixed.state.get()).ok_or("the state word is unknown")?;
        let kind = match fixed.kind.get() {
            1 => Kind::Update,
            2 => Kind::Accumulator,
            _ => return Err("the kind is unknown"),
        };
        let extent = Extent::new(fixed.control_words.get(), fixed.data_len.get()).ok_or("no file is that large")?;
        if extent.data_offset() != fixed.data_offset.get() || extent.file_bytes() > fixed.file_bytes.get() {
            return Err("its parts do not fit each other");
        }
        let id = SlabId::new(fixed.index.get(), fixed.generation.get());
        Ok((Self { kind, id, file_bytes: fixed.file_bytes.get(), extent, meta: meta.into() }, state))
    }
}

/// Refuses metadata that would not fit the page.
pub(crate) fn check_meta(meta: &[u8]) -> Result<(), SlabError> {
    if meta.len() > META_BYTES_MAX {
        return Err(SlabError::MetaTooLong { len: meta.len(), limit: META_BYTES_MAX });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(meta: &[u8]) -> Header {
        let extent = Extent::new(3, 5000).expect("fits a file");
        Header { kind: Kind::Accumulator, id: SlabId::new(7, 9), file_bytes: 32768, extent, meta: meta.into() }
    }

    fn page(bytes: &[u8]) -> [u8; PAGE_BYTES as usize] {
        let mut page = [0; PAGE_BYTES as usize];
        page[..bytes.len()].copy_from_slice(bytes);
        page
    }

    #[test]
    fn the_state_word_lies_where_it_is_written() {
        assert_eq!(std::mem::offset_of!(Fixed, state) as u64, STATE_OFFSET);
    }

    #[test]
    fn the_state_may_change_without_the_rest() {
        let mut bytes = page(&header(b"round 3").encode(State::Writing));
        let at = STATE_OFFSET as usize;
        bytes[at..at + 8].copy_from_slice(&State::Kept.word().to_le_bytes());
        assert_eq!(Header::decode(&bytes), Page::Whole(header(b"round 3"), State::Kept));
    }

    #[test]
    fn blank_foreign_and_newer_pages_are_told_apart() {
        assert_eq!(Header::decode(&page(&[])), Page::Blank);
        assert_eq!(Header::decode(&page(b"hello")), Page::Damaged("not a slab file"));
        let mut newer = page(&header(b"").encode(State::Kept));
        newer[8] = 200;
        assert_eq!(Header::decode(&newer), Page::Newer(200));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(meta in proptest::collection::vec(any::<u8>(), 0..=META_BYTES_MAX)) {
            let whole = Page::Whole(header(&meta), State::Kept);
            prop_assert_eq!(Header::decode(&page(&header(&meta).encode(State::Kept))), whole);
        }

        #[test]
        fn any_changed_byte_is_noticed(at in 0..FIXED_BYTES + 64, flip in 1..=255u8) {
            let whole = header(&[5; 64]);
            let mut bytes = page(&whole.encode(State::Kept));
            bytes[at] ^= flip;
            let noticed = !matches!(Header::decode(&bytes), Page::Whole(..));
            prop_assert!(noticed);
        }

        #[test]
        fn a_header_cut_short_is_noticed(kept in 0..FIXED_BYTES + 63) {
            let bytes = header(&[5; 64]).encode(State::Kept);
            let noticed = !matches!(Header::decode(&page(&bytes[..kept])), Page::Whole(..));
            prop_assert!(noticed);
        }

        #[test]
        fn no_page_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), PAGE_BYTES as usize), magic: bool) {
            let mut bytes = page(&bytes);
            if magic {
                bytes[..8].copy_from_slice(&MAGIC);
            }
            let _ = Header::decode(&bytes);
        }
    }
}
