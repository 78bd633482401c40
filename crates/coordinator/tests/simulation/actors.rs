//! Coordinators, clients with their gateway, and owners.

use crate::node::LOST_AFTER_MS;
use crate::world::{Event, World, blake3_of};
use catchment_coordinator::{Nodes, decide};
use catchment_ledger::{AcceptOutcome, Deadlines, Decided, Moment, Outcome, Phase};
use catchment_planner::Node as Planned;
use catchment_types::{
    Accept, ClientId, Digest, DurationText, JobAction, JobState, JobUid, Mode, ModelCommit, NodeId, Record, SlabId,
    SpecPatch,
};
use rand::RngExt;
use rand::rngs::ChaCha8Rng;
use std::collections::BTreeMap;

/// One coordinator, as `run` is: it looks, appends its decisions (at the first level the first one), each with a guard,
/// looks again, and sleeps when there is nothing to decide.
pub struct Coordinator {
    /// Its clock is off by this.
    pub skew_ms: i64,
    deadlines: Deadlines,
    sleeps: bool,
    /// Counts its sleeps, so that an old alarm does not wake it.
    sleep: u64,
}

impl Coordinator {
    pub fn new(skew_ms: i64) -> Self {
        Self { skew_ms, deadlines: Deadlines::new(false), sleeps: true, sleep: 0 }
    }
}

/// Those who send updates.
pub struct Clients {
    slabs: u32,
    pub pace_ms: u64,
    clients: u32,
}

impl Clients {
    pub fn new(rng: &mut ChaCha8Rng) -> Self {
        Self { slabs: 0, pace_ms: rng.random_range(20..=600), clients: rng.random_range(20..=200) }
    }
}

impl World {
    pub fn wake_coordinators(&mut self) {
        for who in 0..self.coordinators.len() {
            if self.coordinators[who].sleeps {
                let sleep = self.coordinators[who].sleep;
                self.after(0..=20, Event::Look { who, sleep });
            }
        }
    }

    pub fn look(&mut self, who: usize, sleep: u64) {
        let coordinator = &mut self.coordinators[who];
        if !coordinator.sleeps || coordinator.sleep != sleep {
            return;
        }
        let clock_ms = self.now_ms.saturating_add_signed(coordinator.skew_ms);
        let now = Moment { clock_ms, passed_ms: self.now_ms };
        let nodes = self.heard();
        let coordinator = &mut self.coordinators[who];
        coordinator.deadlines.look(&self.state, now);
        let decision = decide(&self.state, &nodes, &coordinator.deadlines, now);
        let mut subjects: Vec<JobUid> = decision.records.iter().filter_map(crate::checks::subject).collect();
        let given_up = decision.records.iter().filter(|record| matches!(record, Record::NodeLost { .. })).count();
        subjects.dedup();
        assert_eq!(subjects.len() + given_up, decision.records.len(), "at most one decision a job");
        if !decision.records.is_empty() {
            coordinator.sleeps = false;
            let most = if self.state.level() < 2 { 1 } else { usize::MAX };
            let records = decision.records.into_iter().take(most);
            let decisions = records.map(|record| (record.clone(), self.state.decided(&record))).collect();
            self.after(0..=30, Event::Decide { who, decisions });
        } else if let Some(look_again_ms) = decision.look_again_ms {
            assert!(look_again_ms > 0, "it looks again in the future");
            self.at(self.now_ms + look_again_ms, Event::Look { who, sleep });
        }
    }

    /// Who is there, as a coordinator hears it; now and then it hears wrongly.
    fn heard(&mut self) -> Nodes {
        let mut nodes = Nodes::default();
        for number in 0..self.nodes.len() {
            let misheard = self.troubled() && self.rng.random_range(0..2_000) == 0;
            let node = &self.nodes[number];
            let lost = misheard || node.silent_since.is_some_and(|since| since + LOST_AFTER_MS <= self.now_ms);
            if lost {
                nodes.lost.push(node.id);
            } else {
                let (node, memory_bytes) = (node.id, 1 << 30);
                nodes.live.push(Planned { node, cores: 2.0, memory_bytes, link_bytes_per_s: 1e9, zone: 0 });
            }
        }
        nodes
    }

