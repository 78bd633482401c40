//! The fixed-size message that names a slab.
//!
//! Sixty-four bytes, little endian, function id first, because a kernel program routes by it without parsing the
//! rest. A descriptor is a hint: losing or repeating one changes nothing but the time of the next fold.

use crate::{Digest, JobUid, SlabId};
use zerocopy::byteorder::little_endian::{F64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a descriptor's slab holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A client's update.
    Update,
    /// A partial from a lower level of the tree.
    Partial,
    /// Work for a runner: the slab is none, the round a number, the weight how many calls.
    Order,
}

/// A function's id on the wire: the first eight bytes of its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FunctionId(pub u64);

impl FunctionId {
    /// The id of the function with this digest.
    pub fn of(digest: &Digest) -> Self {
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_bytes()[..8]);
        Self(u64::from_le_bytes(first))
    }
}

/// The message that names a slab.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Descriptor {
    /// The function that folds it.
    pub function: FunctionId,
    /// The job.
    pub job: JobUid,
    /// The round.
    pub round: u64,
    /// The slab.
    pub slab: SlabId,
    /// First byte of the payload within the slab's data.
    pub offset: u32,
    /// What it holds.
    pub kind: Kind,
    /// Bytes of payload.
    pub length: u64,
    /// The update's weight.
    pub weight: f64,
}

/// Bytes that are no descriptor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum DescriptorError {
    #[error("a descriptor has 64 bytes, not {0}")]
    Length(usize),
    #[error("unknown descriptor kind {0}")]
    Kind(u16),
    #[error("descriptor flags {0:#x} are reserved")]
    Flags(u16),
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Wire {
    function: U64,
    job: [u8; 16],
    round: U64,
    slab: U64,
    length: U64,
    weight: F64,
    offset: U32,
    kind: [u8; 2],
    flags: [u8; 2],
}

impl Descriptor {
    /// Length on the wire.
    pub const BYTES: usize = 64;

    /// The message.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let wire = Wire {
            function: self.function.0.into(),
            job: *self.job.as_bytes(),
            round: self.round.into(),
            slab: self.slab.get().into(),
            length: self.length.into(),
            weight: self.weight.into(),
            offset: self.offset.into(),
            kind: match self.kind {
                Kind::Update => 1u16,
                Kind::Partial => 2,
                Kind::Order => 3,
            }
            .to_le_bytes(),
            flags: [0; 2],
        };
        zerocopy::transmute!(wire)
    }

    /// Reads a message.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DescriptorError> {
        let wire = Wire::ref_from_bytes(bytes).map_err(|_| DescriptorError::Length(bytes.len()))?;
        let kind = match u16::from_le_bytes(wire.kind) {
            1 => Kind::Update,
            2 => Kind::Partial,
            3 => Kind::Order,
            other => return Err(DescriptorError::Kind(other)),
        };
        match u16::from_le_bytes(wire.flags) {
            0 => {}
            other => return Err(DescriptorError::Flags(other)),
        }
        Ok(Self {
            function: FunctionId(wire.function.get()),
            job: JobUid::from_bytes(wire.job),
            round: wire.round.get(),
            slab: SlabId::from_u64(wire.slab.get()),
            offset: wire.offset.get(),
            kind,
            length: wire.length.get(),
            weight: wire.weight.get(),
        })
    }
}

const _: () = assert!(size_of::<Wire>() == Descriptor::BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Descriptor {
        Descriptor {
            function: FunctionId(0x0102_0304_0506_0708),
            job: JobUid::from_bytes([7; 16]),
            round: 3,
            slab: SlabId::new(5, 9),
            offset: 4096,
            kind: Kind::Update,
            length: 1 << 20,
            weight: 2.5,
        }
    }

    #[test]
    fn golden_bytes() {
        let hex: String = example().to_bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "080706050403020107070707070707070707070707070707030000000000000009000000050000000000100000000000\
             00000000000004400010000001000000"
        );
    }

    #[test]
    fn round_trip_and_refusals() {
        let bytes = example().to_bytes();
        assert_eq!(Descriptor::from_bytes(&bytes), Ok(example()));
        assert_eq!(Descriptor::from_bytes(&bytes[..63]), Err(DescriptorError::Length(63)));
        let mut odd = bytes;
        odd[60] = 9;
        assert_eq!(Descriptor::from_bytes(&odd), Err(DescriptorError::Kind(9)));
        odd = bytes;
        odd[62] = 1;
        assert_eq!(Descriptor::from_bytes(&odd), Err(DescriptorError::Flags(1)));
    }
}
