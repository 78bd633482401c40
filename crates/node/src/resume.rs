//! Goes on with an upload whose connection broke (after the IETF's draft on resumable uploads for HTTP).
//!
//! The first PUT counts for all that is said of the update. The bytes that came are where they belong, digested and
//! screened, so that nothing of them is read again.

use crate::context::Context;
use crate::gateway::body::Body;
use crate::parking::{Address, Live, Standstill, Taken, unknown};
use crate::submit::{Submitted, accept, log_unavailable, receive, refusal, span, told};
use crate::upload::{Progress, Upload};
use catchment_ingest::Part;
use catchment_ledger::AcceptOutcome;
use catchment_types::{Code, JobSpec, Problem};
use std::sync::Arc;
use std::time::Duration;
use tracing::Instrument;

/// How long a connection may take to let go of an upload, beside what the log takes.
const LET_GO_TIME: Duration = Duration::from_secs(1);

/// How far an update is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// So much of it is here.
    Parked(Progress),
    /// It is accepted, so many bytes long.
    Accepted(u64),
}

/// What became of a part.
#[derive(Debug)]
pub enum Resumed {
    /// It was the last.
    Submitted(Box<Submitted>),
    /// More is missing.
    Parked(Progress),
}

/// How far the update at `address` is. A connection that still receives it lets go of it: its client has given it up, or
/// it would not ask.
///
/// # Errors
/// `not_found` when nothing is known of it; why it could not be accepted.
pub async fn look(context: &Context, spec: &JobSpec, address: &Address) -> Result<Standing, Problem> {
    if !context.parking.settle(address, context.config.accept_wait + LET_GO_TIME).await {
        return Err(Problem::new(Code::NotReady, "the update is on its way to the log: ask again"));
    }
    match judge(context, spec, address)? {
        Some(length) => Ok(Standing::Accepted(length)),
        None => context.parking.progress(address).map(Standing::Parked).ok_or_else(unknown),
    }
}

/// Goes on with the upload at `address`.
///
/// # Errors
/// `wrong_offset`, with the right one where there is one; `not_found` when nothing is known of it; `bad_request` for a
/// part that is longer than what is missing, or does not say its length; and whatever a whole update is refused for.
pub async fn resume(
    context: &Arc<Context>,
    spec: &Arc<JobSpec>,
    address: Address,
    part: Part,
    body: &mut Body,
) -> Result<Resumed, Problem> {
    let span = span(spec, &address);
    told(go_on(context, spec, address, part, body)).instrument(span).await
}

async fn go_on(
    context: &Arc<Context>,
    spec: &Arc<JobSpec>,
    address: Address,
    part: Part,
    body: &mut Body,
) -> Result<Resumed, Problem> {
    if let Some(length) = judge(context, spec, &address)? {
        let problem = wrong_offset("the update is accepted", Progress { offset: length, length });
        return Err(problem.with("upload_complete", true));
    }
    if !context.ledger.is_reachable() {
        return Err(log_unavailable());
    }
    let Some(part_bytes) = body.length() else {
        return Err(Problem::new(Code::BadRequest, "a PATCH needs a Content-Length: a chunked body cannot go on"));
    };
    let taken = context.parking.resume(address, |Standstill { progress, body_digest }| {
        fits(part, part_bytes, progress)?;
        if part.body_digest.zip(body_digest).is_some_and(|(said, before)| said != before) {
            return Err(wrong_offset("what is here began with another Catchment-Digest", progress));
        }
        Ok(())
    })?;
    let (live, mut upload) = match taken {
        Taken::Memory(live, upload) => (live, *upload),
        Taken::File(live, stored) => match Upload::restore(context, spec.clone(), stored.path).await {
            Ok(upload) => (live, upload),
            Err(problem) => {
                // While there is no room its file stays.
                Some(live).into_iter().filter(|_| !problem.retryable).for_each(Live::over);
                return Err(problem);
            }
        },
    };
    part.body_digest.into_iter().for_each(|digest| upload.declare(digest));
    context.metrics.uploads_resumed.with_label_values(&[spec.namespace.as_str(), spec.name.as_str()]).inc();
    let (live, upload) = receive(context, Some(live), upload, body).await?;
    match (live, upload.progress()) {
        (Some(live), Some(progress)) if upload.is_resumable() || part.ends == Some(false) => {
            let parked = live.park(upload, |address| address.is_open(context));
            parked.then_some(Resumed::Parked(progress)).ok_or_else(unknown)
        }
        // Who asks for it meanwhile waits for the log's answer.
        (live, _) => {
            let (accepted, is_over) = match upload.freeze() {
                Ok(frozen) => {
                    let accepted = accept(context, frozen).await;
                    // When the log does not answer, what is in a file may be gone on with.
                    let is_over = accepted.as_ref().map_or_else(|problem| !problem.retryable, |_| true);
                    (accepted, is_over)
                }
                // Its bytes are not what was declared: the same would come of what is in a file.
                Err(problem) => (Err(problem), true),
            };
            live.into_iter().filter(|_| is_over).for_each(Live::over);
            Ok(Resumed::Submitted(Box::new(accepted?)))
        }
    }
}

/// The length of an accepted update; `None` while one could be accepted.
fn judge(context: &Context, spec: &JobSpec, address: &Address) -> Result<Option<u64>, Problem> {
    let Address { uid, round, client } = address;
    context.ledger.read(|state| match state.judge(*uid, *round, client, None) {
        None => Ok(None),
        Some(AcceptOutcome::Duplicate(_)) => {
            let standing = state.job(*uid).and_then(|job| job.update_at(*round, client));
            Ok(standing.map(|update| update.accept.bytes))
        }
        Some(other) => Err(refusal(spec, address, other)),
    })
}

/// Whether a part of `part_bytes` bytes goes on where an upload is.
fn fits(part: Part, part_bytes: u64, progress: Progress) -> Result<(), Problem> {
    if part.offset != progress.offset {
        return Err(wrong_offset(&format!("the part begins at byte {}", part.offset), progress));
    }
    let missing = progress.length - progress.offset;
    let detail = match part.ends {
        _ if part_bytes > missing => format!("the part has {part_bytes} bytes, and {missing} are missing"),
        Some(true) if part_bytes < missing => {
            format!(
                "Upload-Complete says that the update ends with these {part_bytes} bytes, and {missing} are missing"
            )
        }
        _ => return Ok(()),
    };
    Err(Problem::new(Code::BadRequest, detail))
}

fn wrong_offset(why: &str, Progress { offset, length }: Progress) -> Problem {
    let detail = format!("{why}; {offset} of {length} bytes are here");
    Problem::new(Code::WrongOffset, detail).with("upload_offset", offset).with("upload_length", length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_goes_on_where_the_upload_is_and_not_beyond_its_end() {
        let progress = Progress { offset: 60, length: 100 };
        let code = |offset, ends, bytes| {
            fits(Part { offset, ends, body_digest: None }, bytes, progress).map_err(|problem| problem.code)
        };
        for (ends, bytes) in [(None, 0), (None, 40), (Some(false), 0), (Some(false), 40), (Some(true), 40)] {
            assert_eq!(code(60, ends, bytes), Ok(()));
        }
        for (ends, bytes) in [(None, 41), (Some(false), u64::MAX), (Some(true), 39)] {
            assert_eq!(code(60, ends, bytes), Err("bad_request".to_owned()));
        }
        for offset in [0, 59, 61, u64::MAX] {
            assert_eq!(code(offset, None, 40), Err("wrong_offset".to_owned()));
        }
    }
}
