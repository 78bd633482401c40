//! `catchment watch`: follows a job to its end.
//!
//! A long-poll says when a round opens, closes or ends, so nothing is missed and an idle job costs one open call.
//! Single updates are no such change; while a round is active, a slower poll asks how many there are.

mod live;
mod rounds;
mod view;

use crate::connection::Session;
use crate::exit::Failure;
use crate::output::{Format, Output};
use crate::text;
use anyhow::Result;
use catchment_client::{ClientError, JobClient, JobInfo, Paging, Waiting};
use catchment_types::{Code, JobState, ModelView, Name, RoundState, RoundView};
use rounds::{Published, Rounds};
use std::time::Duration;
use view::View;

/// How long one call waits for a change.
const CHANGE: Duration = Duration::from_secs(30);
/// How often the progress of an active round is asked for.
const PROGRESS: Duration = Duration::from_millis(300);
/// Model versions asked for at one time.
const PAGE: usize = 100;

/// Follow a job until it is over
///
/// On a terminal: a live view, and a line for each model that is published.
/// Elsewhere, or with --output json: one JSON object a line for each change, with the member `event`:
///   round    the round's state and progress, as GET /v1/jobs/JOB/round answers
///   skipped  `count` rounds ended without a model; `reason` when the last was given up
///   model    a version was published: its `round`, contributors and metrics, and `duration_ms`,
///            the time since the version before
///   end      the job is over: its state, and why
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Exit status: 0 when the job completed or was stopped, 4 when it failed or was deleted.

Examples:
  catchment watch digits
  catchment watch digits --all --output json |
    jq -r 'select(.event == \"model\") | [.round, .metrics.accuracy] | @tsv'"
)]
pub struct Watch {
    /// The job.
    name: Name,
    /// Tell also of the models that were published before.
    #[arg(long)]
    all: bool,
}

impl Watch {
    /// Follows the job.
    pub async fn run(self, session: &Session) -> Result<()> {
        let job = session.job(&self.name).get().await?;
        let after = if self.all { 0 } else { job.model_version.unwrap_or(0) };
        follow(&session.patient_job(&self.name), job, after, &session.output).await
    }
}

/// Follows a job, known as `job`, until it is over; tells of models newer than version `after`.
///
/// # Errors
/// The job failed, or was deleted meanwhile.
pub async fn follow(calls: &JobClient, mut job: JobInfo, after: u64, output: &Output) -> Result<()> {
    let mut view: Box<dyn View> = match (output.format, output.terminal) {
        (Format::Json, _) => Box::new(view::Json::new(calls)),
        (Format::Table, true) => Box::new(live::Live::new()),
        (Format::Table, false) => Box::new(view::Lines),
    };
    let uid = job.uid;
    let mut rounds = Rounds::new(&job, after);
    let mut last_round = None;
    let mut change = Box::pin(wait(calls, job.round.revision));
    loop {
        tell_of_models(calls, &job, &mut rounds, &mut *view).await?;
        if view.shows_cluster() {
            // Nothing worth ending for: a server of before may not know.
            calls.client().nodes().await.iter().for_each(|nodes| view.cluster(nodes));
        }
        view.round(&job, last_round.as_ref() != Some(&job.round))?;
        last_round = Some(job.round.clone());
        if job.state.is_over() {
            view.end(&job)?;
            return ending(&job);
        }
        let is_active =
            job.state == JobState::Running && matches!(job.round.state, RoundState::Open | RoundState::Aggregating);
        let changed = tokio::select! {
            changed = &mut change => changed.map(|_| true),
            () = tokio::time::sleep(PROGRESS), if is_active => Ok(false),
        };
        let changed = changed.map_err(|error| gone(calls, error))?;
        job = calls.get().await.map_err(|error| gone(calls, error))?;
        if job.uid != uid {
            return Err(deleted(calls, "; another has its name now"));
        }
        if changed {
            change.set(wait(calls, job.round.revision));
        }
    }
}

async fn wait(calls: &JobClient, after: u64) -> Result<RoundView, ClientError> {
    calls.round(Some(Waiting { after, wait: CHANGE })).await
}

fn gone(calls: &JobClient, error: ClientError) -> anyhow::Error {
    if error.is(Code::NotFound) { deleted(calls, "") } else { error.into() }
}

fn deleted(calls: &JobClient, more: &str) -> anyhow::Error {
    Failure::Outcome(format!("job `{}` was deleted{more}", calls.name())).into()
}

fn ending(job: &JobInfo) -> Result<()> {
    if job.state != JobState::Failed {
        return Ok(());
    }
    let why = job.reason.as_deref().unwrap_or("the server does not say why");
    Err(Failure::Outcome(format!("job `{}` failed: {why}", text::spec_text(job, "name"))).into())
}

/// Tells of the models that were published since the last look.
async fn tell_of_models(calls: &JobClient, job: &JobInfo, rounds: &mut Rounds, view: &mut dyn View) -> Result<()> {
    if job.model_version.is_some_and(|newest| newest > rounds.told()) {
        let models = models_from(calls, rounds.told()).await.map_err(|error| gone(calls, error))?;
        let published: Vec<Published> = rounds.published(job, models);
        published.iter().try_for_each(|model| view.model(model))?;
    }
    match rounds.skipped(job) {
        0 => Ok(()),
        count => view.skipped(count, job.round.reason.as_deref()),
    }
}

/// Model versions from `first` on, oldest first.
async fn models_from(calls: &JobClient, first: u64) -> Result<Vec<ModelView>, ClientError> {
    let (mut models, mut paging) = (Vec::new(), Paging { limit: Some(PAGE), cursor: None });
    loop {
        let page = calls.models(&paging).await?;
        let enough = page.items.iter().any(|model| model.version <= first);
        models.extend(page.items.into_iter().filter(|model| model.version >= first));
        paging.cursor = page.cursor;
        if enough || paging.cursor.is_none() {
            models.reverse();
            return Ok(models);
        }
    }
}
