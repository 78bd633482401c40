//! Recounts what the state keeps counted.
//!
//! The state holds sums and indexes beside the updates, because it is asked for them on every call. Tests and the
//! simulation recount them after every record; without that, a count that drifted would show only as a round that
//! never closes.

use crate::evaluation::MEASURED_MAX;
use crate::job::Job;
use crate::models::LISTED_MAX;
use crate::round::{Phase, Round};
use crate::state::State;
use catchment_types::{Code, JobState, ReceiptState};
use std::collections::HashSet;

macro_rules! ensure {
    ($holds:expr, $($text:tt)*) => {
        if !$holds {
            return Err(format!($($text)*));
        }
    };
}

impl State {
    /// Checks every invariant of the state in time proportional to its size.
    ///
    /// # Errors
    /// What does not hold.
    pub fn audit(&self) -> Result<(), String> {
        let mut receipts = 0;
        for job in self.jobs() {
            audit_job(job).map_err(|why| format!("job {} at sequence {}: {why}", job.uid, self.sequence()))?;
            let named = self.job_named(&job.spec.namespace, &job.spec.name);
            ensure!(named.is_some_and(|named| named.uid == job.uid), "job {} is not found by its name", job.uid);
            ensure!(job.revision <= self.sequence(), "job {} has a revision of the future", job.uid);
            for round in job.round.iter().chain(&job.history) {
                receipts += round.len();
                for update in round.updates() {
                    let found = self.locate(update.receipt);
                    let is_it = found.is_some_and(|(j, r, _)| j.uid == job.uid && r.number == round.number);
                    ensure!(is_it, "receipt {} of round {} is not found", update.receipt, round.number);
                }
            }
        }
        ensure!(self.jobs_by_name().count() == self.jobs().count(), "there are names without a job");
        ensure!(self.receipts_indexed() == receipts, "there are receipts without an update");
        Ok(())
    }
}

fn audit_job(job: &Job) -> Result<(), String> {
    let listed = job.models.next().saturating_sub(LISTED_MAX);
    let versions = job.models.iter().map(|model| model.commit.version).filter(|version| *version >= listed);
    ensure!(versions.eq(listed..job.models.next()), "versions have gaps");
    ensure!(job.models.is_empty() || job.model(0).is_some(), "the initial model is forgotten");
    ensure!(job.round.is_none() || !job.models.is_empty(), "a round without a model");
    let waits = job.state == JobState::WaitingForModel;
    ensure!(job.state.is_over() || waits == job.models.is_empty(), "{:?} with {} models", job.state, job.models.next());
    ensure!(!job.state.is_over() || job.active_round().is_none(), "{:?} with an active round", job.state);
    let is_early = job.round_number() < job.spec.rounds;
    ensure!(job.state != JobState::Completed || !is_early || job.reason.is_some(), "completed too early");
    audit_evaluations(job)?;
    let open_ended = job.state == JobState::Running && job.active_round().is_none();
    ensure!(!open_ended || job.round_number() < job.spec.rounds, "running with no round left");
    let mut expected = job.round_number();
    let mut updates = 0;
    for round in job.round.iter().chain(&job.history) {
        ensure!(round.number == expected, "round {} where {expected} was expected", round.number);
        let found = job.round_numbered(round.number).map(|found| found.number);
        ensure!(found == Some(round.number), "round {} is not found", round.number);
        audit_round(job, round).map_err(|why| format!("round {}: {why}", round.number))?;
        expected = expected.saturating_sub(1);
    }
    for round in &job.history {
        ensure!(!round.is_active(), "round {} is active behind the newest", round.number);
        updates += round.len();
    }
    ensure!(job.history_updates == updates, "{} updates counted in history, {updates} there", job.history_updates);
    Ok(())
}

