//! Time, the log and what happens next.

use crate::actors::{Clients, Coordinator};
use crate::checks::Checks;
use crate::node::Node;
use catchment_ledger::{Decided, Envelope, Guard, Outcome, State, Stocked};
use catchment_types::{Accept, JobAction, JobState, JobUid, LogId, ModelCommit, Record, TimeMs};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// No job may take longer than this: half an hour of virtual time.
const END_MS: TimeMs = 1_800_000;
/// Owners and misfortune act no longer than this, so that what remains must come to its end alone.
pub const TROUBLE_MS: TimeMs = 60_000;

/// What coordinators' clocks are off by, at most: a quarter of an hour.
const SKEW_MS_MAX: i64 = 900_000;

/// Nodes of a run, at most.
const NODES_MAX: usize = 4;
/// Through which process owners write. Nodes are the processes from 0, coordinators those from 50.
const OWNERS: u8 = 100;

/// Something that happens at a time.
#[derive(Debug)]
pub enum Event {
    /// A coordinator wakes, if it still sleeps as deeply as when this was planned.
    Look { who: usize, sleep: u64 },
    /// A coordinator's decisions arrive at the log.
    Decide { who: usize, decisions: Vec<(Record, Decided)> },
    /// Some client begins to send something.
    Client,
    /// An upload is complete.
    Upload(Accept),
    /// A gateway appends its group.
    Flush(usize),
    /// A node looks after its rounds.
    Sweep(usize),
    /// A record arrives at the log.
    Append(Box<Envelope>),
    /// A node loses its memory.
    Forget(usize),
    /// A node is heard no more; it may be dead, or only cut off from the others.
    Silence { node: usize, dead: bool },
    /// It is back.
    Back(usize),
    /// The coordinators look at who is there.
    Wake,
    /// A coordinator's clock is set to another time.
    Jump(usize),
    /// Some owner wants something.
    Owner,
    /// An owner's request arrives.
    Act(JobUid, JobAction),
}

