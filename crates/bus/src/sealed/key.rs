//! The key of a cluster.

use super::{Kind, SEAL_BYTES};
use std::fmt;
use std::str::FromStr;

const KEY_BYTES: usize = 32;

/// What all members of a cluster know and nobody else. As text: 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey([u8; KEY_BYTES]);

/// A text that is no key. It does not say what the text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a cluster's key is 64 hexadecimal digits, as `catchment key new` makes it")]
pub struct BadKey;

impl ClusterKey {
    /// The key with these bytes, which nobody must be able to guess.
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Its text. Whoever has it can write into the cluster's log.
    pub fn to_text(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    fn hash(&self, kind: Kind<'_>, bytes: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        // Of a fixed length, or with its length before it: no two things have the same bytes here.
        match kind {
            Kind::Record => hasher.update(b"record"),
            Kind::Snapshot(sequence) => hasher.update(b"shot").update(&sequence.to_le_bytes()),
            Kind::Event(subject) => {
                hasher.update(b"event").update(&(subject.len() as u64).to_le_bytes()).update(subject.as_bytes())
            }
        };
        hasher.update(bytes).finalize()
    }

    pub(super) fn seal(&self, kind: Kind<'_>, bytes: &[u8]) -> [u8; SEAL_BYTES] {
        *self.hash(kind, bytes).as_bytes().first_chunk().expect("a hash has 32 bytes")
    }

    pub(super) fn is_seal(&self, kind: Kind<'_>, bytes: &[u8], seal: &[u8; SEAL_BYTES]) -> bool {
        // Every byte is looked at, so that the time it takes says nothing of where the two differ.
        let ours = self.seal(kind, bytes);
        std::hint::black_box(ours.iter().zip(seal).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
    }
}

impl FromStr for ClusterKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        blake3::Hash::from_hex(text.trim()).map(|hash| Self(*hash.as_bytes())).map_err(|_| BadKey)
    }
}

/// Says nothing of it.
impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written_and_never_shown() {
        let key = ClusterKey::from_bytes([0xa7; 32]);
        assert_eq!(format!("{}\n", key.to_text()).parse::<ClusterKey>(), Ok(key.clone()));
        assert!(!format!("{key:?}").contains("a7"));
        for text in ["", "a7", &"x".repeat(64), &"a7".repeat(33)] {
            assert_eq!(text.parse::<ClusterKey>(), Err(BadKey), "{text}");
        }
    }

    #[test]
    fn a_seal_is_for_one_thing_at_one_place() {
        let key = ClusterKey::from_bytes([1; 32]);
        let kinds = [Kind::Record, Kind::Snapshot(7), Kind::Snapshot(8), Kind::Event("a"), Kind::Event("b")];
        for (i, made) in kinds.iter().enumerate() {
            let seal = key.seal(*made, b"bytes");
            for (j, asked) in kinds.iter().enumerate() {
                assert_eq!(key.is_seal(*asked, b"bytes", &seal), i == j);
            }
            assert!(!key.is_seal(*made, b"other", &seal));
            assert!(!ClusterKey::from_bytes([2; 32]).is_seal(*made, b"bytes", &seal));
        }
    }
}
