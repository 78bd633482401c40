//! Whom we heard, and how long ago. Pure: what it hears and how time passes is told.

use crate::beat::{Beat, CoordinatorBeat, NodeBeat};
use catchment_types::NodeId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// After this many times the silence after which it is lost, a node is nobody's any more.
const FORGET: u32 = 10;

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
    coordinators: BTreeMap<u64, Known<CoordinatorBeat>>,
    quiet_after: Duration,
    lost_after: Duration,
    /// For how long others could have been heard.
    heard: Duration,
    /// What [`Members::live`] gives, until something changes it.
    live: Option<Arc<[NodeBeat]>>,
}

/// Nodes by what is known of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Heard lately, and taking work.
    pub live: usize,
    /// Heard lately, and about to end.
    pub draining: usize,
    /// Silent for a while, or not heard yet, and not given up.
    pub quiet: usize,
    /// Silent for too long, while something is still expected of them.
    pub lost: usize,
}

impl Members {
    /// Nobody yet. After `quiet_after` of silence a member gets no new work, after `lost_after` it is to be given up.
    pub fn new(quiet_after: Duration, lost_after: Duration) -> Self {
        let (nodes, coordinators) = (BTreeMap::new(), BTreeMap::new());
        Self { nodes, coordinators, quiet_after, lost_after, heard: Duration::ZERO, live: None }
    }

