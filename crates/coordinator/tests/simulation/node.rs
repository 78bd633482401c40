//! Nodes: slabs and accumulators in memory that may be lost, and records about them that travel slowly. The top of a
//! closed round takes the others' partials, if it reaches them and they are what the log says.

use crate::world::{Event, World};
use catchment_ledger::{Job, Round};
use catchment_types::{Accept, Code, JobUid, ModelCommit, NodeId, ReceiptId, ReceiptState, Record, SlabId, TimeMs};
use rand::RngExt;
use rand::rngs::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};

/// A node that was silent for this long is given up.
pub const LOST_AFTER_MS: TimeMs = 2_000;
/// How long nodes are silent, at most.
const SILENCE_MS: TimeMs = 6_000;

/// How often no model can be made of a round.
const SPOILT_PERCENT: u32 = 15;

/// A job's round, and the node's incarnation.
type Key = (JobUid, u64, u64);

/// A node and what lies in its memory.
pub struct Node {
    pub id: NodeId,
    /// Since when nobody hears it.
    pub silent_since: Option<TimeMs>,
    /// Whether it does nothing either.
    pub dead: bool,
    /// Updates that its gateway is about to append.
    pub group: Vec<Accept>,
    slabs: BTreeMap<SlabId, Key>,
    accumulators: BTreeMap<Key, BTreeSet<ReceiptId>>,
    /// On which the function trapped, whether the log has it yet or not.
    trapped: BTreeSet<ReceiptId>,
    trap_percent: u32,
}

/// What the node finds out about one round.
struct Findings {
    lost: Vec<ReceiptId>,
    /// Leaves of which the accumulator lacks what the log says that is in it: from level 2 on their sums are lost whole.
    sums: BTreeSet<u32>,
    /// In an accumulator, but not yet so in the log.
    unsaid: Vec<ReceiptId>,
    /// On which the function trapped, but not yet so in the log.
    trapped: Vec<ReceiptId>,
    /// Still to be folded, in order of acceptance.
    waiting: Vec<(ReceiptId, SlabId)>,
    commit: Option<ModelCommit>,
}

impl Node {
    pub fn new(number: usize, rng: &mut ChaCha8Rng) -> Self {
        let trap_percent = if rng.random_bool(0.5) { 0 } else { rng.random_range(1..=25) };
        Self {
            id: NodeId(1 + number as u64),
            silent_since: None,
            dead: false,
            group: Vec::new(),
            slabs: BTreeMap::new(),
            accumulators: BTreeMap::new(),
            trapped: BTreeSet::new(),
            trap_percent,
        }
    }

    pub fn hold(&mut self, accept: &Accept) {
        let before = self.slabs.insert(accept.slab, (accept.uid, accept.round, accept.incarnation));
        assert!(before.is_none(), "every upload has a slab of its own");
    }

    pub fn release(&mut self, slab: SlabId) {
        self.slabs.remove(&slab);
    }

    pub fn forget(&mut self) {
        self.slabs.clear();
        self.accumulators.clear();
        self.trapped.clear();
    }

    /// It is heard again, and works again.
    pub fn back(&mut self) {
        (self.silent_since, self.dead) = (None, false);
    }

    pub fn is_empty(&self) -> bool {
        self.slabs.is_empty() && self.accumulators.is_empty()
    }

    pub fn assert_empty(&self) {
        assert!(self.is_empty(), "left behind: slabs {:?}, accumulators {:?}", self.slabs, self.accumulators);
    }

