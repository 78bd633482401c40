//! The project's own build steps: what plain cargo cannot do.
//!
//! Functions and kernel programs are compiled for other targets, with whichever toolchain a machine happens to have, and
//! the plain workspace build must not depend on any of it. So it happens here, on request.
#![forbid(unsafe_code)]

mod apt;
mod compiler;
mod demo;
mod deny;
mod doctor;
mod ebpf;
#[cfg(test)]
mod fakes;
mod functions;
mod fuzz;
mod machine;
mod releases;
mod setup;
mod test;
mod toolchain;
mod version;
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
    /// Find or install what the tests need: cargo-nextest, a NATS server, and Python with the packages they import
    Setup(setup::Arguments),
    /// Train one model with ten client processes and show what came of it
    Demo(demo::Arguments),
    /// Build the earlier releases that tests run beside this one, from this repository's history
    Releases,
    /// Run every test of the workspace
    Test(test::Arguments),
    /// Check licences, bans and sources of all dependencies
    Deny,
    /// Run every fuzz target for a while
    Fuzz(fuzz::Arguments),
    /// Say which toolchains and tools this machine has, their versions, and what would be taken
    Doctor,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Functions(arguments) => functions::run(&arguments),
        Task::Ebpf(arguments) => ebpf::run(&arguments),
        Task::Setup(arguments) => setup::run(&arguments),
        Task::Releases => releases::run(),
        Task::Deny => deny::run(),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Doctor => {
            doctor::run();
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
