//! Instances and nodes: when more start and when they end.

use crate::policy::Scaling;
use crate::queue::{micros, seconds};
use crate::world::{Event, World};
use catchment_planner::{InstancesDemand, instances, reuse};

/// How often the threshold autoscaler looks.
pub const AUTOSCALE_S: f64 = 15.0;
/// What it aims at, and what it does not act on.
const TARGET: f64 = 0.7;
const TOLERANCE: f64 = 0.1;
/// Looks for which it remembers what it wanted: five minutes.
const REMEMBERED: usize = 20;

impl World {
    fn start_s(&self) -> f64 {
        let costs = &self.scenario.costs;
        if self.policy.containers { costs.container_start_s } else { costs.instance_start_s }
    }

    /// Starts what a shard with work lacks.
    pub fn scale(&mut self, node: usize, job: usize) {
        let this = &self.jobs[job];
        if this.gathers() || self.policy.scaling == Scaling::AlwaysOn {
            return;
        }
        let (costs, cores) = (&self.scenario.costs, self.machines[node].cores());
        let part = this.placement.as_ref().map_or(1.0 / this.nodes.len().max(1) as f64, |placement| {
            let node = catchment_types::NodeId(node as u64 + 1);
            placement.parts().find(|(on, _)| *on == node).map_or(0.0, |(_, part)| part)
        });
        let batch = costs.batch as f64;
        let partials = costs.fold_partials * this.partial_bytes() as f64 / batch;
        let service_s = (this.workload.update_bytes as f64 + partials) / costs.fold_bytes_per_s;
        let Some(shard) = self.machines[node].shards.get(&(job as u32)) else { return };
        let demand = InstancesDemand {
            arrivals_per_s: this.workload.per_s * part,
            service_s,
            waiting: shard.pending.len() as u64,
            most: cores,
        };
        let wanted = match self.policy.scaling {
            Scaling::Planned => instances(&demand, &self.scenario.planner),
            _ => 1,
        };
        let has = shard.warm + shard.starting;
        self.start_instances(node, job, wanted.saturating_sub(has));
    }

    fn start_instances(&mut self, node: usize, job: usize, count: u32) {
        if count == 0 {
            return;
        }
        let start_s = self.start_s();
        self.shard(node, job).starting += count;
        self.measured.cold_starts += u64::from(count);
        self.spend(job, count, start_s);
        let life = self.machines[node].life;
        self.queue.after(start_s, Event::Ready { node, life, job: job as u32, instances: count });
    }

    pub fn ready(&mut self, node: usize, life: u32, job: u32, instances: u32) {
        if self.machines[node].life != life {
            return;
        }
        let shard = self.shard(node, job as usize);
        let started = instances.min(shard.starting);
        shard.starting -= started;
        shard.warm += started;
        self.dispatch(node);
    }

    /// Seconds until an instance can take a role on a node: none where a warm one changes its role.
    pub fn role_delay_s(&mut self, node: usize, job: usize) -> f64 {
        let idle = self.shard(node, job).idle();
        let warm = if self.policy.reuse || self.policy.scaling == Scaling::AlwaysOn { [idle, 0, 0] } else { [0; 3] };
        let started: u32 = reuse(warm, [0, 0, 1]).started.iter().sum();
        if started == 0 || self.policy.scaling == Scaling::AlwaysOn {
            return 0.0;
        }
        let start_s = self.start_s();
        self.measured.cold_starts += 1;
        self.spend(job, 1, start_s);
        if self.policy.reuse {
            self.shard(node, job).warm += 1;
        }
        start_s
    }

    /// An always-on node.
    pub fn switch_on(&mut self, node: usize) {
        let (cores, now) = (self.machines[node].cores(), self.queue.now);
        self.machines[node].touch(now);
        (0..self.jobs.len()).for_each(|job| self.shard(node, job).warm = cores);
    }

    /// Every second: rounds are planned again, and nodes that have long had nothing to do are given up.
    pub fn tick(&mut self) {
        self.queue.after(1.0, Event::Tick);
        if self.policy.placing == crate::policy::Placing::Planned {
            for job in 0..self.jobs.len() {
                let is_active = self.control.active_round(job) == Some(self.jobs[job].round);
                match (is_active, self.jobs[job].placement.is_some()) {
                    (true, true) => self.replan(job),
                    (true, false) => self.place(job),
                    (false, _) => {}
                }
            }
        }
        if self.policy.scaling == Scaling::AlwaysOn {
            return;
        }
        let (now, keep) = (self.queue.now, micros(self.scenario.costs.keep_alive_s));
        for node in 0..self.machines.len() {
            let machine = &self.machines[node];
            if machine.held_since.is_none() || now - machine.active_at < keep || !machine.is_quiet() {
                continue;
            }
            if self.policy.scaling == Scaling::Threshold && self.policy.reuse {
                // It never has fewer than one.
                self.machines[node].shards.values_mut().for_each(|shard| shard.warm = shard.warm.min(1));
                continue;
            }
            self.machines[node].shards.values_mut().for_each(|shard| shard.warm = 0);
            let ended = self.machines[node].active_at + keep;
            self.let_go(node, ended);
        }
    }

    /// What Kubernetes' horizontal autoscaler does: replicas by use over target, and down only to the most it wanted
    /// lately.
    pub fn autoscale(&mut self) {
        self.queue.after(AUTOSCALE_S, Event::Autoscale);
        for node in 0..self.machines.len() {
            let cores = self.machines[node].cores();
            let jobs: Vec<u32> = self.machines[node].shards.keys().copied().collect();
            for job in jobs {
                let shard = self.shard(node, job as usize);
                let used = seconds(std::mem::take(&mut shard.busy_us)) / AUTOSCALE_S;
                if shard.warm == 0 {
                    continue;
                }
                let ratio = used / f64::from(shard.warm) / TARGET;
                let wanted = if (ratio - 1.0).abs() <= TOLERANCE {
                    shard.warm
                } else {
                    ((f64::from(shard.warm) * ratio).ceil() as u32).clamp(1, cores)
                };
                shard.wanted.push_back(wanted);
                while shard.wanted.len() > REMEMBERED {
                    shard.wanted.pop_front();
                }
                let most = shard.wanted.iter().copied().max().unwrap_or(1);
                let has = shard.warm + shard.starting;
                shard.warm = shard.warm.min(most.max(shard.busy).max(1));
                self.start_instances(node, job as usize, most.saturating_sub(has));
            }
        }
    }
}
