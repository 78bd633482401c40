//! How long planning takes: a thousand nodes, a hundred rounds of a thousand updates. CPU time, as the kernel counts it for
//! this thread (Linux, by ticks of some milliseconds), because others may use the same cores.
#![forbid(unsafe_code)]

use catchment_planner::{Class, Config, Demand, Fleet, Node, Placement, RoundKey};
use catchment_types::{JobUid, NodeId};
use std::time::{Duration, Instant};

const NODES: u64 = 1000;
const UPDATES: u64 = 1000;
const RUNS: usize = 15;

fn node(name: u64) -> Node {
    let cores = [8.0, 16.0, 32.0, 64.0][name as usize % 4];
    Node {
        node: NodeId(name),
        cores,
        memory_bytes: (cores as u64) << 32,
        link_bytes_per_s: 1.25e9 * cores / 16.0,
        zone: (name % 8) as u32,
    }
}

/// `per_s`: so slow that one node is enough, or so fast that ten are not.
fn demand(round: u64, per_s: f64) -> Demand {
    let update_bytes = (20 + round % 40) << 20;
    Demand {
        key: RoundKey { uid: JobUid::from_bytes([1; 16]), round },
        class: if round.is_multiple_of(4) { Class::CoordinateWise } else { Class::Additive },
        updates: UPDATES,
        update_bytes,
        partial_bytes: 2 * update_bytes,
        arrivals_per_s: per_s,
        service_s: 0.05,
        time_left_s: Some(600.0),
    }
}

/// The least and the median of several runs.
fn measure(what: &str, mut run: impl FnMut() -> Duration) {
    let mut times: Vec<Duration> = (0..RUNS).map(|_| run()).collect();
    times.sort();
    println!("{what:<58} {:>8.2} ms ({:.2} at the least)", ms(times[RUNS / 2]), ms(times[0]));
}

fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("its first number is in ns"))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn main() {
    for (what, per_s) in [("one node each", 10.0), ("about ten nodes each", 1200.0)] {
        let demands: Vec<Demand> = (1..=100).map(|round| demand(round, per_s)).collect();
        let fleet = || Fleet::new(Config::default(), (1..=NODES).map(node));
        let place = |fleet: &mut Fleet| -> Vec<Placement> {
            demands.iter().map(|demand| fleet.place(demand).expect("there is room").0).collect()
        };
        println!("{NODES} nodes, {} rounds of {UPDATES} updates, {what}", demands.len());
        measure("  a fleet, all rounds placed, all updates sent to nodes", || {
            let start = cpu();
            let mut fleet = fleet();
            let placed = place(&mut fleet);
            let routes = placed.iter().map(Placement::route);
            let sum: u64 = routes.map(|route| (0..UPDATES).map(|order| route.node_for(order).0).sum::<u64>()).sum();
            assert!(sum > 0);
            cpu() - start
        });
        measure("  a node is lost: its rounds planned again (wall)", || {
            let mut fleet = fleet();
            let placed = place(&mut fleet);
            let start = Instant::now();
            let touched = fleet.leave(placed[50].top());
            for (placement, demand) in placed.iter().zip(&demands).filter(|(p, _)| touched.contains(&p.key)) {
                fleet.replan(placement, demand, |_| 0).expect("there is room");
            }
            start.elapsed()
        });
        let nodes: usize = place(&mut fleet()).iter().map(|placement| placement.shares.len()).sum();
        println!("  nodes a round: {:.1}", nodes as f64 / demands.len() as f64);
    }
}
