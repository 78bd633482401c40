//! Any bytes as a log record: never a panic or a large allocation, and what is read and written once is written the same
//! ever after. (Not at once: a duration that was written as `0000m` is written as `0ms`.)
#![no_main]

use catchment_types::{Descriptor, Record};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = catchment_codec::decode::<Record>(bytes, 1 << 20) {
        let written = catchment_codec::encode(&record, 1 << 21).expect("what was read can be written");
        let again = catchment_codec::decode::<Record>(&written, 1 << 21).expect("what was written can be read");
        assert_eq!(catchment_codec::encode(&again, 1 << 21).expect("and written again"), written);
    }
    if let Ok(descriptor) = Descriptor::from_bytes(bytes) {
        assert_eq!(descriptor.to_bytes(), bytes);
    }
});
