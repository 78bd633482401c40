//! The link on which a kernel program routes.
//!
//! ```text
//!   node process                          kernel                              runner process
//!
//!   send ──▶ uplink ──▶ route (SK_MSG) ──▶ ROUTES, COUNTS, RUNNERS ─redirect─▶ Inbox
//!                            │ no such runner                                  ▲
//!   relay ◀── uplink's peer ◀┘                                                 │
//!     └─────▶ runner's peer ─────────────── loopback TCP ──────────────────────┘
//! ```
//!
//! One TCP connection over loopback, the uplink, carries every descriptor out of the node. The program hands each to the
//! runner's socket, which is one end of another such connection. What it cannot hand over goes to the uplink's peer,
//! where [`relay`] does by hand what the kernel could not.

mod btf;
mod load;
mod maps;
mod meter;
mod object;
mod pin;
mod relay;
#[path = "../../../ebpf/src/shared.rs"]
mod shared;
mod tcp;
#[cfg(test)]
mod tests;
mod uplink;

use crate::link::{CpuTime, Link, LinkError, Route, RouteCount, RunnerId};
use crate::runner::Runner;
use crate::table::{Placed, Table};
use catchment_types::Descriptor;
use maps::Maps;
pub(crate) use meter::Meter;
use shared::{DESCRIPTOR_BYTES, RUNNERS_MAX, Target};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use uplink::{Refusal, Uplink};

pub(crate) use load::Routing;
pub(crate) use object::Objects;

/// Most descriptors that one write carries.
const BATCH: usize = 16;

/// The node's end: sends to the uplink, and keeps the kernel's maps equal to its own table.
pub(crate) struct Kernel {
    /// Whoever sends holds this for reading, whoever changes a map for writing. So the kernel decides about a
    /// descriptor by the same table as the sender who took the credit for it.
    state: RwLock<State>,
    maps: Mutex<Maps>,
    meter: Option<Meter>,
    window: u32,
    /// For relays, which end when nobody else holds the link.
    this: Weak<Self>,
    /// Keeps the program attached, or its pins locked.
    _routing: Routing,
}

struct State {
    table: Table,
    uplink: Uplink,
}

