//! A job's truth: the fold over its event log, and the one writer that appends to it.
//!
//! [`State`] is pure: records in, state out, the same on every process and in every replay. [`Ledger`] appends
//! records to the bus's log in groups and applies them in log order, so "accepted before the round closed" has one
//! answer for everybody. Receipts, rounds and recovery are look-ups in it; without it each would need a store of its
//! own and they would disagree after a crash.
#![forbid(unsafe_code)]

mod append;
mod audit;
mod change;
mod deadlines;
mod driver;
mod envelope;
mod evaluation;
mod flight;
mod given_up;
mod hashes;
mod job;
mod keeper;
mod ledger;
mod mean;
mod models;
mod names;
pub mod offline;
mod outcome;
mod round;
mod snapshot;
mod state;
mod term;
mod time;
mod writers;

pub use deadlines::{Deadlines, Moment};
pub use envelope::{Decided, Envelope, Guard, Stocked, is_newest_form};
pub use evaluation::{Evaluation, MEASURED_MAX};
pub use job::Job;
pub use ledger::{Ledger, LedgerError};
pub use models::{LISTED_MAX, Model, Models};
pub use outcome::{AcceptOutcome, EvaluateOutcome, Outcome};
pub use round::{Phase, Round, Share, Update};
pub use snapshot::{SNAPSHOT_VERSION, SnapshotPace};
pub use state::State;
