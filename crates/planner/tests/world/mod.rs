//! Fleets and rounds to plan with, small enough that they meet their limits.
#![allow(dead_code, reason = "each test uses a part of it")]

use catchment_planner::{Class, Demand, Node, RoundKey};
use catchment_types::{JobUid, NodeId};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

#[derive(Debug, Clone)]
pub struct World {
    pub nodes: Vec<Node>,
    pub demands: Vec<Demand>,
}

pub fn node(name: u64, cores: f64, memory_gib: u64, zone: u32) -> Node {
    Node { node: NodeId(name), cores, memory_bytes: memory_gib << 30, link_bytes_per_s: 1.25e9, zone }
}

pub fn demand(job: u8, class: Class, updates: u64, arrivals_per_s: f64) -> Demand {
    Demand {
        key: RoundKey { uid: JobUid::from_bytes([job; 16]), round: 1 },
        class,
        updates,
        update_bytes: 45 * MIB,
        partial_bytes: 90 * MIB,
        arrivals_per_s,
        service_s: 0.05,
        time_left_s: Some(600.0),
    }
}

fn some_node() -> impl Strategy<Value = Node> {
    (1..64u32, 1..4000u64, 1..200u32, 0..3u32).prop_map(|(cores, memory_mib, link, zone)| Node {
        node: NodeId(0),
        cores: f64::from(cores),
        memory_bytes: memory_mib * MIB,
        link_bytes_per_s: f64::from(link) * 1e7,
        zone,
    })
}

fn some_demand() -> impl Strategy<Value = Demand> {
    let class = prop_oneof![
        3 => Just(Class::Additive),
        2 => Just(Class::CoordinateWise),
        1 => Just(Class::TwoPhase),
        1 => Just(Class::Whole),
    ];
    let arrivals = prop_oneof![Just(0.0), 0.1..10.0f64, 10.0..3000.0f64];
    let sizes = (1..2000u64, 1..60u64, 1..3u64);
    (class, sizes, arrivals, 0.001..0.3f64, proptest::option::of(1.0..600.0f64)).prop_map(
        |(class, (updates, update_mib, factor), arrivals_per_s, service_s, time_left_s)| Demand {
            key: RoundKey { uid: JobUid::from_bytes([0; 16]), round: 1 },
            class,
            updates: if class.keeps_updates() { updates.div_ceil(20) } else { updates },
            update_bytes: update_mib * MIB,
            partial_bytes: factor * update_mib * MIB,
            arrivals_per_s,
            service_s,
            time_left_s,
        },
    )
}

pub fn world() -> impl Strategy<Value = World> {
    let nodes = prop::collection::vec(some_node(), 1..24);
    (nodes, prop::collection::vec(some_demand(), 1..8)).prop_map(|(mut nodes, mut demands)| {
        nodes.iter_mut().zip(1..).for_each(|(node, name)| node.node = NodeId(name));
        demands.iter_mut().zip(1..).for_each(|(demand, job)| demand.key.uid = JobUid::from_bytes([job; 16]));
        World { nodes, demands }
    })
}
