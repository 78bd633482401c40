//! Any bytes as a log record: never a panic or a large allocation, and what is read is written back the same.
#![no_main]

use catchment_types::{Descriptor, Record};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = catchment_codec::decode::<Record>(bytes, 1 << 20) {
        let again = catchment_codec::encode(&record, 1 << 20).expect("what was read can be written");
        assert_eq!(again, bytes);
    }
    if let Ok(descriptor) = Descriptor::from_bytes(bytes) {
        assert_eq!(descriptor.to_bytes(), bytes);
    }
});
