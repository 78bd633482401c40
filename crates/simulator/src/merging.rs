//! From the nodes of a closed round to its model.

use crate::machine::Work;
use crate::policy::DataPath;
use crate::queue::{micros, seconds};
use crate::world::{Event, World};
use catchment_planner::Levels;
use catchment_types::{NodeId, ReceiptId};
use std::collections::BTreeMap;

/// A model on its way.
pub struct Merging {
    top: usize,
    /// Partials that a node still waits for.
    remaining: BTreeMap<usize, usize>,
    /// Where a node's partial goes.
    parent: BTreeMap<usize, usize>,
    /// What is in each partial: the account that a commit is held against.
    sets: BTreeMap<usize, Vec<ReceiptId>>,
}

impl World {
    /// Something of a round has moved: it may have closed, and it may be ready.
    pub fn round_moved(&mut self, job: usize) {
        let (round, gathers) = (self.jobs[job].round, self.jobs[job].gathers());
        if self.jobs[job].merging.is_some() || self.control.is_open(job, round) {
            return;
        }
        if self.control.is_ready(job, gathers) {
            self.begin_merging(job);
        } else if self.policy.folding == crate::policy::Folding::Lazy {
            let nodes: Vec<usize> = self.jobs[job].nodes.iter().copied().collect();
            for node in nodes {
                if self.machines[node].alive {
                    self.dispatch(node);
                }
            }
        }
    }

    fn begin_merging(&mut self, job: usize) {
        if self.jobs[job].nodes.iter().any(|node| !self.machines[*node].alive) {
            // A node of it has died, and that is not known yet: its part is waited for.
            return;
        }
        let mut sets = BTreeMap::new();
        for node in &self.jobs[job].nodes {
            let Some(shard) = self.machines[*node].shards.get(&(job as u32)) else { continue };
            if shard.round == self.jobs[job].round && shard.updates() > 0 {
                sets.insert(*node, shard.folded.iter().chain(&shard.kept).copied().collect::<Vec<_>>());
            }
        }
        let has: Vec<_> = sets.iter().map(|(node, set)| (NodeId(*node as u64 + 1), set.len() as u64)).collect();
        let demand = self.demand(job);
        let Some((top, levels)) = self.fleet.levels(&demand, &has) else { return };
        let index = |node: NodeId| (node.0 - 1) as usize;
        let mut merging = Merging { top: index(top), remaining: BTreeMap::new(), parent: BTreeMap::new(), sets };
        let gathers = self.jobs[job].gathers();
        if let Levels::Tree(merges) = &levels {
            for merge in merges {
                *merging.remaining.entry(index(merge.into)).or_default() += merge.from.len();
                merging.parent.extend(merge.from.iter().map(|from| (index(*from), index(merge.into))));
            }
        } else if gathers {
            merging.remaining.insert(merging.top, has.len());
        }
        self.measured.levels = self.measured.levels.max(levels.height());
        self.jobs[job].merging = Some(merging);
        if gathers {
            self.exchange(job, &has);
            return;
        }
        for (node, _) in has {
            self.enter(index(node), job, Work::Local { job: job as u32, epoch: self.jobs[job].epoch });
        }
    }

    /// Every node of a round that keeps its updates gets its slice of all of them.
    fn exchange(&mut self, job: usize, has: &[(NodeId, u64)]) {
        let (epoch, now) = (self.jobs[job].epoch, self.queue.now);
        let all: u64 = has.iter().map(|(_, updates)| updates).sum();
        let update_bytes = self.jobs[job].workload.update_bytes as f64;
        for (node, own) in has {
            let node = (node.0 - 1) as usize;
            let part = *own as f64 / all as f64;
            let bytes = ((all - own) as f64 * update_bytes * part) as u64;
            self.measured.between_nodes_bytes += bytes;
            let at = self.machines[node].transfer(now, bytes, f64::INFINITY) + micros(self.scenario.costs.near_s);
            self.queue.at(at, Event::Exchanged { job: job as u32, epoch, node, updates: all, part });
        }
    }

    pub fn exchanged(&mut self, job: u32, epoch: u32, node: usize, updates: u64, part: f64) {
        if self.is_current(job as usize, epoch) && self.machines[node].alive {
            self.enter(node, job as usize, Work::Slice { job, epoch, updates, part });
        }
    }

    fn is_current(&self, job: usize, epoch: u32) -> bool {
        self.jobs[job].epoch == epoch && self.jobs[job].merging.is_some()
    }

    /// Work for a role begins when there is an instance for it.
    fn enter(&mut self, node: usize, job: usize, work: Work) {
        let is_own = matches!(work, Work::Local { .. });
        let delay_s = if is_own { 0.0 } else { self.role_delay_s(node, job) };
        let life = self.machines[node].life;
        if delay_s > 0.0 {
            self.queue.after(delay_s, Event::Begin { node, life, work });
        } else {
            self.begin(node, life, work);
        }
    }

