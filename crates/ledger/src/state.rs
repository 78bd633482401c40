//! The fold over the event log.

use crate::change::{self, active};
use crate::envelope::{Decided, Envelope, Guard, Stocked};
use crate::hashes::Hashes;
use crate::job::{Job, Verdict};
use crate::models::Models;
use crate::names::UsedNames;
use crate::outcome::{AcceptOutcome, EvaluateOutcome, Outcome};
use crate::round::{Phase, Round, Update};
use crate::term::Term;
use crate::time::bounded;
use crate::writers::Writers;
use catchment_types::{
    Accept, ClientId, CloseReason, Digest, EvaluationResult, Footprint, JobAction, JobSpec, JobState, JobUid, LogId,
    Name, NodeId, Place, Receipt, ReceiptId, ReceiptState, Record, TimeMs,
};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Why what a node's memory held is lost.
pub(crate) const MEMORY_LOST: &str = "the memory that held it was lost; send it again";

/// What a process finds that has come to another state than the one that wrote this.
pub(crate) const DIFFERS: &str = "the process that wrote it had come to another state than this one, from the same records: one \
                                  of the two has a mistake, or broken memory";

/// Why a decision has no effect when its guard does not hold.
pub(crate) const CHANGED: &str = "the job has changed since this was decided";

/// Every job, as the log up to [`State::sequence`] leaves it.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    pub(crate) sequence: u64,
    /// What may be written: every member reads it.
    pub(crate) level: u32,
    /// Which log it is of; `None` before its members' releases know of that.
    pub(crate) log: Option<LogId>,
    /// Entries of the log that are no records.
    pub(crate) foreign: u64,
    pub(crate) jobs: BTreeMap<JobUid, Job>,
    pub(crate) names: BTreeMap<(Name, Name), JobUid>,
    /// Where to look for a receipt: its job and round. Follows from the jobs.
    pub(crate) receipts: HashMap<ReceiptId, (JobUid, u64)>,
    /// Which life of each node counts, where one was ever given up.
    pub(crate) incarnations: BTreeMap<NodeId, u64>,
    /// Which process works as each node: the last that started.
    pub(crate) processes: BTreeMap<NodeId, [u8; 16]>,
    /// Names that deleted jobs had.
    pub(crate) used_names: UsedNames,
    /// Who wrote the last records, from level 2 on.
    pub(crate) writers: Writers,
    /// What was made of the records, from level 2 on.
    pub(crate) hashes: Hashes,
    /// Its own time, from level 2 on.
    pub(crate) newest_ms: TimeMs,
}

impl Default for State {
    /// Of an empty log.
    fn default() -> Self {
        Self {
            sequence: 0,
            level: 1,
            log: None,
            foreign: 0,
            jobs: BTreeMap::new(),
            names: BTreeMap::new(),
            receipts: HashMap::new(),
            incarnations: BTreeMap::new(),
            processes: BTreeMap::new(),
            used_names: UsedNames::default(),
            writers: Writers::default(),
            hashes: Hashes::default(),
            newest_ms: 0,
        }
    }
}

impl State {
    /// Sequence of the last record applied; 0 before the first.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The cluster's feature level: what may be written, because every member reads it.
    pub fn level(&self) -> u32 {
        self.level
    }

    /// The log's identity, which data directories remember. `None` before the feature level that has them.
    pub fn log(&self) -> Option<LogId> {
        self.log
    }

    /// Entries of the log that are no records: what somebody else has sent to its address.
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// The process that works as this node, by the name of its records: the last that started. `None` where none has said.
    pub fn process(&self, node: NodeId) -> Option<[u8; 16]> {
        self.processes.get(&node).copied()
    }

    /// How often a node was given up for lost: which of its lives counts now.
    pub fn incarnation(&self, node: NodeId) -> u64 {
        self.incarnations.get(&node).copied().unwrap_or_default()
    }

    /// Nodes that hold something for an active round.
    pub fn holders(&self) -> BTreeSet<NodeId> {
        self.jobs().filter_map(Job::active_round).flat_map(Round::shares).map(|(node, _)| node).collect()
    }

