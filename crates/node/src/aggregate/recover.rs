//! What a restarted node still has, and what it must own up to having lost.
//!
//! The log says which updates this node accepted and folded; shared memory says what is left. An update is safe when
//! its slab is there, or when an accumulator holds it. Every other one is reported lost, so that its client can send
//! it again; nothing is left to be waited for.

use super::holdings::{Holdings, OfRound};
use super::leaf::{Leaf, LeafKey};
use crate::functions::Functions;
use crate::slab_meta::SlabMeta;
use catchment_ledger::{Ledger, LedgerError, Round, State, Update};
use catchment_slab::{Recovered, Slab, SlabStore};
use catchment_types::{Digest, JobUid, NodeId, ReceiptId, ReceiptState, Record, SlabId, TimeMs};
use std::collections::{BTreeSet, HashMap, HashSet};

/// Receipts in one record, at most: a record has a size limit.
pub(super) const LOST_MAX: usize = 4096;

/// Matches what the store found with what the log knows: takes over what belongs to active rounds, frees the rest, and
/// records what is lost.
///
/// # Errors
/// When the losses cannot be recorded.
pub async fn recover(
    ledger: &Ledger,
    store: &SlabStore,
    holdings: &Holdings,
    recovered: Recovered,
    functions: &Functions,
    node: NodeId,
    now_ms: TimeMs,
) -> Result<(), LedgerError> {
    let everything: Vec<SlabId> =
        recovered.slabs.iter().map(Slab::id).chain(recovered.accumulators.iter().map(|found| found.id())).collect();
    // An append from before the crash may still be on its way. Once this one is stored it never will be at the first feature
    // level, and does not count from the second on, because this process works as the node by then; so what the log does not
    // know can be freed.
    if !everything.is_empty() {
        ledger.propose(Record::Accepted(Vec::new())).await?;
    }
    let found = Found::new(recovered);
    let Judged { leaves, slabs, lost } = ledger.read(|state| found.judge(state, node, functions));
    let kept: HashSet<SlabId> =
        leaves.iter().flat_map(|(_, leaf)| leaf.slabs()).chain(slabs.iter().map(|(id, _)| *id)).collect();
    leaves.into_iter().for_each(|(key, leaf)| holdings.put(key, leaf));
    for (slab, of) in slabs {
        holdings.hold(slab, of);
        holdings.confirm(slab, of.round);
    }
    drop(found);
    let freed = everything.iter().filter(|slab| !kept.contains(slab) && store.release(**slab)).count();
    let losses: usize = lost.iter().map(|lost| lost.receipts.len()).sum();
    if !everything.is_empty() || losses > 0 {
        tracing::info!(kept = kept.len(), freed, lost = losses, "shared memory recovered");
    }
    for Lost { uid, round, receipts, leaves } in lost {
        // With the updates of a sum, because that goes as a whole. At the first level they were named one by one.
        if ledger.read(State::level) >= 2 {
            for leaf in leaves {
                ledger.propose(Record::SumLost { uid, round, node, leaf, at_ms: now_ms }).await?;
            }
        }
        for receipts in receipts.chunks(LOST_MAX) {
            let receipts = receipts.to_vec();
            ledger.propose(Record::Lost { uid, round, receipts, at_ms: now_ms }).await?;
        }
    }
    Ok(())
}

struct Found {
    slabs: HashMap<SlabId, Option<SlabMeta>>,
    leaves: HashMap<LeafKey, Leaf>,
}

/// What is missing of a round.
struct Lost {
    uid: JobUid,
    round: u64,
    receipts: Vec<ReceiptId>,
    /// Leaves whose sum is missing, or cannot be used.
    leaves: BTreeSet<u32>,
}

/// What becomes of what was found.
#[derive(Default)]
struct Judged {
    /// Accumulators to go on with.
    leaves: Vec<(LeafKey, Leaf)>,
    /// Updates to fold.
    slabs: Vec<(SlabId, OfRound)>,
    lost: Vec<Lost>,
}

impl Found {
    fn new(recovered: Recovered) -> Self {
        let slabs = recovered.slabs.iter().map(|slab| (slab.id(), SlabMeta::decode(slab.meta()))).collect();
        let accumulators = recovered.accumulators.into_iter().map(|found| (found.id(), found)).collect();
        let leaves = HashMap::values(&accumulators).filter_map(|found| Leaf::found(found, &accumulators)).collect();
        Self { slabs, leaves }
    }

