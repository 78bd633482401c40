//! The models that deltas are added to, and how far from zero their elements are.
//!
//! Whether a delta leaves the range of the model's dtype depends on the element that it is added to. To compare each with
//! each would be a second pass over every update; so the largest element of each tensor is found once for a model version,
//! when it is written or first asked for, and only deltas that are beside it too large for any are looked at closely.

use crate::context::Context;
use crate::layouts::ModelLayout;
use crate::peers::models::ensure_from;
use crate::submit::Submission;
use catchment_ingest::{Base, largest};
use catchment_types::{Digest, Fit, FunctionClass, JobUid, NodeId, Placed, UpdateKind};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OnceCell;

/// Versions of a job that are known at one time: the newest, and the one before it, whose updates may still be on their way.
const VERSIONS_MAX: usize = 2;
/// Bytes looked at at one time.
const READ_BYTES: usize = 1 << 20;

/// Which model version, and the node that made it.
#[derive(Debug, Clone, Copy)]
struct Made {
    version: u64,
    etag: Digest,
    node: NodeId,
}

/// A model version that deltas are added to.
#[derive(Debug)]
pub struct BaseModel {
    file: File,
    data_begin: u64,
    /// For each tensor of the file, how far from zero its elements are at most.
    pub largest: Vec<f64>,
}

impl Base for BaseModel {
    fn read(&self, begin: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, self.data_begin + begin)
    }
}

type Known = (Digest, Arc<OnceCell<Arc<BaseModel>>>);

/// What is known of the newest versions of each job.
#[derive(Debug, Default)]
pub struct Bases {
    known: Mutex<HashMap<JobUid, Vec<Known>>>,
}

impl Bases {
    /// The model that deltas of a round with this model are added to. `None` when its file cannot be had now: then nothing
    /// is known of it, and what becomes of the updates shows when their model is made.
    async fn get(
        &self,
        context: &Arc<Context>,
        uid: JobUid,
        Made { version, etag, node }: Made,
        model: &Arc<ModelLayout>,
    ) -> Option<Arc<BaseModel>> {
        let cell = self.cell(uid, etag);
        let find = || async {
            ensure_from(context, uid, version, etag, node).await.map_err(|problem| problem.detail)?;
            let file = context.models.file(uid, version, etag).map_err(|error| error.to_string())?;
            let model = model.clone();
            let look = move || look(file, &model).map_err(|error| error.to_string());
            tokio::task::spawn_blocking(look).await.map_err(|error| error.to_string())?.map(Arc::new)
        };
        let found = cell.get_or_try_init(find).await;
        found
            .inspect_err(|error| tracing::warn!(job = %uid, %error, "look at the model that deltas are added to"))
            .ok()
            .cloned()
    }

    /// Takes note of a version that was written just now, whose tensors' elements are at most so far from zero.
    pub fn note(&self, uid: JobUid, etag: Digest, file: File, data_begin: u64, largest: Vec<f64>) {
        self.cell(uid, etag).set(Arc::new(BaseModel { file, data_begin, largest })).ok();
    }

    /// Forgets a deleted job.
    pub fn forget(&self, uid: JobUid) {
        let forgotten = self.lock().remove(&uid);
        drop(forgotten);
    }

    fn cell(&self, uid: JobUid, etag: Digest) -> Arc<OnceCell<Arc<BaseModel>>> {
        let mut jobs = self.lock();
        let versions = jobs.entry(uid).or_default();
        if let Some((_, cell)) = versions.iter().find(|(known, _)| *known == etag) {
            return cell.clone();
        }
        let cell = Arc::new(OnceCell::new());
        versions.insert(0, (etag, cell.clone()));
        let old = versions.split_off(VERSIONS_MAX.min(versions.len()));
        drop(jobs);
        // Files are closed without the lock.
        drop(old);
        cell
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobUid, Vec<Known>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The fit of an update for this round with bounds on its elements, of which none may leave the range of the model's dtype
/// or of sums if it were the round's only update; and the model that they are compared with, if they are deltas.
pub async fn bounded(
    context: &Arc<Context>,
    submission: &Submission,
    round: u64,
    model: &Arc<ModelLayout>,
    fit: Fit,
) -> (Fit, Option<Arc<dyn Base>>) {
    // What other functions make of one update is theirs to know; when they make no model of it, it is left out.
    if model.takes.class() != FunctionClass::Additive {
        return (fit, None);
    }
    let fit = fit.in_sums(&model.layout, submission.weight());
    if submission.spec.update != UpdateKind::Delta {
        return (fit, None);
    }
    let made = context.ledger.read(|state| {
        let job = state.job(submission.uid)?;
        let commit = &job.model(job.round_numbered(round)?.model_version)?.commit;
        Some(Made { version: commit.version, etag: commit.etag, node: commit.node })
    });
    let Some(made) = made else { return (fit, None) };
    match context.bases.get(context, submission.uid, made, model).await {
        Some(base) => (fit.as_deltas(&model.layout, |tensor| base.largest.get(tensor).copied()), Some(base)),
        None => (fit, None),
    }
}

fn look(file: File, model: &ModelLayout) -> io::Result<BaseModel> {
    let mut buffer = Vec::new();
    let tensors =
        model.own.tensors.iter().map(|tensor| largest_in(&file, model.header.data_begin, tensor, &mut buffer));
    let largest = tensors.collect::<io::Result<_>>()?;
    Ok(BaseModel { file, data_begin: model.header.data_begin, largest })
}

fn largest_in(file: &File, data_begin: u64, tensor: &Placed, buffer: &mut Vec<u8>) -> io::Result<f64> {
    let (mut at, mut most) = (tensor.begin, 0.0);
    while tensor.slab_offset.is_some() && at < tensor.end {
        buffer.resize(READ_BYTES.min((tensor.end - at) as usize), 0);
        file.read_exact_at(buffer, data_begin + at)?;
        most = f64::max(most, largest(tensor.dtype, buffer));
        at += buffer.len() as u64;
    }
    Ok(most)
}
