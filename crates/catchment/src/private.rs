//! What a process keeps on disk is its user's alone: clients' updates, models, and the log that says whose they are.
//!
//! Whatever is made from now on is private by the mask. What an earlier release made is mended, by name: the data
//! directory may be one in which others keep files, too.

use rustix::fs::Mode;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Files that earlier releases made for everybody to read.
const FILES: [&str; 4] = ["node-id", "log-id", "log.redb", "snapshot.draft"];
/// Of the log's snapshots, the beginning and the end of the name.
const SNAPSHOT: (&str, &str) = ("snapshot-", ".bin");
/// Folders, with all that is in them.
const FOLDERS: [&str; 4] = ["models", "modules", "orphaned", "uploads"];

/// Makes everything that this process makes from now on its user's alone. Call it before anything is made.
pub fn make_private() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// Takes away what others may do with files of ours that are in a data directory already. What cannot be mended is said
/// and left: nothing depends on it.
pub fn mend(data: &Path) {
    if let Err(error) = mend_in(data) {
        tracing::warn!(data = %data.display(), %error, "others may be able to read what is in the data directory");
    }
}

fn mend_in(data: &Path) -> io::Result<()> {
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_snapshot = name.starts_with(SNAPSHOT.0) && name.ends_with(SNAPSHOT.1);
        if FOLDERS.contains(&name) {
            mend_all(&entry.path())?;
        } else if is_snapshot || FILES.contains(&name) {
            mend_one(&entry.path())?;
        }
    }
    Ok(())
}

fn mend_all(path: &Path) -> io::Result<()> {
    mend_one(path)?;
    if !fs::symlink_metadata(path)?.is_dir() {
        return Ok(());
    }
    fs::read_dir(path)?.try_for_each(|entry| mend_all(&entry?.path()))
}

fn mend_one(path: &Path) -> io::Result<()> {
    let seen = fs::symlink_metadata(path)?;
    if seen.permissions().mode() & 0o077 == 0 || !(seen.is_file() || seen.is_dir()) {
        return Ok(());
    }
    // Through a descriptor, so that what is changed is what was looked at, and no link leads elsewhere.
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o7700;
    file.set_permissions(Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_ours_is_mended_and_the_rest_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (data, elsewhere) = (dir.path().join("data"), dir.path().join("elsewhere"));
        let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let folder = data.join("models/00ff");
        fs::create_dir_all(&folder).unwrap();
        let ours =
            ["node-id", "log.redb", "snapshot-12.bin", "models/00ff/0-ab.safetensors"].map(|name| data.join(name));
        let theirs = [data.join("notes.txt"), elsewhere.clone()];
        for path in ours.iter().chain(&theirs) {
            fs::write(path, "text").unwrap();
            open(path, 0o664);
        }
        [&folder, &data.join("models")].iter().for_each(|folder| open(folder, 0o755));
        symlink(&elsewhere, folder.join("link")).unwrap();
        mend(&data);
        assert_eq!(ours.each_ref().map(|path| mode(path)), [0o600; 4]);
        assert_eq!([&folder, &data.join("models")].map(|path| mode(path)), [0o700; 2]);
        assert_eq!(theirs.each_ref().map(|path| mode(path)), [0o664; 2]);
    }
}
