//! A job's lanes: threads that hand its work, piece by piece, to whoever makes the calls.
//!
//! Work is cut into pieces (ranges, tensors); each lane takes the next few until none is left, as one order.

use crate::context::Context;
use catchment_runner::{Blueprint, Done, Lane, Work};
use catchment_runtime::{Call, Class, Function, FunctionError, HostError, Reply};
use catchment_types::{JobSpec, JobUid, Problem, Step};
use serde_json::Value;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Orders that a lane's share of the work is cut into, so that a slow lane leaves its rest to others.
const ORDERS_PER_LANE: usize = 4;
/// Runners that may end over the same order before it is taken for the cause.
const LOSSES_MAX: usize = 3;

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

/// The calls of one piece of work.
pub type Calls<'a> = Vec<Call<BorrowedFd<'a>>>;

/// The lanes of one job.
pub struct Lanes {
    context: Arc<Context>,
    uid: JobUid,
    spec: Arc<JobSpec>,
    function: Function,
    blueprint: Blueprint,
    lanes: usize,
    /// Instances that were made and have not failed.
    warm: AtomicI64,
    busy: AtomicI64,
    /// CPU time that its calls have taken, in nanoseconds.
    cpu_ns: AtomicU64,
}

impl Lanes {
    /// No instance yet.
    ///
    /// # Errors
    /// The function is not at hand.
    pub fn new(context: &Arc<Context>, uid: JobUid, spec: &Arc<JobSpec>) -> Result<Self, Problem> {
        let function = context.functions.get(spec)?;
        let lanes = context.config.lanes.min(spec.limits.instances as usize).max(1);
        let blueprint = Blueprint {
            job: uid,
            function: context.functions.digest(spec).expect("it was just found"),
            config: Value::Object(spec.config.clone()).to_string(),
            exact: crate::functions::exact(spec).map(|exact| (exact.exponent, exact.weight_max)),
            limits: crate::functions::limits(spec),
        };
        let (warm, busy, cpu_ns) = (AtomicI64::new(0), AtomicI64::new(0), AtomicU64::new(0));
        Ok(Self { context: context.clone(), uid, spec: spec.clone(), function, blueprint, lanes, warm, busy, cpu_ns })
    }

    /// How the function's work may be cut.
    pub fn class(&self) -> Class {
        self.function.description().class
    }

    /// Whether the function reads the model before the round.
    pub fn needs_previous(&self) -> bool {
        self.function.description().needs_previous || self.class() == Class::Whole
    }

    /// Instances that may work at one time.
    pub fn most(&self) -> usize {
        self.lanes
    }

