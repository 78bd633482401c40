//! The body format: bincode 2 through serde, and nothing else of it is visible outside.
//!
//! Two things bincode does not do by itself are added here. Its limit is a constant and guards
//! decoding only, so encoding goes through a writer with a limit of its own, and decoding picks the
//! smallest of a few constants that holds the body: a length prefix that lies can then claim a few
//! times the body, never the largest message there is.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::enc::write::Writer;
use bincode::error::{DecodeError, EncodeError};
use bincode::serde::{decode_from_slice, encode_into_writer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{LARGE_BYTES_MAX, WIRE_BYTES_MAX};

type Wire<const LIMIT_BYTES: usize> = Configuration<LittleEndian, Fixint, Limit<LIMIT_BYTES>>;

const fn wire<const LIMIT_BYTES: usize>() -> Wire<LIMIT_BYTES> {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<LIMIT_BYTES>()
}

/// Why a value was not written.
pub(crate) enum WriteError {
    /// The limit was reached.
    Full,
    /// The value does not fit the format.
    Unencodable(String),
}

/// A buffer that refuses to grow past its limit.
struct Bounded {
    bytes: Vec<u8>,
    limit_bytes: usize,
    full: bool,
}

impl Writer for &mut Bounded {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        if bytes.len() > self.limit_bytes - self.bytes.len() {
            self.full = true;
            return Err(EncodeError::UnexpectedEnd);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

/// The version byte and the value, at most `limit_bytes` (one or more) together.
pub(crate) fn write<T: Serialize + ?Sized>(version: u8, value: &T, limit_bytes: usize) -> Result<Vec<u8>, WriteError> {
    assert!(limit_bytes >= 1, "the version byte has its place");
    let mut out = Bounded { bytes: vec![version], limit_bytes, full: false };
    match encode_into_writer(value, &mut out, wire::<LARGE_BYTES_MAX>()) {
        Ok(()) => Ok(out.bytes),
        Err(_) if out.full => Err(WriteError::Full),
        Err(error) => Err(WriteError::Unencodable(error.to_string())),
    }
}

/// The value at the start of `body` and how many bytes it took; otherwise what was wrong.
pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<(T, usize), String> {
    const SMALL_BYTES: usize = 4 << 10;
    const MIDDLE_BYTES: usize = 256 << 10;
    assert!(body.len() <= LARGE_BYTES_MAX, "the caller checked the message's size");
    let decoded = if body.len() <= SMALL_BYTES {
        decode_from_slice(body, wire::<SMALL_BYTES>())
    } else if body.len() <= MIDDLE_BYTES {
        decode_from_slice(body, wire::<MIDDLE_BYTES>())
    } else if body.len() <= WIRE_BYTES_MAX {
        decode_from_slice(body, wire::<WIRE_BYTES_MAX>())
    } else {
        decode_from_slice(body, wire::<LARGE_BYTES_MAX>())
    };
    decoded.map_err(|error| explain(&error))
}

fn explain(error: &DecodeError) -> String {
    match error {
        DecodeError::UnexpectedEnd { .. } => "it ends in the middle of a field".to_owned(),
        DecodeError::LimitExceeded => "a length in it claims more than the message can hold".to_owned(),
        DecodeError::Utf8 { inner } => format!("a text is not UTF-8 ({inner})"),
        DecodeError::InvalidBooleanValue(found) => format!("a bool is {found}"),
        DecodeError::UnexpectedVariant { type_name, found, .. } => {
            format!("{type_name} has no variant {found}")
        }
        DecodeError::OtherString(text) => text.clone(),
        DecodeError::Other(text) => (*text).to_owned(),
        other => other.to_string(),
    }
}