impl Kernel {
    /// Starts with routing that was loaded or found pinned.
    pub(crate) fn new(
        routing: Routing,
        mut maps: Maps,
        meter: Option<Meter>,
        window: u32,
    ) -> Result<Arc<Self>, LinkError> {
        let mut table = Table::default();
        for (route, target) in maps.found()? {
            // Left by the node before this one: its counts go on, its runner is gone.
            table.routes.insert(route, Placed { slot: target.slot, ..Placed::default() });
        }
        let (uplink, peer) = Uplink::new(0, &mut maps)?;
        let state = RwLock::new(State { table, uplink });
        let kernel = Arc::new_cyclic(|this: &Weak<Self>| Self {
            state,
            maps: Mutex::new(maps),
            meter,
            window,
            this: this.clone(),
            _routing: routing,
        });
        relay::start(kernel.this.clone(), 0, peer)?;
        Ok(kernel)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locked after the state, never before it.
    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the uplink of this age, if nobody did before, because descriptors on it no longer begin where they
    /// should, or its peer is gone. What lies in the old one up to there is still forwarded.
    fn renew(&self, age: u64) -> Result<(), LinkError> {
        let mut state = self.write();
        if state.uplink.age() != age {
            return Ok(());
        }
        tracing::warn!("replacing the uplink: a message on it was cut");
        let (uplink, peer) = Uplink::new(age + 1, &mut self.maps())?;
        relay::start(self.this.clone(), age + 1, peer)?;
        state.uplink = uplink;
        Ok(())
    }

    /// Has the uplink of this age replaced before the next descriptor.
    fn spoil(&self, age: u64) {
        let state = self.read();
        if state.uplink.age() == age {
            state.uplink.spoil();
        }
    }

    /// Sends up to `N` descriptors in one write, until one cannot go. Says how many went, why the next did not, and
    /// which uplink has to be replaced before it can.
    fn push<const N: usize>(&self, descriptors: &[Descriptor]) -> (usize, Result<(), LinkError>, Option<u64>) {
        let state = self.read();
        let mut frames = [[0; DESCRIPTOR_BYTES]; N];
        let mut charged: [Option<&Arc<Runner>>; N] = [None; N];
        let (mut count, mut outcome) = (0, Ok(()));
        for (descriptor, frame) in descriptors.iter().zip(&mut frames) {
            match state.table.target(Route::of(descriptor)) {
                Ok((_, runner)) => charged[count] = Some(runner),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
            *frame = descriptor.to_bytes();
            count += 1;
        }
        let (written, refusal) = state.uplink.write(frames[..count].as_flattened());
        let sent = written / DESCRIPTOR_BYTES;
        for runner in charged[sent..count].iter().flatten() {
            runner.credits.give(1);
        }
        let first = charged.get(sent).copied().flatten().map(|runner| runner.id);
        match (refusal, first) {
            (Some(Refusal::Full), Some(runner)) => (sent, Err(LinkError::Full(runner)), None),
            (Some(Refusal::Broken(error)), Some(_)) => {
                let doing = "write to the uplink";
                (sent, Err(LinkError::Io { doing, source: error }), Some(state.uplink.age()))
            }
            _ => (sent, outcome, None),
        }
    }

    /// Forwards a descriptor that the kernel passed on.
    fn forward(&self, bytes: &[u8; DESCRIPTOR_BYTES], descriptor: &Descriptor) {
        let state = self.read();
        let Some(placed) = state.table.routes.get(&Route::of(descriptor)) else { return };
        let Some(runner) = &placed.runner else { return placed.counts.dropped() };
        if runner.look() || runner.write(bytes).is_err() {
            runner.credits.give(1);
            return placed.counts.dropped();
        }
        placed.counts.slow(descriptor);
    }
}

impl Link for Kernel {
    fn attach(&self, runner: RunnerId) -> Result<OwnedFd, LinkError> {
        let mut state = self.write();
        state.table.vacant(runner)?;
        if state.table.runners.len() >= RUNNERS_MAX as usize {
            return Err(LinkError::Room(format!("{RUNNERS_MAX} runners")));
        }
        let (node, theirs) = tcp::pair()?;
        self.maps().insert_runner(runner, &theirs)?;
        state.table.attach(Runner::new(runner, node, self.window))?;
        Ok(theirs)
    }

    /// The runner's socket stays in the map until it closes, so that what lies in it can still be read. It gets nothing
    /// more, because a socket whose peer has closed is no target.
    fn detach(&self, runner: RunnerId) {
        let mut state = self.write();
        let mut maps = self.maps();
        for (route, slot) in state.table.detach(runner) {
            maps.vacate(route, slot);
        }
    }

    fn place(&self, route: Route, runner: RunnerId) -> Result<(), LinkError> {
        let mut state = self.write();
        let state = &mut *state;
        let found = state.table.runner(runner)?.clone();
        let mut maps = self.maps();
        let known = state.table.routes.get(&route).map(|placed| placed.slot);
        let slot = known.map_or_else(|| maps.take_slot(), Ok)?;
        if let Err(error) = maps.place(route, Target { runner: runner.0, slot }) {
            if known.is_none() {
                maps.give_slot(slot);
            }
            return Err(error);
        }
        let placed = state.table.routes.entry(route).or_default();
        (placed.runner, placed.slot) = (Some(found), slot);
        Ok(())
    }

    fn remove(&self, route: Route) -> Option<RouteCount> {
        let mut state = self.write();
        let mut maps = self.maps();
        let placed = state.table.routes.remove(&route)?;
        maps.remove_route(route);
        let count = maps.count(&placed, route);
        maps.give_slot(placed.slot);
        Some(count)
    }

    fn send(&self, descriptor: &Descriptor) -> Result<(), LinkError> {
        self.send_all(std::slice::from_ref(descriptor)).1
    }

    fn send_all(&self, descriptors: &[Descriptor]) -> (usize, Result<(), LinkError>) {
        let (mut sent, mut renewed) = (0, false);
        while sent < descriptors.len() {
            let chunk = &descriptors[sent..descriptors.len().min(sent + BATCH)];
            let (count, outcome, broken) = match chunk {
                [_] => self.push::<1>(chunk),
                _ => self.push::<BATCH>(chunk),
            };
            sent += count;
            match (outcome, broken) {
                (Ok(()), _) => {}
                (Err(error), Some(_)) if renewed => return (sent, Err(error)),
                (Err(_), Some(age)) => {
                    renewed = true;
                    if let Err(error) = self.renew(age) {
                        return (sent, Err(error));
                    }
                }
                (Err(error), None) => return (sent, Err(error)),
            }
        }
        (sent, Ok(()))
    }

    fn credit(&self, runner: RunnerId, count: u32) {
        if let Ok(runner) = self.read().table.runner(runner) {
            runner.credits.give(count);
        }
    }

    fn routes(&self) -> Vec<RouteCount> {
        let state = self.read();
        let maps = self.maps();
        state.table.routes.iter().map(|(route, placed)| maps.count(placed, *route)).collect()
    }

    fn meter(&self, pid: u32) -> Result<(), LinkError> {
        match &self.meter {
            Some(meter) => meter.watch(pid),
            None => Ok(()),
        }
    }

    fn unmeter(&self, pid: u32) -> Option<CpuTime> {
        self.meter.as_ref()?.unwatch(pid)
    }

    fn cpu(&self, pid: u32) -> Option<CpuTime> {
        self.meter.as_ref()?.read(pid)
    }
}
