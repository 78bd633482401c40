//! One job: its spec, its models, its current round and the receipts of ended ones.

use crate::evaluation::Evaluation;
use crate::models::{LISTED_MAX, Model, Models};
use crate::round::{Phase, Round, Update};
use catchment_types::{
    ClientId, Code, Digest, Footprint, JobSpec, JobState, JobUid, JobView, Mode, ModelView, Receipt, ReceiptId,
    ReceiptState, RoundState, RoundView, TimeMs, rfc3339,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Receipts of ended rounds are dropped, oldest first, beyond this many updates, whatever the retention says. The
/// newest ended round keeps its own in any case, because its clients may still be repeating their calls.
const HISTORY_UPDATES_MAX: u64 = 200_000;
/// The same for rounds, which may be empty.
const HISTORY_ROUNDS_MAX: usize = 100_000;

/// One job.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its identity.
    pub uid: JobUid,
    /// Its spec as it was created: JSON.
    pub(crate) spec_text: Box<str>,
    /// Its spec as it is now. Shared, because each request looks at it for as long as it takes.
    pub spec: Arc<JobSpec>,
    /// What it is doing.
    pub state: JobState,
    /// Why it failed, was completed early, or paused itself.
    pub reason: Option<String>,
    /// When it was created.
    pub created_ms: TimeMs,
    /// Sequence of the last record that changed what long-pollers wait for.
    pub revision: u64,
    /// Its models, oldest first, from version 0.
    pub models: Models,
    /// What its rounds take of a node; nothing before the initial model.
    pub needs: Footprint,
    /// Its newest round.
    pub round: Option<Round>,
    /// Since when it is paused.
    pub(crate) paused_ms: Option<TimeMs>,
    /// The newest round when it was resumed after it had paused itself; rounds given up are counted from there on.
    pub(crate) resumed_round: Option<u64>,
    /// Ended rounds before `round`, newest first, without gaps.
    pub(crate) history: VecDeque<Round>,
    /// Updates in `history`.
    pub(crate) history_updates: u64,
    /// What clients measured, by version.
    pub(crate) evaluations: BTreeMap<u64, Evaluation>,
    /// The best of the measured models whose files are kept.
    pub(crate) best: Option<u64>,
}

impl Job {
    /// The newest model.
    pub fn newest_model(&self) -> Option<&Model> {
        self.models.newest()
    }

    /// When a round last made a model.
    pub fn last_commit_ms(&self) -> Option<TimeMs> {
        self.newest_model().filter(|model| model.round.is_some()).map(|model| model.at_ms)
    }

    /// The model of this version.
    pub fn model(&self, version: u64) -> Option<&Model> {
        self.models.version(version)
    }

    /// Whether the file of this version is kept: the initial one, the best one and the `keep_last` newest.
    pub fn keeps(&self, version: u64) -> bool {
        version == 0 || Some(version) == self.best || version.saturating_add(self.keep_last()) >= self.models.next()
    }

    fn keep_last(&self) -> u64 {
        self.spec.checkpoints.keep_last.max(1).into()
    }

    /// Forgets versions whose files are long gone.
    pub(crate) fn retire_models(&mut self) {
        let before = self.models.next().saturating_sub(LISTED_MAX.max(self.keep_last()));
        let best = self.best;
        self.models.forget(before, |version| version == 0 || Some(version) == best);
    }

    /// The round that takes updates or is being aggregated.
    pub fn active_round(&self) -> Option<&Round> {
        self.round.as_ref().filter(|round| round.is_active())
    }

    /// The last round that ended, while its receipts are kept.
    pub fn last_ended(&self) -> Option<&Round> {
        self.round.iter().chain(&self.history).find(|round| !round.is_active())
    }

    /// The round with this number, while its receipts are kept.
    pub fn round_numbered(&self, number: u64) -> Option<&Round> {
        match self.round_number().checked_sub(number)? {
            0 => self.round.as_ref(),
            back => self.history.get(usize::try_from(back - 1).ok()?),
        }
    }

    /// The number of the newest round; 0 before the first.
    pub fn round_number(&self) -> u64 {
        self.round.as_ref().map_or(0, |round| round.number)
    }

    /// What a client should train for after `round` was closed to it: a round, or in asynchronous jobs a version.
    pub fn next_round(&self) -> Option<u64> {
        if self.state.is_over() {
            return None;
        }
        if self.spec.mode != Mode::Sync {
            return self.newest_model().map(|model| model.commit.version).filter(|_| self.has_a_buffer_left());
        }
        match &self.round {
            Some(round) if round.phase == Phase::Open => Some(round.number),
            Some(round) => Some(round.number + 1).filter(|next| *next <= self.spec.rounds),
            None => Some(1),
        }
    }

