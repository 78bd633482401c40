//! Jobs: create, list, look at, change, end.

use super::opening;
use super::path::At;
use super::problem::Failure;
use super::text::Text;
use crate::context::Context;
use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use bytes::Bytes;
use catchment_ledger::{Job, Outcome};
use catchment_types::{
    Code, FieldError, JobAction, JobSpec, JobUid, JobView, Page, Problem, Record, SpecPatch, read_object, rfc3339,
};
use serde::Deserialize;
use std::sync::Arc;

/// Most items of one page.
const PAGE_MAX: usize = 1000;

/// Paging of a list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct Paging {
    /// Items of one page, at most 1000; 100 when absent.
    limit: Option<usize>,
    /// Where the page before this one ended.
    cursor: Option<String>,
}

impl Paging {
    pub(super) fn limit(&self) -> usize {
        self.limit.unwrap_or(100).clamp(1, PAGE_MAX)
    }

    pub(super) fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }
}

/// Creates a job.
#[utoipa::path(post, path = "", tag = "jobs", request_body = JobSpec, responses(
    (status = 201, body = JobView), (status = 409, body = Problem, description = "`exists`"),
    (status = 422, body = Problem, description = "`invalid_spec`, with every bad field in `fields`; `function_refused`")))]
pub async fn create(
    State(context): State<Arc<Context>>,
    at: At,
    Text(body): Text,
) -> Result<(StatusCode, Json<JobView>), Failure> {
    let spec = JobSpec::from_json(&in_namespace(&at, &body)).map_err(|errors| Failure::fields(&errors))?;
    if at.has_namespace && spec.namespace != at.namespace {
        let message = format!("the address says `{}`", at.namespace);
        return Err(Failure::fields(&[FieldError { field: "namespace".to_owned(), message }]));
    }
    let spec = check_function(&context, spec).await?;
    let uid = JobUid::from_bytes(context.entropy.bytes16());
    match propose(&context, Record::JobCreated { uid, spec: spec.to_json(), at_ms: context.clock.now_ms() }).await? {
        Outcome::Ignored(_) => {
            let detail = format!("there is a job `{}` in namespace `{}` already", spec.name, spec.namespace);
            Err(Problem::new(Code::Exists, detail).into())
        }
        _ => Ok((StatusCode::CREATED, Json(view(&context, uid)?))),
    }
}

/// A spec posted under a namespace belongs to it unless it says otherwise.
fn in_namespace(at: &At, body: &Bytes) -> Vec<u8> {
    match serde_json::from_slice(body) {
        Ok(serde_json::Value::Object(mut map)) => {
            map.entry("namespace").or_insert_with(|| at.namespace.as_str().into());
            serde_json::to_vec(&map).unwrap_or_default()
        }
        _ => body.to_vec(),
    }
}

/// Checks a spec's function, and pins the job to its bytes: they are in the data directory before the log says so.
async fn check_function(context: &Arc<Context>, mut spec: JobSpec) -> Result<JobSpec, Failure> {
    let context = context.clone();
    let checked = tokio::task::spawn_blocking(move || {
        let digest = context.functions.check(&spec)?;
        // While some members are of the first release, which has no way to fetch a module, each takes what it has.
        if context.ledger.read(|state| state.level()) >= 2 {
            let failed = |error| Failure::internal("write the function's module", error);
            context.functions.keep(digest).map_err(failed)?;
            spec.function = format!("{}@{digest}", spec.function_name());
        }
        Ok(spec)
    });
    checked.await.map_err(|error| Failure::internal("check the function", error))?
}

/// Lists jobs in the order of their names.
#[utoipa::path(get, path = "", tag = "jobs", params(Paging), responses((status = 200, body = Page<JobView>)))]
pub async fn list(State(context): State<Arc<Context>>, at: At, Query(paging): Query<Paging>) -> Json<Page<JobView>> {
    opening::read_on(&context).await;
    let limit = paging.limit();
    let mut items: Vec<JobView> = context.ledger.read(|state| {
        let jobs = state.jobs_by_name().filter(|job| job.spec.namespace == at.namespace);
        let after = |name: &str| paging.cursor().is_none_or(|cursor| name > cursor);
        jobs.filter(|job| after(job.spec.name.as_str())).take(limit + 1).map(|job| from_here(&context, job)).collect()
    });
    let more = items.len() > limit;
    items.truncate(limit);
    let cursor = items.last().filter(|_| more).map(|job| job.spec.name.as_str().to_owned());
    Json(Page { items, cursor })
}

/// One job.
#[utoipa::path(get, path = "/{job}", tag = "jobs", params(("job" = String, Path)),
    responses((status = 200, body = JobView), (status = 404, body = Problem)))]
pub async fn get(State(context): State<Arc<Context>>, at: At) -> Result<Json<JobView>, Failure> {
    opening::read_on(&context).await;
    context.ledger.read(|state| {
        let job = at.find(state)?;
        let round = super::rounds::seen_from_here(&context, job, job.round_view());
        Ok(Json(JobView { round, ..from_here(&context, job) }))
    })
}

