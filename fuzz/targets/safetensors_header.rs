//! Any bytes as a safetensors file: never a panic, and what is accepted covers its data exactly.
#![no_main]

use catchment_types::{Fit, Header, Layout, Limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(header) = Header::of_file(file, &Limits::default()) else { return };
    assert_eq!(header.data_begin + header.data_bytes, file.len() as u64);
    let bytes: u64 = header.tensors.iter().map(|tensor| tensor.end - tensor.begin).sum();
    assert_eq!(bytes, header.data_bytes);
    let layout = Layout::new(&header, &[]).expect("the default rules suit every dtype");
    Fit::new(&layout, &header, &[]).expect("a model fits itself");
});
