//! Whose shared memory is.

use catchment_slab::Owner;
use catchment_types::{JobSpec, JobUid};

/// The owner of all memory of one job. Functions of other jobs never see what is in it.
pub fn owner(spec: &JobSpec, uid: JobUid) -> Owner {
    let mut hasher = blake3::Hasher::new_derive_key("catchment v1 memory owner");
    // The uid has a fixed length, so no other pair gives the same bytes.
    hasher.update(uid.as_bytes()).update(spec.namespace.as_str().as_bytes());
    Owner::new(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jobs_memory_is_its_own() {
        let spec = |namespace: &str| {
            let text = format!(r#"{{"name": "a", "namespace": "{namespace}", "function": "fedavg"}}"#);
            JobSpec::from_json(text.as_bytes()).expect("a spec")
        };
        let (one, two) = (JobUid::from_bytes([1; 16]), JobUid::from_bytes([2; 16]));
        assert_eq!(owner(&spec("red"), one), owner(&spec("red"), one));
        assert_ne!(owner(&spec("red"), one), owner(&spec("red"), two), "a namesake");
        assert_ne!(owner(&spec("red"), one), owner(&spec("blue"), one), "another tenant");
    }
}