    /// Every job, by identity.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// Jobs in the order of namespace and name.
    pub fn jobs_by_name(&self) -> impl Iterator<Item = &Job> {
        self.names.values().filter_map(|uid| self.jobs.get(uid))
    }

    /// The job with this identity.
    pub fn job(&self, uid: JobUid) -> Option<&Job> {
        self.jobs.get(&uid)
    }

    /// The job that has this name now.
    pub fn job_named(&self, namespace: &Name, name: &Name) -> Option<&Job> {
        self.names.get(&(namespace.clone(), name.clone())).and_then(|uid| self.jobs.get(uid))
    }

    /// Whether no job before this one had its name, as far as the log is known. Otherwise a caller that says nothing but
    /// the name may mean another.
    pub fn is_first_of_its_name(&self, job: &Job) -> bool {
        !self.used_names.has(&job.spec.namespace, &job.spec.name)
    }

    /// The receipt with this name, as callers see it.
    pub fn receipt(&self, receipt: ReceiptId) -> Option<Receipt> {
        self.locate(receipt).map(|(job, round, update)| job.receipt(round, update))
    }

    pub(crate) fn locate(&self, receipt: ReceiptId) -> Option<(&Job, &Round, &Update)> {
        let (uid, number) = self.receipts.get(&receipt)?;
        let job = self.jobs.get(uid)?;
        let round = job.round_numbered(*number)?;
        round.update(receipt).map(|update| (job, round, update))
    }

    /// Makes again what a snapshot leaves out because it follows from the rest.
    pub(crate) fn index(&mut self) {
        for job in self.jobs.values() {
            self.names.insert((job.spec.namespace.clone(), job.spec.name.clone()), job.uid);
            for round in job.round.iter().chain(&job.history) {
                self.receipts.extend(round.updates().map(|update| (update.receipt, (job.uid, round.number))));
            }
        }
    }

    pub(crate) fn receipts_indexed(&self) -> u64 {
        self.receipts.len() as u64
    }

    /// What an update would meet now; `digest` is `None` while its body is unread, and then `Duplicate` means only
    /// that the client has sent something for this round. `None`: nothing stands in its way.
    pub fn judge(&self, uid: JobUid, round: u64, client: &ClientId, digest: Option<&Digest>) -> Option<AcceptOutcome> {
        let Some(job) = self.jobs.get(&uid) else { return Some(AcceptOutcome::UnknownJob) };
        Some(match job.judge(round, client, digest) {
            Verdict::Open => return None,
            Verdict::Known(receipt) | Verdict::Duplicate(receipt) => AcceptOutcome::Duplicate(receipt),
            Verdict::Conflict(receipt) => AcceptOutcome::Conflict(receipt),
            Verdict::Closed => AcceptOutcome::RoundClosed { next: job.next_round() },
            Verdict::NotOpenYet => AcceptOutcome::NotOpenYet { current: job.round_number() },
            Verdict::WrongState => AcceptOutcome::WrongState(job.state),
        })
    }

    /// What a report of a frozen update would meet now, as [`State::judge`] says it; and whether the round it names is still
    /// the one.
    pub(crate) fn judge_accept(&self, accept: &Accept) -> Option<AcceptOutcome> {
        let judged = self.judge(accept.uid, accept.addressed(), &accept.client, Some(&accept.digest));
        match (judged, accept.base) {
            (None, Some(_)) => {
                let open = self.job(accept.uid).and_then(Job::active_round);
                open.is_none_or(|round| round.number != accept.round).then_some(AcceptOutcome::Moved)
            }
            // Its version is there, so what is not open is the next buffer.
            (Some(AcceptOutcome::NotOpenYet { .. }), Some(_)) => Some(AcceptOutcome::Moved),
            (judged, _) => judged,
        }
    }

    /// What a client's measurement of a model would meet now. `None`: nothing stands in its way.
    pub fn judge_result(&self, uid: JobUid, version: u64, result: &EvaluationResult) -> Option<EvaluateOutcome> {
        match self.jobs.get(&uid) {
            Some(job) => job.judge_result(version, result),
            None => Some(EvaluateOutcome::UnknownJob),
        }
    }

