//! The work between the nodes of a round.
//!
//! Additive functions: a tree. Partials of a zone meet in that zone, so the way between zones is gone once a zone; a
//! further level goes between where more partials would come to a node than its link takes within `merge_s` or its free
//! memory holds. Coordinate-wise functions: every node takes a slice of the coordinates, so a byte crosses the network
//! at most once, however many nodes there are. Others lie on one node.

use crate::config::Config;
use crate::demand::Class;
use catchment_types::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Partials that come together at a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merge {
    /// Where.
    pub into: NodeId,
    /// From where; never from `into` itself, whose own partial is there.
    pub from: Vec<NodeId>,
    /// 1 for partials of leaves only.
    pub level: u32,
}

/// A node's part of the coordinates: from `begin` of `of` to `end` of `of`. Callers round to whole tensors or blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// The node.
    pub node: NodeId,
    /// Where it begins.
    pub begin: u64,
    /// Where it ends; the next begins here.
    pub end: u64,
    /// All coordinates.
    pub of: u64,
}

/// The work between the nodes of a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Levels {
    /// There is one node.
    One,
    /// A tree, lower merges first; the last is at the top.
    Tree(
        /// In an order in which they can be done.
        Vec<Merge>,
    ),
    /// Every node takes a slice of the coordinates from all others, and hands its result to the top.
    Slices(
        /// Without gaps, in the order of coordinates.
        Vec<Slice>,
    ),
}

impl Levels {
    /// Levels of merging above the leaves.
    pub fn height(&self) -> u32 {
        match self {
            Self::One => 0,
            Self::Tree(merges) => merges.iter().map(|merge| merge.level).max().unwrap_or(0),
            Self::Slices(_) => 1,
        }
    }

    /// The same with so many merges or slices at most: what a line of a log can hold.
    pub fn first(&self, count: usize) -> Self {
        match self {
            Self::One => Self::One,
            Self::Tree(merges) => Self::Tree(merges.iter().take(count).cloned().collect()),
            Self::Slices(slices) => Self::Slices(slices.iter().take(count).copied().collect()),
        }
    }

    /// The shape in a word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Tree(_) => "tree",
            Self::Slices(_) => "slices",
        }
    }
}

/// A node of a round, as its place in the levels depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Nodes of one zone are near each other.
    pub zone: u32,
    /// Updates of the round that it has.
    pub updates: u64,
    /// Bytes a second that its link brings in.
    pub link_bytes_per_s: f64,
    /// Bytes that neither this nor another round keeps.
    pub free_bytes: u64,
}

/// The levels for these nodes, of which the first is the top. `partial_bytes`: of one partial of the round.
pub fn levels(class: Class, partial_bytes: u64, members: &[Member], config: &Config) -> Levels {
    if members.len() <= 1 {
        return Levels::One;
    }
    match class {
        Class::Additive => Levels::Tree(tree(partial_bytes.max(1), members, config)),
        Class::CoordinateWise => Levels::Slices(slices(members)),
        Class::TwoPhase | Class::Whole => Levels::One,
    }
}

fn slices(members: &[Member]) -> Vec<Slice> {
    let of: u64 = members.iter().map(|member| member.updates).sum();
    let mut begin = 0;
    let slice = |member: &Member| {
        let end = begin + member.updates;
        let slice = Slice { node: member.node, begin, end, of };
        begin = end;
        slice
    };
    members.iter().map(slice).collect()
}

/// How many partials may come to a node: as many as its link brings within `merge_s`, and as it has room for beside the
/// one that every node keeps room for. Two at the least, or there would be no tree.
fn fan_in(partial: u64, member: &Member, config: &Config) -> usize {
    let by_link = (member.link_bytes_per_s * config.merge_s / partial as f64).max(0.0) as u64;
    let by_memory = (member.free_bytes / partial).saturating_add(1);
    usize::try_from(by_link.min(by_memory)).unwrap_or(usize::MAX).max(2)
}

fn tree(partial: u64, members: &[Member], config: &Config) -> Vec<Merge> {
    let top = members[0];
    let mut zones: BTreeMap<u32, Vec<Member>> = BTreeMap::new();
    for member in &members[1..] {
        zones.entry(member.zone).or_default().push(*member);
    }
    let (mut merges, mut under_top, mut below) = (Vec::new(), Vec::new(), 0);
    for (zone, mut nodes) in zones {
        if zone == top.zone {
            under_top.append(&mut nodes);
            continue;
        }
        let most = nodes.iter().enumerate().max_by_key(|(_, member)| (member.updates, std::cmp::Reverse(member.node)));
        let middle = nodes.remove(most.map_or(0, |(place, _)| place));
        below = below.max(reduce(partial, nodes, &middle, 0, config, &mut merges));
        under_top.push(middle);
    }
    reduce(partial, under_top, &top, below, config, &mut merges);
    merges
}

/// Brings what `nodes` have to `root`, with as few levels as fan-in allows. Returns the level of the last merge.
fn reduce(
    partial: u64,
    mut nodes: Vec<Member>,
    root: &Member,
    mut level: u32,
    config: &Config,
    merges: &mut Vec<Merge>,
) -> u32 {
    // The root merges last, so the middles may be any; those with most of the round are first.
    nodes.sort_by_key(|member| (std::cmp::Reverse(member.updates), member.node));
    let limit = fan_in(partial, root, config);
    let each = nodes.iter().map(|member| fan_in(partial, member, config)).min().unwrap_or(2);
    while nodes.len() > limit {
        level += 1;
        let groups = nodes.len().div_ceil(each.saturating_add(1)).max(limit.min(nodes.len() / 2)).max(1);
        let leaves = nodes.split_off(groups.min(nodes.len()));
        for (place, middle) in nodes.iter().enumerate() {
            let from: Vec<NodeId> = leaves.iter().skip(place).step_by(groups).map(|leaf| leaf.node).collect();
            if !from.is_empty() {
                merges.push(Merge { into: middle.node, from, level });
            }
        }
    }
    if nodes.is_empty() {
        return level;
    }
    level += 1;
    merges.push(Merge { into: root.node, from: nodes.iter().map(|member| member.node).collect(), level });
    level
}
