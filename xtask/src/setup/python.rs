//! The Python of tests: an environment of its own in the build folder, with what the list of packages names.

use super::{Setup, pip_install, quiet};
use crate::apt;
use crate::machine::{Machine, output};
use crate::version::Version;
use crate::workspace;
use anyhow::{Result, anyhow};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest Python for which the packages are there.
const PYTHON_WANTED: Version = Version(3, 11, 0);
/// Under which names it may be found.
const NAMES: [&str; 5] = ["python3", "python3.14", "python3.13", "python3.12", "python3.11"];

/// An environment that can install packages; made when it is not there, or not whole.
pub fn environment(setup: &Setup) -> Result<PathBuf> {
    let venv = setup.dir.join("venv");
    let python = venv.join("bin/python");
    if output(Command::new(&python).args(["-I", "-m", "pip", "--version"])).is_ok() {
        return Ok(python);
    }
    println!("making a Python environment in {}", venv.display());
    let machine = &setup.machine;
    let base = base(machine).or_else(|reason| {
        apt::install(machine, &["python3", "python3-venv"]).map_err(|error| anyhow!("{reason}; {error:#}"))?;
        base(machine).map_err(|reason| anyhow!(reason))
    })?;
    let make = || quiet(Command::new(&base).args(["-m", "venv", "--clear"]).arg(&venv));
    if let Err(reason) = make() {
        // Debian leaves out of Python what this needs.
        apt::install(machine, &["python3-venv"]).map_err(|error| anyhow!("{reason}\n{error:#}"))?;
        make().map_err(|reason| anyhow!(reason))?;
    }
    Ok(python)
}

/// Installs what an environment lacks of a list, and what it has in another version.
pub fn complete(python: &Path, list: &Path) -> Result<()> {
    let Err(lacks) = lacks(python, list) else { return Ok(()) };
    println!("installing Python packages of {}: {lacks}", list.display());
    pip_install(python, &["--requirement".as_ref(), list.as_os_str()])?;
    self::lacks(python, list).map_err(|lacks| anyhow!("pip is done, and still: {lacks}"))
}

/// What is there; nothing is changed.
pub fn look(setup: &Setup, list: &Path) -> Result<String, String> {
    let python = setup.dir.join("venv/bin/python");
    if !python.exists() {
        let base = base(&setup.machine).map(|base| format!(", and would be made with {}", base.display()));
        return Err(format!(
            "there is no environment {}{}",
            python.display(),
            base.unwrap_or_else(|why| format!("; {why}"))
        ));
    }
    lacks(&python, list)?;
    Ok(python.display().to_string())
}

/// Nothing, or what an environment lacks of a list. It is asked each time: that takes less than a tenth of a second.
fn lacks(python: &Path, list: &Path) -> Result<(), String> {
    let script = workspace::root().join("tests/python/installed.py");
    output(Command::new(python).arg("-I").arg(script).arg(list)).map(drop)
}

/// A Python that is new enough to make an environment of.
fn base(machine: &Machine) -> Result<PathBuf, String> {
    let mut reasons = Vec::new();
    for program in NAMES.iter().filter_map(|name| machine.on_path(name)) {
        match output(Command::new(&program).arg("--version")) {
            Ok(says) if Version::find(&says).is_some_and(|version| version >= PYTHON_WANTED) => return Ok(program),
            Ok(says) => reasons.push(format!("{} is {says}", program.display())),
            Err(reason) => reasons.push(reason),
        }
    }
    reasons.insert(0, format!("there is no Python {PYTHON_WANTED} or newer on the search path"));
    Err(reasons.join("; "))
}
