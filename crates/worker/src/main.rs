//! The `catchment-worker` program: arguments, signals, exit status.
#![forbid(unsafe_code)]

mod cli;
mod commands;

use catchment_client::ClientError;
use catchment_worker::participate::ParticipateError;
use clap::Parser;
use cli::{Cli, Command, Train};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

const UNREACHABLE: u8 = 3;
const JOB_FAILED: u8 = 4;
const INTERRUPTED: u8 = 130;
const TERMINATED: u8 = 143;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    if let Err(error) = catchment_worker::threads::limit(cli.threads) {
        tracing::warn!(%error, "set the number of threads; going on with the library's own choice");
    }
    let done = match &cli.command {
        Command::Init(arguments) => commands::init(arguments, cli.output).map(|()| ExitCode::SUCCESS),
        Command::Evaluate(arguments) => commands::evaluate(arguments, cli.output).map(|()| ExitCode::SUCCESS),
        Command::Baseline(command) => commands::baseline(command, cli.output).map(|()| ExitCode::SUCCESS),
        Command::Train(arguments) => train(arguments, &cli),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(status_of(&error))
    })
}

fn train(arguments: &Train, cli: &Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            done = commands::train(arguments, cli.output) => done.map(|()| ExitCode::SUCCESS),
            _ = interrupt.recv() => Ok(ExitCode::from(INTERRUPTED)),
            _ = terminate.recv() => Ok(ExitCode::from(TERMINATED)),
        }
    })
}

fn status_of(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<ParticipateError>() {
        Some(ParticipateError::Server(ClientError::Unreachable { .. } | ClientError::Broken { .. })) => UNREACHABLE,
        Some(ParticipateError::JobFailed(_)) => JOB_FAILED,
        _ => 1,
    }
}
