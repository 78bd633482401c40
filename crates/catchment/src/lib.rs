//! The `catchment` program: arguments, wiring, and what people see on a terminal.
//!
//! A library, so that two programs are made of what is compiled once: the one that people get, and the one that tests end
//! and mislead (`catchment-failpoints`). They differ in the [`Hooks`] that they hand in, and in nothing else.
#![forbid(unsafe_code)]

mod address;
mod cli;
mod cluster;
mod commands;
mod connection;
mod coordinator;
mod exit;
mod key;
mod log;
#[cfg(test)]
mod mistaken;
mod node_args;
mod output;
mod private;
mod progress;
mod signals;
mod system;
mod text;
mod up;

pub use system::Hooks;

use catchment_runner::{ServeError, serve};
use cli::{Arguments, Command};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

/// How long threads that are still at work may take once everything has stopped.
const STOP_TIME: Duration = Duration::from_secs(2);

/// Runs the program as its command line says.
pub fn run(hooks: Hooks) -> ExitCode {
    system::take(hooks);
    let arguments = Arguments::read();
    log_to_stderr(&arguments);
    if matches!(arguments.command, Command::Runner) {
        return runner();
    }
    let node = match &arguments.command {
        Command::Up(up) => Some(&up.node),
        Command::Node(role) => Some(&role.node),
        _ => None,
    };
    if node.is_some() || matches!(arguments.command, Command::Coordinator(_)) {
        private::make_private();
    }
    let link = match node.map(|node| node.open_link()).transpose() {
        Ok(link) => link.flatten(),
        Err(error) => return exit::report(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&anyhow::Error::new(error).context("start threads")),
    };
    let outcome = match arguments.command {
        Command::Up(up) => served(runtime, up.run(link)),
        Command::Node(role) => served(runtime, role.run(link)),
        Command::Coordinator(role) => served(runtime, role.run()),
        Command::Runner => unreachable!("it runs without this runtime"),
        Command::Simulate(simulate) => {
            simulate.run().map_err(anyhow::Error::from).and_then(|text| output::write(text.trim_end()))
        }
        Command::Openapi => output::write(catchment_node::gateway::openapi_json().trim_end()),
        Command::Key(command) => command.run(),
        Command::Log(command) => {
            return runtime.block_on(commands::run_until_signal(command.run(&arguments.connection)));
        }
        Command::Client(command) => {
            return runtime.block_on(commands::run_until_signal(command.run(&arguments.connection)));
        }
    };
    outcome.map_or_else(|error| exit::report(&error), |()| ExitCode::SUCCESS)
}

/// Runs a server to its end.
fn served(runtime: tokio::runtime::Runtime, server: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let outcome = runtime.block_on(server);
    // A function that is still running must not hold the program up.
    runtime.shutdown_timeout(STOP_TIME);
    outcome
}

/// A process that makes the calls of functions for the node that started it. Alone in the process: it gives up rights
/// for the threads it starts, and ends without waiting for them.
fn runner() -> ExitCode {
    let control = std::io::stdin().as_fd().try_clone_to_owned();
    let steps = (system::hooks().steps)();
    match control.map_err(ServeError::from).and_then(|control| serve(UnixStream::from(control), steps)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&anyhow::Error::new(error).context("serve as a runner")),
    }
}

/// Logs go to standard error; `RUST_LOG` chooses which. Commands that call a server say in their results what
/// happened, so they log warnings only.
fn log_to_stderr(arguments: &Arguments) {
    let serves =
        matches!(arguments.command, Command::Up(_) | Command::Node(_) | Command::Coordinator(_) | Command::Runner);
    let level = if serves { "info" } else { "warn" };
    log::to_stderr(level, arguments.log_json);
}
