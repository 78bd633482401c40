//! The state as it is put down now: what cannot be worked out from the rest, in an order that is always the same.
//!
//! ```text
//! "CTS2" | parts, each: length u64 | message     the head, then a part for each job
//!        | BLAKE3 of all before, 32 bytes
//!        | 2: what a snapshot of any version ends with
//! ```
//!
//! Parts have a limit each, so that the whole needs none.

use super::changes::Changes;
use crate::evaluation::Evaluation;
use crate::hashes::Hashes;
use crate::job::Job;
use crate::mean::Mean;
use crate::models::Model;
use crate::names::UsedNames;
use crate::round::{Phase, Round, RoundHead, Update};
use crate::state::State;
use crate::term::Term;
use crate::writers::Writers;
use catchment_types::{
    Accept, ClientId, Code, Digest, Footprint, JobState, JobUid, LogId, ModelCommit, NodeId, Place, ReceiptId,
    ReceiptState, SlabId, TimeMs,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const MARK: [u8; 4] = *b"CTS2";
const HASH_BYTES: usize = 32;
const LENGTH_BYTES: usize = 8;

#[derive(Serialize, Deserialize)]
struct Head {
    sequence: u64,
    level: u32,
    log: Option<LogId>,
    foreign: u64,
    jobs: u64,
    incarnations: BTreeMap<NodeId, u64>,
    processes: BTreeMap<NodeId, [u8; 16]>,
    names: BTreeSet<u64>,
    names_full: bool,
    writers: Writers,
    hashes: Hashes,
    newest_ms: TimeMs,
}

#[derive(Serialize, Deserialize)]
struct StoredJob {
    uid: JobUid,
    spec_text: String,
    changes: Changes,
    state: JobState,
    reason: Option<String>,
    created_ms: TimeMs,
    revision: u64,
    models: Vec<StoredModel>,
    needs: Footprint,
    paused_ms: Option<TimeMs>,
    resumed_round: Option<u64>,
    round: Option<StoredRound>,
    history: Vec<StoredRound>,
    evaluations: BTreeMap<u64, StoredEvaluation>,
    best: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct StoredModel {
    commit: ModelCommit,
    round: Option<u64>,
    at_ms: TimeMs,
}

#[derive(Serialize, Deserialize)]
enum StoredPhase {
    Open,
    Aggregating,
    Committed(u64),
    Skipped,
}

#[derive(Serialize, Deserialize)]
struct StoredRound {
    number: u64,
    phase: StoredPhase,
    model_version: u64,
    goal: u64,
    min_updates: u64,
    opened_ms: TimeMs,
    deadline_ms: Option<TimeMs>,
    term: Option<Term>,
    ended_ms: Option<TimeMs>,
    places: Vec<Place>,
    leaves: u32,
    /// In the order of acceptance.
    updates: Vec<StoredUpdate>,
}

/// An update; job, round, place in the order and leaf follow from where it stands.
#[derive(Serialize, Deserialize)]
struct StoredUpdate {
    receipt: ReceiptId,
    base: Option<u64>,
    client: ClientId,
    digest: Digest,
    weight: f64,
    num_samples: u64,
    metrics: BTreeMap<String, f64>,
    bytes: u64,
    node: NodeId,
    incarnation: u64,
    slab: SlabId,
    at_ms: TimeMs,
    state: ReceiptState,
    code: Option<Code>,
    reason: Option<String>,
    stands: bool,
}

#[derive(Serialize, Deserialize)]
struct StoredEvaluation {
    results: u64,
    num_samples: u64,
    means: BTreeMap<String, StoredMean>,
    clients: BTreeMap<ClientId, u64>,
}

#[derive(Serialize, Deserialize)]
struct StoredMean {
    clients: u64,
    samples: f64,
    value: f64,
}

catchment_codec::first_version!(Head, StoredJob);

pub(super) fn write(state: &State) -> Result<Vec<u8>, String> {
    let mut out = MARK.to_vec();
    let head = Head {
        sequence: state.sequence,
        level: state.level,
        log: state.log,
        foreign: state.foreign,
        jobs: state.jobs.len() as u64,
        incarnations: state.incarnations.clone(),
        processes: state.processes.clone(),
        names: state.used_names.hashes.clone(),
        names_full: state.used_names.is_full,
        writers: state.writers.clone(),
        hashes: state.hashes.clone(),
        newest_ms: state.newest_ms,
    };
    part(&mut out, &head)?;
    for job in state.jobs.values() {
        part(&mut out, &StoredJob::of(job)).map_err(|why| format!("job {}: {why}", job.uid))?;
    }
    let hash = blake3::hash(&out);
    out.extend(hash.as_bytes());
    Ok(out)
}

fn part<T: catchment_codec::Stored>(out: &mut Vec<u8>, value: &T) -> Result<(), String> {
    let message = catchment_codec::encode_large(value).map_err(|error| error.to_string())?;
    out.extend((message.len() as u64).to_le_bytes());
    out.extend(message);
    Ok(())
}

/// `bytes` begins with the mark.
pub(super) fn read(bytes: &[u8]) -> Result<State, String> {
    let (content, hash) = bytes.split_last_chunk::<HASH_BYTES>().ok_or("it is cut off")?;
    if blake3::hash(content).as_bytes() != hash {
        return Err("its checksum is wrong: its bytes were changed after it was written".to_owned());
    }
    let mut rest = content.get(MARK.len()..).ok_or("it is cut off")?;
    let head: Head = next(&mut rest)?;
    let mut state = State {
        sequence: head.sequence,
        level: head.level,
        log: head.log,
        foreign: head.foreign,
        incarnations: head.incarnations,
        processes: head.processes,
        used_names: UsedNames { hashes: head.names, is_full: head.names_full },
        writers: head.writers,
        hashes: head.hashes,
        newest_ms: head.newest_ms,
        ..State::default()
    };
    for _ in 0..head.jobs {
        let job = next::<StoredJob>(&mut rest)?.read()?;
        state.jobs.insert(job.uid, job);
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes follow its last job", rest.len()));
    }
    state.index();
    Ok(state)
}

fn next<T: catchment_codec::Stored>(rest: &mut &[u8]) -> Result<T, String> {
    let (length, after) = rest.split_first_chunk::<LENGTH_BYTES>().ok_or("a part is missing")?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok();
    let message = length.and_then(|length| after.split_at_checked(length)).ok_or("a part is cut off")?;
    *rest = message.1;
    catchment_codec::decode_large(message.0).map_err(|error| error.to_string())
}

impl StoredJob {
    fn of(job: &Job) -> Self {
        Self {
            uid: job.uid,
            spec_text: job.spec_text.to_string(),
            changes: Changes::of(&job.spec),
            state: job.state,
            reason: job.reason.clone(),
            created_ms: job.created_ms,
            revision: job.revision,
            models: job.models.iter().map(StoredModel::of).collect(),
            needs: job.needs,
            paused_ms: job.paused_ms,
            resumed_round: job.resumed_round,
            round: job.round.as_ref().map(StoredRound::of),
            history: job.history.iter().map(StoredRound::of).collect(),
            evaluations: job.evaluations.iter().map(|(version, one)| (*version, StoredEvaluation::of(one))).collect(),
            best: job.best,
        }
    }

    fn read(self) -> Result<Job, String> {
        let uid = self.uid;
        let mut job = Job {
            uid,
            spec: self.changes.apply(uid, &self.spec_text)?,
            spec_text: self.spec_text.into(),
            state: self.state,
            reason: self.reason,
            created_ms: self.created_ms,
            revision: self.revision,
            models: self.models.into_iter().map(StoredModel::read).collect(),
            needs: self.needs,
            paused_ms: self.paused_ms,
            resumed_round: self.resumed_round,
            round: self.round.map(|round| round.read(uid)),
            history: self.history.into_iter().map(|round| round.read(uid)).collect(),
            history_updates: 0,
            evaluations: self.evaluations.into_iter().map(|(version, one)| (version, one.read())).collect(),
            best: self.best,
        };
        job.history_updates = job.history.iter().map(Round::len).sum();
        Ok(job)
    }
}

impl StoredModel {
    fn of(model: &Model) -> Self {
        Self { commit: model.commit.clone(), round: model.round, at_ms: model.at_ms }
    }

    fn read(self) -> Model {
        Model { commit: self.commit, round: self.round, at_ms: self.at_ms }
    }
}

impl StoredRound {
    fn of(round: &Round) -> Self {
        let head = round.head();
        let mut updates: Vec<&Update> = round.updates().collect();
        updates.sort_unstable_by_key(|update| update.order);
        Self {
            number: head.number,
            phase: match head.phase {
                Phase::Open => StoredPhase::Open,
                Phase::Aggregating => StoredPhase::Aggregating,
                Phase::Committed(version) => StoredPhase::Committed(version),
                Phase::Skipped => StoredPhase::Skipped,
            },
            model_version: head.model_version,
            goal: head.goal,
            min_updates: head.min_updates,
            opened_ms: head.opened_ms,
            deadline_ms: head.deadline_ms,
            term: head.term,
            ended_ms: head.ended_ms,
            places: head.places,
            leaves: head.leaves,
            updates: updates.into_iter().map(|update| StoredUpdate::of(update, round.stands(update))).collect(),
        }
    }

    fn read(self, uid: JobUid) -> Round {
        let head = RoundHead {
            number: self.number,
            phase: match self.phase {
                StoredPhase::Open => Phase::Open,
                StoredPhase::Aggregating => Phase::Aggregating,
                StoredPhase::Committed(version) => Phase::Committed(version),
                StoredPhase::Skipped => Phase::Skipped,
            },
            model_version: self.model_version,
            goal: self.goal,
            min_updates: self.min_updates,
            opened_ms: self.opened_ms,
            deadline_ms: self.deadline_ms,
            term: self.term,
            ended_ms: self.ended_ms,
            places: self.places,
            leaves: self.leaves,
        };
        let (round, model_version) = (head.number, head.model_version);
        let leaves = u64::from(head.leaves.max(1));
        let updates = self.updates.into_iter().zip(0..).map(|(update, order)| {
            let stands = update.stands;
            (update.read(uid, round, model_version, order, (order % leaves) as u32), stands)
        });
        Round::restored(head, updates)
    }
}

impl StoredUpdate {
    fn of(update: &Update, stands: bool) -> Self {
        let Update { receipt, accept, state, code, reason, .. } = update.clone();
        Self {
            receipt,
            base: accept.base,
            client: accept.client,
            digest: accept.digest,
            weight: accept.weight,
            num_samples: accept.num_samples,
            metrics: accept.metrics,
            bytes: accept.bytes,
            node: accept.node,
            incarnation: accept.incarnation,
            slab: accept.slab,
            at_ms: accept.at_ms,
            state,
            code,
            reason,
            stands,
        }
    }

    fn read(self, uid: JobUid, round: u64, model_version: u64, order: u64, leaf: u32) -> Update {
        let accept = Accept {
            uid,
            round,
            base: self.base,
            client: self.client,
            digest: self.digest,
            weight: self.weight,
            num_samples: self.num_samples,
            metrics: self.metrics,
            bytes: self.bytes,
            node: self.node,
            incarnation: self.incarnation,
            slab: self.slab,
            at_ms: self.at_ms,
        };
        let staleness = self.base.map_or(0, |base| model_version.saturating_sub(base));
        let (receipt, state, code, reason) = (self.receipt, self.state, self.code, self.reason);
        Update { receipt, accept, state, code, reason, order, leaf, staleness }
    }
}

impl StoredEvaluation {
    fn of(evaluation: &Evaluation) -> Self {
        let mean = |Mean { clients, samples, value }: Mean| StoredMean { clients, samples, value };
        Self {
            results: evaluation.results,
            num_samples: evaluation.num_samples,
            means: evaluation.means.iter().map(|(name, one)| (name.clone(), mean(*one))).collect(),
            clients: evaluation.clients.iter().map(|(client, said)| (client.clone(), *said)).collect(),
        }
    }

    fn read(self) -> Evaluation {
        let mean = |StoredMean { clients, samples, value }: StoredMean| Mean { clients, samples, value };
        Evaluation {
            results: self.results,
            num_samples: self.num_samples,
            means: self.means.into_iter().map(|(name, one)| (name, mean(one))).collect(),
            clients: self.clients.into_iter().collect(),
        }
    }
}
