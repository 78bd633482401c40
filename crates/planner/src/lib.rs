//! Where a round is aggregated, in which shape, and with how much: pure decisions.
//!
//! Everything here is a function of what it is given. There is no clock, no randomness and no I/O, so the coordinator and
//! the simulator get the same answer, two coordinators agree, and a decision can be worked out again from its log line.
//!
//! [`Fleet`] knows what each node has and what the rounds on it hold, and places rounds ([`Fleet::place`],
//! [`Fleet::replan`]): locality first, best fit by residual capacity. [`instances`] says how many instances a node
//! needs, [`Reuse`] which warm ones become them, [`nodes_wanted`] and [`Settle`] how many nodes the fleet needs.
#![forbid(unsafe_code)]

mod config;
mod demand;
mod ewma;
mod explain;
mod fleet;
mod instances;
mod levels;
mod need;
mod node;
mod place;
mod placement;
mod replan;
mod reuse;
mod scale;

pub use config::Config;
pub use demand::{Class, Demand, RoundKey, UnknownClass};
pub use ewma::{Arrivals, Ewma};
pub use explain::{Chosen, Explanation, Why};
pub use fleet::{Fleet, Free};
pub use instances::{FOLD_S_PER_BYTE, InstancesDemand, instances};
pub use levels::{Levels, Member, Merge, Slice, levels};
pub use node::Node;
pub use place::NoRoom;
pub use placement::{Placement, Route, Share};
pub use reuse::{Conversion, Reuse, Role, reuse};
pub use scale::{Settle, nodes_wanted};
