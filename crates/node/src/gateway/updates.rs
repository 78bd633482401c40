//! Updates over HTTP.

use super::body::Body;
use super::path::At;
use super::problem::Failure;
use crate::context::Context;
use crate::submit::{Submission, Submitted, submit};
use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use catchment_types::{Code, Digest, JobSpec, Problem, Receipt, TaskId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of `Catchment-Metrics`.
const METRICS_BYTES_MAX: usize = 4 << 10;

/// What is said of an update in its address.
#[derive(Debug, Default, utoipa::IntoParams)]
pub struct Said {
    /// Its weight: finite, positive; `num_samples` when absent, else 1.
    weight: Option<f64>,
    /// Samples it was trained on.
    num_samples: Option<u64>,
    /// The task it answers, as the check-in named it.
    task: Option<String>,
}

impl Said {
    fn parse(query: &str) -> Result<Self, Problem> {
        let mut said = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let bad = |expected: &str| {
                Problem::new(Code::BadRequest, format!("{name}=`{value}` in the address: expected {expected}"))
            };
            match name {
                "weight" => said.weight = Some(value.parse().map_err(|_| bad("a number"))?),
                "num_samples" => said.num_samples = Some(value.parse().map_err(|_| bad("a whole number"))?),
                "task" => said.task = Some(value.to_owned()),
                _ => return Err(bad("only weight, num_samples and task are known")),
            }
        }
        Ok(said)
    }
}

/// Submits an update: a safetensors body with the model's tensors.
#[utoipa::path(put, path = "/{job}/rounds/{round}/updates/{client}", tag = "clients",
    params(("job" = String, Path), ("round" = u64, Path), ("client" = String, Path), Said,
        ("Catchment-Metrics" = Option<String>, Header, description = "JSON object of finite numbers, at most 4 KiB"),
        ("Catchment-Base" = Option<String>, Header, description = "ETag of the model it was trained from; required for deltas"),
        ("Catchment-Digest" = Option<String>, Header, description = "BLAKE3 of the body, checked when present")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 202, body = Receipt), (status = 200, body = Receipt, description = "the same update again"),
        (status = 400, body = Problem), (status = 404, body = Problem), (status = 408, body = Problem),
        (status = 409, body = Problem, description = "`conflict`, `stale_base`, `wrong_state`"),
        (status = 410, body = Problem, description = "`round_closed`, with `next_round`"), (status = 413, body = Problem),
        (status = 422, body = Problem, description = "`layout`, `not_finite`, `out_of_range`, `invalid_safetensors`, `checksum`"),
        (status = 429, body = Problem), (status = 503, body = Problem)))]
pub async fn put(
    State(context): State<Arc<Context>>,
    at: At,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: axum::body::Body,
) -> Result<(StatusCode, Json<Receipt>), Failure> {
    let declared = headers.get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
    let mut body = Body::stream(body, declared, context.config.pace);
    let mut spec = None;
    let submitted = match read_request(&context, &at, &query.unwrap_or_default(), &headers) {
        Ok(submission) => {
            spec = Some(submission.spec.clone());
            submit(&context, submission, &mut body).await
        }
        Err(Failure(problem)) => Err(problem),
    };
    match submitted {
        Ok(Submitted::Accepted(receipt)) => Ok((StatusCode::ACCEPTED, Json(receipt))),
        Ok(Submitted::Duplicate(receipt)) => Ok((StatusCode::OK, Json(receipt))),
        Err(problem) => {
            let code = Code::ALL.iter().find(|code| code.as_str() == problem.code);
            context.metrics.reject(spec.as_deref(), *code.unwrap_or(&Code::Internal));
            tracing::info!(code = %problem.code, detail = %problem.detail, "update refused");
            body.drain().await;
            Err(problem.into())
        }
    }
}

fn read_request(context: &Context, at: &At, query: &str, headers: &HeaderMap) -> Result<Submission, Failure> {
    let (uid, spec) = context.ledger.read(|state| at.find(state).map(|job| (job.uid, job.spec.clone())))?;
    let (round, client) = (at.number("round")?, at.part("client")?);
    let said = Said::parse(query)?;
    if let Some(task) = &said.task
        && task.parse::<TaskId>().ok() != Some(TaskId::derive(uid, round, &client))
    {
        let detail = format!("task `{task}` is not a task of client `{client}` for round {round} of this job");
        return Err(Problem::new(Code::Conflict, detail).into());
    }
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("\u{fffd}"));
    Ok(Submission {
        uid,
        spec: Arc::<JobSpec>::new(spec),
        round,
        client,
        weight: said.weight,
        num_samples: said.num_samples,
        metrics: parse_metrics(text("catchment-metrics"))?,
        base: parse_digest("Catchment-Base", text("catchment-base"))?,
        body_digest: parse_digest("Catchment-Digest", text("catchment-digest"))?,
    })
}

/// A digest in a header, with or without the quotes and the weak mark of an ETag.
pub fn parse_digest(name: &str, text: Option<&str>) -> Result<Option<Digest>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let bare = text.trim().trim_start_matches("W/").trim_matches('"');
    bare.parse().map(Some).map_err(|error| Problem::new(Code::BadRequest, format!("{name}: {error}")))
}

/// The numbers that a client reports.
pub fn parse_metrics(text: Option<&str>) -> Result<BTreeMap<String, f64>, Problem> {
    let Some(text) = text else { return Ok(BTreeMap::new()) };
    let bad = |why: String| {
        Problem::new(Code::BadRequest, format!("Catchment-Metrics is a JSON object of finite numbers: {why}"))
    };
    if text.len() > METRICS_BYTES_MAX {
        return Err(bad(format!("{} bytes, the limit is {METRICS_BYTES_MAX}", text.len())));
    }
    let metrics: BTreeMap<String, f64> = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    match metrics.iter().find(|(_, value)| !value.is_finite()) {
        Some((name, value)) => Err(bad(format!("`{name}` is {value}"))),
        None => Ok(metrics),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_weight_and_samples() {
        let said = Said::parse("weight=2.5&num_samples=10").unwrap();
        assert_eq!((said.weight, said.num_samples), (Some(2.5), Some(10)));
        assert!(Said::parse("weight=x").unwrap_err().detail.contains("weight=`x`"));
        assert!(Said::parse("num_samples=-1").is_err());
        assert!(Said::parse("wieght=1").is_err());
        assert!(Said::parse("").unwrap().weight.is_none());
    }

    #[test]
    fn metrics_are_finite_numbers() {
        assert_eq!(parse_metrics(Some(r#"{"loss":0.5}"#)).unwrap()["loss"], 0.5);
        for bad in ["[]", "{\"a\":\"b\"}", "{\"a\":1e999}", "{", &"x".repeat(5000)] {
            assert!(parse_metrics(Some(bad)).is_err(), "{bad}");
        }
    }
}
