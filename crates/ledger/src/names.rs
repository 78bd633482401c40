//! Names that jobs had which are deleted.
//!
//! A job's name may be given again, to another job with another identity. What is still on its way for the old one says
//! only the name, unless its sender says more; so it must be known whether a name has stood for one job only. Names
//! themselves would be kept for ever at up to 126 bytes each, so eight bytes of their hash stand for them. Two names with
//! the same hash cost nothing but that senders for the one have to say which job they mean.

use catchment_types::Name;
use std::collections::BTreeSet;

/// Hashes that are kept: 8 MB of a snapshot. Beyond them every name counts as used, because a name that was forgotten
/// would break the promise without a word.
const NAMES_MAX: usize = 1_000_000;

/// Names of deleted jobs.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct UsedNames {
    pub hashes: BTreeSet<u64>,
    /// Whether there were more than are kept.
    pub is_full: bool,
}

impl UsedNames {
    /// The job of this name is deleted.
    pub fn insert(&mut self, namespace: &Name, name: &Name) {
        let hash = hash(namespace, name);
        if self.hashes.len() < NAMES_MAX {
            self.hashes.insert(hash);
        } else {
            self.is_full |= !self.hashes.contains(&hash);
        }
    }

    /// Whether a job of this name may have been deleted.
    pub fn has(&self, namespace: &Name, name: &Name) -> bool {
        self.is_full || self.hashes.contains(&hash(namespace, name))
    }
}

fn hash(namespace: &Name, name: &Name) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("catchment v1 used name");
    // A name holds no slash.
    hasher.update(namespace.as_str().as_bytes()).update(b"/").update(name.as_str().as_bytes());
    u64::from_le_bytes(*hasher.finalize().as_bytes().first_chunk().expect("a hash has eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_used_in_its_namespace() {
        let mut used = UsedNames::default();
        used.insert(&name("a"), &name("b"));
        assert!(used.has(&name("a"), &name("b")));
        for (namespace, other) in [("b", "a"), ("a", "a"), ("ab", "b"), ("default", "b")] {
            assert!(!used.has(&name(namespace), &name(other)));
        }
    }

    #[test]
    fn when_there_are_too_many_every_name_counts_as_used() {
        let mut used = UsedNames { hashes: (0..NAMES_MAX as u64).collect(), is_full: false };
        let known = hash(&name("a"), &name("b"));
        used.hashes.remove(&7);
        used.hashes.insert(known);
        used.insert(&name("a"), &name("b"));
        assert!(!used.has(&name("a"), &name("c")), "it was there already");
        used.insert(&name("a"), &name("d"));
        assert!(used.has(&name("a"), &name("c")) && used.hashes.len() == NAMES_MAX);
    }
}
