//! Hands out work: which client trains for which round.
//!
//! Tasks are derived from job, round and client, so nothing is stored for them; the desk only remembers how many it
//! handed out, to keep to `over_provision`. It forgets on a restart, which at worst trains a few clients too many.

use catchment_ledger::{Job, Phase, State};
use catchment_types::{CheckIn, ClientId, JobState, JobUid, Name, Task, TaskId, TaskKind, TimeMs, rfc3339};
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

/// How soon a client that has nothing to do asks again.
const RETRY_MS: u64 = 500;
/// A task whose update has not come after this long may be handed to another client as well.
const TASK_MS: u64 = 120_000;

#[derive(Debug, Default)]
struct Handed {
    round: u64,
    clients: HashMap<ClientId, TimeMs>,
}

/// Remembers the tasks of each job's current round.
#[derive(Debug, Default)]
pub struct Desk {
    handed: Mutex<HashMap<JobUid, Handed>>,
}

impl Desk {
    /// What `client` should do now. `None`: there is no such job.
    pub fn task(&self, state: &State, client: &ClientId, checkin: &CheckIn, now_ms: TimeMs) -> Option<Task> {
        let namespace = checkin.namespace.clone().unwrap_or_else(Name::default_namespace);
        let Some(name) = &checkin.job else {
            let jobs = state.jobs_by_name().filter(|job| job.spec.namespace == namespace && !job.state.is_over());
            let train = jobs.map(|job| self.task_of(job, client, now_ms)).find(|task| task.task == TaskKind::Train);
            return Some(train.unwrap_or_else(|| bare(TaskKind::Wait)));
        };
        state.job_named(&namespace, name).map(|job| self.task_of(job, client, now_ms))
    }

    fn task_of(&self, job: &Job, client: &ClientId, now_ms: TimeMs) -> Task {
        let named = |kind| Task {
            namespace: Some(job.spec.namespace.clone()),
            job: Some(job.spec.name.clone()),
            uid: Some(job.uid),
            ..bare(kind)
        };
        if job.state.is_over() {
            return named(TaskKind::Stop);
        }
        let open = job.active_round().filter(|round| round.phase == Phase::Open && job.state == JobState::Running);
        let (Some(round), Some(model)) = (open, job.newest_model()) else { return named(TaskKind::Wait) };
        if round.update_of(client).is_some() || !self.hand_out(job, round.number, client, now_ms) {
            return named(TaskKind::Wait);
        }
        let (namespace, name, version) = (&job.spec.namespace, &job.spec.name, round.model_version);
        Task {
            task_id: Some(TaskId::derive(job.uid, round.number, client)),
            round: Some(round.number),
            model_version: Some(version),
            model_url: Some(format!("/v1/namespaces/{namespace}/jobs/{name}/model?version={version}")),
            etag: job.model(version).or(Some(model)).map(|model| model.commit.etag),
            config: job.spec.client_config_for(round.number),
            deadline_at: round.deadline_ms.map(rfc3339),
            deadline_in_ms: round.deadline_ms.map(|deadline| deadline.saturating_sub(now_ms)),
            retry_after_ms: None,
            ..named(TaskKind::Train)
        }
    }

    /// Whether `client` may have a task of this round.
    fn hand_out(&self, job: &Job, round: u64, client: &ClientId, now_ms: TimeMs) -> bool {
        let mut handed = self.handed.lock().unwrap_or_else(PoisonError::into_inner);
        let handed = handed.entry(job.uid).or_default();
        if handed.round != round {
            *handed = Handed { round, clients: HashMap::new() };
        }
        if !handed.clients.contains_key(client) {
            handed.clients.retain(|_, since| now_ms.saturating_sub(*since) < TASK_MS);
            if handed.clients.len() as u64 >= job.spec.tasks_per_round() {
                return false;
            }
        }
        handed.clients.insert(client.clone(), now_ms);
        true
    }

    /// Forgets jobs that are gone.
    pub fn retain(&self, alive: &HashSet<JobUid>) {
        self.handed.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| alive.contains(uid));
    }
}

fn bare(kind: TaskKind) -> Task {
    Task {
        task: kind,
        task_id: None,
        namespace: None,
        job: None,
        uid: None,
        round: None,
        model_version: None,
        model_url: None,
        etag: None,
        config: Default::default(),
        deadline_at: None,
        deadline_in_ms: None,
        retry_after_ms: (kind == TaskKind::Wait).then_some(RETRY_MS),
        gateway: None,
    }
}
