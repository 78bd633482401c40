//! Measured claims: each is a ratio to a peer or to the machine's own ceiling, both from one run.
//!
//! The platform is the release binary as its users start it; clients and sinks are processes of their own. Times on a
//! shared machine are noisy, so every figure is a median of several rounds, and nothing here ever fails on a time.
#![forbid(unsafe_code)]

mod clients;
mod download;
mod http;
mod idle;
mod model;
mod observe;
mod platform;
mod report;
mod round;
mod sink;

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
    /// Everything, in the sizes of the documentation
    All {
        /// A Python with `flwr` and `numpy`, to measure those beside.
        #[arg(long)]
        peers: Option<PathBuf>,
    },
    /// A client process (used by the others)
    #[command(hide = true)]
    Client(clients::Arguments),
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
        What::Round(arguments) => round::run(&arguments).map(|table| println!("{table}")),
        What::Download(arguments) => download::run(&arguments).map(|table| println!("{table}")),
        What::Idle(arguments) => idle::run(&arguments).map(|table| println!("{table}")),
        What::All { peers } => report::all(peers.as_deref()),
        What::Client(arguments) => clients::child(&arguments),
        What::Sink { file } => sink::child(file.as_deref()),
    }
}
