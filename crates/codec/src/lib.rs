//! Values to bytes and back, for everything Catchment stores or sends.
//!
//! This is the only crate that knows bincode. The log outlives every process and every release, so
//! the bytes are a contract: without one place that owns them, a changed dependency could make a
//! job's history unreadable, and a hostile message could make a process allocate what its length
//! field claims. bincode is no longer maintained; replacing it means editing `wire.rs` and giving
//! every [`Stored`] type a new version.
//!
//! A message is one version byte followed by the body. The version is the type's own: each type says
//! which it is written as, and names the form that it had before, so that every older one is still
//! read. In the body integers are little endian and of fixed width, a length is a `u64`, an enum's
//! variant a `u32`, an option's tag one byte. So a value has exactly one encoding (maps with a fixed
//! order assumed: use `BTreeMap`), and what decodes from the newest version encodes to the same bytes.
//!
//! What a type must not contain, because the format carries no field names and no types:
//! `serde(flatten, untagged, tag, skip_serializing_if)`, sequences of zero-sized elements (their
//! length costs nothing to claim), and types that nest in themselves without bound. A new field, or
//! another change of what is written, is a new version of the type: the old form is kept under another
//! name, and the new one is made from it.
#![forbid(unsafe_code)]

mod stored;
mod wire;

pub use stored::{Nothing, Stored};

/// No message is larger than this, whatever limit a caller names.
pub const WIRE_BYTES_MAX: usize = 16 << 20;

/// The same for [`encode_large`] and [`decode_large`].
pub const LARGE_BYTES_MAX: usize = 1 << 30;

/// Why a value could not be encoded or a message not be decoded.
///
/// `what` is the Rust name of the type that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The message is longer than the limit. When encoding, it is given up at the limit, so the full
    /// size is not known.
    #[error("{what} takes more than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// Type of the value.
        what: &'static str,
        /// The limit that applied, version byte included.
        limit_bytes: usize,
    },
    /// There is not even a version byte.
    #[error("{what} was expected, but the message is empty")]
    Empty {
        /// Type of the value.
        what: &'static str,
    },
    /// The message was written by a release this one does not understand.
    #[error(
        "{what} is in version {found}, and this build reads versions up to {newest}: use a release that reads \
         version {found}"
    )]
    UnknownVersion {
        /// Type of the value.
        what: &'static str,
        /// The version byte found.
        found: u8,
        /// The newest that is read.
        newest: u8,
    },
    /// The bytes are not an encoding of the type.
    #[error("the message is not a valid {what}: {reason}")]
    Malformed {
        /// Type of the value.
        what: &'static str,
        /// What was wrong.
        reason: String,
    },
    /// A valid value, followed by bytes that belong to nothing.
    #[error("{left_bytes} bytes follow the end of {what}")]
    TrailingBytes {
        /// Type of the value.
        what: &'static str,
        /// How many bytes were not consumed.
        left_bytes: usize,
    },
    /// The value cannot be expressed in this format (a sequence of unknown length, for example).
    #[error("{what} cannot be encoded: {reason}")]
    Unencodable {
        /// Type of the value.
        what: &'static str,
        /// What was wrong.
        reason: String,
    },
}

/// Encodes `value` as one message of at most `limit_bytes`, version byte included.
///
/// The limit is [`WIRE_BYTES_MAX`] at most. Encoding stops at the limit, so a value that is too large
/// costs no more memory than the limit.
///
/// # Errors
/// [`CodecError::TooLarge`], [`CodecError::Unencodable`].
pub fn encode<T: Stored>(value: &T, limit_bytes: usize) -> Result<Vec<u8>, CodecError> {
    encode_within(value, limit_bytes.min(WIRE_BYTES_MAX))
}

/// As [`encode`], for what a process writes for itself alone, such as a snapshot of its state, up to
/// [`LARGE_BYTES_MAX`]. It takes as much memory again as the message.
///
/// # Errors
/// [`CodecError::TooLarge`], [`CodecError::Unencodable`].
pub fn encode_large<T: Stored>(value: &T) -> Result<Vec<u8>, CodecError> {
    encode_within(value, LARGE_BYTES_MAX)
}

fn encode_within<T: Stored>(value: &T, limit_bytes: usize) -> Result<Vec<u8>, CodecError> {
    let what = std::any::type_name::<T>();
    if limit_bytes == 0 {
        return Err(CodecError::TooLarge { what, limit_bytes });
    }
    let message = wire::write(T::VERSION, value, limit_bytes).map_err(|error| match error {
        wire::WriteError::Full => CodecError::TooLarge { what, limit_bytes },
        wire::WriteError::Unencodable(reason) => CodecError::Unencodable { what, reason },
    })?;
    assert!(message.len() <= limit_bytes, "the writer holds to its limit");
    Ok(message)
}

/// Decodes one message of at most `limit_bytes`, version byte included, all of whose bytes must
/// belong to the value.
///
/// The limit is [`WIRE_BYTES_MAX`] at most. Lengths inside the message are checked against its size
/// class before anything is allocated for them. Never panics, whatever the bytes.
///
/// # Errors
/// Every [`CodecError`] but [`CodecError::Unencodable`].
pub fn decode<T: Stored>(message: &[u8], limit_bytes: usize) -> Result<T, CodecError> {
    decode_within(message, limit_bytes.min(WIRE_BYTES_MAX))
}

/// As [`decode`], for what [`encode_large`] made. Not for messages of strangers: a length that lies may claim as much
/// memory as the largest message has.
///
/// # Errors
/// Every [`CodecError`] but [`CodecError::Unencodable`].
pub fn decode_large<T: Stored>(message: &[u8]) -> Result<T, CodecError> {
    decode_within(message, LARGE_BYTES_MAX)
}

fn decode_within<T: Stored>(message: &[u8], limit_bytes: usize) -> Result<T, CodecError> {
    let what = std::any::type_name::<T>();
    if message.len() > limit_bytes {
        return Err(CodecError::TooLarge { what, limit_bytes });
    }
    let Some((&version, body)) = message.split_first() else {
        return Err(CodecError::Empty { what });
    };
    stored::read(what, T::VERSION, version, body)
}
