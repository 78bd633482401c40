//! One record on its way into the log and the state, until its fate is known.

use crate::driver::Driver;
use crate::envelope::{Envelope, Stocked};
use crate::ledger::{GONE, LedgerError};
use crate::outcome::Outcome;
use crate::snapshot;
use crate::state::{DIFFERS, State};
use bytes::Bytes;
use catchment_bus::LogError;
use catchment_types::Record;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Records read at one time during replay. Times the bytes of a record, this bounds the memory it takes.
pub(crate) const REPLAY: usize = 128;
/// How long the writer waits before it tries an unreachable log again.
pub(crate) const RETRY: Duration = Duration::from_millis(250);
/// How long it waits for records that are stored but cannot be read yet.
pub(crate) const LAG: Duration = Duration::from_millis(5);
/// How long it leaves the log to other writers after an append of its own, in times that the append took, ...
const WAY: u32 = 4;
/// ... but at least and at most this long.
const WAY_MIN: Duration = Duration::from_millis(2);
const WAY_MAX: Duration = Duration::from_millis(50);

/// Why nobody can say what became of a record.
pub(crate) const FORGOTTEN: &str = "it was away for so long that it has forgotten what became of this record";

impl Driver {
    pub fn state<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.shared.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Appends one record and applies everything up to it. Returns only when its fate is known, or never will be.
    pub async fn append(&mut self, record: Record, guard: Option<u64>) -> Result<Outcome, LedgerError> {
        if let Some(why) = self.shared.broken.get() {
            return Err(LedgerError::Unreadable(why.clone()));
        }
        let result = self.settle(record, guard).await;
        if self.shared.broken.get().is_none() {
            self.reached();
        }
        result
    }

    async fn settle(&mut self, record: Record, guard: Option<u64>) -> Result<Outcome, LedgerError> {
        self.number += 1;
        let number = self.number;
        let seen = Some(self.state(State::sequence));
        let envelope = Envelope { writer: self.writer, number, guard: None, seen, record };
        // While it waits for its turn the level can only rise, and what a lower one allows is read at a higher one.
        let bytes = envelope.to_bytes(self.state(State::level), self.record_bytes_max());
        let bytes = bytes.map(Bytes::from).map_err(LedgerError::Refused)?;
        let stocked = Stocked::Record(Box::new(envelope));
        // The guard of an append that may be on its way without our knowing. While it could still be stored, only the
        // log's own word counts.
        let mut unsettled = None;
        self.give_way().await;
        loop {
            let last = self.state(State::sequence);
            if guard.is_some_and(|guard| guard != last) {
                return Err(LedgerError::Stale { sequence: last });
            }
            let begin = tokio::time::Instant::now();
            let wait = match self.log.append(bytes.clone(), last).await {
                Ok(sequence) => {
                    self.keeper.count(bytes.len(), true);
                    self.owed = Some((begin.elapsed() * WAY).clamp(WAY_MIN, WAY_MAX));
                    return Ok(self.apply(sequence, &stocked));
                }
                Err(LogError::Conflict { last: stored }) if stored < last => {
                    return Err(self.give_up(format!("it ends at {stored}, but {last} records had been stored")));
                }
                Err(LogError::Conflict { .. }) => LAG,
                Err(LogError::Refused(why)) if unsettled != Some(last) => return Err(LedgerError::Refused(why)),
                Err(LogError::Damaged(why)) => return Err(self.give_up(why)),
                // Not an answer to an append; the read that follows says what is to be done.
                Err(LogError::Forgotten { .. }) => LAG,
                Err(LogError::Refused(why) | LogError::Unavailable(why)) => {
                    unsettled = Some(last);
                    self.stall(&why);
                    tokio::time::sleep(RETRY).await;
                    Duration::ZERO
                }
            };
            let reloads = self.reloads;
            if let Some(outcome) = self.resolve(number).await? {
                return Ok(outcome);
            }
            if self.reloads != reloads && unsettled.is_some() {
                return Err(LedgerError::Unreadable(FORGOTTEN.to_owned()));
            }
            // The same record is appended again. With the same guard at most one of the two is ever stored; with
            // another, the log has gone past the first, and it never will be.
            if self.state(State::sequence) == last {
                tokio::time::sleep(wait).await;
            }
        }
    }

    pub fn reached(&self) {
        if self.shared.stalled.swap(false, Ordering::Relaxed) {
            tracing::info!("the event log is back");
        }
    }

