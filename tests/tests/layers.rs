//! The layers of the design, enforced: who may import whom, who alone knows which library, and where unsafe code is.
//!
//! A new crate has to be named here, and with it what it is for.

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, TargetKind};
use catchment_tests::root;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The crates, lowest layer first, each with those of ours that it may import.
const LAYERS: &[(&str, &[&str])] = &[
    ("catchment-types", &[]),
    ("catchment-codec", &[]),
    ("catchment-archive", &[]),
    ("catchment-ingest", &["catchment-types"]),
    ("catchment-slab", &["catchment-types"]),
    ("catchment-bus", &[]),
    ("catchment-ledger", &["catchment-types", "catchment-codec", "catchment-bus"]),
    ("catchment-fleet", &["catchment-types", "catchment-bus"]),
    ("catchment-tasks", &["catchment-types", "catchment-ledger"]),
    ("catchment-planner", &["catchment-types"]),
    ("catchment-sdk", &[]),
    ("catchment-runtime", &["catchment-sdk"]),
    ("catchment-proxy", &["catchment-types"]),
    ("catchment-runner", &["catchment-types", "catchment-codec", "catchment-runtime", "catchment-proxy"]),
    (
        "catchment-node",
        &[
            "catchment-types",
            "catchment-codec",
            "catchment-slab",
            "catchment-bus",
            "catchment-ledger",
            "catchment-fleet",
            "catchment-tasks",
            "catchment-planner",
            "catchment-ingest",
            "catchment-runtime",
            "catchment-proxy",
            "catchment-runner",
        ],
    ),
    ("catchment-coordinator", &["catchment-types", "catchment-ledger", "catchment-fleet", "catchment-planner"]),
    ("catchment-simulator", &["catchment-types", "catchment-ledger", "catchment-planner", "catchment-coordinator"]),
    ("catchment-client", &["catchment-types"]),
    (
        "catchment",
        &[
            "catchment-types",
            "catchment-archive",
            "catchment-bus",
            "catchment-ledger",
            "catchment-fleet",
            "catchment-runtime",
            "catchment-proxy",
            "catchment-runner",
            "catchment-node",
            "catchment-coordinator",
            "catchment-simulator",
            "catchment-client",
        ],
    ),
    ("catchment-failpoints", &["catchment-types", "catchment"]),
    ("catchment-worker", &["catchment-types", "catchment-client"]),
    ("catchment-tests", &[]),
    (
        "catchment-benches",
        &[
            "catchment-types",
            "catchment-bus",
            "catchment-ledger",
            "catchment-slab",
            "catchment-runtime",
            "catchment-proxy",
            "catchment-runner",
            "catchment-planner",
            "catchment-tests",
        ],
    ),
    ("xtask", &[]),
];

/// Libraries (a `*` ends a family of them) that only these may import, in tests too. These tests play an outside client
/// of NATS.
const WRAPPED: &[(&str, &[&str])] = &[
    ("bincode", &["catchment-codec"]),
    ("wasmtime", &["catchment-runtime"]),
    ("async-nats", &["catchment-bus", "catchment-tests"]),
    ("redb", &["catchment-bus"]),
    ("aya", &["catchment-proxy"]),
    ("prometheus", &["catchment-coordinator", "catchment-node"]),
    ("candle-*", &["catchment-worker"]),
];

/// Crates that may hold unsafe code; every other forbids it. Benches call what is compiled for the processor at hand.
const UNSAFE: [&str; 5] =
    ["catchment-slab", "catchment-runtime", "catchment-sdk", "catchment-proxy", "catchment-benches"];
/// Files of `catchment-sdk` that may: the two sides of its contract, and the macro that exports a function.
const UNSAFE_IN_SDK: [&str; 3] = ["abi.rs", "guest.rs", "lib.rs"];

fn workspace() -> Metadata {
    MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().expect("cargo metadata")
}

fn is_function(package: &Package) -> bool {
    package.manifest_path.starts_with(root().join("functions"))
}