    /// What a decision that this record says is taken on, for [`crate::Ledger::decide`]. Ask it of the state that the decision
    /// was taken on.
    pub fn decided(&self, record: &Record) -> Decided {
        let (uid, has_too_few) = match record {
            Record::RoundOpened { uid, .. } | Record::RoundPlaced { uid, .. } | Record::JobPatched { uid, .. } => {
                (Some(uid), false)
            }
            Record::RoundClosed { uid, reason, .. } => (Some(uid), *reason == CloseReason::Shortfall),
            Record::RoundExtended { uid, .. } | Record::JobCompleted { uid, .. } | Record::JobFailed { uid, .. } => {
                (Some(uid), true)
            }
            // They say themselves what they are about, or nothing that could have changed.
            _ => (None, false),
        };
        let guard = uid.and_then(|uid| self.job(*uid)).map(|job| Guard {
            uid: job.uid,
            revision: job.revision,
            received: has_too_few.then(|| received(job)),
        });
        Decided { sequence: self.sequence, guard }
    }

    /// Whether what was decided on is still so.
    pub(crate) fn holds(&self, guard: &Guard) -> bool {
        let Some(job) = self.job(guard.uid) else { return false };
        job.revision == guard.revision && guard.received.is_none_or(|before| received(job) == before)
    }

    /// Applies what the log holds at `sequence`, which must be the next.
    pub fn take(&mut self, sequence: u64, stocked: &Stocked) -> Outcome {
        let outcome = self.judge_and_apply(sequence, stocked);
        self.hash_outcome(&outcome);
        outcome
    }

    fn judge_and_apply(&mut self, sequence: u64, stocked: &Stocked) -> Outcome {
        match stocked {
            Stocked::Record(envelope) => {
                let Envelope { writer, number, seen, .. } = **envelope;
                if self.level >= 2 && !self.writers.take(sequence, writer, number, seen) {
                    self.step(sequence);
                    return Outcome::Ignored("its writer has written it anew, or it is there already");
                }
                if envelope.guard.as_ref().is_some_and(|guard| !self.holds(guard)) {
                    self.step(sequence);
                    return Outcome::Ignored(CHANGED);
                }
                self.apply_of(sequence, Some(envelope.writer), &envelope.record)
            }
            Stocked::Foreign(_) => {
                self.step(sequence);
                self.foreign += 1;
                Outcome::Ignored("it is no record")
            }
        }
    }

    /// Applies the record at `sequence`, which must be the next one, whoever wrote it.
    pub fn apply(&mut self, sequence: u64, record: &Record) -> Outcome {
        let outcome = self.apply_of(sequence, None, record);
        self.hash_outcome(&outcome);
        outcome
    }

    fn step(&mut self, sequence: u64) {
        assert_eq!(sequence, self.sequence + 1, "the log has no gaps");
        self.sequence = sequence;
    }

    /// Whether what this process writes as the node counts.
    fn is_fenced(&self, node: NodeId, writer: Option<[u8; 16]>) -> bool {
        writer.zip(self.process(node)).is_some_and(|(writer, process)| writer != process)
    }

    fn apply_of(&mut self, sequence: u64, writer: Option<[u8; 16]>, record: &Record) -> Outcome {
        self.step(sequence);
        // At the first level there is no time but what each record says.
        let Some(at_ms) = record.at_ms().filter(|_| self.level >= 2) else {
            return self.carry_out(writer, record, record.at_ms().unwrap_or(self.newest_ms));
        };
        let said_ms = writer.and_then(|writer| self.writers.said_ms(&writer));
        let now_ms = bounded(self.newest_ms, at_ms, said_ms);
        let outcome = self.carry_out(writer, record, now_ms);
        // What is ignored changes nothing, time neither.
        if !matches!(outcome, Outcome::Ignored(_)) {
            self.newest_ms = now_ms;
            writer.inspect(|writer| self.writers.say(writer, at_ms));
        }
        outcome
    }

