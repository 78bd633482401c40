//! One round: who sent what, and how far it is.

use crate::mean::Mean;
use crate::state::MEMORY_LOST;
use crate::term::Term;
use catchment_types::{
    Accept, ClientId, CloseReason, Code, Digest, JobSpec, JobUid, NodeId, Place, ReceiptId, ReceiptState,
    RoundNodeView, RoundState, TimeMs,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

/// Named numbers that a model has at most. A name has at most 4 KiB, so they fit a record.
pub const METRICS_MAX: usize = 64;

/// Where a round is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Takes updates.
    Open,
    /// Takes none; the rest is folded and the model made.
    Aggregating,
    /// Its model is published, as this version.
    Committed(u64),
    /// Ended without a model.
    Skipped,
}

/// One update of a round.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Its receipt.
    pub receipt: ReceiptId,
    /// What the gateway reported.
    pub accept: Accept,
    /// Where it is.
    pub state: ReceiptState,
    /// Why it was discarded or lost.
    pub code: Option<Code>,
    /// The same for people.
    pub reason: Option<String>,
    /// Its place in the order of acceptance, from 0.
    pub order: u64,
    /// The accumulator that takes it, by order of acceptance.
    pub leaf: u32,
    /// Model versions that it is behind; 0 in synchronous jobs.
    pub staleness: u64,
}

impl Update {
    /// Whether it counts towards the goal.
    pub fn counts(&self) -> bool {
        matches!(self.state, ReceiptState::Accepted | ReceiptState::Folded | ReceiptState::Committed)
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
struct ClientSlot {
    attempts: u32,
    current: Option<ReceiptId>,
}

/// What one node holds of a round.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Share {
    /// Updates that count.
    pub updates: u64,
    /// Of those, updates in its accumulators.
    pub folded: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Updates that no accumulator has yet, by order of acceptance.
    pending: BTreeMap<u64, ReceiptId>,
}

/// One round of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// Its number, from 1.
    pub number: u64,
    /// Where it is in its life.
    pub phase: Phase,
    /// The model it trains from.
    pub model_version: u64,
    /// Updates that close it.
    pub goal: u64,
    /// Updates that it needs at its deadline.
    pub min_updates: u64,
    /// When it opened.
    pub opened_ms: TimeMs,
    /// When it ends, if it does, by the clock of whoever wrote that: to be shown. Whether that has come is not judged by
    /// another clock, but by [`crate::Deadlines`].
    pub deadline_ms: Option<TimeMs>,
    /// How long the deadline leaves. `None`: there is none, or it is of the first feature level, which does not have this.
    pub(crate) term: Option<Term>,
    /// When it ended, once it has: in the log's own time, from the second feature level on.
    pub ended_ms: Option<TimeMs>,
    /// Where its clients are sent, the best first; empty for anywhere.
    pub places: Vec<Place>,
    updates: BTreeMap<ReceiptId, Update>,
    clients: HashMap<ClientId, ClientSlot>,
    /// What stands for clients by the version they trained from, in asynchronous jobs.
    by_base: HashMap<ClientId, BTreeMap<u64, ReceiptId>>,
    /// Who holds what counts.
    shares: BTreeMap<NodeId, Share>,
    leaves: u32,
    received: u64,
    folded: u64,
}

/// A round without its updates.
pub(crate) struct RoundHead {
    pub number: u64,
    pub phase: Phase,
    pub model_version: u64,
    pub goal: u64,
    pub min_updates: u64,
    pub opened_ms: TimeMs,
    pub deadline_ms: Option<TimeMs>,
    pub term: Option<Term>,
    pub ended_ms: Option<TimeMs>,
    pub places: Vec<Place>,
    pub leaves: u32,
}

impl Round {
    pub(crate) fn open(
        number: u64,
        model_version: u64,
        spec: &JobSpec,
        opened_ms: TimeMs,
        (deadline_ms, term): (Option<TimeMs>, Option<Term>),
        places: &[Place],
    ) -> Self {
        let head = RoundHead {
            number,
            phase: Phase::Open,
            model_version,
            goal: spec.goal,
            min_updates: spec.min_updates.min(spec.goal),
            opened_ms,
            deadline_ms,
            term,
            ended_ms: None,
            places: places.to_vec(),
            leaves: spec.topology.leaves(),
        };
        Self::restored(head, [])
    }