/// What a package may import of ours, or why it is unknown.
fn allowed(package: &Package) -> &'static [&'static str] {
    if is_function(package) {
        return &["catchment-sdk"];
    }
    let entry = LAYERS.iter().find(|(name, _)| *name == package.name.as_str());
    entry.unwrap_or_else(|| panic!("{} has no layer: give it one here", package.name)).1
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The roots of what a package ships: its libraries and binaries.
fn roots(package: &Package) -> Vec<PathBuf> {
    let ships = [TargetKind::Lib, TargetKind::RLib, TargetKind::CDyLib, TargetKind::Bin];
    let targets = package.targets.iter().filter(|target| target.kind.iter().any(|kind| ships.contains(kind)));
    targets.map(|target| target.src_path.clone().into_std_path_buf()).collect()
}

/// Whether a source uses the word outside of comments and lint names.
fn has_unsafe(source: &str) -> bool {
    let code = source.lines().map(|line| line.split("//").next().unwrap_or_default());
    let words = |line: &str| line.replace("unsafe_", "").contains("unsafe");
    code.into_iter().any(words)
}

#[test]
fn a_crate_imports_only_from_layers_below_it() {
    let workspace = workspace();
    let ours: BTreeSet<&str> = workspace.packages.iter().map(|package| package.name.as_str()).collect();
    assert!(ours.len() >= LAYERS.len(), "the workspace has {ours:?}");
    let height = |name: &str| LAYERS.iter().position(|(layer, _)| *layer == name);
    for package in &workspace.packages {
        for dependency in &package.dependencies {
            let to = dependency.name.as_str();
            if !ours.contains(to) {
                continue;
            }
            if dependency.kind == DependencyKind::Development {
                // Tests of a layer may use whatever lies below it, and functions to try it with.
                let below = height(to).is_none_or(|to| height(&package.name).is_none_or(|from| to < from));
                assert!(below, "tests of {} import {to}, which lies above", package.name);
            } else {
                assert!(
                    allowed(package).contains(&to),
                    "{} imports {to}: only {:?} is allowed",
                    package.name,
                    allowed(package)
                );
                assert!(height(to) < height(&package.name) || is_function(package), "{to} lies above {}", package.name);
            }
        }
    }
}

#[test]
fn one_crate_each_wraps_what_could_spread() {
    let workspace = workspace();
    for (library, wrappers) in WRAPPED {
        let is_it = |name: &str| library.strip_suffix('*').map_or(name == *library, |family| name.starts_with(family));
        let importers = workspace.packages.iter().filter(|package| package.dependencies.iter().any(|d| is_it(&d.name)));
        let importers: BTreeSet<&str> = importers.map(|package| package.name.as_str()).collect();
        assert_eq!(importers, wrappers.iter().copied().collect(), "who imports {library}");
    }
}

#[test]
fn every_crate_has_a_root_that_says_why_it_exists() {
    for package in workspace().packages {
        let roots = roots(&package);
        assert!(!roots.is_empty(), "{} has no root", package.name);
        for root in roots {
            let source = fs::read_to_string(&root).expect("a source");
            let words =
                source.lines().take_while(|line| line.starts_with("//!")).flat_map(str::split_whitespace).count();
            assert!(words >= 8, "{} does not say why it exists", root.display());
        }
    }
}

#[test]
fn unsafe_code_is_where_it_must_be_and_nowhere_else() {
    let mut forbidding = 0;
    for package in workspace().packages {
        let home = package.manifest_path.parent().expect("a folder").as_std_path().join("src");
        let allowed = UNSAFE.contains(&package.name.as_str());
        for root in roots(&package).iter().filter(|root| root.starts_with(&home) && !allowed) {
            let source = fs::read_to_string(root).expect("a source");
            // A function's exports are made by the SDK's macro, which needs the lint to be liftable.
            let lint = if is_function(&package) { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
            assert!(source.contains(lint), "{} lacks {lint}", root.display());
            forbidding += 1;
        }
        for file in rust_files(&home) {
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let may = allowed && (package.name.as_str() != "catchment-sdk" || UNSAFE_IN_SDK.contains(&name));
            let source = fs::read_to_string(&file).expect("a source");
            assert!(may || !has_unsafe(&source), "{} has unsafe code", file.display());
        }
    }
    assert!(forbidding >= 8, "only {forbidding} roots were looked at");
}
