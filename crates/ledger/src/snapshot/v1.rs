//! The state as the first release put it down. Nothing here is ever changed: it says how snapshots are read that exist, and
//! how they are written while some member is of that release.
//!
//! It has what the state had in memory then: much of it follows from the rest and is not read.

use super::changes::Changes;
use crate::evaluation::Evaluation;
use crate::job::Job;
use crate::mean::Mean;
use crate::models::Model;
use crate::names::UsedNames;
use crate::round::{Phase, Round, RoundHead, Update};
use crate::state::State;
use catchment_types::{
    Accept, ClientId, Code, Footprint, JobState, JobUid, ModelCommit, Name, NodeId, Place, ReceiptId, ReceiptState,
    TimeMs,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

#[derive(Serialize, Deserialize)]
pub(super) struct StateV1 {
    sequence: u64,
    jobs: BTreeMap<JobUid, JobV1>,
    names: BTreeMap<(Name, Name), JobUid>,
    incarnations: BTreeMap<NodeId, u64>,
}

/// As builds between the first two releases wrote it where jobs had been deleted.
#[derive(Serialize, Deserialize)]
pub(super) struct NamedV1 {
    state: StateV1,
    names: NamesV1,
}

#[derive(Serialize, Deserialize)]
struct NamesV1 {
    hashes: std::collections::BTreeSet<u64>,
    is_full: bool,
}

#[derive(Serialize, Deserialize)]
struct JobV1 {
    uid: JobUid,
    spec_text: String,
    changes: Changes,
    state: JobState,
    reason: Option<String>,
    created_ms: TimeMs,
    revision: u64,
    models: Vec<ModelV1>,
    needs: Footprint,
    round: Option<RoundV1>,
    /// While it is paused: since when. While it runs: the newest round when it was resumed after it had paused itself.
    mark: Option<u64>,
    history: Vec<RoundV1>,
    history_updates: u64,
    evaluations: BTreeMap<u64, EvaluationV1>,
    best: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct ModelV1 {
    commit: ModelCommit,
    round: Option<u64>,
    at_ms: TimeMs,
}

#[derive(Serialize, Deserialize)]
enum PhaseV1 {
    Open,
    Aggregating,
    Committed(u64),
    Skipped,
}

#[derive(Serialize, Deserialize)]
struct RoundV1 {
    number: u64,
    phase: PhaseV1,
    model_version: u64,
    goal: u64,
    min_updates: u64,
    opened_ms: TimeMs,
    deadline_ms: Option<TimeMs>,
    ended_ms: Option<TimeMs>,
    places: Vec<Place>,
    updates: BTreeMap<ReceiptId, UpdateV1>,
    clients: HashMap<ClientId, ClientSlotV1>,
    by_base: HashMap<ClientId, BTreeMap<u64, ReceiptId>>,
    shares: BTreeMap<NodeId, ShareV1>,
    leaves: u32,
    received: u64,
    folded: u64,
}

#[derive(Serialize, Deserialize)]
struct UpdateV1 {
    receipt: ReceiptId,
    accept: Accept,
    state: ReceiptState,
    code: Option<Code>,
    reason: Option<String>,
    order: u64,
    leaf: u32,
    staleness: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct ClientSlotV1 {
    attempts: u32,
    current: Option<ReceiptId>,
}

#[derive(Default, Serialize, Deserialize)]
struct ShareV1 {
    updates: u64,
    folded: u64,
    bytes: u64,
    pending: BTreeMap<u64, ReceiptId>,
}

#[derive(Serialize, Deserialize)]
struct EvaluationV1 {
    results: u64,
    num_samples: u64,
    means: BTreeMap<String, MeanV1>,
    clients: HashMap<ClientId, u64>,
}

#[derive(Serialize, Deserialize)]
struct MeanV1 {
    clients: u64,
    samples: f64,
    value: f64,
}

catchment_codec::first_version!(StateV1, NamedV1);

impl StateV1 {
    pub(super) fn read(self) -> Result<State, String> {
        let jobs = self.jobs.into_iter().map(|(uid, job)| Ok((uid, job.read()?)));
        let mut state = State {
            sequence: self.sequence,
            jobs: jobs.collect::<Result<_, String>>()?,
            incarnations: self.incarnations,
            ..State::default()
        };
        state.index();
        Ok(state)
    }

    /// What is new in the state since then is left out: nothing of it is there at the level at which this is written.
    pub(super) fn write(state: &State) -> Self {
        Self {
            sequence: state.sequence,
            jobs: state.jobs.iter().map(|(uid, job)| (*uid, JobV1::write(job))).collect(),
            names: state.names.clone(),
            incarnations: state.incarnations.clone(),
        }
    }
}

impl NamedV1 {
    pub(super) fn read(self) -> Result<State, String> {
        let NamesV1 { hashes, is_full } = self.names;
        let state = self.state.read()?;
        Ok(State { used_names: UsedNames { hashes, is_full }, ..state })
    }
}

impl JobV1 {
    fn read(self) -> Result<Job, String> {
        let (is_paused, is_running) = (self.state == JobState::Paused, self.state == JobState::Running);
        let mut job = Job {
            uid: self.uid,
            spec: self.changes.apply(self.uid, &self.spec_text)?,
            spec_text: self.spec_text.into(),
            state: self.state,
            reason: self.reason,
            created_ms: self.created_ms,
            revision: self.revision,
            models: self.models.into_iter().map(ModelV1::read).collect(),
            needs: self.needs,
            round: self.round.map(RoundV1::read),
            paused_ms: self.mark.filter(|_| is_paused),
            resumed_round: self.mark.filter(|_| is_running),
            history: self.history.into_iter().map(RoundV1::read).collect(),
            history_updates: 0,
            evaluations: self.evaluations.into_iter().map(|(version, one)| (version, one.read())).collect(),
            best: self.best,
        };
        job.history_updates = job.history.iter().map(Round::len).sum();
        Ok(job)
    }

    fn write(job: &Job) -> Self {
        Self {
            uid: job.uid,
            spec_text: job.spec_text.to_string(),
            changes: Changes::of(&job.spec),
            state: job.state,
            reason: job.reason.clone(),
            created_ms: job.created_ms,
            revision: job.revision,
            models: job.models.iter().map(ModelV1::write).collect(),
            needs: job.needs,
            round: job.round.as_ref().map(RoundV1::write),
            mark: job.paused_ms.or(job.resumed_round),
            history: job.history.iter().map(RoundV1::write).collect(),
            history_updates: job.history_updates,
            evaluations: job.evaluations.iter().map(|(version, one)| (*version, EvaluationV1::write(one))).collect(),
            best: job.best,
        }
    }
}

impl ModelV1 {
    fn read(self) -> Model {
        Model { commit: self.commit, round: self.round, at_ms: self.at_ms }
    }

    fn write(model: &Model) -> Self {
        Self { commit: model.commit.clone(), round: model.round, at_ms: model.at_ms }
    }
}

impl RoundV1 {
    fn read(self) -> Round {
        let phase = match self.phase {
            PhaseV1::Open => Phase::Open,
            PhaseV1::Aggregating => Phase::Aggregating,
            PhaseV1::Committed(version) => Phase::Committed(version),
            PhaseV1::Skipped => Phase::Skipped,
        };
        let head = RoundHead {
            number: self.number,
            phase,
            model_version: self.model_version,
            goal: self.goal,
            min_updates: self.min_updates,
            opened_ms: self.opened_ms,
            deadline_ms: self.deadline_ms,
            term: None,
            ended_ms: self.ended_ms,
            places: self.places,
            leaves: self.leaves,
        };
        let (clients, by_base) = (self.clients, self.by_base);
        let stands = |update: &Update| {
            let accept = &update.accept;
            let standing = match accept.base {
                None => clients.get(&accept.client).and_then(|slot| slot.current),
                Some(base) => by_base.get(&accept.client).and_then(|bases| bases.get(&base).copied()),
            };
            standing == Some(update.receipt)
        };
        let mut updates: Vec<Update> = self.updates.into_values().map(UpdateV1::read).collect();
        updates.sort_unstable_by_key(|update| update.order);
        let updates = updates.into_iter().map(|update| {
            let stands = stands(&update);
            (update, stands)
        });
        Round::restored(head, updates)
    }

    fn write(round: &Round) -> Self {
        let RoundHead {
            number,
            model_version,
            goal,
            min_updates,
            opened_ms,
            deadline_ms,
            term: _,
            ended_ms,
            places,
            leaves,
            phase,
        } = round.head();
        let phase = match phase {
            Phase::Open => PhaseV1::Open,
            Phase::Aggregating => PhaseV1::Aggregating,
            Phase::Committed(version) => PhaseV1::Committed(version),
            Phase::Skipped => PhaseV1::Skipped,
        };
        let mut clients: HashMap<ClientId, ClientSlotV1> = HashMap::new();
        let mut by_base: HashMap<ClientId, BTreeMap<u64, ReceiptId>> = HashMap::new();
        for update in round.updates() {
            let (client, stands) = (update.accept.client.clone(), round.stands(update));
            let slot = clients.entry(client.clone()).or_default();
            slot.attempts += 1;
            match update.accept.base {
                None if stands => slot.current = Some(update.receipt),
                None => {}
                Some(base) => {
                    let bases = by_base.entry(client).or_default();
                    stands.then(|| bases.insert(base, update.receipt));
                }
            }
        }
        let share = |(node, share): (NodeId, &crate::round::Share)| {
            let pending = round.pending_on(node).map(|update| (update.order, update.receipt)).collect();
            (node, ShareV1 { updates: share.updates, folded: share.folded, bytes: share.bytes, pending })
        };
        Self {
            number,
            phase,
            model_version,
            goal,
            min_updates,
            opened_ms,
            deadline_ms,
            ended_ms,
            places,
            updates: round.updates().map(|update| (update.receipt, UpdateV1::write(update))).collect(),
            clients,
            by_base,
            shares: round.shares().map(share).collect(),
            leaves,
            received: round.received(),
            folded: round.folded(),
        }
    }
}

impl UpdateV1 {
    fn read(self) -> Update {
        let Self { receipt, accept, state, code, reason, order, leaf, staleness } = self;
        Update { receipt, accept, state, code, reason, order, leaf, staleness }
    }

    fn write(update: &Update) -> Self {
        let Update { receipt, accept, state, code, reason, order, leaf, staleness } = update.clone();
        Self { receipt, accept, state, code, reason, order, leaf, staleness }
    }
}

impl EvaluationV1 {
    fn read(self) -> Evaluation {
        let mean = |MeanV1 { clients, samples, value }: MeanV1| Mean { clients, samples, value };
        let means = self.means.into_iter().map(|(name, one)| (name, mean(one))).collect();
        Evaluation { results: self.results, num_samples: self.num_samples, means, clients: self.clients }
    }

    fn write(evaluation: &Evaluation) -> Self {
        let mean = |Mean { clients, samples, value }: Mean| MeanV1 { clients, samples, value };
        let means = evaluation.means.iter().map(|(name, one)| (name.clone(), mean(*one))).collect();
        let (results, num_samples) = (evaluation.results, evaluation.num_samples);
        Self { results, num_samples, means, clients: evaluation.clients.clone() }
    }
}
