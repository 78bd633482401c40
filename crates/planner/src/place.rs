//! Which nodes a round goes to.
//!
//! Locality first: a hop inside a node is a descriptor and between nodes it is the whole model, so a round goes to one
//! node where one can serve it in time, and otherwise to as few as can. Among nodes that do, best fit by residual capacity
//! (LIFL, section 5: RC = capacity − arrival rate × service time, and the least that is enough), which leaves large gaps
//! for large rounds. Cores and links may be oversubscribed when nothing else is left, and the placement then says that it
//! is late; memory never is.

use crate::config::Config;
use crate::demand::Demand;
use crate::explain::{Chosen, Explanation, Why};
use crate::fleet::{Fleet, Slot};
use crate::levels::levels;
use crate::need::Need;
use crate::node::MICRO;
use crate::placement::{Placement, Share};
use catchment_types::NodeId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The memory of all nodes together cannot take the round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom {
    /// Updates of the round.
    pub updates: u64,
    /// Updates there is room for.
    pub room: u64,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the round may have {} updates, and the nodes have room for {}", self.updates, self.room)
    }
}

impl std::error::Error for NoRoom {}

/// Updates for nodes, in the order of the placement, and why.
struct Choice {
    updates: Vec<(NodeId, u64)>,
    why: Why,
    in_time: bool,
}

/// A node that can take a part of a round.
#[derive(Clone, Copy)]
struct Candidate {
    node: NodeId,
    zone: u32,
    most: u64,
}

impl Fleet {
    /// Places a round that is on no node yet, and holds what it needs.
    ///
    /// # Errors
    /// No memory for it, even late.
    pub fn place(&mut self, demand: &Demand) -> Result<(Placement, Explanation), NoRoom> {
        self.release(demand.key);
        let config = self.config;
        let need = Need::new(demand, &config);
        let choice = self.choose(&need)?;
        Ok(self.settle(&need, choice))
    }

