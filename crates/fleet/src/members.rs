//! Whom we heard, and how long ago. Pure: what it hears and how time passes is told.

use crate::beat::{Beat, NodeBeat};
use catchment_types::NodeId;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Clone)]
struct Known<T> {
    /// What it said last; `None` while it is only known by what it holds.
    said: Option<T>,
    silent: Duration,
}

/// Nodes and coordinators that were heard, or of whom something is known.
#[derive(Debug, Clone)]
pub struct Members {
    nodes: BTreeMap<NodeId, Known<NodeBeat>>,
    coordinators: BTreeMap<u64, Known<()>>,
    quiet_after: Duration,
    lost_after: Duration,
}

impl Members {
    /// Nobody yet. After `quiet_after` of silence a member gets no new work, after `lost_after` it is to be given up.
    pub fn new(quiet_after: Duration, lost_after: Duration) -> Self {
        Self { nodes: BTreeMap::new(), coordinators: BTreeMap::new(), quiet_after, lost_after }
    }

    /// Takes a heartbeat. Returns whether it changes who is there.
    pub fn hear(&mut self, beat: Beat) -> bool {
        let quiet_after = self.quiet_after;
        match beat {
            Beat::Node(beat) => {
                let draining = beat.draining;
                let known = Known { said: Some(beat), silent: Duration::ZERO };
                let before = self.nodes.insert(known.said.as_ref().expect("said just now").node, known);
                let was = before.and_then(|known| known.said.filter(|_| known.silent < quiet_after));
                was.is_none_or(|was| was.draining != draining)
            }
            Beat::Coordinator(beat) => {
                let before = self.coordinators.insert(beat.id, Known { said: Some(()), silent: Duration::ZERO });
                before.is_none_or(|known| known.silent >= quiet_after)
            }
        }
    }

    /// Begins to wait for nodes that are known from elsewhere. Returns whether any was new.
    pub fn expect(&mut self, nodes: impl IntoIterator<Item = NodeId>) -> bool {
        let before = self.nodes.len();
        for node in nodes {
            self.nodes.entry(node).or_insert(Known { said: None, silent: Duration::ZERO });
        }
        self.nodes.len() > before
    }

    /// Lets time pass in which everybody could have been heard. Returns whether somebody fell quiet or is lost by it.
    pub fn pass(&mut self, elapsed: Duration) -> bool {
        let (quiet_after, lost_after) = (self.quiet_after, self.lost_after);
        let mut changed = false;
        let mut grow = |silent: &mut Duration| {
            let before = *silent;
            *silent = silent.saturating_add(elapsed);
            changed |= [quiet_after, lost_after].iter().any(|limit| before < *limit && *silent >= *limit);
        };
        self.nodes.values_mut().for_each(|known| grow(&mut known.silent));
        self.coordinators.values_mut().for_each(|known| grow(&mut known.silent));
        self.coordinators.retain(|_, known| known.silent < lost_after);
        changed
    }

    /// Forgets nodes that are lost, once nothing is expected of them.
    pub fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }

    /// Nodes that were heard lately.
    pub fn live(&self) -> impl Iterator<Item = &NodeBeat> {
        self.nodes.values().filter(|known| known.silent < self.quiet_after).filter_map(|known| known.said.as_ref())
    }

    /// A node that is not lost yet, as it was heard last.
    pub fn node(&self, node: NodeId) -> Option<&NodeBeat> {
        self.nodes.get(&node).filter(|known| known.silent < self.lost_after)?.said.as_ref()
    }

    /// Nodes that have been silent for too long.
    pub fn lost(&self) -> impl Iterator<Item = NodeId> {
        let lost = self.nodes.iter().filter(|(_, known)| known.silent >= self.lost_after);
        lost.map(|(node, _)| *node)
    }

    /// The coordinator that decides: the least of those heard lately. Should two believe it of themselves, the guards of
    /// their decisions keep them apart.
    pub fn leader(&self) -> Option<u64> {
        self.coordinators.iter().find(|(_, known)| known.silent < self.quiet_after).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beat::CoordinatorBeat;

    const S: Duration = Duration::from_secs(1);

    fn node(id: u64) -> Beat {
        let beat = serde_json::json!({ "member": "node", "node": id, "name": "n", "url": "http://h:1", "pass": "p" });
        serde_json::from_value(beat).unwrap()
    }

    fn members() -> Members {
        Members::new(3 * S, 10 * S)
    }

    fn live(members: &Members) -> Vec<u64> {
        members.live().map(|beat| beat.node.0).collect()
    }

    #[test]
    fn who_is_silent_falls_quiet_then_is_lost_and_may_come_back() {
        let mut members = members();
        assert!(members.hear(node(1)) && members.hear(node(2)));
        assert!(!members.hear(node(1)), "nothing new");
        assert!(!members.pass(2 * S));
        members.hear(node(2));
        assert!(members.pass(S), "node 1 falls quiet");
        assert_eq!(live(&members), [2]);
        assert!(members.node(NodeId(1)).is_some(), "quiet is not lost");
        members.pass(S);
        members.hear(node(2));
        assert_eq!(members.lost().count(), 0);
        assert!(members.pass(6 * S));
        assert_eq!(members.lost().collect::<Vec<_>>(), [NodeId(1)]);
        assert!(members.node(NodeId(1)).is_none());
        assert!(members.hear(node(1)), "it is back");
        assert_eq!((members.lost().count(), live(&members).contains(&1)), (0, true));
    }

    #[test]
    fn who_never_said_a_word_is_waited_for_as_long() {
        let mut members = members();
        assert!(members.expect([NodeId(7)]));
        assert!(!members.expect([NodeId(7)]));
        assert_eq!((live(&members).len(), members.lost().count()), (0, 0));
        members.pass(9 * S);
        members.expect([NodeId(7)]);
        members.pass(S);
        assert_eq!(members.lost().collect::<Vec<_>>(), [NodeId(7)]);
    }

    #[test]
    fn the_least_coordinator_alive_decides() {
        let mut members = members();
        let beat = |id| Beat::Coordinator(CoordinatorBeat { id });
        assert_eq!(members.leader(), None);
        members.hear(beat(5));
        members.hear(beat(3));
        assert_eq!(members.leader(), Some(3));
        members.pass(2 * S);
        members.hear(beat(5));
        members.pass(S);
        assert_eq!(members.leader(), Some(5));
        members.hear(beat(3));
        assert_eq!(members.leader(), Some(3));
    }
}
