//! Chance, drawn from a seed that only this process knows: otherwise a client could pick a name that wins.

use catchment_types::{ClientId, JobUid};

/// Draws numbers by name instead of by order, so that what one client gets does not depend on who else asked.
#[derive(Debug, Clone)]
pub struct Seed([u8; 32]);

impl Seed {
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(blake3::derive_key("catchment v1 lots", &bytes))
    }

    fn hash(&self, domain: u8, parts: [u64; 3], client: &[u8]) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[domain]);
        for part in parts {
            hasher.update(&part.to_le_bytes());
        }
        hasher.update(client);
        u64::from_le_bytes(*hasher.finalize().as_bytes().first_chunk().expect("a hash has eight bytes"))
    }

    /// A client's short name within a job. That two clients share one is as likely as a bit error.
    pub fn key(&self, uid: JobUid, client: &ClientId) -> u64 {
        let (high, low) = uid.as_bytes().split_at(8);
        let half = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("half of sixteen bytes"));
        self.hash(0, [half(high), half(low), 0], client.as_str().as_bytes())
    }

    /// A client's lot in a draw: above 0 and at most 1.
    pub fn lot(&self, key: u64, round: u64, draw: u64) -> f64 {
        unit(self.hash(1, [key, round, draw], &[]))
    }

    /// Where in its window a client's appointment at this time goes.
    pub fn spread(&self, key: u64, now_ms: u64) -> f64 {
        unit(self.hash(2, [key, now_ms, 0], &[]))
    }
}

fn unit(bits: u64) -> f64 {
    ((bits >> 11) + 1) as f64 / (1u64 << 53) as f64
}
