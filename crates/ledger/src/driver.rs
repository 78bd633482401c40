//! The one writer of a process: appends proposals to the log in groups and applies them in log order, together with
//! what other processes append. It follows the log all the time: without that a process that writes nothing would
//! answer from a state that is long past.
//!
//! Every append names the sequence it believes is last. So an append whose acknowledgement was lost can be resolved:
//! read what was stored, look for the own record, and if it is not there send it again. Nothing is ever answered
//! before it is known; without that, an update could be refused to its client and yet be in the model.

use crate::keeper::Keeper;
use crate::outcome::{AcceptOutcome, EvaluateOutcome, Outcome};
use crate::snapshot::{self, SnapshotPace};
use crate::state::State;
use bytes::Bytes;
use catchment_bus::{EventLog, LogError};
use catchment_types::{Accept, EvaluationResult, JobUid, Record};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Proposals that wait for the writer; more are held back.
const QUEUE: usize = 4096;
/// Proposals taken from the queue at one time.
const GROUP: usize = 512;
/// Bytes after which a group is cut, where the log takes as much.
const GROUP_BYTES: usize = 512 << 10;
/// Bytes of a record around its group, at most.
const ENVELOPE_BYTES: usize = 64;
/// Bytes of one encoded accept at most, metrics left out: 129 of fixed fields, 16 of lengths, 128 of client.
const ACCEPT_BYTES: usize = 273;
/// The same of a client's measurement of a model: 9 of samples, 18 of lengths, 128 of client.
const RESULT_BYTES: usize = 160;
/// Bytes of one encoded record.
pub(crate) const RECORD_BYTES_MAX: usize = 900 << 10;
/// Records read at one time during replay. Times the bytes of a record, this bounds the memory it takes.
pub(crate) const REPLAY: usize = 128;
/// How long the writer waits before it tries an unreachable log again.
const RETRY: Duration = Duration::from_millis(250);
/// How long it leaves the log to other writers after an append of its own, in times that the append took, ...
const WAY: u32 = 4;
/// ... but at least and at most this long.
const WAY_MIN: Duration = Duration::from_millis(2);
const WAY_MAX: Duration = Duration::from_millis(50);
/// How long it waits for records that are stored but cannot be read yet.
const LAG: Duration = Duration::from_millis(5);

/// Why a proposal came to nothing, or is not known to have come to anything.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    /// The state has moved on since the proposer looked.
    #[error("the state moved on to sequence {sequence}; decide again")]
    Stale {
        /// Where it is now.
        sequence: u64,
    },
    /// The log did not and will not store it.
    #[error("the event log refused the record: {0}")]
    Refused(String),
    /// The log cannot be reached; nothing new is taken until it can. The proposal was not and will not be stored.
    #[error("the event log cannot be reached; nothing was accepted, try again")]
    Unavailable,
    /// The log cannot be read on, or is not what was written. The writer is done for good; a restart replays what
    /// there is. Whether this proposal is in it is unknown: keep what it speaks of until then. Also for a single proposal
    /// on a sound log, when its fate was forgotten while the log was away; [`Ledger::is_reachable`] tells the two apart.
    #[error("the event log cannot be read: {0}")]
    Unreadable(String),
    /// The ledger has stopped. Whether the proposal was stored is unknown, as above.
    #[error("the ledger has stopped")]
    Stopped,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) writer: [u8; 16],
    pub(crate) number: u64,
    pub(crate) record: Record,
}

type AcceptReply = oneshot::Sender<Result<AcceptOutcome, LedgerError>>;
type WaitingAccept = (Box<Accept>, AcceptReply);

type ResultReply = oneshot::Sender<Result<EvaluateOutcome, LedgerError>>;

/// A client's measurement of a model, and who waits for what becomes of it.
struct WaitingResult {
    uid: JobUid,
    version: u64,
    result: EvaluationResult,
    reply: ResultReply,
}

enum Proposal {
    Evaluate(Box<WaitingResult>),
    Accept(Box<Accept>, AcceptReply),
    Record { record: Box<Record>, guard: Option<u64>, reply: oneshot::Sender<Result<Outcome, LedgerError>> },
    Refresh(oneshot::Sender<Result<(), LedgerError>>),
}

