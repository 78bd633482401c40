//! `catchment job …`.

use super::create::Create;
use crate::connection::Session;
use crate::system::SystemClock;
use crate::text;
use anyhow::Result;
use catchment_client::{JobInfo, Paging};
use catchment_types::{Clock as _, Name};
use clap::Subcommand;
use serde_json::json;

/// Jobs asked for at one time.
const PAGE: usize = 1000;

#[derive(Debug, Subcommand)]
pub enum JobCommand {
    Create(Box<Create>),
    /// List the jobs of a namespace.
    #[command(after_help = "\
Examples:
  catchment job list
  catchment job list --output json | jq -r 'select(.state == \"failed\") | .spec.name'")]
    List,
    /// Show one job: state, round, updates, model, deadline, and why it failed or what it waits for.
    #[command(after_help = "\
Examples:
  catchment job status digits
  catchment job status digits --output json | jq .round")]
    Status {
        /// The job.
        name: Name,
    },
    /// Take no updates and open no round until the job is resumed. The round's deadline waits too.
    Pause {
        /// The job.
        name: Name,
    },
    /// Undo a pause.
    Resume {
        /// The job.
        name: Name,
    },
    /// End the open round with the updates that it has, however few: its model is made of them.
    #[command(after_help = "\
Example:
  catchment job close-round digits")]
    CloseRound {
        /// The job.
        name: Name,
        /// The round; the one that is open when not given.
        #[arg(long)]
        round: Option<u64>,
    },
    /// End a job. The updates of its open round are discarded; its models stay.
    Stop {
        /// The job.
        name: Name,
    },
    /// End a job and forget it, models and receipts included.
    Delete {
        /// The job.
        name: Name,
    },
}

impl JobCommand {
    /// Runs it.
    pub async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::Create(create) => create.run(session).await,
            Self::List => list(session).await,
            Self::Status { name } => {
                let job = session.job(&name).get().await?;
                session.output.item(&job, || text::job(&job, SystemClock.now_ms()))
            }
            Self::Pause { name } => changed(session, &session.job(&name).pause().await?),
            Self::Resume { name } => changed(session, &session.job(&name).resume().await?),
            Self::CloseRound { name, round } => {
                let job = session.job(&name);
                let number = match round {
                    Some(number) => number,
                    None => job.round(None).await?.round,
                };
                let closed = job.close_round(number).await?;
                session.output.item(&closed, || format!("round {number} of job `{name}` is closed"))
            }
            Self::Stop { name } => changed(session, &session.job(&name).stop().await?),
            Self::Delete { name } => {
                let job = session.job(&name);
                job.delete().await?;
                let gone = json!({"namespace": job.namespace(), "name": name, "deleted": true});
                session.output.item(&gone, || format!("job `{name}` is deleted"))
            }
        }
    }
}

fn changed(session: &Session, job: &JobInfo) -> Result<()> {
    session.output.item(job, || format!("job `{}` is {}", text::spec_text(job, "name"), text::word(job.state)))
}

async fn list(session: &Session) -> Result<()> {
    let namespace = session.namespace();
    let (mut jobs, mut paging) = (Vec::new(), Paging { limit: Some(PAGE), cursor: None });
    loop {
        let page = session.brief.jobs(&namespace, &paging).await?;
        jobs.extend(page.items);
        paging.cursor = page.cursor;
        if paging.cursor.is_none() {
            break;
        }
    }
    let head = ["NAME", "STATE", "ROUND", "UPDATES", "MODEL", "FUNCTION", "CREATED"];
    let row = |job: &JobInfo| {
        [
            text::spec_text(job, "name").to_owned(),
            text::word(job.state),
            text::round_of(job),
            format!("{} of {}", job.round.received, job.round.goal),
            text::or_dash(job.model_version),
            text::function(job),
            job.created_at.clone(),
        ]
    };
    session.output.list(&jobs, head, row, &format!("no jobs in namespace `{namespace}`"))
}
