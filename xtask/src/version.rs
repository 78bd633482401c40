//! Versions, as programs say them.

use std::fmt;

/// The compiler that the workspace needs, as its manifests say it.
pub const RUST_WANTED: &str = env!("CARGO_PKG_RUST_VERSION");

/// Three numbers. What follows them (`-nightly`) does not count, as it does not for cargo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64, pub u64, pub u64);

impl Version {
    /// The first version in a text: the first word of at least two numbers.
    pub fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(Self::parse)
    }

    fn parse(word: &str) -> Option<Self> {
        let word = word.trim_start_matches(['(', 'v']);
        let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
        let mut numbers = word[..end].trim_end_matches('.').split('.').map(|number| number.parse().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        Some(Self(major, minor, numbers.next().flatten().unwrap_or(0)))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_say_is_understood() {
        for (text, version) in [
            ("rustc 1.95.0 (59807616e 2026-04-14)", Version(1, 95, 0)),
            ("1.97.0-nightly", Version(1, 97, 0)),
            ("1.95", Version(1, 95, 0)),
            ("nats-server: v2.15.1", Version(2, 15, 1)),
            ("Debian LLVM version 22.1.8\n  Optimized build.", Version(22, 1, 8)),
            ("Debian LLD 14.0.6 (compatible with GNU linkers)", Version(14, 0, 6)),
            ("Python 3.12.0rc1", Version(3, 12, 0)),
            ("cargo-nextest 0.9.148 (cd1d6d546 2026-10-07)", Version(0, 9, 148)),
        ] {
            assert_eq!(Version::find(text), Some(version), "{text}");
        }
        for text in ["", "rustc", "no version", "2026-04-14", "1", "."] {
            assert_eq!(Version::find(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        assert!(Version(1, 100, 0) > Version(1, 95, 0));
        assert!(Version(0, 9, 148) > Version(0, 9, 15));
    }

    #[test]
    fn kernel_programs_need_the_same_compiler() {
        let manifest = std::fs::read_to_string(crate::workspace::root().join("ebpf/Cargo.toml")).expect("read it");
        assert!(manifest.contains(&format!("rust-version = \"{RUST_WANTED}\"")), "ebpf/Cargo.toml names another one");
    }
}
