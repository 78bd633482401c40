//! What callers read: the JSON answers of the HTTP interface.

use crate::{ClientId, Digest, JobSpec, JobUid, Name, ReceiptId, TaskId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Where an accepted update is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReceiptState {
    /// Stored and logged.
    Accepted,
    /// In its round's accumulator.
    Folded,
    /// In a published model.
    Committed,
    /// Left out; `code` and `reason` say why.
    Discarded,
    /// Gone with its node's memory; its address is open again.
    Lost,
    /// A state that this version does not know.
    #[serde(other)]
    Other,
}

/// What a client gets for an accepted update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Receipt {
    /// The receipt's name.
    #[schema(value_type = String)]
    pub receipt: ReceiptId,
    /// The job's identity.
    #[schema(value_type = String)]
    pub uid: JobUid,
    /// The job's namespace.
    #[schema(value_type = String)]
    pub namespace: Name,
    /// The job's name.
    #[schema(value_type = String)]
    pub job: Name,
    /// The round.
    pub round: u64,
    /// The client.
    #[schema(value_type = String)]
    pub client: ClientId,
    /// BLAKE3 over body, weight, samples and metrics.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// The weight it is folded with.
    pub weight: f64,
    /// Where it is.
    pub state: ReceiptState,
    /// Why it was discarded or lost, from the published list.
    #[serde(default)]
    pub code: Option<String>,
    /// The same for people.
    #[serde(default)]
    pub reason: Option<String>,
    /// The model it is in, once committed.
    #[serde(default)]
    pub model_version: Option<u64>,
    /// When it was accepted, RFC 3339.
    pub accepted_at: String,
}

/// What a job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It needs an initial model.
    WaitingForModel,
    /// Rounds are running.
    Running,
    /// Paused by its owner, or after three rounds given up in a row; then `reason` says why.
    Paused,
    /// All its rounds are done.
    Completed,
    /// Stopped by its owner.
    Stopped,
    /// It cannot go on; `reason` says why.
    Failed,
    /// A state that this version does not know.
    #[serde(other)]
    Other,
}

impl JobState {
    /// Whether no round will ever open again.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Stopped | Self::Failed)
    }
}

/// What a round is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RoundState {
    /// No round has opened yet.
    None,
    /// Takes updates.
    Open,
    /// Closed; the rest is being folded and the model made.
    Aggregating,
    /// Its model is published.
    Committed,
    /// Ended without a model.
    Skipped,
    /// A state that this version does not know.
    #[serde(other)]
    Other,
}

/// A round as callers see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RoundView {
    /// The job's identity.
    #[schema(value_type = String)]
    pub uid: JobUid,
    /// Grows when the round or the job changes state (not with every update); pass it as `after` to wait for that.
    pub revision: u64,
    /// The round's number, from 1; 0 before the first.
    pub round: u64,
    /// What it is doing.
    pub state: RoundState,
    /// What the job is doing.
    pub job_state: JobState,
    /// The model it trains from.
    pub model_version: Option<u64>,
    /// Why the round that ended last was given up, if it was; the newest round is the same again. Or that every update of
    /// this round was discarded, and why.
    #[serde(default)]
    pub reason: Option<String>,
    /// Updates that close it.
    pub goal: u64,
    /// Updates accepted and not discarded or lost.
    pub received: u64,
    /// Of those, updates in the accumulator.
    pub folded: u64,
    /// When it opened, RFC 3339; absent before the first.
    #[serde(default)]
    pub opened_at: Option<String>,
    /// When it ends, RFC 3339.
    #[serde(default)]
    pub deadline_at: Option<String>,
    /// The address of the node to send updates to; absent: the one that was asked. Any other takes them as well.
    #[serde(default)]
    pub gateway: Option<String>,
    /// The nodes it is on, the top first once there is one.
    #[serde(default)]
    pub nodes: Vec<RoundNodeView>,
}

