//! What clients measured of models.

use super::jobs::unreachable_log;
use super::path::At;
use super::problem::Failure;
use super::text::Text;
use crate::context::Context;
use crate::meant::{Handed, Meant};
use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use catchment_ingest::{Said, check_samples, parse_digest, parse_numbers};
use catchment_ledger::{EvaluateOutcome, Evaluation, MEASURED_MAX};
use catchment_types::{ClientId, Code, EvaluationResult, EvaluationView, JobUid, Problem, TaskId};
use std::sync::Arc;

/// Reports what a client measured of a model on its own data: a JSON object of finite numbers, at most 4 KiB. Counts once
/// for each client and version; the answer is what all of them found so far.
#[utoipa::path(put, path = "/{job}/models/{version}/evaluations/{client}", tag = "clients",
    params(("job" = String, Path), ("version" = u64, Path), ("client" = String, Path),
        ("num_samples" = Option<u64>, Query, description = "samples it was measured on; 1 when absent"),
        ("task" = Option<String>, Query, description = "the task it answers, as the check-in named it"),
        ("uid" = Option<String>, Query, description = "the job, as its round or the check-in names it: no namesake takes \
            it then. Needed, unless the task or the base is said, once another job had the name"),
        ("Catchment-Base" = Option<String>, Header, description = "ETag of the model that was measured")),
    request_body = std::collections::BTreeMap<String, f64>,
    responses((status = 201, body = EvaluationView), (status = 200, body = EvaluationView, description = "the same again"),
        (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem, description = "`conflict`: the client reported other numbers; `wrong_state`: the \
            version has all the results it takes; `stale_base`, `uid_required`"),
        (status = 422, body = Problem, description = "`out_of_range`: no samples"),
        (status = 503, body = Problem)))]
pub async fn put(
    State(context): State<Arc<Context>>,
    at: At,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    Text(body): Text,
) -> Result<(StatusCode, Json<EvaluationView>), Failure> {
    let (version, client): (u64, ClientId) = (at.number("version")?, at.part("client")?);
    let said = Said::parse_known(&query.unwrap_or_default())?;
    let num_samples = check_samples(said.num_samples)?;
    let text = headers.get("catchment-base").map(|value| value.to_str().unwrap_or("\u{fffd}"));
    let base = parse_digest("Catchment-Base", text)?;
    let meant = Meant { uid: at.uid, task: said.task.as_deref(), base };
    let uid = context.ledger.read(|state| {
        let job = at.find(state)?;
        let task = TaskId::derive_evaluation(job.uid, version, &client);
        let etag = job.model(version).map(|model| model.commit.etag);
        meant.check(state, job, Handed { task, etag }).map(|()| job.uid).map_err(Failure::from)
    })?;
    let bad = |why: &str| Failure(Problem::new(Code::BadRequest, format!("an evaluation is a JSON object: {why}")));
    let text = std::str::from_utf8(&body).map_err(|_| bad("the body is no text"))?;
    let metrics = parse_numbers("an evaluation", text)?;
    if metrics.is_empty() {
        return Err(bad("it names no number"));
    }
    let result = EvaluationResult { client: client.clone(), num_samples, metrics };
    let mut outcome = report(&context, uid, version, result.clone()).await?;
    if outcome == EvaluateOutcome::UnknownVersion {
        // Another node may have published it already.
        context.refresh().await;
        outcome = report(&context, uid, version, result).await?;
    }
    let status = match outcome {
        EvaluateOutcome::Counted => StatusCode::CREATED,
        EvaluateOutcome::Duplicate => StatusCode::OK,
        refused => return Err(refusal(refused, version, &client).into()),
    };
    let view = context.ledger.read(|state| state.job(uid)?.evaluation(version).map(Evaluation::view));
    Ok((status, Json(view.unwrap_or_default())))
}

async fn report(
    context: &Context,
    uid: JobUid,
    version: u64,
    result: EvaluationResult,
) -> Result<EvaluateOutcome, Failure> {
    let answer = context.within(context.config.accept_wait, context.ledger.evaluate(uid, version, result)).await;
    answer.map_err(|_| unreachable_log())?.map_err(|_| unreachable_log())
}

fn refusal(outcome: EvaluateOutcome, version: u64, client: &ClientId) -> Problem {
    match outcome {
        EvaluateOutcome::Conflict => {
            let detail = format!("client `{client}` has reported other numbers for version {version} already");
            Problem::new(Code::Conflict, detail)
        }
        EvaluateOutcome::Enough => {
            Problem::new(Code::WrongState, format!("version {version} has all the results that it takes"))
        }
        EvaluateOutcome::UnknownJob => Problem::new(Code::NotFound, "the job was deleted meanwhile"),
        _ => {
            let detail = format!(
                "there is no version {version} to measure: results are taken for versions that are kept, of the newest \
                 {MEASURED_MAX}"
            );
            Problem::new(Code::NotFound, detail)
        }
    }
}
