//! What operators ask: probes, metrics, the interface's description, the functions at hand.

use super::problem::Failure;
use crate::context::Context;
use crate::gauges;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use catchment_proxy::Lack;
use catchment_types::{Code, FunctionView, JobUid, Page, Problem};
use std::sync::{Arc, PoisonError};

/// Whether the process is alive.
#[utoipa::path(get, path = "/healthz", tag = "system", responses((status = 200)))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether updates can be accepted now.
#[utoipa::path(get, path = "/readyz", tag = "system", responses((status = 200), (status = 503, body = Problem)))]
pub async fn readyz(State(context): State<Arc<Context>>) -> Result<&'static str, Failure> {
    if context.ending.drain.is_cancelled() {
        Err(Problem::new(Code::NotReady, "the node is about to end: others take its work").into())
    } else if let Some(why) = context.ledger.fault() {
        Err(Problem::new(Code::NotReady, format!("the event log cannot be followed: {why}")).into())
    } else if !(context.ledger.is_reachable() && context.bus.events.is_connected()) {
        Err(Problem::new(Code::NotReady, "the event bus cannot be reached").into())
    } else {
        let writable = context.readiness.look(&context).await;
        writable.map(|()| "ready\n").map_err(|why| Problem::new(Code::NotReady, why).into())
    }
}

/// Metrics in Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "system", responses((status = 200, content_type = "text/plain", body = String)))]
pub async fn metrics(State(context): State<Arc<Context>>) -> Response {
    let usage = context.store.usage();
    let states = [
        ("granted", usage.granted_bytes),
        ("frozen", usage.frozen_bytes),
        ("accumulator", usage.accumulator_bytes),
        ("free", usage.free_bytes),
    ];
    for (state, bytes) in states {
        context.metrics.slab_bytes.with_label_values(&[state]).set(bytes as i64);
    }
    let (huge, small) = context.store.huge_files();
    for (pages, files) in [("2m", huge), ("4k", small)] {
        context.metrics.slab_large_files.with_label_values(&[pages]).set(files as i64);
    }
    context.metrics.writable.set(context.readiness.look(&context).await.is_ok().into());
    context.metrics.log_followed.set(context.ledger.fault().is_none().into());
    context.metrics.log_foreign.set(context.ledger.read(|state| state.foreign()) as i64);
    // Work that was under way may have counted after its job was deleted. Refusals of unknown jobs have no names.
    context.metrics.forget(|named| named != ["", ""] && !is_job(&context, named));
    let _one = context.metrics.scrape.lock().unwrap_or_else(PoisonError::into_inner);
    gauges::show(&context);
    gauge_runners(&context);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], context.metrics.text()).into_response()
}

/// Looked up one by one: the ledger is not kept from its work while all series are gone through.
fn is_job(context: &Context, [namespace, job]: [&str; 2]) -> bool {
    let named = namespace.parse().ok().zip(job.parse().ok());
    named.is_some_and(|(namespace, job)| context.ledger.read(|state| state.job_named(&namespace, &job).is_some()))
}

fn gauge_runners(context: &Context) {
    let (survey, metrics) = (context.runners.survey(), &context.metrics);
    metrics.runners.set(survey.runners.len() as i64);
    metrics.runner_restarts.reset();
    metrics.runner_restarts.inc_by(survey.restarts);
    if let Some(cpu) = survey.cpu {
        for (state, ns) in [("running", cpu.on_cpu_ns), ("queued", cpu.queued_ns)] {
            let counter = metrics.runner_cpu.with_label_values(&[state]);
            counter.reset();
            counter.inc_by(ns as f64 / 1e9);
        }
    }
    if let Some(report) = &survey.report {
        let lacks = |lack: &Option<Lack>| lack.as_ref().map_or("", |lack| lack.missing.name());
        let labels = [report.link.name(), lacks(&report.routing), lacks(&report.metering)];
        metrics.link.with_label_values(&labels).set(1);
    }
    let is_gone = |uid: &&JobUid| context.ledger.read(|state| state.job(**uid).is_none());
    survey.jobs.keys().filter(is_gone).for_each(|uid| context.runners.erase(*uid));
    context.ledger.read(|state| {
        for (job, counts) in survey.jobs.iter().filter_map(|(uid, counts)| Some((state.job(*uid)?, counts))) {
            let labels = [job.spec.namespace.as_str(), job.spec.name.as_str()];
            let payload = metrics.descriptor_payload.with_label_values(&labels);
            payload.reset();
            payload.inc_by(counts.payload_bytes);
            for (path, count) in &counts.by_path {
                let counter = metrics.descriptors.with_label_values(&[labels[0], labels[1], path]);
                counter.reset();
                counter.inc_by(*count);
            }
        }
    });
}

/// The interface's description.
#[utoipa::path(get, path = "/openapi.json", tag = "system", responses((status = 200)))]
pub async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], super::openapi_json()).into_response()
}

/// The functions that jobs can name.
#[utoipa::path(get, path = "/v1/functions", tag = "functions", responses((status = 200, body = Page<FunctionView>)))]
pub async fn functions(State(context): State<Arc<Context>>) -> Json<Page<FunctionView>> {
    Json(Page { items: context.functions.list(), cursor: None })
}

/// One function.
#[utoipa::path(get, path = "/v1/functions/{function}", tag = "functions", params(("function" = String, Path)),
    responses((status = 200, body = FunctionView), (status = 404, body = Problem)))]
pub async fn function(
    State(context): State<Arc<Context>>,
    Path(name): Path<String>,
) -> Result<Json<FunctionView>, Failure> {
    let found = context.functions.list().into_iter().find(|function| function.name == name);
    found.map(Json).ok_or_else(|| Problem::new(Code::NotFound, format!("there is no function `{name}`")).into())
}

/// A page for people who open the address in a browser.
pub async fn index(State(context): State<Arc<Context>>) -> (StatusCode, Html<String>) {
    let rows: String = context.ledger.read(|state| {
        let row = |job: &catchment_ledger::Job| {
            let (round, spec) = (job.round_view(), &job.spec);
            format!(
                "<tr><td>{}/{}</td><td>{}</td><td>{} of {}</td><td>{} of {}</td><td>{}</td></tr>",
                spec.namespace,
                spec.name,
                super::state_text(job.state),
                round.round,
                spec.rounds,
                round.received,
                round.goal,
                round.model_version.map_or_else(|| "none".to_owned(), |version| version.to_string())
            )
        };
        state.jobs_by_name().map(row).collect()
    });
    let page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Catchment</title>\
         <style>body{{font:16px system-ui;margin:2em}}td,th{{text-align:left;padding:.3em 1em .3em 0}}</style>\
         <h1>Catchment</h1><table><tr><th>job<th>state<th>round<th>updates<th>model</tr>{rows}</table>\
         <p><a href=/openapi.json>interface</a> · <a href=/metrics>metrics</a></p></html>"
    );
    (StatusCode::OK, Html(page))
}