struct Shared {
    state: RwLock<State>,
    sequence: watch::Sender<u64>,
    revisions: Mutex<HashMap<JobUid, watch::Sender<u64>>>,
    stalled: AtomicBool,
}

/// What the watchers of a deleted job see as its revision.
const GONE: u64 = u64::MAX;

/// The state of every job, and the way to change it. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    shared: Arc<Shared>,
    proposals: mpsc::Sender<Proposal>,
}

impl Ledger {
    /// Replays the log, from its newest snapshot, and starts the writer. `writer` names this process's records: 16 fresh
    /// random bytes.
    ///
    /// An append that an earlier life of this process left on its way may still arrive after the replay. Whoever
    /// frees what the replayed state does not know proposes an empty [`Record::Accepted`] first: once that is stored,
    /// nothing older can be.
    ///
    /// # Errors
    /// [`LedgerError::Unreadable`], with what the log said.
    pub async fn open(log: Arc<dyn EventLog>, writer: [u8; 16]) -> Result<Self, LedgerError> {
        Self::open_paced(log, writer, SnapshotPace::default()).await
    }

    /// The same, and says how often snapshots are taken.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub async fn open_paced(log: Arc<dyn EventLog>, writer: [u8; 16], pace: SnapshotPace) -> Result<Self, LedgerError> {
        let unreadable = |error: LogError| LedgerError::Unreadable(error.to_string());
        let state = snapshot::newest(log.as_ref()).await.map_err(unreadable)?;
        let shared = Arc::new(Shared {
            sequence: watch::Sender::new(state.sequence()),
            state: RwLock::new(state),
            revisions: Mutex::new(HashMap::new()),
            stalled: AtomicBool::new(false),
        });
        let (proposals, queue) = mpsc::channel(QUEUE);
        let mut driver = Driver {
            shared: shared.clone(),
            log,
            writer,
            number: 0,
            broken: None,
            contended: false,
            owed: None,
            reloads: 0,
            keeper: Keeper::new(pace, *shared.sequence.borrow()),
        };
        driver.catch_up(0, &mut None).await.map_err(unreadable)?;
        tokio::spawn(driver.run(queue));
        Ok(Self { shared, proposals })
    }

    /// Looks at the state. The closure must be short: it holds a read lock.
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.shared.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes with every record applied.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.sequence.subscribe()
    }

    /// Changes with every revision of this job, and when it is deleted. Subscribe first, then look at the state.
    pub fn watch_job(&self, uid: JobUid) -> watch::Receiver<u64> {
        // Before the lock of the watches, because the writer takes the two in this order.
        let revision = self.read(|state| state.job(uid).map_or(GONE, |job| job.revision));
        let mut revisions = self.shared.revisions.lock().unwrap_or_else(PoisonError::into_inner);
        revisions.retain(|job, sender| *job == uid || sender.receiver_count() > 0);
        revisions.entry(uid).or_insert_with(|| watch::Sender::new(revision)).subscribe()
    }

    /// Whether the log could be reached at the last attempt, which is a second or two ago at most. When not, the state is
    /// of the past, and nobody knows how far.
    pub fn is_reachable(&self) -> bool {
        !self.shared.stalled.load(Ordering::Relaxed)
    }

    /// Reports an update whose slab is frozen. The answer is what became of it in log order. When the log goes away
    /// meanwhile, this waits until its fate is known: the caller keeps the slab as long, and gives its own client an
    /// earlier answer if it wants. Dropping the future does not take the update back.
    ///
    /// # Errors
    /// After [`LedgerError::Refused`] and [`LedgerError::Unavailable`] the slab is free; after the others its fate is
    /// known only to the next replay.
    pub async fn accept(&self, accept: Accept) -> Result<AcceptOutcome, LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.send(Proposal::Accept(Box::new(accept), reply)).await?;
        answer.await.map_err(|_| LedgerError::Stopped)?
    }

    /// Reports what a client measured of a model. The answer is what became of it in log order.
    ///
    /// # Errors
    /// All but [`LedgerError::Stale`].
    pub async fn evaluate(
        &self,
        uid: JobUid,
        version: u64,
        result: EvaluationResult,
    ) -> Result<EvaluateOutcome, LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.send(Proposal::Evaluate(Box::new(WaitingResult { uid, version, result, reply }))).await?;
        answer.await.map_err(|_| LedgerError::Stopped)?
    }

    /// Appends a record.
    ///
    /// # Errors
    /// All but [`LedgerError::Stale`].
    pub async fn propose(&self, record: Record) -> Result<Outcome, LedgerError> {
        self.record(record, None).await
    }

    /// Appends a decision taken at `sequence`; refused as stale if anything happened since.
    ///
    /// # Errors
    /// Every [`LedgerError`].
    pub async fn decide(&self, record: Record, sequence: u64) -> Result<Outcome, LedgerError> {
        self.record(record, Some(sequence)).await
    }

    /// Waits until the state holds everything that was stored when this was called, whoever stored it. For answers such
    /// as "no such job", which must not be given to a client that has just created it at another process.
    ///
    /// # Errors
    /// All but [`LedgerError::Stale`] and [`LedgerError::Refused`].
    pub async fn refresh(&self) -> Result<(), LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.send(Proposal::Refresh(reply)).await?;
        answer.await.map_err(|_| LedgerError::Stopped)?
    }

    async fn record(&self, record: Record, guard: Option<u64>) -> Result<Outcome, LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.send(Proposal::Record { record: Box::new(record), guard, reply }).await?;
        answer.await.map_err(|_| LedgerError::Stopped)?
    }

    async fn send(&self, proposal: Proposal) -> Result<(), LedgerError> {
        if !self.is_reachable() {
            return Err(LedgerError::Unavailable);
        }
        self.proposals.send(proposal).await.map_err(|_| LedgerError::Stopped)
    }
}

