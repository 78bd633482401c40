//! Tasks as clients read them.

use catchment_ledger::{Job, Round};
use catchment_types::{ClientId, Task, TaskId, TaskKind, rfc3339};

/// Nothing to do for now, in no job in particular.
pub fn wait(retry_after_ms: u64) -> Task {
    Task { retry_after_ms: Some(retry_after_ms), ..bare(TaskKind::Wait) }
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
        retry_after_ms: None,
        gateway: None,
    }
}

fn named(job: &Job, task: Task) -> Task {
    Task { namespace: Some(job.spec.namespace.clone()), job: Some(job.spec.name.clone()), uid: Some(job.uid), ..task }
}

/// The job is over.
pub fn stop(job: &Job) -> Task {
    named(job, bare(TaskKind::Stop))
}

/// Nothing to do in this job for now.
pub fn wait_for(job: &Job, retry_after_ms: u64) -> Task {
    named(job, wait(retry_after_ms))
}

/// Train for this round.
pub fn train(job: &Job, round: &Round, client: &ClientId, left_ms: Option<u64>) -> Task {
    let task_id = Some(TaskId::derive(job.uid, job.address_of(round), client));
    Task { task_id, ..on_model(job, round, TaskKind::Train, left_ms) }
}

/// Measure the model of this round.
pub fn evaluate(job: &Job, round: &Round, client: &ClientId, left_ms: Option<u64>) -> Task {
    let task_id = Some(TaskId::derive_evaluation(job.uid, round.model_version, client));
    Task { task_id, ..on_model(job, round, TaskKind::Evaluate, left_ms) }
}

fn on_model(job: &Job, round: &Round, kind: TaskKind, left_ms: Option<u64>) -> Task {
    let (namespace, name, version) = (&job.spec.namespace, &job.spec.name, round.model_version);
    let task = Task {
        round: Some(job.address_of(round)),
        model_version: Some(version),
        model_url: Some(format!("/v1/namespaces/{namespace}/jobs/{name}/model?uid={}&version={version}", job.uid)),
        etag: job.model(version).map(|model| model.commit.etag),
        config: job.spec.client_config_for(round.number),
        deadline_at: round.deadline_ms.map(rfc3339),
        deadline_in_ms: left_ms,
        ..bare(kind)
    };
    named(job, task)
}