    pub fn stall(&self, why: &str) {
        if !self.shared.stalled.swap(true, Ordering::Relaxed) {
            tracing::warn!(%why, "the event log cannot be reached; updates are refused until it can");
        }
    }

    pub fn give_up(&mut self, why: String) -> LedgerError {
        self.shared.stalled.store(true, Ordering::Relaxed);
        tracing::error!(%why, "the event log is damaged or from a newer release; nothing more is accepted");
        self.shared.broken.set(why.clone()).ok();
        let error = LedgerError::Unreadable(why);
        self.abandon(&error);
        error
    }

    /// Reads what others, or a lost acknowledgement, have stored. Returns the outcome of record `number` if it is
    /// there.
    async fn resolve(&mut self, number: u64) -> Result<Option<Outcome>, LedgerError> {
        // Outlives a failed read: what was applied before it is not met again.
        let mut found = None;
        loop {
            match self.catch_up(number, &mut found).await {
                Ok(()) => return Ok(found),
                Err(LogError::Damaged(why)) => return Err(self.give_up(why)),
                Err(error) => {
                    self.stall(&error.to_string());
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Applies every stored record after the state, and puts the outcome of the own record `number` into `found` when
    /// it is met. A record that does not decode is damage.
    pub async fn catch_up(&mut self, number: u64, found: &mut Option<Outcome>) -> Result<(), LogError> {
        loop {
            let after = self.state(State::sequence);
            let records = match self.log.read(after, REPLAY).await {
                Err(LogError::Forgotten { first }) => {
                    self.reload(first).await?;
                    continue;
                }
                records => records?,
            };
            let is_end = records.len() < REPLAY;
            self.take_all(records, number, found)?;
            if is_end {
                return Ok(());
            }
        }
    }

    /// Applies what follows on the state.
    pub fn take_all(
        &mut self,
        records: Vec<(u64, Bytes)>,
        number: u64,
        found: &mut Option<Outcome>,
    ) -> Result<(), LogError> {
        for (sequence, bytes) in records {
            let stocked = Envelope::read(sequence, &bytes, self.state(State::level))?;
            let own = match &stocked {
                Stocked::Record(envelope) => Some(envelope.number).filter(|_| envelope.writer == self.writer),
                Stocked::Foreign(why) => {
                    tracing::error!(sequence, why, "somebody else has written to the log's address; it is left out");
                    None
                }
            };
            self.keeper.count(bytes.len(), own.is_some());
            let outcome = self.apply(sequence, &stocked);
            if let Outcome::Ignored(DIFFERS) = outcome {
                return Err(LogError::Damaged(format!("record {sequence}: {DIFFERS}")));
            }
            self.contended |= own.is_none();
            if let Some(own) = own {
                self.met(own, &outcome, sequence);
                if own == number {
                    *found = Some(outcome);
                }
            }
        }
        Ok(())
    }

    /// Goes on from the newest snapshot, because the records up to `first` are forgotten.
    async fn reload(&mut self, first: u64) -> Result<(), LogError> {
        let newest = snapshot::newest(self.log.as_ref()).await?;
        let (before, sequence) = (self.state(State::sequence), newest.sequence());
        if sequence <= before || sequence + 1 < first {
            return Err(LogError::Damaged(format!(
                "it begins at record {first}, and the newest snapshot is of record {sequence}"
            )));
        }
        tracing::warn!(before, sequence, "far behind the log; going on from its newest snapshot");
        self.reloads += 1;
        self.change(sequence, |state| *state = newest);
        self.passed_over();
        Ok(())
    }

    pub fn apply(&self, sequence: u64, stocked: &Stocked) -> Outcome {
        let outcome = self.change(sequence, |state| state.take(sequence, stocked));
        if let Outcome::Ignored(why) = outcome {
            tracing::debug!(sequence, why, ?stocked, "record changed nothing");
        }
        outcome
    }

    /// Changes the state, and wakes whoever waits for that.
    fn change<R>(&self, sequence: u64, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
        let outcome = change(&mut state);
        let revisions = self.shared.revisions.lock().unwrap_or_else(PoisonError::into_inner);
        for (uid, sender) in revisions.iter() {
            let revision = state.job(*uid).map_or(GONE, |job| job.revision);
            sender.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
        }
        drop(revisions);
        drop(state);
        self.shared.sequence.send_replace(sequence);
        outcome
    }
}
