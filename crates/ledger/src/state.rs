//! The fold over the event log.

use crate::job::{Job, Model, Verdict};
use crate::names::UsedNames;
use crate::outcome::{AcceptOutcome, EvaluateOutcome, Outcome};
use crate::round::{Phase, Round, Update};
use catchment_types::{
    Accept, ClientId, CloseReason, Digest, DurationText, EvaluationResult, Footprint, JobAction, JobSpec, JobState,
    JobUid, ModelCommit, Name, NodeId, Place, Receipt, ReceiptId, Record, SpecPatch, TimeMs,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The shortest deadline a round may be given by a patch; the spec refuses a shorter one too.
const DEADLINE_MS_MIN: u64 = 100;
/// The longest, likewise: a year.
const DEADLINE_MS_MAX: u64 = 365 * 86_400_000;

/// Every job, as the log up to [`State::sequence`] leaves it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    sequence: u64,
    jobs: BTreeMap<JobUid, Job>,
    names: BTreeMap<(Name, Name), JobUid>,
    /// Where to look for a receipt: its job and round. Follows from the jobs.
    #[serde(skip)]
    receipts: HashMap<ReceiptId, (JobUid, u64)>,
    /// How often each node was given up, where that ever happened.
    incarnations: BTreeMap<NodeId, u64>,
    /// Names that deleted jobs had. A snapshot carries them beside the rest.
    #[serde(skip)]
    pub(crate) used_names: UsedNames,
}

