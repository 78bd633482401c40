//! Where the workspace and its build outputs are.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

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
