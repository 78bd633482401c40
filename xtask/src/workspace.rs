//! Where the workspace and its build outputs are.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// The folder for build outputs: `CARGO_TARGET_DIR`, else `target` in the workspace.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => std::env::current_dir().unwrap_or_default().join(dir),
        None => root().join("target"),
    }
}

/// Copies, through a neighbour so that no reader sees half a file; leaves an equal file alone, so that whatever
/// depends on it stays fresh. Returns the size.
pub fn copy_if_changed(from: &Path, to: &Path) -> Result<u64> {
    let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(bytes.len() as u64);
    }
    let part = to.with_extension(format!("part-{}", std::process::id()));
    fs::write(&part, &bytes).with_context(|| format!("write {}", part.display()))?;
    fs::rename(&part, to).with_context(|| format!("write {}", to.display()))?;
    Ok(bytes.len() as u64)
}

/// Takes out of a command's environment what cargo has told this program of itself. Some build scripts look at it, and would
/// be run again, and what depends on them compiled again, whenever cargo is called by hand and by this program in turn.
pub fn without_package(command: &mut Command) -> &mut Command {
    let of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(of_package) {
            command.env_remove(name);
        }
    }
    command
}
