//! What keeps each job from going on here: the last error of its work on this node, until a step succeeds or there is
//! nothing left to do. It is told, counted, shown, and tried again, so that nobody has to search a log to see why.
//!
//! What a node meets is not in the log, because another node may do the same work meanwhile. So this is what one node
//! knows: its gateway shows it, and its metrics and readiness follow it.

use super::job::StepError;
use crate::context::Context;
use catchment_types::{Clock, JobUid, TimeMs};
use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of an error that are kept.
const TEXT_BYTES_MAX: usize = 1 << 10;

/// The last error of a job's work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// What it was, for people.
    pub text: String,
    /// When it came last.
    pub at_ms: TimeMs,
    /// Errors in a row.
    pub times: u64,
    /// Whether it was the data directory that refused a write.
    pub is_disk: bool,
}

/// The last errors of jobs on this node. Every use of it is a look-up in a table.
pub struct Trouble {
    clock: Arc<dyn Clock>,
    jobs: Mutex<HashMap<JobUid, Told>>,
}

impl Trouble {
    /// No job is in trouble.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, jobs: Mutex::default() }
    }

    /// A job's step failed and is tried again: logs and counts it besides.
    pub(super) fn failed(&self, context: &Context, uid: JobUid, error: &StepError) {
        let is_panic = matches!(error, StepError::Panicked(_));
        let named = context.ledger.read(|state| {
            let spec = &state.job(uid)?.spec;
            let kind = if is_panic { "panic" } else { "outside" };
            let labels = [spec.namespace.as_str(), spec.name.as_str(), kind];
            context.metrics.step_failures.with_label_values(&labels).inc();
            Some(spec.name.to_string())
        });
        let job = named.unwrap_or_else(|| uid.to_string());
        let times = self.note(uid, error.to_string(), matches!(error, StepError::Disk(_)));
        if is_panic {
            tracing::error!(job, times, %error, "a step of the aggregation panicked; trying again");
        } else {
            tracing::warn!(job, times, reason = %error, "aggregate; trying again");
        }
    }

    /// Something else that keeps a job from going on failed, which was logged and is tried again.
    pub fn set(&self, uid: JobUid, text: impl Into<String>) {
        self.note(uid, text.into(), false);
    }

    /// Says how often in a row.
    fn note(&self, uid: JobUid, mut text: String, is_disk: bool) -> u64 {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        let at_ms = self.clock.now_ms();
        let mut jobs = lock(&self.jobs);
        let times = jobs.get(&uid).map_or(0, |told| told.times) + 1;
        jobs.insert(uid, Told { text, at_ms, times, is_disk });
        times
    }

    /// A job's step succeeded, or it has nothing left to do here.
    pub fn clear(&self, uid: JobUid) {
        lock(&self.jobs).remove(&uid);
    }

    /// What keeps a job from going on here.
    pub fn of(&self, uid: JobUid) -> Option<Told> {
        lock(&self.jobs).get(&uid).cloned()
    }

    /// A write that the data directory refused last, if one waits for it.
    pub fn of_disk(&self) -> Option<Told> {
        lock(&self.jobs).values().filter(|told| told.is_disk).max_by_key(|told| told.at_ms).cloned()
    }

    /// Jobs in trouble.
    pub fn jobs(&self) -> HashSet<JobUid> {
        lock(&self.jobs).keys().copied().collect()
    }
}

/// What a panic said.
pub fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it did not say why".to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Still;

    impl Clock for Still {
        fn now_ms(&self) -> TimeMs {
            7
        }
    }

    #[test]
    fn the_last_error_stands_until_a_step_succeeds() {
        let (job, other) = (JobUid::from_bytes([1; 16]), JobUid::from_bytes([2; 16]));
        let trouble = Trouble::new(Arc::new(Still));
        trouble.note(job, "no space left".to_owned(), true);
        trouble.set(other, "the function does not compile");
        let told = |text: &str, times, is_disk| Some(Told { text: text.to_owned(), at_ms: 7, times, is_disk });
        assert_eq!(trouble.of(job), told("no space left", 1, true));
        assert_eq!(trouble.of_disk(), trouble.of(job));
        assert_eq!(trouble.jobs().len(), 2);
        trouble.set(job, "é".repeat(1 << 10));
        assert_eq!(trouble.of(job), told(&"é".repeat(1 << 9), 2, false));
        assert_eq!(trouble.of_disk(), None, "this one was not the disk's");
        trouble.note(other, "no space left".to_owned(), true);
        trouble.clear(other);
        trouble.set(other, "again");
        assert_eq!(trouble.of(other), told("again", 1, false));
        trouble.clear(job);
        trouble.clear(other);
        assert!(trouble.jobs().is_empty() && trouble.of(job).is_none());
    }
}
