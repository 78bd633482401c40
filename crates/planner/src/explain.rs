//! Why something was decided, as one value that the caller writes as one line.

use crate::demand::{Class, RoundKey};
use catchment_types::NodeId;
use serde::Serialize;

/// The reason in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// One node can serve it in time; the one with the least left over was taken.
    FitsOneNode,
    /// The fewest nodes that can serve it in time.
    FewestNodes,
    /// No set of nodes can serve it in time, or merging their partials would take longer than they save: those were taken
    /// that make its model soonest.
    Late,
    /// Where it is, it is well.
    Unchanged,
    /// A node of it is gone; only its part moves.
    NodeLost,
    /// What it needs has grown beyond its nodes.
    Grown,
    /// It needs clearly less than it has.
    Shrunk,
}

/// One node of a decision.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chosen {
    /// The node.
    pub node: NodeId,
    /// Updates of the round that go to it.
    pub updates: u64,
    /// Cores that may still be planned there once the round is on it.
    pub residual_cores: f64,
    /// Bytes free there after it.
    pub free_bytes: u64,
}

/// Why a round is where it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The round.
    pub key: RoundKey,
    /// The reason.
    pub why: Why,
    /// The class of its function.
    pub class: Class,
    /// Updates placed.
    pub updates: u64,
    /// Updates a second that it was placed for.
    pub rate_per_s: f64,
    /// Cores that this takes.
    pub cores: f64,
    /// Bytes kept for it on all nodes.
    pub memory_bytes: u64,
    /// Nodes looked at.
    pub looked_at: usize,
    /// Nodes taken.
    pub taken: usize,
    /// The shape between them.
    pub levels: &'static str,
    /// Levels of merging above the leaves.
    pub height: u32,
    /// The node that makes the model.
    pub top: NodeId,
    /// The first of the nodes taken.
    pub nodes: Vec<Chosen>,
}
