//! The one writer of a process: appends proposals to the log in groups and applies them in log order, together with
//! what other processes append. It follows the log all the time: without that a process that writes nothing would
//! answer from a state that is long past.
//!
//! Every append names the sequence it believes is last. So an append whose acknowledgement was lost can be resolved:
//! read what was stored, look for the own record, and if it is not there send it again. Nothing is ever answered
//! before it is known; without that, an update could be refused to its client and yet be in the model.

use crate::append::{REPLAY, RETRY};
use crate::envelope::RECORD_BYTES_MAX;
use crate::flight::{Flight, Wait};
use crate::keeper::Keeper;
use crate::ledger::{AcceptReply, LedgerError, Proposal, ResultReply, Shared, WaitingAccept, WaitingResult};
use crate::outcome::Outcome;
use crate::state::State;
use bytes::Bytes;
use catchment_bus::{EventLog, LogError};
use catchment_types::{Accept, EvaluationResult, JobUid, Record};
use futures::StreamExt as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;

/// Proposals that wait for the writer; more are held back.
pub(crate) const QUEUE: usize = 4096;
/// Proposals taken from the queue at one time.
const GROUP: usize = 512;
/// Bytes after which a group is cut, where the log takes as much.
const GROUP_BYTES: usize = 512 << 10;
/// Bytes of a record around its group, at most.
const ENVELOPE_BYTES: usize = 131;
/// Bytes of one encoded accept at most, metrics left out: 129 of fixed fields, 16 of lengths, 128 of client.
const ACCEPT_BYTES: usize = 273;
/// The same of a client's measurement of a model: 9 of samples, 18 of lengths, 128 of client.
const RESULT_BYTES: usize = 160;
pub(crate) struct Driver {
    pub shared: Arc<Shared>,
    pub log: Arc<dyn EventLog>,
    pub writer: [u8; 16],
    pub number: u64,
    /// Whether others write too.
    pub contended: bool,
    /// How long the next append waits for one of theirs.
    pub owed: Option<Duration>,
    /// Times the state came from a snapshot because the records it lacked were forgotten.
    pub reloads: u64,
    pub keeper: Keeper,
    pub flight: Flight,
}

/// Waits for records that the state has not come to; there are none when the log is worth another attempt. Never done when
/// the writer is done for good. Dropping it loses nothing.
async fn news(log: Arc<dyn EventLog>, shared: Arc<Shared>, sequence: u64) -> Result<Vec<(u64, Bytes)>, LogError> {
    if shared.broken.get().is_some() {
        return std::future::pending().await;
    }
    if shared.stalled.load(Ordering::Relaxed) {
        tokio::time::sleep(RETRY).await;
        return Ok(Vec::new());
    }
    log.follow(sequence, REPLAY).await
}

impl Driver {
    pub async fn run(mut self, mut queue: mpsc::Receiver<Proposal>) {
        let (mut batch, mut is_closed) = (Vec::with_capacity(GROUP), false);
        loop {
            self.keeper.look(&self.log, self.state(State::sequence));
            let is_reachable = !self.shared.stalled.load(Ordering::Relaxed);
            if self.flight.is_due() && is_reachable {
                self.write_anew().await;
            }
            if is_reachable && self.pushes() {
                self.write_hash().await;
            }
            if is_closed && (self.flight.is_empty() || !is_reachable) {
                return;
            }
            self.give_way().await;
            // While the log is away nothing is taken; what was taken before waits for it.
            let takes = !is_closed && self.flight.has_room() && (is_reachable || self.flight.is_empty());
            let news = news(self.log.clone(), self.shared.clone(), self.state(State::sequence));
            tokio::select! {
                // First what was said of the own records: the news that there are some would have them read.
                biased;
                Some((number, said)) = self.flight.acknowledgements.next(),
                    if !self.flight.acknowledgements.is_empty() => self.acknowledged(number, said),
                taken = queue.recv_many(&mut batch, GROUP), if takes => match taken {
                    0 => is_closed = true,
                    _ => self.work(&mut batch).await,
                },
                known = news => match known {
                    Ok(records) if !records.is_empty() => self.follow(records),
                    Ok(_) | Err(LogError::Forgotten { .. }) => drop(self.refresh().await),
                    Err(LogError::Damaged(why)) => drop(self.give_up(why)),
                    Err(error) => self.stall(&error.to_string()),
                },
            }
        }
    }

