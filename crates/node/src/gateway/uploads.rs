//! Uploads that are gone on with: how far one is, and the rest of it.

use super::connection::Home;
use super::path::At;
use super::problem::Failure;
use super::updates::{open, refuse};
use crate::context::Context;
use crate::meant::{Handed, Meant};
use crate::parking::{Address, unknown};
use crate::resume::{Resumed, Standing, look, resume};
use crate::submit::Submitted;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use catchment_ingest::{Part, Said, parse_digest};
use catchment_types::{ClientId, Code, JobSpec, Problem, Receipt, TaskId};
use std::sync::Arc;

/// How far an update is, after its connection broke: `Upload-Offset` says where a PATCH goes on. An update that another
/// connection still sends is taken from it. Kept are, as long as the round is open and the node's disk has room for
/// them, plain bodies with a `Content-Length` whose safetensors header had come; nothing is kept of chunked and compressed
/// ones.
#[utoipa::path(head, path = "/{job}/rounds/{round}/updates/{client}", tag = "clients",
    params(("job" = String, Path), ("round" = u64, Path), ("client" = String, Path),
        ("uid" = Option<String>, Query, description = "the job it is for, as with PUT"),
        ("task" = Option<String>, Query, description = "the task it answers, as with PUT")),
    responses((status = 204, headers(
            ("Upload-Offset" = u64, description = "bytes that are here"),
            ("Upload-Length" = u64, description = "bytes of the whole update"),
            ("Upload-Complete" = String, description = "`?1` once it is accepted, else `?0`"))),
        (status = 404, description = "nothing is kept: PUT it whole"),
        (status = 409, description = "`wrong_state`, `uid_required`"),
        (status = 410, description = "`round_closed`"), (status = 503)))]
pub async fn head(
    State(context): State<Arc<Context>>,
    at: At,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let (spec, address) = find(&context, &at, query.as_deref(), &headers)?;
    let (offset, length, is_complete) = match look(&context, &spec, &address).await? {
        Standing::Accepted(length) => (length, length, true),
        Standing::Parked(progress) => (progress.offset, progress.length, false),
    };
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(standing(response, offset, length, is_complete))
}

/// Goes on with an update after its connection broke. What the first PUT said of it counts: weight, samples, metrics,
/// base and digest. The answer to its last part is that to a PUT; 204 asks for more.
#[utoipa::path(patch, path = "/{job}/rounds/{round}/updates/{client}", tag = "clients",
    params(("job" = String, Path), ("round" = u64, Path), ("client" = String, Path),
        ("uid" = Option<String>, Query, description = "the job it is for, as with PUT"),
        ("task" = Option<String>, Query, description = "the task it answers, as with PUT"),
        ("Upload-Offset" = u64, Header, description = "bytes before this part, as HEAD says"),
        ("Upload-Complete" = Option<String>, Header,
            description = "`?1`: the update ends with this part; `?0`: it does not; when absent, its length decides"),
        ("Catchment-Digest" = Option<String>, Header, description = "BLAKE3 of the whole body: says that it is the same update"),
        ("Content-Length" = u64, Header, description = "a part is neither chunked nor compressed")),
    request_body(content = Vec<u8>, content_type = "application/partial-upload"),
    responses((status = 202, body = Receipt), (status = 200, body = Receipt, description = "the same update again"),
        (status = 204, description = "more is missing; headers as with HEAD"),
        (status = 400, body = Problem, description = "`bad_request`: longer than what is missing, or of no known length; `truncated`: it may be gone on with"),
        (status = 404, body = Problem, description = "nothing is kept: PUT it whole"), (status = 408, body = Problem),
        (status = 409, body = Problem,
            description = "`wrong_offset`, with the right `Upload-Offset`, or without when another connection sends it; `conflict`, `wrong_state`, `uid_required`"),
        (status = 410, body = Problem, description = "`round_closed`, with `next_round`"), (status = 415, body = Problem),
        (status = 422, body = Problem, description = "`not_finite`, `out_of_range`, `checksum`"), (status = 503, body = Problem)))]
