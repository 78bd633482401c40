//! One decision as one line, as the coordinator logs it.
#![forbid(unsafe_code)]

use catchment_planner::{Class, Config, Demand, Fleet, Node, RoundKey};
use catchment_types::{JobUid, NodeId};

fn main() {
    let node = |name| Node {
        node: NodeId(name),
        cores: 16.0,
        memory_bytes: 48 << 30,
        link_bytes_per_s: 1.25e9,
        zone: (name % 2) as u32,
    };
    let demand = Demand {
        key: RoundKey { uid: JobUid::from_bytes([7; 16]), round: 3 },
        class: Class::Additive,
        updates: 1300,
        update_bytes: 45_000_000,
        partial_bytes: 90_000_000,
        arrivals_per_s: 50.0,
        service_s: 0.08,
        time_left_s: Some(600.0),
    };
    let (_, why) = Fleet::new(Config::default(), (1..=8).map(node)).place(&demand).expect("there is room");
    println!("{}", serde_json::to_string(&why).expect("plain data"));
}
