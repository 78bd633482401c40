//! Jobs of which this node has just taken an update: what wakes their tasks.
//!
//! Only the node that holds an update can fold it, so nobody else is told. What others have to do follows from the log,
//! which every node reads.

use catchment_types::JobUid;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// Jobs to be woken. Each is there once, so there are never more than jobs.
#[derive(Default)]
pub struct Wakes {
    jobs: Mutex<HashSet<JobUid>>,
    came: Notify,
}

impl Wakes {
    /// Has a job's task woken.
    pub fn wake(&self, uid: JobUid) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(uid);
        // After the job is there: whoever is told finds it.
        self.came.notify_one();
    }

    /// Waits until there are jobs to be woken, and takes them. Nothing is taken by a wait that is given up.
    pub async fn next(&self) -> HashSet<JobUid> {
        loop {
            self.came.notified().await;
            let jobs = std::mem::take(&mut *self.jobs.lock().unwrap_or_else(PoisonError::into_inner));
            if !jobs.is_empty() {
                return jobs;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_woken_before_and_during_a_wait_is_taken_once() {
        let (wakes, [a, b]) = (Wakes::default(), [1, 2].map(|byte| JobUid::from_bytes([byte; 16])));
        wakes.wake(a);
        wakes.wake(b);
        wakes.wake(a);
        assert_eq!(wakes.next().await, HashSet::from([a, b]));
        let (woken, ()) = tokio::join!(wakes.next(), async {
            tokio::task::yield_now().await;
            wakes.wake(b);
        });
        assert_eq!(woken, HashSet::from([b]));
        tokio::select! {
            biased;
            _ = wakes.next() => panic!("nothing is left"),
            () = tokio::task::yield_now() => {}
        }
    }
}
