//! Where a machine has its programs. Tests hand in folders of their own instead.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A machine, as the search for tools sees it.
#[derive(Debug)]
pub struct Machine {
    path: Vec<PathBuf>,
    distribution_rustc: PathBuf,
    root: bool,
    /// Whether the package index was refreshed by this process.
    pub refreshed: Cell<bool>,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let root = output(Command::new("id").arg("-u")).is_ok_and(|id| id == "0");
        Self::with(std::env::split_paths(&path).collect(), "/usr/bin/rustc".into(), root)
    }

    /// One that has its programs elsewhere.
    pub fn with(path: Vec<PathBuf>, distribution_rustc: PathBuf, root: bool) -> Self {
        Self { path, distribution_rustc, root, refreshed: Cell::new(false) }
    }

    /// A program on the search path.
    pub fn on_path(&self, program: &str) -> Option<PathBuf> {
        self.path.iter().map(|dir| dir.join(program)).find(|program| program.is_file())
    }

    /// The distribution's compiler, whether it is there or not.
    pub fn distribution_rustc(&self) -> &Path {
        &self.distribution_rustc
    }

    /// Whether this process may install packages.
    pub fn is_root(&self) -> bool {
        self.root
    }
}

/// What a command prints, or the first line of its complaint.
pub fn output(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{program}: {e}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let complaint = text.lines().find(|line| !line.trim().is_empty());
        return Err(complaint.map_or_else(|| format!("{program}: {}", output.status), str::to_string));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}