    fn has(&self, slab: SlabId, digest: &Digest) -> bool {
        self.slabs.get(&slab).and_then(Option::as_ref).is_some_and(|meta| meta.digest == *digest)
    }

    fn judge(&self, state: &State, node: NodeId, functions: &Functions) -> Judged {
        let mut judged = Judged::default();
        for (job, round) in state.jobs().filter_map(|job| Some((job, job.active_round()?))) {
            // A name may stand for another function than in the life before.
            let function = functions.digest(&job.spec);
            let counts = state.level() >= 2;
            let holder = (node, state.incarnation(node), function, counts);
            let (receipts, leaves) = self.judge_round((job.uid, round), holder, &mut judged);
            if !receipts.is_empty() {
                judged.lost.push(Lost { uid: job.uid, round: round.number, receipts, leaves });
            }
        }
        judged
    }

    fn judge_round(
        &self,
        (uid, round): (JobUid, &Round),
        (node, incarnation, function, counts): (NodeId, u64, Option<Digest>, bool),
        judged: &mut Judged,
    ) -> (Vec<ReceiptId>, BTreeSet<u32>) {
        let ours: Vec<&Update> = round.contributors().filter(|update| update.accept.node == node).collect();
        let leaves: HashSet<u32> = ours.iter().map(|update| update.leaf).collect();
        let mut usable = HashMap::new();
        for leaf in leaves {
            let key = LeafKey { uid, round: round.number, leaf, incarnation };
            let unfit = |found: &Leaf| {
                if function.is_some_and(|function| !found.is_of(function)) {
                    Some("another function has made it")
                } else if counts && !is_of_now(found, leaf, &ours) {
                    Some("it is of another time than the event log")
                } else {
                    (!self.is_usable(found, &ours)).then_some("updates of its last batch are missing")
                }
            };
            let Some(found) = self.leaves.get(&key) else { continue };
            if let Some(why) = unfit(found) {
                tracing::warn!(job = %uid, round = round.number, leaf, why, "an accumulator begins anew");
            } else {
                judged.leaves.push((key, found.clone()));
                usable.insert(leaf, found);
            }
        }
        let (mut missing, mut sums) = (Vec::new(), BTreeSet::new());
        for update in ours {
            let (slab, leaf) = (update.accept.slab, usable.get(&update.leaf));
            let in_slab = update.state == ReceiptState::Accepted && self.has(slab, &update.accept.digest);
            let in_leaf = leaf.is_some_and(|leaf| update.state == ReceiptState::Folded || holds(leaf, slab));
            if in_slab {
                judged.slabs.push((slab, OfRound { uid, round: round.number, incarnation }));
            }
            if !in_slab && !in_leaf {
                missing.push(update.receipt);
                if update.state == ReceiptState::Folded {
                    sums.insert(update.leaf);
                }
            }
        }
        (missing, sums)
    }

    /// An accumulator whose interrupted batch can be completed.
    fn is_usable(&self, leaf: &Leaf, ours: &[&Update]) -> bool {
        let Some(plan) = leaf.plan() else { return true };
        leaf.lagging(&plan).is_empty()
            || plan.slabs.iter().all(|slab| {
                ours.iter().any(|update| update.accept.slab == *slab && self.has(*slab, &update.accept.digest))
            })
    }
}

/// Whether as many updates are in a sum as the log says, with those of its newest batch. Otherwise the memory is of another time
/// than the log: that of a machine that was set back to a snapshot, or a copy of it.
fn is_of_now(leaf: &Leaf, number: u32, ours: &[&Update]) -> bool {
    let newest = leaf.plan().map_or_else(Vec::new, |plan| plan.slabs);
    let is_in = |update: &&&Update| {
        update.leaf == number
            && match update.state {
                ReceiptState::Folded => true,
                _ => newest.contains(&update.accept.slab),
            }
    };
    leaf.updates().is_none_or(|updates| updates == ours.iter().filter(is_in).count() as u64)
}

/// Whether the newest batch, complete in every range, holds this slab's update.
fn holds(leaf: &Leaf, slab: SlabId) -> bool {
    leaf.plan().is_some_and(|plan| plan.slabs.contains(&slab) && leaf.lagging(&plan).is_empty())
}
