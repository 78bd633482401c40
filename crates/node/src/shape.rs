//! The shape of the work between the nodes of a round: who merges whose partial, or makes which slice.
//!
//! It follows from what nodes hold and say of themselves. The top plans by it when its round is ready; until then it is what
//! callers are shown, and may change.

use catchment_fleet::{NodeBeat, Zones, beat_of};
use catchment_ledger::{Job, Round};
use catchment_planner::{Config, Levels, Member, levels};
use catchment_types::NodeId;
use std::cmp::Reverse;

/// The shape, if `top` makes the model. A node that is quiet for a moment is taken to be like the top.
pub fn shape(beats: &[NodeBeat], job: &Job, round: &Round, top: NodeId) -> Levels {
    let zones = Zones::of(beats);
    let member = |node: NodeId, updates: u64| {
        let beat = beat_of(beats, node).or(beat_of(beats, top));
        Member {
            node,
            updates,
            zone: beat.map_or(0, |beat| zones.number(beat)),
            link_bytes_per_s: beat.map_or(f64::INFINITY, |beat| beat.link_bytes_per_s),
            free_bytes: beat.map_or(u64::MAX, |beat| beat.memory_free_bytes),
        }
    };
    let mut members: Vec<Member> = round.shares().map(|(node, share)| member(node, share.updates)).collect();
    members.sort_by_key(|member| (member.node != top, Reverse(member.updates), member.node));
    levels(job.needs.class.into(), job.needs.partial_bytes, &members, &Config::default())
}
