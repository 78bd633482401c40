//! The real decisions and the real state under a virtual clock, with clients, a node and coordinators that misbehave.
//!
//! `SIMULATION_SEEDS=20000` runs as many seeds from 0; `SIMULATION_SEED=17` runs one and prints its log. A failure
//! says which seed it was and prints the end of its log.
#![forbid(unsafe_code)]

mod actors;
mod checks;
mod node;
mod timing;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use world::World;

/// Seeds of a plain test run.
const SEEDS: u64 = 1000;
/// Records printed of a failing run.
const PRINTED: usize = 40;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Runs one seed to its end.
fn run(seed: u64, verbose: bool) -> World {
    let mut world = World::new(seed);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let skip = if verbose { 0 } else { world.log.len().saturating_sub(PRINTED) };
    if verbose || result.is_err() {
        for (sequence, (at_ms, envelope, outcome)) in world.log.iter().enumerate().skip(skip) {
            eprintln!("{:>5} {at_ms:>8} ms  {:?} -> {outcome:?}", sequence + 1, envelope.record);
        }
    }
    if let Err(panic) = result {
        eprintln!("replay: SIMULATION_SEED={seed} cargo test --release -p catchment-coordinator --test simulation");
        resume_unwind(panic);
    }
    world
}

#[test]
fn every_job_ends_well_whatever_happens() {
    if let Some(seed) = number("SIMULATION_SEED") {
        run(seed, true);
        return;
    }
    let mut reached = checks::Reached::default();
    for seed in 0..number("SIMULATION_SEEDS").unwrap_or(SEEDS) {
        reached.add(&run(seed, false).checks.reached);
    }
    eprintln!("{reached:#?}");
    reached.assert_everything_happened();
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3] {
        assert_eq!(run(seed, false).log, run(seed, false).log);
    }
}
