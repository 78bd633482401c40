//! Which Rust toolchain can build for wasm32 on this machine.
//!
//! A usual machine has rustup's target. One without access to Rust's own servers may have a nightly with the library's
//! sources, or Debian's second toolchain, which ships them as a package; both build `core` and `alloc` along with the
//! function. The first that works is taken, and when none does, the answer is the one command that changes it.

use crate::apt;
use crate::compiler::{Candidate, Compiler, Which, choose};
use crate::machine::{Machine, output};
use crate::version::Version;
use anyhow::{Context, Result, anyhow};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;

/// The target of functions.
pub const WASM_TARGET: &str = "wasm32-unknown-unknown";

/// The packages that give a Debian machine all it needs.
pub const PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];

/// The first wasm-ld that knows all the arguments that functions are linked with (`--initial-heap`).
const WASM_LD_WANTED: Version = Version(18, 0, 0);

/// A toolchain that can build functions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    compiler: Compiler,
    /// For a compiler that has none of its own.
    linker: Option<PathBuf>,
}

impl Toolchain {
    /// What there is, in order of preference.
    pub fn candidates(machine: &Machine) -> Vec<Candidate<Self>> {
        let with = |compiler: &Compiler, linker| Self { compiler: compiler.clone(), linker };
        vec![
            Candidate::ask(machine, "the current toolchain with the wasm32 target", Which::Current, |compiler| {
                compiler.builds_for(WASM_TARGET).map(|()| with(compiler, None))
            }),
            Candidate::ask(machine, "a nightly toolchain with rust-src", Which::Nightly, |compiler| {
                compiler.has_sources().map(|()| with(compiler, None))
            }),
            Candidate::ask(machine, "the distribution's rustc with rust-src", Which::Distribution, |compiler| {
                compiler.has_sources()?;
                Ok(with(compiler, Some(linker(machine, compiler)?)))
            }),
        ]
    }

    /// The toolchain to build functions with.
    pub fn find(machine: &Machine) -> Result<Self> {
        choose(Self::candidates(machine)).map_err(|reasons| {
            anyhow!(
                "no toolchain on this machine can build for wasm32:{reasons}\nOne of these helps:\n  rustup target add \
                 {WASM_TARGET}\n  {}",
                apt::line(&PACKAGES)
            )
        })
    }

    /// The same; when there is none, it is installed, or upgraded when it is too old.
    pub fn find_or_install(machine: &Machine, install: bool) -> Result<Self> {
        match Self::find(machine) {
            Err(none) if install => {
                apt::install(machine, &PACKAGES).with_context(|| none.to_string())?;
                Self::find(machine)
            }
            found => found,
        }
    }

    /// A `cargo build --target wasm32-unknown-unknown` with this toolchain, untouched by whatever the caller's
    /// environment says about the host's build.
    pub fn cargo_build(&self) -> Command {
        let mut cargo = clean_cargo(self.compiler.which());
        cargo.args(["build", "--target", WASM_TARGET]);
        match self.compiler.which() {
            Which::Current => {}
            Which::Nightly => {
                cargo.env("RUSTUP_TOOLCHAIN", "nightly").arg("-Zbuild-std=core,alloc");
            }
            Which::Distribution => {
                cargo.env("RUSTC", self.compiler.program()).env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=core,alloc");
            }
        }
        if let Some(linker) = &self.linker {
            cargo.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
        }
        cargo
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.compiler)?;
        if self.compiler.which() != Which::Current {
            f.write_str(", building core and alloc")?;
        }
        if let Some(linker) = &self.linker {
            write!(f, ", linking with {}", linker.display())?;
        }
        Ok(())
    }
}

/// A cargo that is untouched by whatever the caller's environment says about the host's build.
pub fn clean_cargo(which: Which) -> Command {
    let mut cargo = match which {
        // Only rustup's own cargo can change to another toolchain.
        Which::Nightly => Command::new("cargo"),
        Which::Current | Which::Distribution => {
            Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        }
    };
    for (name, _) in std::env::vars_os() {
        if concerns_the_host(&name) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Variables of the outer build that would leak into the inner one.
fn concerns_the_host(name: &OsString) -> bool {
    let Some(name) = name.to_str() else { return false };
    const EXACT: [&str; 9] = [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_BOOTSTRAP",
        "CARGO_INCREMENTAL",
        "CARGO_TARGET_DIR",
        "CARGO_MAKEFLAGS",
    ];
    EXACT.contains(&name)
        || ["CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_PKG_", "CARGO_FEATURE_"].iter().any(|p| name.starts_with(p))
        || ["CARGO_TARGET_WASM32", "CARGO_TARGET_BPFEL"].iter().any(|p| name.starts_with(p))
}

/// A linker for wasm: the one that comes with rustup's toolchain or the compiler itself, or the system's.
fn linker(machine: &Machine, compiler: &Compiler) -> Result<PathBuf, String> {
    let current = Compiler::ask(machine, Which::Current).ok();
    let sysroots = current.iter().chain([compiler]).map(|compiler| compiler.sysroot().join("lib/rustlib"));
    let targets = sysroots.filter_map(|rustlib| rustlib.read_dir().ok()).flatten().flatten();
    let bundled = targets.map(|target| target.path().join("bin/rust-lld")).find(|linker| linker.is_file());
    if let Some(linker) = bundled {
        return Ok(linker);
    }
    let named = compiler.llvm().map(|llvm| format!("wasm-ld-{llvm}")).unwrap_or_default();
    let linker = [&named, "wasm-ld"].into_iter().find_map(|name| machine.on_path(name));
    let linker =
        linker.ok_or_else(|| format!("there is no rust-lld, {named} or wasm-ld on the search path (package lld-*)"))?;
    let says = output(Command::new(&linker).arg("--version"))?;
    match Version::find(&says) {
        Some(version) if version >= WASM_LD_WANTED => Ok(linker),
        _ => Err(format!("{} is too old: it says `{says}`, and functions need {WASM_LD_WANTED}", linker.display())),
    }
}

#[cfg(test)]
mod tests;
