//! A node: slabs and accumulators in memory that may be lost, and records about them that travel slowly.

use crate::world::{Event, World};
use catchment_ledger::{Job, Round};
use catchment_types::{Accept, JobUid, ModelCommit, ReceiptId, ReceiptState, Record, SlabId};
use rand::RngExt;
use rand::rngs::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};

/// What lies in the node's memory.
pub struct Node {
    slabs: BTreeMap<SlabId, (JobUid, u64)>,
    accumulators: BTreeMap<(JobUid, u64), BTreeSet<ReceiptId>>,
    /// On which the function trapped, whether the log has it yet or not.
    trapped: BTreeSet<ReceiptId>,
    trap_percent: u32,
}

/// What the node finds out about one round.
struct Findings {
    lost: Vec<ReceiptId>,
    /// In an accumulator, but not yet so in the log.
    unsaid: Vec<ReceiptId>,
    /// Still to be folded, in order of acceptance.
    waiting: Vec<(ReceiptId, SlabId)>,
    commit: Option<ModelCommit>,
}

impl Node {
    pub fn new(rng: &mut ChaCha8Rng) -> Self {
        let trap_percent = if rng.random_bool(0.5) { 0 } else { rng.random_range(1..=25) };
        Self { slabs: BTreeMap::new(), accumulators: BTreeMap::new(), trapped: BTreeSet::new(), trap_percent }
    }

    pub fn hold(&mut self, accept: &Accept) {
        let before = self.slabs.insert(accept.slab, (accept.uid, accept.round));
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

    pub fn is_empty(&self) -> bool {
        self.slabs.is_empty() && self.accumulators.is_empty()
    }

    pub fn assert_empty(&self) {
        assert!(self.is_empty(), "left behind: slabs {:?}, accumulators {:?}", self.slabs, self.accumulators);
    }

    fn inspect(&self, job: &Job, round: &Round) -> Findings {
        let nothing = BTreeSet::new();
        let folded = self.accumulators.get(&(job.uid, round.number)).unwrap_or(&nothing);
        let of = |state, in_accumulator: bool| {
            let updates = round.updates().filter(move |update| update.state == state);
            updates.filter(move |update| folded.contains(&update.receipt) == in_accumulator)
        };
        let gone = of(ReceiptState::Accepted, false).filter(|update| !self.slabs.contains_key(&update.accept.slab));
        let lost: Vec<_> = gone.chain(of(ReceiptState::Folded, false)).map(|update| update.receipt).collect();
        let waiting = round.pending().filter(|(update, slab)| {
            let is_done = folded.contains(&update.receipt) || self.trapped.contains(&update.receipt);
            !is_done && self.slabs.contains_key(slab)
        });
        let commit = (round.is_ready() && lost.is_empty()).then(|| {
            // What the log says is in the model is what is in the accumulator.
            assert!(round.contributors().map(|update| &update.receipt).eq(folded), "round {}", round.number);
            ModelCommit {
                version: job.models.len() as u64,
                etag: round.contribution(),
                bytes: 64,
                function: None,
                contributors: folded.len() as u64,
                contribution: Some(round.contribution()),
                gathered: false,
                metrics: round.metrics(),
            }
        });
        Findings {
            lost,
            unsaid: of(ReceiptState::Accepted, true).map(|update| update.receipt).collect(),
            waiting: waiting.map(|(update, slab)| (update.receipt, slab)).collect(),
            commit,
        }
    }
}

impl World {
    /// Folds, reports and commits what can be, and frees what belongs to no round.
    pub fn sweep(&mut self) {
        let rounds: Vec<_> = self.state.jobs().filter_map(|job| Some((job.uid, job.active_round()?.number))).collect();
        let alive = |key: &(JobUid, u64)| rounds.contains(key);
        self.node.accumulators.retain(|key, _| alive(key));
        self.node.slabs.retain(|_, key| alive(key));
        for (uid, number) in rounds {
            let job = self.state.job(uid).expect("listed just now");
            let findings = self.node.inspect(job, job.active_round().expect("listed just now"));
            self.act_on(uid, number, findings);
        }
    }

    fn act_on(&mut self, uid: JobUid, round: u64, findings: Findings) {
        if !findings.lost.is_empty() {
            self.say(Record::Lost { uid, round, receipts: findings.lost, at_ms: self.now_ms });
        }
        if !findings.unsaid.is_empty() {
            self.say(Record::Folded { uid, round, receipts: findings.unsaid });
        }
        if let Some(mut model) = findings.commit {
            if self.chance(2) {
                // It miscounts, and will do it again rightly.
                model.version += 1;
            }
            self.say(Record::Committed { uid, round, model, at_ms: self.now_ms });
        }
        let most = self.rng.random_range(1..=16);
        let mut batch = Vec::new();
        for (receipt, slab) in findings.waiting.into_iter().take(most) {
            if self.chance(self.node.trap_percent) {
                // Its slab stays until the log has it, or else it would be taken for lost.
                self.node.trapped.insert(receipt);
                let reason = "unreachable executed".to_owned();
                self.say(Record::Discarded { uid, round, receipt, reason });
            } else {
                let accumulator = self.node.accumulators.entry((uid, round)).or_default();
                assert!(accumulator.insert(receipt), "{receipt} is folded twice");
                self.node.slabs.remove(&slab);
                batch.push(receipt);
            }
        }
        if !batch.is_empty() && !self.chance(10) {
            self.say(Record::Folded { uid, round, receipts: batch });
        }
    }

    /// Sends a record on its way, now and then twice; it may arrive when it is long untrue.
    fn say(&mut self, record: Record) {
        if self.chance(5) {
            self.after(0..=3_000, Event::Append(record.clone()));
        }
        self.after(0..=60, Event::Append(record));
    }
}