    pub fn decide(&mut self, who: usize, decisions: Vec<(Record, Decided)>) {
        let crashes = self.troubled() && self.chance(5);
        for (record, on) in decisions {
            if self.state.level() < 2 && self.state.sequence() != on.sequence {
                self.checks.reached.count("decision stale");
            } else if !crashes || self.chance(50) {
                self.carry_out(who, record, on);
            }
        }
        if crashes {
            self.checks.timing.disturb();
        }
        let coordinator = &mut self.coordinators[who];
        if crashes && !self.jumps {
            // It comes back as a process that has seen nothing.
            self.checks.reached.count("coordinator started anew");
            coordinator.deadlines = Deadlines::new(false);
        }
        coordinator.sleeps = true;
        coordinator.sleep += 1;
        let sleep = coordinator.sleep;
        self.after(if crashes { 0..=5_000 } else { 0..=0 }, Event::Look { who, sleep });
    }

    fn carry_out(&mut self, who: usize, record: Record, on: Decided) {
        if let Record::NodeLost { node, .. } = record
            && self.nodes.iter().any(|other| other.id == node && !other.dead)
        {
            self.checks.reached.count("node given up alive");
        }
        let is_fresh = self.state.sequence() == on.sequence;
        let envelope = self.written_by(50 + who as u8, record.clone(), on.guard);
        match self.take(envelope) {
            Outcome::Done if is_fresh => {}
            Outcome::Done => self.checks.reached.count("decision not quite fresh"),
            Outcome::Ignored(_) if !is_fresh => self.checks.reached.count("decision too late"),
            other => panic!("{record:?} was decided on this very state: {other:?}"),
        }
    }

    /// Some client sends an update: mostly the right one for the right round.
    pub fn client(&mut self) {
        let Some(uid) = self.some_job() else { return };
        let current = self.state.job(uid).map_or(0, |job| job.round_number());
        let round = match self.rng.random_range(0..100) {
            0..85 => current,
            85..93 => current.saturating_sub(1),
            93..97 => current + 1,
            _ => self.rng.random_range(0..10),
        };
        let client = self.rng.random_range(0..self.clients.clients);
        let body = if self.chance(5) { 1 } else { 0 };
        // Asynchronous updates are addressed by the version that they were trained from.
        let version = self.state.job(uid).and_then(|job| job.round.as_ref()).map_or(0, |round| round.model_version);
        let number = if self.is_buffered(uid) { (version + round).saturating_sub(current) } else { round };
        self.send(uid, number, format!("client-{client}").parse().unwrap(), blake3_of(body));
    }

    fn is_buffered(&self, uid: JobUid) -> bool {
        self.state.job(uid).is_some_and(|job| job.spec.mode != Mode::Sync)
    }

    fn send(&mut self, uid: JobUid, number: u64, client: ClientId, digest: Digest) {
        self.clients.slabs += 1;
        let current = self.state.job(uid).map_or(0, |job| job.round_number());
        let (round, base) = if self.is_buffered(uid) { (current, Some(number)) } else { (number, None) };
        let node = self.rng.random_range(0..self.nodes.len());
        let node = self.nodes[node].id;
        let accept = Accept {
            uid,
            round,
            base,
            client,
            digest,
            weight: self.rng.random_range(0.1..10.0),
            num_samples: self.rng.random_range(1..100),
            metrics: BTreeMap::new(),
            bytes: 64,
            node,
            incarnation: self.state.incarnation(node),
            slab: SlabId::new(self.clients.slabs, 1),
            at_ms: self.now_ms,
        };
        let slow = self.chance(10);
        self.after(if slow { 500..=6_000 } else { 1..=200 }, Event::Upload(accept));
    }

    /// The gateway freezes the slab and puts the update into the next group.
    pub fn upload(&mut self, accept: Accept) {
        if self.state.judge(accept.uid, accept.addressed(), &accept.client, Some(&accept.digest)).is_some()
            && self.chance(80)
        {
            return; // Seen in time; otherwise only the log will tell.
        }
        let number = self.number(accept.node);
        if self.nodes[number].dead {
            return;
        }
        self.nodes[number].hold(&accept);
        if self.nodes[number].group.is_empty() {
            self.after(0..=15, Event::Flush(number));
        }
        self.nodes[number].group.push(accept);
    }

