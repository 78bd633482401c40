//! Measured claims: each is a ratio to a peer or to the machine's own ceiling, both from one run.
//!
//! The platform is the release binary as its users start it; clients and sinks are processes of their own. Folds and hops
//! are measured on the crates that a node makes them with. Times on a shared machine are noisy, so what is compared is
//! measured turn and turn about, every figure is a median, and nothing here ever fails on a time.
#![deny(unsafe_code)]

mod chart;
mod clients;
mod cluster;
mod descriptors;
mod download;
mod first;
mod fold;
mod hop;
mod http;
mod idle;
mod kernels;
mod lanes;
mod large;
mod log;
mod many;
mod memory;
mod model;
mod native;
mod observe;
mod plan;
mod platform;
mod report;
mod round;
mod sink;
mod start;
mod waiting;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

#[derive(Parser)]
#[command(about = "Measure Catchment beside the machine's own limits")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One round end to end over loopback HTTP, beside a bare TCP sink
    Round(round::Arguments),
    /// A model to many clients, beside a bare server that has the kernel send the file
    Download(download::Arguments),
    /// CPU and memory with many jobs and nothing to do
    Idle(idle::Arguments),
    /// Updates folded in wasm, beside the same sum natively and the machine's reading of memory
    Fold(fold::Arguments),
    /// What dtypes and exact sums cost
    Kernels(kernels::Arguments),
    /// A payload from memory to a finished fold in another process, beside TCP and NATS
    Hop(hop::Arguments),
    /// Descriptors to a runner process: through the kernel, over a socket, through a broker
    Descriptors(descriptors::Arguments),
    /// What starting takes, and the first fold after idling
    Start(start::Arguments),
    /// A round of very many clients: throughput and memory along it
    Many(many::Arguments),
    /// Three nodes on hosts of their own (as root): clients where they are told, and where a load balancer sends them
    Cluster(cluster::Arguments),
    /// Very many clients that wait: memory of each, and how soon the last knows
    Waiting(waiting::Arguments),
    /// Accepts of many processes on one NATS server, beside the server's own pace
    Log(log::Arguments),
    /// How long planning takes for a thousand nodes
    Plan(plan::Arguments),
    /// A model with a tensor of more than 4 GiB, there and back; takes 20 GB of memory
    Large(large::Arguments),
    /// Everything but the large one, in the sizes of the documentation
    All(report::Arguments),
    /// A client process (used by the others)
    #[command(hide = true)]
    Client(clients::Arguments),
    /// A process of clients that wait (used by the others)
    #[command(hide = true)]
    Waiters(waiting::ChildArguments),
    /// A process that takes descriptors or passes them on (used by the others)
    #[command(hide = true)]
    DescriptorPeer {
        /// Which.
        #[command(subcommand)]
        role: descriptors::Role,
    },
    /// A process that folds what it is sent (used by the others)
    #[command(hide = true)]
    Peer(hop::PeerArguments),
    /// A server that reads and forgets, or sends one file (used by the others)
    #[command(hide = true)]
    Sink {
        /// The file it sends.
        #[arg(long)]
        file: Option<PathBuf>,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Round(arguments) => round::run(&arguments).map(|report| println!("{}", report.table())),
        What::Download(arguments) => download::run(&arguments).map(|table| println!("{table}")),
        What::Idle(arguments) => idle::run(&arguments).map(|table| println!("{table}")),
        What::Fold(arguments) => fold::run(&arguments).map(|report| println!("{}", report.table())),
        What::Kernels(arguments) => kernels::run(&arguments).map(|table| println!("{table}")),
        What::Hop(arguments) => hop::run(&arguments).map(|table| println!("{table}")),
        What::Descriptors(arguments) => descriptors::run(&arguments).map(|tables| println!("{tables}")),
        What::Start(arguments) => start::run(&arguments).map(|table| println!("{table}")),
        What::Many(arguments) => many::run(&arguments).map(|table| println!("{table}")),
        What::Cluster(arguments) => cluster::run(&arguments).map(|tables| println!("{tables}")),
        What::Waiting(arguments) => waiting::run(&arguments).map(|table| println!("{table}")),
        What::Log(arguments) => log::run(&arguments).map(|tables| println!("{tables}")),
        What::Plan(arguments) => plan::run(&arguments).map(|table| println!("{table}")),
        What::Large(arguments) => large::run(&arguments).map(|table| println!("{table}")),
        What::All(arguments) => report::all(&arguments),
        What::DescriptorPeer { role } => descriptors::child(&role),
        What::Peer(arguments) => hop::child(&arguments),
        What::Waiters(arguments) => waiting::child(&arguments),
        What::Client(arguments) => clients::child(&arguments),
        What::Sink { file } => sink::child(file.as_deref()),
    }
}
