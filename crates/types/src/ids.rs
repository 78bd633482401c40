//! Names and identities, each parsed once at the edge so that no later code can meet a malformed one.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A name or identity that does not parse. Says what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{given}` is not valid: {expected}")]
pub struct BadId {
    /// Which kind of identity was read.
    pub what: &'static str,
    /// What was given, cut to 80 characters.
    pub given: String,
    /// The rule it breaks.
    pub expected: &'static str,
}

impl BadId {
    fn new(what: &'static str, given: &str, expected: &'static str) -> Self {
        Self { what, given: given.chars().take(80).collect(), expected }
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text, already known to be valid.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.to_owned())) } else { Err(BadId::new($what, text, $expected)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(inner)
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

fn is_client_id(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

text_id!(
    /// A namespace or job name: a DNS label.
    Name, "name", "a DNS label: 1 to 63 of a-z, 0-9 and '-', not starting or ending with '-'", is_dns_label
);
text_id!(
    /// A client's own name within a job.
    ClientId, "client id", "1 to 128 of A-Z, a-z, 0-9, '_' and '-'", is_client_id
);

impl Name {
    /// The namespace of jobs that name none.
    pub fn default_namespace() -> Self {
        Self("default".to_owned())
    }
}

/// What is a number or bytes to machines, and its text in logs and JSON.
macro_rules! text_for_people {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
                } else {
                    Deserialize::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

macro_rules! binary_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 16]);

        impl $name {
            /// From its 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                let bad = || BadId::new($what, text, "32 hexadecimal digits");
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(bad());
                }
                let mut bytes = [0; 16];
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
                }
                Ok(Self(bytes))
            }
        }

        text_for_people!($name);
    };
}

binary_id!(
    /// One life of a job. New each time a job is created, so a straggler of a deleted job never lands in its namesake.
    JobUid, "job uid"
);
binary_id!(
    /// One event log. Data directories remember it, so that none is opened with another's.
    LogId, "log id"
);
binary_id!(
    /// The name of a receipt.
    ReceiptId, "receipt id"
);
binary_id!(
    /// A hash of all that the state has made of the log up to a record.
    StateHash, "hash of a state"
);
binary_id!(
    /// The name of one task handed to one client for one round.
    TaskId, "task id"
);

fn derive(context: &str, uid: JobUid, round: u64, client: &ClientId, rest: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    hasher.update(uid.as_bytes()).update(&round.to_le_bytes()).update(rest).update(client.as_str().as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    id
}

impl ReceiptId {
    /// The receipt of `client`'s update in `round`. The same bytes sent again have the same receipt; a resubmission
    /// after a loss is another `attempt`, with a receipt of its own.
    pub fn derive(uid: JobUid, round: u64, client: &ClientId, digest: &Digest, attempt: u32) -> Self {
        let mut rest = [0; 36];
        rest[..32].copy_from_slice(digest.as_bytes());
        rest[32..].copy_from_slice(&attempt.to_le_bytes());
        Self(derive("catchment v1 receipt", uid, round, client, &rest))
    }
}

impl TaskId {
    /// The task of `client` in `round`: derived, so it needs no storage and survives every restart.
    pub fn derive(uid: JobUid, round: u64, client: &ClientId) -> Self {
        Self(derive("catchment v1 task", uid, round, client, &[]))
    }

    /// The task of `client` to measure the model of `version`, likewise.
    pub fn derive_evaluation(uid: JobUid, version: u64, client: &ClientId) -> Self {
        Self(derive("catchment v1 evaluation task", uid, version, client, &[]))
    }
}

/// A BLAKE3 digest; 64 hexadecimal digits in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// From its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl FromStr for Digest {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        blake3::Hash::from_hex(text)
            .map(Self::from)
            .map_err(|_| BadId::new("digest", text, "64 hexadecimal digits of a BLAKE3 hash"))
    }
}

text_for_people!(Digest);

/// Names the process that holds a slab: its node's name, fixed by the node's data directory. 16 hexadecimal digits in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for NodeId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok().filter(|_| digits);
        number.map(Self).ok_or_else(|| BadId::new("node id", text, "16 hexadecimal digits"))
    }
}

text_for_people!(NodeId);

/// What a caller may do. Enforced once credentials are on; named from the start so that no later release has to
/// guess which role a call needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Watches: reads jobs, rounds and models.
    Reader,
    /// Trains: checks in and submits updates.
    Client,
    /// Creates, changes and deletes jobs of its namespace.
    Owner,
    /// Everything, in every namespace.
    Admin,
}

impl Default for StateHash {
    /// That of a state that nothing has been made of yet.
    fn default() -> Self {
        Self([0; 16])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "digits", "a-1", "0x"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", &"x".repeat(64), "é", "a/b"] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_node_is_a_text_for_people_and_a_number_for_machines() {
        let node = NodeId(0x2f);
        assert_eq!(serde_json::to_string(&node).unwrap(), "\"000000000000002f\"");
        assert_eq!(serde_json::from_str::<NodeId>("\"000000000000002f\"").unwrap(), node);
        assert_eq!(format!("{node} {node:?}"), "000000000000002f 000000000000002f");
        for bad in ["", "2f", "+00000000000002f", "00000000000000002f", "000000000000002g"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn client_ids_have_limits() {
        assert!("Phone_7-a".parse::<ClientId>().is_ok());
        for bad in ["", "a b", "a/b", "..", &"x".repeat(129)] {
            assert!(bad.parse::<ClientId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn binary_ids_round_trip_as_text() {
        let uid = JobUid::from_bytes([0xab; 16]);
        assert_eq!(uid.to_string().parse::<JobUid>().unwrap(), uid);
        assert_eq!(serde_json::from_str::<JobUid>(&serde_json::to_string(&uid).unwrap()).unwrap(), uid);
        assert!("zz".repeat(16).parse::<JobUid>().is_err());
    }

    #[test]
    fn receipts_differ_by_attempt_and_client() {
        let (uid, digest) = (JobUid::from_bytes([1; 16]), Digest::from_bytes([2; 32]));
        let (a, b): (ClientId, ClientId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let first = ReceiptId::derive(uid, 1, &a, &digest, 0);
        assert_eq!(first, ReceiptId::derive(uid, 1, &a, &digest, 0));
        assert_ne!(first, ReceiptId::derive(uid, 1, &a, &digest, 1));
        assert_ne!(first, ReceiptId::derive(uid, 1, &b, &digest, 0));
        assert_ne!(first, ReceiptId::derive(uid, 2, &a, &digest, 0));
    }
}
