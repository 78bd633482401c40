//! What unit tests share with the others.

use catchment_types::{Descriptor, FunctionId, JobUid, Kind, SlabId};
use std::io::Write;

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

/// Says that a test is skipped, past the test harness, which hides what tests print.
pub fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or_default().to_string();
    writeln!(std::io::stderr(), "SKIPPED {test}: {why}").expect("standard error");
}
