//! Time, and what happens in it.

use crate::control::Control;
use crate::machine::{Machine, Upload, Work};
use crate::policy::{Placing, Policy, Scaling};
use crate::queue::{Micros, Queue, seconds};
use crate::report::{Measured, Report};
use crate::rounds::JobRounds;
use crate::scenario::{Scenario, Workload};
use catchment_planner::Fleet;
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use std::collections::BTreeSet;
use std::fmt;

/// Virtual time begins here, so that no time is 0.
const EPOCH_MS: u64 = 1_000_000;
/// Without a model for so many deadlines and an hour, a round is stuck.
const DEADLINES_MAX: f64 = 20.0;

/// Something happens.
pub enum Event {
    /// The next client of a round arrives.
    Arrive { job: u32, round: u64 },
    /// A client sends.
    Send(Upload),
    /// All bytes of an update are there.
    Received { node: usize, life: u32, upload: Upload },
    /// The node appends its group.
    Flush { node: usize, life: u32 },
    /// Instances have started.
    Ready { node: usize, life: u32, job: u32, instances: u32 },
    /// An instance for a role has started, and its work can begin.
    Begin { node: usize, life: u32, work: Work },
    /// Work is done.
    Done { node: usize, life: u32, cores: u32, instances: u32, work: Work },
    /// A partial has come up.
    Partial { job: u32, epoch: u32, from: usize, from_life: u32, into: usize },
    /// All updates of a slice have come.
    Exchanged { job: u32, epoch: u32, node: usize, updates: u64, part: f64 },
    /// A deadline may have passed.
    Look,
    /// A second has passed.
    Tick,
    /// The autoscaler looks.
    Autoscale,
    /// Some node dies.
    Death,
    /// Its death becomes known.
    Detected { node: usize },
    /// It is back, empty.
    Back { node: usize },
    /// Some link stalls.
    LinkDown,
}

/// What must never happen did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// With this seed.
    pub seed: u64,
    /// Under this policy.
    pub policy: String,
    /// This.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} under the policy {:?}; replay with seed {}", self.what, self.policy, self.seed)
    }
}

impl std::error::Error for Violation {}

/// Everything.
pub struct World {
    pub scenario: Scenario,
    pub policy: Policy,
    pub queue: Queue<Event>,
    pub rng: ChaCha8Rng,
    pub control: Control,
    pub fleet: Fleet,
    pub machines: Vec<Machine>,
    pub jobs: Vec<JobRounds>,
    pub measured: Measured,
    /// Nodes by uploads, for the balancer.
    pub by_connections: BTreeSet<(u64, usize)>,
    pub violation: Option<String>,
    look_at_ms: Option<u64>,
}

/// Runs a scenario to its end.
///
/// # Errors
/// What must never happen did.
pub fn simulate(scenario: &Scenario, policy: &Policy) -> Result<Report, Violation> {
    let mut world = World::new(scenario, policy);
    world.run().map_err(|what| Violation { seed: scenario.seed, policy: policy.name.clone(), what })?;
    Ok(world.report())
}

impl World {
    fn new(scenario: &Scenario, policy: &Policy) -> Self {
        let nodes = scenario.fleet();
        let workloads = scenario.workloads.iter().flat_map(|load| (0..load.jobs).map(move |_| load));
        let jobs = workloads.map(|workload| JobRounds::new(workload.clone(), &scenario.costs)).collect();
        let mut world = Self {
            queue: Queue::default(),
            rng: ChaCha8Rng::seed_from_u64(scenario.seed),
            control: Control::default(),
            fleet: Fleet::new(scenario.planner, nodes.clone()),
            machines: nodes.into_iter().map(Machine::new).collect(),
            jobs,
            measured: Measured::default(),
            by_connections: BTreeSet::new(),
            violation: None,
            look_at_ms: None,
            scenario: scenario.clone(),
            policy: policy.clone(),
        };
        world.by_connections = (0..world.machines.len()).map(|node| (0, node)).collect();
        world
    }

