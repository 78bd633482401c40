//! How many nodes the open rounds want. Nobody here starts or ends one: the number is shown, and whoever runs the cluster
//! acts on it.

use crate::decide::Nodes;
use crate::plan::{demand, service_s_per_byte};
use catchment_ledger::{Job, State};
use catchment_planner::{Config, Demand, Node, Settle, nodes_wanted};
use catchment_types::{JobState, JobUid, TimeMs};
use std::collections::BTreeMap;
use std::time::Duration;

/// How patiently the number goes down. It goes up at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// How long fewer nodes must have been enough.
    pub settle: Duration,
    /// How long none must have been wanted before the last is given up.
    pub idle: Duration,
}

impl Default for Scale {
    /// A minute, and five.
    fn default() -> Self {
        let Config { settle_ms, idle_ms, .. } = Config::default();
        Self { settle: Duration::from_millis(settle_ms), idle: Duration::from_millis(idle_ms) }
    }
}

/// Counts nodes. It is told of everything that happens and of the time, and has no clock.
///
/// A round counts with all that it needed when it opened, until it is over: a number that followed each of its updates
/// would only make nodes come and go, and its deadline coming nearer says nothing about how much is to do. A round that is
/// open wants a node although nobody has come yet, because gateways are in nodes.
#[derive(Debug)]
pub struct Wanted {
    config: Config,
    /// By job, with the revision that they were worked out at: looking at a round's arrivals takes a while.
    demands: BTreeMap<JobUid, (u64, Demand)>,
    /// The least of each thing that nodes had when any was there.
    kind: Option<Node>,
    since_ms: Option<TimeMs>,
    settle: Settle,
}

impl Wanted {
    /// Nothing is known yet.
    pub fn new(scale: Scale) -> Self {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let config = Config { settle_ms: ms(scale.settle), idle_ms: ms(scale.idle), ..Config::default() };
        Self { config, demands: BTreeMap::new(), kind: None, since_ms: None, settle: Settle::default() }
    }

    /// The nodes wanted now. `None` for as long as no node has been heard since the start that rounds could be measured
    /// by; when that takes too long there is none, and one is wanted.
    pub fn step(&mut self, state: &State, nodes: &Nodes, now_ms: TimeMs) -> Option<u64> {
        self.kind = least(&nodes.live).or(self.kind);
        self.look(state, nodes);
        let waits_until_ms = self.since_ms.get_or_insert(now_ms).saturating_add(self.config.settle_ms);
        let wanted = match self.kind {
            _ if self.demands.is_empty() => 0,
            Some(kind) => nodes_wanted(self.demands.values().map(|(_, demand)| demand), &kind, &self.config).max(1),
            None if now_ms < waits_until_ms => return None,
            None => 1,
        };
        Some(self.settle.step(wanted, now_ms, &self.config))
    }

    /// When to ask again if nothing else happens.
    pub fn look_again_ms(&self) -> Option<TimeMs> {
        let waits = self.kind.is_none() && !self.demands.is_empty();
        let heard = self.since_ms.filter(|_| waits).map(|since| since.saturating_add(self.config.settle_ms));
        heard.into_iter().chain(self.settle.look_again_ms(&self.config)).min()
    }

    /// Takes note of rounds that opened, and of those that are over.
    fn look(&mut self, state: &State, nodes: &Nodes) {
        self.demands.retain(|uid, _| state.job(*uid).is_some_and(has_work));
        for job in state.jobs().filter(|job| has_work(job)) {
            let known = self.demands.get(&job.uid).is_some_and(|(revision, _)| *revision == job.revision);
            if !known {
                let wants = demand(job, job.round_number(), None, service_s_per_byte(nodes));
                self.demands.insert(job.uid, (job.revision, wants));
            }
        }
    }
}

/// Whether nodes hold something of the job, or clients may bring it.
fn has_work(job: &Job) -> bool {
    job.active_round().is_some_and(|round| job.state == JobState::Running || round.received() > 0)
}

