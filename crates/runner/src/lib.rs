//! Makes the calls of functions: in this process, or in runner processes that can hurt nothing but themselves.
//!
//! A node cuts its work into calls over windows of shared memory. Whoever makes them needs an instance of the function
//! and the windows' files, and nothing else: no log, no network, no file system. That is what a runner process gets.
//! Without this crate a function that breaks out of its sandbox would hold every job's memory and the node's rights.
//!
//! # The way of an order
//!
//! ```text
//!   node                                                           runner
//!   [Processes::run]   puts the order on its lane's desk
//!     ── 64-byte descriptor, over a Link ───────────────────────▶  [serve] reads it
//!     ◀── take(route) ───────────────────── control socket ──────
//!     ── order, windows' files as descriptors (SCM_RIGHTS) ─────▶  a worker makes the calls, in order
//!     ◀── answer ────────────────────────── control socket ──────
//! ```
//!
//! * **Descriptors are hints.** Whoever gets one asks for the order; a desk gives each order to one runner only, so a
//!   descriptor that is lost is sent again, and one that comes twice finds nothing.
//! * **A runner that dies** is waited for, and started again. What it had taken fails with
//!   [`HostError::Lost`](catchment_runtime::HostError::Lost) only when it is certain that nobody works on it any more;
//!   whoever gave the order gives it again.
//! * **A runner never outlives its node:** it ends when the control socket does. Until it has ended it holds the lock of
//!   the slab store, which it was handed as a descriptor; so no new node begins while an old runner may still write.
//! * **Rights:** an order comes with read-only descriptors of updates and read-write ones of accumulators and outputs. A
//!   runner of a privileged node gives up its user and groups; every runner gives up all capabilities, the file system
//!   (Landlock, where the kernel has it, so that no descriptor can be opened again for writing), and the system calls for
//!   other processes, new sockets and cutting files (seccomp).
//! * **What is left to a function that breaks out of its sandbox:** what its runner is or was given, so the accumulators and
//!   updates of jobs with a lane there, and lies about its own calls. Not other files, processes, or the network.
#![forbid(unsafe_code)]

mod confine;
mod desk;
mod executor;
mod message;
mod order;
mod process;
mod processes;
mod serve;
mod survey;
mod syscalls;
mod wire;

pub use executor::InProcess;
pub use message::Setup;
pub use order::{Blueprint, Done, Lane, Work};
pub use processes::{Processes, ProcessesConfig, StartError};
pub use serve::{ServeError, serve};
pub use survey::{Counts, RouteInfo, RunnerInfo, Survey};

use catchment_proxy::{LinkError, Route, RunnerId};
use catchment_runtime::FunctionError;
use catchment_types::JobUid;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Who makes calls. Blocks.
pub trait Runners: Send + Sync {
    /// Makes the calls of `work`, in order, up to the first that fails.
    ///
    /// # Errors
    /// That of the call that failed. Of a [`HostError::Lost`](catchment_runtime::HostError::Lost) any number of calls may
    /// have been made.
    fn run(&self, work: Work<'_>) -> Result<Done, FunctionError>;

    /// Gives up the instances of a job.
    fn forget(&self, job: JobUid);

    /// Gives up everything of a job that is gone for good.
    fn erase(&self, job: JobUid) {
        self.forget(job);
    }

    /// What there is to see. Nothing, where no process but this one makes calls.
    fn survey(&self) -> Survey {
        Survey::default()
    }

    /// Sends a route's orders to another runner from now on. Work that was taken already stays where it is.
    ///
    /// # Errors
    /// A route or runner that is not there, and what the link says.
    fn place(&self, route: Route, _runner: RunnerId) -> Result<(), LinkError> {
        Err(LinkError::Unplaced(route))
    }
}

/// What is behind a mutex, also after a panic elsewhere: nothing here is left half done by one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