    fn run(&mut self) -> Result<(), String> {
        if self.policy.scaling == Scaling::AlwaysOn {
            (0..self.machines.len()).for_each(|node| self.switch_on(node));
        }
        for job in 0..self.jobs.len() {
            let now_ms = self.now_ms();
            self.control.create(job, &self.jobs[job].workload.clone(), now_ms);
        }
        self.queue.after(1.0, Event::Tick);
        if self.policy.scaling == Scaling::Threshold {
            self.queue.after(crate::scaling::AUTOSCALE_S, Event::Autoscale);
        }
        self.plan_failures();
        self.look();
        let longest = |of: fn(&Workload) -> f64| self.scenario.workloads.iter().map(of).fold(0.0, f64::max);
        let patience_s =
            DEADLINES_MAX * longest(|load| load.deadline_s + load.train_s + load.goal as f64 / load.per_s) + 3600.0;
        let mut progress = (0, 0);
        while !self.control.is_over() {
            let Some(event) = self.queue.pop() else { return Err("nothing more happens".to_owned()) };
            if self.measured.rounds > progress.0 {
                progress = (self.measured.rounds, self.queue.now);
            }
            if seconds(self.queue.now - progress.1) > patience_s {
                let stuck = (0..self.jobs.len()).map(|job| self.control.describe(job)).collect::<Vec<_>>();
                return Err(format!("a round is stuck: {stuck:?}"));
            }
            self.happen(event);
            if let Some(what) = self.violation.take() {
                return Err(what);
            }
        }
        self.control.audit()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { job, round } => self.arrive(job, round),
            Event::Send(upload) => self.send(upload),
            Event::Received { node, life, upload } => self.received(node, life, upload),
            Event::Flush { node, life } => self.flush(node, life),
            Event::Ready { node, life, job, instances } => self.ready(node, life, job, instances),
            Event::Begin { node, life, work } => self.begin(node, life, work),
            Event::Done { node, life, cores, instances, work } => self.done(node, life, cores, instances, work),
            Event::Partial { job, epoch, from, from_life, into } => self.partial(job, epoch, from, from_life, into),
            Event::Exchanged { job, epoch, node, updates, part } => self.exchanged(job, epoch, node, updates, part),
            Event::Look => self.look(),
            Event::Tick => self.tick(),
            Event::Autoscale => self.autoscale(),
            Event::Death => self.death(),
            Event::Detected { node } => self.detected(node),
            Event::Back { node } => self.back(node),
            Event::LinkDown => self.link_down(),
        }
    }

    pub fn now_ms(&self) -> u64 {
        EPOCH_MS + self.queue.now / 1000
    }

    /// The coordinator looks, and what it decides happens.
    pub fn look(&mut self) {
        let (decided, again_ms) = self.control.look(self.now_ms());
        for decided in decided {
            self.decided(decided);
        }
        if let Some(at_ms) = again_ms.filter(|at_ms| self.look_at_ms != Some(*at_ms)) {
            self.look_at_ms = Some(at_ms);
            self.queue.at((at_ms - EPOCH_MS) * 1000, Event::Look);
        }
    }

    pub fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// Changes how many uploads a node has, for the balancer.
    pub fn count_connections(&mut self, node: usize, change: i64) {
        let machine = &mut self.machines[node];
        if self.policy.placing == Placing::LeastConnections {
            self.by_connections.remove(&(machine.connections, node));
        }
        machine.connections = machine.connections.saturating_add_signed(change);
        if self.policy.placing == Placing::LeastConnections && machine.alive {
            self.by_connections.insert((machine.connections, node));
        }
    }

    /// Whether memory was there; it is taken then.
    pub fn allocate(&mut self, node: usize, bytes: u64) -> bool {
        let machine = &mut self.machines[node];
        let has_room = machine.memory_free() >= bytes;
        if has_room {
            machine.memory_used += bytes;
            self.measured.memory_most = self.measured.memory_most.max(machine.memory_used);
        }
        has_room
    }

    pub fn free(&mut self, node: usize, bytes: u64) {
        let machine = &mut self.machines[node];
        match machine.memory_used.checked_sub(bytes) {
            Some(left) => machine.memory_used = left,
            None => self.violate(format!("node {} gave back more memory than it took", node + 1)),
        }
    }

    /// Ends the time that a node is paid for.
    pub fn let_go(&mut self, node: usize, at: Micros) {
        if let Some(since) = self.machines[node].held_since.take() {
            self.measured.node_us += at.saturating_sub(since);
        }
    }

    fn report(&mut self) -> Report {
        let now = self.queue.now;
        (0..self.machines.len()).for_each(|node| self.let_go(node, now));
        self.measured.report(&self.policy.name, now, self.queue.number, &self.control)
    }
}
