//! The part of a spec that can change while a job runs. The rest is in the text it was created from.

use catchment_types::{DurationText, JobSpec, JobUid};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

#[derive(Serialize, Deserialize)]
pub(super) struct Changes {
    rounds: u64,
    goal: u64,
    min_updates: u64,
    deadline: Option<DurationText>,
}

impl Changes {
    pub fn of(spec: &JobSpec) -> Self {
        let (rounds, goal, min_updates, deadline) = (spec.rounds, spec.goal, spec.min_updates, spec.deadline);
        Self { rounds, goal, min_updates, deadline }
    }

    /// The spec of `text` with the changes made.
    pub fn apply(self, uid: JobUid, text: &str) -> Result<Arc<JobSpec>, String> {
        let created = JobSpec::stored(text.as_bytes());
        let mut spec = created.map_err(|why| format!("the spec of job {uid} is not understood: {why}"))?;
        spec.rounds = self.rounds;
        spec.set_goal(self.goal);
        spec.min_updates = self.min_updates;
        spec.deadline = self.deadline;
        Ok(Arc::new(spec))
    }
}