    /// The update with this receipt, and its round.
    pub fn find(&self, receipt: ReceiptId) -> Option<(&Round, &Update)> {
        self.round.iter().chain(&self.history).find_map(|round| round.update(receipt).map(|update| (round, update)))
    }

    /// Keeps an ended round for its receipts and gives back the rounds whose retention has passed, oldest first.
    pub(crate) fn retire(&mut self, round: Round, now_ms: TimeMs) -> Vec<Round> {
        self.history_updates += round.len();
        self.history.push_front(round);
        let horizon_ms = now_ms.saturating_sub(self.spec.receipts.ms());
        let mut dropped = Vec::new();
        while let Some(oldest) = self.history.back() {
            let is_old = oldest.ended_ms.is_none_or(|ended| ended < horizon_ms);
            let is_much = self.history_updates > HISTORY_UPDATES_MAX || self.history.len() > HISTORY_ROUNDS_MAX;
            let is_dropped = is_old || (is_much && self.history.len() > 1);
            if !is_dropped {
                break;
            }
            self.history_updates -= oldest.len();
            dropped.extend(self.history.pop_back());
        }
        dropped
    }

    /// The receipt as callers see it.
    pub fn receipt(&self, round: &Round, update: &Update) -> Receipt {
        let version = match round.phase {
            Phase::Committed(version) if update.state == ReceiptState::Committed => Some(version),
            _ => None,
        };
        Receipt {
            receipt: update.receipt,
            uid: self.uid,
            namespace: self.spec.namespace.clone(),
            job: self.spec.name.clone(),
            round: round.number,
            client: update.accept.client.clone(),
            digest: update.accept.digest,
            weight: update.accept.weight,
            state: update.state,
            code: update.code.map(|code: Code| code.as_str().to_owned()),
            reason: update.reason.clone(),
            model_version: version,
            accepted_at: rfc3339(update.accept.at_ms),
        }
    }

    /// The newest round as callers see it.
    pub fn round_view(&self) -> RoundView {
        let round = self.round.as_ref();
        RoundView {
            uid: self.uid,
            revision: self.revision,
            round: self.round_number(),
            state: round.map_or(RoundState::None, Round::state),
            job_state: self.state,
            model_version: round
                .map(|round| round.model_version)
                .or_else(|| self.newest_model().map(|model| model.commit.version)),
            reason: self.round_reason(),
            goal: round.map_or(self.spec.goal, |round| round.goal),
            received: round.map_or(0, Round::received),
            folded: round.map_or(0, Round::folded),
            opened_at: round.map(|round| rfc3339(round.opened_ms)),
            deadline_at: round.and_then(|round| round.deadline_ms).map(rfc3339),
            gateway: None,
            nodes: round.map_or_else(Vec::new, Round::nodes_view),
        }
    }

    fn round_reason(&self) -> Option<String> {
        let discarded = self.active_round().and_then(Round::all_discarded);
        discarded.or_else(|| self.last_ended().and_then(Round::given_up).map(str::to_owned))
    }

    /// The job as callers see it.
    pub fn view(&self) -> JobView {
        let missing = (self.state == JobState::WaitingForModel).then(|| {
            let (namespace, name) = (&self.spec.namespace, &self.spec.name);
            format!("it has no initial model: PUT a safetensors file to /v1/namespaces/{namespace}/jobs/{name}/model")
        });
        JobView {
            uid: self.uid,
            spec: JobSpec::clone(&self.spec),
            state: self.state,
            reason: self.reason.clone().or(missing).or_else(|| self.asked_again()),
            created_at: rfc3339(self.created_ms),
            model_version: self.newest_model().map(|model| model.commit.version),
            best_version: self.best,
            round: self.round_view(),
        }
    }

    /// What the contributors of a model reported. The log may hold sums of older releases that overflowed; JSON has no
    /// such numbers.
    pub fn numbers(model: &Model) -> BTreeMap<String, f64> {
        let finite = model.commit.metrics.iter().filter(|(_, value)| value.is_finite());
        finite.map(|(name, value)| (name.clone(), *value)).collect()
    }

    /// A model as callers see it.
    pub fn model_view(&self, model: &Model) -> ModelView {
        let commit = &model.commit;
        ModelView {
            version: commit.version,
            etag: commit.etag,
            bytes: commit.bytes,
            created_at: rfc3339(model.at_ms),
            parent: commit.version.checked_sub(1),
            round: model.round,
            function: commit.function,
            contributors: commit.contributors,
            metrics: Self::numbers(model),
            evaluation: self.evaluation(commit.version).map(Evaluation::view),
            best: self.best == Some(commit.version),
            available: self.keeps(commit.version),
        }
    }