    fn inspect(&self, job: &Job, round: &Round, incarnation: u64, level: u32) -> Findings {
        let nothing = BTreeSet::new();
        let folded = self.accumulators.get(&(job.uid, round.number, incarnation)).unwrap_or(&nothing);
        let of = |state, in_accumulator: bool| {
            let ours = round.updates().filter(|update| update.accept.node == self.id);
            let updates = ours.filter(move |update| update.state == state);
            updates.filter(move |update| folded.contains(&update.receipt) == in_accumulator)
        };
        let gone = of(ReceiptState::Accepted, false).filter(|update| !self.slabs.contains_key(&update.accept.slab));
        let mut lost: Vec<_> = gone.map(|update| update.receipt).collect();
        let mut sums = BTreeSet::new();
        let of_a_sum = of(ReceiptState::Folded, false);
        if level >= 2 {
            sums.extend(of_a_sum.map(|update| update.leaf));
        } else {
            lost.extend(of_a_sum.map(|update| update.receipt));
        }
        let waiting = round.pending_on(self.id).filter(|update| {
            let is_done = folded.contains(&update.receipt) || self.trapped.contains(&update.receipt);
            // A sum begins anew once the log has it that the old one is lost.
            !is_done && self.slabs.contains_key(&update.accept.slab) && !sums.contains(&update.leaf)
        });
        let is_whole = lost.is_empty() && sums.is_empty();
        let commit = (round.is_ready() && is_whole && round.top() == Some(self.id)).then(|| ModelCommit {
            version: job.models.next(),
            etag: round.contribution(),
            bytes: 64,
            function: None,
            node: self.id,
            contributors: round.received(),
            contribution: Some(round.contribution()),
            gathered: false,
            metrics: round.metrics(),
        });
        Findings {
            lost,
            unsaid: of(ReceiptState::Accepted, true).map(|update| update.receipt).collect(),
            trapped: round
                .pending_on(self.id)
                .map(|update| update.receipt)
                .filter(|r| self.trapped.contains(r))
                .collect(),
            waiting: waiting.map(|update| (update.receipt, update.accept.slab)).collect(),
            sums,
            commit,
        }
    }
}

impl World {
    /// A node is heard no more for a while.
    pub fn silence(&mut self, number: usize, dead: bool) {
        let node = &mut self.nodes[number];
        if node.silent_since.is_some() {
            return;
        }
        (node.silent_since, node.dead) = (Some(self.now_ms), dead);
        self.after(0..=SILENCE_MS, Event::Back(number));
        self.after(LOST_AFTER_MS..=LOST_AFTER_MS, Event::Wake);
    }

    /// Folds, reports and commits what can be, and frees what belongs to no round.
    pub fn sweep(&mut self, number: usize) {
        if self.nodes[number].dead {
            return;
        }
        let rounds: Vec<_> = self.state.jobs().filter_map(|job| Some((job.uid, job.active_round()?.number))).collect();
        let node = &mut self.nodes[number];
        let incarnation = self.state.incarnation(node.id);
        let alive = |key: &Key| key.2 == incarnation && rounds.contains(&(key.0, key.1));
        node.accumulators.retain(|key, _| alive(key));
        node.slabs.retain(|_, key| alive(key));
        for (uid, round) in rounds {
            let job = self.state.job(uid).expect("listed just now");
            let active = job.active_round().expect("listed just now");
            let findings = self.nodes[number].inspect(job, active, incarnation, self.state.level());
            let in_lost_sum = |receipt: &ReceiptId| {
                active.update(*receipt).is_some_and(|update| findings.sums.contains(&update.leaf))
            };
            if let Some(accumulator) = self.nodes[number].accumulators.get_mut(&(uid, round, incarnation)) {
                accumulator.retain(|receipt| !in_lost_sum(receipt));
            }
            self.act_on(number, uid, round, findings);
        }
    }

