//! Records as the first release wrote them. Nothing here is ever changed: it says how logs are read that exist.
//!
//! A type that a record holds and that changes gets a copy of its old form here as well.

use super::Record;
use crate::{
    Accept, CloseReason, Code, Digest, EvaluationResult, Footprint, JobAction, JobUid, ModelCommit, NodeId, Place,
    ReceiptId, SpecPatch, TimeMs,
};
use serde::{Deserialize, Serialize};

/// The first form of a [`Record`]: see there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each variant and field is described where its present form is")]
pub enum RecordV1 {
    JobCreated { uid: JobUid, spec: String, at_ms: TimeMs },
    JobPatched { uid: JobUid, patch: SpecPatch, at_ms: TimeMs },
    JobActed { uid: JobUid, action: JobAction, at_ms: TimeMs },
    JobFailed { uid: JobUid, reason: String, at_ms: TimeMs },
    ModelPut { uid: JobUid, model: ModelCommit, needs: Footprint, at_ms: TimeMs },
    RoundOpened { uid: JobUid, round: u64, deadline_ms: Option<TimeMs>, places: Vec<Place>, at_ms: TimeMs },
    RoundExtended { uid: JobUid, round: u64, deadline_ms: Option<TimeMs> },
    RoundClosed { uid: JobUid, round: u64, reason: CloseReason, at_ms: TimeMs },
    Accepted(Vec<Accept>),
    Folded { uid: JobUid, round: u64, receipts: Vec<ReceiptId> },
    Discarded { uid: JobUid, round: u64, receipt: ReceiptId, reason: String },
    Lost { uid: JobUid, round: u64, receipts: Vec<ReceiptId>, at_ms: TimeMs },
    Committed { uid: JobUid, round: u64, model: ModelCommit, at_ms: TimeMs },
    RoundPlaced { uid: JobUid, round: u64, places: Vec<Place> },
    NodeLost { node: NodeId, incarnation: u64, at_ms: TimeMs },
    Evaluated { uid: JobUid, version: u64, results: Vec<EvaluationResult> },
    JobCompleted { uid: JobUid, reason: String, at_ms: TimeMs },
    RoundGivenUp { uid: JobUid, round: u64, contribution: Digest, reason: String, at_ms: TimeMs },
}

use RecordV1 as Old;

impl From<Old> for Record {
    fn from(record: Old) -> Self {
        match record {
            Old::JobCreated { uid, spec, at_ms } => Self::JobCreated { uid, spec, at_ms },
            Old::JobPatched { uid, patch, at_ms } => Self::JobPatched { uid, patch, at_ms },
            Old::JobActed { uid, action, at_ms } => Self::JobActed { uid, action, at_ms },
            Old::JobFailed { uid, reason, at_ms } => Self::JobFailed { uid, reason, at_ms },
            Old::ModelPut { uid, model, needs, at_ms } => Self::ModelPut { uid, model, needs, at_ms },
            Old::RoundOpened { uid, round, deadline_ms, places, at_ms } => {
                Self::RoundOpened { uid, round, deadline_ms, places, at_ms }
            }
            Old::RoundExtended { uid, round, deadline_ms } => Self::RoundExtended { uid, round, deadline_ms },
            Old::RoundClosed { uid, round, reason, at_ms } => Self::RoundClosed { uid, round, reason, at_ms },
            Old::Accepted(group) => Self::Accepted(group),
            Old::Folded { uid, round, receipts } => Self::Folded { uid, round, receipts },
            Old::Discarded { uid, round, receipt, reason } => {
                Self::Discarded { uid, round, receipt, code: Code::FunctionTrap, reason }
            }
            Old::Lost { uid, round, receipts, at_ms } => Self::Lost { uid, round, receipts, at_ms },
            Old::Committed { uid, round, model, at_ms } => Self::Committed { uid, round, model, at_ms },
            Old::RoundPlaced { uid, round, places } => Self::RoundPlaced { uid, round, places },
            Old::NodeLost { node, incarnation, at_ms } => Self::NodeLost { node, incarnation, at_ms },
            Old::Evaluated { uid, version, results } => Self::Evaluated { uid, version, results },
            Old::JobCompleted { uid, reason, at_ms } => Self::JobCompleted { uid, reason, at_ms },
            Old::RoundGivenUp { uid, round, contribution, reason, at_ms } => {
                Self::RoundGivenUp { uid, round, contribution, reason, at_ms }
            }
        }
    }
}

impl TryFrom<Record> for RecordV1 {
    /// It says what the first form has no words for.
    type Error = Record;

    fn try_from(record: Record) -> Result<Self, Record> {
        Ok(match record {
            Record::JobCreated { uid, spec, at_ms } => Self::JobCreated { uid, spec, at_ms },
            Record::JobPatched { uid, patch, at_ms } => Self::JobPatched { uid, patch, at_ms },
            Record::JobActed { uid, action, at_ms } => Self::JobActed { uid, action, at_ms },
            Record::JobFailed { uid, reason, at_ms } => Self::JobFailed { uid, reason, at_ms },
            Record::ModelPut { uid, model, needs, at_ms } => Self::ModelPut { uid, model, needs, at_ms },
            Record::RoundOpened { uid, round, deadline_ms, places, at_ms } => {
                Self::RoundOpened { uid, round, deadline_ms, places, at_ms }
            }
            Record::RoundExtended { uid, round, deadline_ms } => Self::RoundExtended { uid, round, deadline_ms },
            Record::RoundClosed { uid, round, reason, at_ms } => Self::RoundClosed { uid, round, reason, at_ms },
            Record::Accepted(group) => Self::Accepted(group),
            Record::Folded { uid, round, receipts } => Self::Folded { uid, round, receipts },
            Record::Discarded { uid, round, receipt, reason, .. } => Self::Discarded { uid, round, receipt, reason },
            Record::Lost { uid, round, receipts, at_ms } => Self::Lost { uid, round, receipts, at_ms },
            Record::Committed { uid, round, model, at_ms } => Self::Committed { uid, round, model, at_ms },
            Record::RoundPlaced { uid, round, places } => Self::RoundPlaced { uid, round, places },
            Record::NodeLost { node, incarnation, at_ms } => Self::NodeLost { node, incarnation, at_ms },
            Record::Evaluated { uid, version, results } => Self::Evaluated { uid, version, results },
            Record::JobCompleted { uid, reason, at_ms } => Self::JobCompleted { uid, reason, at_ms },
            Record::RoundGivenUp { uid, round, contribution, reason, at_ms } => {
                Self::RoundGivenUp { uid, round, contribution, reason, at_ms }
            }
            newer => return Err(newer),
        })
    }
}
