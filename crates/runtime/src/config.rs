//! What a runtime may use, and what one instance may.

use serde::{Deserialize, Serialize};

/// Limits of a whole runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeConfig {
    /// Instances alive at once. Each reserves 4 GiB of address space, and no memory before it is used.
    pub instances_max: u32,
    /// Upper bound of every instance's own memory, in bytes. Windows lie above it, so it takes from their room.
    pub heap_bytes_max: u64,
    /// Upper bound of every call's CPU time.
    pub cpu_ms_max: u64,
    /// How often running calls are looked at; a call ends at most about two ticks after its time.
    pub tick_ms: u64,
    /// Largest module that is compiled, in bytes.
    pub module_bytes_max: u64,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self { instances_max: 64, heap_bytes_max: 16 << 20, cpu_ms_max: 60_000, tick_ms: 10, module_bytes_max: 8 << 20 }
    }
}

/// Limits of one instance. Those of the [`RuntimeConfig`] hold besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The instance's own memory.
    pub heap_bytes: u64,
    /// CPU time of each call. (Time, not of the clock: a call that waits for a processor is not punished.)
    pub cpu_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { heap_bytes: 16 << 20, cpu_ms: 10_000 }
    }
}

impl Limits {
    /// The stricter of these and the runtime's.
    pub(crate) fn within(self, config: &RuntimeConfig) -> Self {
        Self {
            heap_bytes: self.heap_bytes.min(config.heap_bytes_max),
            cpu_ms: self.cpu_ms.clamp(1, config.cpu_ms_max.max(1)),
        }
    }
}
