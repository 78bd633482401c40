//! Ways to show what happens to a job, where nobody looks at a terminal.

use super::rounds::Published;
use crate::output;
use crate::text;
use anyhow::{Context as _, Result};
use catchment_client::{JobClient, JobInfo};
use catchment_types::{JobState, Name, NodesView};
use serde::Serialize;
use serde_json::json;

/// Shows what happens to a job.
pub trait View {
    /// The round as it is now; called at every look, with `changed` when it differs from the last.
    fn round(&mut self, job: &JobInfo, changed: bool) -> Result<()>;
    /// The cluster as it is now; called at every look where [`shows_cluster`](Self::shows_cluster).
    fn cluster(&mut self, _nodes: &NodesView) {}
    /// Whether the cluster is shown, so that it has to be asked for.
    fn shows_cluster(&self) -> bool {
        false
    }
    /// A model was published.
    fn model(&mut self, model: &Published) -> Result<()>;
    /// So many rounds ended without a model.
    fn skipped(&mut self, count: u64, why: Option<&str>) -> Result<()>;
    /// The job is over.
    fn end(&mut self, job: &JobInfo) -> Result<()>;
}

/// One JSON object a line for each change.
pub struct Json {
    namespace: Name,
    name: Name,
}

impl Json {
    /// Events of this job.
    pub fn new(calls: &JobClient) -> Self {
        Self { namespace: calls.namespace().clone(), name: calls.name().clone() }
    }

    fn event(&self, event: &str, body: impl Serialize) -> Result<()> {
        #[derive(Serialize)]
        struct Line<'a, T> {
            event: &'a str,
            namespace: &'a Name,
            job: &'a Name,
            #[serde(flatten)]
            body: T,
        }
        let line = Line { event, namespace: &self.namespace, job: &self.name, body };
        output::write(&serde_json::to_string(&line).context("write JSON")?)
    }
}

impl View for Json {
    fn round(&mut self, job: &JobInfo, changed: bool) -> Result<()> {
        if changed { self.event("round", &job.round) } else { Ok(()) }
    }

    fn model(&mut self, model: &Published) -> Result<()> {
        self.event("model", model)
    }

    fn skipped(&mut self, count: u64, why: Option<&str>) -> Result<()> {
        self.event("skipped", json!({"count": count, "reason": why}))
    }

    fn end(&mut self, job: &JobInfo) -> Result<()> {
        let body = json!({"state": job.state, "reason": job.reason, "round": job.round.round,
            "model_version": job.model_version});
        self.event("end", body)
    }
}

/// A sentence for each change.
pub struct Lines;

impl View for Lines {
    fn round(&mut self, job: &JobInfo, changed: bool) -> Result<()> {
        if changed { output::write(&round_line(job)) } else { Ok(()) }
    }

    fn model(&mut self, model: &Published) -> Result<()> {
        output::write(&model_line(model))
    }

    fn skipped(&mut self, count: u64, why: Option<&str>) -> Result<()> {
        output::write(&skipped_line(count, why))
    }

    fn end(&mut self, job: &JobInfo) -> Result<()> {
        output::write(&end_line(job))
    }
}

/// `running, round 3 of 20 open: 4 of 10 received, 2 folded`. A job that has paused itself says why.
pub fn round_line(job: &JobInfo) -> String {
    let mut state = text::word(job.state);
    if let (JobState::Paused, Some(reason)) = (job.state, &job.reason) {
        state += &format!(" ({reason})");
    }
    if job.round.round == 0 {
        return format!("{state}, no round yet");
    }
    format!("{state}, round {} {}: {}", text::round_of(job), text::word(job.round.state), text::updates_of(job))
}

/// `round 3: model 3 of 10 updates, accuracy 0.9412, in 4.2 s`.
pub fn model_line(published: &Published) -> String {
    let model = &published.model;
    let mut line = published.round.map(|round| format!("round {round}: ")).unwrap_or_default();
    line += &format!("model {} of {}", model.version, text::count(model.contributors, "update"));
    if !model.metrics.is_empty() {
        line += &format!(", {}", text::metrics(&model.metrics));
    }
    if let Some(ms) = published.duration_ms {
        line += &format!(", in {}", text::duration(ms));
    }
    line
}

/// `1 round ended without a model: round 3 was given up: …`.
pub fn skipped_line(count: u64, why: Option<&str>) -> String {
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    format!("{} ended without a model{why}", text::count(count, "round"))
}

/// `job digits is completed: 20 rounds, model 20`.
pub fn end_line(job: &JobInfo) -> String {
    let model = job.model_version.map_or_else(|| "no model".to_owned(), |version| format!("model {version}"));
    let (name, state) = (text::spec_text(job, "name"), text::word(job.state));
    format!("job `{name}` is {state}: {}, {model}", text::count(job.round.round, "round"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests::example;
    use catchment_types::JobState;

    #[test]
    fn changes_read_as_sentences() {
        let mut job = example();
        assert_eq!(round_line(&job), "running, round 3 of 20 open: 4 of 10 received, 2 folded");
        job.state = JobState::Completed;
        assert_eq!(end_line(&job), "job `digits` is completed: 3 rounds, model 2");
        (job.round.round, job.model_version, job.state) = (0, None, JobState::WaitingForModel);
        assert_eq!(round_line(&job), "waiting for model, no round yet");
        assert_eq!(end_line(&job), "job `digits` is waiting for model: 0 rounds, no model");
        assert_eq!(skipped_line(2, None), "2 rounds ended without a model");
        let why = Some("round 3 was given up");
        assert_eq!(skipped_line(1, why), "1 round ended without a model: round 3 was given up");
    }

    #[test]
    fn a_model_is_told_with_what_is_known_of_it() {
        let model =
            serde_json::from_value(json!({"version": 3, "etag": "cd".repeat(32), "bytes": 1, "contributors": 10,
            "created_at": "", "parent": 2, "function": null, "metrics": {"loss": 0.25}, "available": true}));
        let mut published = Published { round: Some(4), duration_ms: Some(4210), model: model.unwrap() };
        assert_eq!(model_line(&published), "round 4: model 3 of 10 updates, loss 0.2500, in 4.2 s");
        (published.round, published.duration_ms) = (None, None);
        published.model.metrics.clear();
        published.model.contributors = 1;
        assert_eq!(model_line(&published), "model 3 of 1 update");
    }
}