    /// What a record changes, given the log's time at it.
    fn carry_out(&mut self, writer: Option<[u8; 16]>, record: &Record, now_ms: TimeMs) -> Outcome {
        match record {
            Record::JobCreated { uid, spec, at_ms } => self.create(*uid, spec, *at_ms),
            Record::JobPatched { uid, patch, .. } => self.change(*uid, |job| change::patch(job, patch)),
            Record::JobActed { uid, action: JobAction::Delete, .. } => self.delete(*uid),
            Record::JobActed { uid, action, at_ms } => {
                self.change(*uid, |job| change::act(job, *action, *at_ms, now_ms))
            }
            Record::JobFailed { uid, reason, .. } => self.change(*uid, |job| change::fail(job, reason, now_ms)),
            Record::ModelPut { uid, model, needs, at_ms } => {
                self.change(*uid, |job| change::put_model(job, model, *needs, *at_ms))
            }
            Record::RoundOpened { uid, round, deadline_ms, places, at_ms } => {
                let allowed_ms =
                    deadline_ms.filter(|_| self.level >= 2).map(|deadline| deadline.saturating_sub(*at_ms));
                let term = allowed_ms.map(|allowed_ms| Term::begin(None, allowed_ms, 0));
                self.open_round(*uid, *round, (*deadline_ms, term), places, (*at_ms, now_ms))
            }
            Record::RoundPlaced { uid, round, places } => self.change(*uid, |job| change::place(job, *round, places)),
            Record::RoundExtended { uid, round, deadline_ms } => {
                let is_timed = self.level >= 2;
                self.change(*uid, |job| change::extend(job, *round, *deadline_ms, is_timed))
            }
            Record::RoundClosed { uid, round, reason, .. } => {
                self.change(*uid, |job| change::close(job, *round, *reason, now_ms))
            }
            Record::Accepted(group) => {
                Outcome::Accepts(group.iter().map(|accept| self.accept(accept, writer)).collect())
            }
            Record::Folded { uid, round, receipts } => {
                let receipts = self.own(*uid, *round, receipts, writer);
                self.touch(*uid, *round, false, |active| active.fold(&receipts))
            }
            Record::Discarded { uid, round, receipt, code, reason } => {
                if self.own(*uid, *round, &[*receipt], writer).is_empty() {
                    return Outcome::Ignored("another process works as its node");
                }
                // Older releases keep the client's place.
                let frees_place = self.level >= 2;
                self.touch(*uid, *round, false, |active| active.discard(*receipt, *code, reason, frees_place))
            }
            Record::Lost { uid, round, receipts, .. } => {
                let receipts = self.loseable(*uid, *round, receipts, writer);
                self.touch(*uid, *round, true, |active| active.lose(&receipts, MEMORY_LOST))
            }
            Record::SumLost { node, .. } if self.is_fenced(*node, writer) => {
                Outcome::Ignored("another process works as the node")
            }
            Record::SumLost { uid, round, node, leaf, .. } => {
                self.touch(*uid, *round, true, |active| active.lose_sum(*node, *leaf))
            }
            Record::NodeLost { node, incarnation, .. } => self.lose_node(*node, *incarnation),
            Record::Evaluated { uid, version, results } => {
                let each = results.iter().map(|result| match self.jobs.get_mut(uid) {
                    Some(job) => job.evaluate(*version, result),
                    None => EvaluateOutcome::UnknownJob,
                });
                Outcome::Evaluations(each.collect())
            }
            Record::JobCompleted { uid, reason, .. } => self.change(*uid, |job| change::complete(job, reason, now_ms)),
            Record::Committed { uid, round, model, at_ms } => {
                // Members of the first release know them all, and number them by that.
                let forgets = self.level >= 2;
                self.change(*uid, |job| {
                    change::commit(job, *round, model, *at_ms, now_ms)?;
                    if forgets {
                        job.retire_models();
                    }
                    Ok(())
                })
            }
            Record::RoundGivenUp { uid, round, contribution, reason, at_ms } => {
                self.change(*uid, |job| job.give_up(*round, contribution, reason, *at_ms, now_ms))
            }
            Record::LevelRaised { level, log, .. } => self.raise(*level, *log),
            Record::NodeStarted { node, .. } => self.start(*node, writer),
            Record::StateHashed { sequence, hash } => match self.hashes.at(*sequence) {
                Some(own) if own != *hash => Outcome::Ignored(DIFFERS),
                Some(_) => Outcome::Done,
                None => Outcome::Ignored("the state has no hash of that record any more"),
            },
        }
    }

