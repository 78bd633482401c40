//! Randomness from one seed.
//!
//! Every use draws from a stream of its own, named by a purpose and numbers such as client and round. One shared
//! stream would tie them together: one more client would change the initial model, and a worker that restarts in
//! the middle of a round would send other bytes than before and meet a conflict instead of its receipt.

use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

/// The stream for `purpose` and `numbers` under `seed`. The same arguments give the same stream on every machine.
pub fn stream(seed: u64, purpose: &str, numbers: &[u64]) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new_derive_key("catchment-worker v1 random stream");
    hasher.update(&seed.to_le_bytes());
    for number in numbers {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(purpose.as_bytes());
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::stream;
    use rand::Rng;

    #[test]
    fn streams_are_portable_and_apart() {
        assert_eq!(stream(7, "shuffle", &[3, 1]).next_u64(), stream(7, "shuffle", &[3, 1]).next_u64());
        let first = |seed, purpose, numbers: &[u64]| stream(seed, purpose, numbers).next_u64();
        let all = [
            first(7, "shuffle", &[3, 1]),
            first(8, "shuffle", &[3, 1]),
            first(7, "holdout", &[3, 1]),
            first(7, "shuffle", &[1, 3]),
            first(7, "shuffle", &[3]),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