impl State {
    /// Sequence of the last record applied; 0 before the first.
    pub fn sequence(&self) -> u64 {
        self.sequence
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
    ///
    /// # Errors
    /// A spec that this build does not read.
    pub(crate) fn complete(&mut self) -> Result<(), String> {
        for job in self.jobs.values_mut() {
            job.complete()?;
            for round in job.round.iter().chain(&job.history) {
                self.receipts.extend(round.updates().map(|update| (update.receipt, (job.uid, round.number))));
            }
        }
        Ok(())
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

    /// Applies the record at `sequence`, which must be the next one.
    pub fn apply(&mut self, sequence: u64, record: &Record) -> Outcome {
        assert_eq!(sequence, self.sequence + 1, "the log has no gaps");
        self.sequence = sequence;
        match record {
            Record::JobCreated { uid, spec, at_ms } => self.create(*uid, spec, *at_ms),
            Record::JobPatched { uid, patch, .. } => self.change(*uid, |job| patch_job(job, patch)),
            Record::JobActed { uid, action: JobAction::Delete, .. } => self.delete(*uid),
            Record::JobActed { uid, action, at_ms } => self.change(*uid, |job| act(job, *action, *at_ms)),
            Record::JobFailed { uid, reason, at_ms } => self.change(*uid, |job| fail(job, reason, *at_ms)),
            Record::ModelPut { uid, model, needs, at_ms } => {
                self.change(*uid, |job| put_model(job, model, *needs, *at_ms))
            }
            Record::RoundOpened { uid, round, deadline_ms, places, at_ms } => {
                self.open_round(*uid, *round, *deadline_ms, places, *at_ms)
            }
            Record::RoundPlaced { uid, round, places } => self.change(*uid, |job| place(job, *round, places)),
            Record::RoundExtended { uid, round, deadline_ms } => {
                self.change(*uid, |job| extend(job, *round, *deadline_ms))
            }
            Record::RoundClosed { uid, round, reason, at_ms } => {
                self.change(*uid, |job| close(job, *round, *reason, *at_ms))
            }
            Record::Accepted(group) => Outcome::Accepts(group.iter().map(|accept| self.accept(accept)).collect()),
            Record::Folded { uid, round, receipts } => self.touch(*uid, *round, false, |active| active.fold(receipts)),
            Record::Discarded { uid, round, receipt, reason } => {
                self.touch(*uid, *round, false, |active| active.discard(*receipt, reason))
            }
            Record::Lost { uid, round, receipts, .. } => {
                let reason = "the memory that held it was lost; send it again";
                self.touch(*uid, *round, true, |active| active.lose(receipts, reason))
            }
            Record::NodeLost { node, incarnation, .. } => self.lose_node(*node, *incarnation),
            Record::Evaluated { uid, version, results } => {
                let each = results.iter().map(|result| match self.jobs.get_mut(uid) {
                    Some(job) => job.evaluate(*version, result),
                    None => EvaluateOutcome::UnknownJob,
                });
                Outcome::Evaluations(each.collect())
            }
            Record::JobCompleted { uid, reason, at_ms } => self.change(*uid, |job| complete(job, reason, *at_ms)),
            Record::Committed { uid, round, model, at_ms } => {
                self.change(*uid, |job| commit(job, *round, model, *at_ms))
            }
            Record::RoundGivenUp { uid, round, contribution, reason, at_ms } => {
                self.change(*uid, |job| job.give_up(*round, contribution, reason, *at_ms))
            }
        }
    }

    fn create(&mut self, uid: JobUid, spec_text: &str, at_ms: TimeMs) -> Outcome {
        let Ok(spec) = JobSpec::from_json(spec_text.as_bytes()) else {
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
            spec,
            state: JobState::WaitingForModel,
            reason: None,
            created_ms: at_ms,
            revision: self.sequence,
            models: Vec::new(),
            needs: Footprint::default(),
            round: None,
            mark: None,
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
        self.used_names.insert(&job.spec.namespace, &job.spec.name);
        self.names.remove(&(job.spec.namespace, job.spec.name));
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
        deadline_ms: Option<TimeMs>,
        places: &[Place],
        at_ms: TimeMs,
    ) -> Outcome {
        let Some(job) = self.jobs.get_mut(&uid) else { return Outcome::Ignored("no such job") };
        let Some(version) = job.newest_model().map(|model| model.commit.version) else {
            return Outcome::Ignored("no initial model");
        };
        let is_next = number == job.round_number() + 1 && number <= job.spec.rounds;
        if job.state != JobState::Running || job.active_round().is_some() || !is_next {
            return Outcome::Ignored("the round cannot open now");
        }
        let round = Round::open(number, version, &job.spec, at_ms, deadline_ms, places);
        let ended = job.round.replace(round);
        job.revision = self.sequence;
        let dropped = ended.map_or_else(Vec::new, |ended| job.retire(ended, at_ms));
        self.forget_receipts(&dropped);
        Outcome::Done
    }

    fn lose_node(&mut self, node: NodeId, incarnation: u64) -> Outcome {
        if incarnation != self.incarnation(node) {
            return Outcome::Ignored("that incarnation is over");
        }
        self.incarnations.insert(node, incarnation + 1);
        for job in self.jobs.values_mut() {
            if job.round.as_mut().is_some_and(|round| round.is_active() && round.lose_node(node)) {
                job.revision = self.sequence;
            }
        }
        Outcome::Done
    }

    fn accept(&mut self, accept: &Accept) -> AcceptOutcome {
        if let Some(outcome) = self.judge_accept(accept) {
            return outcome;
        }
        if accept.incarnation != self.incarnation(accept.node) {
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

pub(crate) fn active(job: &mut Job, number: u64) -> Result<&mut Round, &'static str> {
    job.round.as_mut().filter(|round| round.number == number && round.is_active()).ok_or("the round is not active")
}

fn patch_job(job: &mut Job, patch: &SpecPatch) -> Result<(), &'static str> {
    if job.state.is_over() {
        return Err("the job is over");
    }
    if let Some(rounds) = patch.rounds {
        job.spec.rounds = rounds.max(1);
    }
    if let Some(goal) = patch.goal {
        job.spec.set_goal(goal);
    }
    if let Some(deadline) = patch.deadline {
        job.spec.deadline = Some(DurationText::from_ms(deadline.ms().clamp(DEADLINE_MS_MIN, DEADLINE_MS_MAX)));
    }
    complete_if_done(job);
    Ok(())
}

fn act(job: &mut Job, action: JobAction, at_ms: TimeMs) -> Result<(), &'static str> {
    match (action, job.state) {
        (JobAction::Pause, JobState::Running) => {
            job.state = JobState::Paused;
            job.mark = Some(at_ms);
        }
        (JobAction::Resume, JobState::Paused) => {
            job.state = JobState::Running;
            resume_deadline(job, at_ms);
            // It had paused itself: its owner knows now, so rounds given up are counted anew.
            job.mark = job.reason.take().map(|_| job.round_number());
        }
        (JobAction::Stop, state) if !state.is_over() => {
            job.state = JobState::Stopped;
            job.reason = None;
            end_active_round(job, CloseReason::Stopped, at_ms);
        }
        _ => return Err("the job's state does not allow it"),
    }
    Ok(())
}

/// A pause does not use up the round's time: otherwise resuming a job after a night would fail its round.
fn resume_deadline(job: &mut Job, at_ms: TimeMs) {
    let paused_ms = job.mark.take().map_or(0, |since| at_ms.saturating_sub(since));
    if let Some(deadline) = job.round.as_mut().filter(|round| round.is_active()).and_then(|r| r.deadline_ms.as_mut()) {
        *deadline = deadline.saturating_add(paused_ms);
    }
}

fn fail(job: &mut Job, reason: &str, at_ms: TimeMs) -> Result<(), &'static str> {
    if job.state.is_over() {
        return Err("the job is over");
    }
    job.state = JobState::Failed;
    job.reason = Some(reason.to_owned());
    end_active_round(job, CloseReason::Stopped, at_ms);
    Ok(())
}

fn complete(job: &mut Job, reason: &str, at_ms: TimeMs) -> Result<(), &'static str> {
    if !matches!(job.state, JobState::Running | JobState::Paused) {
        return Err("the job is not running");
    }
    job.state = JobState::Completed;
    job.reason = Some(reason.to_owned());
    end_active_round(job, CloseReason::Stopped, at_ms);
    Ok(())
}

fn end_active_round(job: &mut Job, reason: CloseReason, at_ms: TimeMs) {
    if let Some(round) = job.round.as_mut().filter(|round| round.is_active()) {
        round.skip(reason, at_ms);
    }
}

fn put_model(job: &mut Job, model: &ModelCommit, needs: Footprint, at_ms: TimeMs) -> Result<(), &'static str> {
    if job.state != JobState::WaitingForModel {
        return Err("the job has a model already");
    }
    if model.version != 0 {
        return Err("the initial model is version 0");
    }
    job.models.push(Model { commit: model.clone(), round: None, at_ms });
    job.needs = needs;
    job.state = JobState::Running;
    Ok(())
}

