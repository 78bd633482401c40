//! What the top takes from other nodes: their partials, one after the other, or their updates.

use super::finish::{Scratch, ScratchSlab, Worker};
use super::job::{Input, StepError};
use super::leaf::block_bytes;
use crate::context::Context;
use crate::peers::{Head, Sink, Wanted};
use catchment_ledger::Update;
use catchment_slab::SlabMut;
use catchment_types::{Digest, NodeId};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A leaf of another node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RemoteLeaf {
    /// The node.
    pub node: NodeId,
    /// The leaf.
    pub leaf: u32,
    /// What the log says is in it.
    pub contribution: Digest,
}

/// Writes a stretch of a file.
struct ToFile {
    file: std::fs::File,
    at: u64,
    left: u64,
}

impl Sink for ToFile {
    fn begin(&mut self, head: &Head) -> io::Result<()> {
        let fits = head.bytes == self.left;
        fits.then_some(()).ok_or_else(|| io::Error::other(format!("{} bytes instead of {}", head.bytes, self.left)))
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.at)?;
        (self.at, self.left) = (self.at + bytes.len() as u64, self.left - bytes.len() as u64);
        Ok(())
    }
}

/// Takes a slab of the size that is announced, and fills it.
struct ToSlab {
    worker: Arc<Worker>,
    bytes_max: u64,
    filled: u64,
    slab: Option<SlabMut>,
    meta: Vec<u8>,
}

impl Sink for ToSlab {
    fn begin(&mut self, head: &Head) -> io::Result<()> {
        let meta = head.slab_meta.clone().ok_or_else(|| io::Error::other("nothing is said of the slab"))?;
        if head.bytes > self.bytes_max {
            return Err(io::Error::other(format!("{} bytes, more than an update has", head.bytes)));
        }
        self.slab = Some(self.worker.grant(|store| store.grant(head.bytes)).map_err(io::Error::other)?);
        self.meta = meta;
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let slab = self.slab.as_mut().expect("begun before").bytes_mut();
        let from = self.filled as usize;
        slab[from..from + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len() as u64;
        Ok(())
    }
}

/// Fetches the partial of another node's leaf into memory of this one.
pub async fn partial(worker: &Worker, round: u64, remote: &RemoteLeaf) -> Result<Scratch, StepError> {
    let elements = worker.model.layout.elements();
    let memory = worker.scratch(block_bytes(elements))?;
    let file = super::offered::file_of(memory.accumulator.fd()).map_err(|error| StepError::Again(error.to_string()))?;
    let mut sink = ToFile { file, at: memory.accumulator.data_offset(), left: elements * 8 };
    let (uid, RemoteLeaf { node, leaf, contribution }) = (worker.uid, remote.clone());
    let wanted = Wanted::Partial { uid, round, leaf, contribution };
    fetch(worker, node, &wanted, &mut sink).await?;
    count(&worker.context, worker, "partial", elements * 8);
    Ok(memory)
}

/// Fetches an update of another node.
pub async fn update(worker: &Arc<Worker>, update: &Update) -> Result<(Input, ScratchSlab), StepError> {
    let bytes_max = worker.model.update_bytes_max(&worker.spec).max(worker.model.own.slab_bytes) + (64 << 10);
    let mut sink = ToSlab { worker: worker.clone(), bytes_max, filled: 0, slab: None, meta: Vec::new() };
    let wanted = Wanted::Update(update.receipt);
    fetch(worker, update.accept.node, &wanted, &mut sink).await?;
    let slab = sink.slab.ok_or_else(|| StepError::Again("an update came without a slab".to_owned()))?;
    let slab = slab.freeze(&sink.meta)?;
    count(&worker.context, worker, "update", slab.len());
    let held = ScratchSlab::new(worker.context.clone(), slab.clone());
    Ok((Input::copied(slab, update, worker.spec.mode)?, held))
}

/// Fetches, for as long as the round is as it was: what a node holds that was given up meanwhile is not worth waiting for.
async fn fetch(worker: &Worker, node: NodeId, wanted: &Wanted, sink: &mut dyn Sink) -> Result<(), StepError> {
    let mut revisions = worker.context.ledger.watch_job(worker.uid);
    let again = |why: String| StepError::Again(format!("fetch what another node holds of the round: {why}"));
    tokio::select! {
        fetched = worker.context.peers.fetch(node, wanted, sink) => {
            fetched.map(drop).map_err(|error| again(error.to_string()))
        }
        _ = revisions.changed() => Err(again("the round has changed meanwhile".to_owned())),
    }
}

fn count(context: &Context, worker: &Worker, kind: &str, bytes: u64) {
    let labels = [worker.spec.namespace.as_str(), worker.spec.name.as_str(), kind];
    context.metrics.peer_bytes.with_label_values(&labels).inc_by(bytes);
}