    /// The update that stands at this address: a round, or in asynchronous jobs a version, and a client.
    pub fn update_at(&self, number: u64, client: &ClientId) -> Option<&Update> {
        match self.spec.mode {
            Mode::Sync => self.round_numbered(number).and_then(|round| round.update_of(client)),
            Mode::Async(_) => self.buffers_since(number).find_map(|round| round.update_from(number, client)),
        }
    }

    /// Where an update of an asynchronous job can be that was trained from this version, the newest first.
    fn buffers_since(&self, version: u64) -> impl Iterator<Item = &Round> {
        self.round.iter().chain(&self.history).take_while(move |round| round.model_version >= version)
    }

    /// The same bytes from the same client at this address, if they were refused and it has sent nothing since.
    fn refused_at<'a>(&'a self, number: u64, client: &ClientId, digest: &Digest) -> Option<&'a Update> {
        let refused = |round: &'a Round| round.refused(self.uid, client, digest);
        match self.spec.mode {
            Mode::Sync => self.round_numbered(number).and_then(refused),
            // Its newest attempt in a buffer may be from another version.
            Mode::Async(_) => {
                let is_there = |update: &&Update| update.accept.base == Some(number);
                self.buffers_since(number).filter_map(refused).find(is_there)
            }
        }
    }

    /// The number in the address of updates for this round: its own, or in asynchronous jobs its model's version.
    pub fn address_of(&self, round: &Round) -> u64 {
        match self.spec.mode {
            Mode::Sync => round.number,
            Mode::Async(_) => round.model_version,
        }
    }

    /// The model that an update at this address is trained from, where that is known.
    pub fn base_at(&self, number: u64) -> Option<&Model> {
        match self.spec.mode {
            Mode::Sync => self.model(self.round_numbered(number)?.model_version),
            Mode::Async(_) => self.model(number),
        }
    }

    /// Whether an update of `client` that was trained from this round's model stands in it.
    pub fn has_trained(&self, round: &Round, client: &ClientId) -> bool {
        match self.spec.mode {
            Mode::Sync => round.update_of(client).is_some(),
            Mode::Async(_) => round.update_from(round.model_version, client).is_some(),
        }
    }

    /// Whether an update with this address may be taken as soon as the next round has opened.
    pub fn is_about_to_take(&self, number: u64) -> bool {
        let is_open = self.round.as_ref().is_some_and(|round| round.phase == Phase::Open);
        let next = match self.spec.mode {
            Mode::Sync => self.next_round() == Some(number),
            Mode::Async(_) => self.judge_version(number).is_none() && self.has_a_buffer_left(),
        };
        self.state == JobState::Running && !is_open && next
    }

    /// Whether an asynchronous job will take more: into the buffer that is open, or into a later one.
    fn has_a_buffer_left(&self) -> bool {
        self.round_number() < self.spec.rounds || self.round.as_ref().is_some_and(|round| round.phase == Phase::Open)
    }

    /// Why an asynchronous job takes nothing that was trained from this version, if it does not.
    fn judge_version(&self, base: u64) -> Option<Verdict> {
        let newest = self.newest_model().map_or(0, |model| model.commit.version);
        let versions_max = self.spec.mode.buffered().map_or(0, |buffered| buffered.staleness_max);
        match newest.checked_sub(base) {
            None => Some(Verdict::NotOpenYet),
            Some(behind) => (behind > versions_max).then_some(Verdict::Closed),
        }
    }

    /// What an update of `client` for `round` would meet now. `digest` is `None` before the body is read. In asynchronous
    /// jobs `number` is the version it was trained from.
    pub(crate) fn judge(&self, number: u64, client: &ClientId, digest: Option<&Digest>) -> Verdict {
        if let Some(known) = self.update_at(number, client) {
            return match digest {
                Some(digest) if known.accept.digest == *digest => Verdict::Duplicate(known.receipt),
                Some(_) => Verdict::Conflict(known.receipt),
                None => Verdict::Known(known.receipt),
            };
        }
        if let Some(refused) = digest.and_then(|digest| self.refused_at(number, client, digest)) {
            return Verdict::Duplicate(refused.receipt);
        }
        let current = self.round_number();
        match &self.round {
            _ if self.state.is_over() => Verdict::Closed,
            _ if self.state != JobState::Running => Verdict::WrongState,
            round if self.spec.mode != Mode::Sync => self.judge_version(number).unwrap_or(match round {
                Some(round) if round.phase == Phase::Open => Verdict::Open,
                _ if !self.has_a_buffer_left() => Verdict::Closed,
                _ => Verdict::NotOpenYet,
            }),
            _ if number > current => Verdict::NotOpenYet,
            Some(round) if round.number == number && round.phase == Phase::Open => Verdict::Open,
            _ => Verdict::Closed,
        }
    }
}

/// What an update would meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Open,
    Known(ReceiptId),
    Duplicate(ReceiptId),
    Conflict(ReceiptId),
    Closed,
    NotOpenYet,
    WrongState,
}
