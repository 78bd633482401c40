//! The tree between nodes: partials meet at middles on their way to the top.
//!
//! The top plans the tree when its round is ready, from what every node really holds (`catchment_planner::levels`), and
//! orders a partial of each branch; a middle orders those of the branches below it, so all of them merge at the same time.

use super::finish::Facts;
use super::job::StepError;
use super::lanes::Level;
use super::leaf::{BadWords, Leaf, LeafKey, block_bytes};
use super::merge::Partial;
use super::pieces::{Order, Piece, contribution};
use super::remote::{self, Ordered, RemoteLeaf};
use super::scratch::Scratch;
use super::worker::Worker;
use crate::shape::shape;
use catchment_ledger::Round;
use catchment_planner::{Config, Levels, Merge};
use catchment_types::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A node, and those whose partials come to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// The node.
    pub node: NodeId,
    /// What comes to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Branch>,
}

impl Branch {
    fn new(node: NodeId, merges: &[Merge]) -> Self {
        let into = merges.iter().filter(|merge| merge.into == node);
        Self { node, from: into.flat_map(|merge| &merge.from).map(|from| Self::new(*from, merges)).collect() }
    }

    /// Its node and all below.
    pub fn nodes(&self) -> Vec<NodeId> {
        let below = self.from.iter().flat_map(Self::nodes);
        std::iter::once(self.node).chain(below).collect()
    }

    /// Its node, to which everybody comes directly.
    fn flat(mut nodes: Vec<NodeId>, node: NodeId) -> Self {
        nodes.retain(|other| *other != node);
        Self { node, from: nodes.into_iter().map(|node| Self { node, from: Vec::new() }).collect() }
    }
}

/// The shape of the work between the nodes of a round, whose top is this one. Says what is planned.
pub fn plan(worker: &Worker, number: u64) -> Levels {
    let context = &worker.context;
    let beats = context.peers.fleet.live();
    let planned = context.ledger.read(|state| {
        let job = state.job(worker.uid)?;
        Some(shape(&beats, job, job.round_numbered(number)?, context.node))
    });
    let planned = planned.unwrap_or(Levels::One);
    if planned != Levels::One {
        let (levels, height) = (planned.name(), planned.height());
        let why = serde_json::to_string(&planned.first(Config::default().explained)).unwrap_or_default();
        tracing::info!(job = %worker.spec.name, round = number, levels, height, why, "share the work between nodes");
    }
    planned
}

/// The partial of a whole round, whose top is this node.
pub async fn whole(worker: &Arc<Worker>, facts: &Facts) -> Result<Partial, StepError> {
    let node = worker.context.node;
    let branch = match plan(worker, facts.round) {
        Levels::Tree(merges) => Branch::new(node, &merges),
        Levels::One | Levels::Slices(_) => Branch { node, from: Vec::new() },
    };
    let planned: BTreeSet<NodeId> = branch.nodes().into_iter().collect();
    let branch =
        if planned == facts.holders { branch } else { Branch::flat(facts.holders.iter().copied().collect(), node) };
    merge(worker, facts.round, &branch, Level::Top).await
}

/// What comes from below.
struct Way {
    /// Every leaf of the branch.
    leaves: Vec<RemoteLeaf>,
    /// Its partial, when its node merges it.
    ordered: Option<Ordered>,
}

/// Merges this node's leaves, and then, one after the other, what comes from other nodes: each takes memory only while it
/// is merged.
pub async fn merge(worker: &Arc<Worker>, number: u64, branch: &Branch, level: Level) -> Result<Partial, StepError> {
    // Middles begin at once, all of them.
    let ways = branch.from.iter().map(|below| way(worker, number, below)).collect::<Result<Vec<_>, _>>()?;
    let own = own_leaves(worker, number)?;
    let mut merged = worker.working(move |worker| worker.climb(&own)).await?;
    for Way { leaves, ordered } in ways {
        let came = match ordered {
            Some(ordered) => branch_of(worker, ordered).await,
            None => None,
        };
        if let Some(memory) = came {
            merged = add(worker, level, merged, memory).await?;
            continue;
        }
        for leaf in &leaves {
            let memory = remote::partial(worker, number, leaf).await?;
            merged = add(worker, level, merged, memory).await?;
        }
    }
    Ok(merged)
}

fn way(worker: &Arc<Worker>, number: u64, below: &Branch) -> Result<Way, StepError> {
    let nodes: BTreeSet<NodeId> = below.nodes().into_iter().collect();
    // A node that merges nothing has leaves and no more.
    let is_middle = !below.from.is_empty();
    let (leaves, contribution) = read(worker, number, |round| {
        let held = round.contributors().map(|update| (update.accept.node, update.leaf));
        let held: BTreeSet<_> = held.filter(|(node, _)| nodes.contains(node)).collect();
        let leaf = |(node, leaf)| RemoteLeaf { node, leaf, contribution: round.contribution_of(node, leaf) };
        (held.into_iter().map(leaf).collect(), is_middle.then(|| contribution(round, &nodes)))
    })?;
    let ordered = contribution.map(|contribution| {
        let piece = Piece::Partial(below.clone());
        remote::order(
            worker,
            below.node,
            Order { uid: worker.uid, round: number, contribution, maker: worker.maker(), piece },
        )
    });
    Ok(Way { leaves, ordered })
}

/// A branch's partial from the middle that was asked for it. `None`: it is put together here.
async fn branch_of(worker: &Worker, ordered: Ordered) -> Option<Scratch> {
    let middle = ordered.node;
    let came = remote::branch(worker, ordered).await;
    came.inspect_err(|error| tracing::warn!(%middle, %error, "a middle did not merge; merging here")).ok()
}

async fn add(worker: &Arc<Worker>, level: Level, merged: Partial, memory: Scratch) -> Result<Partial, StepError> {
    let fetched = Partial::fetched(memory, block_bytes(worker.model.layout.elements()));
    worker.working(move |worker| worker.merge(level, &[merged, fetched])).await
}

fn own_leaves(worker: &Worker, number: u64) -> Result<Vec<Leaf>, StepError> {
    let node = worker.context.node;
    let held = |round: &Round| {
        let own = round.contributors().filter(|update| update.accept.node == node);
        own.map(|update| update.leaf).collect::<BTreeSet<u32>>()
    };
    let leaves = read(worker, number, held)?;
    let incarnation = worker.context.ledger.read(|state| state.incarnation(node));
    let found = |leaf: u32| {
        let key = LeafKey { uid: worker.uid, round: number, leaf, incarnation };
        let found = worker.context.holdings.leaf(key);
        let found = found.ok_or_else(|| StepError::Again(format!("the accumulator of leaf {leaf} is missing")))?;
        // The round is folded, so all of it lies in one block.
        worker.check(key, &found)?;
        if found.whole().is_some() { Ok(found) } else { Err(StepError::BadLeaf(key, BadWords.into())) }
    };
    leaves.into_iter().map(found).collect()
}

fn read<T>(worker: &Worker, number: u64, look: impl FnOnce(&Round) -> T) -> Result<T, StepError> {
    let looked = worker.context.ledger.read(|state| {
        let round = state.job(worker.uid)?.active_round().filter(|round| round.number == number)?;
        round.is_ready().then(|| look(round))
    });
    looked.ok_or_else(|| StepError::Again("the round is over, or takes updates again".to_owned()))
}