    /// Takes every node's partial of a closed round. `None`: one cannot be reached, or it has another.
    fn gather(&mut self, top: usize, uid: JobUid) -> Option<BTreeSet<ReceiptId>> {
        let round = self.state.job(uid).and_then(|job| job.active_round()).expect("it is to be committed");
        let mut taken = BTreeSet::new();
        let mut missed = None;
        for (holder, _) in round.shares() {
            let node = self.nodes.iter().find(|node| node.id == holder).expect("one of them");
            if holder != self.nodes[top].id && (node.silent_since.is_some() || self.nodes[top].silent_since.is_some()) {
                missed = Some("a partial out of reach");
                break;
            }
            let wanted: BTreeSet<ReceiptId> =
                round.contributors().filter(|update| update.accept.node == holder).map(|u| u.receipt).collect();
            // Its log is not ahead of the accumulator that it offers: it finds it by its own incarnation.
            let offered = node.accumulators.get(&(uid, round.number, self.state.incarnation(holder)));
            if offered != Some(&wanted) {
                missed = Some("a partial of another incarnation");
                break;
            }
            taken.extend(wanted);
        }
        if taken.len() > 1 && missed.is_none() && round.shares().count() > 1 {
            self.checks.reached.count("committed from many nodes");
        }
        match missed {
            Some(what) => {
                self.checks.reached.count(what);
                None
            }
            None => {
                assert!(round.contributors().map(|update| &update.receipt).eq(&taken), "round {}", round.number);
                Some(taken)
            }
        }
    }

    fn act_on(&mut self, number: usize, uid: JobUid, round: u64, findings: Findings) {
        if !findings.lost.is_empty() {
            self.say(number, Record::Lost { uid, round, receipts: findings.lost, at_ms: self.now_ms });
        }
        for leaf in findings.sums {
            let node = self.nodes[number].id;
            self.say(number, Record::SumLost { uid, round, node, leaf, at_ms: self.now_ms });
        }
        if !findings.unsaid.is_empty() {
            self.say(number, Record::Folded { uid, round, receipts: findings.unsaid });
        }
        for receipt in findings.trapped {
            self.discard(number, uid, round, receipt);
        }
        if let Some(mut model) = findings.commit
            && self.gather(number, uid).is_some()
        {
            if self.chance(2) {
                // It miscounts, and will do it again rightly.
                model.version += 1;
            }
            let contribution = model.contribution.expect("it is of these updates");
            let (is_spoilt, at_ms) = (self.chance(SPOILT_PERCENT), self.now_ms);
            let record = if is_spoilt {
                let reason = "element 0 is infinite".to_owned();
                Record::RoundGivenUp { uid, round, contribution, reason, at_ms }
            } else {
                Record::Committed { uid, round, model, at_ms }
            };
            self.say(number, record);
        }
        let incarnation = self.state.incarnation(self.nodes[number].id);
        let most = self.rng.random_range(1..=16);
        let mut batch = Vec::new();
        for (receipt, slab) in findings.waiting.into_iter().take(most) {
            if self.chance(self.nodes[number].trap_percent) {
                // Its slab stays until the log has it, or else it would be taken for lost.
                self.nodes[number].trapped.insert(receipt);
                self.discard(number, uid, round, receipt);
            } else {
                let accumulator = self.nodes[number].accumulators.entry((uid, round, incarnation)).or_default();
                assert!(accumulator.insert(receipt), "{receipt} is folded twice");
                self.nodes[number].slabs.remove(&slab);
                batch.push(receipt);
            }
        }
        if !batch.is_empty() && !self.chance(10) {
            self.say(number, Record::Folded { uid, round, receipts: batch });
        }
    }

    fn discard(&mut self, number: usize, uid: JobUid, round: u64, receipt: ReceiptId) {
        let reason = "unreachable executed".to_owned();
        self.say(number, Record::Discarded { uid, round, receipt, code: Code::FunctionTrap, reason });
    }

    /// Sends a record on its way, now and then twice; it may arrive when it is long untrue.
    fn say(&mut self, number: usize, record: Record) {
        let envelope = Box::new(self.written_by(number as u8, record, None));
        if self.chance(5) {
            self.after(0..=3_000, Event::Append(envelope.clone()));
        }
        self.after(0..=60, Event::Append(envelope));
    }
}
