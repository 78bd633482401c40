//! The program that people get. No test has a hand in it: its clock is the machine's, and every step passes.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    catchment::run(catchment::Hooks::none())
}
