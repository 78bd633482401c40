//! What clients measured of models.

use super::jobs::unreachable_log;
use super::path::At;
use super::problem::Failure;
use super::text::Text;
use crate::context::Context;
use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use catchment_ingest::parse_numbers;
use catchment_ledger::{EvaluateOutcome, Evaluation, MEASURED_MAX};
use catchment_types::{ClientId, Code, EvaluationResult, EvaluationView, JobUid, Problem};
use serde::Deserialize;
use std::sync::Arc;

/// On how much it was measured.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct Samples {
    /// Samples it was measured on; 1 when absent.
    num_samples: Option<u64>,
}

/// Reports what a client measured of a model on its own data: a JSON object of finite numbers, at most 4 KiB. Counts once
/// for each client and version; the answer is what all of them found so far.
#[utoipa::path(put, path = "/{job}/models/{version}/evaluations/{client}", tag = "clients",
    params(("job" = String, Path), ("version" = u64, Path), ("client" = String, Path), Samples),
    request_body = std::collections::BTreeMap<String, f64>,
    responses((status = 201, body = EvaluationView), (status = 200, body = EvaluationView, description = "the same again"),
        (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem, description = "`conflict`: the client reported other numbers; `wrong_state`: the \
            version has all the results it takes"),
        (status = 503, body = Problem)))]
pub async fn put(
    State(context): State<Arc<Context>>,
    at: At,
    Query(samples): Query<Samples>,
    Text(body): Text,
) -> Result<(StatusCode, Json<EvaluationView>), Failure> {
    let (version, client): (u64, ClientId) = (at.number("version")?, at.part("client")?);
    let uid = context.ledger.read(|state| at.find(state).map(|job| job.uid))?;
    let bad = |why: &str| Failure(Problem::new(Code::BadRequest, format!("an evaluation is a JSON object: {why}")));
    let text = std::str::from_utf8(&body).map_err(|_| bad("the body is no text"))?;
    let metrics = parse_numbers("an evaluation", text)?;
    if metrics.is_empty() {
        return Err(bad("it names no number"));
    }
    let result = EvaluationResult { client: client.clone(), num_samples: samples.num_samples.unwrap_or(1), metrics };
    let answer = context.within(context.config.accept_wait, context.ledger.evaluate(uid, version, result)).await;
    let outcome = answer.map_err(|_| unreachable_log())?.map_err(|_| unreachable_log())?;
    let status = match outcome {
        EvaluateOutcome::Counted => StatusCode::CREATED,
        EvaluateOutcome::Duplicate => StatusCode::OK,
        refused => return Err(refusal(refused, version, &client).into()),
    };
    Ok((status, Json(publish(&context, uid, version))))
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

/// What was measured of a version; shown in the metrics too, when nothing newer was measured.
fn publish(context: &Context, uid: JobUid, version: u64) -> EvaluationView {
    context.ledger.read(|state| {
        let Some(job) = state.job(uid) else { return EvaluationView::default() };
        let view = job.evaluation(version).map(Evaluation::view).unwrap_or_default();
        let is_newest = (version + 1..job.models.len() as u64).all(|newer| job.evaluation(newer).is_none());
        if is_newest {
            let named = view.metrics.iter().map(|(name, value)| (format!("eval_{name}"), *value)).collect();
            context.metrics.publish([job.spec.namespace.as_str(), job.spec.name.as_str()], &named);
        }
        view
    })
}