/// What a node has of a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RoundNodeView {
    /// The node: sixteen hexadecimal digits.
    pub node: String,
    /// Its name for people, while it is heard.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether it makes the model, as far as can be said now: it holds the most bytes.
    pub top: bool,
    /// The node that merges what this one has, as far as can be said now; absent for the top, and while it has nothing.
    #[serde(default)]
    pub into: Option<String>,
    /// Updates that the plan sends there.
    pub planned: u64,
    /// Updates that it holds.
    pub received: u64,
    /// Of those, updates in its accumulators.
    pub folded: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

/// A node of the cluster, as it said last of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeView {
    /// The node: sixteen hexadecimal digits.
    pub node: String,
    /// Its name for people.
    pub name: String,
    /// Where its gateway is.
    pub url: String,
    /// Where it stands.
    pub zone: String,
    /// Cores that fold.
    pub cores: u32,
    /// Shared memory that it may use.
    pub memory_bytes: u64,
    /// Of that, bytes not in use.
    pub memory_free_bytes: u64,
    /// Whether it ends soon and takes no new rounds.
    pub draining: bool,
}

/// The nodes that were heard lately.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodesView {
    /// The nodes, by name in the log.
    pub items: Vec<NodeView>,
    /// Nodes that the open rounds want, as the coordinator that decides says; absent while none does.
    #[serde(default)]
    pub wanted: Option<u64>,
    /// Always absent: all nodes come at once.
    #[serde(default)]
    pub cursor: Option<String>,
}

/// A job as callers see it.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct JobView {
    /// Its identity.
    #[schema(value_type = String)]
    pub uid: JobUid,
    /// Its spec, defaults filled in.
    #[serde(serialize_with = "JobSpec::write_whole")]
    pub spec: JobSpec,
    /// What it is doing.
    pub state: JobState,
    /// Why it failed, was completed early or paused itself, what it waits for, or why its last round is asked again.
    pub reason: Option<String>,
    /// When it was created, RFC 3339.
    pub created_at: String,
    /// Its newest model.
    pub model_version: Option<u64>,
    /// Of the measured models, the best one.
    pub best_version: Option<u64>,
    /// Its current round.
    pub round: RoundView,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Pass it as `cursor` for the next page; absent on the last.
    #[serde(default)]
    pub cursor: Option<String>,
}

/// A model version as callers see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelView {
    /// 0 for the initial model.
    pub version: u64,
    /// BLAKE3 of the file.
    #[schema(value_type = String)]
    pub etag: Digest,
    /// Bytes of the file.
    pub bytes: u64,
    /// When it was published, RFC 3339.
    pub created_at: String,
    /// The version it was trained from.
    pub parent: Option<u64>,
    /// The round that made it; absent for the initial model.
    #[serde(default)]
    pub round: Option<u64>,
    /// Digest of the function that made it.
    #[schema(value_type = Option<String>)]
    pub function: Option<Digest>,
    /// Number of updates in it.
    pub contributors: u64,
    /// Sample-weighted means of what contributors reported.
    pub metrics: BTreeMap<String, f64>,
    /// What clients measured of it, if any did.
    #[serde(default)]
    pub evaluation: Option<EvaluationView>,
    /// Whether it is the best of the measured ones.
    #[serde(default)]
    pub best: bool,
    /// Whether its file is still kept.
    pub available: bool,
}

/// What clients measured of a model on their own data.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EvaluationView {
    /// Clients that measured it.
    pub results: u64,
    /// Samples they have together.
    pub num_samples: u64,
    /// Sample-weighted means of what they found.
    pub metrics: BTreeMap<String, f64>,
}

/// What a client says of itself when it asks for work.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckIn {
    /// The job it wants to work for; any of its namespace when absent.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub job: Option<Name>,
    /// The job's namespace; `default` when absent.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub namespace: Option<Name>,
    /// Labels that a job's `selection.where` asks for.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Samples it holds.
    #[serde(default)]
    pub num_samples: Option<u64>,
}

