use super::*;
use crate::fakes::{Fake, NEW, OLD};

const LLC: [&str; 2] = ["llc-22", "llvm-strip-22"];

fn refusals(fake: &Fake) -> Vec<Option<String>> {
    Toolchain::candidates(&fake.machine(false)).into_iter().map(|candidate| candidate.verdict.err()).collect()
}

fn tools(fake: &Fake, names: [&str; 2], version: &str) {
    for name in names {
        fake.program(name, &format!("echo 'Debian LLVM version {version}'; echo '  Optimized build.'"));
    }
}

#[test]
fn each_candidate_that_is_new_enough_is_taken() {
    let fake = Fake::new();
    tools(&fake, LLC, "22.1.8");
    fake.rustup(None, Some("9.97.0-nightly"));
    fake.distribution(NEW);
    assert_eq!(refusals(&fake), [None, None]);
}

#[test]
fn an_old_nightly_is_refused() {
    let fake = Fake::new();
    tools(&fake, LLC, "22.1.8");
    fake.rustup(Some(NEW), Some("1.85.0-nightly"));
    assert!(refusals(&fake)[0].as_deref().is_some_and(|refused| refused.contains("too old")));
}

#[test]
fn an_old_compiler_of_the_distribution_is_refused() {
    let fake = Fake::new();
    tools(&fake, LLC, "22.1.8");
    fake.distribution(OLD);
    assert!(refusals(&fake)[1].as_deref().is_some_and(|refused| refused.contains("too old")));
}

/// A name is no version: the tool is asked.
#[test]
fn old_tools_of_llvms_are_refused() {
    let fake = Fake::new();
    fake.distribution(NEW);
    let none = refusals(&fake)[1].clone().expect("there is none");
    assert!(none.contains("there is no llc-22 (package llvm-22) or bpf-linker"), "{none}");
    for names in [LLC, ["llc", "llvm-strip"]] {
        tools(&fake, names, "14.0.6");
        let refused = refusals(&fake)[1].clone().expect("refused");
        assert!(refused.contains(&format!("{} is too old: it is 14.0.6", names[0])), "{refused}");
    }
    tools(&fake, ["llc", "llvm-strip"], "23.1.0");
    assert_eq!(refusals(&fake)[1], None);
}

#[test]
fn an_old_bpf_linker_is_refused() {
    let fake = Fake::new();
    fake.distribution(NEW);
    fake.program("bpf-linker", "echo bpf-linker 0.9.15");
    let refused = refusals(&fake)[1].clone().expect("refused");
    assert!(refused.contains("bpf-linker is too old: it is 0.9.15, not 0.10.0 or newer"), "{refused}");
    fake.program("bpf-linker", "echo bpf-linker 0.13.0");
    assert_eq!(refusals(&fake)[1], None);
}

/// Libraries that another version of the compiler left behind are there, and of no use.
#[test]
fn libraries_that_the_compiler_cannot_use_are_refused() {
    let fake = Fake::new();
    tools(&fake, LLC, "22.1.8");
    fake.distribution(NEW);
    let does = fake.path("usr/rustc.does");
    let text = std::fs::read_to_string(&does).expect("read");
    let fails = "*--emit=dep-info*) echo 'error[E0514]: found crate `core` compiled by another rustc' >&2; exit 1;;";
    std::fs::write(&does, text.replace("'--target '*' --crate-type=lib --emit=dep-info=- -') ;;", fails))
        .expect("write");
    assert!(refusals(&fake)[1].as_deref().is_some_and(|refused| refused.contains("E0514")), "{:?}", refusals(&fake));
}

/// The compiler that comes says which LLVM's tools are wanted.
#[test]
fn an_old_compiler_is_upgraded_and_its_llvm_comes_after_it() {
    let fake = Fake::new();
    fake.distribution(OLD);
    fake.apt();
    let found = Toolchain::find_or_install(&fake.machine(true), true).expect("it is upgraded");
    assert!(found.to_string().starts_with(&format!("rustc {NEW} (")), "{found}");
    let log = fake.apt_log();
    let asked: Vec<_> = log.iter().map(|line| line.rsplit(' ').next().unwrap_or_default()).collect();
    assert_eq!(asked, ["APT::Update::Error-Mode=any", "libstd-rust-web-dev-bpf", "llvm-22"]);
}
