//! A node: cores, a link, memory, and a shard of every job that has something on it.

use crate::queue::{Micros, micros};
use catchment_planner::Node;
use catchment_types::ReceiptId;
use std::collections::{BTreeMap, VecDeque};

/// An update on its way.
#[derive(Debug, Clone, Copy)]
pub struct Upload {
    pub job: u32,
    pub client: u32,
    pub round: u64,
}

/// Something that takes cores for a while.
#[derive(Debug)]
pub enum Work {
    /// Receive, digest and screen an update.
    Ingest(Upload),
    /// Fold a batch.
    Fold { job: u32, round: u64, batch: Vec<ReceiptId> },
    /// Put together what the node's own instances have.
    Local { job: u32, epoch: u32 },
    /// Merge the partial of another node.
    Merge { job: u32, epoch: u32, from: usize },
    /// Make a slice of the model from updates that were kept.
    Slice { job: u32, epoch: u32, updates: u64, part: f64 },
    /// Finalise.
    Finish { job: u32, epoch: u32 },
}

/// What a node has of a job.
#[derive(Debug, Default)]
pub struct Shard {
    pub round: u64,
    /// Bytes of accumulators.
    pub base_bytes: u64,
    /// Slabs it may have, and has.
    pub window: u64,
    pub slabs: u64,
    /// Bodies unread, for want of room.
    pub waiting: VecDeque<Upload>,
    /// Accepted and not folded.
    pub pending: VecDeque<ReceiptId>,
    /// Batches being folded.
    pub folding: u32,
    /// In the accumulator.
    pub folded: Vec<ReceiptId>,
    /// Accepted and kept until the model is made.
    pub kept: Vec<ReceiptId>,
    /// Instances that have started, those of them at work, and those starting.
    pub warm: u32,
    pub busy: u32,
    pub starting: u32,
    /// Core time of instances since the autoscaler looked, and what it wanted lately.
    pub busy_us: u64,
    pub wanted: VecDeque<u32>,
}

impl Shard {
    pub fn idle(&self) -> u32 {
        self.warm.saturating_sub(self.busy)
    }

    /// Updates of the round on this node.
    pub fn updates(&self) -> u64 {
        (self.folded.len() + self.kept.len()) as u64
    }

    fn is_quiet(&self) -> bool {
        self.slabs == 0 && self.waiting.is_empty() && self.folding == 0 && self.busy == 0 && self.base_bytes == 0
    }
}

/// A node.
#[derive(Debug)]
pub struct Machine {
    pub node: Node,
    pub alive: bool,
    /// Grows with every death, so that what was planned before is known to be void.
    pub life: u32,
    pub cores_free: u32,
    pub memory_used: u64,
    pub tasks: VecDeque<Work>,
    pub shards: BTreeMap<u32, Shard>,
    /// Updates whose accept has not been appended.
    pub group: Vec<Upload>,
    /// Uploads here, whatever they wait for.
    pub connections: u64,
    /// Since when something runs here, if it does.
    pub held_since: Option<Micros>,
    pub active_at: Micros,
    link_free_at: Micros,
}

impl Machine {
    pub fn new(node: Node) -> Self {
        Self {
            node,
            alive: true,
            life: 0,
            cores_free: node.cores as u32,
            memory_used: 0,
            tasks: VecDeque::new(),
            shards: BTreeMap::new(),
            group: Vec::new(),
            connections: 0,
            held_since: None,
            active_at: 0,
            link_free_at: 0,
        }
    }

    pub fn cores(&self) -> u32 {
        self.node.cores as u32
    }

    pub fn memory_free(&self) -> u64 {
        self.node.memory_bytes.saturating_sub(self.memory_used)
    }

    /// When so many bytes are here, if they are sent now: one after another, at the link's pace or a slower one's.
    pub fn transfer(&mut self, now: Micros, bytes: u64, slower_bytes_per_s: f64) -> Micros {
        let pace = self.node.link_bytes_per_s.min(slower_bytes_per_s);
        self.link_free_at = self.link_free_at.max(now) + micros(bytes as f64 / pace);
        self.link_free_at
    }

    pub fn stall(&mut self, now: Micros, seconds: f64) {
        self.link_free_at = self.link_free_at.max(now + micros(seconds));
    }

    pub fn touch(&mut self, now: Micros) {
        self.held_since.get_or_insert(now);
        self.active_at = now;
    }

    pub fn is_quiet(&self) -> bool {
        self.tasks.is_empty()
            && self.cores_free == self.cores()
            && self.group.is_empty()
            && self.shards.values().all(Shard::is_quiet)
    }

    /// Everything on it is gone. Gives the uploads whose clients notice.
    pub fn die(&mut self) -> Vec<Upload> {
        let mut cut = std::mem::take(&mut self.group);
        for work in self.tasks.drain(..) {
            if let Work::Ingest(upload) = work {
                cut.push(upload);
            }
        }
        cut.extend(std::mem::take(&mut self.shards).into_values().flat_map(|shard| shard.waiting));
        (self.alive, self.life, self.cores_free) = (false, self.life + 1, self.cores());
        (self.memory_used, self.connections) = (0, 0);
        cut
    }
}