    /// Whether records go on their way several at a time: from the second feature level on the fold knows what to make of
    /// one that comes late.
    fn pushes(&self) -> bool {
        self.state(State::level) >= 2
    }

    async fn work(&mut self, batch: &mut Vec<Proposal>) {
        let (mut accepts, mut results, mut refreshes) = (Vec::new(), Vec::new(), Vec::new());
        for proposal in batch.drain(..) {
            match proposal {
                Proposal::Accept(accept, reply) => accepts.push((accept, reply)),
                Proposal::Evaluate(waiting) => results.push(*waiting),
                Proposal::Record { record, decided, reply } => {
                    self.flush(&mut accepts).await;
                    self.flush_results(&mut results).await;
                    if self.pushes() {
                        self.push(*record, decided.and_then(|decided| decided.guard), Wait::One(reply)).await;
                    } else {
                        let answer = self.append(*record, decided.map(|decided| decided.sequence)).await;
                        reply.send(answer).ok();
                    }
                }
                Proposal::Refresh(reply) => refreshes.push(reply),
            }
        }
        self.flush(&mut accepts).await;
        self.flush_results(&mut results).await;
        if !refreshes.is_empty() {
            let answer = self.refresh().await;
            refreshes.into_iter().for_each(|reply| drop(reply.send(answer.clone())));
        }
    }

    /// After an append of its own, a writer among several waits for one of the others: it knows the log's new end a round
    /// trip before they do, and would win again and again while theirs wait for hundreds of milliseconds. What arrives
    /// meanwhile joins the next group. When nobody else appends, it waits once.
    pub async fn give_way(&mut self) {
        let Some(patience) = self.owed.take().filter(|_| self.contended && self.shared.broken.get().is_none()) else {
            return;
        };
        match tokio::time::timeout(patience, self.log.grown(self.state(State::sequence))).await {
            Ok(Ok(())) => drop(self.refresh().await),
            Ok(Err(error)) => self.stall(&error.to_string()),
            Err(_) => self.contended = false,
        }
    }

    /// Applies what the log has sent.
    fn follow(&mut self, records: Vec<(u64, Bytes)>) {
        match self.take_all(records, 0, &mut None) {
            Ok(()) => self.reached(),
            Err(error) => drop(self.give_up(error.to_string())),
        }
    }

    /// Applies everything that is stored now.
    pub async fn refresh(&mut self) -> Result<(), LedgerError> {
        if let Some(why) = self.shared.broken.get() {
            return Err(LedgerError::Unreadable(why.clone()));
        }
        match self.catch_up(0, &mut None).await {
            Ok(()) => {
                self.reached();
                Ok(())
            }
            Err(LogError::Damaged(why)) => Err(self.give_up(why)),
            Err(error) => {
                self.stall(&error.to_string());
                Err(LedgerError::Unavailable)
            }
        }
    }

    /// Appends the waiting accepts in as few records as fit. Those whose fate the state already decides cost nothing.
    async fn flush(&mut self, accepts: &mut Vec<WaitingAccept>) {
        let limit = GROUP_BYTES.min(self.record_bytes_max());
        let (mut group, mut replies, mut bytes) = (Vec::new(), Vec::new(), ENVELOPE_BYTES);
        for (accept, reply) in accepts.drain(..) {
            let judged = self.state(|state| state.judge_accept(&accept));
            if let Some(outcome) = judged {
                reply.send(Ok(outcome)).ok();
                continue;
            }
            let size = accept_bytes_max(&accept);
            if bytes + size > limit && !group.is_empty() {
                self.append_group(std::mem::take(&mut group), std::mem::take(&mut replies)).await;
                bytes = ENVELOPE_BYTES;
            }
            bytes += size;
            group.push(*accept);
            replies.push(reply);
        }
        if !group.is_empty() {
            self.append_group(group, replies).await;
        }
    }

    /// The same for measurements: one record for each model, and further ones where they do not fit.
    async fn flush_results(&mut self, waiting: &mut Vec<WaitingResult>) {
        let limit = GROUP_BYTES.min(self.record_bytes_max());
        waiting.sort_by_key(|one| (one.uid, one.version));
        let (mut group, mut replies, mut bytes, mut of) = (Vec::new(), Vec::new(), ENVELOPE_BYTES, None);
        for WaitingResult { uid, version, result, reply } in waiting.drain(..) {
            if let Some(outcome) = self.state(|state| state.judge_result(uid, version, &result)) {
                reply.send(Ok(outcome)).ok();
                continue;
            }
            let size = result_bytes_max(&result);
            if let Some((uid, version)) = of.filter(|of| *of != (uid, version) || bytes + size > limit) {
                self.append_results(uid, version, std::mem::take(&mut group), std::mem::take(&mut replies)).await;
                bytes = ENVELOPE_BYTES;
            }
            of = Some((uid, version));
            bytes += size;
            group.push(result);
            replies.push(reply);
        }
        if let Some((uid, version)) = of {
            self.append_results(uid, version, group, replies).await;
        }
    }