    fn raise(&mut self, level: u32, log: LogId) -> Outcome {
        if level <= self.level {
            return Outcome::Ignored("the level is as high already");
        }
        self.level = level;
        self.log.get_or_insert(log);
        Outcome::Done
    }

    fn start(&mut self, node: NodeId, writer: Option<[u8; 16]>) -> Outcome {
        let Some(writer) = writer else { return Outcome::Ignored("it does not say which process it is") };
        match self.processes.insert(node, writer) {
            Some(before) if before == writer => Outcome::Ignored("it has said so before"),
            _ => Outcome::Done,
        }
    }

    /// Of these updates, those that the writer may speak of: not those of a node as which another process works.
    fn own<'a>(
        &self,
        uid: JobUid,
        round: u64,
        receipts: &'a [ReceiptId],
        writer: Option<[u8; 16]>,
    ) -> Cow<'a, [ReceiptId]> {
        if self.processes.is_empty() || writer.is_none() {
            return receipts.into();
        }
        let Some(active) = self.active(uid, round) else { return receipts.into() };
        let is_own = |receipt: &ReceiptId| {
            active.update(*receipt).is_none_or(|update| !self.is_fenced(update.accept.node, writer))
        };
        receipts.iter().copied().filter(is_own).collect()
    }

    /// Of the updates that a process declares lost, those that can be: from level 2 on nothing that is in a sum, because
    /// nothing can be taken out of one. A sum is lost as a whole.
    fn loseable(&self, uid: JobUid, round: u64, receipts: &[ReceiptId], writer: Option<[u8; 16]>) -> Vec<ReceiptId> {
        let mut own = self.own(uid, round, receipts, writer).into_owned();
        if let Some(active) = self.active(uid, round).filter(|_| self.level >= 2) {
            own.retain(|receipt| active.update(*receipt).is_some_and(|update| update.state == ReceiptState::Accepted));
        }
        own
    }

    fn active(&self, uid: JobUid, round: u64) -> Option<&Round> {
        self.job(uid).and_then(Job::active_round).filter(|active| active.number == round)
    }

    fn create(&mut self, uid: JobUid, spec_text: &str, at_ms: TimeMs) -> Outcome {
        // What was accepted once stays accepted: no limit of this build is held against it. That it can be read at all was
        // seen before (`Envelope::read`).
        let Ok(spec) = JobSpec::stored(spec_text.as_bytes()) else {
            return Outcome::Ignored("the spec does not parse");
        };
        let key = (spec.namespace.clone(), spec.name.clone());
        if self.names.contains_key(&key) {
            return Outcome::Ignored("a job of this name exists");
        }
        if self.jobs.contains_key(&uid) {
            return Outcome::Ignored("a job of this identity exists");
        }
        self.names.insert(key, uid);
        let job = Job {
            uid,
            spec_text: spec_text.into(),
            spec: Arc::new(spec),
            state: JobState::WaitingForModel,
            reason: None,
            created_ms: at_ms,
            revision: self.sequence,
            models: Models::default(),
            needs: Footprint::default(),
            round: None,
            paused_ms: None,
            resumed_round: None,
            history: Default::default(),
            history_updates: 0,
            evaluations: BTreeMap::new(),
            best: None,
        };
        self.jobs.insert(uid, job);
        Outcome::Done
    }

    fn delete(&mut self, uid: JobUid) -> Outcome {
        let Some(job) = self.jobs.remove(&uid) else { return Outcome::Ignored("no such job") };
        // Snapshots of the first level cannot carry them, and what only some processes know would set them apart.
        if self.level >= 2 {
            self.used_names.insert(&job.spec.namespace, &job.spec.name);
        }
        self.names.remove(&(job.spec.namespace.clone(), job.spec.name.clone()));
        self.forget_receipts(job.round.iter().chain(&job.history));
        Outcome::Done
    }

    fn forget_receipts<'a>(&mut self, rounds: impl IntoIterator<Item = &'a Round>) {
        for update in rounds.into_iter().flat_map(Round::updates) {
            self.receipts.remove(&update.receipt);
        }
    }

    /// Applies a change that long-pollers wait for.
    fn change(&mut self, uid: JobUid, change: impl FnOnce(&mut Job) -> Result<(), &'static str>) -> Outcome {
        let Some(job) = self.jobs.get_mut(&uid) else { return Outcome::Ignored("no such job") };
        match change(job) {
            Ok(()) => {
                job.revision = self.sequence;
                Outcome::Done
            }
            Err(why) => Outcome::Ignored(why),
        }
    }

    /// Applies a change within the active round.
    fn touch(&mut self, uid: JobUid, number: u64, revises: bool, change: impl FnOnce(&mut Round) -> bool) -> Outcome {
        let Some(job) = self.jobs.get_mut(&uid) else { return Outcome::Ignored("no such job") };
        match active(job, number).map(change) {
            Ok(true) => {
                if revises {
                    job.revision = self.sequence;
                }
                Outcome::Done
            }
            Ok(false) => Outcome::Ignored("nothing to change"),
            Err(why) => Outcome::Ignored(why),
        }
    }

    fn open_round(
        &mut self,
        uid: JobUid,
        number: u64,
        deadline: (Option<TimeMs>, Option<Term>),
        places: &[Place],
        (at_ms, now_ms): (TimeMs, TimeMs),
    ) -> Outcome {
        let Some(job) = self.jobs.get_mut(&uid) else { return Outcome::Ignored("no such job") };
        let Some(version) = job.newest_model().map(|model| model.commit.version) else {
            return Outcome::Ignored("no initial model");
        };
        let is_next = number == job.round_number() + 1 && number <= job.spec.rounds;
        if job.state != JobState::Running || job.active_round().is_some() || !is_next {
            return Outcome::Ignored("the round cannot open now");
        }
        let round = Round::open(number, version, &job.spec, at_ms, deadline, places);
        let ended = job.round.replace(round);
        job.revision = self.sequence;
        let dropped = ended.map_or_else(Vec::new, |ended| job.retire(ended, now_ms));
        self.forget_receipts(&dropped);
        Outcome::Done
    }

    fn lose_node(&mut self, node: NodeId, incarnation: u64) -> Outcome {
        if incarnation != self.incarnation(node) {
            return Outcome::Ignored("that incarnation is over");
        }
        // From level 2 on no life has a number that any had before, also not of a node that was forgotten meanwhile.
        let next = if self.level >= 2 { self.sequence } else { incarnation + 1 };
        self.incarnations.insert(node, next);
        for job in self.jobs.values_mut() {
            if job.round.as_mut().is_some_and(|round| round.is_active() && round.lose_node(node)) {
                job.revision = self.sequence;
            }
        }
        Outcome::Done
    }

    fn accept(&mut self, accept: &Accept, writer: Option<[u8; 16]>) -> AcceptOutcome {
        if let Some(outcome) = self.judge_accept(accept) {
            return outcome;
        }
        if accept.incarnation != self.incarnation(accept.node) || self.is_fenced(accept.node, writer) {
            return AcceptOutcome::NodeLost;
        }
        let job = self.jobs.get_mut(&accept.uid).expect("judged just now");
        let round = job.round.as_mut().expect("an open round was judged just now");
        let receipt = round.insert(accept);
        if round.phase == Phase::Aggregating {
            job.revision = self.sequence;
        }
        self.receipts.insert(receipt, (accept.uid, accept.round));
        AcceptOutcome::Accepted(receipt)
    }
}

/// Updates that the job's active round has.
fn received(job: &Job) -> u64 {
    job.active_round().map_or(0, Round::received)
}
