//! Where a round is.

use crate::demand::RoundKey;
use crate::levels::Levels;
use catchment_types::NodeId;
use serde::{Deserialize, Serialize};

/// What one node does of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The node.
    pub node: NodeId,
    /// Updates of the round that go to it.
    pub updates: u64,
    /// Updates that it has room for at a time.
    pub window: u64,
    /// Bytes kept for the round, accumulators included.
    pub memory_bytes: u64,
}

/// Where a round is, and in which shape it is put together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// The round.
    pub key: RoundKey,
    /// Its nodes; the first is the top.
    pub shares: Vec<Share>,
    /// The work between them.
    pub levels: Levels,
    /// Whether it is expected to keep up with its arrivals and its deadline.
    pub in_time: bool,
}

impl Placement {
    /// The nodes in order, as the log has them.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.shares.iter().map(|share| share.node).collect()
    }

    /// The node that makes the model: the one with most of the round when it was placed.
    pub fn top(&self) -> NodeId {
        self.shares[0].node
    }

    /// What is left of it on nodes that are, for when a node is lost and there is no room for its part yet. None: nothing.
    pub fn left_on(&self, is_there: impl Fn(NodeId) -> bool) -> Option<Self> {
        let mut left = Self { in_time: false, ..self.clone() };
        left.shares.retain(|share| is_there(share.node));
        (!left.shares.is_empty()).then_some(left)
    }

    /// Updates placed.
    pub fn updates(&self) -> u64 {
        self.shares.iter().map(|share| share.updates).sum()
    }

    /// What part of the round each node has, in order; together 1.
    pub fn parts(&self) -> impl Iterator<Item = (NodeId, f64)> {
        let all = self.updates().max(1) as f64;
        self.shares.iter().map(move |share| (share.node, share.updates as f64 / all))
    }

    /// The way of updates to nodes.
    pub fn route(&self) -> Route {
        let mut end = 0;
        let of = |share: &Share| {
            end += share.updates;
            (end, share.node)
        };
        let ends: Vec<(u64, NodeId)> = self.shares.iter().map(of).collect();
        let all = self.updates().max(1);
        let golden = (all as f64 * 0.618_033_988_749_895) as u64;
        let step = (golden.max(1)..).find(|step| greatest_common_divisor(*step, all) == 1).unwrap_or(1);
        Route { ends, all, step }
    }
}

/// Which update of a round goes to which node.
///
/// By order of arrival, every node gets exactly its share of any whole round, evenly spread over time. A step that has no
/// factor in common with the number of updates visits each place once; a step near the golden section visits them evenly
/// (Knuth, The Art of Computer Programming, volume 3, section 6.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where each node's places end.
    ends: Vec<(u64, NodeId)>,
    all: u64,
    step: u64,
}

impl Route {
    /// The node for the update that arrives as number `order`, from 0. Those beyond the round begin anew.
    pub fn node_for(&self, order: u64) -> NodeId {
        let place = (u128::from(order % self.all) * u128::from(self.step) % u128::from(self.all)) as u64;
        let share = self.ends.partition_point(|(end, _)| *end <= place);
        self.ends[share.min(self.ends.len() - 1)].1
    }
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
