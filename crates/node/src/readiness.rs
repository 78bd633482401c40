//! Whether what a node writes to can be written to.
//!
//! A disk that is full, or that has become read-only, stops every round of the node; nothing else would say so than the
//! node's log. It is tried when somebody asks, so that idle costs nothing, and at most once a second.

use crate::context::Context;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer is good for.
const FRESH: Duration = Duration::from_secs(1);
/// How long a write may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes that are written: more than a file system keeps inside its own records.
const PROBE_BYTES: usize = 64 << 10;

type Tried = Shared<BoxFuture<'static, Result<(), String>>>;

/// The last look at what is written to.
#[derive(Default)]
pub struct Readiness(Mutex<Option<(Instant, Tried)>>);

impl Readiness {
    /// Why a node cannot write, if it cannot: its data directory and its slab directory are tried, and a job's model that
    /// did not fit counts until it does.
    ///
    /// # Errors
    /// What cannot be written to, and why.
    pub async fn look(&self, context: &Context) -> Result<(), String> {
        let tried = tokio::time::timeout(PATIENCE, self.tried(context)).await;
        let slow = |_| Err(format!("a write to the data directory takes more than {} s", PATIENCE.as_secs()));
        tried.unwrap_or_else(slow)?;
        match context.trouble.of_disk() {
            Some(told) => Err(format!("the data directory refuses writes: {}", told.text)),
            None => Ok(()),
        }
    }

    /// The attempt under way, or the last, or a new one. A disk that does not answer has one attempt only.
    fn tried(&self, context: &Context) -> Tried {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((at, tried)) if at.elapsed() < FRESH || tried.peek().is_none() => tried.clone(),
            _ => {
                let tried = begin(context);
                *last = Some((Instant::now(), tried.clone()));
                tried
            }
        }
    }
}

fn begin(context: &Context) -> Tried {
    let (data, slabs) = (context.config.data_dir.clone(), context.config.slab_dir.clone());
    let usage = context.store.usage();
    let used = usage.granted_bytes + usage.frozen_bytes + usage.accumulator_bytes + usage.free_bytes;
    // Where the store fills the file system itself, it has what it wants.
    let slabs = (used + PROBE_BYTES as u64 <= context.config.slab_budget_bytes).then_some(slabs);
    let write = move || {
        try_in(&data, "data")?;
        slabs.map_or(Ok(()), |slabs: PathBuf| try_in(&slabs, "slab"))
    };
    let written = tokio::task::spawn_blocking(write);
    async move { written.await.unwrap_or_else(|error| Err(error.to_string())) }.boxed().shared()
}

/// Writes a file and removes it.
fn try_in(dir: &Path, what: &str) -> Result<(), String> {
    let path = dir.join("probe.draft");
    // Not synced: that would wait for all other writes, and a disk that is only busy is no fault.
    let written = std::fs::File::create(&path).and_then(|mut file| file.write_all(&[0; PROBE_BYTES]));
    let removed = std::fs::remove_file(&path);
    written.and(removed).map_err(|error| format!("the {what} directory refuses writes: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_takes_no_file_is_named() {
        let dir = std::env::temp_dir().join(format!("catchment-readiness-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        assert_eq!(try_in(&dir, "data"), Ok(()));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "nothing is left");
        std::fs::remove_dir(&dir).unwrap();
        let why = try_in(&dir, "slab").unwrap_err();
        assert!(why.starts_with("the slab directory refuses writes: "), "{why}");
    }
}
