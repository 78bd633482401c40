//! What works on a round: a job's lanes, its layout and its memory, beyond the life of the step that began it.

use super::finish::{copy, function_dtype};
use super::job::{StepError, blocking, is_outside};
use super::lanes::Lanes;
use super::leaf::{BadWords, Leaf, LeafKey};
use super::ranges::Range;
use super::scratch::{Scratch, ScratchSlab};
use crate::context::Context;
use crate::functions::Maker;
use crate::layouts::ModelLayout;
use crate::owner::owner;
use catchment_ingest::Scatter;
use catchment_ledger::State;
use catchment_runtime::FunctionError;
use catchment_slab::{Owner, SlabError, SlabStore};
use catchment_types::{JobSpec, JobUid, ModelCommit, Problem, UpdateKind};
use std::sync::Arc;

/// What works on a round.
pub struct Worker {
    /// What the node works with.
    pub context: Arc<Context>,
    /// The job.
    pub uid: JobUid,
    /// Its spec.
    pub spec: Arc<JobSpec>,
    /// The job's model.
    pub model: Arc<ModelLayout>,
    /// The cut.
    pub ranges: Arc<[Range]>,
    /// The job's instances.
    pub lanes: Arc<Lanes>,
}

impl Worker {
    /// Works on threads that may block, as many of them as there are lanes to be had.
    pub async fn working<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, StepError> + Send + 'static,
    ) -> Result<T, StepError> {
        let permits = self.ranges.len().clamp(1, self.context.config.lanes) as u32;
        let lanes = self.context.lanes.clone().acquire_many_owned(permits).await.expect("never closed");
        let worker = self.clone();
        blocking(move || {
            let done = work(&worker);
            drop(lanes);
            done
        })
        .await
    }

    /// The round's only randomness.
    pub fn seed(&self, round: u64) -> u64 {
        let mut seed = [0; 8];
        seed.copy_from_slice(&blake3::hash(&[&self.uid.as_bytes()[..], &round.to_le_bytes()].concat()).as_bytes()[..8]);
        u64::from_le_bytes(seed)
    }

    /// What updates are, as the function is told.
    pub fn kind(&self) -> catchment_runtime::Kind {
        match self.spec.update {
            UpdateKind::Weights => catchment_runtime::Kind::Weights,
            UpdateKind::Delta => catchment_runtime::Kind::Delta,
        }
    }

    /// Offset, length and dtype of a range in the model's canonical layout.
    pub fn canonical(&self, range: &Range) -> (u64, u64, catchment_runtime::Dtype) {
        let section = &self.model.own.sections[range.segment];
        let width = section.dtype.bits() / 8;
        (section.offset + range.first * width, range.elements * width, function_dtype(section.dtype))
    }

    /// Every range.
    pub fn every_range(&self) -> Vec<usize> {
        (0..self.ranges.len()).collect()
    }

    /// Whose the memory is that it works in.
    pub fn owner(&self) -> Owner {
        owner(&self.spec, self.uid)
    }

    /// Who makes the job's partials here, as it is said to other nodes. Those of the first release do not know.
    pub fn maker(&self) -> Option<Maker> {
        (self.context.ledger.read(State::level) >= 2).then_some(self.model.takes.maker)
    }

    /// Whether the job can go on with an accumulator.
    ///
    /// # Errors
    /// It was made for another layout or by another function.
    pub fn check(&self, key: LeafKey, leaf: &Leaf) -> Result<(), StepError> {
        if !leaf.is_for(self.model.layout.elements(), self.ranges.len()) {
            return Err(StepError::BadLeaf(key, BadWords.into()));
        }
        leaf.check_maker(self.model.takes.maker).map_err(|why| StepError::BadLeaf(key, why))
    }

    /// Memory for a while.
    pub fn scratch(&self, bytes: u64) -> Result<Scratch, StepError> {
        let accumulator = self.grant(|store| store.grant_accumulator(self.owner(), 1, bytes.max(1), b"scratch"))?;
        Ok(Scratch::new(self.context.clone(), accumulator))
    }

    /// Takes memory, for which pieces that others ordered give way, and then uploads that broke off.
    pub fn grant<T>(&self, take: impl Fn(&SlabStore) -> Result<T, SlabError>) -> Result<T, SlabError> {
        loop {
            match take(&self.context.store) {
                Err(SlabError::NoRoom { .. }) if self.gets_room() => {}
                other => return other,
            }
        }
    }

    /// Whether somebody has given way.
    pub fn gets_room(&self) -> bool {
        self.context.pieces.give_way() || self.context.parking.give_way(true)
    }

    /// The model before the round, in canonical layout, when the function reads it.
    pub fn previous(&self, previous: &ModelCommit) -> Result<Option<ScratchSlab>, StepError> {
        if self.spec.update == UpdateKind::Weights && !self.lanes.needs_previous() {
            return Ok(None);
        }
        let version = previous.version;
        let disk = |error: std::io::Error| StepError::Again(format!("read model version {version}: {error}"));
        let file = self.context.models.file(self.uid, version, previous.etag).map_err(disk)?;
        let mut slab = self.grant(|store| store.grant(self.owner(), self.model.own.slab_bytes))?;
        let mut scatter = Scatter::new(self.model.own.clone());
        let mut refused = None;
        let read = copy(&file, self.model.header.data_begin, self.model.header.data_bytes, |bytes| {
            scatter
                .feed(bytes, slab.bytes_mut())
                .map_err(|problem| std::io::Error::other(refused.insert(problem).detail.clone()))
        });
        // What cannot be computed with now cannot be later either.
        let unfit = |problem: Problem| StepError::Job(format!("model version {version}: {}", problem.detail));
        if let Some(problem) = refused {
            return Err(unfit(problem));
        }
        read.map_err(disk)?;
        scatter.finish(slab.bytes_mut()).map_err(unfit)?;
        let slab = slab.freeze(b"previous model")?;
        Ok(Some(ScratchSlab::new(self.context.clone(), slab)))
    }

    /// What a failed call means for the step.
    pub fn failure(&self, doing: &str, error: FunctionError) -> StepError {
        let what = format!("function `{}` failed to {doing} the round: {error}", self.spec.function_name());
        match error {
            error if is_outside(&error) => StepError::Again(format!("{doing}: {error}")),
            // It has not met anything that clients sent.
            error if is_of_init(&error) => StepError::Job(what),
            _ => StepError::Round(what),
        }
    }
}

/// Whether an instance failed before it was asked to do anything.
fn is_of_init(error: &FunctionError) -> bool {
    match error {
        FunctionError::Trap { call, .. }
        | FunctionError::TimedOut { call, .. }
        | FunctionError::OutOfMemory { call, .. } => call == "init",
        FunctionError::Refused { .. } | FunctionError::Host(_) => false,
    }
}
