//! Checkpoints: one safetensors file per model version, under `models/<job uid>/`.
//!
//! A version's file is complete and on disk before the log says that it exists, and its name holds its digest: of two
//! files that want to be the same version, the log chooses one, and neither can overwrite the other. Every version has
//! the header of the initial model, so metadata and the order of tensors stay as their owner wrote them.

use catchment_types::{Digest, Header, JobUid, Limits};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Between a job's name and a number, in the name of a folder that is being removed.
const GONE: &str = ".gone-";

/// The checkpoints of one node.
#[derive(Debug, Clone)]
pub struct Models {
    dir: PathBuf,
    /// Folders that were removed.
    removed: Arc<AtomicU64>,
}

/// A checkpoint being written; removed when dropped before it is kept.
pub struct Draft {
    file: File,
    path: PathBuf,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Draft {
    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}

impl Models {
    /// The checkpoints under `data_dir`. Their folder is on disk, whoever made it: without it, none of them would be.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let dir = data_dir.join("models");
        create_dir_durably(&dir)?;
        // It may be from a life that ended before this.
        File::open(data_dir)?.sync_all()?;
        Ok(Self { dir, removed: Arc::default() })
    }

    /// Their folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn job_dir(&self, uid: JobUid) -> PathBuf {
        self.dir.join(uid.to_string())
    }

    fn path(&self, uid: JobUid, version: u64, etag: Digest) -> PathBuf {
        self.job_dir(uid).join(format!("{version}-{etag}.safetensors"))
    }

    /// Begins a file. `name` keeps two drafts of one job apart.
    pub fn draft(&self, uid: JobUid, name: &str) -> io::Result<Draft> {
        let dir = self.job_dir(uid);
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{name}.draft"));
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        Ok(Draft { file, path, hasher: blake3::Hasher::new(), bytes: 0 })
    }

    /// Makes a draft the file of `version`, durably. Returns its ETag and length.
    pub fn keep(&self, draft: Draft, uid: JobUid, version: u64) -> io::Result<(Digest, u64)> {
        let etag = draft.hasher.finalize().into();
        draft.file.sync_all()?;
        fs::rename(&draft.path, self.path(uid, version, etag))?;
        for folder in [&self.job_dir(uid), &self.dir] {
            File::open(folder)?.sync_all()?;
        }
        Ok((etag, draft.bytes))
    }

    /// Opens a version's file.
    pub fn file(&self, uid: JobUid, version: u64, etag: Digest) -> io::Result<File> {
        File::open(self.path(uid, version, etag))
    }

    /// Whether a version's file is there.
    pub fn has(&self, uid: JobUid, version: u64, etag: Digest) -> bool {
        self.path(uid, version, etag).is_file()
    }

    /// Reads the head of a version's file: its raw bytes and what they say.
    pub fn head(&self, uid: JobUid, version: u64, etag: Digest) -> io::Result<(Vec<u8>, Header)> {
        let mut file = self.file(uid, version, etag)?;
        let file_bytes = file.metadata()?.len();
        let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let mut head = vec![0; Header::PREFIX_BYTES];
        file.read_exact(&mut head)?;
        let prefix = *head.first_chunk::<8>().expect("eight bytes were read");
        let text = Header::text_bytes(prefix, Some(file_bytes), &Limits::default()).map_err(damaged)?;
        head.resize(Header::PREFIX_BYTES + text as usize, 0);
        file.read_exact(&mut head[Header::PREFIX_BYTES..])?;
        let header = Header::parse(&head[Header::PREFIX_BYTES..], &Limits::default()).map_err(damaged)?;
        header.check_data_bytes(file_bytes - header.data_begin).map_err(damaged)?;
        Ok((head, header))
    }

    /// Removes the files of versions that `keeps` does not want.
    pub fn prune(&self, uid: JobUid, keeps: impl Fn(u64, Digest) -> bool) -> io::Result<()> {
        let entries = match fs::read_dir(self.job_dir(uid)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            if version_of(&path).is_some_and(|(version, etag)| !keeps(version, etag)) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Removes what an earlier life left behind: drafts, and folders whose removal was interrupted. Call it before anything
    /// is written.
    pub fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| name.contains(GONE)) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        for uid in self.jobs()? {
            for file in fs::read_dir(self.job_dir(uid))? {
                let path = file?.path();
                if path.extension().is_some_and(|extension| extension == "draft") {
                    fs::remove_file(path)?;
                }
            }
        }
        Ok(())
    }

    /// Jobs of which there is something.
    pub fn jobs(&self) -> io::Result<Vec<JobUid>> {
        let mut jobs = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            jobs.extend(entry?.file_name().to_str().and_then(|name| name.parse::<JobUid>().ok()));
        }
        Ok(jobs)
    }

    /// Moves everything of a job to another folder, which must not be there.
    pub fn move_away(&self, uid: JobUid, to: &Path) -> io::Result<()> {
        fs::rename(self.job_dir(uid), to)?;
        File::open(&self.dir)?.sync_all()
    }

    /// Removes everything of a job.
    pub fn remove(&self, uid: JobUid) -> io::Result<()> {
        // First its name, at once: whoever is about to put a file there finds no folder, and cannot fill one that is being
        // emptied.
        let gone = self.dir.join(format!("{uid}{GONE}{}", self.removed.fetch_add(1, Relaxed)));
        match fs::rename(self.job_dir(uid), &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed?,
        }
        loop {
            match fs::remove_dir_all(&gone) {
                // Who had found the folder just before puts one file there, and no further one.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                removed => return removed,
            }
        }
    }
}

