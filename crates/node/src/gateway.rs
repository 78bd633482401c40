//! The HTTP interface: parses what callers say into types, and types into what callers read.
//!
//! Nothing is decided here. A handler reads the ledger, proposes to it, or hands a body on.

pub(crate) mod body;
mod connection;
mod docs;
mod encoding;
mod evaluations;
mod jobs;
mod models;
mod nodes;
mod opening;
mod path;
mod peers;
mod problem;
mod rounds;
mod runners;
mod serve;
pub(crate) mod stretch;
mod system;
mod text;
mod updates;
mod uploads;

pub use connection::{ReadPace, Served};
pub use docs::openapi_json;
pub use serve::serve;

use crate::context::Context;
use axum::Router;
use catchment_types::{Code, JobState, Problem};
use problem::Failure;
use std::sync::Arc;

/// Everything the gateway answers to.
pub(crate) fn router(context: Arc<Context>) -> Router {
    let (jobs, _) = docs::job_routes().split_for_parts();
    let (rest, _) = docs::other_routes().split_for_parts();
    Router::new()
        .nest("/v1/jobs", jobs.clone())
        .nest("/v1/namespaces/{namespace}/jobs", jobs)
        .merge(rest)
        .merge(peers::routes(context.clone()))
        .fallback(|uri: axum::http::Uri| async move {
            Failure::from(Problem::new(Code::NotFound, format!("there is nothing at {}", uri.path())))
        })
        .method_not_allowed_fallback(|method: axum::http::Method, uri: axum::http::Uri| async move {
            let detail = format!("{method} is not a method of {}; see /openapi.json", uri.path());
            Failure::from(Problem::new(Code::MethodNotAllowed, detail))
        })
        .layer(axum::middleware::map_response(problem::explain))
        .with_state(context)
}

/// A job's state as text.
pub(crate) fn state_text(state: JobState) -> &'static str {
    match state {
        JobState::WaitingForModel => "waiting for its initial model",
        JobState::Running => "running",
        JobState::Paused => "paused",
        JobState::Completed => "completed",
        JobState::Stopped => "stopped",
        JobState::Failed => "failed",
        JobState::Other => "in a state of a later version",
    }
}
