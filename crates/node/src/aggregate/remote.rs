//! What is taken from other nodes: partials of their leaves or branches, updates whole or in excerpts, slices of a model.

use super::finish::Facts;
use super::input::Input;
use super::job::StepError;
use super::leaf::block_bytes;
use super::pieces::Order;
use super::ranges::Range;
use super::scratch::Scratch;
use super::worker::Worker;
use crate::peers::{Excerpt, FetchError, Head, Sink, Wanted};
use crate::slab_meta::SlabMeta;
use catchment_ledger::Update;
use catchment_slab::SlabMut;
use catchment_types::{Digest, NodeId, Section};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

/// Where stretches of an update's segments begin in its copy: no two share a page.
const PAGE_BYTES: u64 = 4096;

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
        self.slab =
            Some(self.worker.grant(|store| store.grant(self.worker.owner(), head.bytes)).map_err(io::Error::other)?);
        self.meta = meta;
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let slab = self.slab.as_mut().expect("begun before").bytes_mut();
        put(slab, &mut self.filled, bytes);
        Ok(())
    }
}

fn put(slab: &mut [u8], at: &mut u64, bytes: &[u8]) {
    slab[*at as usize..][..bytes.len()].copy_from_slice(bytes);
    *at += bytes.len() as u64;
}

/// Takes excerpts of an update's segments, one after the other, into one slab.
struct ToExcerpts<'a> {
    worker: &'a Worker,
    excerpts: &'a [Excerpt],
    /// The one that comes now.
    current: usize,
    at: u64,
    copy: Option<(SlabMut, SlabMeta)>,
}

impl ToExcerpts<'_> {
    /// Takes memory, now that it is known how wide the elements are.
    fn grant(&mut self, noted: Option<&Vec<u8>>) -> io::Result<()> {
        let noted = noted.and_then(|noted| SlabMeta::decode(noted));
        let mut meta = noted.ok_or_else(|| io::Error::other("nothing is said of the slab"))?;
        let mut end: u64 = 0;
        for excerpt in self.excerpts {
            let section = meta.sections.get_mut(excerpt.segment as usize);
            let Section { dtype, offset, bytes } = section.ok_or_else(|| io::Error::other("a segment is missing"))?;
            (*offset, *bytes) = (end, excerpt.elements * (dtype.bits() / 8));
            end = (end + *bytes).next_multiple_of(PAGE_BYTES);
        }
        self.copy =
            Some((self.worker.grant(|store| store.grant(self.worker.owner(), end)).map_err(io::Error::other)?, meta));
        Ok(())
    }
}

impl Sink for ToExcerpts<'_> {
    fn begin(&mut self, head: &Head) -> io::Result<()> {
        if self.copy.is_none() {
            self.grant(head.slab_meta.as_ref())?;
        }
        let (_, meta) = self.copy.as_ref().expect("granted just now");
        let section = meta.sections[self.excerpts[self.current].segment as usize];
        if head.bytes != section.bytes {
            return Err(io::Error::other(format!("{} bytes instead of {}", head.bytes, section.bytes)));
        }
        self.at = section.offset;
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (slab, _) = self.copy.as_mut().expect("begun before");
        put(slab.bytes_mut(), &mut self.at, bytes);
        Ok(())
    }
}

/// Fetches the partial of another node's leaf into memory of this one.
pub async fn partial(worker: &Worker, round: u64, remote: &RemoteLeaf) -> Result<Scratch, StepError> {
    let RemoteLeaf { node, leaf, contribution } = *remote;
    let maker = worker.maker();
    into_block(worker, node, &Wanted::Partial { uid: worker.uid, round, leaf, contribution, maker }).await
}

/// Fetches a branch's partial, which another node makes.
pub async fn branch(worker: &Worker, ordered: Ordered) -> Result<Scratch, StepError> {
    let node = ordered.node;
    into_block(worker, node, &ordered.made().await?).await
}

async fn into_block(worker: &Worker, node: NodeId, wanted: &Wanted) -> Result<Scratch, StepError> {
    let elements = worker.model.layout.elements();
    let memory = worker.scratch(block_bytes(elements))?;
    into(worker, node, wanted, &memory, 0, elements * 8, "partial").await?;
    Ok(memory)
}

/// Fetches a slice of the model, which another node makes, to its place in memory of this one.
pub async fn slice(worker: &Worker, ordered: Ordered, out: &Scratch, offset: u64, bytes: u64) -> Result<(), StepError> {
    let node = ordered.node;
    into(worker, node, &ordered.made().await?, out, offset, bytes, "slice").await
}

async fn into(
    worker: &Worker,
    node: NodeId,
    wanted: &Wanted,
    memory: &Scratch,
    offset: u64,
    bytes: u64,
    kind: &str,
) -> Result<(), StepError> {
    let file = super::offered::file_of(memory.accumulator.fd()).map_err(|error| StepError::Again(error.to_string()))?;
    let mut sink = ToFile { file, at: memory.accumulator.data_offset() + offset, left: bytes };
    fetch(worker, node, wanted, &mut sink).await?;
    count(worker, kind, bytes);
    Ok(())
}

