//! Modules of functions in the data directory, by their content: `modules/<digest>.wasm`.
//!
//! A job is pinned to its function's bytes, and the next program may carry others. So a module that a job refers to is
//! written down here, once, and read from here when nothing else has it any more.
//!
//! A module that no job needs is set aside when the node starts: its file's name says since when. It is removed after a
//! grace period, for the reason that models have one (`orphans.rs`): the log may not be the right one.

use crate::models::create_dir_durably;
use catchment_types::{Digest, TimeMs};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How long modules that were set aside are kept.
const GRACE_MS: u64 = 7 * 86_400_000;
/// A file that is being written.
const DRAFT: &str = "draft";

/// The modules that a node keeps. No file is read or written under the lock that [`Modules::has`] takes.
pub struct Modules {
    dir: PathBuf,
    /// Since when each is set aside, if it is.
    kept: Mutex<HashMap<Digest, Option<TimeMs>>>,
    /// Held by whoever changes files.
    changing: Mutex<()>,
}

impl Modules {
    /// Those under `data_dir`.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let dir = data_dir.join("modules");
        create_dir_durably(&dir)?;
        let mut kept = HashMap::new();
        for entry in fs::read_dir(&dir)? {
            kept.extend(entry?.file_name().to_str().and_then(named));
        }
        Ok(Self { dir, kept: Mutex::new(kept), changing: Mutex::default() })
    }

    /// Whether a module is here, and is not set aside.
    pub fn has(&self, digest: Digest) -> bool {
        self.lock().get(&digest).is_some_and(Option::is_none)
    }

    /// A module's bytes, if it is here. One that is damaged is removed, and then it is not.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, digest: Digest) -> io::Result<Option<Vec<u8>>> {
        // Most that are not here never were: nobody waits for another's write to be told.
        if !self.lock().contains_key(&digest) {
            return Ok(None);
        }
        let _changing = self.changing();
        let Some(since) = self.lock().get(&digest).copied() else { return Ok(None) };
        let path = self.path(digest, since);
        let wasm = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            read => Some(read?),
        };
        if wasm.as_ref().is_some_and(|wasm| digest == blake3::hash(wasm).into()) {
            return Ok(wasm);
        }
        tracing::warn!(path = %path.display(), "a function's module is damaged or gone; it is looked for elsewhere");
        self.lock().remove(&digest);
        fs::remove_file(&path).or_else(|error| if wasm.is_none() { Ok(()) } else { Err(error) })?;
        Ok(None)
    }

    /// Opens a module's file.
    ///
    /// # Errors
    /// It is not here.
    pub fn file(&self, digest: Digest) -> io::Result<File> {
        File::open(self.path(digest, None))
    }

    /// Writes a module down, durably, if it is not here.
    ///
    /// # Errors
    /// The data directory refuses it.
    pub fn keep(&self, digest: Digest, wasm: &[u8]) -> io::Result<()> {
        let _changing = self.changing();
        let path = self.path(digest, None);
        let known = self.lock().get(&digest).copied();
        match known {
            Some(None) => return Ok(()),
            Some(since) => fs::rename(self.path(digest, since), &path)?,
            None => {
                let draft = self.dir.join(format!("{digest}.{DRAFT}"));
                let mut file = File::create(&draft)?;
                file.write_all(wasm)?;
                file.sync_all()?;
                fs::rename(&draft, &path)?;
            }
        }
        File::open(&self.dir)?.sync_all()?;
        self.lock().insert(digest, None);
        Ok(())
    }

    /// Sets aside what is not needed, takes back what is, and removes what was set aside long enough ago. Removes drafts of an
    /// earlier life, too: call it before anything is written.
    ///
    /// # Errors
    /// The folder cannot be changed.
    pub fn sweep(&self, now_ms: TimeMs, is_needed: impl Fn(Digest) -> bool) -> io::Result<()> {
        let _changing = self.changing();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == DRAFT) {
                fs::remove_file(path)?;
            }
        }
        let before = self.lock().clone();
        for (digest, since) in before {
            let path = self.path(digest, since);
            let now = match since {
                Some(_) if is_needed(digest) => None,
                None if !is_needed(digest) => Some(now_ms),
                Some(since) if since.saturating_add(GRACE_MS) < now_ms => {
                    tracing::info!(%digest, "remove a function's module that no job has needed for a week");
                    fs::remove_file(path)?;
                    self.lock().remove(&digest);
                    continue;
                }
                as_it_is => as_it_is,
            };
            if now != since {
                fs::rename(path, self.path(digest, now))?;
                self.lock().insert(digest, now);
            }
        }
        File::open(&self.dir)?.sync_all()
    }

    fn path(&self, digest: Digest, since: Option<TimeMs>) -> PathBuf {
        let since = since.map(|since| format!(".{since}")).unwrap_or_default();
        self.dir.join(format!("{digest}.wasm{since}"))
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Option<TimeMs>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a file's name says.
fn named(name: &str) -> Option<(Digest, Option<TimeMs>)> {
    let (digest, since) = name.split_once(".wasm")?;
    let since = match since.strip_prefix('.') {
        Some(since) => Some(since.parse().ok()?),
        None => since.is_empty().then_some(None)?,
    };
    Some((digest.parse().ok()?, since))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(wasm: &[u8]) -> Digest {
        blake3::hash(wasm).into()
    }

    #[test]
    fn a_module_outlives_the_process_and_a_damaged_one_is_none() {
        let data = tempfile::tempdir().unwrap();
        let (a, b) = (digest(b"a"), digest(b"b"));
        let modules = Modules::open(data.path()).unwrap();
        assert!(!modules.has(a) && modules.read(a).unwrap().is_none() && modules.file(a).is_err());
        for wasm in [b"a", b"b"] {
            modules.keep(digest(wasm), wasm).unwrap();
            modules.keep(digest(wasm), wasm).unwrap();
        }
        fs::write(data.path().join(format!("modules/{b}.wasm")), "c").unwrap();
        let modules = Modules::open(data.path()).unwrap();
        assert!(modules.has(a) && modules.has(b) && modules.file(a).is_ok());
        assert_eq!(modules.read(a).unwrap(), Some(b"a".to_vec()));
        assert_eq!(modules.read(b).unwrap(), None, "it has another digest");
        assert!(!modules.has(b) && modules.file(b).is_err());
        modules.keep(b, b"b").unwrap();
        assert_eq!(modules.read(b).unwrap(), Some(b"b".to_vec()));
    }

    #[test]
    fn what_no_job_needs_is_set_aside_and_removed_later() {
        let data = tempfile::tempdir().unwrap();
        let (a, b) = (digest(b"a"), digest(b"b"));
        let open = || Modules::open(data.path()).unwrap();
        let there = || {
            let mut names: Vec<_> =
                fs::read_dir(data.path().join("modules")).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names.len()
        };
        let modules = open();
        modules.keep(a, b"a").unwrap();
        modules.keep(b, b"b").unwrap();
        fs::write(data.path().join("modules").join(format!("{a}.draft")), "half").unwrap();
        modules.sweep(1000, |_| true).unwrap();
        assert!(modules.has(a) && modules.has(b) && there() == 2, "the draft is gone");
        modules.sweep(1000, |digest| digest == a).unwrap();
        let modules = open();
        assert!(modules.has(a) && !modules.has(b));
        assert_eq!(modules.read(b).unwrap(), Some(b"b".to_vec()), "it is there all the same");
        // A job needs it again: one in the log, and then one that is created.
        modules.sweep(2000, |_| true).unwrap();
        assert!(modules.has(b));
        modules.sweep(3000, |digest| digest == a).unwrap();
        modules.keep(b, b"b").unwrap();
        assert!(modules.has(b) && there() == 2);
        modules.sweep(4000, |digest| digest == a).unwrap();
        modules.sweep(4000 + GRACE_MS, |digest| digest == a).unwrap();
        assert_eq!(there(), 2);
        modules.sweep(4001 + GRACE_MS, |digest| digest == a).unwrap();
        assert_eq!((there(), modules.read(b).unwrap()), (1, None));
        assert!(modules.has(a));
    }

    #[test]
    fn names_of_files() {
        let a = digest(b"a");
        assert_eq!(named(&format!("{a}.wasm")), Some((a, None)));
        assert_eq!(named(&format!("{a}.wasm.12")), Some((a, Some(12))));
        for other in [format!("{a}.draft"), format!("{a}.wasm2"), format!("{a}.wasm.x"), "fedavg.wasm".to_owned()] {
            assert_eq!(named(&other), None, "{other}");
        }
    }
}
