//! Rounds: where they are placed, who comes, and what is known of them for the next.

use crate::control::Decided;
use crate::cost::Costs;
use crate::merging::Merging;
use crate::policy::Placing;
use crate::queue::{Micros, seconds};
use crate::scenario::Workload;
use crate::trace::Clients;
use crate::world::{Event, World};
use catchment_planner::{Arrivals, Config, Demand, Ewma, Placement, RoundKey, Route};
use catchment_types::JobUid;
use std::collections::{BTreeSet, VecDeque};

/// A job's round, and what was learnt from those before.
pub struct JobRounds {
    pub workload: Workload,
    pub round: u64,
    /// Of the planner's.
    pub placement: Option<Placement>,
    pub route: Option<Route>,
    /// Uploads that were sent to a node.
    pub routed: u64,
    /// Uploads that no node could be found for yet.
    pub unplaced: VecDeque<crate::machine::Upload>,
    /// Nodes that have something of the round.
    pub nodes: BTreeSet<usize>,
    /// Grows when a merge is given up, so that what is left of it is void.
    pub epoch: u32,
    pub merging: Option<Merging>,
    pub first_at: Option<Micros>,
    pub last_at: Micros,
    /// When the latest client arrived.
    arrived_at: Micros,
    pub accepted: u64,
    pub cpu_us: u64,
    deadline_ms: Option<u64>,
    clients: Option<Clients>,
    sent: u64,
    /// Of this round so far, and of those before.
    arrivals: Arrivals,
    per_s: Ewma,
    service_s: Ewma,
}

impl JobRounds {
    pub fn new(workload: Workload, costs: &Costs) -> Self {
        let mut service_s = Ewma::default();
        // What one update takes by the tables, until it is known.
        let guess = workload.update_bytes as f64 * (1.0 / costs.ingest_bytes_per_s + 2.0 / costs.fold_bytes_per_s);
        service_s.observe(guess, 0, 0.7, 1);
        Self {
            workload,
            round: 0,
            placement: None,
            route: None,
            routed: 0,
            unplaced: VecDeque::new(),
            nodes: BTreeSet::new(),
            epoch: 0,
            merging: None,
            first_at: None,
            last_at: 0,
            arrived_at: 0,
            accepted: 0,
            cpu_us: 0,
            deadline_ms: None,
            clients: None,
            sent: 0,
            arrivals: Arrivals::default(),
            per_s: Ewma::default(),
            service_s,
        }
    }

    /// Bytes of a partial: `f64` for what came as `f32`.
    pub fn partial_bytes(&self) -> u64 {
        2 * self.workload.update_bytes
    }

    pub fn gathers(&self) -> bool {
        self.workload.class.keeps_updates()
    }

    pub fn tasks(&self) -> u64 {
        (self.workload.goal as f64 * self.workload.over_provision).ceil() as u64
    }

    pub fn demand(&self, job: usize, now_ms: u64, config: &Config) -> Demand {
        // A round may bring more than those before did, never less until it is over.
        let now_per_s = self.arrivals.per_s(now_ms, config.alpha, config.period_ms);
        let left_s = |deadline: u64| deadline.saturating_sub(now_ms) as f64 / 1000.0;
        Demand {
            key: RoundKey { uid: JobUid::from_bytes((job as u128 + 1).to_be_bytes()), round: self.round },
            class: self.workload.class,
            updates: self.tasks(),
            update_bytes: self.workload.update_bytes,
            partial_bytes: self.partial_bytes(),
            arrivals_per_s: self.per_s.value().unwrap_or(0.0).max(now_per_s),
            service_s: self.service_s.value().unwrap_or(0.0),
            time_left_s: self.deadline_ms.map(|deadline| (left_s(deadline) - self.workload.train_s).max(1.0)),
        }
    }

    /// Learns from a round that has ended: one sample a round.
    fn learn(&mut self, alpha: f64) {
        let Some(first) = self.first_at.filter(|_| self.accepted > 0) else { return };
        // Of what was offered: what was accepted came no faster than the nodes could take it.
        let took_s = seconds(self.arrived_at.saturating_sub(first)).max(0.001);
        self.per_s.observe(self.sent as f64 / took_s, self.round, alpha, 1);
        self.service_s.observe(seconds(self.cpu_us) / self.accepted as f64, self.round, alpha, 1);
    }
}

impl World {
    pub fn decided(&mut self, decided: Decided) {
        match decided {
            Decided::Opened { job, round, deadline_ms } => self.open(job, round, deadline_ms),
            Decided::Changed { job } => {
                if self.control.active_round(job) == Some(self.jobs[job].round) {
                    self.round_moved(job);
                } else {
                    self.end_round(job);
                }
            }
        }
    }

