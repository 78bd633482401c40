use super::*;
use crate::compiler::Compiler;
use crate::fakes::{Fake, NEW, OLD};
use std::fs;

/// What each candidate is refused for, or nothing.
fn refusals(fake: &Fake) -> Vec<Option<String>> {
    Toolchain::candidates(&fake.machine(false)).into_iter().map(|candidate| candidate.verdict.err()).collect()
}

fn taken(fake: &Fake) -> Which {
    Toolchain::find(&fake.machine(false)).expect("one is taken").compiler.which()
}

#[test]
fn the_hosts_flags_do_not_reach_the_function() {
    for name in ["RUSTFLAGS", "CARGO_PROFILE_RELEASE_LTO", "CARGO_BUILD_TARGET", "RUSTC_WORKSPACE_WRAPPER"] {
        assert!(concerns_the_host(&name.into()), "{name}");
    }
    for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "CARGO_TERM_COLOR", "CARGO_NET_OFFLINE"] {
        assert!(!concerns_the_host(&name.into()), "{name}");
    }
}

#[test]
fn each_candidate_that_is_new_enough_is_taken() {
    let fake = Fake::new();
    fake.rustup(Some(NEW), Some(NEW));
    fake.distribution(NEW);
    assert_eq!(refusals(&fake), [None, None, None]);
    assert_eq!(taken(&fake), Which::Current);
    fake.rustup(Some(OLD), Some("9.97.0-nightly"));
    assert_eq!(taken(&fake), Which::Nightly);
    fake.rustup(Some(OLD), None);
    assert_eq!(taken(&fake), Which::Distribution);
}

/// The oldest that will do is what `rust-version` says, and one below is not.
#[test]
fn the_bound_is_the_workspaces() {
    let fake = Fake::new();
    let Version(major, minor, _) = Version::find(crate::version::RUST_WANTED).expect("a version");
    for (version, will_do) in [(format!("{major}.{minor}.0"), true), (format!("{major}.{}.9", minor - 1), false)] {
        fake.rustup(Some(&version), Some(&format!("{version}-nightly")));
        fake.distribution(&version);
        assert!(refusals(&fake).iter().all(|refusal| refusal.is_none() == will_do), "{version}");
    }
}

#[test]
fn an_old_current_toolchain_is_refused() {
    let fake = Fake::new();
    fake.rustup(Some(OLD), None);
    let refused = refusals(&fake)[0].clone().expect("refused");
    assert!(refused.contains("too old") && refused.contains("rust-version"), "{refused}");
}

#[test]
fn an_old_nightly_is_refused() {
    let fake = Fake::new();
    fake.rustup(None, Some("1.85.0-nightly"));
    assert!(refusals(&fake)[1].as_deref().is_some_and(|refused| refused.contains("too old")));
}

#[test]
fn an_old_compiler_of_the_distribution_is_refused_with_its_version() {
    let fake = Fake::new();
    fake.distribution(OLD);
    assert!(refusals(&fake)[2].as_deref().is_some_and(|refused| refused.contains("too old")));
    let error = Toolchain::find(&fake.machine(false)).expect_err("none will do").to_string();
    assert!(error.contains("rustc 1.85.0") && error.contains("apt-get update && apt-get install"), "{error}");
}

/// Debian's sources do not depend on its compiler, so that an upgrade may leave them behind.
#[test]
fn sources_of_another_version_are_refused() {
    let fake = Fake::new();
    fake.distribution(NEW);
    let sources = fake.path("compilers/distribution/lib/rustlib/src/rust");
    let real = fake.path("compilers/rustc-1.85.0");
    fs::rename(&sources, &real).expect("move");
    std::os::unix::fs::symlink(&real, &sources).expect("link");
    assert_eq!(refusals(&fake)[2].as_deref(), Some("its rust-src is that of 1.85.0"));
}

#[test]
fn an_old_linker_of_the_system_is_refused() {
    let fake = Fake::new();
    fake.distribution(NEW);
    fs::remove_dir_all(fake.path("compilers/distribution/lib/rustlib/host")).expect("remove");
    assert!(refusals(&fake)[2].as_deref().is_some_and(|refused| refused.contains("no rust-lld")));
    fake.program("wasm-ld", "echo 'Debian LLD 14.0.6 (compatible with GNU linkers)'");
    assert!(refusals(&fake)[2].as_deref().is_some_and(|refused| refused.contains("wasm-ld is too old")));
    fake.program("wasm-ld-22", "echo 'Debian LLD 22.1.8 (compatible with GNU linkers)'");
    assert_eq!(refusals(&fake)[2], None);
}

/// A new machine's index is old: without a refresh it offers the old compiler again.
#[test]
fn an_old_compiler_is_upgraded_from_a_fresh_index() {
    let fake = Fake::new();
    fake.distribution(OLD);
    fake.apt();
    let machine = fake.machine(true);
    let found = Toolchain::find_or_install(&machine, true).expect("it is upgraded");
    assert_eq!(found.compiler.which(), Which::Distribution);
    assert!(found.to_string().starts_with(&format!("rustc {NEW} (")), "{found}");
    let log = fake.apt_log();
    assert!(log[0].starts_with("update") && log[1].contains("rustc-web rust-web-src") && log.len() == 2, "{log:?}");
    // What is there is taken.
    Toolchain::find_or_install(&machine, true).expect("it is found");
    assert_eq!(fake.apt_log().len(), 2);
}

/// Nothing is believed of an index that could not be refreshed: what it offers is asked for its version like anything.
#[test]
fn without_package_servers_the_old_one_is_still_refused() {
    let fake = Fake::new();
    fake.distribution(OLD);
    fake.apt();
    fake.program("apt-get", "case $1 in update) echo 'E: Could not resolve host' >&2; exit 100;; esac");
    let error = Toolchain::find_or_install(&fake.machine(true), true).expect_err("it is as old as before").to_string();
    assert!(error.contains("too old") && error.contains("apt-get update"), "{error}");
}

#[test]
fn whoever_is_not_root_is_told_the_one_command() {
    let fake = Fake::new();
    fake.apt();
    let error = Toolchain::find_or_install(&fake.machine(false), true).expect_err("it may not install");
    let wanted = "sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends rustc-web rust-web-src'";
    assert!(format!("{error:#}").contains(wanted), "{error:#}");
    assert!(fake.apt_log().is_empty());
}

#[test]
fn a_machine_without_anything_has_no_compiler() {
    let fake = Fake::new();
    let machine = fake.machine(false);
    for which in [Which::Current, Which::Nightly, Which::Distribution] {
        Compiler::ask(&machine, which).expect_err("there is none");
    }
}

/// Debian's rustup would be removed by the compiler.
#[test]
fn debians_rustup_is_not_removed() {
    let fake = Fake::new();
    fake.apt();
    fake.program("dpkg-query", "printf installed");
    let error = Toolchain::find_or_install(&fake.machine(true), true).expect_err("it is not asked for");
    assert!(format!("{error:#}").contains("exclude each other"), "{error:#}");
    assert!(fake.apt_log().is_empty());
}
