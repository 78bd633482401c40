//! The nodes, and what the rounds on them hold.
//!
//! Kept in whole numbers and changed by one round or one node at a time: a round that ends gives back exactly what it
//! took, and placing the next one does not look at those that stay.

use crate::config::Config;
use crate::demand::{Demand, RoundKey};
use crate::levels::{Levels, Member, levels};
use crate::need::Need;
use crate::node::{Amount, MICRO, Node};
use crate::placement::{Placement, Share};
use catchment_types::NodeId;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// What may still be planned on a node.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Free {
    /// Residual capacity: what is planned at most, less Σ arrival rate × service time.
    pub cores: f64,
    /// Bytes a second.
    pub link_bytes_per_s: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub node: Node,
    pub capacity: Amount,
    held: Amount,
}

impl Slot {
    pub fn free(&self) -> Amount {
        self.capacity.less(self.held)
    }
}

/// The nodes, and what the rounds on them hold.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    pub(crate) config: Config,
    pub(crate) slots: BTreeMap<NodeId, Slot>,
    /// The nodes by residual cores, for the best fit.
    pub(crate) by_residual: BTreeSet<(u64, NodeId)>,
    rounds: BTreeMap<RoundKey, Vec<(NodeId, Amount)>>,
}

impl Fleet {
    /// A fleet on which nothing is placed.
    pub fn new(config: Config, nodes: impl IntoIterator<Item = Node>) -> Self {
        let mut fleet = Self { config, ..Self::default() };
        nodes.into_iter().for_each(|node| fleet.join(node));
        fleet
    }

    /// The numbers it plans by.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.slots.values().map(|slot| &slot.node)
    }

    /// Whether the node is in the fleet.
    pub fn contains(&self, node: NodeId) -> bool {
        self.slots.contains_key(&node)
    }

    /// A node joins, or says anew what it has; what rounds hold on it stays.
    pub fn join(&mut self, node: Node) {
        let held = self.slots.get(&node.node).map_or_else(Amount::default, |slot| slot.held);
        self.change(node.node, |slot| *slot = Some(Slot { node, capacity: Amount::default(), held }));
        let config = self.config;
        self.change(node.node, |slot| {
            if let Some(slot) = slot {
                slot.capacity = slot.node.capacity(&config);
            }
        });
    }

    /// A node is gone. Gives the rounds that were on it, which have to be planned again.
    pub fn leave(&mut self, node: NodeId) -> Vec<RoundKey> {
        self.change(node, |slot| *slot = None);
        let mut touched = Vec::new();
        for (key, holds) in &mut self.rounds {
            let before = holds.len();
            holds.retain(|(held_on, _)| *held_on != node);
            if holds.len() < before {
                touched.push(*key);
            }
        }
        touched
    }

    /// The top and the levels for a round that has closed, by the updates that each node has of it: the top is the node
    /// with most of them. None where no node has any, or one of them has left.
    pub fn levels(&self, demand: &Demand, has: &[(NodeId, u64)]) -> Option<(NodeId, Levels)> {
        let mut shares: Vec<Share> = has
            .iter()
            .filter(|(_, updates)| *updates > 0)
            .map(|(node, updates)| Share { node: *node, updates: *updates, window: 0, memory_bytes: 0 })
            .collect();
        shares.sort_by_key(|share| (Reverse(share.updates), share.node));
        let members = self.members(&shares);
        let top = members.first().filter(|_| members.len() == shares.len())?.node;
        Some((top, levels(demand.class, demand.partial_bytes, &members, &self.config)))
    }

    /// What may still be planned on a node.
    pub fn free(&self, node: NodeId) -> Option<Free> {
        self.slots.get(&node).map(|slot| {
            let free = slot.free();
            Free {
                cores: free.micro_cores as f64 / MICRO,
                link_bytes_per_s: free.link_bytes_per_s,
                memory_bytes: free.memory_bytes,
            }
        })
    }

    /// Takes over a placement made before: by another coordinator, or as the log has it.
    pub fn hold(&mut self, placement: &Placement, demand: &Demand) {
        self.release(placement.key);
        let config = self.config;
        let need = Need::new(demand, &config);
        for share in &placement.shares {
            self.take(&need, share);
        }
    }

    /// A round has ended, or is planned anew.
    pub fn release(&mut self, key: RoundKey) {
        for (node, amount) in self.rounds.remove(&key).unwrap_or_default() {
            self.change(node, |slot| {
                if let Some(slot) = slot {
                    slot.held = slot.held.less(amount);
                }
            });
        }
    }

    /// The nodes on which a round holds something. One that left and came back is not among them: it is empty.
    pub(crate) fn held_on(&self, key: RoundKey) -> BTreeSet<NodeId> {
        self.rounds.get(&key).into_iter().flatten().map(|(node, _)| *node).collect()
    }

    /// Notes what a share holds: its cores and link as far as there are any, so that what is late takes no more than all.
    pub(crate) fn take(&mut self, need: &Need<'_>, share: &Share) {
        let Some(slot) = self.slots.get(&share.node) else { return };
        let (free, wanted) = (slot.free(), need.of(share.updates, slot.capacity));
        let amount = Amount {
            micro_cores: wanted.micro_cores.min(free.micro_cores),
            link_bytes_per_s: wanted.link_bytes_per_s.min(free.link_bytes_per_s),
            memory_bytes: share.memory_bytes,
        };
        self.change(share.node, |slot| {
            if let Some(slot) = slot {
                slot.held = slot.held.and(amount);
            }
        });
        self.rounds.entry(need.demand.key).or_default().push((share.node, amount));
    }

    /// The nodes of shares as their place in the levels depends on them.
    pub(crate) fn members(&self, shares: &[Share]) -> Vec<Member> {
        let member = |share: &Share| {
            let slot = self.slots.get(&share.node)?;
            Some(Member {
                node: share.node,
                zone: slot.node.zone,
                updates: share.updates,
                link_bytes_per_s: slot.node.link_bytes_per_s,
                free_bytes: slot.free().memory_bytes,
            })
        };
        shares.iter().filter_map(member).collect()
    }

    /// Changes a slot and its place in the index together.
    fn change(&mut self, node: NodeId, change: impl FnOnce(&mut Option<Slot>)) {
        let mut slot = self.slots.remove(&node);
        if let Some(slot) = &slot {
            self.by_residual.remove(&(slot.free().micro_cores, node));
        }
        change(&mut slot);
        if let Some(slot) = slot {
            self.by_residual.insert((slot.free().micro_cores, node));
            self.slots.insert(node, slot);
        }
    }
}
