//! The `catchment` program: arguments, wiring, and what people see on a terminal.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod connection;
mod exit;
mod output;
mod progress;
mod system;
mod text;
mod up;

use catchment_runner::{ServeError, serve};
use cli::{Arguments, Command};
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// How long threads that are still at work may take once everything has stopped.
const STOP_TIME: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let arguments = Arguments::read();
    log_to_stderr(&arguments);
    if matches!(arguments.command, Command::Runner) {
        return runner();
    }
    let link = match &arguments.command {
        Command::Up(up) => match up.open_link() {
            Ok(link) => link,
            Err(error) => return exit::report(&error),
        },
        _ => None,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&anyhow::Error::new(error).context("start threads")),
    };
    let outcome = match arguments.command {
        Command::Up(up) => {
            let outcome = runtime.block_on(up.run(link));
            // A function that is still running must not hold the program up.
            runtime.shutdown_timeout(STOP_TIME);
            outcome
        }
        Command::Runner => unreachable!("it runs without this runtime"),
        Command::Openapi => output::write(catchment_node::gateway::openapi_json().trim_end()),
        Command::Client(command) => {
            return runtime.block_on(commands::run_until_signal(command, &arguments.connection));
        }
    };
    outcome.map_or_else(|error| exit::report(&error), |()| ExitCode::SUCCESS)
}

/// A process that makes the calls of functions for the node that started it. Alone in the process: it gives up rights
/// for the threads it starts, and ends without waiting for them.
fn runner() -> ExitCode {
    let control = std::io::stdin().as_fd().try_clone_to_owned();
    match control.map_err(ServeError::from).and_then(|control| serve(UnixStream::from(control), system::steps())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&anyhow::Error::new(error).context("serve as a runner")),
    }
}

/// Logs go to standard error; `RUST_LOG` chooses which. Commands that call a server say in their results what
/// happened, so they log warnings only.
fn log_to_stderr(arguments: &Arguments) {
    let level = if matches!(arguments.command, Command::Up(_) | Command::Runner) { "info" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    if arguments.log_json { builder.json().init() } else { builder.init() }
}
