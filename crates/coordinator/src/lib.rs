//! Opens and closes rounds.
//!
//! [`decide`] is a pure function of the state and the time: what should be appended to the log now, and when to look
//! again. [`run`] feeds it. Every decision names the sequence it was taken at, so that two coordinators can never both
//! carry theirs out; without that, a round could open twice.
#![forbid(unsafe_code)]

mod decide;
mod plan;
mod run;

pub use decide::{Decision, Nodes, decide};
pub use run::{planned, run};
