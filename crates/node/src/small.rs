//! Updates small enough for one message: any client of the bus may send one as a request, and the reply is the receipt.
//!
//! The subject is `catchment.v1.<namespace>.<job>.ingest.<round>.<client>` (or another cluster's prefix), the payload a safetensors file; what HTTP
//! says in the address and in headers is said in headers: `Catchment-Weight`, `Catchment-Num-Samples`,
//! `Catchment-Metrics`, `Catchment-Base`, `Catchment-Digest`, `Catchment-Task`, `Catchment-Uid`. The reply is JSON: a
//! receipt, or a problem with `status`.

use crate::context::Context;
use crate::gateway::body::Body;
use crate::meant::{Handed, Meant};
use crate::requests;
use crate::subjects;
use crate::submit::{Submission, Submitted, submit};
use catchment_bus::{BusError, Message};
use catchment_ingest::{parse_digest, parse_metrics};
use catchment_ledger::Job;
use catchment_types::{ClientId, Code, JobUid, Name, Problem, TaskId};
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
    await_job(context, request).await;
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

/// Reads on in the log when the job is not known: another node may just have created it.
async fn await_job(context: &Context, request: &Message) {
    let Ok(At { namespace, name, .. }) = At::parse(&request.subject) else { return };
    let uid = uid(request).unwrap_or_default();
    let is_meant = |job: &Job| uid.is_none_or(|uid| uid == job.uid);
    if !context.ledger.read(|state| state.job_named(&namespace, &name).is_some_and(is_meant)) {
        context.refresh().await;
    }
}

/// What a subject says.
struct At {
    namespace: Name,
    name: Name,
    round: u64,
    client: ClientId,
}

impl At {
    fn parse(subject: &str) -> Result<Self, Problem> {
        let bad = |why: String| Problem::new(Code::BadRequest, why);
        let tokens: Vec<&str> = subject.split('.').collect();
        let [_, namespace, job, _, round, client] = tokens[..] else {
            return Err(bad(format!("subject `{subject}` is not {}", subjects::EVERY_INGEST)));
        };
        Ok(Self {
            namespace: namespace.parse().map_err(|error| bad(format!("{error}")))?,
            name: job.parse().map_err(|error| bad(format!("{error}")))?,
            client: client.parse().map_err(|error| bad(format!("{error}")))?,
            round: round.parse().map_err(|_| bad(format!("round `{round}` is not a whole number")))?,
        })
    }
}

/// The job's identity, where a header says it.
fn uid(request: &Message) -> Result<Option<JobUid>, Problem> {
    let Some(text) = request.header("Catchment-Uid") else { return Ok(None) };
    text.parse().map(Some).map_err(|error| Problem::new(Code::BadRequest, format!("Catchment-Uid: {error}")))
}

fn read(context: &Context, request: &Message) -> Result<Submission, Problem> {
    let At { namespace, name, round, client } = At::parse(&request.subject)?;
    let base = parse_digest("Catchment-Base", request.header("Catchment-Base"))?;
    let meant = Meant { uid: uid(request)?, task: request.header("Catchment-Task"), base };
    let (uid, spec) = context.ledger.read(|state| {
        let job = state.job_named(&namespace, &name);
        let none = || Problem::new(Code::NotFound, format!("there is no job `{name}` in namespace `{namespace}`"));
        let job = job.ok_or_else(none)?;
        meant.check(state, job, Handed { task: TaskId::derive(job.uid, round, &client), etag: None })?;
        Ok::<_, Problem>((job.uid, job.spec.clone()))
    })?;
    Ok(Submission {
        uid,
        spec,
        round,
        client,
        weight: number(request, "Catchment-Weight")?,
        num_samples: number(request, "Catchment-Num-Samples")?,
        metrics: parse_metrics(request.header("Catchment-Metrics"))?,
        base,
        body_digest: parse_digest("Catchment-Digest", request.header("Catchment-Digest"))?,
    })
}

fn number<T: std::str::FromStr>(request: &Message, header: &str) -> Result<Option<T>, Problem> {
    let Some(text) = request.header(header) else { return Ok(None) };
    let bad = |_| Problem::new(Code::BadRequest, format!("{header}: `{text}` is not a number of the right kind"));
    text.parse().map(Some).map_err(bad)
}
