//! From the updates of a closed round to its model, for functions that need them all at once.
//!
//! Until then they lie in their slabs, accepted and not folded; nothing else is kept, so after a crash the round is
//! simply gathered again. Updates go in the order of their clients' names, which no arrival and no restart changes.
//! Work is cut by coordinate, or by tensor where updates have no coordinates, and spread over the job's instances.

use super::finish::{Facts, function_dtype};
use super::input::Input;
use super::job::{StepError, rule};
use super::lanes::Level;
use super::ranges::Range;
use super::scratch::{Scratch, ScratchSlab};
use super::worker::Worker;
use catchment_runtime::{
    BagWindow, Call, ChooseArgs, Class, CombineArgs, FunctionError, HostError, MakeArgs, MeasureArgs, Reply,
    SCALARS_MAX, TensorPlace, TypedWindow, UpdateFacts, UpdateWindow,
};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Lists that measurements are added up in: so many instances can measure at one time. The cut depends on the model
/// alone, so sums do not depend on how many there are.
const LISTS_MAX: usize = 64;
/// Where lists begin, so that no two share a page.
const PAGE_BYTES: u64 = 4096;

/// What the calls of one round have in common.
pub struct Gather<'a> {
    /// Who works.
    worker: &'a Worker,
    /// The sum of the round's weights.
    total_weight: f64,
    /// Its seed.
    seed: u64,
    /// The model before it, when the function reads it.
    previous: Option<&'a ScratchSlab>,
    /// Where the model goes, in canonical layout.
    out: &'a Scratch,
}

impl<'a> Gather<'a> {
    /// Of a round, with the model before it when the function reads it. The new one goes to `out`, in canonical layout.
    pub fn new(worker: &'a Worker, facts: &Facts, previous: Option<&'a ScratchSlab>, out: &'a Scratch) -> Self {
        Self { worker, total_weight: facts.total_weight, seed: worker.seed(facts.round), previous, out }
    }
}