/// A job, with what keeps it from going on at this node.
fn from_here(context: &Context, job: &Job) -> JobView {
    let view = job.view();
    let told = context.trouble.of(job.uid).filter(|_| job.reason.is_none() && !view.state.is_over());
    let trouble = told.map(|told| {
        let (at, times) = (rfc3339(told.at_ms), told.times);
        format!("a node tries again what failed {times} times in a row, last at {at}: {}", told.text)
    });
    JobView { reason: trouble.or(view.reason), ..view }
}

/// Changes rounds, goal or deadline of a job that is not over.
#[utoipa::path(patch, path = "/{job}", tag = "jobs", params(("job" = String, Path)), request_body = SpecPatch,
    responses((status = 200, body = JobView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn patch(State(context): State<Arc<Context>>, at: At, Text(body): Text) -> Result<Json<JobView>, Failure> {
    let patch: SpecPatch = read_object(&body).map_err(|error| {
        let detail = format!("a patch holds rounds, goal and deadline, nothing else: {error}");
        Failure(Problem::new(Code::InvalidSpec, detail))
    })?;
    let (uid, spec) = context.ledger.read(|state| at.find(state).map(|job| (job.uid, job.spec.clone())))?;
    let patched = spec.patched(&patch).map_err(|errors| Failure::fields(&errors))?;
    context.functions.check_counts(&patched)?;
    changed(&context, uid, Record::JobPatched { uid, patch, at_ms: context.clock.now_ms() }).await
}

/// Takes no updates and opens no round until it is resumed.
#[utoipa::path(post, path = "/{job}/pause", tag = "jobs", params(("job" = String, Path)),
    responses((status = 200, body = JobView), (status = 409, body = Problem)))]
pub async fn pause(State(context): State<Arc<Context>>, at: At) -> Result<Json<JobView>, Failure> {
    act(&context, &at, JobAction::Pause).await
}

/// Undoes a pause.
#[utoipa::path(post, path = "/{job}/resume", tag = "jobs", params(("job" = String, Path)),
    responses((status = 200, body = JobView), (status = 409, body = Problem)))]
pub async fn resume(State(context): State<Arc<Context>>, at: At) -> Result<Json<JobView>, Failure> {
    act(&context, &at, JobAction::Resume).await
}

/// Ends a job; its models stay.
#[utoipa::path(post, path = "/{job}/stop", tag = "jobs", params(("job" = String, Path)),
    responses((status = 200, body = JobView), (status = 409, body = Problem)))]
pub async fn stop(State(context): State<Arc<Context>>, at: At) -> Result<Json<JobView>, Failure> {
    act(&context, &at, JobAction::Stop).await
}

/// Ends a job and forgets it, models and receipts included.
#[utoipa::path(delete, path = "/{job}", tag = "jobs", params(("job" = String, Path)),
    responses((status = 204), (status = 404, body = Problem)))]
pub async fn delete(State(context): State<Arc<Context>>, at: At) -> Result<StatusCode, Failure> {
    let uid = uid(&context, &at)?;
    propose(&context, Record::JobActed { uid, action: JobAction::Delete, at_ms: context.clock.now_ms() }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn act(context: &Arc<Context>, at: &At, action: JobAction) -> Result<Json<JobView>, Failure> {
    let uid = uid(context, at)?;
    changed(context, uid, Record::JobActed { uid, action, at_ms: context.clock.now_ms() }).await
}

async fn changed(context: &Arc<Context>, uid: JobUid, record: Record) -> Result<Json<JobView>, Failure> {
    match propose(context, record).await? {
        Outcome::Ignored(why) => {
            let state = view(context, uid).map_or("gone", |view| super::state_text(view.state));
            Err(Problem::new(Code::WrongState, format!("the job is {state}: {why}")).into())
        }
        _ => {
            opening::settled(context, uid).await;
            view(context, uid).map(Json)
        }
    }
}

fn uid(context: &Context, at: &At) -> Result<JobUid, Failure> {
    context.ledger.read(|state| at.find(state).map(|job| job.uid))
}

fn view(context: &Context, uid: JobUid) -> Result<JobView, Failure> {
    let view = context.ledger.read(|state| state.job(uid).map(|job| from_here(context, job)));
    view.ok_or_else(|| Problem::new(Code::NotFound, "the job was deleted meanwhile").into())
}

/// Appends a record for a caller, who waits a while for it and is then told to try again.
pub async fn propose(context: &Arc<Context>, record: Record) -> Result<Outcome, Failure> {
    let answer = context.within(context.config.accept_wait, context.ledger.propose(record)).await;
    answer.map_err(|_| unreachable_log())?.map_err(|error| match error {
        catchment_ledger::LedgerError::Refused(why) => Failure(Problem::new(Code::LogUnavailable, why)),
        _ => unreachable_log(),
    })
}

/// Nothing can be written down now.
pub fn unreachable_log() -> Failure {
    Failure(Problem::new(Code::LogUnavailable, "the event log cannot be reached; try again"))
}
