//! The server that commands call, and how long they bear its absence.

use crate::exit::Failure;
use crate::output::{Format, Output};
use anyhow::Result;
use catchment_client::{Client, JobClient, RetryPolicy};
use catchment_types::Name;
use std::time::Duration;

/// A command that begins finds out soon that there is no server; a person waits for the answer.
const BRIEF: Duration = Duration::from_secs(3);
/// A command that has met its server bears its restart.
const LONG: Duration = Duration::from_secs(60);

/// Under which help names the options of every command that calls a server.
pub const CONNECTION_HEADING: &str = "Calling a server";

/// Where the server is, and how results are printed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = CONNECTION_HEADING)]
pub struct Connection {
    /// The server.
    #[arg(long, global = true, env = "CATCHMENT_URL", default_value = "http://127.0.0.1:7070")]
    pub url: String,
    /// The job's namespace [default: default].
    #[arg(long, global = true, value_name = "NAME", env = "CATCHMENT_NAMESPACE")]
    pub namespace: Option<Name>,
    /// How results are printed [default: table on a terminal, json elsewhere].
    #[arg(long, global = true, value_enum, env = "CATCHMENT_OUTPUT")]
    pub output: Option<Format>,
    /// Seconds a call is repeated while the server is away or has no room [default: 3, then 60 once it answered].
    #[arg(long, global = true, value_name = "SECONDS")]
    pub patience: Option<u64>,
}

/// What a command works with.
pub struct Session {
    /// Gives up soon: for the first call of a command.
    pub brief: Client,
    /// Bears a restart of the server: for what follows.
    pub patient: Client,
    /// The namespace, when one was given.
    pub namespace: Option<Name>,
    /// Where results go.
    pub output: Output,
}

impl Session {
    /// A session; no connection is made yet.
    pub fn new(connection: &Connection) -> Result<Self> {
        let client = |default: Duration| {
            let deadline = connection.patience.map_or(default, Duration::from_secs);
            let policy = RetryPolicy { attempts_max: u32::MAX, deadline, ..RetryPolicy::default() };
            Client::builder(&connection.url).retry(policy).build().map_err(|e| Failure::Config(e.to_string()))
        };
        let output = Output::new(connection.output);
        Ok(Self { brief: client(BRIEF)?, patient: client(LONG)?, namespace: connection.namespace.clone(), output })
    }

    /// The namespace of jobs.
    pub fn namespace(&self) -> Name {
        self.namespace.clone().unwrap_or_else(Name::default_namespace)
    }

    /// Calls on a job that give up soon.
    pub fn job(&self, name: &Name) -> JobClient {
        self.brief.job(self.namespace(), name.clone())
    }

    /// Calls on a job that bear a restart of the server.
    pub fn patient_job(&self, name: &Name) -> JobClient {
        self.patient.job(self.namespace(), name.clone())
    }
}
