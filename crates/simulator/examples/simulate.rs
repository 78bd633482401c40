//! `cargo run --release -p catchment-simulator --example simulate -- --help`
#![forbid(unsafe_code)]

use catchment_simulator::Simulate;
use clap::Parser;
use std::process::ExitCode;

#[derive(Debug, clap::Parser)]
#[command(about = "Simulate a fleet under the real planner and coordinator")]
struct Program {
    #[command(flatten)]
    simulate: Simulate,
}

fn main() -> ExitCode {
    match Program::parse().simulate.run() {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