fn extend(job: &mut Job, number: u64, deadline_ms: Option<TimeMs>) -> Result<(), &'static str> {
    let round = active(job, number)?;
    round.deadline_ms = deadline_ms;
    if round.received() < round.goal {
        round.phase = Phase::Open;
    }
    Ok(())
}

fn place(job: &mut Job, number: u64, places: &[Place]) -> Result<(), &'static str> {
    let round = active(job, number)?;
    if round.places == places {
        return Err("it is placed there already");
    }
    round.places = places.to_vec();
    Ok(())
}

fn close(job: &mut Job, number: u64, reason: CloseReason, at_ms: TimeMs) -> Result<(), &'static str> {
    let round = active(job, number)?;
    match reason {
        CloseReason::Deadline => round.phase = Phase::Aggregating,
        CloseReason::Shortfall | CloseReason::Stopped => {
            round.skip(reason, at_ms);
            complete_if_done(job);
        }
    }
    Ok(())
}

fn commit(job: &mut Job, number: u64, model: &ModelCommit, at_ms: TimeMs) -> Result<(), &'static str> {
    let version = job.models.len() as u64;
    let round = active(job, number)?;
    let ready = if model.gathered { round.is_complete() } else { round.is_ready() };
    if !ready || model.version != version || model.contribution != Some(round.contribution()) {
        return Err("the commit is not of this round's contribution set");
    }
    round.commit(version, at_ms);
    job.models.push(Model { commit: model.clone(), round: Some(number), at_ms });
    job.retire_evaluations();
    complete_if_done(job);
    Ok(())
}

fn complete_if_done(job: &mut Job) {
    if job.round_number() >= job.spec.rounds && job.active_round().is_none() && !job.state.is_over() {
        job.state = JobState::Completed;
        job.reason = None;
    }
}
