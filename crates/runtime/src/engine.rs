//! The runtime: one wasm engine with its pool of instances.

use crate::compiled::Compiled;
use crate::error::{LoadError, RuntimeError};
use crate::function::Function;
use crate::host::{self, Host};
use crate::metrics::{Counters, RuntimeMetrics};
use crate::ticker::Ticker;
use crate::{RuntimeConfig, load, place, probe};
use std::sync::Arc;
use std::time::Duration;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, Linker, OptLevel, PoolingAllocationConfig};

/// Entries of a function's table: pointers to its own functions.
pub const TABLE_ELEMENTS_MAX: usize = 10_000;
/// Reserved behind each instance, so that an access with a constant offset needs no bounds check either.
const GUARD_BYTES: u64 = 32 << 20;
/// Memory of an idle pool slot that is wiped rather than given back, so that the next tenant meets no page faults. Slots
/// beyond [`WARM_SLOTS_MAX`] give all back. An instance writes to some fifteen pages, which the kernel names
/// (`PAGEMAP_SCAN`); where it cannot, they are not known, and all is given back.
const KEEP_RESIDENT_BYTES: usize = 256 << 10;
const WARM_SLOTS_MAX: u32 = 16;

/// Runs functions. Cloning shares it.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    config: RuntimeConfig,
    linker: Linker<Host>,
    ticker: Ticker,
    counters: Counters,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl Runtime {
    /// Starts an engine and proves that windows work on this machine.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub fn new(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        let runtime = Self::proven(config)?;
        probe::run(&runtime).map_err(RuntimeError::Probe)?;
        Ok(runtime)
    }

    /// The same without the proof, for a process whose parent has made it and that may not read its own maps.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub fn proven(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        check(&config)?;
        let failed = |reason: String| RuntimeError::Engine { instances_max: config.instances_max, reason };
        let engine = Engine::new(&engine_config(&config)).map_err(|e| failed(host::chain(&e)))?;
        let mut linker = Linker::new(&engine);
        host::link(&mut linker).map_err(|e| failed(host::chain(&e)))?;
        let ticker = Ticker::start(engine, Duration::from_millis(config.tick_ms))
            .map_err(|e| failed(format!("start a thread: {e}")))?;
        Ok(Self { inner: Arc::new(Inner { config, linker, ticker, counters: Counters::default() }) })
    }

    /// Compiles a function and checks that it keeps the contract.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(&self, wasm: &[u8]) -> Result<Function, LoadError> {
        load::load(self, wasm)
    }

    /// Takes a function that another process has compiled; see [`compiled`](crate::compiled).
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load_compiled(&self, compiled: Compiled) -> Result<Function, LoadError> {
        compiled.load(self)
    }

    /// The limits it was made with.
    pub fn config(&self) -> &RuntimeConfig {
        &self.inner.config
    }

    /// What it did so far.
    pub fn metrics(&self) -> RuntimeMetrics {
        self.inner.counters.snapshot()
    }

    /// Bytes that the windows of one call may have together.
    pub fn window_bytes_max(&self) -> u64 {
        place::window_bytes_max(self.heap_cap_bytes())
    }

    /// What an instance's memory can never grow beyond: the cap in whole wasm pages.
    pub(crate) fn heap_cap_bytes(&self) -> u64 {
        self.inner.config.heap_bytes_max.next_multiple_of(65_536)
    }

    pub(crate) fn engine(&self) -> &Engine {
        self.inner.linker.engine()
    }

    pub(crate) fn linker(&self) -> &Linker<Host> {
        &self.inner.linker
    }

    pub(crate) fn ticker(&self) -> &Ticker {
        &self.inner.ticker
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.inner.counters
    }
}

fn check(config: &RuntimeConfig) -> Result<(), RuntimeError> {
    let range = |field, found: u64, low: u64, high: u64, expected| {
        if (low..=high).contains(&found) { Ok(()) } else { Err(RuntimeError::Config { field, found, expected }) }
    };
    range("instances_max", config.instances_max.into(), 1, 4096, "1 to 4096 instances")?;
    range("heap_bytes_max", config.heap_bytes_max, 1 << 20, 1 << 30, "1 MiB to 1 GiB")?;
    range("tick_ms", config.tick_ms, 1, 1000, "1 to 1000 ms")?;
    range("cpu_ms_max", config.cpu_ms_max, 1, 86_400_000, "1 ms to a day")?;
    range("module_bytes_max", config.module_bytes_max, 1, 256 << 20, "1 byte to 256 MiB")
}

fn engine_config(config: &RuntimeConfig) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    let keep_resident = if PoolingAllocationConfig::is_pagemap_scan_available() { KEEP_RESIDENT_BYTES } else { 0 };
    pool.total_core_instances(config.instances_max)
        .total_memories(config.instances_max)
        .total_tables(config.instances_max)
        .max_memories_per_module(1)
        .max_tables_per_module(1)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(config.heap_bytes_max.next_multiple_of(65_536) as usize)
        .max_unused_warm_slots(WARM_SLOTS_MAX)
        .pagemap_scan(Enabled::Auto)
        .linear_memory_keep_resident(keep_resident)
        .table_keep_resident(keep_resident);
    let mut engine = Config::new();
    engine
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        // Windows lean on these four: the whole 32-bit space is reserved and stays put, and what is not mapped traps.
        .memory_reservation(place::GUEST_BYTES)
        .memory_guard_size(GUARD_BYTES)
        .memory_may_move(false)
        .signals_based_traps(true)
        .epoch_interruption(true)
        .cranelift_opt_level(OptLevel::Speed)
        // Functions are deterministic: nothing whose result depends on the processor, and no threads.
        .wasm_relaxed_simd(false)
        .wasm_simd(true)
        .wasm_multi_memory(false)
        .wasm_memory64(false)
        .wasm_tail_call(false);
    engine
}
