//! Who is there: nodes and coordinators say so every second, and everybody keeps a list of whom it heard.
//!
//! Nothing here is the truth. That a node counts as lost is a decision of the coordinator, written in the event log;
//! this crate only says who has been silent for how long. So heartbeats need no store: what is not said again is
//! forgotten.
//!
//! Silence is counted in the time in which this process could have heard something, which it knows by hearing itself.
//! While the bus is away nobody grows silent, and when it is back nobody is given up before they could say a word.
#![forbid(unsafe_code)]

mod beat;
mod fleet;
mod members;

pub use beat::{Beat, CoordinatorBeat, NodeBeat, Zones, beat_of, is_address};
pub use fleet::{BEATS, Fleet, Pace, Speak};
pub use members::{Counts, Members};