    async fn append_results(
        &mut self,
        uid: JobUid,
        version: u64,
        results: Vec<EvaluationResult>,
        replies: Vec<ResultReply>,
    ) {
        if self.pushes() {
            return self.push(Record::Evaluated { uid, version, results }, None, Wait::Results(replies)).await;
        }
        match self.append(Record::Evaluated { uid, version, results }, None).await {
            Ok(Outcome::Evaluations(outcomes)) => {
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    reply.send(Ok(outcome)).ok();
                }
            }
            Ok(other) => unreachable!("a group of results has an outcome for each, not {other:?}"),
            Err(error) => replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone())))),
        }
    }

    pub fn record_bytes_max(&self) -> usize {
        RECORD_BYTES_MAX.min(self.log.record_bytes_max())
    }

    async fn append_group(&mut self, group: Vec<Accept>, replies: Vec<AcceptReply>) {
        if self.pushes() {
            return self.push(Record::Accepted(group), None, Wait::Accepts(replies)).await;
        }
        match self.append(Record::Accepted(group), None).await {
            Ok(Outcome::Accepts(outcomes)) => {
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    reply.send(Ok(outcome)).ok();
                }
            }
            Ok(other) => unreachable!("a group of accepts has an outcome for each, not {other:?}"),
            Err(error) => replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone())))),
        }
    }
}

/// Bytes of an encoded accept, or a little more.
fn accept_bytes_max(accept: &Accept) -> usize {
    ACCEPT_BYTES + metrics_bytes_max(&accept.metrics)
}

/// The same of a measurement.
fn result_bytes_max(result: &EvaluationResult) -> usize {
    RESULT_BYTES + metrics_bytes_max(&result.metrics)
}

fn metrics_bytes_max(metrics: &BTreeMap<String, f64>) -> usize {
    metrics.keys().map(|name| name.len() + 16).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{Envelope, Guard};
    use catchment_types::{Digest, NodeId, SlabId};

    /// Groups are cut by this bound; were it too low, a whole group would be refused for its size.
    #[test]
    fn no_group_is_larger_than_its_bound() {
        let check = |record: Record, bound: usize| {
            let guard =
                Some(Guard { uid: JobUid::from_bytes([255; 16]), revision: u64::MAX, received: Some(u64::MAX) });
            let envelope = Envelope { writer: [255; 16], number: u64::MAX, guard, seen: Some(u64::MAX), record };
            for level in 1..=catchment_types::LEVEL_MAX {
                let bytes = envelope.to_bytes(level, 1 << 20).unwrap().len();
                assert!(bytes <= bound, "{bytes} over {bound} at level {level}");
            }
        };
        for (client, metrics) in [(1, 0), (128, 0), (128, 1), (1, 300)] {
            let accept = Accept {
                uid: JobUid::from_bytes([255; 16]),
                round: u64::MAX,
                base: Some(u64::MAX),
                client: "x".repeat(client).parse().unwrap(),
                digest: Digest::from_bytes([255; 32]),
                weight: f64::MAX,
                num_samples: u64::MAX,
                metrics: (0..metrics).map(|i| (format!("{i:040}"), 1.0)).collect::<BTreeMap<_, _>>(),
                bytes: u64::MAX,
                node: NodeId(u64::MAX),
                incarnation: u64::MAX,
                slab: SlabId::from_u64(u64::MAX),
                at_ms: u64::MAX,
            };
            let result = EvaluationResult {
                client: accept.client.clone(),
                num_samples: u64::MAX,
                metrics: accept.metrics.clone(),
            };
            for count in [1, 2, 50] {
                let bound = ENVELOPE_BYTES + count * result_bytes_max(&result);
                let results = vec![result.clone(); count];
                let record = Record::Evaluated { uid: accept.uid, version: u64::MAX, results };
                check(record, bound);
                let bound = ENVELOPE_BYTES + count * accept_bytes_max(&accept);
                let record = Record::Accepted(vec![accept.clone(); count]);
                check(record, bound);
            }
        }
    }
}