/// Everything.
pub struct World {
    pub rng: ChaCha8Rng,
    pub now_ms: TimeMs,
    pub state: State,
    pub log: Vec<(TimeMs, Envelope, Outcome)>,
    pub coordinators: Vec<Coordinator>,
    pub clients: Clients,
    pub nodes: Vec<Node>,
    pub checks: Checks,
    pub jobs_created: u8,
    /// Whether clocks are set while coordinators run. Then none of them starts anew: it would believe of the time between two
    /// records of one writer what that writer's clock says, up to a minute.
    pub jumps: bool,
    numbers: BTreeMap<u8, u64>,
    queue: BTreeMap<(TimeMs, u64), Event>,
    events: u64,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let skew_ms_max = if rng.random_bool(0.5) { 300 } else { SKEW_MS_MAX };
        let coordinators = (0..2).map(|_| Coordinator::new(rng.random_range(-skew_ms_max..=skew_ms_max))).collect();
        let mut world = Self {
            nodes: (0..rng.random_range(1..=NODES_MAX)).map(|number| Node::new(number, &mut rng)).collect(),
            clients: Clients::new(&mut rng),
            rng,
            now_ms: 1_000_000,
            state: State::default(),
            log: Vec::new(),
            coordinators,
            checks: Checks::default(),
            jobs_created: 0,
            jumps: seed.is_multiple_of(3),
            numbers: BTreeMap::new(),
            queue: BTreeMap::new(),
            events: 0,
        };
        if seed.is_multiple_of(2) {
            let at_ms = world.now_ms;
            world.append(Record::LevelRaised { level: 2, log: LogId::from_bytes([1; 16]), at_ms });
        }
        for _ in 0..world.rng.random_range(1..=3) {
            world.create_job();
        }
        for who in 0..2 {
            world.after(0..=50, Event::Look { who, sleep: 0 });
        }
        for event in [Event::Client, Event::Owner] {
            world.after(0..=50, event);
        }
        for _ in 0..if world.jumps { 6 } else { 0 } {
            let who = world.rng.random_range(0..2);
            world.after(0..=TROUBLE_MS, Event::Jump(who));
        }
        for node in 0..world.nodes.len() {
            world.after(0..=50, Event::Sweep(node));
            for _ in 0..world.rng.random_range(0..=2) {
                world.after(0..=20_000, Event::Forget(node));
            }
            for _ in 0..world.rng.random_range(0..=3) {
                let dead = world.chance(50);
                world.after(0..=TROUBLE_MS, Event::Silence { node, dead });
            }
        }
        world
    }

    pub fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// Plans an event for some time from now.
    pub fn after(&mut self, ms: RangeInclusive<u64>, event: Event) {
        let at_ms = self.now_ms + self.rng.random_range(ms);
        self.at(at_ms, event);
    }

    pub fn at(&mut self, at_ms: TimeMs, event: Event) {
        self.events += 1;
        self.queue.insert((at_ms.max(self.now_ms), self.events), event);
    }

    pub fn troubled(&self) -> bool {
        self.now_ms < 1_000_000 + TROUBLE_MS
    }

    fn is_over(&self) -> bool {
        self.state.jobs().all(|job| job.state.is_over())
    }

    /// Runs until every job is over and everything on its way has arrived.
    pub fn run(&mut self) {
        while let Some(((at_ms, _), event)) = self.queue.pop_first() {
            self.now_ms = at_ms;
            if at_ms > 1_000_000 + END_MS {
                let stuck: Vec<_> =
                    self.state.jobs().filter(|job| !job.state.is_over()).map(|job| job.view()).collect();
                panic!("jobs are stuck: {stuck:#?}");
            }
            self.happen(event);
        }
        assert!(self.is_over(), "nothing more will happen, and a job is not over");
        self.nodes.iter().for_each(Node::assert_empty);
        self.checks.at_the_end(&self.state);
        let mut replayed = State::default();
        for ((_, envelope, outcome), sequence) in self.log.iter().zip(1..) {
            let stocked = Stocked::Record(Box::new(envelope.clone()));
            assert_eq!(replayed.take(sequence, &stocked), *outcome, "record {sequence} in the replay");
        }
        assert!(replayed == self.state, "the replay is not the live state");
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Look { who, sleep } => self.look(who, sleep),
            Event::Decide { who, decisions } => self.decide(who, decisions),
            Event::Client => {
                self.client();
                if !self.is_over() {
                    let pace_ms = self.clients.pace_ms;
                    self.after(0..=pace_ms, Event::Client);
                }
            }
            Event::Upload(accept) => self.upload(accept),
            Event::Flush(node) => self.flush(node),
            Event::Sweep(node) => {
                self.sweep(node);
                if !self.is_over() || !self.nodes[node].is_empty() {
                    self.after(1..=200, Event::Sweep(node));
                }
            }
            Event::Append(envelope) => drop(self.take(*envelope)),
            Event::Forget(node) => self.nodes[node].forget(),
            Event::Silence { node, dead } => self.silence(node, dead),
            Event::Back(node) => self.nodes[node].back(),
            Event::Wake => self.wake_coordinators(),
            Event::Jump(who) => {
                self.checks.reached.count("a clock jumped");
                self.coordinators[who].skew_ms = self.rng.random_range(-SKEW_MS_MAX..=SKEW_MS_MAX);
            }
            Event::Owner => {
                self.owner();
                if self.troubled() && !self.is_over() {
                    self.after(0..=5_000, Event::Owner);
                }
            }
            Event::Act(uid, action) => {
                self.append(Record::JobActed { uid, action, at_ms: self.now_ms });
            }
        }
    }

    /// Stores a record, applies it, checks everything and wakes the coordinators.
    pub fn append(&mut self, record: Record) -> Outcome {
        let envelope = self.written_by(OWNERS, record, None);
        self.take(envelope)
    }

    /// What a process sends to the log. Processes number what they send.
    pub fn written_by(&mut self, writer: u8, record: Record, guard: Option<Guard>) -> Envelope {
        let number = self.numbers.entry(writer).or_default();
        *number += 1;
        Envelope { writer: [writer; 16], number: *number, guard, seen: Some(self.log.len() as u64), record }
    }

    /// The same of what was sent before.
    pub fn take(&mut self, envelope: Envelope) -> Outcome {
        let (sequence, record) = (self.log.len() as u64 + 1, envelope.record.clone());
        let before = self.checks.before(&self.state, &record);
        let outcome = self.state.take(sequence, &Stocked::Record(Box::new(envelope.clone())));
        self.log.push((self.now_ms - 1_000_000, envelope, outcome.clone()));
        if let Err(why) = self.state.audit() {
            panic!("record {sequence}: {why}");
        }
        self.checks.after(self.now_ms, before, &self.state, &record, &outcome);
        if let (Record::RoundGivenUp { uid, .. }, Outcome::Done) = (&record, &outcome)
            && self.job_state(*uid) == Some(JobState::Paused)
        {
            self.after(100..=10_000, Event::Act(*uid, JobAction::Resume));
        }
        self.wake_coordinators();
        outcome
    }

    pub fn create_job(&mut self) {
        self.jobs_created += 1;
        let number = self.jobs_created;
        let (goal, rounds) = (self.rng.random_range(1..=6u64), self.rng.random_range(1..=5u64));
        let min_updates = self.rng.random_range(1..=goal);
        let deadline_ms = self.rng.random_range(200..=4_000u64);
        let retention_ms = if self.chance(50) { 86_400_000 } else { self.rng.random_range(0..=6_000u64) };
        let on_shortfall = ["retry", "retry", "skip", "fail"][self.rng.random_range(0..4)];
        let leaves = self.rng.random_range(1..=4u32);
        let mode = match self.chance(30) {
            true => format!(r#""mode":{{"async":{{"buffer":{goal},"staleness_max":2}}}},"update":"delta","#),
            false => String::new(),
        };
        let spec = format!(
            r#"{{"name":"job-{}","function":"fedavg",{mode}"goal":{goal},"min_updates":{min_updates},"rounds":{rounds},
            "deadline":"{deadline_ms}ms","receipts":"{retention_ms}ms","on_shortfall":"{on_shortfall}",
            "topology":{{"tree":{{"leaves":{leaves},"middles":0}}}}}}"#,
            number % 4,
        );
        let uid = JobUid::from_bytes([number; 16]);
        let outcome = self.append(Record::JobCreated { uid, spec, at_ms: self.now_ms });
        if outcome == Outcome::Done {
            let model = ModelCommit::initial(blake3_of(number), 64, self.nodes[0].id);
            let put = Record::ModelPut { uid, model, needs: Default::default(), at_ms: self.now_ms };
            // Each by a process of its own: what one of them sends overtakes what another has sent.
            let put = self.written_by(OWNERS + number, put, None);
            self.after(0..=500, Event::Append(Box::new(put)));
        }
    }

    /// A random job that is not over.
    pub fn some_job(&mut self) -> Option<JobUid> {
        let alive: Vec<_> = self.state.jobs().filter(|job| !job.state.is_over()).map(|job| job.uid).collect();
        (!alive.is_empty()).then(|| alive[self.rng.random_range(0..alive.len())])
    }

    pub fn job_state(&self, uid: JobUid) -> Option<JobState> {
        self.state.job(uid).map(|job| job.state)
    }
}

/// Some digest.
pub fn blake3_of(number: u8) -> catchment_types::Digest {
    catchment_types::Digest::from_bytes([number; 32])
}
