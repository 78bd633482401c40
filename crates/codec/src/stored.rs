//! Types whose bytes outlive the release that wrote them.

use crate::{CodecError, wire};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A type that is stored or sent. Each has versions of its own: the present one, and, one behind the other, the forms that
/// it had before.
///
/// ```
/// use catchment_codec::{Stored, decode, encode, first_version};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct VisitV1 { place: String }
///
/// #[derive(Serialize, Deserialize)]
/// struct Visit { place: String, minutes: Option<u32> }
///
/// first_version!(VisitV1);
///
/// impl Stored for Visit {
///     const VERSION: u8 = 2;
///     type Before = VisitV1;
/// }
///
/// impl From<VisitV1> for Visit {
///     fn from(VisitV1 { place }: VisitV1) -> Self {
///         Self { place, minutes: None }
///     }
/// }
///
/// let old = encode(&VisitV1 { place: "Basel".to_owned() }, 1024)?;
/// assert_eq!(decode::<Visit>(&old, 1024)?.place, "Basel");
/// # Ok::<(), catchment_codec::CodecError>(())
/// ```
pub trait Stored: Serialize + DeserializeOwned {
    /// The version of this form, from 1: the first byte of its messages.
    const VERSION: u8;
    /// The form before this one, of a lower version; [`Nothing`] for the first (see [`first_version`](crate::first_version)).
    type Before: Stored + Into<Self>;
}

/// What was before the first version of every type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Nothing {}

impl Stored for Nothing {
    const VERSION: u8 = 0;
    type Before = Self;
}

/// The first version of a type that has had no other: `first_version!(Type)`. `first_version!(Type = 3)` where its number is
/// another than 1, because another type's messages have the lower ones.
#[macro_export]
macro_rules! first_version {
    ($($kind:ty),+ $(,)?) => {$( $crate::first_version!($kind = 1); )+};
    ($kind:ty = $version:literal) => {
        impl $crate::Stored for $kind {
            const VERSION: u8 = $version;
            type Before = $crate::Nothing;
        }

        impl From<$crate::Nothing> for $kind {
            fn from(nothing: $crate::Nothing) -> Self {
                match nothing {}
            }
        }
    };
}

/// The value of a body of this version; `newest` is the version that was asked for first.
pub(crate) fn read<T: Stored>(what: &'static str, newest: u8, version: u8, body: &[u8]) -> Result<T, CodecError> {
    const {
        assert!(T::VERSION == 0 || T::Before::VERSION < T::VERSION, "versions go down to the first");
    }
    if version < T::VERSION && T::Before::VERSION > 0 {
        return read::<T::Before>(what, newest, version, body).map(Into::into);
    }
    if version != T::VERSION {
        return Err(CodecError::UnknownVersion { what, found: version, newest });
    }
    let (value, used_bytes) = wire::read(body).map_err(|reason| CodecError::Malformed { what, reason })?;
    assert!(used_bytes <= body.len(), "the reader stays inside the message");
    match body.len() - used_bytes {
        0 => Ok(value),
        left_bytes => Err(CodecError::TrailingBytes { what, left_bytes }),
    }
}
