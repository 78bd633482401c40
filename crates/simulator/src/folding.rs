//! Cores: what runs next on a node, and for how long.

use crate::machine::Work;
use crate::policy::{DataPath, Folding};
use crate::queue::micros;
use crate::world::{Event, World};

impl World {
    /// Gives free cores to what waits for them: first what has been started, then batches.
    pub fn dispatch(&mut self, node: usize) {
        while self.machines[node].cores_free > 0 {
            if let Some(work) = self.machines[node].tasks.pop_front() {
                self.start(node, work);
            } else if !self.start_batch(node) {
                return;
            }
        }
    }

    fn start(&mut self, node: usize, work: Work) {
        let (seconds, most) = self.takes(&work);
        let is_cut = self.policy.data_path == DataPath::SharedMemory;
        let cores = if is_cut { most.min(self.machines[node].cores_free) } else { 1 };
        self.occupy(node, cores, 0, seconds / f64::from(cores), work);
    }

    /// Core-seconds of a piece of work, and the cores it can use.
    fn takes(&self, work: &Work) -> (f64, u32) {
        let costs = &self.scenario.costs;
        let bytes = |job: u32| {
            let this = &self.jobs[job as usize];
            (this.workload.update_bytes as f64, this.partial_bytes() as f64)
        };
        let broker_s = if self.policy.data_path == DataPath::Broker { costs.broker_s_per_byte } else { 0.0 };
        match work {
            Work::Ingest(upload) => (self.ingest_s(*upload), 1),
            Work::Fold { .. } => unreachable!("batches have their own start"),
            Work::Local { job, .. } => (bytes(*job).1 * (1.0 / costs.merge_bytes_per_s + broker_s), u32::MAX),
            Work::Merge { job, .. } => (bytes(*job).1 * (1.0 / costs.merge_bytes_per_s + broker_s), u32::MAX),
            Work::Slice { job, updates, part, .. } => {
                (bytes(*job).0 * *updates as f64 * part / costs.gather_bytes_per_s, u32::MAX)
            }
            Work::Finish { job, .. } => {
                let (update, partial) = bytes(*job);
                (costs.publish_s + (update + partial) / costs.merge_bytes_per_s, u32::MAX)
            }
        }
    }

    /// Starts a batch of some job that has updates and instances, if there is one.
    fn start_batch(&mut self, node: usize) -> bool {
        let is_tree = self.policy.data_path == DataPath::Broker;
        let found = self.machines[node].shards.iter().find(|(job, shard)| {
            // One accumulator takes one batch at a time, cut over all instances; in a tree each leaf has its own.
            let is_free = shard.idle() > 0 && (is_tree || shard.folding == 0);
            !shard.pending.is_empty() && is_free && self.may_fold(**job as usize, shard)
        });
        let Some(job) = found.map(|(job, _)| *job) else { return false };
        let (costs, this) = (self.scenario.costs.clone(), &self.jobs[job as usize]);
        let (update, partial) = (this.workload.update_bytes as f64, this.partial_bytes() as f64);
        let cores_free = self.machines[node].cores_free;
        let shard = self.shard(node, job as usize);
        let count = shard.pending.len().min(costs.batch.max(1) as usize);
        let lanes = if is_tree { 1 } else { shard.idle().min(cores_free) };
        let batch: Vec<_> = shard.pending.drain(..count).collect();
        shard.folding += 1;
        shard.busy += lanes;
        let seconds = (count as f64 * update + costs.fold_partials * partial) / costs.fold_bytes_per_s;
        let each_s = costs.order_s + seconds / f64::from(lanes);
        shard.busy_us += micros(each_s) * u64::from(lanes);
        let round = shard.round;
        self.occupy(node, lanes, lanes, each_s, Work::Fold { job, round, batch });
        true
    }

    /// Whether updates are to be folded now: always, or when no more will come before they are.
    fn may_fold(&self, job: usize, shard: &crate::machine::Shard) -> bool {
        self.policy.folding == Folding::Eager || !shard.waiting.is_empty() || !self.control.is_open(job, shard.round)
    }

    fn occupy(&mut self, node: usize, cores: u32, instances: u32, seconds: f64, work: Work) {
        let job = match &work {
            Work::Ingest(upload) => upload.job,
            Work::Fold { job, .. }
            | Work::Local { job, .. }
            | Work::Merge { job, .. }
            | Work::Slice { job, .. }
            | Work::Finish { job, .. } => *job,
        };
        self.spend(job as usize, cores, seconds);
        let machine = &mut self.machines[node];
        machine.cores_free -= cores;
        machine.touch(self.queue.now);
        let life = machine.life;
        self.queue.after(seconds, Event::Done { node, life, cores, instances, work });
    }

    pub fn done(&mut self, node: usize, life: u32, cores: u32, instances: u32, work: Work) {
        if self.machines[node].life == life {
            self.machines[node].cores_free += cores;
            self.machines[node].touch(self.queue.now);
        } else if !matches!(work, Work::Ingest(_)) {
            return;
        }
        match work {
            Work::Ingest(upload) => self.ingested(node, life, upload),
            Work::Fold { job, round, batch } => self.folded(node, job as usize, round, batch, instances),
            Work::Local { job, epoch } => self.whole(node, job as usize, epoch),
            Work::Merge { job, epoch, from } => self.merged(node, job as usize, epoch, from),
            Work::Slice { job, epoch, part, .. } => self.sliced(node, job as usize, epoch, part),
            Work::Finish { job, epoch } => self.finished(node, job as usize, epoch),
        }
        self.dispatch(node);
    }

    fn folded(&mut self, node: usize, job: usize, round: u64, batch: Vec<catchment_types::ReceiptId>, instances: u32) {
        let bytes = self.jobs[job].workload.update_bytes * batch.len() as u64;
        let is_over = self.jobs[job].round != round || self.control.active_round(job) != Some(round);
        let shard = self.shard(node, job);
        shard.folding -= 1;
        shard.busy -= instances;
        shard.slabs -= batch.len() as u64;
        if !is_over {
            shard.folded.extend(&batch);
        }
        self.free(node, bytes);
        if !is_over {
            self.control.folded(job, round, batch);
            self.round_moved(job);
        }
        self.admit(node);
    }
}
