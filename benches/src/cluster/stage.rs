//! What a job's clients and its owner tell each other.

use super::drive::PATIENCE;
use anyhow::{Result, ensure};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// An update that was accepted.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// When its client began to send it.
    pub begun: Instant,
    /// When its client had the answer.
    pub accepted: Instant,
    /// The node that took it.
    pub node: usize,
}

/// The round that takes updates now, and what came of it.
#[derive(Default)]
struct Now {
    /// From 1; 0 before the first.
    turn: usize,
    job: String,
    round: u64,
    sent: Vec<Sent>,
    is_over: bool,
}

/// Where they meet.
#[derive(Default)]
pub struct Stage {
    now: Mutex<Now>,
    changed: Condvar,
}

impl Stage {
    fn change(&self, how: impl FnOnce(&mut Now)) {
        how(&mut self.now.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    fn when(&self, is_so: impl Fn(&Now) -> bool) -> MutexGuard<'_, Now> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(now, PATIENCE, |now| !is_so(now));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// The owner: this round of this job is open.
    pub fn open(&self, turn: usize, job: &str, round: u64) {
        self.change(|now| *now = Now { turn, job: job.to_owned(), round, ..Now::default() });
    }

    /// The owner: nobody needs to wait any more.
    pub fn end(&self) {
        self.change(|now| now.is_over = true);
    }

    /// The owner: what so many clients sent in this round.
    pub fn all_sent(&self, clients: usize) -> Result<Vec<Sent>> {
        let mut now = self.when(|now| now.sent.len() == clients);
        ensure!(now.sent.len() == clients, "{} of {clients} clients have their receipts", now.sent.len());
        Ok(std::mem::take(&mut now.sent))
    }

    /// A client: waits for its turn, and is told the job and the round. `None`: there will be none.
    pub fn wait(&self, turn: usize) -> Result<Option<(String, u64)>> {
        let now = self.when(|now| now.turn >= turn || now.is_over);
        ensure!(now.turn == turn || now.is_over, "round {turn} does not open");
        Ok((now.turn == turn).then(|| (now.job.clone(), now.round)))
    }

    /// A client: it has its receipt.
    pub fn sent(&self, sent: Sent) {
        self.change(|now| now.sent.push(sent));
    }
}
