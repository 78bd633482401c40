//! Any bytes as a log record, in every version: never a panic or a large allocation, and what is read and written once is
//! written the same ever after. (Not at once: a duration that was written as `0000m` is written as `0ms`.)
#![no_main]

use catchment_codec::Stored;
use catchment_types::{Descriptor, JobSpec, Record, RecordV1};
use libfuzzer_sys::fuzz_target;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct First(RecordV1);

#[derive(Serialize, Deserialize)]
struct Present(Record);

catchment_codec::first_version!(First);

impl Stored for Present {
    const VERSION: u8 = 2;
    type Before = First;
}

impl From<First> for Present {
    fn from(First(record): First) -> Self {
        Self(record.into())
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = catchment_codec::decode::<Present>(bytes, 1 << 20) {
        let written = catchment_codec::encode(&record, 1 << 21).expect("what was read can be written");
        let again = catchment_codec::decode::<Present>(&written, 1 << 21).expect("what was written can be read");
        assert_eq!(catchment_codec::encode(&again, 1 << 21).expect("and written again"), written);
        if let Present(Record::JobCreated { spec, .. }) = &record {
            let _ = JobSpec::stored(spec.as_bytes());
        }
    }
    if let Ok(descriptor) = Descriptor::from_bytes(bytes) {
        assert_eq!(descriptor.to_bytes(), bytes);
    }
});
