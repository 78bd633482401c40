//! Records of the event log: everything that ever happens to a job.
//!
//! A job's state is a fold over these, so a record says what happened and not what follows from it. Kept free of
//! serde features that a compact binary form cannot carry (untagged, flatten, skipped fields).
//!
//! What is here is the present form. Older ones are in modules of their own (`v1`), and logs that hold them are read for
//! ever. Which form is written, the cluster's feature level says: see [`Record::level`].

mod v1;

pub use v1::RecordV1;

use crate::{ClientId, Code, Digest, JobUid, LogId, NodeId, ReceiptId, SlabId, SpecPatch, StateHash, TimeMs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One update that a gateway has frozen and now reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accept {
    /// The job.
    pub uid: JobUid,
    /// The round it goes into.
    pub round: u64,
    /// The model version it was trained from, where that does not follow from the round: in asynchronous jobs.
    pub base: Option<u64>,
    /// Who sent it.
    pub client: ClientId,
    /// BLAKE3 over body, weight, samples and metrics.
    pub digest: Digest,
    /// A finite positive number.
    pub weight: f64,
    /// Samples it was trained on.
    pub num_samples: u64,
    /// Named numbers the client reported.
    pub metrics: BTreeMap<String, f64>,
    /// Bytes of the body.
    pub bytes: u64,
    /// The node that holds it.
    pub node: NodeId,
    /// How often that node had been given up for lost when it took the update. Once it is given up again, this update is
    /// not accepted: what a lost node holds counts for nothing.
    pub incarnation: u64,
    /// Where it lies there.
    pub slab: SlabId,
    /// When the gateway had all of it.
    pub at_ms: TimeMs,
}

impl Accept {
    /// The number in the update's address: its round, or in asynchronous jobs the version it was trained from.
    pub fn addressed(&self) -> u64 {
        self.base.unwrap_or(self.round)
    }
}

/// What one client measured of a model on its own data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationResult {
    /// Who measured.
    pub client: ClientId,
    /// Samples it was measured on.
    pub num_samples: u64,
    /// Named finite numbers.
    pub metrics: BTreeMap<String, f64>,
}

/// What an owner asks of a running job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobAction {
    /// Take no updates and open no round.
    Pause,
    /// Undo a pause.
    Resume,
    /// End the job; its models stay.
    Stop,
    /// End the job and forget it.
    Delete,
}

/// Why a round takes no more updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CloseReason {
    /// Enough updates came by the deadline.
    Deadline,
    /// Too few came and the spec says to skip.
    Shortfall,
    /// The job was stopped.
    Stopped,
    /// Its owner asked for it: the model is made of what there is.
    Asked,
}

/// What a function may be asked to do with updates; the shape of a round's work follows from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FunctionClass {
    /// Partials merge in any order.
    #[default]
    Additive,
    /// Needs every update for each coordinate.
    CoordinateWise,
    /// Measures every update, then chooses among them.
    TwoPhase,
    /// Updates have no fixed coordinates.
    Whole,
}

/// What a job's rounds take of a node, as the node knows that has its model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// What its function may be asked to do.
    pub class: FunctionClass,
    /// Bytes of one update in memory.
    pub update_bytes: u64,
    /// Bytes of one partial: a number of eight bytes for each coordinate.
    pub partial_bytes: u64,
}

/// A part of a round on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// Updates of the round that should go there.
    pub updates: u64,
}

/// A model version that can be served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelCommit {
    /// 0 for the initial model.
    pub version: u64,
    /// BLAKE3 of the file: its ETag.
    pub etag: Digest,
    /// Bytes of the file.
    pub bytes: u64,
    /// The node that made the file; others fetch it from there.
    pub node: NodeId,
    /// Digest of the function that made it; `None` for the initial model.
    pub function: Option<Digest>,
    /// Number of updates in it.
    pub contributors: u64,
    /// Digest of its contribution set (receipts in order); `None` for the initial model.
    pub contribution: Option<Digest>,
    /// Whether it was made from the updates in their slabs, all at once, rather than from accumulators. The log does not
    /// know a function's class; this says which guard the commit has to pass.
    pub gathered: bool,
    /// Sample-weighted means of what the contributors reported.
    pub metrics: BTreeMap<String, f64>,
}

