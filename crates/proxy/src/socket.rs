//! The link that works everywhere: one Unix socket pair for each runner.

use crate::link::{Link, LinkError, Route, RouteCount, RunnerId};
use crate::runner::Runner;
use crate::table::Table;
use catchment_types::Descriptor;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::OwnedFd;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Routes in this process and writes to the runner's socket.
#[derive(Debug)]
pub(crate) struct Socket {
    table: RwLock<Table>,
    window: u32,
}

impl Socket {
    pub(crate) fn new(window: u32) -> Self {
        Self { table: RwLock::default(), window }
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link for Socket {
    fn attach(&self, runner: RunnerId) -> Result<OwnedFd, LinkError> {
        let (node, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(LinkError::io("make a socket pair"))?;
        self.write().attach(Runner::new(runner, node, self.window))?;
        Ok(theirs)
    }

    fn detach(&self, runner: RunnerId) {
        self.write().detach(runner);
    }

    fn place(&self, route: Route, runner: RunnerId) -> Result<(), LinkError> {
        let mut table = self.write();
        let runner = table.runner(runner)?.clone();
        table.routes.entry(route).or_default().runner = Some(runner);
        Ok(())
    }

    fn remove(&self, route: Route) -> Option<RouteCount> {
        self.write().routes.remove(&route).map(|placed| placed.count(route))
    }

    fn send(&self, descriptor: &Descriptor) -> Result<(), LinkError> {
        let table = self.read();
        let (placed, runner) = table.target(Route::of(descriptor))?;
        if let Err(error) = runner.write(&descriptor.to_bytes()) {
            runner.credits.give(1);
            return Err(error);
        }
        placed.counts.socket(descriptor);
        Ok(())
    }

    fn credit(&self, runner: RunnerId, count: u32) {
        if let Ok(runner) = self.read().runner(runner) {
            runner.credits.give(count);
        }
    }

    fn routes(&self) -> Vec<RouteCount> {
        self.read().routes.iter().map(|(route, placed)| placed.count(*route)).collect()
    }
}