    /// Takes a heartbeat. Returns whether it changes who is there.
    pub fn hear(&mut self, beat: Beat) -> bool {
        let quiet_after = self.quiet_after;
        match beat {
            Beat::Node(beat) => {
                let known = self.nodes.entry(beat.node).or_insert(Known { said: None, silent: Duration::ZERO });
                let was = known.said.take().filter(|_| known.silent < quiet_after);
                if was.as_ref() != Some(&beat) {
                    self.live = None;
                }
                let draining = beat.draining;
                *known = Known { said: Some(beat), silent: Duration::ZERO };
                was.is_none_or(|was| was.draining != draining)
            }
            Beat::Coordinator(beat) => {
                let id = beat.id;
                let before = self.coordinators.insert(id, Known { said: Some(beat), silent: Duration::ZERO });
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
        let was_settled = self.heard >= quiet_after;
        self.heard = self.heard.saturating_add(elapsed);
        // From then on the level of all is known.
        let settles = !was_settled && self.heard >= quiet_after;
        let mut changed = false;
        let mut grow = |silent: &mut Duration| {
            let before = *silent;
            *silent = silent.saturating_add(elapsed);
            changed |= [quiet_after, lost_after].iter().any(|limit| before < *limit && *silent >= *limit);
        };
        self.nodes.values_mut().for_each(|known| grow(&mut known.silent));
        self.coordinators.values_mut().for_each(|known| grow(&mut known.silent));
        self.coordinators.retain(|_, known| known.silent < lost_after);
        // Whoever decides forgets the lost as soon as nothing is expected of them; all others do so here.
        self.nodes.retain(|_, known| known.silent < lost_after.saturating_mul(FORGET));
        if changed {
            self.live = None;
        }
        changed || settles
    }

    /// Forgets nodes that are lost, once nothing is expected of them.
    pub fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
        self.live = None;
    }

    /// Nodes that were heard lately, by name. The same list is handed out until somebody says something new, falls quiet
    /// or comes back: it is asked for much more often than that.
    pub fn live(&mut self) -> Arc<[NodeBeat]> {
        let (nodes, quiet_after) = (&self.nodes, self.quiet_after);
        let heard = || nodes.values().filter(|known| known.silent < quiet_after).filter_map(|known| known.said.clone());
        self.live.get_or_insert_with(|| heard().collect()).clone()
    }

    /// How many nodes there are of each kind.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for known in self.nodes.values() {
            let draining = known.said.as_ref().map(|beat| beat.draining);
            let count = match draining {
                _ if known.silent >= self.lost_after => &mut counts.lost,
                Some(false) if known.silent < self.quiet_after => &mut counts.live,
                Some(true) if known.silent < self.quiet_after => &mut counts.draining,
                _ => &mut counts.quiet,
            };
            *count += 1;
        }
        counts
    }

    /// The feature level that every member reads. `None` while there may be one who was not heard yet.
    pub fn level(&self) -> Option<u32> {
        if self.heard < self.quiet_after {
            return None;
        }
        // One that is silent may only be cut off for a while; one that is lost begins anew in any case.
        let nodes = self.nodes.values().filter(|known| known.silent < self.lost_after);
        let nodes = nodes.map(|known| known.said.as_ref().map(|beat| beat.level));
        let coordinators = self.coordinators.values().map(|known| known.said.as_ref().map(|beat| beat.level));
        nodes.chain(coordinators).collect::<Option<Vec<u32>>>()?.into_iter().min()
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
    pub fn leader(&self) -> Option<&CoordinatorBeat> {
        self.coordinators.values().find(|known| known.silent < self.quiet_after)?.said.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beat::CoordinatorBeat;

    const S: Duration = Duration::from_secs(1);

    fn node(id: u64) -> Beat {
        let beat =
            serde_json::json!({ "member": "node", "node": NodeId(id), "name": "n", "url": "http://h:1", "pass": "p" });
        serde_json::from_value(beat).unwrap()
    }

    fn members() -> Members {
        Members::new(3 * S, 10 * S)
    }

    fn live(members: &mut Members) -> Vec<u64> {
        members.live().iter().map(|beat| beat.node.0).collect()
    }

    #[test]
    fn who_is_silent_falls_quiet_then_is_lost_and_may_come_back() {
        let mut members = members();
        assert!(members.hear(node(1)) && members.hear(node(2)));
        assert!(!members.hear(node(1)), "nothing new");
        assert!(!members.pass(2 * S));
        members.hear(node(2));
        assert!(members.pass(S), "node 1 falls quiet");
        assert_eq!(live(&mut members), [2]);
        assert!(members.node(NodeId(1)).is_some(), "quiet is not lost");
        members.pass(S);
        members.hear(node(2));
        assert_eq!(members.lost().count(), 0);
        assert!(members.pass(6 * S));
        assert_eq!(members.lost().collect::<Vec<_>>(), [NodeId(1)]);
        assert!(members.node(NodeId(1)).is_none());
        assert!(members.hear(node(1)), "it is back");
        assert_eq!((members.lost().count(), live(&mut members).contains(&1)), (0, true));
    }

    #[test]
    fn who_never_said_a_word_is_waited_for_as_long() {
        let mut members = members();
        assert!(members.expect([NodeId(7)]));
        assert!(!members.expect([NodeId(7)]));
        assert_eq!((live(&mut members).len(), members.lost().count()), (0, 0));
        members.pass(9 * S);
        members.expect([NodeId(7)]);
        members.pass(S);
        assert_eq!(members.lost().collect::<Vec<_>>(), [NodeId(7)]);
    }

    /// A cluster that is scaled up and down for a year has thousands of nodes that never come back.
    #[test]
    fn who_is_lost_for_long_is_forgotten() {
        let mut members = members();
        members.hear(node(1));
        members.expect([NodeId(2)]);
        members.pass(99 * S);
        assert_eq!((members.lost().count(), members.counts().lost), (2, 2));
        members.pass(S);
        assert_eq!((members.nodes.len(), members.counts()), (0, Counts::default()));
        assert!(members.hear(node(1)), "it may come back");
    }

    #[test]
    fn the_least_coordinator_alive_decides() {
        let mut members = members();
        let beat = |id| Beat::Coordinator(CoordinatorBeat { id, wanted: Some(id), level: 2 });
        let leader = |members: &Members| members.leader().map(|beat| beat.id);
        assert_eq!(leader(&members), None);
        members.hear(beat(5));
        members.hear(beat(3));
        assert_eq!(leader(&members), Some(3));
        members.pass(2 * S);
        members.hear(beat(5));
        members.pass(S);
        assert_eq!(leader(&members), Some(5));
        members.hear(beat(3));
        assert_eq!(leader(&members), Some(3));
    }

    #[test]
    fn the_list_of_who_is_live_is_made_anew_only_when_it_changes() {
        let mut members = members();
        members.hear(node(1));
        members.hear(node(2));
        let first = members.live();
        members.pass(S);
        members.hear(node(1));
        assert!(Arc::ptr_eq(&first, &members.live()), "nobody said anything new");
        let Beat::Node(mut busy) = node(1) else { unreachable!() };
        busy.memory_free_bytes = 7;
        assert!(!members.hear(Beat::Node(busy)), "who is there did not change");
        assert_eq!(members.live()[0].memory_free_bytes, 7);
        members.pass(2 * S);
        assert_eq!(live(&mut members), [1], "2 has fallen quiet");
        members.hear(node(2));
        assert_eq!(live(&mut members), [1, 2], "and said the same as before");
    }

    #[test]
    fn the_level_is_the_least_of_all_who_may_be_there() {
        let at = |beat: Beat, level: u32| match beat {
            Beat::Node(beat) => Beat::Node(NodeBeat { level, ..beat }),
            Beat::Coordinator(beat) => Beat::Coordinator(CoordinatorBeat { level, ..beat }),
        };
        let mut members = members();
        members.hear(at(node(1), 3));
        assert_eq!(members.level(), None, "others had no time to be heard");
        members.pass(3 * S);
        members.hear(at(node(1), 3));
        assert_eq!(members.level(), Some(3));
        members.hear(Beat::Coordinator(CoordinatorBeat { id: 1, wanted: None, level: 2 }));
        assert_eq!(members.level(), Some(2));
        members.hear(at(node(2), 1));
        members.expect([NodeId(9)]);
        assert_eq!(members.level(), None, "9 holds something and has said nothing");
        for _ in 0..9 {
            members.pass(S);
            members.hear(at(node(1), 3));
            members.hear(Beat::Coordinator(CoordinatorBeat { id: 1, wanted: None, level: 3 }));
        }
        assert_eq!(members.level(), None);
        members.pass(S);
        assert_eq!(members.level(), Some(3), "2 and 9 are lost");
        let said = |text: &str| match serde_json::from_str::<Beat>(text).unwrap() {
            Beat::Node(beat) => beat.level,
            Beat::Coordinator(beat) => beat.level,
        };
        assert_eq!(said(r#"{"member":"coordinator","id":4}"#), 1, "the first release says nothing");
        assert_eq!(said(r#"{"member":"node","node":"0000000000000001","name":"","url":"","pass":""}"#), 1);
    }

    #[test]
    fn nodes_are_counted_by_what_is_known_of_them() {
        let mut members = members();
        let Beat::Node(mut draining) = node(3) else { unreachable!() };
        draining.draining = true;
        members.hear(node(1));
        members.hear(node(4));
        members.pass(9 * S);
        members.hear(node(2));
        members.hear(Beat::Node(draining));
        members.hear(node(4));
        members.expect([NodeId(5)]);
        members.pass(S);
        assert_eq!(members.counts(), Counts { live: 2, draining: 1, quiet: 1, lost: 1 });
        members.pass(2 * S);
        assert_eq!(members.counts(), Counts { live: 0, draining: 0, quiet: 4, lost: 1 });
    }
}