/// Makes a folder and those that it lies in, where they are missing, each on disk before anything is put into it.
pub fn create_dir_durably(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    // A name alone lies in the working directory.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_dir_durably(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

/// What the name of a checkpoint says.
fn version_of(path: &Path) -> Option<(u64, Digest)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".safetensors")?;
    let (version, etag) = name.split_once('-')?;
    Some((version.parse().ok()?, etag.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

    const UID: JobUid = JobUid::from_bytes([1; 16]);

    /// Runs on a thread whose every `fsync` the kernel refuses: so it is seen who asks for one.
    fn without_fsync<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
        let refuse = || {
            let rules = [(libc::SYS_fsync, vec![]), (libc::SYS_fdatasync, vec![])].into_iter().collect();
            let arch = std::env::consts::ARCH.try_into().unwrap();
            let refused = SeccompAction::Errno(libc::EIO as u32);
            let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch).unwrap();
            apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
        };
        let run = move || {
            refuse();
            run()
        };
        std::thread::spawn(run).join().unwrap()
    }

    fn is_refused<T>(result: io::Result<T>) -> bool {
        result.err().is_some_and(|error| error.raw_os_error() == Some(libc::EIO))
    }

    #[test]
    fn folders_are_on_disk_before_anything_is_put_into_them() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        for data in ["data", "a/b/c"] {
            let data = path(data);
            create_dir_durably(&data).unwrap();
            let at = data.clone();
            assert!(without_fsync(move || is_refused(Models::open(&at))), "a folder of models that was made now");
            let at = data.clone();
            assert!(
                without_fsync(move || is_refused(Models::open(&at))),
                "one that a life made which ended before this"
            );
            Models::open(&data).unwrap();
        }
        let (below, once, there) = (path("d/e/f"), path("g"), path("data"));
        assert!(without_fsync(move || is_refused(create_dir_durably(&below))));
        assert!(without_fsync(move || is_refused(create_dir_durably(&once))));
        assert!(without_fsync(move || create_dir_durably(&there)).is_ok(), "nothing to be made");
        std::fs::write(path("file"), "").unwrap();
        assert!(create_dir_durably(&path("file")).is_err() && create_dir_durably(&path("file/below")).is_err());
    }

    #[test]
    fn nothing_comes_back_into_a_folder_that_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let models = Models::open(home.path()).unwrap();
        let left = || fs::read_dir(models.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        let mut draft = models.draft(UID, "version-1").unwrap();
        draft.write(b"model").unwrap();
        models.remove(UID).unwrap();
        draft.write(b"more of it").unwrap();
        assert!(models.keep(draft, UID, 1).is_err());
        assert!(left().is_empty());
        models.remove(UID).unwrap();
        // Many who write while others remove.
        std::thread::scope(|scope| {
            for name in ["a", "b"] {
                let models = &models;
                scope.spawn(move || {
                    for version in 0..200 {
                        let draft = models.draft(UID, name).ok();
                        drop(draft.map(|draft| models.keep(draft, UID, version)));
                    }
                });
            }
            scope.spawn(|| (0..500).for_each(|_| models.remove(UID).unwrap()));
        });
        models.remove(UID).unwrap();
        assert!(left().is_empty());
        // A life that ended meanwhile.
        fs::create_dir(models.dir().join(format!("{UID}{GONE}7"))).unwrap();
        models.sweep().unwrap();
        assert!(left().is_empty());
    }
}
