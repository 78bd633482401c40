//! Work cut by coordinate across nodes, for functions that need every update of a coordinate.
//!
//! Each node that holds updates makes a slice of the model, as large as its part of the round. It takes that slice of the
//! other nodes' updates, so a byte of an update crosses the network once at most, however many nodes there are. A slice
//! that does not come from its node is made at the top.

use super::finish::Facts;
use super::gather::{Gather, all, is_failure};
use super::job::{Input, StepError};
use super::pieces::{Order, Piece};
use super::scratch::Scratch;
use super::worker::Worker;
use super::{remote, tree};
use crate::peers::models::ensure;
use catchment_planner::Levels;
use catchment_types::{Digest, NodeId};
use std::ops::Range;
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

/// A node, ranges of the model, and the order for them, when it is another node's.
type Slice = (NodeId, Range<usize>, Option<AbortOnDropHandle<Result<Digest, StepError>>>);

/// The model in canonical layout. `None`: it is not made in slices, or the function failed on one: then it is made of all
/// updates at once, which tells the culprits.
pub async fn whole(worker: &Arc<Worker>, facts: &Arc<Facts>) -> Result<Option<Scratch>, StepError> {
    let Levels::Slices(planned) = tree::shape(worker, facts.round) else { return Ok(None) };
    let elements = u128::from(worker.model.layout.elements());
    let mut slices: Vec<Slice> = Vec::new();
    for slice in planned {
        let at = |part: u64| (u128::from(part) * elements / u128::from(slice.of.max(1))) as u64;
        let ranges = ranges(worker, at(slice.begin), at(slice.end));
        if !ranges.is_empty() {
            let ordered = (slice.node != worker.context.node).then(|| order(worker, facts, slice.node, &ranges));
            slices.push((slice.node, ranges, ordered));
        }
    }
    if slices.len() < 2 {
        return Ok(None);
    }
    let out = Arc::new(worker.scratch(worker.model.own.slab_bytes)?);
    for (node, ranges, ordered) in slices {
        let came = match ordered {
            Some(ordered) => slice_of(worker, node, &ranges, ordered, &out).await,
            None => false,
        };
        if !came && !make(worker, facts, ranges, &out).await? {
            return Ok(None);
        }
    }
    Ok(Arc::into_inner(out))
}

/// The stretch of a new model's canonical layout that was ordered: its memory, offset and length.
pub async fn piece(worker: &Arc<Worker>, round: u64, begin: u64, end: u64) -> Result<(Scratch, u64, u64), StepError> {
    let again = |why: &str| StepError::Again(why.to_owned());
    let facts = Facts::read(worker, round).ok_or_else(|| again("the round is not closed here"))?;
    let ranges = ranges(worker, begin, end);
    let ends_at = worker.ranges[..ranges.end].last().map(|last| last.base + last.elements);
    if begin >= end || worker.ranges.get(ranges.start).map(|first| first.base) != Some(begin) || ends_at != Some(end) {
        return Err(again("this node cuts the model elsewhere"));
    }
    let (context, facts) = (&worker.context, Arc::new(facts));
    ensure(context, worker.uid, &facts.previous).await.map_err(|problem| StepError::Again(problem.detail))?;
    let out = Arc::new(worker.scratch(worker.model.own.slab_bytes)?);
    if !make(worker, &facts, ranges.clone(), &out).await? {
        return Err(again("the function failed on the slice"));
    }
    let (offset, bytes) = stretch(worker, &ranges);
    let out = Arc::into_inner(out).ok_or_else(|| again("somebody still writes"))?;
    Ok((out, offset, bytes))
}

/// Ranges that begin between these coordinates.
fn ranges(worker: &Worker, begin: u64, end: u64) -> Range<usize> {
    let before = |coordinate: u64| worker.ranges.partition_point(|range| range.base < coordinate);
    before(begin)..before(end)
}

/// Where ranges lie in the canonical layout: offset and length.
fn stretch(worker: &Worker, ranges: &Range<usize>) -> (u64, u64) {
    let (begin, ..) = worker.canonical(&worker.ranges[ranges.start]);
    let (last, bytes, _) = worker.canonical(&worker.ranges[ranges.end - 1]);
    (begin, last + bytes - begin)
}

fn order(
    worker: &Arc<Worker>,
    facts: &Facts,
    node: NodeId,
    ranges: &Range<usize>,
) -> AbortOnDropHandle<Result<Digest, StepError>> {
    let (first, last) = (worker.ranges[ranges.start], worker.ranges[ranges.end - 1]);
    let piece = Piece::Slice { begin: first.base, end: last.base + last.elements };
    let order = Order { uid: worker.uid, round: facts.round, contribution: facts.contribution, piece };
    let worker = worker.clone();
    AbortOnDropHandle::new(tokio::spawn(async move { remote::order(&worker, node, &order).await }))
}

/// Takes a slice that another node has made. Returns whether it came.
async fn slice_of(
    worker: &Worker,
    node: NodeId,
    ranges: &Range<usize>,
    ordered: AbortOnDropHandle<Result<Digest, StepError>>,
    out: &Scratch,
) -> bool {
    let (offset, bytes) = stretch(worker, ranges);
    let came = async {
        let name = ordered.await.map_err(|error| StepError::Again(error.to_string()))??;
        remote::piece(worker, node, name, out, offset, bytes, "slice").await
    };
    came.await.inspect_err(|error| tracing::warn!(%node, %error, "a slice did not come; making it here")).is_ok()
}

/// Makes some ranges of the model. Returns whether the function managed.
async fn make(
    worker: &Arc<Worker>,
    facts: &Arc<Facts>,
    ranges: Range<usize>,
    out: &Arc<Scratch>,
) -> Result<bool, StepError> {
    let mut inputs = Vec::new();
    for update in &facts.gathered {
        inputs.push(match update.accept.node == worker.context.node {
            true => Input::find(&worker.context, update, worker.spec.mode)?,
            false => remote::excerpt(worker, update, &worker.ranges[ranges.clone()]).await?,
        });
    }
    let (facts, out) = (facts.clone(), out.clone());
    let work = move |worker: &Worker| {
        let previous = worker.previous(&facts.previous)?;
        let (seed, total_weight) = (worker.seed(facts.round), facts.total_weight);
        let gather = Gather { worker, total_weight, seed, previous: previous.as_ref(), out: &out };
        match gather.combine(&all(&inputs), &ranges.collect::<Vec<_>>()) {
            Ok(()) => Ok(true),
            Err(error) if is_failure(&error) => Ok(false),
            Err(error) => Err(worker.failure("combine", error)),
        }
    };
    worker.working(work).await
}
