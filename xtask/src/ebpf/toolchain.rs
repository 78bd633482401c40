//! Which Rust toolchain can build for the kernel on this machine.
//!
//! No stable toolchain of rustup's has libraries for this target, so it is a nightly with the library's sources, or
//! Debian's second toolchain, which ships them compiled. Either needs something that makes kernel code of bitcode:
//! LLVM's `llc`, or `bpf-linker`, neither older than the LLVM that wrote the bitcode.

use crate::apt;
use crate::compiler::{Candidate, Compiler, Which, choose};
use crate::machine::{Machine, output};
use crate::toolchain::clean_cargo;
use crate::version::Version;
use anyhow::{Context, Result, anyhow};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The kernel's machine, on little-endian hosts.
pub const TARGET: &str = "bpfel-unknown-none";

/// The packages that give a Debian machine a compiler. LLVM's tools come beside, of the version that the compiler has.
const PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];

/// The LLVM of the oldest compiler that will do.
const LLVM_WANTED: u64 = 22;

/// The first `bpf-linker` that reads the bitcode of an LLVM, newest first.
const BPF_LINKERS: [(u64, Version); 2] = [(23, Version(0, 11, 0)), (22, Version(0, 10, 0))];

/// A toolchain that can build kernel programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    compiler: Compiler,
    linker: Linker,
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

impl Toolchain {
    /// What there is, in order of preference.
    pub fn candidates(machine: &Machine) -> Vec<Candidate<Self>> {
        let with = |compiler: &Compiler| {
            let linker = linker(machine, compiler)?;
            Ok(Self { compiler: compiler.clone(), linker })
        };
        vec![
            Candidate::ask(machine, "a nightly toolchain with rust-src", Which::Nightly, |compiler| {
                compiler.has_sources().and_then(|()| with(compiler))
            }),
            Candidate::ask(
                machine,
                "the distribution's rustc with libraries for bpf",
                Which::Distribution,
                |compiler| compiler.builds_for(TARGET).and_then(|()| with(compiler)),
            ),
        ]
    }

    /// The toolchain to build kernel programs with.
    pub fn find(machine: &Machine) -> Result<Self> {
        choose(Self::candidates(machine)).map_err(|reasons| {
            anyhow!(
                "no toolchain on this machine can build for the kernel:{reasons}\nOne of these helps:\n  rustup toolchain \
                 install nightly --component rust-src && cargo install bpf-linker\n  {}",
                apt_line(machine)
            )
        })
    }

    /// The same; when there is none, it is installed, or upgraded when it is too old.
    pub fn find_or_install(machine: &Machine, install: bool) -> Result<Self> {
        match Self::find(machine) {
            Err(none) if install => {
                apt::install(machine, &PACKAGES).with_context(|| none.to_string())?;
                // Which LLVM is wanted, only the compiler says that has just come.
                Self::find(machine).or_else(|_| {
                    apt::install(machine, &[&llvm_package(machine)]).with_context(|| none.to_string())?;
                    Self::find(machine)
                })
            }
            found => found,
        }
    }

    /// What makes its object.
    pub fn linker(&self) -> &Linker {
        &self.linker
    }

    /// A `cargo build` for the kernel with this toolchain, untouched by what the environment says about the host's.
    pub fn cargo_build(&self) -> Command {
        let mut cargo = clean_cargo(self.compiler.which());
        cargo.args(["build", "--target", TARGET]);
        match self.compiler.which() {
            Which::Nightly => cargo.env("RUSTUP_TOOLCHAIN", "nightly").arg("-Zbuild-std=core"),
            _ => cargo.env("RUSTC", self.compiler.program()).env("RUSTC_BOOTSTRAP", "1"),
        };
        cargo
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Linker::Bpf(linker) | Linker::Compiler { llc: linker, .. }) = &self.linker;
        let builds = if self.compiler.which() == Which::Nightly { ", building core" } else { "" };
        write!(f, "{}{builds}, linking with {}", self.compiler, linker.display())
    }
}

/// The one line for people.
pub fn apt_line(machine: &Machine) -> String {
    apt::line(&[PACKAGES[0], PACKAGES[1], &llvm_package(machine)])
}

fn llvm_package(machine: &Machine) -> String {
    let compiler = Compiler::ask(machine, Which::Distribution).ok().filter(|compiler| compiler.recent().is_ok());
    format!("llvm-{}", compiler.and_then(|compiler| compiler.llvm()).unwrap_or(LLVM_WANTED))
}

/// What reads this compiler's bitcode.
fn linker(machine: &Machine, compiler: &Compiler) -> Result<Linker, String> {
    let llvm = compiler.llvm().ok_or("it does not say which LLVM it has")?;
    let mut reasons = Vec::new();
    for suffix in [format!("-{llvm}"), String::new()] {
        let found = (machine.on_path(&format!("llc{suffix}")), machine.on_path(&format!("llvm-strip{suffix}")));
        let (Some(llc), Some(strip)) = found else { continue };
        match says(&llc) {
            Ok(version) if version >= Version(llvm, 0, 0) => return Ok(Linker::Compiler { llc, strip }),
            Ok(version) => reasons.push(format!("{} is too old: it is {version}", llc.display())),
            Err(reason) => reasons.push(reason),
        }
    }
    if let Some(linker) = machine.on_path("bpf-linker") {
        let wanted =
            BPF_LINKERS.iter().find(|(first, _)| llvm >= *first).map_or(BPF_LINKERS[1].1, |(_, wanted)| *wanted);
        match says(&linker) {
            Ok(version) if version >= wanted => return Ok(Linker::Bpf(linker)),
            Ok(version) => {
                reasons.push(format!("{} is too old: it is {version}, not {wanted} or newer", linker.display()));
            }
            Err(reason) => reasons.push(reason),
        }
    }
    reasons.insert(
        0,
        format!(
            "its bitcode is that of LLVM {llvm}, and there is no llc-{llvm} (package llvm-{llvm}) or bpf-linker for it"
        ),
    );
    Err(reasons.join("; "))
}

/// The version of a tool of LLVM's.
fn says(program: &Path) -> Result<Version, String> {
    let text = output(Command::new(program).arg("--version"))?;
    Version::find(&text).ok_or_else(|| format!("{} does not say its version", program.display()))
}

#[cfg(test)]
mod tests;