    pub fn begin(&mut self, node: usize, life: u32, work: Work) {
        if self.machines[node].life != life {
            return;
        }
        if let Work::Local { job, epoch } = work {
            // One accumulator is whole as it is; leaves of a tree hand theirs to the node's middle first.
            let leaves = self.shard(node, job as usize).warm;
            if self.policy.data_path == DataPath::SharedMemory || leaves < 2 {
                return self.whole(node, job as usize, epoch);
            }
        }
        self.machines[node].tasks.push_back(work);
        self.dispatch(node);
    }

    /// A node has all of its own; if nothing comes from others, it goes up.
    pub fn whole(&mut self, node: usize, job: usize, epoch: u32) {
        if !self.is_current(job, epoch) {
            return;
        }
        let waits =
            self.jobs[job].merging.as_ref().is_some_and(|m| m.remaining.get(&node).is_some_and(|left| *left > 0));
        if !waits {
            self.go_up(node, job);
        }
    }

    fn go_up(&mut self, node: usize, job: usize) {
        let epoch = self.jobs[job].epoch;
        let Some(merging) = &self.jobs[job].merging else { return };
        if node == merging.top {
            return self.enter(node, job, Work::Finish { job: job as u32, epoch });
        }
        let into = merging.parent[&node];
        let bytes = self.jobs[job].partial_bytes();
        self.carry(job, node, into, bytes);
    }

    /// Sends something of a model from one node to another.
    fn carry(&mut self, job: usize, from: usize, into: usize, bytes: u64) {
        let (costs, now) = (&self.scenario.costs, self.queue.now);
        let is_near = self.machines[from].node.zone == self.machines[into].node.zone;
        let (latency_s, pace) =
            if is_near { (costs.near_s, f64::INFINITY) } else { (costs.far_s, costs.far_bytes_per_s) };
        self.measured.between_nodes_bytes += bytes;
        self.measured.between_zones_bytes += if is_near { 0 } else { bytes };
        let at = self.machines[into].transfer(now, bytes, pace) + micros(latency_s);
        let (epoch, from_life) = (self.jobs[job].epoch, self.machines[from].life);
        self.queue.at(at, Event::Partial { job: job as u32, epoch, from, from_life, into });
    }

    pub fn partial(&mut self, job: u32, epoch: u32, from: usize, from_life: u32, into: usize) {
        let is_cut = self.machines[from].life != from_life || !self.machines[into].alive;
        if self.is_current(job as usize, epoch) && !is_cut {
            self.enter(into, job as usize, Work::Merge { job, epoch, from });
        }
    }

    pub fn merged(&mut self, node: usize, job: usize, epoch: u32, from: usize) {
        if !self.is_current(job, epoch) {
            return;
        }
        let Some(merging) = &mut self.jobs[job].merging else { return };
        let mut set = merging.sets.remove(&from).unwrap_or_default();
        merging.sets.entry(node).or_default().append(&mut set);
        let left = merging.remaining.entry(node).or_default();
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.go_up(node, job);
        }
    }

    /// A slice is made; the top puts all of them together.
    pub fn sliced(&mut self, node: usize, job: usize, epoch: u32, part: f64) {
        let Some(top) = self.jobs[job].merging.as_ref().filter(|_| self.is_current(job, epoch)).map(|m| m.top) else {
            return;
        };
        if node == top {
            let Some(merging) = &mut self.jobs[job].merging else { return };
            let left = merging.remaining.entry(node).or_default();
            *left -= 1;
            if *left == 0 {
                self.go_up(node, job);
            }
            return;
        }
        let bytes = (self.jobs[job].workload.update_bytes as f64 * part) as u64;
        self.carry(job, node, top, bytes);
    }

    pub fn finished(&mut self, node: usize, job: usize, epoch: u32) {
        if !self.is_current(job, epoch) {
            return;
        }
        let round = self.jobs[job].round;
        let gathers = self.jobs[job].gathers();
        let made_of = self.jobs[job].merging.as_mut().and_then(|m| m.sets.remove(&node)).unwrap_or_default();
        match self.control.commit(job, round, made_of, gathers, self.now_ms()) {
            Err(what) => return self.violate(what),
            Ok(false) => return,
            Ok(true) => {}
        }
        let now = self.queue.now;
        let this = &self.jobs[job];
        let first = this.first_at.unwrap_or(now);
        self.measured.rounds += 1;
        self.measured.whole_s.push(seconds(now - first));
        self.measured.tail_s.push(seconds(now.saturating_sub(this.last_at)));
        // The next round opens, which ends this one; or the job is over.
        self.look();
        if self.jobs[job].round == round {
            self.end_round(job);
        }
    }
}