    /// CPU time that the function has taken so far.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu_ns.load(Relaxed))
    }

    /// Makes the calls that `calls` gives for each of `pieces`, on all lanes; see [`Lanes::run_on`].
    ///
    /// # Errors
    /// The first failure; pieces not begun by then are left out.
    pub fn run<'a>(
        &self,
        level: Level,
        pieces: &[usize],
        calls: impl Fn(usize) -> Result<Calls<'a>, FunctionError> + Sync,
        done: impl Fn(usize, &[Reply]) + Sync,
    ) -> Result<(), FunctionError> {
        self.run_on(self.lanes, level, pieces, calls, done)
    }

    /// Makes the calls that `calls` gives for each of `pieces`, on so many threads at most, and tells `done` of each
    /// piece that is through. Blocks. `calls` may be asked for a piece again: a runner may have ended over it.
    ///
    /// # Errors
    /// The first failure; pieces not begun by then are left out.
    pub fn run_on<'a>(
        &self,
        lanes: usize,
        level: Level,
        pieces: &[usize],
        calls: impl Fn(usize) -> Result<Calls<'a>, FunctionError> + Sync,
        done: impl Fn(usize, &[Reply]) + Sync,
    ) -> Result<(), FunctionError> {
        let lanes = lanes.min(pieces.len());
        let each = pieces.len().div_ceil(ORDERS_PER_LANE * lanes.max(1)).max(1);
        let orders: Vec<&[usize]> = pieces.chunks(each).collect();
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let lane = |index: usize| {
            let _busy = Busy::begin(self, level);
            while let Some(order) = orders.get(next.fetch_add(1, Relaxed)) {
                let lane = Lane { job: self.uid, index: index as u32 };
                if let Err(error) = self.order(lane, order, &calls, &done) {
                    next.store(orders.len(), Relaxed);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    break;
                }
            }
        };
        std::thread::scope(|scope| {
            for index in 1..lanes {
                scope.spawn(move || lane(index));
            }
            lane(0);
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn order<'a>(
        &self,
        lane: Lane,
        pieces: &[usize],
        calls: &impl Fn(usize) -> Result<Calls<'a>, FunctionError>,
        done: &impl Fn(usize, &[Reply]),
    ) -> Result<(), FunctionError> {
        let mut losses = 0;
        loop {
            let of_pieces = pieces.iter().map(|piece| calls(*piece)).collect::<Result<Vec<_>, _>>()?;
            let counts: Vec<usize> = of_pieces.iter().map(Vec::len).collect();
            let all = of_pieces.into_iter().flatten().collect();
            let work = Work { lane, blueprint: &self.blueprint, function: &self.function, calls: all };
            match self.context.runners.run(work) {
                Ok(came) => {
                    self.context.done(Step::Called);
                    self.count(&came);
                    let mut replies = came.replies.as_slice();
                    for (piece, count) in pieces.iter().zip(counts) {
                        let (own, rest) = replies.split_at(count);
                        done(*piece, own);
                        replies = rest;
                    }
                    return Ok(());
                }
                Err(FunctionError::Host(HostError::Lost { reason, begun })) => {
                    losses += usize::from(begun);
                    if losses == LOSSES_MAX {
                        let reason = format!("{LOSSES_MAX} runner processes ended over it, the last: {reason}");
                        return Err(FunctionError::Trap { call: "run".into(), reason });
                    }
                    tracing::warn!(job = %self.spec.name, reason, "work was lost with its runner; doing it again");
                    self.warm.fetch_sub(1, Relaxed);
                }
                Err(FunctionError::Host(HostError::TooLong)) if pieces.len() > 1 => {
                    let (first, rest) = pieces.split_at(pieces.len() / 2);
                    self.order(lane, first, calls, done)?;
                    return self.order(lane, rest, calls, done);
                }
                Err(FunctionError::Host(error @ HostError::TooLong)) => {
                    return Err(HostError::Contract(error.to_string()).into());
                }
                Err(error) => {
                    if !matches!(error, FunctionError::Refused { .. } | FunctionError::Host(_)) {
                        self.warm.fetch_sub(1, Relaxed);
                    }
                    return Err(error);
                }
            }
        }
    }

    fn labels(&self) -> [&str; 2] {
        [self.spec.namespace.as_str(), self.spec.name.as_str()]
    }

    fn count(&self, done: &Done) {
        let metrics = &self.context.metrics;
        self.cpu_ns.fetch_add(done.cpu.as_nanos() as u64, Relaxed);
        metrics.function_cpu.with_label_values(&self.labels()).inc_by(done.cpu.as_secs_f64());
        metrics.order_wait.with_label_values(&self.labels()).observe(done.waited.as_secs_f64());
        if let Some(took) = done.cold_start {
            metrics.cold_start_seconds.observe(took.as_secs_f64());
            metrics.cold_starts.with_label_values(&self.labels()).inc();
            self.warm.fetch_add(1, Relaxed);
        }
    }

    fn count_busy(&self, level: Level, change: i64) {
        let [namespace, job] = self.labels();
        self.context.metrics.instances.with_label_values(&[namespace, job, level.as_str(), "busy"]).add(change);
        let busy = self.busy.fetch_add(change, Relaxed) + change;
        self.gauge_idle((self.warm.load(Relaxed) - busy).max(0));
    }

    fn gauge_idle(&self, idle: i64) {
        let [namespace, job] = self.labels();
        self.context.metrics.instances.with_label_values(&[namespace, job, Level::Leaf.as_str(), "idle"]).set(idle);
    }
}

/// A lane at work, counted until it is dropped: also when a panic ends it.
struct Busy<'a> {
    lanes: &'a Lanes,
    level: Level,
}

impl<'a> Busy<'a> {
    fn begin(lanes: &'a Lanes, level: Level) -> Self {
        lanes.count_busy(level, 1);
        Self { lanes, level }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.lanes.count_busy(self.level, -1);
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.context.runners.forget(self.uid);
        let (namespace, name) = (&self.spec.namespace, &self.spec.name);
        // The series of a deleted job are gone, and stay so.
        if self.context.ledger.read(|state| state.job_named(namespace, name).is_some()) {
            self.gauge_idle(0);
        }
    }
}
