//! A job's instances, and the threads that drive them.
//!
//! Work is cut into ranges; each thread takes one instance and the next range until none is left. An instance that
//! trapped is dropped, never used again.

use crate::context::Context;
use catchment_runtime::{Class, Function, FunctionError, Instance};
use catchment_types::{JobSpec, Problem};
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Where in the tree work happens, as metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Takes updates.
    Leaf,
    /// Takes partials.
    Middle,
    /// Makes the model.
    Top,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Leaf => "leaf",
            Self::Middle => "middle",
            Self::Top => "top",
        }
    }
}

/// The instances of one job.
pub struct Lanes {
    context: Arc<Context>,
    spec: Arc<JobSpec>,
    function: Function,
    idle: Mutex<Vec<Instance>>,
    lanes: usize,
}

impl Lanes {
    /// No instance yet.
    ///
    /// # Errors
    /// The function is not there any more.
    pub fn new(context: &Arc<Context>, spec: &Arc<JobSpec>) -> Result<Self, Problem> {
        let function = context.functions.get(&spec.function)?;
        let lanes = context.config.lanes.min(spec.limits.instances as usize).max(1);
        Ok(Self { context: context.clone(), spec: spec.clone(), function, idle: Mutex::default(), lanes })
    }

    /// How the function's work may be cut.
    pub fn class(&self) -> Class {
        self.function.description().class
    }

    /// Whether the function reads the model before the round.
    pub fn needs_previous(&self) -> bool {
        self.function.description().needs_previous || self.class() == Class::Whole
    }

    /// Runs `work` once for each of `ranges`, on as many threads as help. Blocks.
    ///
    /// # Errors
    /// The first failure; ranges not begun by then are left out.
    pub fn run(
        &self,
        level: Level,
        ranges: &[usize],
        work: impl Fn(&mut Instance, usize) -> Result<(), FunctionError> + Sync,
    ) -> Result<(), FunctionError> {
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let lane = || {
            let result = self.lane(level, ranges, &next, &work);
            if let Err(error) = result {
                next.store(ranges.len(), Ordering::Relaxed);
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.lanes.min(ranges.len()) {
                scope.spawn(lane);
            }
            lane();
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn lane(
        &self,
        level: Level,
        ranges: &[usize],
        next: &AtomicUsize,
        work: &(impl Fn(&mut Instance, usize) -> Result<(), FunctionError> + Sync),
    ) -> Result<(), FunctionError> {
        let mut instance = self.take()?;
        let (namespace, job) = (self.spec.namespace.as_str(), self.spec.name.as_str());
        let busy = self.context.metrics.instances.with_label_values(&[namespace, job, level.as_str(), "busy"]);
        busy.inc();
        let mut result = Ok(());
        while let Some(range) = ranges.get(next.fetch_add(1, Ordering::Relaxed)) {
            result = work(&mut instance, *range);
            if result.is_err() {
                break;
            }
        }
        busy.dec();
        if result.is_ok() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(instance);
            self.count_idle();
        }
        result
    }

    fn take(&self) -> Result<Instance, FunctionError> {
        // A statement of its own, so that the lock is free again when the rest are counted.
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(instance) = idle {
            self.count_idle();
            return Ok(instance);
        }
        let begun = Instant::now();
        let config = Value::Object(self.spec.config.clone());
        let (exact, limits) = (crate::functions::exact(&self.spec), crate::functions::limits(&self.spec));
        let instance = self.function.instantiate_with(&config, exact, limits)?;
        let metrics = &self.context.metrics;
        metrics.cold_start_seconds.observe(begun.elapsed().as_secs_f64());
        metrics.cold_starts.with_label_values(&[self.spec.namespace.as_str(), self.spec.name.as_str()]).inc();
        Ok(instance)
    }

    fn count_idle(&self) {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.gauge_idle(idle as i64);
    }

    fn gauge_idle(&self, idle: i64) {
        let (namespace, job) = (self.spec.namespace.as_str(), self.spec.name.as_str());
        self.context.metrics.instances.with_label_values(&[namespace, job, Level::Leaf.as_str(), "idle"]).set(idle);
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        let (namespace, name) = (&self.spec.namespace, &self.spec.name);
        // The series of a deleted job are gone, and stay so.
        if self.context.ledger.read(|state| state.job_named(namespace, name).is_some()) {
            self.gauge_idle(0);
        }
    }
}