    fn number(&self, id: NodeId) -> usize {
        self.nodes.iter().position(|node| node.id == id).expect("one of them")
    }

    pub fn flush(&mut self, node: usize) {
        let group = std::mem::take(&mut self.nodes[node].group);
        if group.is_empty() {
            return;
        }
        let envelope = self.written_by(node as u8, Record::Accepted(group.clone()), None);
        let Outcome::Accepts(outcomes) = self.take(envelope) else {
            panic!("a group has an outcome for each");
        };
        for (accept, outcome) in group.iter().zip(&outcomes) {
            if !outcome.is_accepted() {
                self.nodes[node].release(accept.slab);
                if *outcome == AcceptOutcome::Moved {
                    self.send_from(accept);
                    continue;
                }
            }
            // No answer reached the client, or it does not believe it.
            if self.chance(15) {
                self.send_from(accept);
            }
        }
    }

    /// Sends an update once more.
    fn send_from(&mut self, accept: &Accept) {
        self.send(accept.uid, accept.addressed(), accept.client.clone(), accept.digest);
    }

    pub fn owner(&mut self) {
        let Some(uid) = self.some_job() else { return };
        let at_ms = self.now_ms;
        match self.rng.random_range(0..40) {
            0..8 => {
                self.append(Record::JobActed { uid, action: JobAction::Pause, at_ms });
            }
            8..12 => {
                let patch = SpecPatch {
                    rounds: self.chance(50).then(|| self.rng.random_range(0..=6)),
                    goal: self.chance(50).then(|| self.rng.random_range(0..=6)),
                    deadline: self.chance(50).then(|| DurationText::from_ms(self.rng.random_range(0..=4_000))),
                };
                self.append(Record::JobPatched { uid, patch, at_ms });
            }
            12 => {
                self.append(Record::JobActed { uid, action: JobAction::Stop, at_ms });
            }
            13 => {
                self.append(Record::JobFailed { uid, reason: "finalize trapped".to_owned(), at_ms });
            }
            14 => {
                self.append(Record::JobActed { uid, action: JobAction::Delete, at_ms });
            }
            15 => self.create_job(),
            16..20 => self.impostor(uid),
            _ => {}
        }
        // A pause ends, whoever began it.
        if self.job_state(uid) == Some(JobState::Paused) {
            self.after(100..=10_000, Event::Act(uid, JobAction::Resume));
        }
    }

    /// A record that has no business in the log: a round opened out of turn, a commit of something else.
    fn impostor(&mut self, uid: JobUid) {
        let Some(job) = self.state.job(uid) else { return };
        let (round, at_ms) = (job.round_number(), self.now_ms);
        let Some(newest) = job.newest_model() else { return };
        let next = ModelCommit { version: newest.commit.version + 1, ..newest.commit.clone() };
        let open = job.round.as_ref().is_some_and(|round| round.phase == Phase::Open);
        let current = job.round.as_ref();
        let early = current.filter(|round| round.is_active() && !round.is_ready()).map(|round| round.contribution());
        let record = match self.rng.random_range(0..6) {
            0 => Record::RoundOpened { uid, round: round + 2, deadline_ms: None, places: vec![], at_ms },
            1 if open => Record::RoundOpened { uid, round: round + 1, deadline_ms: None, places: vec![], at_ms },
            2 => Record::Committed { uid, round: round + 1, model: next, at_ms },
            3 if early.is_some() => {
                Record::Committed { uid, round, model: ModelCommit { contribution: early, ..next }, at_ms }
            }
            4 => {
                // Of a round that still takes updates, or of other updates than it has.
                let open = current.filter(|round| !round.is_complete()).map(|round| round.contribution());
                let contribution = open.unwrap_or(blake3_of(98));
                Record::RoundGivenUp { uid, round, contribution, reason: "for no reason".to_owned(), at_ms }
            }
            _ => Record::Committed { uid, round, model: next, at_ms },
        };
        let outcome = self.append(record);
        assert!(matches!(outcome, Outcome::Ignored(_)), "{outcome:?}");
    }
}
