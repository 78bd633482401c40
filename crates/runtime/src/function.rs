//! A loaded function: what it is, and how to get an instance of it.

use crate::compiled::Compiled;
use crate::engine::Runtime;
use crate::error::{FunctionError, HostError};
use crate::host::{Host, monotonic_ns};
use crate::instance::Instance;
use crate::{Limits, load};
use catchment_sdk::{Class, Exact};
use serde::{Deserialize, Serialize, Serializer};
use std::sync::Arc;
use wasmtime::InstancePre;

/// What a function says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// A DNS label.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// The version of the contract between host and function that it was built for.
    pub abi: u32,
    /// How its work may be cut.
    #[serde(serialize_with = "class_name")]
    pub class: Class,
    /// One line for lists.
    pub summary: String,
    /// The configuration it takes.
    pub config: Vec<ConfigField>,
    /// Whether a finalise needs the previous model even when updates are whole weights.
    pub needs_previous: bool,
    /// Whether jobs may ask for exact sums.
    pub exact: bool,
    /// What its updates look like, as the SDK's `UpdateLayout` in JSON.
    pub update_layout: serde_json::Value,
}

/// One field of a function's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigField {
    /// The JSON key.
    pub name: String,
    /// What it means.
    pub help: String,
}

fn class_name<S: Serializer>(class: &Class, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(class.as_str())
}

/// A compiled and checked function. Cloning shares it.
#[derive(Clone)]
pub struct Function {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Runtime,
    pre: InstancePre<Host>,
    description: Description,
    digest: String,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Function")
            .field("name", &self.inner.description.name)
            .field("digest", &self.inner.digest)
            .finish_non_exhaustive()
    }
}

impl Function {
    pub(crate) fn new(runtime: Runtime, pre: InstancePre<Host>, description: Description, digest: String) -> Self {
        Self { inner: Arc::new(Inner { runtime, pre, description, digest }) }
    }

    /// What it says about itself.
    pub fn description(&self) -> &Description {
        &self.inner.description
    }

    /// BLAKE3 of the module's bytes, in hex.
    pub fn digest(&self) -> &str {
        &self.inner.digest
    }

    /// Its machine code, in a sealed file in memory, for other processes with the same engine.
    ///
    /// # Errors
    /// What the engine or the system says.
    pub fn compiled(&self) -> std::io::Result<Compiled> {
        Compiled::of(self.inner.pre.module(), &self.inner.digest)
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.inner.runtime
    }

    /// Makes an instance for a job's configuration.
    ///
    /// # Errors
    /// [`FunctionError::Refused`] when the function does not take the configuration, [`crate::HostError::NoRoom`] when
    /// all instances are taken, others as for any call.
    pub fn instantiate(&self, config: &serde_json::Value, limits: Limits) -> Result<Instance, FunctionError> {
        self.instantiate_with(config, None, limits)
    }

    /// The same for a job whose sums are exact, when `exact` says how.
    ///
    /// # Errors
    /// As [`Function::instantiate`], and a bad argument when the function cannot sum exactly.
    pub fn instantiate_with(
        &self,
        config: &serde_json::Value,
        exact: Option<Exact>,
        limits: Limits,
    ) -> Result<Instance, FunctionError> {
        if exact.is_some() && !self.description().exact {
            return Err(HostError::argument("exact", "this function has no exact sums").into());
        }
        let started = monotonic_ns();
        let (sandbox, exports) = load::start(self.runtime(), &self.inner.pre, limits)?;
        let instance = Instance::new(self.clone(), sandbox, exports, config, exact)?;
        self.runtime().counters().instantiated(monotonic_ns() - started);
        Ok(instance)
    }

    /// Asks the function whether it takes a configuration.
    ///
    /// # Errors
    /// As [`Function::instantiate`].
    pub fn check_config(&self, config: &serde_json::Value) -> Result<(), FunctionError> {
        self.instantiate(config, Limits { cpu_ms: 1000, ..Limits::default() }).map(drop)
    }
}
