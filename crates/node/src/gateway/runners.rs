//! What operators see and change of runner processes.

use super::problem::Failure;
use crate::context::Context;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use catchment_proxy::{CpuTime, LinkError, Route, RunnerId};
use catchment_types::{Code, Problem, RouteView, RunnerView, RunnersView};
use std::sync::Arc;

/// The runner processes, and the map by which work is routed to them.
#[utoipa::path(get, path = "/v1/runners", tag = "system", responses((status = 200, body = RunnersView)))]
pub async fn list(State(context): State<Arc<Context>>) -> Json<RunnersView> {
    let survey = context.runners.survey();
    let ms = |cpu: Option<CpuTime>, of: fn(CpuTime) -> u64| cpu.map(|cpu| of(cpu) / 1_000_000);
    let runners = survey.runners.iter().map(|runner| RunnerView {
        runner: runner.id.0,
        pid: runner.pid,
        lanes: runner.lanes as u64,
        on_cpu_ms: ms(runner.cpu, |cpu| cpu.on_cpu_ns),
        queued_ms: ms(runner.cpu, |cpu| cpu.queued_ns),
    });
    let routes = context.ledger.read(|state| {
        let view = |route: &catchment_runner::RouteInfo| {
            let job = state.job(route.lane.job)?;
            let count = &route.count;
            Some(RouteView {
                route: count.route.to_string(),
                namespace: job.spec.namespace.clone(),
                job: job.spec.name.clone(),
                lane: route.lane.index,
                runner: count.runner.map(|runner| runner.0),
                kernel: count.kernel,
                socket: count.socket,
                slow: count.slow,
                payload_bytes: count.payload_bytes,
            })
        };
        survey.routes.iter().filter_map(view).collect()
    });
    let report = survey.report;
    Json(RunnersView {
        link: report.as_ref().map_or("in process", |report| report.link.name()).to_owned(),
        lacks: report.and_then(|report| Some(report.routing.or(report.metering)?.to_string())),
        restarts: survey.restarts,
        runners: runners.collect(),
        routes,
    })
}

/// Moves a route to another runner: one update of the map, at any moment.
#[utoipa::path(put, path = "/v1/runners/{runner}/routes/{route}", tag = "system",
    params(("runner" = u32, Path), ("route" = String, Path, description = "sixteen hexadecimal digits")),
    responses((status = 204), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub async fn place(
    State(context): State<Arc<Context>>,
    Path((runner, route)): Path<(u32, String)>,
) -> Result<StatusCode, Failure> {
    let number = u64::from_str_radix(&route, 16)
        .map_err(|_| Problem::new(Code::BadRequest, format!("`{route}` is no route: /v1/runners lists them")))?;
    context.runners.place(Route(number), RunnerId(runner)).map_err(|error| match error {
        LinkError::Unplaced(_) | LinkError::Unknown(_) | LinkError::Gone(_) => {
            Problem::new(Code::NotFound, format!("{error}; /v1/runners lists what there is"))
        }
        other => Problem::new(Code::Internal, other.to_string()),
    })?;
    Ok(StatusCode::NO_CONTENT)
}
