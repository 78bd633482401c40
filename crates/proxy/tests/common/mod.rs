//! What the tests share.
#![allow(dead_code, reason = "not every test uses all of it")]

use catchment_types::{Descriptor, FunctionId, JobUid, Kind, SlabId};

/// A descriptor of a route that carries a number.
pub fn descriptor(route: u64, number: u64) -> Descriptor {
    Descriptor {
        function: FunctionId(route),
        job: JobUid::from_bytes([7; 16]),
        round: number,
        slab: SlabId::new(5, 9),
        offset: 0,
        kind: Kind::Update,
        length: 1000,
        weight: 1.0,
    }
}
