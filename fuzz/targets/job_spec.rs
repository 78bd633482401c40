//! Any bytes as a job spec: never a panic; an accepted spec is written and read back the same.
#![no_main]

use catchment_types::JobSpec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    match JobSpec::from_json(text) {
        Ok(spec) => {
            let written = spec.to_json();
            assert_eq!(JobSpec::from_json(written.as_bytes()).expect("a written spec is valid"), spec);
            spec.client_config_for(7);
        }
        Err(errors) => assert!(!errors.is_empty()),
    }
});
