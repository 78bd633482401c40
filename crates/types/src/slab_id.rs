//! The name of a slab.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Names one use of one slab: `index:32 | generation:32`.
///
/// The index is the place in the store, the generation grows each time the place is reused, so a descriptor
/// that outlived its update can never reach the update that came after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SlabId(u64);

impl SlabId {
    /// The slab at `index`, in its `generation`-th use.
    pub const fn new(index: u32, generation: u32) -> Self {
        Self((index as u64) << 32 | generation as u64)
    }

    /// Reads the packed form, as [`SlabId::get`] gives it.
    pub const fn from_u64(packed: u64) -> Self {
        Self(packed)
    }

    /// The packed form: index in the high half, generation in the low one.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The place in the store.
    pub const fn index(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Which use of that place.
    pub const fn generation(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for SlabId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index(), self.generation())
    }
}
