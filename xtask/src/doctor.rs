//! `xtask doctor`: what this machine can build, and with what.

use crate::apt;
use crate::compiler::Candidate;
use crate::ebpf;
use crate::machine::Machine;
use crate::setup::Setup;
use crate::toolchain::{PACKAGES, Toolchain};
use crate::version::RUST_WANTED;
use std::fmt::Display;

/// Prints each candidate and what would be taken. That there is nothing to take is an answer, not a failure.
pub fn run() {
    print(&Setup::this());
}

/// The same, for whoever has set up.
pub fn print(setup: &Setup) {
    print!("{}", report(setup));
}

fn report(setup: &Setup) -> String {
    let machine: &Machine = setup.machine();
    let mut text = format!("Functions (wasm32), with rustc {RUST_WANTED} or newer:\n");
    text += &section(&Toolchain::candidates(machine), &apt::line(&PACKAGES));
    text += &format!("Kernel programs (eBPF), which are optional, with rustc {RUST_WANTED} or newer:\n");
    text += &section(&ebpf::Toolchain::candidates(machine), &ebpf::apt_line(machine));
    text += "Tools beside:\n";
    let tools = setup.look();
    for (name, found) in &tools {
        text += &match found {
            Ok(found) => format!("  yes  {name} {found}\n"),
            Err(reason) => format!("  no   {name}: {reason}\n"),
        };
    }
    if tools.iter().any(|(_, found)| found.is_err()) {
        text += "  `make setup` installs what is missing, or of another version, into the build folder\n";
    }
    text
}

fn section<T: Display>(candidates: &[Candidate<T>], helps: &str) -> String {
    let mut text = String::new();
    for candidate in candidates {
        text += &format!("  {} {candidate}\n", if candidate.verdict.is_ok() { "yes " } else { "no  " });
    }
    text += &match candidates.iter().find_map(|candidate| candidate.verdict.as_ref().ok()) {
        Some(taken) => format!("  taken: {taken}\n"),
        None => format!("  taken: none; this helps, as root:\n    {helps}\n"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{Fake, NEW, OLD};

    /// Nothing that is missing keeps it from answering.
    #[test]
    fn a_machine_without_anything_is_told_what_helps() {
        let fake = Fake::new();
        let report = report(&Setup::with(fake.machine(false), fake.path("tools")));
        assert_eq!(report.matches("taken: none; this helps, as root:\n    apt-get update && ").count(), 2, "{report}");
        for tool in ["cargo-nextest", "cargo-deny", "python"] {
            assert!(report.contains(&format!("  no   {tool}: ")), "{report}");
        }
        assert!(report.contains("make setup"), "{report}");
    }

    #[test]
    fn each_candidate_says_its_version_why_it_is_refused_and_which_is_taken() {
        let fake = Fake::new();
        fake.rustup(Some(OLD), None);
        fake.distribution(NEW);
        let report = report(&Setup::with(fake.machine(false), fake.path("tools")));
        let (current, distribution) = (fake.path("bin/rustc"), fake.path("usr/rustc"));
        let old = format!(
            "  no   the current toolchain with the wasm32 target: rustc {OLD} ({}): it is too old",
            current.display()
        );
        assert!(report.contains(&old), "{report}");
        let new = format!("  yes  the distribution's rustc with rust-src: rustc {NEW} ({})\n", distribution.display());
        assert!(report.contains(&new), "{report}");
        assert!(report.contains(&format!("  taken: rustc {NEW} (")), "{report}");
    }
}