pub async fn patch(
    State(context): State<Arc<Context>>,
    at: At,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    home: Option<Extension<Home>>,
    body: axum::body::Body,
) -> Result<Response, Response> {
    let found = find(&context, &at, query.as_deref(), &headers);
    let spec = found.as_ref().ok().map(|(spec, _)| spec.clone());
    let opened = match plain(&headers) {
        Ok(()) => open(&context, &headers, home, body).await,
        Err(problem) => Err(problem),
    };
    let (mut body, resumed) = match opened {
        Err(problem) => (None, Err(problem)),
        Ok(mut body) => {
            let resumed = match (found, part(&headers)) {
                (Ok((spec, address)), Ok(part)) => resume(&context, &spec, address, part, &mut body).await,
                (Err(Failure(problem)), _) | (_, Err(problem)) => Err(problem),
            };
            (Some(body), resumed)
        }
    };
    let problem = match resumed {
        Ok(Resumed::Parked(progress)) => {
            return Ok(standing(StatusCode::NO_CONTENT.into_response(), progress.offset, progress.length, false));
        }
        Ok(Resumed::Submitted(submitted)) => {
            let (status, receipt) = match *submitted {
                Submitted::Accepted(receipt) => (StatusCode::ACCEPTED, receipt),
                Submitted::Duplicate(receipt) => (StatusCode::OK, receipt),
            };
            return Ok((status, [("upload-complete", "?1")], Json(receipt)).into_response());
        }
        Err(problem) => problem,
    };
    let member = |name: &str| problem.extra.get(name).and_then(serde_json::Value::as_u64);
    let stands = member("upload_offset").zip(member("upload_length"));
    let is_complete = problem.extra.contains_key("upload_complete");
    let response = refuse(&context, spec.as_deref(), body.take(), problem).await.into_response();
    Err(match stands {
        Some((offset, length)) => standing(response, offset, length, is_complete),
        None => response,
    })
}

/// The upload's job and address: of the job that is meant, as a PUT says it.
fn find(
    context: &Context,
    at: &At,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<(Arc<JobSpec>, Address), Failure> {
    let (round, client): (u64, ClientId) = (at.number("round")?, at.part("client")?);
    let said = Said::parse_known(query.unwrap_or_default())?;
    let base = headers.get("catchment-base").map(|value| value.to_str().unwrap_or("\u{fffd}"));
    let base = parse_digest("Catchment-Base", base)?;
    let meant = Meant { uid: at.uid, task: said.task.as_deref(), base };
    let (spec, address, doubt) = context.ledger.read(|state| {
        let job = at.find(state)?;
        let address = Address { uid: job.uid, round, client: client.clone() };
        let etag = job.base_at(round).map(|model| model.commit.etag);
        let handed = Handed { task: TaskId::derive(job.uid, round, &client), etag };
        match meant.check(state, job, handed) {
            Ok(()) => Ok((job.spec.clone(), address, None)),
            Err(problem) if problem.is(Code::UidRequired) => {
                let is_there = job.update_at(round, &client).is_some();
                Ok((job.spec.clone(), address, Some((problem, is_there))))
            }
            Err(problem) => Err(Failure::from(problem)),
        }
    })?;
    match doubt {
        None => Ok((spec, address)),
        // Of nothing there is no doubt whose it is; the PUT that follows says it. What is parked is asked for once the ledger
        // is left: nobody waits for another lock while it is read.
        Some((problem, is_there)) if is_there || context.parking.knows(&address) => Err(problem.into()),
        Some(_) => Err(unknown().into()),
    }
}

fn part(headers: &HeaderMap) -> Result<Part, Problem> {
    // A field that comes twice is a list, which none of these is.
    let text = |name: &str| {
        let mut values = headers.get_all(name).iter();
        let first = values.next()?;
        Some(first.to_str().ok().filter(|_| values.next().is_none()).unwrap_or("\u{fffd}"))
    };
    Part::parse(text)
}

/// The rest of a plain body is plain.
fn plain(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            let detail = "a PATCH is not compressed: it goes on with the bytes of a plain body";
            Err(Problem::new(Code::UnsupportedEncoding, detail))
        }
        _ => Ok(()),
    }
}

fn standing(mut response: Response, offset: u64, length: u64, is_complete: bool) -> Response {
    let headers = response.headers_mut();
    headers.insert("upload-offset", HeaderValue::from(offset));
    headers.insert("upload-length", HeaderValue::from(length));
    headers.insert("upload-complete", HeaderValue::from_static(if is_complete { "?1" } else { "?0" }));
    response
}
