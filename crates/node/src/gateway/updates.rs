//! Updates over HTTP.

use super::body::Body;
use super::connection::Home;
use super::encoding;
use super::path::At;
use super::problem::Failure;
use crate::context::Context;
use crate::meant::{Handed, Meant};
use crate::submit::{Submission, Submitted, submit};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use catchment_ingest::{Said, parse_digest, parse_metrics};
use catchment_types::{JobSpec, Problem, Receipt, TaskId};
use std::sync::Arc;

/// Submits an update: a safetensors body with the model's tensors.
#[utoipa::path(put, path = "/{job}/rounds/{round}/updates/{client}", tag = "clients",
    params(("job" = String, Path), ("round" = u64, Path), ("client" = String, Path),
        ("weight" = Option<f64>, Query, description = "finite, positive; `num_samples` when absent, else 1"),
        ("num_samples" = Option<u64>, Query, description = "samples it was trained on"),
        ("task" = Option<String>, Query, description = "the task it answers, as the check-in named it"),
        ("uid" = Option<String>, Query, description = "the job it is for, as its round or the check-in names it: no \
            namesake takes it then. Needed, unless the task or the base is said, once another job had the name"),
        ("Catchment-Metrics" = Option<String>, Header, description = "JSON object of finite numbers, at most 4 KiB"),
        ("Catchment-Base" = Option<String>, Header, description = "ETag of the model it was trained from; required for deltas"),
        ("Catchment-Digest" = Option<String>, Header, description = "BLAKE3 of the body, checked when present")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 202, body = Receipt), (status = 200, body = Receipt, description = "the same update again"),
        (status = 400, body = Problem), (status = 404, body = Problem), (status = 408, body = Problem),
        (status = 409, body = Problem, description = "`conflict`, `stale_base`, `wrong_state`, `uid_required`"),
        (status = 410, body = Problem, description = "`round_closed`, with `next_round`"), (status = 413, body = Problem),
        (status = 422, body = Problem, description = "`layout`, `not_finite`, `out_of_range`, `invalid_safetensors`, `checksum`"),
        (status = 429, body = Problem), (status = 503, body = Problem)))]
pub async fn put(
    State(context): State<Arc<Context>>,
    at: At,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    home: Option<Extension<Home>>,
    body: axum::body::Body,
) -> Result<(StatusCode, Json<Receipt>), Failure> {
    let request = read_request(&context, &at, &query.unwrap_or_default(), &headers);
    let spec = request.as_ref().ok().map(|submission| submission.spec.clone());
    let mut body = match open(&context, &headers, home, body).await {
        Ok(body) => body,
        Err(problem) => return Err(refuse(&context, spec.as_deref(), None, problem).await),
    };
    let submitted = match request {
        Ok(submission) => submit(&context, submission, &mut body).await,
        Err(Failure(problem)) => {
            tracing::info!(code = %problem.code, detail = %problem.detail, "update refused");
            Err(problem)
        }
    };
    match submitted {
        Ok(Submitted::Accepted(receipt)) => Ok((StatusCode::ACCEPTED, Json(receipt))),
        Ok(Submitted::Duplicate(receipt)) => Ok((StatusCode::OK, Json(receipt))),
        Err(problem) => Err(refuse(&context, spec.as_deref(), Some(body), problem).await),
    }
}

/// The body, from its socket where it is still there.
pub async fn open(
    context: &Arc<Context>,
    headers: &HeaderMap,
    home: Option<Extension<Home>>,
    body: axum::body::Body,
) -> Result<Body, Problem> {
    let (body, declared) = encoding::decoded(context, headers, body).await?;
    Ok(match home.and_then(|home| home.lend()).zip(declared) {
        Some((lent, length)) => Body::socket(lent, length, context),
        None => Body::stream(body, declared, context),
    })
}

/// Counts a refusal, and reads what is left of the body so that the client gets its answer.
pub async fn refuse(context: &Context, spec: Option<&JobSpec>, body: Option<Body>, problem: Problem) -> Failure {
    context.metrics.reject(spec, &problem);
    if let Some(body) = body {
        body.drain().await;
    }
    Failure(problem)
}

fn read_request(context: &Context, at: &At, query: &str, headers: &HeaderMap) -> Result<Submission, Failure> {
    let (round, client) = (at.number("round")?, at.part("client")?);
    let said = Said::parse(query)?;
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("\u{fffd}"));
    let base = parse_digest("Catchment-Base", text("catchment-base"))?;
    let meant = Meant { uid: at.uid, task: said.task.as_deref(), base };
    let (uid, spec) = context.ledger.read(|state| {
        let job = at.find(state)?;
        // The base is compared once the round is known to be there.
        meant.check(state, job, Handed { task: TaskId::derive(job.uid, round, &client), etag: None })?;
        Ok::<_, Failure>((job.uid, job.spec.clone()))
    })?;
    Ok(Submission {
        uid,
        spec,
        round,
        client,
        weight: said.weight,
        num_samples: said.num_samples,
        metrics: parse_metrics(text("catchment-metrics"))?,
        base,
        body_digest: parse_digest("Catchment-Digest", text("catchment-digest"))?,
    })
}
