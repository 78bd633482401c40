//! What a log's records come to, for people.

use super::source::Source;
use crate::text;
use anyhow::Result;
use catchment_ledger::State;
use catchment_ledger::offline::Replay;
use serde::Serialize;

/// A job as the log leaves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobShown {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub state: String,
    pub round: u64,
    pub received: u64,
    pub models: u64,
}

impl JobShown {
    /// Every job, by name.
    pub fn of(state: &State) -> Vec<Self> {
        let shown = |job: &catchment_ledger::Job| Self {
            namespace: job.spec.namespace.to_string(),
            name: job.spec.name.to_string(),
            uid: job.uid.to_string(),
            state: serde_json::to_value(job.state).ok().and_then(|s| s.as_str().map(str::to_owned)).unwrap_or_default(),
            round: job.round_number(),
            received: job.round.as_ref().map_or(0, catchment_ledger::Round::received),
            models: job.models.next(),
        };
        state.jobs_by_name().map(shown).collect()
    }

    /// One line.
    pub fn line(&self) -> String {
        let Self { namespace, name, state, round, received, models, .. } = self;
        let state = state.replace('_', " ");
        let (received, models) = (text::count(*received, "update"), text::count(*models, "model"));
        format!("{namespace}/{name}: {state}, round {round} with {received}, {models}")
    }
}

/// Jobs below each other.
pub fn lines(jobs: &[JobShown]) -> String {
    let lines: Vec<String> = jobs.iter().map(JobShown::line).collect();
    if lines.is_empty() { "none".to_owned() } else { lines.join("\n") }
}

/// A snapshot of a log.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotShown {
    pub sequence: u64,
    pub bytes: u64,
    /// Why it is of no use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A snapshot by itself.
pub async fn snapshot(source: &Source, sequence: u64) -> (SnapshotShown, Option<Replay>) {
    let read = source.snapshot(sequence).await;
    let bytes = read.as_ref().map_or(0, |bytes| bytes.len() as u64);
    match read.and_then(|bytes| Replay::from_snapshot(sequence, &bytes)) {
        Ok(replay) => (SnapshotShown { sequence, bytes, error: None }, Some(replay)),
        Err(error) => (SnapshotShown { sequence, bytes, error: Some(error) }, None),
    }
}

/// Where a process begins that opens the log: its newest sound snapshot, or the beginning, if that is still there.
pub async fn beginning(source: &Source) -> Result<Option<Replay>> {
    for sequence in source.snapshots.iter().rev() {
        if let (_, Some(replay)) = snapshot(source, *sequence).await {
            return Ok((*sequence + 1 >= source.bounds.first).then_some(replay));
        }
    }
    Ok((source.bounds.first == 1).then(Replay::default))
}

/// Bytes as people read a dump.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}
