//! Which nodes a round goes to.
//!
//! Locality first: a hop inside a node is a descriptor and between nodes it is the whole model, so a round goes to one
//! node where one can serve it in time, and otherwise to as few as can. Among nodes that do, best fit by residual capacity
//! (as LIFL does: RC = capacity − arrival rate × service time, and the least that is enough), which leaves large gaps
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
pub(crate) struct Choice {
    pub updates: Vec<(NodeId, u64)>,
    pub why: Why,
    pub in_time: bool,
}

/// A node that can take a part of a round.
#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    node: NodeId,
    zone: u32,
    most: u64,
    link_bytes_per_s: f64,
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

    /// Takes over where a round is, as the log has it: updates of it for each node. `None`: no node of it is left.
    pub fn adopt(&mut self, demand: &Demand, updates: &[(NodeId, u64)]) -> Option<Placement> {
        self.release(demand.key);
        let updates: Vec<_> = updates.iter().copied().filter(|(node, _)| self.slots.contains_key(node)).collect();
        if updates.is_empty() {
            return None;
        }
        let config = self.config;
        let need = Need::new(demand, &config);
        Some(self.settle(&need, Choice { updates, why: Why::Unchanged, in_time: true }).0)
    }

    /// The nodes for a round that is nowhere yet.
    pub(crate) fn choose(&self, need: &Need<'_>) -> Result<Choice, NoRoom> {
        let all = need.demand.updates;
        if let Some(node) = self.best_fit(need) {
            return Ok(Choice { updates: vec![(node, all)], why: Why::FitsOneNode, in_time: true });
        }
        if need.demand.class.can_spread()
            && let candidates = self.candidates(need, &BTreeSet::new())
            && let Some(updates) = fewest(&candidates, all)
            && updates.len() <= soonest(need, &candidates)
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

    /// The nodes that can take a part in time, those that can take most first.
    pub(crate) fn candidates(&self, need: &Need<'_>, except: &BTreeSet<NodeId>) -> Vec<Candidate> {
        let candidate = |slot: &Slot| Candidate {
            node: slot.node.node,
            zone: slot.node.zone,
            most: need.most_in_time(slot.free(), slot.capacity),
            link_bytes_per_s: slot.node.link_bytes_per_s,
        };
        let others = self.slots.values().filter(|slot| !except.contains(&slot.node.node));
        let mut candidates: Vec<_> = others.map(candidate).filter(|candidate| candidate.most > 0).collect();
        candidates.sort_unstable_by_key(|candidate| (Reverse(candidate.most), candidate.node));
        candidates
    }

    /// Spreads what cannot be in time over the nodes that help, by what each could do in time; `has` is there already.
    pub(crate) fn late(&self, need: &Need<'_>, has: BTreeMap<NodeId, u64>) -> Result<Vec<(NodeId, u64)>, NoRoom> {
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
        let mut helpers: Vec<(&Slot, u64)> = nodes.iter().map(|slot| (*slot, in_time(slot))).collect();
        helpers.retain(|(_, speed)| *speed > 0);
        helpers.sort_by_key(|(slot, speed)| (Reverse(*speed), slot.node.node));
        helpers.truncate(need.soonest(helpers.iter().map(|(slot, speed)| (*speed, slot.node.link_bytes_per_s))));
        let speed: u128 = helpers.iter().map(|(_, speed)| u128::from(*speed)).sum();
        let mut updates = has;
        let mut give = |slot: &Slot, most: u64, rest: &mut u64| {
            let has = updates.entry(slot.node.node).or_default();
            let more = room(slot).saturating_sub(*has).min(most).min(*rest);
            (*has, *rest) = (*has + more, *rest - more);
        };
        let to_spread = rest;
        for (slot, mine) in &helpers {
            give(slot, (u128::from(to_spread) * u128::from(*mine) / speed) as u64, &mut rest);
        }
        // What division left over, then, where nobody has time, what fits into memory: on as few nodes as can be.
        let helping = helpers.iter().map(|(slot, _)| *slot);
        for slot in helping.chain(nodes.iter().copied()) {
            if rest > 0 {
                give(slot, u64::MAX, &mut rest);
            }
        }
        if rest > 0 {
            return Err(NoRoom { updates: all, room: all - rest });
        }
        let mut updates: Vec<_> = updates.into_iter().filter(|(_, updates)| *updates > 0).collect();
        updates.sort_by_key(|(node, updates)| (Reverse(*updates), *node));
        Ok(updates)
    }

    /// Holds what was chosen, and says where it is and why.
    pub(crate) fn settle(&mut self, need: &Need<'_>, choice: Choice) -> (Placement, Explanation) {
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
        let levels = levels(need.demand.class, need.demand.partial_bytes, &self.members(&shares), &self.config);
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

/// The fewest candidates that take so many updates together, in one zone if that takes no more of them; the last is the
/// one that fits best. `None`: all together cannot.
pub(crate) fn fewest(candidates: &[Candidate], updates: u64) -> Option<Vec<(NodeId, u64)>> {
    let count = enough(candidates.iter(), updates)?;
    let mut zones: BTreeMap<u32, Zone> = BTreeMap::new();
    for candidate in candidates {
        let zone = zones.entry(candidate.zone).or_default();
        if zone.reaches < updates {
            (zone.reaches, zone.count) = (zone.reaches.saturating_add(candidate.most), zone.count + 1);
        }
        zone.all += u128::from(candidate.most);
    }
    // Of several zones the one with the least left over.
    let as_few = zones.iter().filter(|(_, zone)| zone.reaches >= updates && zone.count == count);
    let zone = as_few.min_by_key(|(_, zone)| zone.all).map(|(zone, _)| *zone);
    let within: Vec<Candidate>;
    let from = match zone {
        None => candidates,
        Some(zone) => {
            within = candidates.iter().filter(|candidate| candidate.zone == zone).copied().collect();
            &within
        }
    };
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

/// What the candidates of a zone can take.
#[derive(Default)]
struct Zone {
    /// By the first `count` of them, which are enough or all.
    reaches: u64,
    count: usize,
    all: u128,
}

/// The number of candidates on which a round's model is made soonest; more would fold faster and merge longer.
pub(crate) fn soonest(need: &Need<'_>, candidates: &[Candidate]) -> usize {
    need.soonest(candidates.iter().map(|candidate| (candidate.most, candidate.link_bytes_per_s)))
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
