//! What goes wrong: nodes that die with their memory, links that stall.

use crate::machine::Upload;
use crate::world::{Event, World};
use catchment_types::NodeId;
use rand::RngExt;

impl World {
    /// Plans the first of each kind of trouble.
    pub fn plan_failures(&mut self) {
        let failures = self.scenario.failures.clone();
        for (every_s, event) in [(failures.death_every_s, Event::Death), (failures.link_every_s, Event::LinkDown)] {
            self.plan_failure(every_s, event);
        }
    }

    fn plan_failure(&mut self, every_s: f64, event: Event) {
        if every_s > 0.0 {
            let after_s = -(1.0 - self.rng.random::<f64>()).ln() * every_s;
            self.queue.after(after_s, event);
        }
    }

    /// A node dies. Whoever was talking to it notices; the others learn of it later.
    pub fn death(&mut self) {
        let costs = self.scenario.costs.clone();
        self.plan_failure(self.scenario.failures.death_every_s, Event::Death);
        let node = self.rng.random_range(0..self.machines.len());
        let alive = self.machines.iter().filter(|machine| machine.alive).count();
        if !self.machines[node].alive || alive < 2 {
            return;
        }
        self.measured.deaths += 1;
        self.by_connections.remove(&(self.machines[node].connections, node));
        let now = self.queue.now;
        self.let_go(node, now);
        for upload in self.machines[node].die() {
            self.queue.after(costs.retry_s, Event::Send(upload));
        }
        self.queue.after(costs.detect_s, Event::Detected { node });
    }

    /// The fleet knows that a node is gone: its updates are lost, and their clients are asked again.
    pub fn detected(&mut self, node: usize) {
        let id = NodeId(node as u64 + 1);
        self.fleet.leave(id);
        for (job, round, clients) in self.control.lost(id, self.now_ms()) {
            self.measured.lost += clients.len() as u64;
            self.jobs[job].accepted = self.jobs[job].accepted.saturating_sub(clients.len() as u64);
            for client in clients {
                let upload = Upload { job: job as u32, client, round };
                self.queue.after(self.scenario.costs.retry_s, Event::Send(upload));
            }
        }
        for job in 0..self.jobs.len() {
            self.jobs[job].nodes.remove(&node);
            // Whatever was on its way up from or to that node never comes: leaves are merged anew.
            self.jobs[job].epoch += 1;
            self.jobs[job].merging = None;
            self.replan(job);
            self.round_moved(job);
        }
        self.look();
        self.queue.after(self.scenario.failures.down_s, Event::Back { node });
    }

    /// The node is back, with nothing on it.
    pub fn back(&mut self, node: usize) {
        self.machines[node].alive = true;
        self.by_connections.insert((self.machines[node].connections, node));
        self.fleet.join(self.machines[node].node);
        if self.policy.scaling == crate::policy::Scaling::AlwaysOn {
            self.switch_on(node);
        }
    }

    pub fn link_down(&mut self) {
        self.plan_failure(self.scenario.failures.link_every_s, Event::LinkDown);
        let node = self.rng.random_range(0..self.machines.len());
        let (now, seconds) = (self.queue.now, self.scenario.failures.link_down_s);
        self.machines[node].stall(now, seconds);
    }
}
