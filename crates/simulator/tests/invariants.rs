//! Many seeds, every policy, everything that goes wrong: what must hold, holds.
//!
//! `SIMULATION_SEEDS=5000` runs as many seeds from 0; `SIMULATION_SEED=17` runs one.
#![forbid(unsafe_code)]

use catchment_planner::{Class, Config};
use catchment_simulator::{Costs, Failures, Kind, Policy, Report, Scenario, Trace, Workload, simulate};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;

/// Seeds of a plain test run.
const SEEDS: u64 = 150;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// A scenario small enough to be quick, and tight enough to meet its limits.
fn scenario(seed: u64) -> Scenario {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let classes = [Class::Additive, Class::Additive, Class::CoordinateWise, Class::TwoPhase, Class::Whole];
    let traces = [
        Trace::Steady,
        Trace::Diurnal { day_s: 30.0 },
        Trace::Bursty { burst: 10.0 },
        Trace::HeavyTailed { exponent: 1.3 },
        Trace::Recorded(vec![0.0, 0.0, 1.5]),
    ];
    let workloads = (0..rng.random_range(1..=3)).map(|_| Workload {
        jobs: rng.random_range(1..=2),
        rounds: rng.random_range(1..=4),
        goal: rng.random_range(1..=80),
        over_provision: rng.random_range(1.0..1.6),
        class: classes[rng.random_range(0..classes.len())],
        update_bytes: rng.random_range(1..=60) << 20,
        per_s: rng.random_range(1.0..80.0),
        trace: traces[rng.random_range(0..traces.len())].clone(),
        train_s: rng.random_range(0.0..20.0),
        deadline_s: if rng.random_bool(0.3) { rng.random_range(1.0..30.0) } else { 600.0 },
    });
    let workloads = workloads.collect();
    let is_troubled = rng.random_bool(0.6);
    Scenario {
        seed,
        nodes: vec![
            Kind {
                count: rng.random_range(1..=6),
                cores: rng.random_range(1..=16),
                memory_bytes: rng.random_range(4..=16) << 30,
                link_bytes_per_s: rng.random_range(0.05e9..2e9),
            },
            Kind { count: 2, cores: 4, memory_bytes: 8 << 30, link_bytes_per_s: 0.3e9 },
        ],
        zones: rng.random_range(1..=3),
        workloads,
        failures: if is_troubled {
            Failures {
                death_every_s: rng.random_range(5.0..60.0),
                down_s: rng.random_range(1.0..40.0),
                link_every_s: rng.random_range(5.0..60.0),
                link_down_s: rng.random_range(0.1..10.0),
            }
        } else {
            Failures::default()
        },
        costs: Costs { keep_alive_s: rng.random_range(1.0..60.0), ..Costs::default() },
        planner: Config::default(),
    }
}

fn run(seed: u64, policy: &Policy) -> Report {
    let scenario = scenario(seed);
    let report = simulate(&scenario, policy).unwrap_or_else(|violation| {
        panic!("{violation}: SIMULATION_SEED={seed} cargo test --release -p catchment-simulator --test invariants")
    });
    let most = scenario.nodes.iter().map(|kind| kind.memory_bytes).max().unwrap();
    assert!(report.memory_most_bytes <= most, "seed {seed}: {} bytes on one node", report.memory_most_bytes);
    let jobs: u32 = scenario.workloads.iter().map(|load| load.jobs).sum();
    assert_eq!(report.completed, jobs as usize, "seed {seed} under {}: a job did not end well", report.policy);
    let rounds: u64 = scenario.workloads.iter().map(|load| u64::from(load.jobs) * load.rounds).sum();
    assert_eq!(report.rounds, rounds, "seed {seed} under {}", report.policy);
    report
}

#[test]
fn whatever_goes_wrong_every_update_is_in_its_model_once_and_every_round_ends() {
    let policies = Policy::all();
    if let Some(seed) = number("SIMULATION_SEED") {
        policies.iter().for_each(|policy| println!("{:#?}", run(seed, policy)));
        return;
    }
    let mut reached: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..number("SIMULATION_SEEDS").unwrap_or(SEEDS) {
        for policy in &policies {
            let report = run(seed, policy);
            let is_planned = policy.name == "catchment";
            let seen = [
                ("a node died", report.deaths > 0),
                ("updates were lost and sent again", report.lost > 0),
                ("a round was planned again", report.replanned > 0),
                ("a round was late", report.late > 0),
                ("a model crossed the network", is_planned && report.between_nodes_bytes > 0),
                ("a model crossed a zone", is_planned && report.between_zones_bytes > 0),
                ("a tree had a middle", report.levels > 1),
                ("an instance started", report.cold_starts > 0),
            ];
            seen.into_iter().for_each(|(what, seen)| *reached.entry(what).or_default() += u64::from(seen));
        }
    }
    eprintln!("{reached:#?}");
    assert!(reached.values().all(|times| *times > 0), "never seen: {reached:?}");
}

#[test]
fn the_same_seed_is_the_same_output_to_the_byte() {
    for seed in [1, 2, 3, 4, 5, 6] {
        for policy in Policy::all() {
            let text = |report: &Report| serde_json::to_string(report).unwrap();
            assert_eq!(text(&run(seed, &policy)), text(&run(seed, &policy)), "seed {seed}");
        }
    }
    let policy = Policy::catchment();
    assert_ne!(run(1, &policy), run(2, &policy), "another seed is another run");
}
