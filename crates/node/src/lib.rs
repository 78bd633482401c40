//! One machine: the gateway that takes updates in, the shared memory that holds them, and the instances that fold them.
//!
//! The way of an update goes through the modules in this order: [`gateway`] reads the request, `submit` checks it and
//! drives `ingest`, which writes the body to a slab; the ledger accepts it; `aggregate` folds it into the round's
//! accumulator and makes the model. A node decides nothing about rounds: it reads the ledger and proposes to it.
#![forbid(unsafe_code)]

mod aggregate;
mod bases;
mod buffers;
mod context;
mod desk;
mod drafts;
mod drain;
mod functions;
pub mod gateway;
mod gauges;
mod head;
mod holders;
mod identity;
mod layouts;
mod meant;
mod metrics;
mod models;
mod modules;
mod node;
mod orphans;
mod owner;
mod parking;
mod peers;
mod readiness;
mod requests;
mod resume;
mod shape;
mod shelf;
mod slab_meta;
mod slack;
mod small;
mod subjects;
mod submit;
mod upload;

pub use context::{Beside, Ending, Environment, Membership, NodeConfig, Pace, RunnersConfig};
pub use functions::Functions;
pub use models::create_dir_durably;
pub use node::{Node, NodeError};
