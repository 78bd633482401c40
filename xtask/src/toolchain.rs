//! Which Rust toolchain can build for wasm32 on this machine.
//!
//! A usual machine has rustup's target. One without access to Rust's own servers may have a nightly with the library's
//! sources, or Debian's second toolchain, which ships them as a package; both build `core` and `alloc` along with the
//! function. The first that works is taken, and when none does, the answer is the one command that changes it.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target of functions.
pub const WASM_TARGET: &str = "wasm32-unknown-unknown";

/// The packages that give a Debian machine all it needs.
pub const APT_LINE: &str = "apt-get install -y --no-install-recommends rustc-web rust-web-src";

/// The distribution's compiler.
pub const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A toolchain that can build functions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Toolchain {
    /// The current toolchain has the target's libraries.
    Target,
    /// A rustup nightly with the library's sources.
    Nightly,
    /// The distribution's compiler with the library's sources, and a linker for wasm.
    Distribution {
        /// The linker.
        linker: PathBuf,
    },
}

/// A toolchain that may be there: its name, and the question whether it can be used.
pub type Candidate = (&'static str, fn() -> Finding);

/// Whether a toolchain can be used, or why not.
pub type Finding = Result<Toolchain, String>;

impl Toolchain {
    /// The candidates in order of preference, each with the question whether it can be used.
    pub const CANDIDATES: [Candidate; 3] = [
        ("the current toolchain with the wasm32 target", current),
        ("a nightly toolchain with rust-src", nightly),
        ("the distribution's rustc with rust-src", distribution),
    ];

    /// The toolchain to build functions with.
    pub fn find() -> Result<Self> {
        let mut text = String::from("no toolchain on this machine can build for wasm32:");
        for (name, ask) in Self::CANDIDATES {
            match ask() {
                Ok(found) => return Ok(found),
                Err(reason) => text.push_str(&format!("\n  {name}: {reason}")),
            }
        }
        bail!(
            "{text}\nOne of these helps:\n  rustup target add {WASM_TARGET}\n  {APT_LINE}\n(--install runs the second \
             for you)"
        );
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Target => format!("the current toolchain ({})", version("rustc").unwrap_or_default()),
            Self::Nightly => "the nightly toolchain, building core and alloc".to_string(),
            Self::Distribution { .. } => {
                format!("{DEBIAN_RUSTC} ({}), building core and alloc", version(DEBIAN_RUSTC).unwrap_or_default())
            }
        }
    }

    /// A `cargo build --target wasm32-unknown-unknown` with this toolchain, untouched by whatever the caller's
    /// environment says about the host's build.
    pub fn cargo_build(&self) -> Command {
        let mut cargo = clean_cargo(*self == Self::Nightly);
        cargo.args(["build", "--target", WASM_TARGET]);
        match self {
            Self::Target => {}
            Self::Nightly => {
                cargo.env("RUSTUP_TOOLCHAIN", "nightly").arg("-Zbuild-std=core,alloc");
            }
            Self::Distribution { linker } => {
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker).arg("-Zbuild-std=core,alloc");
            }
        }
        cargo
    }
}

/// A cargo that is untouched by whatever the caller's environment says about the host's build.
pub fn clean_cargo(rustup: bool) -> Command {
    let mut cargo = match rustup {
        true => Command::new("cargo"),
        false => Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())),
    };
    for (name, _) in std::env::vars_os() {
        if concerns_the_host(&name) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Runs this `apt-get` line, when this process may.
pub fn install(line: &str) -> Result<()> {
    eprintln!("{line}");
    let mut words = line.split(' ');
    let status = Command::new(words.next().expect("a program"))
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("run apt-get")?;
    if !status.success() {
        bail!("apt-get failed ({status}); it needs root and a package index (apt-get update)");
    }
    Ok(())
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

fn current() -> Finding {
    let libdir = output(Command::new("rustc").args(["--print", "target-libdir", "--target", WASM_TARGET]))?;
    has_core(Path::new(&libdir)).then_some(Toolchain::Target).ok_or("its libraries are not installed".to_string())
}

fn nightly() -> Finding {
    let sysroot = nightly_sysroot()?;
    has_sources(Path::new(&sysroot)).then_some(Toolchain::Nightly).ok_or("it has no rust-src".to_string())
}

/// Where rustup's nightly lies, if there is one.
pub fn nightly_sysroot() -> Result<String, String> {
    let sysroot = output(Command::new("rustc").env("RUSTUP_TOOLCHAIN", "nightly").args(["--print", "sysroot"]))?;
    sysroot.contains("nightly").then_some(sysroot).ok_or("none is installed".to_string())
}

fn distribution() -> Finding {
    let sysroot = output(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]))?;
    if !has_sources(Path::new(&sysroot)) {
        return Err("it has no rust-src".to_string());
    }
    let linker = linker(&sysroot).ok_or("there is no rust-lld, and no wasm-ld on the PATH")?;
    Ok(Toolchain::Distribution { linker })
}

/// A linker for wasm: the one that comes with rustup's toolchain, or the system's.
fn linker(distribution: &str) -> Option<PathBuf> {
    let sysroots = [output(Command::new("rustc").args(["--print", "sysroot"])).ok(), Some(distribution.to_string())];
    let targets = sysroots.into_iter().flatten().filter_map(|s| Path::new(&s).join("lib/rustlib").read_dir().ok());
    let bundled = targets.flatten().flatten().map(|target| target.path().join("bin/rust-lld"));
    bundled.filter(|linker| linker.is_file()).chain(on_path("wasm-ld")).next()
}

/// A program on the search path.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|program| program.is_file())
}

/// Whether a folder of libraries has the core library.
pub fn has_core(libdir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(libdir) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

/// Whether a toolchain has the library's sources.
pub fn has_sources(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/Cargo.toml").is_file()
}

/// What a compiler says about itself.
pub fn version(rustc: &str) -> Option<String> {
    output(Command::new(rustc).arg("--version")).ok()
}

/// What a command prints, or the first line of its complaint.
pub fn output(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{program}: {e}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(text.lines().next().unwrap_or("failed").to_string());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_flags_do_not_reach_the_function() {
        for name in ["RUSTFLAGS", "CARGO_PROFILE_RELEASE_LTO", "CARGO_BUILD_TARGET", "RUSTC_WORKSPACE_WRAPPER"] {
            assert!(concerns_the_host(&name.into()), "{name}");
        }
        for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "CARGO_TERM_COLOR", "CARGO_NET_OFFLINE"] {
            assert!(!concerns_the_host(&name.into()), "{name}");
        }
    }
}
