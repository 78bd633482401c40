//! Catchment at a scale that no machine here has: the real planner and the real coordinator under a virtual clock.
//!
//! Records are applied to the real [`catchment_ledger::State`], decisions come from the real
//! [`catchment_coordinator::decide`], and rounds are placed by the real [`catchment_planner::Fleet`]. What is modelled is
//! the rest: clients that arrive, links, cores, memory, instances that start, nodes that die. The same seed is the same
//! run, to the byte. Without it, whether placement, reuse and eager folding pay off at a thousand nodes would be a guess.
#![forbid(unsafe_code)]

mod arguments;
mod chart;
mod control;
mod cost;
mod failure;
mod folding;
mod machine;
mod merging;
mod policy;
mod queue;
mod report;
mod rounds;
mod scaling;
mod scenario;
mod trace;
mod uploads;
mod world;

pub use arguments::{Simulate, SimulateError};
pub use chart::svg;
pub use cost::Costs;
pub use policy::{DataPath, Folding, Placing, Policy, Scaling};
pub use report::{Report, Spread, table};
pub use scenario::{Failures, Kind, Scenario, Workload};
pub use trace::{BadTrace, Trace};
pub use world::{Violation, simulate};
