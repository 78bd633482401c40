//! Compilers that a machine may have, each asked what it is before anybody relies on it.

use crate::machine::{Machine, output};
use crate::version::{RUST_WANTED, Version};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Which of a machine's compilers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The one on the search path.
    Current,
    /// Rustup's nightly.
    Nightly,
    /// The distribution's.
    Distribution,
}

/// A compiler that has said what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    which: Which,
    program: PathBuf,
    version: Version,
    llvm: Option<u64>,
    sysroot: PathBuf,
}

impl Compiler {
    /// Asks one, or says why there is none.
    pub fn ask(machine: &Machine, which: Which) -> Result<Self, String> {
        let program = match which {
            Which::Distribution => machine.distribution_rustc().to_path_buf(),
            Which::Current | Which::Nightly => {
                machine.on_path("rustc").ok_or("there is no rustc on the search path")?
            }
        };
        if !program.is_file() {
            return Err(format!("there is no {}", program.display()));
        }
        let details = output(command(&program, which).arg("-vV"))?;
        let line = |name: &str| details.lines().find_map(|line| line.strip_prefix(name));
        let version = Version::find(line("release: ").unwrap_or(&details));
        let version = version.ok_or_else(|| format!("{} does not say its version", program.display()))?;
        let llvm = line("LLVM version: ").and_then(|llvm| llvm.split('.').next()?.parse().ok());
        let sysroot = output(command(&program, which).args(["--print", "sysroot"]))?;
        // Without rustup, the variable that asks for a nightly means nothing.
        if which == Which::Nightly && !sysroot.contains("nightly") {
            return Err("none is installed".to_string());
        }
        Ok(Self { which, program, version, llvm, sysroot: sysroot.into() })
    }

    /// Refuses one that is older than the workspace needs. cargo would, too, but only when it is too late to take another.
    pub fn recent(&self) -> Result<(), String> {
        let wanted = Version::find(RUST_WANTED).expect("a version");
        if self.version < wanted {
            return Err(format!("it is too old: Cargo.toml says `rust-version = \"{RUST_WANTED}\"`"));
        }
        Ok(())
    }

    /// Whether it has the library compiled for this target, and can use it.
    pub fn builds_for(&self, target: &str) -> Result<(), String> {
        let libdir = output(command(&self.program, self.which).args(["--print", "target-libdir", "--target", target]))?;
        let entries = std::fs::read_dir(&libdir).into_iter().flatten().flatten();
        if !entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-")) {
            return Err(format!("its libraries for {target} are not installed"));
        }
        // They may be another version's, left from before an upgrade. What it writes goes to its output: as root it would
        // put a file in the place of a device that it is told to write to.
        let mut compile = command(&self.program, self.which);
        compile.args(["--target", target, "--crate-type=lib", "--emit=dep-info=-", "-"]);
        let child = compile.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|e| e.to_string())?;
        // One that ends before it has read this says so in its status.
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(b"#![no_std]\n").ok();
        }
        let output = child.wait_with_output().map_err(|e| e.to_string())?;
        match output.status.success() {
            true => Ok(()),
            false => {
                let text = String::from_utf8_lossy(&output.stderr);
                Err(format!("it cannot use its libraries for {target}: {}", text.lines().next().unwrap_or("it failed")))
            }
        }
    }

    /// Whether the sources of its library are there, and of its own version.
    pub fn has_sources(&self) -> Result<(), String> {
        let sources = self.sysroot.join("lib/rustlib/src/rust");
        if !sources.join("library/Cargo.toml").is_file() {
            return Err("it has no rust-src".to_string());
        }
        // Debian's folder carries the version in its name.
        let real = sources.canonicalize().unwrap_or(sources);
        let name = real.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match name.strip_prefix("rustc-").and_then(Version::find) {
            Some(other) if other != self.version => Err(format!("its rust-src is that of {other}")),
            _ => Ok(()),
        }
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Which LLVM it writes bitcode of.
    pub fn llvm(&self) -> Option<u64> {
        self.llvm
    }

    /// Where its libraries are.
    pub fn sysroot(&self) -> &Path {
        &self.sysroot
    }

    /// Which of the machine's it is.
    pub fn which(&self) -> Which {
        self.which
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nightly = if self.which == Which::Nightly { "nightly, " } else { "" };
        write!(f, "rustc {} ({nightly}{})", self.version, self.program.display())
    }
}

/// A question to a compiler. Asking for a toolchain must not install it.
fn command(program: &Path, which: Which) -> Command {
    let mut command = Command::new(program);
    command.env("RUSTUP_AUTO_INSTALL", "0");
    if which == Which::Nightly {
        command.env("RUSTUP_TOOLCHAIN", "nightly");
    }
    command
}

/// Something that might do, and whether it does.
#[derive(Debug)]
pub struct Candidate<T> {
    /// What it would be.
    pub name: &'static str,
    /// The compiler that was found, with its version.
    pub compiler: Option<Compiler>,
    /// What could be taken, or why not.
    pub verdict: Result<T, String>,
}

impl<T> Candidate<T> {
    /// Asks a compiler; one that is there and recent is judged.
    pub fn ask(
        machine: &Machine,
        name: &'static str,
        which: Which,
        judge: impl FnOnce(&Compiler) -> Result<T, String>,
    ) -> Self {
        match Compiler::ask(machine, which) {
            Ok(compiler) => {
                let verdict = compiler.recent().and_then(|()| judge(&compiler));
                Self { name, compiler: Some(compiler), verdict }
            }
            Err(reason) => Self { name, compiler: None, verdict: Err(reason) },
        }
    }
}

impl<T> fmt::Display for Candidate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if let Some(compiler) = &self.compiler {
            write!(f, ": {compiler}")?;
        }
        if let Err(reason) = &self.verdict {
            write!(f, ": {reason}")?;
        }
        Ok(())
    }
}

/// The first that does, or what is wrong with each.
pub fn choose<T>(candidates: Vec<Candidate<T>>) -> Result<T, String> {
    let mut reasons = String::new();
    for candidate in candidates {
        if candidate.verdict.is_err() {
            reasons.push_str(&format!("\n  {candidate}"));
        }
        if let Ok(found) = candidate.verdict {
            return Ok(found);
        }
    }
    Err(reasons)
}
