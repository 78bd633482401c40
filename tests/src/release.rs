//! The releases that tests run: the one at hand, and an old one beside it or before it.

use crate::programs::{catchment_command_of, root, target_dir};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

/// A build of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Release {
    /// The one under test.
    #[default]
    Present,
    /// That of commit 90cd469: what it stored has to be read, and a cluster of it to be upgraded while it works.
    Old,
}

/// The commit of [`Release::Old`], as `xtask releases` builds it.
const OLD: &str = "90cd4692512e373a06281ab50aab981c3c473dfc";

impl Release {
    /// Its program: `CATCHMENT_BIN` or `CATCHMENT_OLD_BIN`, else the one in the build folder.
    pub(crate) fn program(self) -> PathBuf {
        let (variable, place, how) = match self {
            Self::Present => ("CATCHMENT_BIN", "release/catchment".to_owned(), "make build"),
            Self::Old => {
                ("CATCHMENT_OLD_BIN", format!("releases/{OLD}/catchment"), "cargo run --release -p xtask -- releases")
            }
        };
        let path = std::env::var_os(variable).map_or_else(|| target_dir().join(place), |path| root().join(path));
        assert!(path.is_file(), "{} is not there: run `{how}`, or set {variable}", path.display());
        path
    }

    /// The release that is not this one.
    pub fn other(self) -> Self {
        match self {
            Self::Present => Self::Old,
            Self::Old => Self::Present,
        }
    }

    /// Whether its program may be given this flag. The one under test is given all of them: what it does not know is a
    /// mistake of the test's.
    pub(crate) fn takes(self, role: &'static str, flag: &str) -> bool {
        static KNOWN: Mutex<BTreeMap<&str, BTreeSet<String>>> = Mutex::new(BTreeMap::new());
        if self == Self::Present {
            return true;
        }
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(role).or_insert_with(|| flags(&self.help(role))).contains(flag)
    }

    fn help(self, role: &str) -> String {
        let mut command = catchment_command_of(self);
        let output = command.args([role, "--help"]).stderr(Stdio::null()).output().expect("run catchment");
        assert!(output.status.success(), "`catchment {role} --help` of {self:?} fails");
        String::from_utf8(output.stdout).expect("help is text")
    }
}

/// The flags that a help text lists: each begins a line.
fn flags(help: &str) -> BTreeSet<String> {
    let listed = help.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")));
    let found: BTreeSet<String> = listed.map(|flag| flag.trim_end_matches(',').to_owned()).collect();
    assert!(!found.is_empty(), "no flag is found in {help}");
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_found_in_a_help_text() {
        let help = "Serve\n\nOptions:\n      --listen <A>\n          Where\n  -h, --help\n          Print help\n";
        assert_eq!(flags(help).into_iter().collect::<Vec<_>>(), ["--help", "--listen"]);
    }

    #[test]
    fn the_other_of_the_other_is_the_same() {
        for release in [Release::Present, Release::Old] {
            assert!(release.other() != release && release.other().other() == release);
        }
    }
}
