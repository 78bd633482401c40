//! Which of a name's jobs a caller means.
//!
//! A job may be deleted and another be made with its name, while work for the old one is still on its way. Whoever says
//! the job's `uid`, its task, or the model it worked from is understood; who says only the name is as long as that has
//! stood for one job.

use catchment_ledger::{Job, State};
use catchment_types::{Code, Digest, JobUid, Problem, TaskId};

/// What is said of the job, beside its name.
#[derive(Debug, Clone, Copy, Default)]
pub struct Meant<'a> {
    /// Its identity.
    pub uid: Option<JobUid>,
    /// The task that is answered, as the check-in named it.
    pub task: Option<&'a str>,
    /// The model that was worked from.
    pub base: Option<Digest>,
}

/// What the job would have handed out for this work.
#[derive(Debug, Clone, Copy)]
pub struct Handed {
    /// The task.
    pub task: TaskId,
    /// The model, where it is known and is not compared later.
    pub etag: Option<Digest>,
}

impl Meant<'_> {
    /// Refuses what is meant for another job of the same name, or may be.
    ///
    /// # Errors
    /// `not_found` for another job's uid, `conflict` for another task, `stale_base` for another model, and `uid_required`
    /// when nothing is said and the name has stood for another job.
    pub fn check(&self, state: &State, job: &Job, handed: Handed) -> Result<(), Problem> {
        self.check_uid(job)?;
        if let Some(task) = self.task
            && task.parse::<TaskId>().ok() != Some(handed.task)
        {
            let detail = format!("task `{task}` is not this client's task for this round or model of this job");
            return Err(Problem::new(Code::Conflict, detail));
        }
        if let Some((base, etag)) = self.base.zip(handed.etag).filter(|(base, etag)| base != etag) {
            let detail = format!("the model of this job is {etag}, not {base}: fetch that one");
            return Err(Problem::new(Code::StaleBase, detail).with("etag", etag.to_string()));
        }
        let is_said = self.uid.is_some() || self.task.is_some() || self.base.is_some();
        if is_said || state.is_first_of_its_name(job) { Ok(()) } else { Err(required(job)) }
    }

    /// Refuses what is meant for another job by its identity.
    ///
    /// # Errors
    /// `not_found`.
    pub fn check_uid(&self, job: &Job) -> Result<(), Problem> {
        match self.uid.filter(|uid| *uid != job.uid) {
            None => Ok(()),
            Some(uid) => {
                let (namespace, name) = (&job.spec.namespace, &job.spec.name);
                let detail = format!(
                    "job {uid} is gone: `{name}` in namespace `{namespace}` is another job now. Ask for its round, or \
                     check in, to work for that one"
                );
                Err(Problem::new(Code::NotFound, detail))
            }
        }
    }
}

fn required(job: &Job) -> Problem {
    let (namespace, name) = (&job.spec.namespace, &job.spec.name);
    let detail = format!(
        "an earlier job had the name `{name}` in namespace `{namespace}`, so it must be said which one this is for: add \
         `uid` to the address's query, as GET …/jobs/{name}/round and the check-in name it (or `task` of the check-in, or \
         `Catchment-Base` with the model's ETag; over NATS `Catchment-Uid`, `Catchment-Task` or `Catchment-Base`)"
    );
    Problem::new(Code::UidRequired, detail)
}