    /// Plans an open round again. What a node has taken of it (accepted updates, and a batch that is being folded, by
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
        self.release(demand.key);
        let config = self.config;
        let need = Need::new(demand, &config);
        let choice = match self.rechoose(&need, current, taken) {
            Ok(Some(choice)) => choice,
            unchanged => {
                current.shares.iter().for_each(|share| self.take(&need, share));
                return unchanged.map(|_| None);
            }
        };
        let (placement, explanation) = self.settle(&need, choice);
        if placement == *current { Ok(None) } else { Ok(Some((placement, explanation))) }
    }

    /// The nodes for a round that is nowhere yet.
    fn choose(&self, need: &Need<'_>) -> Result<Choice, NoRoom> {
        let all = need.demand.updates;
        if let Some(node) = self.best_fit(need) {
            return Ok(Choice { updates: vec![(node, all)], why: Why::FitsOneNode, in_time: true });
        }
        if need.demand.class.can_spread()
            && let Some(updates) = fewest(self.candidates(need, &BTreeSet::new()), all)
        {
            return Ok(Choice { updates, why: Why::FewestNodes, in_time: true });
        }
        let updates = self.late(need, BTreeMap::new())?;
        Ok(Choice { updates, why: Why::Late, in_time: false })
    }

    /// The node with the least residual capacity that takes the whole round in time.
    fn best_fit(&self, need: &Need<'_>) -> Option<NodeId> {
        let all = need.demand.updates;
        let least = need.of(all, crate::node::Amount::default()).micro_cores;
        let fits = |node: &NodeId| {
            let slot = &self.slots[node];
            need.of(all, slot.capacity).is_within(slot.free())
        };
        self.by_residual.range((least, NodeId(0))..).map(|(_, node)| *node).find(fits)
    }

    fn candidates(&self, need: &Need<'_>, except: &BTreeSet<NodeId>) -> Vec<Candidate> {
        let candidate = |slot: &Slot| Candidate {
            node: slot.node.node,
            zone: slot.node.zone,
            most: need.most_in_time(slot.free(), slot.capacity),
        };
        let others = self.slots.values().filter(|slot| !except.contains(&slot.node.node));
        others.map(candidate).filter(|candidate| candidate.most > 0).collect()
    }

    /// Spreads what cannot be in time over all nodes that help, by what each could do in time; `has` is there already.
    fn late(&self, need: &Need<'_>, has: BTreeMap<NodeId, u64>) -> Result<Vec<(NodeId, u64)>, NoRoom> {
        let all = need.demand.updates;
        let mut rest = all.saturating_sub(has.values().sum());
        let mut nodes: Vec<_> = self.slots.values().collect();
        nodes.sort_by_key(|slot| (Reverse(slot.free().micro_cores), slot.node.node));
        let room = |slot: &Slot| need.most_at_all(slot.free());
        if !need.demand.class.can_spread() {
            let node = nodes.iter().find(|slot| room(slot) >= all).map(|slot| slot.node.node);
            return node.map(|node| vec![(node, all)]).ok_or(NoRoom { updates: all, room: 0 });
        }
        let in_time = |slot: &Slot| need.most_in_time(slot.free(), slot.capacity).min(room(slot));
        let speeds: Vec<u64> = nodes.iter().map(|slot| in_time(slot)).collect();
        let speed: u128 = speeds.iter().map(|speed| u128::from(*speed)).sum();
        let mut updates = has;
        let to_spread = rest;
        for (slot, mine) in nodes.iter().zip(&speeds).filter(|(_, mine)| **mine > 0) {
            let part = u128::from(to_spread) * u128::from(*mine) / speed;
            let has = updates.entry(slot.node.node).or_default();
            let more = (part as u64).min(room(slot).saturating_sub(*has)).min(rest);
            (*has, rest) = (*has + more, rest - more);
        }
        // What division left over, then, where nobody has time, what fits into memory: on as few nodes as can be.
        for only_helpers in [true, false] {
            for (slot, mine) in nodes.iter().zip(&speeds) {
                if rest == 0 || (only_helpers && *mine == 0) {
                    continue;
                }
                let has = updates.entry(slot.node.node).or_default();
                let more = room(slot).saturating_sub(*has).min(rest);
                (*has, rest) = (*has + more, rest - more);
            }
        }
        if rest > 0 {
            return Err(NoRoom { updates: all, room: all - rest });
        }
        let mut updates: Vec<_> = updates.into_iter().filter(|(_, updates)| *updates > 0).collect();
        updates.sort_by_key(|(node, updates)| (Reverse(*updates), *node));
        Ok(updates)
    }

    /// What has to change of a placement, if anything has.
    fn rechoose(
        &self,
        need: &Need<'_>,
        current: &Placement,
        taken: impl Fn(NodeId) -> u64,
    ) -> Result<Option<Choice>, NoRoom> {
        let all = need.demand.updates;
        let mut kept: Vec<Kept> = Vec::new();
        for share in &current.shares {
            if let Some(slot) = self.slots.get(&share.node) {
                let most = need.most_in_time(slot.free(), slot.capacity);
                kept.push(Kept { node: share.node, has: share.updates, taken: taken(share.node), most });
            }
        }
        let is_lost = kept.len() < current.shares.len();
        if kept.is_empty() {
            return self.choose(need).map(Some);
        }
        let is_well = !is_lost && current.updates() == all && kept.iter().all(|kept| kept.has <= kept.most);
        let can_shrink = need.demand.class.can_spread() && kept.len() > 1;
        let fewer = if can_shrink && is_well { self.shrink(&mut kept, all) } else { false };
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
        let (mut updates, rest) = keep(&kept, all);
        if rest == 0 {
            return Ok(Some(Choice { updates, why, in_time: true }));
        }
        let except = kept.iter().map(|kept| kept.node).collect();
        if need.demand.class.can_spread()
            && let Some(new) = fewest(self.candidates(need, &except), rest)
        {
            updates.extend(new);
            return Ok(Some(Choice { updates, why, in_time: true }));
        }
        if !is_lost && !current.in_time && current.updates() == all {
            // It was late before, and still nothing makes it be in time.
            return Ok(None);
        }
        let order: Vec<NodeId> = kept.iter().map(|kept| kept.node).collect();
        let mut updates = self.late(need, updates.into_iter().collect())?;
        updates.sort_by_key(|(node, _)| order.iter().position(|known| known == node).unwrap_or(usize::MAX));
        Ok(Some(Choice { updates, why: if is_lost { Why::NodeLost } else { Why::Late }, in_time: false }))
    }

    /// Leaves out nodes that have taken nothing, where the others could serve clearly more than the round needs. Returns
    /// whether any was.
    fn shrink(&self, kept: &mut Vec<Kept>, all: u64) -> bool {
        let before = kept.len();
        let wanted = all as f64 / (1.0 - self.config.margin.clamp(0.0, 0.9));
        let mut most: f64 = kept.iter().map(|kept| kept.most as f64).sum();
        let mut place = kept.len();
        while place > 1 {
            place -= 1;
            let without = most - kept[place].most as f64;
            if kept[place].taken == 0 && without >= wanted {
                kept.remove(place);
                most = without;
            }
        }
        kept.len() < before
    }

    /// Holds what was chosen, and says where it is and why.
    fn settle(&mut self, need: &Need<'_>, choice: Choice) -> (Placement, Explanation) {
        let mut shares = Vec::with_capacity(choice.updates.len());
        for (node, updates) in choice.updates {
            let slot = &self.slots[&node];
            let free = slot.free();
            let in_time = need.memory_bytes(updates, slot.capacity.link_bytes_per_s);
            let fits = in_time <= free.memory_bytes;
            let least = if fits { in_time } else { need.least_bytes_late(updates) };
            let memory_bytes = need.granted_bytes(updates, least, free.memory_bytes);
            let share = Share { node, updates, window: need.window(updates, memory_bytes), memory_bytes };
            self.take(need, &share);
            shares.push(share);
        }
        let levels = levels(need.demand, &self.members(&shares), &self.config);
        let placement = Placement { key: need.demand.key, shares, levels, in_time: choice.in_time };
        let explanation = self.explain(need, &placement, choice.why);
        (placement, explanation)
    }

    fn explain(&self, need: &Need<'_>, placement: &Placement, why: Why) -> Explanation {
        let chosen = |share: &Share| {
            let free = self.slots[&share.node].free();
            Chosen {
                node: share.node,
                updates: share.updates,
                residual_cores: free.micro_cores as f64 / MICRO,
                free_bytes: free.memory_bytes,
            }
        };
        let Config { explained, .. } = self.config;
        Explanation {
            key: placement.key,
            why,
            class: need.demand.class,
            updates: placement.updates(),
            rate_per_s: need.rate_per_s,
            cores: need.rate_per_s * need.demand.service_s(),
            memory_bytes: placement.shares.iter().map(|share| share.memory_bytes).sum(),
            looked_at: self.slots.len(),
            taken: placement.shares.len(),
            levels: placement.levels.name(),
            height: placement.levels.height(),
            top: placement.top(),
            nodes: placement.shares.iter().take(explained).map(chosen).collect(),
        }
    }
}

