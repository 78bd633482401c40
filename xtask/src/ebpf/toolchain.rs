//! Which Rust toolchain can build for the kernel on this machine.
//!
//! No stable toolchain of rustup's has libraries for this target, so it is a nightly with the library's sources, or
//! Debian's second toolchain, which ships them compiled. Either needs something that makes kernel code of bitcode:
//! `bpf-linker`, or LLVM's `llc` of the compiler's own version.

use crate::toolchain::{DEBIAN_RUSTC, clean_cargo, has_core, has_sources, nightly_sysroot, on_path, output, version};
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The kernel's machine, on little-endian hosts.
pub const TARGET: &str = "bpfel-unknown-none";

/// The packages that give a Debian machine all it needs.
pub const APT_LINE: &str = "apt-get install -y --no-install-recommends rustc-web libstd-rust-web-dev-bpf llvm-22";

/// A toolchain that can build kernel programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Toolchain {
    /// A rustup nightly with the library's sources.
    Nightly(Linker),
    /// The distribution's compiler with the target's libraries.
    Distribution(Linker),
}

/// What makes an object of bitcode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Linker {
    /// `bpf-linker`.
    Bpf(PathBuf),
    /// LLVM's `llc` and `llvm-strip`.
    Compiler {
        /// The compiler.
        llc: PathBuf,
        /// What takes the debug information out.
        strip: PathBuf,
    },
}

type Candidate = (&'static str, fn() -> Result<Toolchain, String>);

impl Toolchain {
    const CANDIDATES: [Candidate; 2] = [
        ("a nightly toolchain with rust-src", nightly),
        ("the distribution's rustc with libraries for bpf", distribution),
    ];

    /// The toolchain to build kernel programs with.
    pub fn find() -> Result<Self> {
        let mut text = String::from("no toolchain on this machine can build for the kernel:");
        for (name, ask) in Self::CANDIDATES {
            match ask() {
                Ok(found) => return Ok(found),
                Err(reason) => text.push_str(&format!("\n  {name}: {reason}")),
            }
        }
        bail!(
            "{text}\nOne of these helps:\n  rustup toolchain install nightly --component rust-src && cargo install bpf-linker\n  {APT_LINE}"
        );
    }

    /// What makes its object.
    pub fn linker(&self) -> &Linker {
        match self {
            Self::Nightly(linker) | Self::Distribution(linker) => linker,
        }
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let (Linker::Bpf(linker) | Linker::Compiler { llc: linker, .. }) = self.linker();
        let compiler = match self {
            Self::Nightly(_) => "the nightly toolchain, building core".to_string(),
            Self::Distribution(_) => format!("{DEBIAN_RUSTC} ({})", version(DEBIAN_RUSTC).unwrap_or_default()),
        };
        format!("{compiler}, and {}", linker.display())
    }

    /// A `cargo build` for the kernel with this toolchain, untouched by what the environment says about the host's.
    pub fn cargo_build(&self) -> Command {
        let mut cargo = clean_cargo(matches!(self, Self::Nightly(_)));
        cargo.args(["build", "--target", TARGET]);
        match self {
            Self::Nightly(_) => cargo.env("RUSTUP_TOOLCHAIN", "nightly").arg("-Zbuild-std=core"),
            Self::Distribution(_) => cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1"),
        };
        cargo
    }
}

/// Prints each candidate and the choice.
pub fn doctor() {
    println!("Kernel programs (eBPF), which are optional:");
    for (name, ask) in Toolchain::CANDIDATES {
        match ask() {
            Ok(_) => println!("  yes  {name}"),
            Err(reason) => println!("  no   {name}: {reason}"),
        }
    }
    match Toolchain::find() {
        Ok(toolchain) => println!("  taken: {}", toolchain.describe()),
        Err(_) => println!("  taken: none; this helps:\n    {APT_LINE}"),
    }
}

fn nightly() -> Result<Toolchain, String> {
    let sysroot = nightly_sysroot()?;
    if !has_sources(Path::new(&sysroot)) {
        return Err("it has no rust-src".to_string());
    }
    let details = output(Command::new("rustc").env("RUSTUP_TOOLCHAIN", "nightly").arg("-vV"))?;
    linker(&details).map(Toolchain::Nightly)
}

fn distribution() -> Result<Toolchain, String> {
    let libdir = output(Command::new(DEBIAN_RUSTC).args(["--print", "target-libdir", "--target", TARGET]))?;
    if !has_core(Path::new(&libdir)) {
        return Err("its libraries for bpf are not installed".to_string());
    }
    linker(&output(Command::new(DEBIAN_RUSTC).arg("-vV"))?).map(Toolchain::Distribution)
}

/// What reads the bitcode of the compiler that says this about itself.
fn linker(details: &str) -> Result<Linker, String> {
    let llvm = llvm_major(details).ok_or("it does not say which LLVM it has")?;
    if let (Some(llc), Some(strip)) = (on_path(&format!("llc-{llvm}")), on_path(&format!("llvm-strip-{llvm}"))) {
        return Ok(Linker::Compiler { llc, strip });
    }
    let missing = format!("there is neither llc-{llvm} (package llvm-{llvm}) nor bpf-linker");
    on_path("bpf-linker").map(Linker::Bpf).ok_or(missing)
}

fn llvm_major(details: &str) -> Option<u32> {
    let version = details.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_says_which_llvm_it_has() {
        assert_eq!(llvm_major("rustc 1.96.0\nhost: x\nLLVM version: 22.1.2\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0"), None);
    }
}
