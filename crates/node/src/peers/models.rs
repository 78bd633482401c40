//! Models on every node: each keeps the files of the versions that the log says are kept, and fetches those that it lacks.

use super::{FetchError, Head, Sink, Wanted};
use crate::context::Context;
use crate::models::Draft;
use catchment_types::{Code, Digest, JobUid, ModelCommit, NodeId, Problem};
use std::io;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long somebody who needs a model waits for it: a node that has just come hears the others, and learns who has what,
/// within a heartbeat or two.
const PATIENCE: Duration = Duration::from_secs(3);
/// Before the first look after one in vain; then twice as long each time.
const PAUSE: Duration = Duration::from_millis(20);

/// Nodes beside this one that have a model before it is published, where there are so many.
const COPIES: usize = 1;
/// How long they may take. Then the model is published all the same: it is on a disk.
const COPY_TIME: Duration = Duration::from_secs(60);

struct ToDraft(Draft);

impl Sink for ToDraft {
    fn begin(&mut self, _: &Head) -> io::Result<()> {
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write(bytes)
    }
}

/// Fetches a version's file if this node lacks it.
///
/// # Errors
/// `not_ready` when no node gives it in time.
pub async fn ensure(context: &Context, uid: JobUid, commit: &ModelCommit) -> Result<(), Problem> {
    ensure_from(context, uid, commit.version, commit.etag, commit.node).await
}

/// The same; `node` is asked first.
pub async fn ensure_from(
    context: &Context,
    uid: JobUid,
    version: u64,
    etag: Digest,
    node: NodeId,
) -> Result<(), Problem> {
    if context.models.has(uid, version, etag) {
        return Ok(());
    }
    let (peers, until) = (&context.peers, Instant::now() + PATIENCE);
    let one = peers.fetching.lock().await.entry((uid, version)).or_default().clone();
    let guard = one.lock().await;
    let mut pause = PAUSE;
    let result = loop {
        if context.models.has(uid, version, etag) {
            break Ok(());
        }
        match fetch(context, uid, version, etag, node).await {
            Err(_) if !peers.fleet.is_alone() && Instant::now() + pause < until => sleep(pause).await,
            Err(last) => {
                tracing::warn!(job = %uid, version, %last, "fetch a model");
                let detail =
                    format!("this node does not have model version {version}, and cannot fetch it now: {last}");
                break Err(Problem::new(Code::NotReady, detail));
            }
            Ok(()) => break Ok(()),
        }
        pause *= 2;
    };
    drop(guard);
    peers.fetching.lock().await.remove(&(uid, version));
    result
}

/// Asks every other node once; says what the last of them said.
async fn fetch(context: &Context, uid: JobUid, version: u64, etag: Digest, node: NodeId) -> Result<(), String> {
    let wanted = Wanted::Model { uid, version, etag };
    let mut last = "no other node is heard".to_owned();
    for beat in context.peers.others(node) {
        match fetch_from(context, &beat, uid, version, &wanted).await {
            Ok(()) => {
                tracing::debug!(job = %uid, version, from = beat.name, "fetched a model");
                return Ok(());
            }
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

async fn fetch_from(
    context: &Context,
    beat: &catchment_fleet::NodeBeat,
    uid: JobUid,
    version: u64,
    wanted: &Wanted,
) -> Result<(), FetchError> {
    let unique = JobUid::from_bytes(context.entropy.bytes16());
    let mut sink = ToDraft(context.draft(uid, &format!("fetch-{version}-{unique}"))?);
    let digest = context.peers.fetch(beat.node, wanted, &mut sink).await?;
    if !matches!(wanted, Wanted::Model { etag, .. } if *etag == digest) {
        return Err(FetchError::Damaged(beat.name.clone()));
    }
    let models = context.models.clone();
    let kept = tokio::task::spawn_blocking(move || models.keep(sink.0, uid, version)).await;
    kept.map_err(io::Error::other)??;
    Ok(())
}

/// Fetches the initial and the newest model of a job where this node lacks them, and removes those that the log keeps no
/// longer. Versions between come when somebody asks for them.
pub async fn keep_in_step(context: &Context, uid: JobUid) {
    let wanted = context.ledger.read(|state| {
        let job = state.job(uid)?;
        Some([job.model(0)?.commit.clone(), job.newest_model()?.commit.clone()])
    });
    for commit in wanted.into_iter().flatten() {
        // What does not come now comes when it is asked for.
        ensure(context, uid, &commit).await.ok();
    }
    context.prune_models(uid).await;
}

/// Has other nodes keep a model before it is published, so that it outlives this one.
pub async fn spread(context: &Context, uid: JobUid, version: u64, etag: Digest) {
    let wanted = Wanted::Model { uid, version, etag };
    let mut copies = 0;
    for beat in context.peers.others(context.node).into_iter().filter(|beat| !beat.draining) {
        if copies == COPIES {
            break;
        }
        match tokio::time::timeout(COPY_TIME, context.peers.offer(&beat, &wanted)).await {
            Ok(Ok(())) => copies += 1,
            Ok(Err(error)) => tracing::warn!(%error, version, "have another node keep a model"),
            Err(_) => tracing::warn!(node = beat.name, version, "another node takes too long to copy a model"),
        }
    }
}
