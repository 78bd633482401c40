//! Updates small enough for one message: any client of the bus may send one as a request, and the reply is the receipt.
//!
//! The subject is `catchment.v1.<namespace>.<job>.ingest.<round>.<client>`, the payload a safetensors file; what HTTP
//! says in the address and in headers is said in headers: `Catchment-Weight`, `Catchment-Num-Samples`,
//! `Catchment-Metrics`, `Catchment-Base`, `Catchment-Digest`. The reply is JSON: a receipt, or a problem with `status`.

use crate::context::Context;
use crate::gateway::body::Body;
use crate::requests;
use crate::subjects;
use crate::submit::{Submission, Submitted, submit};
use catchment_bus::{BusError, Message};
use catchment_ingest::{parse_digest, parse_metrics};
use catchment_types::{ClientId, Code, Name, Problem};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Answers requests until `stop`.
///
/// # Errors
/// When the subject cannot be subscribed to.
pub async fn run(context: Arc<Context>, stop: CancellationToken) -> Result<(), BusError> {
    requests::serve(context, subjects::EVERY_INGEST, Some("catchment-ingest"), stop, answer).await
}

async fn answer(context: Arc<Context>, request: Arc<Message>) -> Vec<u8> {
    let (context, request) = (&context, &request);
    let (spec, submitted) = match read(context, request) {
        Ok(submission) => {
            let mut body = Body::whole(request.payload.clone(), context);
            let spec = submission.spec.clone();
            (Some(spec), submit(context, submission, &mut body).await)
        }
        Err(problem) => (None, Err(problem)),
    };
    match submitted {
        Ok(Submitted::Accepted(receipt) | Submitted::Duplicate(receipt)) => serde_json::to_vec(&receipt),
        Err(problem) => {
            context.metrics.reject(spec.as_deref(), &problem);
            serde_json::to_vec(&problem)
        }
    }
    .unwrap_or_default()
}

fn read(context: &Context, request: &Message) -> Result<Submission, Problem> {
    let bad = |why: String| Problem::new(Code::BadRequest, why);
    let tokens: Vec<&str> = request.subject.split('.').collect();
    let [_, _, namespace, job, _, round, client] = tokens[..] else {
        return Err(bad(format!("subject `{}` is not {}", request.subject, subjects::EVERY_INGEST)));
    };
    let namespace: Name = namespace.parse().map_err(|error| bad(format!("{error}")))?;
    let name: Name = job.parse().map_err(|error| bad(format!("{error}")))?;
    let client: ClientId = client.parse().map_err(|error| bad(format!("{error}")))?;
    let round = round.parse().map_err(|_| bad(format!("round `{round}` is not a whole number")))?;
    let found = context.ledger.read(|state| state.job_named(&namespace, &name).map(|job| (job.uid, job.spec.clone())));
    let (uid, spec) = found
        .ok_or_else(|| Problem::new(Code::NotFound, format!("there is no job `{name}` in namespace `{namespace}`")))?;
    Ok(Submission {
        uid,
        spec: Arc::new(spec),
        round,
        client,
        weight: number(request, "Catchment-Weight")?,
        num_samples: number(request, "Catchment-Num-Samples")?,
        metrics: parse_metrics(request.header("Catchment-Metrics"))?,
        base: parse_digest("Catchment-Base", request.header("Catchment-Base"))?,
        body_digest: parse_digest("Catchment-Digest", request.header("Catchment-Digest"))?,
    })
}

fn number<T: std::str::FromStr>(request: &Message, header: &str) -> Result<Option<T>, Problem> {
    let Some(text) = request.header(header) else { return Ok(None) };
    let bad = |_| Problem::new(Code::BadRequest, format!("{header}: `{text}` is not a number of the right kind"));
    text.parse().map(Some).map_err(bad)
}