struct Driver {
    shared: Arc<Shared>,
    log: Arc<dyn EventLog>,
    writer: [u8; 16],
    number: u64,
    /// Why nothing more may be appended.
    broken: Option<String>,
    /// Whether others write too.
    contended: bool,
    /// How long the next append waits for one of theirs.
    owed: Option<Duration>,
    /// Times the state came from a snapshot because the records it lacked were forgotten.
    reloads: u64,
    keeper: Keeper,
}

impl Driver {
    async fn run(mut self, mut queue: mpsc::Receiver<Proposal>) {
        let mut batch = Vec::with_capacity(GROUP);
        loop {
            self.keeper.look(&self.log, self.state(State::sequence));
            self.give_way().await;
            tokio::select! {
                taken = queue.recv_many(&mut batch, GROUP) => if taken == 0 { break },
                is_news = self.news() => {
                    if is_news {
                        self.follow().await;
                    }
                    continue;
                }
            }
            let (mut accepts, mut results, mut refreshes) = (Vec::new(), Vec::new(), Vec::new());
            for proposal in batch.drain(..) {
                match proposal {
                    Proposal::Accept(accept, reply) => accepts.push((accept, reply)),
                    Proposal::Evaluate(waiting) => results.push(*waiting),
                    Proposal::Record { record, guard, reply } => {
                        self.flush(&mut accepts).await;
                        self.flush_results(&mut results).await;
                        let answer = self.append(*record, guard).await;
                        reply.send(answer).ok();
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
    }

    /// After an append of its own, a writer among several waits for one of the others: it knows the log's new end a round
    /// trip before they do, and would win again and again while theirs wait for hundreds of milliseconds. What arrives
    /// meanwhile joins the next group. When nobody else appends, it waits once.
    async fn give_way(&mut self) {
        let Some(patience) = self.owed.take().filter(|_| self.contended && self.broken.is_none()) else { return };
        match tokio::time::timeout(patience, self.log.grown(self.state(State::sequence))).await {
            Ok(Ok(())) => self.follow().await,
            Ok(Err(error)) => self.stall(&error.to_string()),
            Err(_) => self.contended = false,
        }
    }

    /// Waits until the log may hold more than the state, or is worth another attempt; false when it cannot be reached.
    /// Never done when the writer is done for good. Dropping it loses nothing.
    async fn news(&self) -> bool {
        if self.broken.is_some() {
            return std::future::pending().await;
        }
        if self.shared.stalled.load(Ordering::Relaxed) {
            tokio::time::sleep(RETRY).await;
            return true;
        }
        let grown = self.log.grown(self.state(State::sequence)).await;
        grown.inspect_err(|error| self.stall(&error.to_string())).is_ok()
    }

    /// Applies what others have appended since the log said that it had grown.
    async fn follow(&mut self) {
        let before = self.state(State::sequence);
        let is_fresh = self.refresh().await.is_ok();
        if is_fresh && self.state(State::sequence) == before {
            // What is stored cannot be read yet, or there was nothing.
            tokio::time::sleep(LAG).await;
        }
    }

    /// Applies everything that is stored now.
    async fn refresh(&mut self) -> Result<(), LedgerError> {
        if let Some(why) = &self.broken {
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

    fn record_bytes_max(&self) -> usize {
        RECORD_BYTES_MAX.min(self.log.record_bytes_max())
    }

    async fn append_group(&mut self, group: Vec<Accept>, replies: Vec<AcceptReply>) {
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

    fn state<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.shared.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Appends one record and applies everything up to it. Returns only when its fate is known, or never will be.
    async fn append(&mut self, record: Record, guard: Option<u64>) -> Result<Outcome, LedgerError> {
        if let Some(why) = &self.broken {
            return Err(LedgerError::Unreadable(why.clone()));
        }
        let result = self.settle(record, guard).await;
        if self.broken.is_none() {
            self.reached();
        }
        result
    }

    async fn settle(&mut self, record: Record, guard: Option<u64>) -> Result<Outcome, LedgerError> {
        self.number += 1;
        let number = self.number;
        let envelope = Envelope { writer: self.writer, number, record };
        let bytes = catchment_codec::encode(&envelope, self.record_bytes_max())
            .map(Bytes::from)
            .map_err(|error| LedgerError::Refused(error.to_string()))?;
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
                    return Ok(self.apply(sequence, &envelope.record));
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
                return Err(LedgerError::Unreadable(
                    "it was away for so long that it has forgotten what became of this record".to_owned(),
                ));
            }
            // The same record is appended again. With the same guard at most one of the two is ever stored; with
            // another, the log has gone past the first, and it never will be.
            if self.state(State::sequence) == last {
                tokio::time::sleep(wait).await;
            }
        }
    }

    fn reached(&self) {
        if self.shared.stalled.swap(false, Ordering::Relaxed) {
            tracing::info!("the event log is back");
        }
    }

    fn stall(&self, why: &str) {
        if !self.shared.stalled.swap(true, Ordering::Relaxed) {
            tracing::warn!(%why, "the event log cannot be reached; updates are refused until it can");
        }
    }

    fn give_up(&mut self, why: String) -> LedgerError {
        self.shared.stalled.store(true, Ordering::Relaxed);
        tracing::error!(%why, "the event log is damaged or from a newer release; nothing more is accepted");
        self.broken = Some(why.clone());
        LedgerError::Unreadable(why)
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
    async fn catch_up(&mut self, number: u64, found: &mut Option<Outcome>) -> Result<(), LogError> {
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
            for (sequence, bytes) in records {
                let envelope = Envelope::decode(sequence, &bytes)?;
                let is_own = envelope.writer == self.writer;
                self.keeper.count(bytes.len(), is_own);
                let outcome = self.apply(sequence, &envelope.record);
                self.contended |= !is_own;
                if is_own && envelope.number == number {
                    *found = Some(outcome);
                }
            }
            if is_end {
                return Ok(());
            }
        }
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
        Ok(())
    }

    fn apply(&self, sequence: u64, record: &Record) -> Outcome {
        let outcome = self.change(sequence, |state| state.apply(sequence, record));
        if let Outcome::Ignored(why) = outcome {
            tracing::debug!(sequence, why, ?record, "record changed nothing");
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
    use catchment_types::{Digest, NodeId, SlabId};

    /// Groups are cut by this bound; were it too low, a whole group would be refused for its size.
    #[test]
    fn no_group_is_larger_than_its_bound() {
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
                let envelope = Envelope { writer: [255; 16], number: u64::MAX, record };
                let bytes = catchment_codec::encode(&envelope, 1 << 20).unwrap().len();
                assert!(bytes <= bound, "{bytes} over {bound}");
                let bound = ENVELOPE_BYTES + count * accept_bytes_max(&accept);
                let record = Record::Accepted(vec![accept.clone(); count]);
                let envelope = Envelope { writer: [255; 16], number: u64::MAX, record };
                let bytes = catchment_codec::encode(&envelope, 1 << 20).unwrap().len();
                assert!(bytes <= bound, "{bytes} over {bound}");
            }
        }
    }
}
