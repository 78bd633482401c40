//! Rounds that are about to open.
//!
//! A round opens by a decision that follows what a caller did: the initial model came, a paused job goes on, a job has more
//! rounds now. The caller asks for the round next, so it is answered once the round is there.

use crate::context::Context;
use catchment_ledger::Job;
use catchment_types::{JobState, JobUid};
use std::time::Duration;

/// How long a round is waited for. Without a coordinator none opens.
const OPENING_TIME: Duration = Duration::from_secs(2);
/// How long the log may take to say that there is more.
const READ_TIME: Duration = Duration::from_secs(1);

/// Waits until the job's next round is open, or it will not open now.
pub async fn settled(context: &Context, uid: JobUid) {
    let mut revisions = context.ledger.watch_job(uid);
    let settled = async {
        while context.ledger.read(|state| state.job(uid).is_some_and(is_opening)) {
            if revisions.changed().await.is_err() {
                break;
            }
        }
    };
    if tokio::time::timeout(OPENING_TIME, settled).await.is_err() {
        tracing::warn!(job = %uid, "no coordinator has opened the job's round yet");
    }
}

/// Whether a decision is due that opens a round.
pub fn is_opening(job: &Job) -> bool {
    job.state == JobState::Running && job.active_round().is_none() && job.round_number() < job.spec.rounds
}

/// Reads on in the log, so that an answer shows what another node was asked before. Not for long where the log does not
/// answer: what is known is shown then.
pub async fn read_on(context: &Context) {
    tokio::time::timeout(READ_TIME, context.refresh()).await.ok();
}
