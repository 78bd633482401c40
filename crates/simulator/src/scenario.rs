//! What is simulated.

use crate::cost::Costs;
use crate::trace::Trace;
use catchment_planner::{Class, Config, Node};
use catchment_types::NodeId;
use serde::{Deserialize, Serialize};

/// Nodes of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kind {
    /// How many.
    pub count: u64,
    /// Cores of each.
    pub cores: u32,
    /// Bytes of each for updates and accumulators.
    pub memory_bytes: u64,
    /// Bytes a second of its link.
    pub link_bytes_per_s: f64,
}

/// Jobs of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// How many.
    pub jobs: u32,
    /// Rounds of each.
    pub rounds: u64,
    /// Updates that close a round.
    pub goal: u64,
    /// Clients of a round, as a multiple of the goal.
    pub over_provision: f64,
    /// Class of the function.
    pub class: Class,
    /// Bytes of an update.
    pub update_bytes: u64,
    /// Clients that arrive a second.
    pub per_s: f64,
    /// How.
    pub trace: Trace,
    /// From a round's begin until its first clients have trained.
    pub train_s: f64,
    /// The round's deadline.
    pub deadline_s: f64,
}

/// What goes wrong, each on average once in so many seconds of the whole fleet; 0 for never.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Failures {
    /// A node dies with its memory.
    pub death_every_s: f64,
    /// How long a node is gone.
    pub down_s: f64,
    /// A node's link brings nothing.
    pub link_every_s: f64,
    /// How long.
    pub link_down_s: f64,
}

/// What is simulated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// All randomness follows from it.
    pub seed: u64,
    /// The fleet.
    pub nodes: Vec<Kind>,
    /// Zones over which its nodes are spread in turn.
    pub zones: u32,
    /// The jobs.
    pub workloads: Vec<Workload>,
    /// What goes wrong.
    #[serde(default)]
    pub failures: Failures,
    /// What things cost.
    #[serde(default)]
    pub costs: Costs,
    /// What the planner weighs.
    #[serde(default)]
    pub planner: Config,
}

impl Scenario {
    /// A few jobs of ResNet-18's size (45 MB) on a small cluster.
    pub fn small(seed: u64) -> Self {
        let workload = |jobs, goal, per_s, trace| Workload {
            jobs,
            rounds: 30,
            goal,
            over_provision: 1.1,
            class: Class::Additive,
            update_bytes: 45 << 20,
            per_s,
            trace,
            train_s: 90.0,
            deadline_s: 600.0,
        };
        Self {
            seed,
            nodes: vec![Kind { count: 8, cores: 16, memory_bytes: 48 << 30, link_bytes_per_s: 1.25e9 }],
            zones: 2,
            workloads: vec![
                workload(1, 60, 6.0, Trace::Steady),
                workload(1, 100, 10.0, Trace::Bursty { burst: 20.0 }),
                workload(1, 20, 2.0, Trace::HeavyTailed { exponent: 1.5 }),
            ],
            failures: Failures::default(),
            costs: Costs::default(),
            planner: Config::default(),
        }
    }

    /// So many updates of ResNet-152's size (233 MB) at once, on five nodes with 10 Gbit/s, after LIFL's comparison of
    /// placements.
    pub fn at_once(seed: u64, updates: u64) -> Self {
        let workload = Workload {
            jobs: 1,
            rounds: 10,
            goal: updates,
            over_provision: 1.0,
            class: Class::Additive,
            update_bytes: 233_000_000,
            per_s: updates as f64,
            trace: Trace::Recorded(vec![0.0]),
            train_s: 90.0,
            deadline_s: 600.0,
        };
        let nodes = vec![Kind { count: 5, cores: 40, memory_bytes: 128 << 30, link_bytes_per_s: 1.25e9 }];
        Self { nodes, zones: 1, workloads: vec![workload], ..Self::small(seed) }
    }

    /// A million clients a round on a thousand nodes.
    pub fn large(seed: u64, clients: u64, nodes: u64) -> Self {
        let workload = Workload {
            jobs: 1,
            rounds: 1,
            goal: clients,
            over_provision: 1.0,
            class: Class::Additive,
            update_bytes: 20 << 20,
            per_s: clients as f64 / 60.0,
            trace: Trace::Steady,
            train_s: 5.0,
            deadline_s: 3600.0,
        };
        let kind = |part: u64, cores: u32| Kind {
            count: part,
            cores,
            memory_bytes: u64::from(cores) << 31,
            link_bytes_per_s: 1.25e9 * f64::from(cores) / 16.0,
        };
        Self {
            seed,
            nodes: vec![
                kind(nodes.div_ceil(2), 16),
                kind(nodes / 4, 32),
                kind(nodes - nodes.div_ceil(2) - nodes / 4, 64),
            ],
            zones: 8,
            workloads: vec![workload],
            failures: Failures::default(),
            costs: Costs::default(),
            planner: Config::default(),
        }
    }

    /// The fleet, node 1 first.
    pub(crate) fn fleet(&self) -> Vec<Node> {
        let kinds = self.nodes.iter().flat_map(|kind| (0..kind.count).map(move |_| kind));
        let node = |(place, kind): (u64, &Kind)| Node {
            node: NodeId(place + 1),
            cores: f64::from(kind.cores),
            memory_bytes: kind.memory_bytes,
            link_bytes_per_s: kind.link_bytes_per_s,
            zone: (place % u64::from(self.zones.max(1))) as u32,
        };
        (0..).zip(kinds).map(node).collect()
    }
}
