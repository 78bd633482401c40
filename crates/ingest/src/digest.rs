//! The digest that makes a submission idempotent.

use catchment_types::Digest;
use std::collections::BTreeMap;

/// BLAKE3 over a body as it arrives, and over what was said of it.
#[derive(Clone, Default)]
pub struct UpdateDigest {
    body: blake3::Hasher,
}

impl UpdateDigest {
    /// Takes the next bytes of the body.
    pub fn feed(&mut self, chunk: &[u8]) {
        self.body.update(chunk);
    }

    /// The digest of the body alone, as `Catchment-Digest` declares it.
    pub fn body(&self) -> Digest {
        self.body.finalize().into()
    }

    /// The digest of body, weight, samples and metrics: the same update said differently is another update.
    pub fn finish(&self, weight: f64, num_samples: u64, metrics: &BTreeMap<String, f64>) -> Digest {
        let mut whole = blake3::Hasher::new_derive_key("catchment v1 update");
        whole.update(self.body.finalize().as_bytes());
        whole.update(&weight.to_bits().to_le_bytes());
        whole.update(&num_samples.to_le_bytes());
        for (name, value) in metrics {
            whole.update(&(name.len() as u64).to_le_bytes());
            whole.update(name.as_bytes());
            whole.update(&value.to_bits().to_le_bytes());
        }
        whole.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_said_of_an_update_counts() {
        let mut digest = UpdateDigest::default();
        digest.feed(b"body");
        let metrics = BTreeMap::from([("loss".to_owned(), 0.5)]);
        let first = digest.finish(1.0, 10, &metrics);
        assert_eq!(first, digest.finish(1.0, 10, &metrics));
        assert_ne!(first, digest.finish(2.0, 10, &metrics));
        assert_ne!(first, digest.finish(1.0, 11, &metrics));
        assert_ne!(first, digest.finish(1.0, 10, &BTreeMap::new()));
        digest.feed(b"!");
        assert_ne!(first, digest.finish(1.0, 10, &metrics));
    }
}
