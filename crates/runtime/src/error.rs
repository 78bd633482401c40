//! What can go wrong, by whose fault it is.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// No runtime on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// A limit that cannot be.
    #[error("{field} is {found}: {expected}")]
    Config {
        /// The field of `RuntimeConfig`.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What would do.
        expected: &'static str,
    },
    /// The engine did not start; most often for want of address space.
    #[error(
        "start the wasm engine with room for {instances_max} instances (4 GiB of address space each; check ulimit -v): \
         {reason}"
    )]
    Engine {
        /// Instances asked for.
        instances_max: u32,
        /// What the engine said.
        reason: String,
    },
    /// The probe found that windows do not behave on this machine as the design needs.
    #[error("windows of shared memory do not work with this wasm engine on this machine: {0}")]
    Probe(String),
}

/// No function in these bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Too large to compile.
    #[error("the module has {bytes} bytes; at most {max} are loaded")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// No valid wasm, or wasm that uses what is not offered.
    #[error("not a wasm module this host runs: {0}")]
    Invalid(String),
    /// The module wants something from the host that no function gets.
    #[error(
        "the module imports `{module}`.`{name}`; a function gets nothing from its host but `catchment`.`panic` and \
         `catchment`.`f16_to_f32` (no clock, no randomness, no I/O)"
    )]
    ForbiddenImport {
        /// Module of the import.
        module: String,
        /// Name of the import.
        name: String,
    },
    /// Something a function must export is not there, or is another thing.
    #[error("the module's export `{name}` is {found}; expected {expected}. Was it built with catchment-sdk's export!?")]
    Export {
        /// The export.
        name: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// Built against another version of the contract.
    #[error("the module speaks version {found} of the function contract; this host speaks {supported}. Rebuild it")]
    Version {
        /// The module's.
        found: u32,
        /// This host's.
        supported: u32,
    },
    /// What the module says about itself makes no sense.
    #[error("the module's description: {0}")]
    Description(String),
    /// The module failed while it was asked who it is.
    #[error("describing the module: {0}")]
    Describe(#[source] FunctionError),
}

/// A call that did not succeed.
///
/// After [`FunctionError::Trap`], [`FunctionError::TimedOut`] and [`FunctionError::OutOfMemory`] the instance is
/// spent: drop it and take a fresh one. What it had written to its output window is undefined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum FunctionError {
    /// The function itself said no, in `init` or `finalize`; the text is meant for the job's owner.
    #[error("{reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// The function crashed.
    #[error("{call}: {reason}")]
    Trap {
        /// Which call.
        call: Cow<'static, str>,
        /// A panic's text, or the kind of trap.
        reason: String,
    },
    /// The function used up its time.
    #[error("{call}: stopped after {limit_ms} ms of CPU time")]
    TimedOut {
        /// Which call.
        call: Cow<'static, str>,
        /// The limit.
        limit_ms: u64,
    },
    /// The function wanted more memory than it may have.
    #[error("{call}: wanted more than its {heap_bytes} bytes of memory")]
    OutOfMemory {
        /// Which call.
        call: Cow<'static, str>,
        /// The limit.
        heap_bytes: u64,
    },
    /// Not the function's fault.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// A call that could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum HostError {
    /// An argument that no call may have.
    #[error("{what}: {reason}")]
    Argument {
        /// Which argument.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The windows of a call do not fit below 4 GiB together. Cut the range.
    #[error(
        "the windows of this call need {needed_bytes} bytes of address space, {available_bytes} are there; cut the range"
    )]
    TooLarge {
        /// What they need, gaps included.
        needed_bytes: u64,
        /// What there is.
        available_bytes: u64,
    },
    /// The kernel refused to map a window.
    #[error("map {what}: {reason}")]
    Map {
        /// Which window.
        what: String,
        /// The kernel's reason.
        reason: String,
    },
    /// All instances of the runtime are taken.
    #[error("all {instances_max} instances are in use")]
    NoRoom {
        /// How many there are.
        instances_max: u32,
    },
    /// The instance trapped earlier.
    #[error("this instance failed before and cannot be used again; take a fresh one")]
    Spent,
    /// The function broke the contract: it handed out an address outside its memory, or the like.
    #[error("the function broke its contract: {0}")]
    Contract(String),
    /// The engine failed.
    #[error("wasm engine: {0}")]
    Engine(String),
    /// The process that was to make the calls ended; they can be made again.
    #[error("the runner process ended: {reason}")]
    Lost {
        /// How.
        reason: String,
        /// Whether it was at work on them.
        begun: bool,
    },
    /// No process took the calls.
    #[error("no runner process took the work")]
    Unserved,
    /// More calls than one message to a runner process holds.
    #[error("the calls are too long for one message; make fewer at a time")]
    TooLong,
}

impl HostError {
    /// An argument that could not be had.
    pub fn argument_of(what: &str, reason: impl ToString) -> Self {
        Self::argument(what, reason)
    }

    pub(crate) fn argument(what: impl ToString, reason: impl ToString) -> Self {
        Self::Argument { what: what.to_string(), reason: reason.to_string() }
    }
}
