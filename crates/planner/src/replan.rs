//! Planning a round again while it is open.
//!
//! Bytes that lie on a node are there, and moving them costs what locality saves. So only what has not come yet moves,
//! only when something has changed for the worse (a node is lost, the load has outgrown its nodes) or clearly for the
//! better, and no further than it must.

use crate::demand::Demand;
use crate::explain::{Explanation, Why};
use crate::fleet::Fleet;
use crate::need::Need;
use crate::place::{Choice, NoRoom, fewest, soonest};
use crate::placement::Placement;
use catchment_types::NodeId;
use std::cmp::Reverse;
use std::collections::BTreeSet;

impl Fleet {
    /// Plans an open round again, which holds `current` here (by [`Fleet::place`] or [`Fleet::hold`]). What a node has taken of it (accepted updates, and a batch that is being folded, by
    /// `taken`) stays there; the rest moves only as far as it must. `None`: everything stays.
    ///
    /// # Errors
    /// No memory for what has to move. The round then holds what it held on the nodes that are left.
    pub fn replan(
        &mut self,
        current: &Placement,
        demand: &Demand,
        taken: impl Fn(NodeId) -> u64,
    ) -> Result<Option<(Placement, Explanation)>, NoRoom> {
        let held = self.held_on(demand.key);
        self.release(demand.key);
        let config = self.config;
        let need = Need::new(demand, &config);
        let choice = match self.rechoose(&need, current, &held, taken) {
            Ok(Some(choice)) => choice,
            unchanged => {
                let stay = current.shares.iter().filter(|share| held.contains(&share.node));
                stay.for_each(|share| self.take(&need, share));
                return unchanged.map(|_| None);
            }
        };
        let (placement, explanation) = self.settle(&need, choice);
        if placement == *current { Ok(None) } else { Ok(Some((placement, explanation))) }
    }

    /// What has to change of a placement, if anything has.
    fn rechoose(
        &self,
        need: &Need<'_>,
        current: &Placement,
        held: &BTreeSet<NodeId>,
        taken: impl Fn(NodeId) -> u64,
    ) -> Result<Option<Choice>, NoRoom> {
        let all = need.demand.updates;
        let larger = need.with_margin(self.config.margin);
        let mut kept: Vec<Kept> = Vec::new();
        for share in &current.shares {
            if let Some(slot) = self.slots.get(&share.node).filter(|_| held.contains(&share.node)) {
                let most = need.most_in_time(slot.free(), slot.capacity);
                let (has, taken, room) = (share.updates, taken(share.node), need.most_at_all(slot.free()));
                // A node that has taken more than it has room for is planned no further than its memory.
                let taken = taken.min(room);
                let easily = larger.most_in_time(slot.free(), slot.capacity);
                kept.push(Kept { node: share.node, has, taken, most, easily, room });
            }
        }
        let is_lost = kept.len() < current.shares.len();
        if kept.is_empty() {
            return self.choose(need).map(Some);
        }
        if !need.demand.class.can_spread() {
            return self.rechoose_one(need, current, &kept[0]);
        }
        let is_well = !is_lost && current.updates() == all && kept.iter().all(|kept| kept.has <= kept.most);
        let fewer = is_well && kept.len() > 1 && Self::shrink(&mut kept, all);
        if is_well && !fewer && current.in_time {
            return Ok(None);
        }
        if is_lost && current.shares[0].node != kept[0].node {
            // The top is gone: what is left of the round is mostly with whoever has taken most.
            kept.sort_by_key(|kept| (Reverse(kept.taken), Reverse(kept.has), kept.node));
        }
        let why = if is_lost {
            Why::NodeLost
        } else if fewer {
            Why::Shrunk
        } else {
            Why::Grown
        };
        if kept.iter().all(|kept| kept.taken <= kept.most) {
            let (mut updates, rest) = keep(&kept, all, |kept| kept.has.min(kept.most), |kept| kept.most);
            let except = kept.iter().map(|kept| kept.node).collect();
            let new = if rest == 0 { Some(Vec::new()) } else { fewest(&self.candidates(need, &except), rest) };
            if let Some(new) = new.filter(|new| new.is_empty() || kept.len() + new.len() <= self.most_useful(need)) {
                updates.extend(new);
                return Ok(Some(Choice { updates, why, in_time: true }));
            }
        }
        if !is_lost && !current.in_time && current.updates() == all {
            // It was late before, and still nothing makes it be in time.
            return Ok(None);
        }
        // What was late where it is would be late elsewhere too, so it does not move for that.
        let stays = |kept: &Kept| kept.has.min(if current.in_time { kept.most } else { kept.room });
        let (updates, _) = keep(&kept, all, stays, stays);
        let mut updates = self.late(need, updates.into_iter().collect())?;
        let order = |node: &NodeId| kept.iter().position(|kept| kept.node == *node).unwrap_or(usize::MAX);
        updates.sort_by_key(|(node, _)| order(node));
        Ok(Some(Choice { updates, why: if is_lost { Why::NodeLost } else { Why::Late }, in_time: false }))
    }