impl ModelCommit {
    /// The initial model: made by no function, from no update.
    pub const fn initial(etag: Digest, bytes: u64, node: NodeId) -> Self {
        Self {
            version: 0,
            etag,
            bytes,
            node,
            function: None,
            contributors: 0,
            contribution: None,
            gathered: false,
            metrics: BTreeMap::new(),
        }
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// A job was created.
    JobCreated {
        /// Its new identity.
        uid: JobUid,
        /// The spec, as canonical JSON.
        spec: String,
        /// When.
        at_ms: TimeMs,
    },
    /// A running job's spec was changed.
    JobPatched {
        /// The job.
        uid: JobUid,
        /// What changed.
        patch: SpecPatch,
        /// When.
        at_ms: TimeMs,
    },
    /// An owner acted on a job.
    JobActed {
        /// The job.
        uid: JobUid,
        /// How.
        action: JobAction,
        /// When.
        at_ms: TimeMs,
    },
    /// A job cannot go on.
    JobFailed {
        /// The job.
        uid: JobUid,
        /// Why, for people.
        reason: String,
        /// When.
        at_ms: TimeMs,
    },
    /// The initial model was stored.
    ModelPut {
        /// The job.
        uid: JobUid,
        /// The model.
        model: ModelCommit,
        /// What rounds with it take.
        needs: Footprint,
        /// When.
        at_ms: TimeMs,
    },
    /// A round began to take updates.
    RoundOpened {
        /// The job.
        uid: JobUid,
        /// The round.
        round: u64,
        /// When it ends, if it does.
        deadline_ms: Option<TimeMs>,
        /// Where its clients are sent, the best first; empty for anywhere.
        places: Vec<Place>,
        /// When.
        at_ms: TimeMs,
    },
    /// An open round got another deadline.
    RoundExtended {
        /// The job.
        uid: JobUid,
        /// The round.
        round: u64,
        /// The new deadline; none where the job has none.
        deadline_ms: Option<TimeMs>,
    },
    /// A round was closed before its goal. (The goal itself closes a round without a record.)
    RoundClosed {
        /// The job.
        uid: JobUid,
        /// The round.
        round: u64,
        /// Why.
        reason: CloseReason,
        /// When.
        at_ms: TimeMs,
    },
    /// Updates were accepted; one record carries a group.
    Accepted(
        /// In order of acceptance.
        Vec<Accept>,
    ),
    /// Updates are in a round's accumulator. Derived from the accumulator's header, hence idempotent.
    Folded {
        /// The job.
        uid: JobUid,
        /// The round.
        round: u64,
        /// The updates.
        receipts: Vec<ReceiptId>,
    },
    /// An update was left out of its round.
    Discarded {
        /// The job.
        uid: JobUid,
        /// The round.
        round: u64,
        /// The update.
        receipt: ReceiptId,
        /// Why.
        code: Code,
        /// The same for people, such as what a trap said.
        reason: String,
    },
    /// Updates died with their node's memory before they were committed. Those that are in a sum are not among them: see
    /// `SumLost`.
    Lost {
        /// The job.
        uid: JobUid,
        /// The round.
        round: u64,
        /// The updates.
        receipts: Vec<ReceiptId>,
        /// When.
        at_ms: TimeMs,
    },
    /// A round's model was committed.
    Committed {
        /// The job.
        uid: JobUid,
        /// The round.
        round: u64,
        /// The new model.
        model: ModelCommit,
        /// When.
        at_ms: TimeMs,
    },
    /// An active round's clients are sent elsewhere from now on. What was accepted stays where it is.
    RoundPlaced {
        /// The job.
        uid: JobUid,
        /// The round.
        round: u64,
        /// Where, the best first; empty for anywhere.
        places: Vec<Place>,
    },
    /// A node was given up, and with it everything that it holds for active rounds. Should it come back, it begins anew,
    /// as its next incarnation.
    NodeLost {
        /// The node.
        node: NodeId,
        /// Which of its incarnations: the record counts only while that is the present one.
        incarnation: u64,
        /// When.
        at_ms: TimeMs,
    },
    /// Clients measured a model; one record carries a group.
    Evaluated {
        /// The job.
        uid: JobUid,
        /// The model.
        version: u64,
        /// In order of arrival.
        results: Vec<EvaluationResult>,
    },
    /// A job has reached what it can before its last round.
    JobCompleted {
        /// The job.
        uid: JobUid,
        /// Why, for people.
        reason: String,
        /// When.
        at_ms: TimeMs,
    },
    /// No model can be made of a round's updates: it ends without one, and is asked again as the next round.
    RoundGivenUp {
        /// The job.
        uid: JobUid,
        /// The round.
        round: u64,
        /// Digest of the contribution set that no model can be made of. The record counts only while that is the round's.
        contribution: Digest,
        /// What happened, for people.
        reason: String,
        /// When.
        at_ms: TimeMs,
    },
    /// Every member reads what this feature level writes, so it is written from here on.
    LevelRaised {
        /// The level.
        level: u32,
        /// The log's identity, drawn by whoever raised it first; it keeps the first one.
        log: LogId,
        /// When.
        at_ms: TimeMs,
    },
    /// A process began to work as this node. What another one writes as the same node from here on does not count.
    NodeStarted {
        /// The node.
        node: NodeId,
        /// When.
        at_ms: TimeMs,
    },
    /// What a node had summed up for one leaf of a round is gone, and every update in it.
    SumLost {
        /// The job.
        uid: JobUid,
        /// The round.
        round: u64,
        /// The node.
        node: NodeId,
        /// The leaf.
        leaf: u32,
        /// When.
        at_ms: TimeMs,
    },
    /// What the state of the process that wrote this was after an earlier record. Whoever has come to another goes no further.
    StateHashed {
        /// The record.
        sequence: u64,
        /// The hash of the state after it.
        hash: StateHash,
    },
}

/// The newest feature level: what this build writes when every member of its cluster reads it.
pub const LEVEL_MAX: u32 = 2;

impl Record {
    /// What it is called where records are counted and shown.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::JobCreated { .. } => "job_created",
            Self::JobPatched { .. } => "job_patched",
            Self::JobActed { .. } => "job_acted",
            Self::JobFailed { .. } => "job_failed",
            Self::JobCompleted { .. } => "job_completed",
            Self::ModelPut { .. } => "model_put",
            Self::RoundOpened { .. } => "round_opened",
            Self::RoundPlaced { .. } => "round_placed",
            Self::RoundExtended { .. } => "round_extended",
            Self::RoundClosed { .. } => "round_closed",
            Self::RoundGivenUp { .. } => "round_given_up",
            Self::Accepted(_) => "accepted",
            Self::Folded { .. } => "folded",
            Self::Discarded { .. } => "discarded",
            Self::Lost { .. } => "lost",
            Self::Committed { .. } => "committed",
            Self::NodeLost { .. } => "node_lost",
            Self::Evaluated { .. } => "evaluated",
            Self::LevelRaised { .. } => "level_raised",
            Self::NodeStarted { .. } => "node_started",
            Self::SumLost { .. } => "sum_lost",
            Self::StateHashed { .. } => "state_hashed",
        }
    }

    /// When it was written, by its writer's clock, where it says so. Of a group of accepts, the newest.
    pub fn at_ms(&self) -> Option<TimeMs> {
        match self {
            Self::JobCreated { at_ms, .. }
            | Self::JobPatched { at_ms, .. }
            | Self::JobActed { at_ms, .. }
            | Self::JobFailed { at_ms, .. }
            | Self::JobCompleted { at_ms, .. }
            | Self::ModelPut { at_ms, .. }
            | Self::RoundOpened { at_ms, .. }
            | Self::RoundClosed { at_ms, .. }
            | Self::RoundGivenUp { at_ms, .. }
            | Self::Lost { at_ms, .. }
            | Self::Committed { at_ms, .. }
            | Self::NodeLost { at_ms, .. }
            | Self::LevelRaised { at_ms, .. }
            | Self::NodeStarted { at_ms, .. }
            | Self::SumLost { at_ms, .. } => Some(*at_ms),
            Self::Accepted(group) => group.iter().map(|accept| accept.at_ms).max(),
            Self::RoundPlaced { .. }
            | Self::RoundExtended { .. }
            | Self::Folded { .. }
            | Self::Discarded { .. }
            | Self::Evaluated { .. }
            | Self::StateHashed { .. } => None,
        }
    }

    /// The lowest feature level at which it may be written: at a lower one some member might not read it.
    ///
    /// 1 is what the first release writes. 2 has versions for each stored type, and everything that came with them.
    pub fn level(&self) -> u32 {
        match self {
            // Builds between the first release and the second feature level knew it, but no release did.
            Self::RoundGivenUp { .. } => 2,
            Self::LevelRaised { .. } | Self::NodeStarted { .. } | Self::SumLost { .. } | Self::StateHashed { .. } => 2,
            Self::RoundClosed { reason: CloseReason::Asked, .. } => 2,
            _ => 1,
        }
    }
}