/// A node that every one of these is at least.
fn least(nodes: &[Node]) -> Option<Node> {
    nodes.iter().copied().reduce(|one, other| Node {
        cores: one.cores.min(other.cores),
        memory_bytes: one.memory_bytes.min(other.memory_bytes),
        link_bytes_per_s: one.link_bytes_per_s.min(other.link_bytes_per_s),
        ..one
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use catchment_types::{Digest, Footprint, JobAction, ModelCommit, NodeId, Record};

    const MIB: u64 = 1 << 20;
    const SCALE: Scale = Scale { settle: Duration::from_secs(60), idle: Duration::from_secs(300) };

    fn uid(job: u8) -> JobUid {
        JobUid::from_bytes([job; 16])
    }

    fn apply(state: &mut State, record: Record) {
        state.apply(state.sequence() + 1, &record);
    }

    /// Adds a job whose first round, of sixteen updates of 512 MiB, is open.
    fn open(state: &mut State, job: u8) {
        let spec = format!(r#"{{"name":"job-{job}","function":"median","goal":16,"over_provision":1.0}}"#);
        apply(state, Record::JobCreated { uid: uid(job), spec, at_ms: 0 });
        let model = ModelCommit::initial(Digest::from_bytes([7; 32]), 64, NodeId(1));
        let needs = Footprint { update_bytes: 512 * MIB, partial_bytes: 1024 * MIB, ..Footprint::default() };
        apply(state, Record::ModelPut { uid: uid(job), model, needs, at_ms: 0 });
        let opened = Record::RoundOpened { uid: uid(job), round: 1, deadline_ms: None, places: Vec::new(), at_ms: 0 };
        apply(state, opened);
        assert!(state.job(uid(job)).unwrap().active_round().is_some());
    }

    fn stop(state: &mut State, job: u8) {
        apply(state, Record::JobActed { uid: uid(job), action: JobAction::Stop, at_ms: 0 });
    }

    fn nodes(memory_bytes: u64) -> Nodes {
        let node = Node { node: NodeId(1), cores: 4.0, memory_bytes, link_bytes_per_s: 1e9, zone: 0 };
        Nodes { live: vec![node], ..Nodes::default() }
    }

    #[test]
    fn the_number_rises_with_open_rounds_and_falls_to_zero_without_any() {
        let (mut state, mut wanted, there) = (State::default(), Wanted::new(SCALE), nodes(8192 * MIB));
        assert_eq!(wanted.step(&state, &there, 0), Some(0));
        open(&mut state, 1);
        let one = wanted.step(&state, &there, 1_000).unwrap();
        assert!(one >= 1, "{one}");
        (2..=8).for_each(|job| open(&mut state, job));
        let many = wanted.step(&state, &there, 2_000).unwrap();
        assert!(many >= 3, "eight rounds that keep memory: {many}");
        (2..=8).for_each(|job| stop(&mut state, job));
        assert_eq!(wanted.step(&state, &there, 3_000), Some(many), "not at once");
        assert_eq!(wanted.look_again_ms(), Some(63_001));
        assert_eq!(wanted.step(&state, &there, 63_001), Some(one));
        stop(&mut state, 1);
        assert_eq!(wanted.step(&state, &there, 64_000), Some(one));
        assert_eq!(wanted.step(&state, &there, 200_000), Some(1), "the last one stays for longer");
        assert_eq!(wanted.look_again_ms(), Some(364_000));
        assert_eq!(wanted.step(&state, &there, 364_000), Some(0));
        assert_eq!(wanted.look_again_ms(), None);
    }

    #[test]
    fn a_pause_wants_nothing_but_what_was_accepted_before_it() {
        let (mut state, there) = (State::default(), nodes(8192 * MIB));
        open(&mut state, 1);
        apply(&mut state, Record::JobActed { uid: uid(1), action: JobAction::Pause, at_ms: 0 });
        assert_eq!(Wanted::new(SCALE).step(&state, &there, 0), Some(0));
    }

    #[test]
    fn nothing_is_said_before_a_node_was_heard() {
        let (mut state, mut wanted) = (State::default(), Wanted::new(SCALE));
        open(&mut state, 1);
        assert_eq!(wanted.step(&state, &Nodes::default(), 0), None);
        assert_eq!(wanted.look_again_ms(), Some(60_000));
        assert_eq!(wanted.step(&state, &Nodes::default(), 60_000), Some(1), "there is none to be heard");
        let small = wanted.step(&state, &nodes(2048 * MIB), 61_000);
        assert!(small > Some(1), "{small:?}");
        // What nodes are like is remembered.
        assert_eq!(wanted.step(&state, &Nodes::default(), 62_000), small);
    }
}