    /// Nodes beyond these would bring more to merge than they take off the others.
    fn most_useful(&self, need: &Need<'_>) -> usize {
        soonest(need, &self.candidates(need, &BTreeSet::new()))
    }

    /// A round that is on one node by its class moves only while nothing of it has come, and only to be in time.
    fn rechoose_one(&self, need: &Need<'_>, current: &Placement, kept: &Kept) -> Result<Option<Choice>, NoRoom> {
        let all = need.demand.updates;
        let in_time = kept.most >= all;
        if in_time == current.in_time && current.updates() == all && (in_time || kept.taken > 0) {
            return Ok(None);
        }
        if !in_time && kept.taken == 0 {
            let choice = self.choose(need)?;
            return Ok((choice.in_time || current.updates() != all).then_some(choice));
        }
        if kept.room < all {
            return Err(NoRoom { updates: all, room: kept.room });
        }
        Ok(Some(Choice { updates: vec![(kept.node, all)], why: Why::Grown, in_time }))
    }

    /// Leaves out nodes that have taken nothing, where the others could serve clearly more than the round needs. Returns
    /// whether any was.
    fn shrink(kept: &mut Vec<Kept>, all: u64) -> bool {
        let before = kept.len();
        let mut easily: u64 = kept.iter().map(|kept| kept.easily).fold(0, u64::saturating_add);
        for place in (1..before).rev() {
            let without = easily - kept[place].easily;
            if kept[place].taken == 0 && without >= all {
                kept.remove(place);
                easily = without;
            }
        }
        kept.len() < before
    }
}

/// A node of a round that is planned again.
struct Kept {
    node: NodeId,
    /// Updates of it by the placement so far.
    has: u64,
    /// Of those, updates that have come.
    taken: u64,
    /// Updates that it can take in time.
    most: u64,
    /// Updates that it can take in time even when the load is larger by the margin.
    easily: u64,
    /// Updates that it has memory for.
    room: u64,
}

/// What the kept nodes go on with: what they have taken, then what of the rest they keep, then more of it. Also what is
/// left.
fn keep(
    kept: &[Kept],
    all: u64,
    stays: impl Fn(&Kept) -> u64,
    most: impl Fn(&Kept) -> u64,
) -> (Vec<(NodeId, u64)>, u64) {
    let mut updates: Vec<(NodeId, u64)> = kept.iter().map(|kept| (kept.node, kept.taken)).collect();
    let mut rest = all.saturating_sub(kept.iter().map(|kept| kept.taken).sum());
    let mut raise = |limit: &dyn Fn(&Kept) -> u64| {
        for ((_, updates), kept) in updates.iter_mut().zip(kept) {
            let more = limit(kept).saturating_sub(*updates).min(rest);
            (*updates, rest) = (*updates + more, rest - more);
        }
    };
    raise(&stays);
    raise(&most);
    updates.retain(|(_, updates)| *updates > 0);
    (updates, rest)
}