fn audit_evaluations(job: &Job) -> Result<(), String> {
    let next = job.models.next();
    for (version, evaluation) in &job.evaluations {
        ensure!(*version < next, "version {version} was measured before it was made");
        ensure!(evaluation.audit(version + MEASURED_MAX >= next), "results of version {version} are counted wrongly");
    }
    let best = job.best_version();
    ensure!(best.is_none_or(|best| job.evaluation(best).is_some()), "the best version was never measured");
    Ok(())
}

fn audit_round(job: &Job, round: &Round) -> Result<(), String> {
    let count = |state| round.updates().filter(|update| update.state == state).count() as u64;
    let [accepted, folded, committed, discarded, lost] = [
        ReceiptState::Accepted,
        ReceiptState::Folded,
        ReceiptState::Committed,
        ReceiptState::Discarded,
        ReceiptState::Lost,
    ]
    .map(count);
    ensure!(accepted + folded + committed + discarded + lost == round.len(), "an update is in no state");
    ensure!(round.received() == accepted + folded + committed, "{} received, counted otherwise", round.received());
    ensure!(round.folded() == folded + committed, "{} folded, counted otherwise", round.folded());
    ensure!(round.received() <= round.goal, "{} received over the goal {}", round.received(), round.goal);
    ensure!(round.pending().count() as u64 == accepted, "pending is not what is accepted");
    ensure!(round.pending().all(|update| update.state == ReceiptState::Accepted), "pending is mixed up");
    for (node, share) in round.shares() {
        let held = || round.contributors().filter(move |update| update.accept.node == node);
        let in_accumulator = held().filter(|update| update.state != ReceiptState::Accepted).count() as u64;
        let bytes: u64 = held().map(|update| update.accept.bytes).sum();
        ensure!(share.updates > 0, "a node holds nothing");
        ensure!(
            (share.updates, share.folded, share.bytes) == (held().count() as u64, in_accumulator, bytes),
            "a node's share is counted wrongly"
        );
        ensure!(round.pending_on(node).map(|update| update.order).is_sorted(), "pending is out of order");
    }
    let shared: u64 = round.shares().map(|(_, share)| share.updates).sum();
    ensure!(shared == round.received(), "shares are not all of the round");
    audit_clients(round)?;
    ensure!(round.model_version < job.models.next(), "it trains from a model that does not exist");
    ensure!(round.is_active() == round.ended_ms.is_none(), "it ended without an end");
    match round.phase {
        Phase::Open => ensure!(round.received() < round.goal && committed == 0, "open beyond its goal"),
        Phase::Aggregating => ensure!(committed == 0, "committed updates before the commit"),
        Phase::Skipped => ensure!(round.received() == 0, "skipped with updates that count"),
        Phase::Committed(version) => {
            ensure!(accepted + folded == 0 && committed >= round.min_updates.max(1), "committed with {committed}");
            let model = job.model(version).ok_or("its model does not exist")?;
            ensure!(model.commit.contribution == Some(round.contribution()), "the model is of other contributors");
            ensure!(version == round.model_version + 1, "the model does not follow on the one it trained from");
        }
    }
    Ok(())
}

/// No client counts twice, and each is represented by its newest attempt that is neither lost nor discarded.
fn audit_clients(round: &Round) -> Result<(), String> {
    let mut present = HashSet::new();
    for update in round.updates() {
        let (client, base) = (&update.accept.client, update.accept.base);
        let standing = round.standing_for(&update.accept).map(|standing| standing.receipt);
        // The buffer after one that was given up trains from the same model: its clients may send from it again.
        let is_asked_again = update.code == Some(Code::RoundGivenUp) && base.is_some();
        if update.state == ReceiptState::Lost || is_asked_again {
            ensure!(standing != Some(update.receipt), "client {client} is represented by what is lost or given up");
            continue;
        }
        // One that its function refused has its client's place from older releases only.
        if update.state == ReceiptState::Discarded && standing != Some(update.receipt) {
            continue;
        }
        ensure!(present.insert((client, base)), "client {client} has two updates");
        ensure!(standing == Some(update.receipt), "client {client} is represented by another update");
    }
    Ok(())
}
