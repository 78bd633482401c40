//! From the node to its runners: 64-byte descriptors between processes of one machine.
//!
//! # Why it exists
//!
//! An update stays in its slab; what travels is a [`Descriptor`]. It has to reach, of many runner processes, the one
//! that serves its route, quickly, counted, and without the node ever waiting for a runner. Without this crate every
//! descriptor would pass through a broker's process, or the node would know about sockets and kernel programs.
//!
//! # How
//!
//! [`open`] gives a [`Link`], the node's end. [`Link::attach`] makes a runner's end, a file descriptor that the caller
//! hands over and that the runner wraps in an [`Inbox`]. [`Link::place`] says which runner serves a [`Route`].
//!
//! Descriptors are hints: one that is lost costs time, and whoever sent it sends it again. So a link promises only that
//! it never blocks its caller, never piles up (each runner has credits), and never stays broken.
//!
//! [`Descriptor`]: catchment_types::Descriptor

mod capabilities;
mod credits;
mod inbox;
mod kernel;
mod link;
mod open;
mod runner;
mod socket;
mod table;
#[cfg(test)]
#[path = "../tests/common/basics.rs"]
mod testing;

pub use capabilities::{drop_all, drop_to_needed};
pub use inbox::Inbox;
pub use link::{CpuTime, Link, LinkError, Route, RouteCount, RunnerId};
pub use open::{Lack, LinkKind, Missing, Mode, Options, Report, open};
