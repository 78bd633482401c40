//! The parts a file is made of, and their checksums.

use crate::RECORD_BYTES_MAX;

pub(crate) const MAGIC: &[u8; 8] = b"catchlog";
/// Bytes of a frame before its content.
pub(crate) const HEAD_BYTES: usize = 1 + 4;
/// Bytes of a frame after its content.
pub(crate) const CHECK_BYTES: usize = 16;
/// Bytes of a snapshot in one frame.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// Bytes of a frame's content: a record and its sequence.
pub(crate) const CONTENT_BYTES_MAX: usize = RECORD_BYTES_MAX + 8;
/// Bytes of the last frame's content.
pub(crate) const END_BYTES: usize = 3 * 8 + 32;

pub(crate) const HEAD: u8 = b'H';
pub(crate) const SNAPSHOT: u8 = b'S';
pub(crate) const PIECE: u8 = b'P';
pub(crate) const RECORD: u8 = b'R';
pub(crate) const MISSING: u8 = b'M';
pub(crate) const END: u8 = b'E';

/// A frame's checksum: a part of a hash over its number in the file, its kind and its content, so that a whole frame in
/// the wrong place does not hold either.
pub(crate) fn check(number: u64, kind: u8, content: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key("catchment v1 archive frame");
    hasher.update(&number.to_le_bytes()).update(&[kind]).update(content);
    *hasher.finalize().as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// The hash over everything before the last frame.
pub(crate) fn whole() -> blake3::Hasher {
    blake3::Hasher::new_derive_key("catchment v1 archive")
}
