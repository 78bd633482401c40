//! Updates on their way from a client into the log.

use crate::control::Reported;
use crate::machine::{Shard, Upload, Work};
use crate::policy::{Folding, Placing};
use crate::queue::micros;
use crate::world::{Event, World};
use catchment_types::NodeId;

impl World {
    pub fn shard(&mut self, node: usize, job: usize) -> &mut Shard {
        self.machines[node].shards.entry(job as u32).or_default()
    }

    /// A client sends its update to some node, if the round still takes it.
    pub fn send(&mut self, upload: Upload) {
        let job = upload.job as usize;
        if !self.control.is_open(job, upload.round) {
            return;
        }
        let Some(node) = self.node_for(upload) else {
            if self.policy.placing == Placing::Planned && self.jobs[job].placement.is_none() {
                self.jobs[job].unplaced.push_back(upload);
            } else {
                self.queue.after(self.scenario.costs.retry_s, Event::Send(upload));
            }
            return;
        };
        let now = self.queue.now;
        let this = &mut self.jobs[job];
        this.first_at.get_or_insert(now);
        this.routed += 1;
        this.nodes.insert(node);
        self.machines[node].touch(now);
        self.count_connections(node, 1);
        self.shard(node, job).waiting.push_back(upload);
        self.admit_job(node, upload.job);
        if self.policy.folding == Folding::Lazy {
            // There may be no room for more, and then it folds after all.
            self.dispatch(node);
        }
    }

    /// Where an update goes. None: nowhere now.
    fn node_for(&self, upload: Upload) -> Option<usize> {
        let this = &self.jobs[upload.job as usize];
        if self.policy.placing == Placing::LeastConnections {
            if this.workload.class.can_spread() {
                return self.by_connections.first().map(|(_, node)| *node);
            }
            // It has to be on one node: the one it is on, or else the least busy one.
            let there = this.nodes.first().or_else(|| self.by_connections.first().map(|(_, node)| node));
            return there.copied().filter(|node| self.machines[*node].alive);
        }
        let node = if this.gathers() {
            // A node has room for its share of these and no more.
            let has = |node: NodeId| {
                let shard = self.machines[(node.0 - 1) as usize].shards.get(&upload.job);
                shard.map_or(0, |shard| shard.slabs + shard.waiting.len() as u64)
            };
            let shares = this.placement.as_ref()?.shares.iter();
            shares.max_by_key(|share| (share.updates.saturating_sub(has(share.node)), share.updates))?.node
        } else {
            this.route.as_ref()?.node_for(this.routed)
        };
        let node = (node.0 - 1) as usize;
        self.machines[node].alive.then_some(node)
    }

    /// Grants slabs to whoever waits, of all jobs.
    pub fn admit(&mut self, node: usize) {
        let jobs: Vec<u32> =
            self.machines[node].shards.iter().filter(|(_, s)| !s.waiting.is_empty()).map(|(j, _)| *j).collect();
        jobs.into_iter().for_each(|job| self.admit_job(node, job));
    }

    /// Grants slabs to whoever waits of one job: accumulators first, then as many as its window and memory allow.
    fn admit_job(&mut self, node: usize, job: u32) {
        let this = &self.jobs[job as usize];
        let (update_bytes, partial_bytes, round) = (this.workload.update_bytes, this.partial_bytes(), this.round);
        let base = if this.gathers() { partial_bytes } else { 3 * partial_bytes + 2 * update_bytes };
        // Who folds late needs room for all.
        let has_window = self.policy.placing == Placing::Planned && self.policy.folding == Folding::Eager;
        let now = self.queue.now;
        loop {
            let shard = self.shard(node, job as usize);
            let Some(upload) = shard.waiting.front().copied() else { return };
            if upload.round != round {
                shard.waiting.pop_front();
                self.count_connections(node, -1);
                continue;
            }
            if has_window && shard.slabs >= shard.window.max(1) {
                return;
            }
            let needs = update_bytes + if shard.base_bytes == 0 { base } else { 0 };
            if !self.allocate(node, needs) {
                return;
            }
            let shard = self.shard(node, job as usize);
            (shard.base_bytes, shard.round) = (base, round);
            shard.slabs += 1;
            shard.waiting.pop_front();
            let machine = &mut self.machines[node];
            let (life, at) = (machine.life, machine.transfer(now, update_bytes, f64::INFINITY));
            self.queue.at(at, Event::Received { node, life, upload });
        }
    }

    /// The node died under the upload, and its client sends again.
    fn cut_off(&mut self, upload: Upload) {
        self.queue.after(self.scenario.costs.retry_s, Event::Send(upload));
    }

    pub fn received(&mut self, node: usize, life: u32, upload: Upload) {
        if self.machines[node].life != life {
            return self.cut_off(upload);
        }
        self.machines[node].tasks.push_back(Work::Ingest(upload));
        self.dispatch(node);
    }

    pub fn ingested(&mut self, node: usize, life: u32, upload: Upload) {
        if self.machines[node].life != life {
            return self.cut_off(upload);
        }
        self.machines[node].group.push(upload);
        if self.machines[node].group.len() == 1 {
            self.queue.after(self.scenario.costs.log_s, Event::Flush { node, life });
        }
    }

    /// The group is in the log; who counts is known.
    pub fn flush(&mut self, node: usize, life: u32) {
        if self.machines[node].life != life {
            return;
        }
        let group = std::mem::take(&mut self.machines[node].group);
        let reported: Vec<Reported> = group
            .iter()
            .map(|upload| Reported {
                job: upload.job as usize,
                round: upload.round,
                client: upload.client,
                bytes: self.jobs[upload.job as usize].workload.update_bytes,
            })
            .collect();
        let receipts = self.control.accept(NodeId(node as u64 + 1), &reported, self.now_ms());
        let now = self.queue.now;
        let mut touched = Vec::new();
        for (upload, receipt) in group.into_iter().zip(receipts) {
            let job = upload.job as usize;
            self.count_connections(node, -1);
            touched.push(upload.job);
            let Some(receipt) = receipt else {
                // Too late: its slab is free.
                self.shard(node, job).slabs -= 1;
                self.free(node, self.jobs[job].workload.update_bytes);
                continue;
            };
            self.jobs[job].accepted += 1;
            self.jobs[job].last_at = now;
            self.measured.accepted += 1;
            let gathers = self.jobs[job].gathers();
            let shard = self.shard(node, job);
            if gathers { shard.kept.push(receipt) } else { shard.pending.push_back(receipt) }
        }
        touched.dedup();
        for job in touched {
            self.scale(node, job as usize);
            self.round_moved(job as usize);
        }
        self.admit(node);
        self.dispatch(node);
    }

    /// Core-seconds of receiving an update.
    pub fn ingest_s(&self, upload: Upload) -> f64 {
        let (costs, bytes) = (&self.scenario.costs, self.jobs[upload.job as usize].workload.update_bytes as f64);
        let broker_s =
            if self.policy.data_path == crate::policy::DataPath::Broker { costs.broker_s_per_byte } else { 0.0 };
        bytes / costs.ingest_bytes_per_s + bytes * broker_s
    }

    /// Books cores for work that now begins.
    pub fn spend(&mut self, job: usize, cores: u32, seconds: f64) {
        let us = micros(seconds) * u64::from(cores);
        self.measured.cpu_us += us;
        self.jobs[job].cpu_us += us;
    }
}
