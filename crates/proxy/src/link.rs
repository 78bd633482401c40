//! What every link can do, and the words for it.

use catchment_types::Descriptor;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

/// Whom a descriptor goes to: its first eight bytes, which the sender makes from job and lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route(pub u64);

impl Route {
    /// The route of a descriptor.
    pub fn of(descriptor: &Descriptor) -> Self {
        Self(descriptor.function.0)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A runner process of this node. No number is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunnerId(pub u32);

impl fmt::Display for RunnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The node's end: sends descriptors to runners by their route.
pub trait Link: Send + Sync {
    /// Makes a runner's end. It is handed over to the runner's process, which needs no privilege to read it, and
    /// wrapped in an [`Inbox`](crate::Inbox) there. The caller closes its copy, because the link learns of a runner's
    /// death by the end of the last one.
    fn attach(&self, runner: RunnerId) -> Result<OwnedFd, LinkError>;

    /// Forgets a runner and closes the node's end, so that its `Inbox` ends. Its routes keep their counts and wait to
    /// be placed again.
    fn detach(&self, runner: RunnerId);

    /// Sends a route's descriptors to this runner from now on.
    fn place(&self, route: Route, runner: RunnerId) -> Result<(), LinkError>;

    /// Forgets a route and returns what went along it, if there was one.
    fn remove(&self, route: Route) -> Option<RouteCount>;

    /// Sends a descriptor to the runner of its route. Never blocks; beyond the runner's credits it refuses with
    /// [`LinkError::Full`].
    fn send(&self, descriptor: &Descriptor) -> Result<(), LinkError>;

    /// Sends several, in as few system calls as the link can. Returns how many went out before the first that could
    /// not, and why that one could not.
    fn send_all(&self, descriptors: &[Descriptor]) -> (usize, Result<(), LinkError>) {
        for (sent, descriptor) in descriptors.iter().enumerate() {
            if let Err(error) = self.send(descriptor) {
                return (sent, Err(error));
            }
        }
        (descriptors.len(), Ok(()))
    }

    /// The runner has handled so many descriptors, and may be sent as many more. Counting too many is harmless.
    fn credit(&self, runner: RunnerId, count: u32);

    /// The routing map, and what went along each route.
    fn routes(&self) -> Vec<RouteCount>;

    /// Begins to count what this process uses of the CPU, from each thread's next turn on. A link that cannot count does
    /// nothing.
    fn meter(&self, _pid: u32) -> Result<(), LinkError> {
        Ok(())
    }

    /// Stops counting, and returns what was counted.
    fn unmeter(&self, _pid: u32) -> Option<CpuTime> {
        None
    }

    /// What a process used since it was first metered; `None` where nothing counts.
    fn cpu(&self, _pid: u32) -> Option<CpuTime> {
        None
    }
}

/// What all threads of a process used of the CPU, and how long they waited for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuTime {
    /// Nanoseconds running.
    pub on_cpu_ns: u64,
    /// Nanoseconds ready to run, without a CPU to run on.
    pub queued_ns: u64,
}

impl std::ops::Add for CpuTime {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { on_cpu_ns: self.on_cpu_ns + other.on_cpu_ns, queued_ns: self.queued_ns + other.queued_ns }
    }
}

/// A route, where it goes, and what went along it since it was first placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteCount {
    /// The route.
    pub route: Route,
    /// Its runner, unless that was detached.
    pub runner: Option<RunnerId>,
    /// Descriptors routed by the kernel program.
    pub kernel: u64,
    /// Descriptors sent over a Unix socket.
    pub socket: u64,
    /// Descriptors that the kernel could not route and this process forwarded.
    pub slow: u64,
    /// Descriptors that were accepted and could not be delivered, because the runner was gone.
    pub dropped: u64,
    /// Payload bytes that the descriptors named. They themselves did not move.
    pub payload_bytes: u64,
}

impl RouteCount {
    /// Delivered descriptors by path, as a metric labels them.
    pub fn by_path(&self) -> [(&'static str, u64); 3] {
        [("kernel", self.kernel), ("socket", self.socket), ("slow", self.slow)]
    }

    /// Delivered descriptors by any path.
    pub fn delivered(&self) -> u64 {
        self.by_path().iter().map(|(_, count)| count).sum()
    }
}

/// Why a link cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum LinkError {
    #[error("no runner serves route {0}")]
    Unplaced(Route),
    #[error("runner {0} is not attached")]
    Unknown(RunnerId),
    #[error("runner {0} is attached already")]
    Attached(RunnerId),
    #[error("runner {0} has no credit left")]
    Full(RunnerId),
    #[error("runner {0} is gone")]
    Gone(RunnerId),
    #[error("the link holds {0} and no more")]
    Room(String),
    #[error("kernel routing is not possible here: {0}")]
    Unavailable(String),
    #[error("{doing}: {source}")]
    Io {
        doing: &'static str,
        #[source]
        source: io::Error,
    },
}

impl LinkError {
    /// For `map_err`: what was being done.
    pub(crate) fn io<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Io { doing, source: error.into() }
    }
}
