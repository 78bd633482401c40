//! What the end-to-end tests stand on: the real server and the real bus as processes, plain HTTP to talk to them, and
//! eyes on what they hold.
//!
//! Nothing here knows the platform's crates. A test that shared their types would agree with them about a mistake; an
//! outside client, which is what these tests play, has only the published interface.
#![forbid(unsafe_code)]

mod answer;
mod api;
mod buses;
mod cluster;
mod exact;
mod folders;
mod hosts;
mod metrics;
mod nats;
mod observe;
mod poll;
mod ports;
mod process;
mod programs;
mod python;
mod raw;
mod release;
mod sent;
mod server;
mod tensors;

pub use answer::Answer;
pub use api::{Api, Job};
pub use buses::{Bus, run};
pub use cluster::{Cluster, NodeProcess, Setup};
pub use exact::ExactMean;
pub use folders::shared_memory;
pub use hosts::{Host, Network};
pub use metrics::{Metrics, Sample};
pub use nats::Nats;
pub use observe::Observed;
pub use poll::{PATIENCE, until};
pub use ports::free_port;
pub use process::Process;
pub use programs::{functions_dir, root, run_to_end, target_dir};
pub use python::Python;
pub use raw::{Raw, request_head, request_head_of};
pub use release::Release;
pub use sent::{Reference, Sent};
pub use server::Server;
pub use tensors::{Tensor, Values, assert_close, file, file_with, raw_file, read, weighted_mean};
