//! How long planning takes: a thousand nodes, a hundred rounds of a thousand updates. CPU time of
//! this thread, because others may use the same cores.

use crate::observe::Series;
use anyhow::Result;
use catchment_planner::{Class, Config, Demand, Fleet, Node, Placement, RoundKey};
use catchment_types::{JobUid, NodeId};
use std::fmt::Write;
use std::time::Instant;

/// What to measure.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Arguments {
    /// How often.
    #[arg(long, default_value_t = 15)]
    pub runs: usize,
}

const NODES: u64 = 1000;
const ROUNDS: u64 = 100;
const UPDATES: u64 = 1000;

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

/// CPU seconds of this thread.
fn cpu_s() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Measures and makes a Markdown table.
pub fn run(arguments: &Arguments) -> Result<String> {
    let runs = arguments.runs;
    let mut table = format!(
        "Planning, {NODES} nodes, {ROUNDS} rounds of {UPDATES} updates, ms, medians (least–most) of {runs} runs\n\n\
         | | nodes a round | a fleet, all rounds placed, all updates sent to nodes (CPU) | a node is lost: its rounds \
         planned again (wall) |\n|---|---|---|---|\n"
    );
    for (what, per_s) in [("slow arrivals", 10.0), ("fast arrivals", 1200.0)] {
        let demands: Vec<Demand> = (1..=ROUNDS).map(|round| demand(round, per_s)).collect();
        let (mut planned, mut again, mut nodes) = (Series::default(), Series::default(), 0);
        for _ in 0..runs {
            let begun = cpu_s();
            let mut fleet = Fleet::new(Config::default(), (1..=NODES).map(node));
            let placed = demands.iter().map(|demand| fleet.place(demand).map(|(placement, _)| placement));
            let placed: Vec<Placement> = placed.collect::<Result<_, _>>()?;
            let routes = placed.iter().map(Placement::route);
            let sum: u64 = routes.map(|route| (0..UPDATES).map(|order| route.node_for(order).0).sum::<u64>()).sum();
            assert!(sum > 0, "every update has a node");
            planned.push(cpu_s() - begun);

            let begun = Instant::now();
            let touched = fleet.leave(placed[placed.len() / 2].top());
            for (placement, demand) in placed.iter().zip(&demands).filter(|(p, _)| touched.contains(&p.key)) {
                fleet.replan(placement, demand, |_| 0)?;
            }
            again.push(begun.elapsed().as_secs_f64());
            nodes = placed.iter().map(|placement| placement.shares.len()).sum();
        }
        let ms = |series: &Series| series.map(|s| s * 1e3).show(2);
        writeln!(table, "| {what} | {:.1} | {} | {} |", nodes as f64 / ROUNDS as f64, ms(&planned), ms(&again))?;
    }
    Ok(table)
}