    /// A round of these updates, in the order of acceptance; each with whether it has its client's place. Everything else
    /// about it follows from them.
    pub(crate) fn restored(head: RoundHead, updates: impl IntoIterator<Item = (Update, bool)>) -> Self {
        let mut round = Self {
            number: head.number,
            phase: head.phase,
            model_version: head.model_version,
            goal: head.goal,
            min_updates: head.min_updates,
            opened_ms: head.opened_ms,
            deadline_ms: head.deadline_ms,
            term: head.term,
            ended_ms: head.ended_ms,
            places: head.places,
            updates: BTreeMap::new(),
            clients: HashMap::new(),
            by_base: HashMap::new(),
            shares: BTreeMap::new(),
            leaves: head.leaves,
            received: 0,
            folded: 0,
        };
        updates.into_iter().for_each(|(update, stands)| round.put(update, stands));
        round
    }

    /// What a round is made from again, without its updates.
    pub(crate) fn head(&self) -> RoundHead {
        RoundHead {
            number: self.number,
            phase: self.phase,
            model_version: self.model_version,
            goal: self.goal,
            min_updates: self.min_updates,
            opened_ms: self.opened_ms,
            deadline_ms: self.deadline_ms,
            term: self.term,
            ended_ms: self.ended_ms,
            places: self.places.clone(),
            leaves: self.leaves,
        }
    }

    /// Updates accepted and neither discarded nor lost.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Of those, updates in an accumulator.
    pub fn folded(&self) -> u64 {
        self.folded
    }

    /// Every update, discarded and lost ones included.
    pub fn updates(&self) -> impl Iterator<Item = &Update> {
        self.updates.values()
    }

    /// The update with this receipt.
    pub fn update(&self, receipt: ReceiptId) -> Option<&Update> {
        self.updates.get(&receipt)
    }

    /// The update that stands for `client` now.
    pub fn update_of(&self, client: &ClientId) -> Option<&Update> {
        self.clients.get(client).and_then(|slot| slot.current).and_then(|receipt| self.updates.get(&receipt))
    }

    /// The update of an asynchronous job that `client` trained from this version.
    pub fn update_from(&self, base: u64, client: &ClientId) -> Option<&Update> {
        self.by_base.get(client).and_then(|bases| bases.get(&base)).and_then(|receipt| self.updates.get(receipt))
    }

    /// The update that stands where this one stood or would stand.
    pub(crate) fn standing_for(&self, accept: &Accept) -> Option<&Update> {
        match accept.base {
            None => self.update_of(&accept.client),
            Some(base) => self.update_from(base, &accept.client),
        }
    }

    /// What `client` sent last, if it was refused and has these bytes: what was refused once would be refused again.
    pub(crate) fn refused(&self, uid: JobUid, client: &ClientId, digest: &Digest) -> Option<&Update> {
        let attempt = self.clients.get(client)?.attempts.checked_sub(1)?;
        let update = self.update(ReceiptId::derive(uid, self.number, client, digest, attempt))?;
        // Of a round that was given up nobody knows whose update was the cause.
        let is_refused = update.state == ReceiptState::Discarded && update.code != Some(Code::RoundGivenUp);
        Some(update).filter(|_| is_refused)
    }

    /// What was said of the newest update that was left out, when all that came were: the round has nothing to make a
    /// model of, and only new updates can change that.
    pub fn all_discarded(&self) -> Option<String> {
        let nothing_counts = self.received == 0 && self.is_active();
        let discarded = self.updates.values().filter(|update| update.state == ReceiptState::Discarded);
        let newest = discarded.clone().filter(|_| nothing_counts).max_by_key(|update| update.order)?;
        let (count, reason) = (discarded.count(), newest.reason.as_deref().unwrap_or("no reason is known"));
        Some(format!("every update that came was discarded ({count}); the newest: {reason}"))
    }

    /// What nodes have of it, or are to have, as callers see it. Callers hold the ledger's lock: one look at each node.
    pub fn nodes_view(&self) -> Vec<RoundNodeView> {
        let (nothing, top) = (Share::default(), self.top());
        let mut planned = BTreeMap::new();
        for place in &self.places {
            // Of a node that is named twice, the first counts.
            planned.entry(place.node).or_insert(place.updates);
        }
        let placed = self.places.iter().map(|place| place.node).filter(|node| !self.shares.contains_key(node));
        let view = |node: NodeId| {
            let share = self.shares.get(&node).unwrap_or(&nothing);
            RoundNodeView {
                node: node.to_string(),
                name: None,
                top: top == Some(node),
                into: None,
                planned: planned.get(&node).copied().unwrap_or_default(),
                received: share.updates,
                folded: share.folded,
                bytes: share.bytes,
            }
        };
        let mut nodes: Vec<RoundNodeView> = self.shares.keys().copied().chain(placed).map(view).collect();
        nodes.sort_by_key(|node| (!node.top, Reverse(node.bytes)));
        nodes
    }

