//! Partials become one.

use super::job::{StepError, rule};
use super::lanes::Level;
use super::leaf::{BATCH_MAX, Leaf, block_bytes};
use super::ranges::Range;
use super::scratch::Scratch;
use super::worker::Worker;
use catchment_runtime::{Call, MergeArgs, Window};
use catchment_types::Topology;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

/// A partial of one level: a leaf's accumulator or a merged one.
pub enum Partial {
    /// A leaf's.
    Leaf(Leaf),
    /// A merged one, in this block of the memory.
    Merged {
        /// The memory: one block or two.
        memory: Scratch,
        /// The block.
        block: u64,
        /// Its length.
        block_bytes: u64,
    },
}

impl Partial {
    /// One that came from another node.
    pub fn fetched(memory: Scratch, block_bytes: u64) -> Self {
        Self::Merged { memory, block: 0, block_bytes }
    }

    /// A range of it; `None` when it has nothing there.
    pub fn window(&self, index: usize, range: &Range) -> Option<Window<BorrowedFd<'_>>> {
        match self {
            Self::Leaf(leaf) => leaf.partial(index, range),
            Self::Merged { memory, block, block_bytes } => Some(merged_window(memory, *block, *block_bytes, range)),
        }
    }
}

fn merged_window<'a>(memory: &'a Scratch, block: u64, block_bytes: u64, range: &Range) -> Window<BorrowedFd<'a>> {
    memory.window(block * block_bytes + range.base * 8, range.elements * 8)
}

impl Worker {
    /// Merges the leaves through the levels of the topology.
    pub fn climb(&self, leaves: &[Leaf]) -> Result<Partial, StepError> {
        let mut level: Vec<Partial> = leaves.iter().cloned().map(Partial::Leaf).collect();
        if let Topology::Tree { middles, .. } = self.spec.topology
            && middles > 0
        {
            let mut groups: BTreeMap<usize, Vec<Partial>> = BTreeMap::new();
            for (i, leaf) in level.into_iter().enumerate() {
                groups.entry(i % middles as usize).or_default().push(leaf);
            }
            level = groups.into_values().map(|group| self.merge(Level::Middle, &group)).collect::<Result<_, _>>()?;
        }
        match (level.len(), self.spec.topology) {
            (1, Topology::Auto) => Ok(level.remove(0)),
            _ => self.merge(Level::Top, &level),
        }
    }

    /// Merges partials into a fresh one, sixteen at a time.
    pub fn merge(&self, level: Level, partials: &[Partial]) -> Result<Partial, StepError> {
        if partials.is_empty() {
            return Err(StepError::Again("there is nothing to merge".to_owned()));
        }
        let block_bytes = block_bytes(self.model.layout.elements());
        let batches = partials.len().div_ceil(BATCH_MAX) as u64;
        let memory = self.scratch(batches.min(2) * block_bytes)?;
        let calls = |index: usize| {
            let range = &self.ranges[index];
            let window = |step: u64| merged_window(&memory, step % 2, block_bytes, range);
            let mut calls = Vec::new();
            for (step, batch) in (0..).zip(partials.chunks(BATCH_MAX)) {
                calls.push(Call::Merge(MergeArgs {
                    elements: range.elements,
                    rule: rule(range),
                    acc_in: u64::checked_sub(step, 1).map(window),
                    acc_out: window(step),
                    partials: batch.iter().filter_map(|partial| partial.window(index, range)).collect(),
                }));
            }
            Ok(calls)
        };
        let merged = self.lanes.run(level, &self.every_range(), calls, |_, _| {});
        merged.map_err(|error| self.failure("merge", error))?;
        Ok(Partial::Merged { memory, block: (batches - 1) % 2, block_bytes })
    }
}