/// Every update of a round that is made of all of them, or what each has in `part`: ranges that follow one another.
pub async fn inputs(worker: &Arc<Worker>, facts: &Facts, part: Option<&[Range]>) -> Result<Vec<Input>, StepError> {
    let mut inputs = Vec::new();
    for found in &facts.gathered {
        inputs.push(match part {
            _ if found.accept.node == worker.context.node => Input::find(&worker.context, found, worker.spec.mode)?,
            Some(ranges) => excerpt(worker, found, ranges).await?,
            None => update(worker, found).await?,
        });
    }
    Ok(inputs)
}

/// Fetches an update of another node.
async fn update(worker: &Arc<Worker>, update: &Update) -> Result<Input, StepError> {
    let bytes_max = worker.model.update_bytes_max(&worker.spec).max(worker.model.own.slab_bytes) + (64 << 10);
    let mut sink = ToSlab { worker: worker.clone(), bytes_max, filled: 0, slab: None, meta: Vec::new() };
    fetch(worker, update.accept.node, &Wanted::Update(update.receipt), &mut sink).await?;
    let slab = sink.slab.ok_or_else(|| StepError::Again("an update came without a slab".to_owned()))?;
    let slab = slab.freeze(&sink.meta)?;
    count(worker, "update", slab.len());
    Input::copied(worker, slab, Vec::new(), update)
}

/// Fetches what an update of another node has in these ranges, which follow one another.
async fn excerpt(worker: &Worker, update: &Update, ranges: &[Range]) -> Result<Input, StepError> {
    let excerpts: Vec<Excerpt> = ranges.chunk_by(|a, b| a.segment == b.segment).map(Excerpt::of).collect();
    let mut sink = ToExcerpts { worker, excerpts: &excerpts, current: 0, at: 0, copy: None };
    for (current, excerpt) in excerpts.iter().enumerate() {
        sink.current = current;
        let wanted = Wanted::Excerpt { receipt: update.receipt, excerpt: *excerpt };
        fetch(worker, update.accept.node, &wanted, &mut sink).await?;
    }
    let (slab, meta) = sink.copy.ok_or_else(|| StepError::Again("an update came without a slab".to_owned()))?;
    let mut firsts = vec![0; meta.sections.len()];
    excerpts.iter().for_each(|excerpt| firsts[excerpt.segment as usize] = excerpt.first);
    let noted = meta.encode().map_err(|problem| StepError::Again(problem.detail))?;
    let bytes = excerpts.iter().map(|excerpt| meta.sections[excerpt.segment as usize].bytes).sum();
    count(worker, "update", bytes);
    Input::copied(worker, slab.freeze(&noted)?, firsts, update)
}

/// Has another node make a piece, from now on.
pub fn order(worker: &Arc<Worker>, node: NodeId, order: Order) -> Ordered {
    let (worker, name) = (worker.clone(), order.name());
    let making = async move { unless_changed(&worker, worker.context.peers.order(node, &order)).await };
    Ordered { node, name, making: AbortOnDropHandle::new(tokio::spawn(making)) }
}

/// A piece that was ordered; nobody waits for it any more once this is dropped.
pub struct Ordered {
    /// Who makes it.
    pub node: NodeId,
    name: Digest,
    making: AbortOnDropHandle<Result<(), StepError>>,
}

impl Ordered {
    /// Waits until it is made. Gives what it is fetched by.
    async fn made(self) -> Result<Wanted, StepError> {
        self.making.await.map_err(|error| StepError::Again(error.to_string()))??;
        Ok(Wanted::Piece(self.name))
    }
}

async fn fetch(worker: &Worker, node: NodeId, wanted: &Wanted, sink: &mut dyn Sink) -> Result<(), StepError> {
    unless_changed(worker, worker.context.peers.fetch(node, wanted, sink)).await.map(drop)
}

/// Goes on for as long as the round is as it was: what a node holds that was given up meanwhile is not worth waiting for.
async fn unless_changed<T>(
    worker: &Worker,
    asked: impl Future<Output = Result<T, FetchError>>,
) -> Result<T, StepError> {
    let mut revisions = worker.context.ledger.watch_job(worker.uid);
    let again = |why: String| StepError::Again(format!("fetch what another node holds of the round: {why}"));
    tokio::select! {
        came = asked => came.map_err(|error| again(error.to_string())),
        _ = revisions.changed() => Err(again("the round has changed meanwhile".to_owned())),
    }
}

fn count(worker: &Worker, kind: &str, bytes: u64) {
    let labels = [worker.spec.namespace.as_str(), worker.spec.name.as_str(), kind];
    worker.context.metrics.peer_bytes.with_label_values(&labels).inc_by(bytes);
}