/// What a client is asked to do. Clients treat kinds they do not know as `wait`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Fetch the model, train, submit.
    Train,
    /// Fetch the model, measure it, report.
    Evaluate,
    /// Check in again after `retry_after_ms`.
    Wait,
    /// The job is over.
    Stop,
    /// A kind that this version does not know.
    #[serde(other)]
    Other,
}

/// The answer to a check-in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Task {
    /// What to do.
    pub task: TaskKind,
    /// The task's name, passed back with the update.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub task_id: Option<TaskId>,
    /// The job's namespace.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub namespace: Option<Name>,
    /// The job.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub job: Option<Name>,
    /// The job's identity.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub uid: Option<JobUid>,
    /// The round.
    #[serde(default)]
    pub round: Option<u64>,
    /// The model to train from.
    #[serde(default)]
    pub model_version: Option<u64>,
    /// Where to fetch it, relative to the server.
    #[serde(default)]
    pub model_url: Option<String>,
    /// Its ETag.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub etag: Option<Digest>,
    /// The job's client configuration for this round.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub config: Map<String, Value>,
    /// When the round ends, RFC 3339.
    #[serde(default)]
    pub deadline_at: Option<String>,
    /// The same as time left, for clients whose clock is wrong.
    #[serde(default)]
    pub deadline_in_ms: Option<u64>,
    /// When to check in again. Who comes earlier is told the rest, unless there is a task for everyone who asks.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
    /// The address of the node to fetch the model from and send the update to; absent: the one that was asked. Any other
    /// serves as well.
    #[serde(default)]
    pub gateway: Option<String>,
}

/// A function that jobs can name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FunctionView {
    /// Its name.
    pub name: String,
    /// Its version, as its author gave it.
    pub version: String,
    /// BLAKE3 of its wasm module.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// How its work may be cut: `additive`, `coordinate_wise`, `two_phase` or `whole`.
    pub class: String,
    /// Whether jobs may ask for exact sums.
    pub exact: bool,
    /// One line on what it does.
    pub summary: String,
    /// What its `config` takes.
    pub config_help: String,
}

/// The runner processes of a node, and the map by which work is routed to them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunnersView {
    /// Who routes descriptors: `kernel`, `socket`, or `in process` where there are no runners.
    pub link: String,
    /// What was missing for the kernel to route, or to meter.
    #[serde(default)]
    pub lacks: Option<String>,
    /// Runners that were started because another had ended.
    pub restarts: u64,
    /// The runners.
    pub runners: Vec<RunnerView>,
    /// The routing map.
    pub routes: Vec<RouteView>,
}

/// A runner process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunnerView {
    /// Its number, never used twice.
    pub runner: u32,
    /// Its process.
    pub pid: u32,
    /// Lanes of jobs that are placed there.
    pub lanes: u64,
    /// Time that the kernel saw it running, in milliseconds.
    #[serde(default)]
    pub on_cpu_ms: Option<u64>,
    /// Time that it waited for a CPU, in milliseconds.
    #[serde(default)]
    pub queued_ms: Option<u64>,
}

/// One entry of the routing map, and what went along it since it was placed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RouteView {
    /// Its name: sixteen hexadecimal digits.
    pub route: String,
    /// The job's namespace.
    #[schema(value_type = String)]
    pub namespace: Name,
    /// The job.
    #[schema(value_type = String)]
    pub job: Name,
    /// Which of the job's lanes.
    pub lane: u32,
    /// The runner that serves it.
    #[serde(default)]
    pub runner: Option<u32>,
    /// Descriptors that the kernel has routed.
    pub kernel: u64,
    /// Descriptors that went over a Unix socket.
    pub socket: u64,
    /// Descriptors that the node forwarded, because the kernel could not.
    pub slow: u64,
    /// Bytes of payload that they named. They themselves did not move.
    pub payload_bytes: u64,
}
