//! The kernel's maps, with the types of their keys and values.

use super::shared::{Count, NOBODY, ROUTES_MAX, SLOW, Target};
use crate::link::{LinkError, Route, RouteCount, RunnerId};
use crate::table::Placed;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, SockHash};
use std::os::fd::{AsRawFd, OwnedFd};

// SAFETY: plain integers without padding, valid for any bits; the kernel program has the same definition.
unsafe impl aya::Pod for Target {}
// SAFETY: as above.
unsafe impl aya::Pod for Count {}

/// The maps of the routing program.
pub(crate) struct Maps {
    routes: HashMap<MapData, u64, Target>,
    counts: PerCpuArray<MapData, Count>,
    runners: SockHash<MapData, u32>,
    uplink: SockHash<MapData, u32>,
    /// Indexes of `counts` that no route has.
    free: Vec<u32>,
}

impl Maps {
    /// Names of the maps, in the object and as pins.
    pub(super) const NAMES: [&str; 4] = ["ROUTES", "COUNTS", "RUNNERS", "UPLINK"];

    /// Takes the four maps, by name.
    pub(super) fn new(mut take: impl FnMut(&str) -> Result<Map, MapError>) -> Result<Self, MapError> {
        let routes: HashMap<MapData, u64, Target> = take(Self::NAMES[0])?.try_into()?;
        let counts = take(Self::NAMES[1])?.try_into()?;
        let (runners, uplink) = (take(Self::NAMES[2])?.try_into()?, take(Self::NAMES[3])?.try_into()?);
        Ok(Self { routes, counts, runners, uplink, free: (0..ROUTES_MAX).rev().collect() })
    }

    /// The socket map to which the program is attached.
    pub(super) fn uplink(&self) -> &SockHash<MapData, u32> {
        &self.uplink
    }

    /// Routes that are in the maps already. They keep their counts and lead to nobody: no runner of theirs is ours.
    pub(super) fn found(&mut self) -> Result<Vec<(Route, Target)>, LinkError> {
        let found: Result<Vec<(u64, Target)>, MapError> = self.routes.iter().collect();
        let found = found.map_err(failed("read the routing map"))?;
        for (route, target) in &found {
            self.free.retain(|slot| *slot != target.slot);
            self.vacate(Route(*route), target.slot);
        }
        Ok(found.into_iter().map(|(route, target)| (Route(route), target)).collect())
    }

    /// Puts a socket under the program, and its peer where the program sends what it cannot route.
    pub(super) fn set_uplink(&mut self, socket: &OwnedFd, peer: &OwnedFd) -> Result<(), LinkError> {
        let peer = self.runners.insert(SLOW, peer.as_raw_fd(), 0);
        peer.map_err(failed("make the slow path's socket a target"))?;
        self.uplink.insert(0, socket.as_raw_fd(), 0).map_err(failed("put the uplink under the kernel program"))
    }

    pub(super) fn insert_runner(&mut self, runner: RunnerId, socket: &OwnedFd) -> Result<(), LinkError> {
        let inserted = self.runners.insert(runner.0, socket.as_raw_fd(), 0);
        inserted.map_err(failed("make the runner's socket a target"))
    }

    #[cfg(test)]
    pub(super) fn remove_runner(&mut self, runner: RunnerId) {
        self.runners.remove(&runner.0).expect("the runner is in the map");
    }

    pub(super) fn place(&mut self, route: Route, target: Target) -> Result<(), LinkError> {
        self.routes.insert(route.0, target, 0).map_err(failed("place a route"))
    }

    /// Lets a route lead to nobody, which is where its runner's end leaves it, too.
    pub(super) fn vacate(&mut self, route: Route, slot: u32) {
        if let Err(error) = self.place(route, Target { runner: NOBODY, slot }) {
            tracing::warn!(%route, %error, "let a route lead to nobody");
        }
    }

    /// Takes a route out. One that is not there is out already.
    pub(super) fn remove_route(&mut self, route: Route) {
        if let Err(error) = self.routes.remove(&route.0)
            && !is_absent(&error)
        {
            tracing::warn!(%route, %error, "remove a route from the kernel's map");
        }
    }

    /// A place to count at, beginning with zero.
    pub(super) fn take_slot(&mut self) -> Result<u32, LinkError> {
        let slot = self.free.pop().ok_or_else(|| LinkError::Room(format!("{ROUTES_MAX} routes")))?;
        let fail = failed("clear a route's counts");
        let old = self.counts.get(&slot, 0);
        let zeros = old.and_then(|old| Ok(PerCpuValues::try_from(vec![Count::default(); old.len()])?));
        if let Err(error) = zeros.and_then(|zeros| self.counts.set(slot, zeros, 0)) {
            self.free.push(slot);
            return Err(fail(error));
        }
        Ok(slot)
    }

    pub(super) fn give_slot(&mut self, slot: u32) {
        self.free.push(slot);
    }

    /// What this process and the kernel counted.
    pub(super) fn count(&self, placed: &Placed, route: Route) -> RouteCount {
        let mut count = placed.count(route);
        match self.counts.get(&placed.slot, 0) {
            Ok(values) => {
                for value in values.iter() {
                    count.kernel += value.descriptors;
                    count.payload_bytes = count.payload_bytes.wrapping_add(value.payload_bytes);
                }
            }
            Err(error) => tracing::warn!(%route, %error, "read a route's counts"),
        }
        count
    }
}

fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound | MapError::ElementNotFound => true,
        MapError::SyscallError(error) => error.io_error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// For `map_err`: what was being done to a map.
pub(super) fn failed(doing: &'static str) -> impl FnOnce(MapError) -> LinkError {
    move |error| {
        let source = match error {
            MapError::SyscallError(error) => error.io_error,
            other => std::io::Error::other(other),
        };
        LinkError::Io { doing, source }
    }
}
