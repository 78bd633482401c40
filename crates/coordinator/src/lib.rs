//! Opens and closes rounds.
//!
//! [`decide`] is a pure function of the state and the time: what should be appended to the log now, and when to look
//! again. [`run`] feeds it. Every decision names the sequence it was taken at, so that two coordinators can never both
//! carry theirs out; without that, a round could open twice.
//!
//! It says, too, how many nodes are [`Wanted`], and shows what operators ask of it ([`Shown`], [`Metrics`]).
#![forbid(unsafe_code)]

mod decide;
mod http;
mod metrics;
mod plan;
mod run;
mod wanted;

pub use decide::{Decision, Nodes, decide};
pub use http::Shown;
pub use metrics::Metrics;
pub use run::{Coordinator, planned, run};
pub use wanted::{Scale, Wanted};
