//! Folders that are gone with their tests.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

/// A folder on shared memory, for this user alone: a store takes no other.
pub fn shared_memory() -> TempDir {
    let prefix = format!("catchment-tests-{}-", std::process::id());
    let mut folder = tempfile::Builder::new();
    folder.prefix(&prefix).permissions(Permissions::from_mode(0o700));
    folder.tempdir_in("/dev/shm").expect("make a folder for slabs")
}
