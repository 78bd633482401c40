//! Commands that call a server.

mod create;
mod function;
mod job;
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

/// Runs a command until it is done or a signal ends it. A command that is dropped half-way cleans up after itself.
pub async fn run_until_signal(command: ClientCommand, connection: &Connection) -> ExitCode {
    let (mut interrupt, mut terminate) = match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
        (Err(error), _) | (_, Err(error)) => return exit::report(&anyhow::Error::new(error).context("await signals")),
    };
    tokio::select! {
        outcome = run(command, connection) => outcome.map_or_else(|error| exit::report(&error), |()| ExitCode::SUCCESS),
        _ = interrupt.recv() => ExitCode::from(INTERRUPTED),
        _ = terminate.recv() => ExitCode::from(TERMINATED),
    }
}

async fn run(command: ClientCommand, connection: &Connection) -> Result<()> {
    let session = Session::new(connection)?;
    match command {
        ClientCommand::Job(command) => command.run(&session).await,
        ClientCommand::Model(command) => command.run(&session).await,
        ClientCommand::Submit(command) => command.run(&session).await,
        ClientCommand::Watch(command) => command.run(&session).await,
        ClientCommand::Function(command) => command.run(&session).await,
    }
}
