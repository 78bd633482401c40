//! Work cut by coordinate across nodes, for functions that need every update of a coordinate.
//!
//! Each node that holds updates makes a slice of the model, as large as its part of the round. It takes that slice of the
//! other nodes' updates, so a byte of an update crosses the network once at most, however many nodes there are. A slice
//! that does not come from its node is made at the top.

use super::finish::Facts;
use super::gather::{Gather, all, is_failure};
use super::job::StepError;
use super::pieces::{Order, Piece};
use super::remote::{self, Ordered};
use super::scratch::Scratch;
use super::tree;
use super::worker::Worker;
use crate::peers::models::ensure;
use catchment_planner::Levels;
use catchment_types::NodeId;
use std::ops::Range;
use std::sync::Arc;

/// Ranges of the model, and the order for them when another node makes them.
type Slice = (Range<usize>, Option<Ordered>);

/// The model in canonical layout. `None`: it is not made in slices, or the function failed on one: then it is made of all
/// updates at once, which tells the culprits.
pub async fn whole(worker: &Arc<Worker>, facts: &Arc<Facts>) -> Result<Option<Scratch>, StepError> {
    let Levels::Slices(planned) = tree::plan(worker, facts.round) else { return Ok(None) };
    let elements = u128::from(worker.model.layout.elements());
    let mut slices: Vec<Slice> = Vec::new();
    for slice in planned {
        let at = |part: u64| (u128::from(part) * elements / u128::from(slice.of.max(1))) as u64;
        let ranges = ranges(worker, at(slice.begin), at(slice.end));
        if !ranges.is_empty() {
            let ordered = (slice.node != worker.context.node).then(|| order(worker, facts, slice.node, &ranges));
            slices.push((ranges, ordered));
        }
    }
    if slices.len() < 2 {
        return Ok(None);
    }
    let out = Arc::new(worker.scratch(worker.model.own.slab_bytes)?);
    for (ranges, ordered) in slices {
        let came = match ordered {
            Some(ordered) => slice_of(worker, &ranges, ordered, &out).await,
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

fn order(worker: &Arc<Worker>, facts: &Facts, node: NodeId, ranges: &Range<usize>) -> Ordered {
    let (first, last) = (worker.ranges[ranges.start], worker.ranges[ranges.end - 1]);
    let piece = Piece::Slice { begin: first.base, end: last.base + last.elements };
    let Facts { round, contribution, .. } = *facts;
    remote::order(worker, node, Order { uid: worker.uid, round, contribution, maker: worker.maker(), piece })
}

/// Takes a slice that another node makes. Returns whether it came.
async fn slice_of(worker: &Worker, ranges: &Range<usize>, ordered: Ordered, out: &Scratch) -> bool {
    let (node, (offset, bytes)) = (ordered.node, stretch(worker, ranges));
    let came = remote::slice(worker, ordered, out, offset, bytes).await;
    came.inspect_err(|error| tracing::warn!(%node, %error, "a slice did not come; making it here")).is_ok()
}

/// Makes some ranges of the model. Returns whether the function managed.
async fn make(
    worker: &Arc<Worker>,
    facts: &Arc<Facts>,
    ranges: Range<usize>,
    out: &Arc<Scratch>,
) -> Result<bool, StepError> {
    let inputs = remote::inputs(worker, facts, Some(&worker.ranges[ranges.clone()])).await?;
    let (facts, out) = (facts.clone(), out.clone());
    let work = move |worker: &Worker| {
        let previous = worker.previous(&facts.previous)?;
        let gather = Gather::new(worker, &facts, previous.as_ref(), &out);
        match gather.combine(&all(&inputs), &ranges.collect::<Vec<_>>()) {
            Ok(()) => Ok(true),
            Err(error) if is_failure(&error) => Ok(false),
            Err(error) => Err(worker.failure("combine", error)),
        }
    };
    worker.working(work).await
}
