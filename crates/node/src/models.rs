//! Checkpoints: one safetensors file per model version, under `models/<job uid>/`.
//!
//! A version's file is complete and on disk before the log says that it exists, and its name holds its digest: of two
//! files that want to be the same version, the log chooses one, and neither can overwrite the other. Every version has
//! the header of the initial model, so metadata and the order of tensors stay as their owner wrote them.

use catchment_types::{Digest, Header, JobUid, Limits};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The checkpoints of one node.
#[derive(Debug, Clone)]
pub struct Models {
    dir: PathBuf,
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
    /// The checkpoints under `data_dir`.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let dir = data_dir.join("models");
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
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

    /// Removes the drafts that an earlier life left behind. Call it before anything is written.
    pub fn sweep(&self) -> io::Result<()> {
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
        match fs::remove_dir_all(self.job_dir(uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// What the name of a checkpoint says.
fn version_of(path: &Path) -> Option<(u64, Digest)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".safetensors")?;
    let (version, etag) = name.split_once('-')?;
    Some((version.parse().ok()?, etag.parse().ok()?))
}
