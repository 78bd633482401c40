//! An event log as one file: what an operator takes away from a log, looks at, and makes a log of again.
//!
//! The file is written and read from its beginning to its end, so a log of any size passes through a fixed amount of
//! memory. Every part of it has a checksum that also holds its place in the file, and the end has one over everything
//! before it: without these, a file that was cut, mixed up or flipped on its way would become a log that nobody can
//! tell from the true one.
//!
//! ```text
//! "catchlog", version: u8
//! frames: kind: u8, bytes: u32, content, checksum: 16 bytes
//!   'H'  head: first: u64, last: u64, who wrote it: text
//!   'S'  a snapshot begins: sequence: u64, bytes: u64
//!   'P'  its next piece
//!   'R'  a record: sequence: u64, its bytes
//!   'M'  a record that could not be read: sequence: u64, why: text
//!   'E'  the end: records: u64, missing: u64, snapshots: u64, BLAKE3 of all bytes before this frame
//! ```
//!
//! Integers are little endian. Snapshots come first, the oldest first; then each record from `first` to `last`, in
//! order, without gaps. What a record or a snapshot contains is none of this crate's business.
#![forbid(unsafe_code)]

mod frame;
mod read;
mod write;

pub use read::{ArchiveError, Entry, Reader};
pub use write::Writer;

/// The layout this build writes, and the only one it reads.
pub const ARCHIVE_VERSION: u8 = 1;

/// The largest record: a NATS server takes no larger message, and what strangers have put into a log is exported too.
pub const RECORD_BYTES_MAX: usize = 64 << 20;

/// The largest snapshot.
pub const SNAPSHOT_BYTES_MAX: u64 = 16 << 30;

/// Snapshots of one file. A log keeps two.
pub const SNAPSHOTS_MAX: u64 = 16;

/// Bytes of a text.
pub const TEXT_BYTES_MAX: usize = 1024;

/// What a file says of the log it was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The first record there was.
    pub first: u64,
    /// The last one; before `first` when there was none.
    pub last: u64,
    /// What wrote the file, and from where: for people.
    pub writer: String,
}

/// What a file holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records.
    pub records: u64,
    /// Records that could not be read when it was written.
    pub missing: u64,
    /// Snapshots.
    pub snapshots: u64,
}
