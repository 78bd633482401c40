//! What node and runner say to each other on the control socket.

use crate::order::{Done, Order};
use catchment_runtime::{FunctionError, RuntimeConfig};
use catchment_types::JobUid;
use serde::{Deserialize, Serialize};

/// Both ends are of one build; anything else is a mistake that is said at once.
pub(crate) const VERSION: u32 = 1;

/// How a runner is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Threads that make calls.
    pub workers: u32,
    /// Limits of its wasm runtime.
    pub runtime: RuntimeConfig,
    /// User and group to become; `None` stays as it is.
    pub user: Option<(u32, u32)>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToRunner {
    /// First of all. Files: the link's end, the slab store's lock.
    Start { version: u32, setup: Setup },
    /// What it asked for. Files: the compiled function, then those of the calls.
    Order { route: u64, number: u64, order: Order },
    /// Gives up a job's instances.
    Forget { job: JobUid },
    /// Asks for a sign of life.
    Ping,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToNode {
    /// It is set up. Says in words what it can do no more.
    Ready {
        confined: String,
    },
    /// It could not be set up.
    Failed {
        reason: String,
    },
    /// A descriptor with this route came.
    Take {
        route: u64,
    },
    /// A worker makes the calls of an order.
    Begun {
        route: u64,
        number: u64,
    },
    /// What came of an order.
    Answer {
        route: u64,
        number: u64,
        result: Result<Done, FunctionError>,
    },
    Pong,
}

catchment_codec::first_version!(ToRunner, ToNode);
