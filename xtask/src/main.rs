//! The project's own build steps: what plain cargo cannot do.
//!
//! Functions and kernel programs are compiled for other targets, with whichever toolchain a machine happens to have, and
//! the plain workspace build must not depend on any of it. So it happens here, on request.
#![forbid(unsafe_code)]

mod demo;
mod doctor;
mod ebpf;
mod functions;
mod fuzz;
mod setup;
mod test;
mod toolchain;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Build steps of the Catchment workspace", bin_name = "cargo run --release -p xtask --")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build every function under functions/ as a wasm module
    Functions(functions::Arguments),
    /// Build the kernel programs under ebpf/
    Ebpf(ebpf::Arguments),
    /// Find or install what the tests need: a NATS server, and Python with safetensors
    Setup,
    /// Train one model with ten client processes and show what came of it
    Demo(demo::Arguments),
    /// Run every test of the workspace
    Test(test::Arguments),
    /// Run every fuzz target for a while
    Fuzz(fuzz::Arguments),
    /// Say which toolchains this machine has and which one each build would take
    Doctor,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Functions(arguments) => functions::run(&arguments),
        Task::Ebpf(arguments) => ebpf::run(&arguments),
        Task::Setup => setup::run().map(drop),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Doctor => doctor::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