    /// The round as callers name its state.
    pub fn state(&self) -> RoundState {
        match self.phase {
            Phase::Open => RoundState::Open,
            Phase::Aggregating => RoundState::Aggregating,
            Phase::Committed(_) => RoundState::Committed,
            Phase::Skipped => RoundState::Skipped,
        }
    }

    /// Whether the round is still to be committed or skipped.
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Aggregating)
    }

    /// Whether it takes no more updates and there are enough to make a model of.
    pub fn is_complete(&self) -> bool {
        self.phase == Phase::Aggregating && self.received >= self.min_updates.max(1)
    }

    /// Whether it is complete and every update that counts is in an accumulator: what a function that folds waits for.
    /// (One that takes all updates at once has none in an accumulator, ever.)
    pub fn is_ready(&self) -> bool {
        self.is_complete() && self.received == self.folded
    }

    /// The updates of the round's model, in the order of their receipts.
    pub fn contributors(&self) -> impl Iterator<Item = &Update> {
        self.updates.values().filter(|update| update.counts())
    }

    /// Digest over the receipts of the contributors, in order: what a commit says it is made of.
    pub fn contribution(&self) -> Digest {
        contribution(self.contributors())
    }

    /// The same over what one node has in the accumulator of one leaf: what a partial says it is made of.
    pub fn contribution_of(&self, node: NodeId, leaf: u32) -> Digest {
        self.contribution_where(|update| update.accept.node == node && update.leaf == leaf)
    }

    /// The same over some of the contributors.
    pub fn contribution_where(&self, is_in: impl Fn(&Update) -> bool) -> Digest {
        contribution(self.contributors().filter(|update| is_in(update)))
    }

    /// Nodes that hold updates that count, and what they hold.
    pub fn shares(&self) -> impl Iterator<Item = (NodeId, &Share)> {
        self.shares.iter().map(|(node, share)| (*node, share))
    }

    /// What `node` holds.
    pub fn share(&self, node: NodeId) -> Option<&Share> {
        self.shares.get(&node)
    }

    /// The node that makes the model: the one that holds the most bytes, so that the fewest move. Every process that has
    /// read as far says the same. `None` while nothing counts.
    pub fn top(&self) -> Option<NodeId> {
        self.shares.iter().max_by_key(|(node, share)| (share.bytes, Reverse(**node))).map(|(node, _)| *node)
    }

    /// Sample-weighted means of the numbers that contributors reported: of the first [`METRICS_MAX`] names in the order
    /// of acceptance, because they go into the commit's record.
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let mut means: BTreeMap<&str, Mean> = BTreeMap::new();
        let mut contributors: Vec<&Update> = self.contributors().collect();
        contributors.sort_unstable_by_key(|update| update.order);
        for update in contributors {
            for (name, value) in update.accept.metrics.iter().filter(|(_, value)| value.is_finite()) {
                if means.len() < METRICS_MAX || means.contains_key(name.as_str()) {
                    means.entry(name).or_default().add(*value, update.accept.num_samples);
                }
            }
        }
        means.into_iter().filter_map(|(name, mean)| Some((name.to_owned(), mean.value()?))).collect()
    }

    pub(crate) fn insert(&mut self, accept: &Accept) -> ReceiptId {
        let slot = self.clients.entry(accept.client.clone()).or_default();
        let receipt = ReceiptId::derive(accept.uid, accept.round, &accept.client, &accept.digest, slot.attempts);
        // Updates are never removed, so their number is the order of the next.
        let order = self.updates.len() as u64;
        let leaf = (order % u64::from(self.leaves)) as u32;
        let accept = accept.clone();
        let staleness = accept.base.map_or(0, |base| self.model_version.saturating_sub(base));
        let state = ReceiptState::Accepted;
        self.put(Update { receipt, accept, state, code: None, reason: None, order, leaf, staleness }, true);
        if self.received >= self.goal {
            self.phase = Phase::Aggregating;
        }
        receipt
    }

    /// Takes an update in and counts it as what it is. `stands`: whether it has its client's place.
    pub(crate) fn put(&mut self, update: Update, stands: bool) {
        let (receipt, accept) = (update.receipt, &update.accept);
        let slot = self.clients.entry(accept.client.clone()).or_default();
        slot.attempts += 1;
        match accept.base {
            None if stands => slot.current = Some(receipt),
            None => {}
            Some(base) => {
                let bases = self.by_base.entry(accept.client.clone()).or_default();
                stands.then(|| bases.insert(base, receipt));
            }
        }
        if update.counts() {
            let share = self.shares.entry(accept.node).or_default();
            share.updates += 1;
            share.bytes += accept.bytes;
            self.received += 1;
            if update.state == ReceiptState::Accepted {
                share.pending.insert(update.order, receipt);
            } else {
                share.folded += 1;
                self.folded += 1;
            }
        }
        let before = self.updates.insert(receipt, update);
        assert!(before.is_none(), "every attempt of every client has a receipt of its own");
    }

    /// Whether the update has its client's place.
    pub(crate) fn stands(&self, update: &Update) -> bool {
        self.standing_for(&update.accept).is_some_and(|standing| standing.receipt == update.receipt)
    }

    /// Whoever sent the update may send another in its place.
    fn free_place(&mut self, receipt: ReceiptId) {
        let accept = &self.updates[&receipt].accept;
        match accept.base {
            None => {
                let slot = self.clients.get_mut(&accept.client).filter(|slot| slot.current == Some(receipt));
                slot.into_iter().for_each(|slot| slot.current = None);
            }
            Some(base) => {
                let bases = self.by_base.get_mut(&accept.client).filter(|bases| bases.get(&base) == Some(&receipt));
                if let Some(bases) = bases {
                    bases.remove(&base);
                }
            }
        }
    }

    /// Moves an update to another state and keeps the counts. Returns whether anything changed.
    fn set_state(&mut self, receipt: ReceiptId, state: ReceiptState, code: Option<Code>, reason: Option<&str>) -> bool {
        let Some(update) = self.updates.get_mut(&receipt) else { return false };
        let allowed = match state {
            ReceiptState::Folded => update.state == ReceiptState::Accepted,
            // Straight from accepted when the model was made from the slabs.
            ReceiptState::Committed | ReceiptState::Discarded | ReceiptState::Lost => {
                matches!(update.state, ReceiptState::Accepted | ReceiptState::Folded)
            }
            ReceiptState::Accepted | ReceiptState::Other => false,
        };
        if !allowed {
            return false;
        }
        let was_folded = update.state == ReceiptState::Folded;
        update.state = state;
        update.code = code;
        update.reason = reason.map(str::to_owned);
        let node = update.accept.node;
        let share = self.shares.get_mut(&node).expect("what counts is somewhere");
        share.pending.remove(&update.order);
        match state {
            ReceiptState::Folded | ReceiptState::Committed => {
                self.folded += u64::from(!was_folded);
                share.folded += u64::from(!was_folded);
            }
            ReceiptState::Discarded | ReceiptState::Lost => {
                self.received -= 1;
                self.folded -= u64::from(was_folded);
                share.updates -= 1;
                share.folded -= u64::from(was_folded);
                share.bytes -= update.accept.bytes;
                if share.updates == 0 {
                    self.shares.remove(&node);
                }
            }
            ReceiptState::Accepted | ReceiptState::Other => {}
        }
        true
    }

    pub(crate) fn fold(&mut self, receipts: &[ReceiptId]) -> bool {
        let before = self.folded;
        for receipt in receipts {
            self.set_state(*receipt, ReceiptState::Folded, None, None);
        }
        self.folded > before
    }

    /// Leaves an update out, unless an accumulator has it: nothing can be taken out of a sum again.
    pub(crate) fn discard(&mut self, receipt: ReceiptId, code: Code, reason: &str, frees_place: bool) -> bool {
        let is_accepted = self.update(receipt).is_some_and(|update| update.state == ReceiptState::Accepted);
        let is_discarded = is_accepted && self.set_state(receipt, ReceiptState::Discarded, Some(code), Some(reason));
        if is_discarded && frees_place {
            self.free_place(receipt);
        }
        is_discarded
    }

    /// Everything that a node holds is gone, as below. Its accumulators go as a whole, because nothing can be taken out of
    /// a sum.
    pub(crate) fn lose_node(&mut self, node: NodeId) -> bool {
        if !self.shares.contains_key(&node) {
            return false;
        }
        let held = self.contributors().filter(|update| update.accept.node == node);
        let receipts: Vec<ReceiptId> = held.map(|update| update.receipt).collect();
        self.lose(&receipts, "the node that held it was lost; send it again")
    }

    /// What a node had summed up for a leaf is gone, and every update in it.
    pub(crate) fn lose_sum(&mut self, node: NodeId, leaf: u32) -> bool {
        let is_in = |update: &&Update| {
            update.state == ReceiptState::Folded && (update.accept.node, update.leaf) == (node, leaf)
        };
        let receipts: Vec<ReceiptId> = self.contributors().filter(is_in).map(|update| update.receipt).collect();
        self.lose(&receipts, MEMORY_LOST)
    }

    /// The updates are gone; their clients may send them again, and a closed round opens again for them.
    pub(crate) fn lose(&mut self, receipts: &[ReceiptId], reason: &str) -> bool {
        let mut any = false;
        for receipt in receipts {
            if !self.set_state(*receipt, ReceiptState::Lost, Some(Code::NotReady), Some(reason)) {
                continue;
            }
            any = true;
            self.free_place(*receipt);
        }
        if any && self.phase == Phase::Aggregating {
            self.phase = Phase::Open;
        }
        any
    }

    pub(crate) fn commit(&mut self, version: u64, at_ms: TimeMs) {
        let receipts: Vec<ReceiptId> = self.contributors().map(|update| update.receipt).collect();
        for receipt in receipts {
            self.set_state(receipt, ReceiptState::Committed, None, None);
        }
        self.phase = Phase::Committed(version);
        self.ended_ms = Some(at_ms);
    }

    pub(crate) fn skip(&mut self, reason: CloseReason, at_ms: TimeMs) {
        let text = match reason {
            CloseReason::Stopped => "the job was stopped before its round was committed",
            CloseReason::Shortfall | CloseReason::Deadline | CloseReason::Asked => {
                "too few updates came by the round's deadline"
            }
        };
        self.end_without_model(Code::RoundClosed, text, at_ms);
    }

    /// Ends because no model can be made of its updates. In asynchronous jobs, whose next buffer trains from the same model,
    /// its clients may send from that model again.
    pub(crate) fn give_up(&mut self, reason: &str, at_ms: TimeMs) {
        for receipt in self.end_without_model(Code::RoundGivenUp, reason, at_ms) {
            if self.updates[&receipt].accept.base.is_some() {
                self.free_place(receipt);
            }
        }
    }

    fn end_without_model(&mut self, code: Code, reason: &str, at_ms: TimeMs) -> Vec<ReceiptId> {
        let receipts: Vec<ReceiptId> = self.contributors().map(|update| update.receipt).collect();
        for receipt in &receipts {
            self.set_state(*receipt, ReceiptState::Discarded, Some(code), Some(reason));
        }
        self.phase = Phase::Skipped;
        self.ended_ms = Some(at_ms);
        receipts
    }

    /// Why it was given up, if it was.
    pub fn given_up(&self) -> Option<&str> {
        // All that counted when it ended have one code; those that were left out before have others.
        let at_the_end = |update: &&Update| matches!(update.code, Some(Code::RoundGivenUp | Code::RoundClosed));
        let update = Some(self).filter(|round| round.phase == Phase::Skipped)?.updates().find(at_the_end)?;
        update.reason.as_deref().filter(|_| update.code == Some(Code::RoundGivenUp))
    }

    /// Updates that no accumulator has yet; those of one node in order of acceptance.
    pub fn pending(&self) -> impl Iterator<Item = &Update> {
        self.shares.keys().flat_map(|node| self.pending_on(*node))
    }

    /// The same of one node.
    pub fn pending_on(&self, node: NodeId) -> impl Iterator<Item = &Update> {
        let share = self.shares.get(&node);
        share.into_iter().flat_map(|share| share.pending.values()).map(|receipt| &self.updates[receipt])
    }

    /// Number of updates, discarded and lost ones included.
    pub(crate) fn len(&self) -> u64 {
        self.updates.len() as u64
    }

    /// Whether nothing was ever accepted.
    pub fn is_empty(&self) -> bool {
        self.updates.is_empty()
    }
}

fn contribution<'a>(updates: impl Iterator<Item = &'a Update>) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("catchment v1 contribution set");
    for update in updates {
        hasher.update(update.receipt.as_bytes());
    }
    hasher.finalize().into()
}