    fn open(&mut self, job: usize, round: u64, deadline_ms: Option<u64>) {
        if self.jobs[job].round != 0 {
            self.end_round(job);
        }
        let seed = self.scenario.seed ^ (job as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (round << 40);
        let this = &mut self.jobs[job];
        (this.round, this.deadline_ms, this.sent) = (round, deadline_ms, 0);
        let mut clients = Clients::new(this.workload.trace.clone(), this.workload.per_s, seed);
        let first_s = this.workload.train_s + clients.next_s();
        this.clients = Some(clients);
        self.queue.after(first_s, Event::Arrive { job: job as u32, round });
        self.place(job);
    }

    pub fn demand(&self, job: usize) -> Demand {
        self.jobs[job].demand(job, self.now_ms(), &self.scenario.planner)
    }

    /// Places the round as the planner says; without room it is tried again every second.
    pub fn place(&mut self, job: usize) {
        if self.policy.placing != Placing::Planned {
            return;
        }
        let demand = self.demand(job);
        let placed = self.fleet.place(&demand).ok();
        if let Some((placement, _)) = placed {
            self.measured.late += u64::from(!placement.in_time);
            self.adopt(job, placement);
        }
    }

    /// Sends updates by another placement from now on.
    pub fn adopt(&mut self, job: usize, placement: Placement) {
        for share in &placement.shares {
            let node = (share.node.0 - 1) as usize;
            self.shard(node, job).window = share.window;
        }
        let this = &mut self.jobs[job];
        (this.route, this.placement) = (Some(placement.route()), Some(placement));
        self.check_reservations();
        for upload in std::mem::take(&mut self.jobs[job].unplaced) {
            self.send(upload);
        }
    }

    /// What is kept for all rounds fits every node, counted from the placements alone.
    fn check_reservations(&mut self) {
        let mut kept = vec![0u64; self.machines.len()];
        for share in self.jobs.iter().filter_map(|job| job.placement.as_ref()).flat_map(|placed| &placed.shares) {
            kept[(share.node.0 - 1) as usize] += share.memory_bytes;
        }
        let over = self.machines.iter().zip(&kept).position(|(machine, kept)| *kept > machine.node.memory_bytes);
        if let Some(node) = over {
            self.violate(format!("{} bytes are kept on node {}, which has fewer", kept[node], node + 1));
        }
    }

    /// Plans open rounds again: what has changed since may move what has not come.
    pub fn replan(&mut self, job: usize) {
        let this = &self.jobs[job];
        let Some(placement) = this.placement.as_ref().filter(|_| this.merging.is_none()) else { return };
        let demand = self.demand(job);
        let taken = |node: catchment_types::NodeId| {
            let shard = self.machines[(node.0 - 1) as usize].shards.get(&(job as u32));
            shard.map_or(0, |shard| shard.folded.len() as u64 + shard.slabs)
        };
        let replanned = match self.fleet.replan(placement, &demand, taken) {
            Ok(replanned) => replanned.map(|(placement, _)| placement),
            Err(_) => {
                // No room for the part of a lost node: the others go on, and it is tried again every second.
                let left = placement.left_on(|node| self.fleet.contains(node));
                self.jobs[job].route = left.as_ref().map(Placement::route);
                self.jobs[job].placement = left;
                None
            }
        };
        if let Some(placement) = replanned {
            self.measured.replanned += 1;
            self.adopt(job, placement);
            self.send_elsewhere(job);
        }
    }

    /// Whose body is still unread is refused for now, and comes back to where the round is then.
    fn send_elsewhere(&mut self, job: usize) {
        let nodes: Vec<usize> = self.jobs[job].nodes.iter().copied().collect();
        for node in nodes {
            let waiting = std::mem::take(&mut self.shard(node, job).waiting);
            self.count_connections(node, -(waiting.len() as i64));
            self.jobs[job].routed -= waiting.len() as u64;
            for upload in waiting {
                self.queue.after(self.scenario.costs.retry_s, Event::Send(upload));
            }
        }
    }

    /// The next client arrives, and the one after it is awaited.
    pub fn arrive(&mut self, job: u32, round: u64) {
        let (now_ms, config) = (self.now_ms(), self.scenario.planner);
        let this = &mut self.jobs[job as usize];
        if this.sent == 0 && this.round == round {
            this.arrivals = Arrivals::expecting(this.per_s.value().unwrap_or(0.0), now_ms);
        }
        if this.round != round || this.sent >= this.tasks() {
            return;
        }
        this.arrivals.observe(1, now_ms, config.alpha, config.period_ms);
        let client = this.sent as u32;
        this.sent += 1;
        this.arrived_at = self.queue.now;
        let is_last = this.sent >= this.tasks();
        if let Some(clients) = this.clients.as_mut().filter(|_| !is_last) {
            let gap_s = -clients.last_s() + clients.next_s();
            self.queue.after(gap_s, Event::Arrive { job, round });
        }
        self.send(crate::machine::Upload { job, client, round });
    }

    /// The round is over: its memory is free, and what it took is known.
    pub fn end_round(&mut self, job: usize) {
        let key = self.demand(job).key;
        self.fleet.release(key);
        let alpha = self.scenario.planner.alpha;
        let update_bytes = self.jobs[job].workload.update_bytes;
        let this = &mut self.jobs[job];
        this.learn(alpha);
        (this.placement, this.route, this.merging, this.routed) = (None, None, None, 0);
        (this.first_at, this.accepted, this.cpu_us) = (None, 0, 0);
        this.arrivals = Arrivals::default();
        this.epoch += 1;
        this.unplaced.clear();
        let nodes = std::mem::take(&mut this.nodes);
        self.measured.nodes_used += nodes.len() as u64;
        for node in nodes {
            let keeps_warm = self.policy.reuse;
            let always = self.policy.scaling == crate::policy::Scaling::AlwaysOn;
            let shard = self.shard(node, job);
            let slabs = shard.kept.len() + shard.pending.len();
            shard.slabs -= slabs as u64;
            let waiting = shard.waiting.len() as i64;
            let bytes = shard.base_bytes + slabs as u64 * update_bytes;
            shard.base_bytes = 0;
            (shard.pending, shard.folded, shard.kept) = Default::default();
            shard.waiting.clear();
            if !keeps_warm && !always {
                (shard.warm, shard.starting) = (shard.busy, 0);
            }
            self.free(node, bytes);
            self.count_connections(node, -waiting);
            self.admit(node);
        }
    }
}
