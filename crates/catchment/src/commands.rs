//! Commands that call a server, and those that work on a log without one.

mod create;
mod function;
mod job;
pub mod log;
mod model;
mod spec;
mod submit;
mod watch;

use crate::connection::{Connection, Session};
use crate::exit::{self, INTERRUPTED, TERMINATED};
use anyhow::Result;
use clap::Subcommand;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Create, list, look at, pause, resume, stop and delete jobs.
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Fetch a job's models, and give it its initial one.
    #[command(subcommand)]
    Model(model::ModelCommand),
    Submit(submit::Submit),
    Watch(watch::Watch),
    /// List and describe the functions that jobs can name.
    #[command(subcommand)]
    Function(function::FunctionCommand),
}

impl ClientCommand {
    /// Runs it.
    pub async fn run(self, connection: &Connection) -> Result<()> {
        let session = Session::new(connection)?;
        match self {
            Self::Job(command) => command.run(&session).await,
            Self::Model(command) => command.run(&session).await,
            Self::Submit(command) => command.run(&session).await,
            Self::Watch(command) => command.run(&session).await,
            Self::Function(command) => command.run(&session).await,
        }
    }
}

/// Runs a command until it is done or a signal ends it. A command that is dropped half-way cleans up after itself.
pub async fn run_until_signal(command: impl Future<Output = Result<()>>) -> ExitCode {
    let (mut interrupt, mut terminate) = match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
        (Err(error), _) | (_, Err(error)) => return exit::report(&anyhow::Error::new(error).context("await signals")),
    };
    tokio::select! {
        outcome = command => outcome.map_or_else(|error| exit::report(&error), |()| ExitCode::SUCCESS),
        _ = interrupt.recv() => ExitCode::from(INTERRUPTED),
        _ = terminate.recv() => ExitCode::from(TERMINATED),
    }
}
