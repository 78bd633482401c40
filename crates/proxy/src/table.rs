//! Which runner serves which route, as this process knows it.

use crate::link::{LinkError, Route, RouteCount, RunnerId};
use crate::runner::Runner;
use catchment_types::Descriptor;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Attached runners and placed routes.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) runners: HashMap<RunnerId, Arc<Runner>>,
    pub(crate) routes: HashMap<Route, Placed>,
}

/// Where a route goes and what this process sent along it.
#[derive(Debug, Default)]
pub(crate) struct Placed {
    pub(crate) runner: Option<Arc<Runner>>,
    /// Where the kernel counts, on the link that has it count.
    pub(crate) slot: u32,
    pub(crate) counts: Counts,
}

/// What user space counts. Each is a sum that nobody orders anything by.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    socket: AtomicU64,
    slow: AtomicU64,
    dropped: AtomicU64,
    payload_bytes: AtomicU64,
}

impl Counts {
    pub(crate) fn socket(&self, descriptor: &Descriptor) {
        self.socket.fetch_add(1, Ordering::Relaxed);
        self.payload_bytes.fetch_add(descriptor.length, Ordering::Relaxed);
    }

    pub(crate) fn slow(&self, descriptor: &Descriptor) {
        self.slow.fetch_add(1, Ordering::Relaxed);
        self.payload_bytes.fetch_add(descriptor.length, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl Table {
    pub(crate) fn attach(&mut self, runner: Runner) -> Result<(), LinkError> {
        self.vacant(runner.id)?;
        self.runners.insert(runner.id, Arc::new(runner));
        Ok(())
    }

    /// Whether a runner can be attached under this number.
    pub(crate) fn vacant(&self, runner: RunnerId) -> Result<(), LinkError> {
        if self.runners.contains_key(&runner) { Err(LinkError::Attached(runner)) } else { Ok(()) }
    }

    /// Takes the runner out of everything; returns the routes that it served, each with its slot.
    pub(crate) fn detach(&mut self, runner: RunnerId) -> Vec<(Route, u32)> {
        self.runners.remove(&runner);
        let mut served = Vec::new();
        for (route, placed) in &mut self.routes {
            if placed.runner.take_if(|placed| placed.id == runner).is_some() {
                served.push((*route, placed.slot));
            }
        }
        served
    }

    pub(crate) fn runner(&self, runner: RunnerId) -> Result<&Arc<Runner>, LinkError> {
        self.runners.get(&runner).ok_or(LinkError::Unknown(runner))
    }

    /// Where a route's descriptor goes now, with one of the runner's credits taken for it.
    pub(crate) fn target(&self, route: Route) -> Result<(&Placed, &Arc<Runner>), LinkError> {
        let placed = self.routes.get(&route).ok_or(LinkError::Unplaced(route))?;
        let runner = placed.runner.as_ref().ok_or(LinkError::Unplaced(route))?;
        if runner.is_gone() {
            return Err(LinkError::Gone(runner.id));
        }
        if !runner.credits.take() {
            // One that died with all its credits would be full for good.
            let error = if runner.look() { LinkError::Gone } else { LinkError::Full };
            return Err(error(runner.id));
        }
        Ok((placed, runner))
    }
}

impl Placed {
    /// What this process counted.
    pub(crate) fn count(&self, route: Route) -> RouteCount {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RouteCount {
            route,
            runner: self.runner.as_ref().map(|runner| runner.id),
            kernel: 0,
            socket: read(&self.counts.socket),
            slow: read(&self.counts.slow),
            dropped: read(&self.counts.dropped),
            payload_bytes: read(&self.counts.payload_bytes),
        }
    }
}