/// A node of a round that is planned again.
struct Kept {
    node: NodeId,
    has: u64,
    taken: u64,
    most: u64,
}

/// What the kept nodes go on with: what each has, as far as it can, and then more of it where they can. Also what is
/// left.
fn keep(kept: &[Kept], all: u64) -> (Vec<(NodeId, u64)>, u64) {
    let must: u64 = kept.iter().map(|kept| kept.taken).sum();
    let mut rest = all.saturating_sub(must);
    let mut updates: Vec<(NodeId, u64)> = kept.iter().map(|kept| (kept.node, kept.taken)).collect();
    for limit in [|kept: &Kept| kept.has.min(kept.most), |kept: &Kept| kept.most] {
        for ((_, updates), kept) in updates.iter_mut().zip(kept) {
            let more = limit(kept).saturating_sub(*updates).min(rest);
            (*updates, rest) = (*updates + more, rest - more);
        }
    }
    updates.retain(|(_, updates)| *updates > 0);
    (updates, rest)
}

/// The fewest candidates that take so many updates together, in one zone if that takes no more of them; the last is the
/// one that fits best. `None`: all together cannot.
fn fewest(mut candidates: Vec<Candidate>, updates: u64) -> Option<Vec<(NodeId, u64)>> {
    candidates.sort_by_key(|candidate| (Reverse(candidate.most), candidate.node));
    let count = enough(candidates.iter(), updates)?;
    let mut zones: BTreeMap<u32, Vec<Candidate>> = BTreeMap::new();
    for candidate in &candidates {
        zones.entry(candidate.zone).or_default().push(*candidate);
    }
    let as_few = |zone: &&Vec<Candidate>| enough(zone.iter(), updates) == Some(count);
    // Of several zones the one with the least left over.
    let left = |zone: &&Vec<Candidate>| zone.iter().map(|candidate| u128::from(candidate.most)).sum::<u128>();
    let from = zones.values().filter(as_few).min_by_key(left).unwrap_or(&candidates);
    let (first, others) = from.split_at(count - 1);
    let mut shares: Vec<(NodeId, u64)> = first.iter().map(|candidate| (candidate.node, candidate.most)).collect();
    let rest = updates - shares.iter().map(|(_, updates)| updates).sum::<u64>();
    let near: BTreeSet<u32> = first.iter().map(|candidate| candidate.zone).collect();
    let last = others
        .iter()
        .filter(|candidate| candidate.most >= rest)
        .min_by_key(|candidate| (!near.contains(&candidate.zone), candidate.most, candidate.node))?;
    shares.push((last.node, rest));
    Some(shares)
}

/// How many of these, from the first, take so many updates together.
fn enough<'a>(candidates: impl Iterator<Item = &'a Candidate>, updates: u64) -> Option<usize> {
    let mut sum = 0u64;
    for (place, candidate) in candidates.enumerate() {
        sum = sum.saturating_add(candidate.most);
        if sum >= updates {
            return Some(place + 1);
        }
    }
    None
}
