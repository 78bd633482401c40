//! What the host keeps beside an instance: its limits, and what went wrong in it.

use crate::error::FunctionError;
use crate::view::View;
use crate::{HostError, Limits};
use catchment_sdk::abi::{self, name};
use rustix::time::{ClockId, clock_gettime};
use wasmtime::{Caller, Linker, ResourceLimiter, Store, StoreContextMut, Trap, UpdateDeadline};

/// Longest panic text that is kept.
const PANIC_BYTES_MAX: u32 = 4096;
/// What Rust's allocator says when memory runs out.
const ALLOCATION_FAILED: &str = "memory allocation of ";

/// The host's side of one instance.
pub struct Host {
    limits: Limits,
    tick_ms: u64,
    started_cpu_ns: u64,
    timed_out: bool,
    denied_memory: bool,
    panic: Option<String>,
    /// What the guest can see now.
    pub view: View,
}

impl Host {
    pub fn new(limits: Limits, tick_ms: u64) -> Self {
        let view = View::default();
        Self { limits, tick_ms, started_cpu_ns: 0, timed_out: false, denied_memory: false, panic: None, view }
    }

    /// A store for one instance with these limits.
    pub fn store(self, engine: &wasmtime::Engine) -> Store<Self> {
        let mut store = Store::new(engine, self);
        store.limiter(|host| host);
        store.epoch_deadline_callback(|mut store| on_deadline(&mut store));
        store
    }

    /// Why a call ended early. `error` is what the engine reported.
    pub fn failure(&mut self, call: &'static str, error: &wasmtime::Error) -> FunctionError {
        if self.timed_out {
            return FunctionError::TimedOut { call: call.into(), limit_ms: self.limits.cpu_ms };
        }
        let out_of_memory = FunctionError::OutOfMemory { call: call.into(), heap_bytes: self.limits.heap_bytes };
        if let Some(text) = self.panic.take() {
            let about_memory = self.denied_memory && text.contains(ALLOCATION_FAILED);
            return if about_memory { out_of_memory } else { FunctionError::Trap { call: call.into(), reason: text } };
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::UnreachableCodeReached) if self.denied_memory => out_of_memory,
            Some(Trap::MemoryOutOfBounds) => {
                let reason = format!(
                    "{} (windows of updates are read-only, nothing is mapped beyond a window, and memory.copy and \
                     memory.fill refuse windows)",
                    chain(error)
                );
                FunctionError::Trap { call: call.into(), reason }
            }
            Some(_) => FunctionError::Trap { call: call.into(), reason: chain(error) },
            None if self.denied_memory => out_of_memory,
            None => HostError::Engine(chain(error)).into(),
        }
    }
}

/// Starts the time of a call.
pub fn arm(store: &mut StoreContextMut<'_, Host>) {
    let host = store.data_mut();
    forget(host);
    host.started_cpu_ns = thread_cpu_ns();
    let ticks = host.limits.cpu_ms.div_ceil(host.tick_ms);
    store.set_epoch_deadline(ticks.max(1));
}

/// Leaves what went wrong in earlier calls behind.
pub fn forget(host: &mut Host) {
    host.timed_out = false;
    host.denied_memory = false;
    host.panic = None;
}

/// Ticks are of the clock, limits of CPU time: so when the ticks are over, what is left of the limit is granted.
fn on_deadline(store: &mut StoreContextMut<'_, Host>) -> wasmtime::Result<UpdateDeadline> {
    let host = store.data_mut();
    let used_ms = thread_cpu_ns().saturating_sub(host.started_cpu_ns) / 1_000_000;
    match host.limits.cpu_ms.checked_sub(used_ms) {
        None | Some(0) => {
            host.timed_out = true;
            Ok(UpdateDeadline::Interrupt)
        }
        Some(left_ms) => Ok(UpdateDeadline::Continue(left_ms.div_ceil(host.tick_ms))),
    }
}

impl ResourceLimiter for Host {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let granted = desired as u64 <= self.limits.heap_bytes;
        self.denied_memory |= !granted;
        Ok(granted)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= crate::engine::TABLE_ELEMENTS_MAX)
    }
}

/// Defines the imports there are.
pub fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(name::HOST, name::PANIC, |mut caller: Caller<'_, Host>, address: u32, len: u32| {
        let text = match caller.get_export(name::MEMORY).and_then(|export| export.into_memory()) {
            Some(memory) => text_at(memory.data(&caller), address, len.min(PANIC_BYTES_MAX)),
            None => None,
        };
        let text = text.map(printable);
        caller.data_mut().panic = Some(text.unwrap_or_else(|| "panicked, and its text is out of bounds".to_string()));
        Err::<(), _>(wasmtime::Error::msg("the function panicked"))
    })?;
    linker.func_wrap(name::HOST, name::F16_TO_F32, |caller: Caller<'_, Host>, from: u32, to: u32, count: u32| {
        let done = caller.data().view.widen(&caller, from, to, count);
        done.map_err(wasmtime::Error::from)
    })?;
    Ok(())
}

/// A guest's words go into logs and answers: what does not print is left out.
pub fn printable(text: String) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').collect()
}

/// Text in a guest's memory, if it is there.
pub fn text_at(memory: &[u8], address: u32, len: u32) -> Option<String> {
    let bytes = memory.get(address as usize..)?.get(..len as usize)?;
    Some(String::from_utf8_lossy(bytes).into_owned())
}

/// Text whose place a guest has packed.
pub fn packed_text(memory: &[u8], packed: u64) -> Result<String, HostError> {
    let (address, len) = abi::unpack(packed);
    if len as usize > abi::TEXT_BYTES_MAX {
        return Err(HostError::Contract(format!("it returned a text of {len} bytes")));
    }
    text_at(memory, address, len)
        .ok_or_else(|| HostError::Contract(format!("it returned a text at {address}..+{len}, outside its memory")))
}

/// All of an error's causes in a line.
pub fn chain(error: &wasmtime::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).filter(|text| !text.is_empty()).collect();
    causes.join(": ").replace('\n', " ")
}

/// CPU time of this thread.
pub fn thread_cpu_ns() -> u64 {
    nanoseconds(ClockId::ThreadCPUTime)
}

/// Time that only ever rises.
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