impl Gather<'_> {
    /// Makes the model out of every update.
    pub fn run(&self, inputs: &[Input]) -> Result<(), FunctionError> {
        match self.worker.lanes.class() {
            Class::TwoPhase => {
                let weights = self.choose(inputs, &self.measure(inputs)?)?;
                let chosen = inputs.iter().zip(&weights).filter(|(_, weight)| **weight > 0.0);
                let chosen: Vec<_> = chosen.map(|(input, weight)| (input, *weight)).collect();
                self.combine(&chosen, &self.worker.every_range())
            }
            Class::Whole => self.make(inputs, self.total_weight),
            _ => self.combine(&all(inputs), &self.worker.every_range()),
        }
    }

    /// The updates of which the function makes no model even when each is alone: the culprits, when there are others.
    ///
    /// # Errors
    /// What was made cannot be read.
    pub fn culprits(&self, inputs: &[Input]) -> Result<Vec<(usize, String)>, StepError> {
        let ranges = &self.worker.every_range();
        let function = self.worker.spec.function_name();
        let mut culprits = Vec::new();
        for (i, input) in inputs.iter().enumerate() {
            let one = std::slice::from_ref(input);
            let alone = match self.worker.lanes.class() {
                Class::TwoPhase => self.measure(one).and_then(|_| self.combine(&all(one), ranges)),
                Class::Whole => self.make(one, input.facts().weight),
                _ => self.combine(&all(one), ranges),
            };
            let why = match alone {
                Ok(()) => self
                    .worker
                    .spoilt(self.out)?
                    .map(|what| format!("no model can be made of this update alone: {what}")),
                Err(error) if is_failure(&error) => {
                    Some(format!("function `{function}` failed on this update: {error}"))
                }
                Err(_) => None,
            };
            culprits.extend(why.map(|why| (i, why)));
        }
        Ok(culprits)
    }

    fn previous(&self, range: &Range) -> Result<Option<TypedWindow<BorrowedFd<'_>>>, FunctionError> {
        let Some(previous) = self.previous else { return Ok(None) };
        let (offset_bytes, len_bytes, dtype) = self.worker.canonical(range);
        Ok(Some(TypedWindow { window: previous.window(offset_bytes, len_bytes)?, dtype }))
    }

    /// Combines updates with these weights, in these ranges.
    pub fn combine(&self, updates: &[(&Input, f64)], ranges: &[usize]) -> Result<(), FunctionError> {
        let worker = self.worker;
        let calls = |index: usize| {
            let range = &worker.ranges[index];
            let (offset_bytes, len_bytes, dtype) = worker.canonical(range);
            Ok(vec![Call::Combine(CombineArgs {
                elements: range.elements,
                rule: rule(range),
                kind: worker.kind(),
                updates: windows(updates, range)?,
                previous: self.previous(range)?,
                out: TypedWindow { window: self.out.window(offset_bytes, len_bytes), dtype },
                seed: self.seed,
            })])
        };
        worker.lanes.run(Level::Top, ranges, calls, |_, _| {})
    }

    /// Measures every range; gives the lists of sums.
    fn measure(&self, inputs: &[Input]) -> Result<Sums, FunctionError> {
        let worker = self.worker;
        let scalars = AtomicU64::new(0);
        let ask = |_| Ok(vec![Call::Scalars { updates: inputs.len() as u32 }]);
        worker.lanes.run(Level::Leaf, &[0], ask, |_, replies| {
            if let [Reply::Scalars(count)] = replies {
                scalars.store((*count).into(), Relaxed);
            }
        })?;
        let scalars = scalars.into_inner();
        if !(1..=SCALARS_MAX as u64).contains(&scalars) {
            return Err(HostError::Contract(format!("it measures by {scalars} numbers, not 1 to {SCALARS_MAX}")).into());
        }
        let step = worker.ranges.len().div_ceil(LISTS_MAX).max(1);
        let stripes: Vec<&[Range]> = worker.ranges.chunks(step).collect();
        let lists = stripes.len().max(1) as u64;
        let list_bytes = (scalars * 8).next_multiple_of(PAGE_BYTES);
        let memory = worker.scratch(lists * list_bytes).map_err(|error| HostError::argument_of("sums", error))?;
        memory.zero(0, lists * list_bytes)?;
        let updates = all(inputs);
        let calls = |stripe: usize| {
            // Measuring adds: what another runner has left behind must go.
            let at = stripe as u64 * list_bytes;
            memory.zero(at, list_bytes)?;
            let call = |range: &Range| {
                Ok(Call::Measure(MeasureArgs {
                    elements: range.elements,
                    rule: rule(range),
                    kind: worker.kind(),
                    updates: windows(&updates, range)?,
                    previous: self.previous(range)?,
                    sums: memory.window(at, scalars * 8),
                }))
            };
            stripes[stripe].iter().map(call).collect()
        };
        worker.lanes.run(Level::Leaf, &(0..stripes.len()).collect::<Vec<_>>(), calls, |_, _| {})?;
        Ok(Sums { memory, lists, scalars, list_bytes })
    }

    /// Asks the function for a weight for each update.
    fn choose(&self, inputs: &[Input], sums: &Sums) -> Result<Vec<f64>, FunctionError> {
        let worker = self.worker;
        // The lists one after the other, then the weights on a page of their own.
        let (bytes, weights) = (sums.lists * sums.scalars * 8, inputs.len() as u64 * 8);
        let at = bytes.next_multiple_of(PAGE_BYTES);
        let memory = worker.scratch(at + weights).map_err(|error| HostError::argument_of("weights", error))?;
        memory.zero(0, at + weights)?;
        for list in 0..sums.lists {
            let numbers = sums.memory.read(list * sums.list_bytes, sums.scalars * 8)?;
            memory.write(list * sums.scalars * 8, &numbers)?;
        }
        let facts: Vec<UpdateFacts> = inputs.iter().map(Input::facts).collect();
        let calls = |_| {
            Ok(vec![Call::Choose(ChooseArgs {
                updates: facts.clone(),
                sums: memory.window(0, bytes),
                lists: sums.lists,
                weights: memory.window(at, weights),
                seed: self.seed,
            })])
        };
        worker.lanes.run(Level::Top, &[0], calls, |_, _| {})?;
        let chosen = memory.read(at, weights)?;
        let chosen: Vec<f64> = chosen.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        let are_weights = chosen.iter().all(|weight| weight.is_finite() && *weight >= 0.0);
        if !are_weights || chosen.iter().all(|weight| *weight == 0.0) {
            let reason = "it chose no update, or gave one a weight that is no finite number from 0 on".to_owned();
            return Err(HostError::Contract(reason).into());
        }
        Ok(chosen)
    }

    /// Makes the model tensor by tensor.
    fn make(&self, inputs: &[Input], total_weight: f64) -> Result<(), FunctionError> {
        let worker = self.worker;
        let model = &worker.model;
        let previous = self.previous.ok_or_else(|| HostError::argument_of("previous", "it is always read here"))?;
        let tensors = model.own.tensors.iter().zip(&model.header.tensors);
        let made: Vec<(TensorPlace, u64, u64)> = tensors
            .filter_map(|(placed, info)| Some((placed, info, placed.slab_offset?)))
            .filter(|(placed, ..)| placed.end > placed.begin)
            .map(|(placed, info, at)| {
                let (name, shape) = (info.name.clone(), info.shape.clone());
                let dtype = function_dtype(info.dtype);
                (TensorPlace { name, shape, dtype, offset: 0 }, at, placed.end - placed.begin)
            })
            .collect();
        let places = inputs.iter().map(|input| input.tensors(model)).collect::<Result<Vec<_>, _>>()?;
        let calls = |index: usize| {
            let (tensor, at, len_bytes) = &made[index];
            let mut updates = Vec::new();
            for (input, tensors) in inputs.iter().zip(&places) {
                updates.push(BagWindow { window: input.whole()?, tensors: tensors.clone(), facts: input.facts() });
            }
            Ok(vec![Call::Make(MakeArgs {
                tensor: tensor.clone(),
                previous: previous.window(*at, *len_bytes)?,
                out: self.out.window(*at, *len_bytes),
                updates,
                total_weight,
                seed: self.seed,
            })])
        };
        worker.lanes.run(Level::Top, &(0..made.len()).collect::<Vec<_>>(), calls, |_, _| {})
    }
}

/// What was measured.
struct Sums {
    memory: Scratch,
    lists: u64,
    scalars: u64,
    list_bytes: u64,
}

/// Whether the function failed, rather than refused or was never asked.
pub fn is_failure(error: &FunctionError) -> bool {
    matches!(error, FunctionError::Trap { .. } | FunctionError::TimedOut { .. } | FunctionError::OutOfMemory { .. })
}

/// Every update with its own weight.
pub fn all(inputs: &[Input]) -> Vec<(&Input, f64)> {
    inputs.iter().map(|input| (input, input.facts().weight)).collect()
}

fn windows<'a>(
    updates: &[(&'a Input, f64)],
    range: &Range,
) -> Result<Vec<UpdateWindow<BorrowedFd<'a>>>, FunctionError> {
    let window = |(input, weight): &(&'a Input, f64)| Ok(UpdateWindow { weight: *weight, ..input.window(range)? });
    updates.iter().map(window).collect()
}
