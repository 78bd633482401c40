//! Models of jobs that the log does not know.
//!
//! A job that was deleted while its node was away leaves them behind. So does a log that is not the right one, and then they
//! may be the only copies. Therefore nothing is deleted because a log does not know it: it is set aside, and removed after
//! a grace period; and when most of what is there would go, nothing is touched.

use crate::models::Models;
use catchment_types::{JobUid, TimeMs};
use std::io::Result;
use std::path::Path;

/// How long models that were set aside are kept.
const GRACE_MS: u64 = 7 * 86_400_000;

/// Sets aside the models of jobs that are not `known`, and removes those whose grace period is over.
///
/// # Errors
/// The data directory cannot be read or changed.
pub fn set_aside(models: &Models, data_dir: &Path, now_ms: TimeMs, is_known: impl Fn(JobUid) -> bool) -> Result<()> {
    let aside = data_dir.join("orphaned");
    remove_old(&aside, now_ms)?;
    let jobs = models.jobs()?;
    let unknown: Vec<JobUid> = jobs.iter().copied().filter(|uid| !is_known(*uid)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    if 2 * unknown.len() > jobs.len() {
        tracing::error!(
            unknown = unknown.len(),
            jobs = jobs.len(),
            dir = %models.dir().display(),
            "the event log does not know most of the jobs whose models are here; they are left where they are. If the log is \
             the right one, remove what is not wanted"
        );
        return Ok(());
    }
    std::fs::create_dir_all(&aside)?;
    for uid in unknown {
        let to = aside.join(format!("{uid}.{now_ms}"));
        models.move_away(uid, &to)?;
        tracing::warn!(job = %uid, to = %to.display(), days = GRACE_MS / 86_400_000,
            "the event log does not know this job; its models are set aside, and removed after that many days");
    }
    std::fs::File::open(&aside)?.sync_all()
}

fn remove_old(aside: &Path, now_ms: TimeMs) -> Result<()> {
    let entries = match std::fs::read_dir(aside) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let since = path.extension().and_then(|since| since.to_str()).and_then(|since| since.parse::<u64>().ok());
        if since.is_some_and(|since| since.saturating_add(GRACE_MS) < now_ms) {
            tracing::info!(path = %path.display(), "remove models that were set aside");
            std::fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(number: u8) -> JobUid {
        JobUid::from_bytes([number; 16])
    }

    #[test]
    fn what_the_log_does_not_know_is_set_aside_and_removed_later_and_never_most_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let models = Models::open(folder.path()).unwrap();
        for number in 1..=5 {
            let mut draft = models.draft(uid(number), "x").unwrap();
            draft.write(b"model").unwrap();
            models.keep(draft, uid(number), 0).unwrap();
        }
        let there = || {
            let mut jobs = models.jobs().unwrap();
            jobs.sort_unstable();
            jobs
        };
        let aside = || std::fs::read_dir(folder.path().join("orphaned")).map_or(0, Iterator::count);
        let set_aside = |now_ms, known: &[u8]| {
            set_aside(&models, folder.path(), now_ms, |job| known.iter().any(|number| uid(*number) == job)).unwrap();
        };
        set_aside(1000, &[]);
        set_aside(1000, &[1, 2]);
        assert_eq!((there().len(), aside()), (5, 0), "most would go");
        set_aside(1000, &[1, 2, 3]);
        assert_eq!((there(), aside()), (vec![uid(1), uid(2), uid(3)], 2));
        let kept = folder.path().join("orphaned").join(format!("{}.1000", uid(4)));
        assert_eq!(std::fs::read_dir(kept).unwrap().count(), 1);
        set_aside(1000 + GRACE_MS, &[1, 2, 3]);
        assert_eq!(aside(), 2);
        set_aside(1001 + GRACE_MS, &[1, 2, 3]);
        assert_eq!((there().len(), aside()), (3, 0));
    }
}
