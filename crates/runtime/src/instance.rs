//! One running function.

use crate::call::{CallStats, FinalizeArgs, FoldArgs, MergeArgs, Planned};
use crate::engine::Runtime;
use crate::error::{FunctionError, HostError};
use crate::function::Function;
use crate::gather::{ChooseArgs, CombineArgs, MakeArgs, MeasureArgs};
use crate::host::{Host, arm, forget, monotonic_ns, packed_text, printable, thread_cpu_ns};
use crate::load::Exports;
use crate::place::Area;
use crate::sandbox::Sandbox;
use catchment_sdk::abi::{ARGS_BYTES, InitCall, name};
use catchment_sdk::{CONFIG_BYTES_MAX, Exact, SCALARS_MAX};
use std::os::fd::BorrowedFd;
use wasmtime::{StoreContextMut, TypedFunc, WasmParams, WasmResults};
use zerocopy::{Immutable, IntoBytes};

/// The entry points that have been called so far.
#[derive(Default)]
struct Calls {
    fold: Option<TypedFunc<(), ()>>,
    merge: Option<TypedFunc<(), ()>>,
    finalize: Option<TypedFunc<(), u64>>,
    combine: Option<TypedFunc<(), u64>>,
    scalars: Option<TypedFunc<u32, u32>>,
    measure: Option<TypedFunc<(), ()>>,
    choose: Option<TypedFunc<(), u64>>,
    make: Option<TypedFunc<(), u64>>,
}

/// A function initialised for one configuration. It may move between threads; calls are made one at a time.
///
/// After an error other than a refusal or a bad argument it is spent: see [`FunctionError`].
pub struct Instance {
    sandbox: Sandbox,
    exports: Exports,
    calls: Calls,
    /// Where records of calls go in the instance's memory.
    args: usize,
    function: Function,
    spent: bool,
    cpu_ns: u64,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance")
            .field("function", &self.function.description().name)
            .field("spent", &self.spent)
            .finish_non_exhaustive()
    }
}

impl Instance {
    /// Initialises a fresh sandbox, within what is left of the time that its start was given.
    pub(crate) fn new(
        function: Function,
        mut sandbox: Sandbox,
        exports: Exports,
        config: &serde_json::Value,
        exact: Option<Exact>,
    ) -> Result<Self, FunctionError> {
        let args = started(function.runtime(), &mut sandbox, "init", &exports.args, ())? as usize;
        let size = sandbox.memory().len();
        if !args.is_multiple_of(8) || args.checked_add(ARGS_BYTES).is_none_or(|end| end > size) {
            return Err(HostError::Contract(format!("its argument buffer is at {args}, with {size} bytes")).into());
        }
        function.runtime().counters().instance_created();
        let mut instance = Self { sandbox, exports, calls: Calls::default(), args, function, spent: false, cpu_ns: 0 };
        instance.init(config, exact)?;
        Ok(instance)
    }

    fn init(&mut self, config: &serde_json::Value, exact: Option<Exact>) -> Result<(), FunctionError> {
        let json = config.to_string();
        if json.len() > CONFIG_BYTES_MAX {
            let reason = format!("config: {} bytes, at most {CONFIG_BYTES_MAX} are read", json.len());
            return Err(FunctionError::Refused { reason });
        }
        let Self { function, sandbox, exports, args, .. } = self;
        let address = started(function.runtime(), sandbox, "init", &exports.room, json.len() as u32)?;
        write_at(sandbox, address, json.as_bytes())?;
        let record = InitCall::new(exact);
        sandbox.memory_mut()[*args..][..size_of::<InitCall>()].copy_from_slice(record.as_bytes());
        let refused = started(function.runtime(), sandbox, "init", &exports.init, ())?;
        self.refusal(refused)
    }

    /// The function this is an instance of.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// Whether it must be dropped.
    pub fn is_spent(&self) -> bool {
        self.spent
    }

    /// CPU time of its calls so far.
    pub fn cpu_ns(&self) -> u64 {
        self.cpu_ns
    }

    /// Adds updates to a partial.
    ///
    /// # Errors
    /// See [`FunctionError`]; a trap means that at least one of the updates is a culprit.
    pub fn fold(&mut self, args: &FoldArgs<BorrowedFd<'_>>) -> Result<CallStats, FunctionError> {
        let entry = self.entry("fold", name::FOLD, |calls| &mut calls.fold)?;
        self.call("fold", &entry, |area| args.plan(area)).map(|((), stats)| stats)
    }

    /// Joins partials.
    ///
    /// # Errors
    /// See [`FunctionError`].
    pub fn merge(&mut self, args: &MergeArgs<BorrowedFd<'_>>) -> Result<CallStats, FunctionError> {
        let entry = self.entry("merge", name::MERGE, |calls| &mut calls.merge)?;
        self.call("merge", &entry, |area| args.plan(area)).map(|((), stats)| stats)
    }

    /// Turns a partial into a model.
    ///
    /// # Errors
    /// See [`FunctionError`]; a refusal leaves the instance usable.
    pub fn finalize(&mut self, args: &FinalizeArgs<BorrowedFd<'_>>) -> Result<CallStats, FunctionError> {
        if args.previous.is_none() && self.function.description().needs_previous {
            return Err(HostError::argument("previous", "this function needs the previous model").into());
        }
        let entry = self.entry("finalize", name::FINALIZE, |calls| &mut calls.finalize)?;
        let (refused, stats) = self.call("finalize", &entry, |area| args.plan(area))?;
        self.refusal(refused)?;
        Ok(stats)
    }

    /// Makes a range of the model out of every update's numbers.
    ///
    /// # Errors
    /// See [`FunctionError`]; a refusal leaves the instance usable.
    pub fn combine(&mut self, args: &CombineArgs<BorrowedFd<'_>>) -> Result<CallStats, FunctionError> {
        let entry = self.entry("combine", name::COMBINE, |calls| &mut calls.combine)?;
        let (refused, stats) = self.call("combine", &entry, |area| args.plan(area))?;
        self.refusal(refused)?;
        Ok(stats)
    }

    /// How many numbers a round of so many updates is measured by.
    ///
    /// # Errors
    /// See [`FunctionError`]; a number beyond the contract's is one of it.
    pub fn scalars(&mut self, updates: usize) -> Result<u32, FunctionError> {
        let entry = self.entry("scalars", name::SCALARS, |calls| &mut calls.scalars)?;
        let Self { function, sandbox, .. } = self;
        let scalars = guarded(function.runtime(), sandbox, "scalars", &entry, updates as u32);
        let scalars = scalars.inspect_err(|_| self.spent = true)?;
        match scalars as usize {
            1..=SCALARS_MAX => Ok(scalars),
            _ => Err(HostError::Contract(format!("it measures by {scalars} numbers, not 1 to {SCALARS_MAX}")).into()),
        }
    }

    /// Measures a range.
    ///
    /// # Errors
    /// See [`FunctionError`].
    pub fn measure(&mut self, args: &MeasureArgs<BorrowedFd<'_>>) -> Result<CallStats, FunctionError> {
        let entry = self.entry("measure", name::MEASURE, |calls| &mut calls.measure)?;
        let scalars = self.scalars(args.updates.len())?;
        self.call("measure", &entry, |area| args.plan(area, scalars)).map(|((), stats)| stats)
    }

    /// Chooses among a round's updates.
    ///
    /// # Errors
    /// See [`FunctionError`]; a refusal leaves the instance usable.
    pub fn choose(&mut self, args: &ChooseArgs<BorrowedFd<'_>>) -> Result<CallStats, FunctionError> {
        let entry = self.entry("choose", name::CHOOSE, |calls| &mut calls.choose)?;
        let scalars = self.scalars(args.updates.len())?;
        let (refused, stats) = self.call("choose", &entry, |area| args.plan(area, scalars))?;
        self.refusal(refused)?;
        Ok(stats)
    }

    /// Makes one tensor of the model.
    ///
    /// # Errors
    /// See [`FunctionError`]; a refusal leaves the instance usable.
    pub fn make(&mut self, args: &MakeArgs<BorrowedFd<'_>>) -> Result<CallStats, FunctionError> {
        let entry = self.entry("make", name::MAKE, |calls| &mut calls.make)?;
        if self.spent {
            return Err(HostError::Spent.into());
        }
        let (planned, table) = args.plan(self.sandbox.area())?;
        let Self { function, sandbox, exports, .. } = self;
        let written = write_room(function.runtime(), sandbox, exports, "make", &table);
        written.inspect_err(|_| self.spent = true)?;
        let (refused, stats) = self.call("make", &entry, |_| Ok(planned))?;
        self.refusal(refused)?;
        Ok(stats)
    }

    /// An entry point that only some classes have.
    fn entry<P: WasmParams, R: WasmResults>(
        &mut self,
        call: &str,
        name: &str,
        known: impl Fn(&mut Calls) -> &mut Option<TypedFunc<P, R>>,
    ) -> Result<TypedFunc<P, R>, HostError> {
        let entry = known(&mut self.calls);
        if entry.is_none() {
            *entry = self.exports.get(&mut self.sandbox, name);
        }
        let class = self.function.description().class.as_str();
        entry.clone().ok_or_else(|| HostError::argument(call, format!("a function of class {class} has none")))
    }

    /// Maps the windows of a call, makes it, and unmaps them.
    fn call<'a, Record: IntoBytes + Immutable, R: WasmResults>(
        &mut self,
        name: &'static str,
        entry: &TypedFunc<(), R>,
        plan: impl FnOnce(Area) -> Result<Planned<'a, Record>, HostError>,
    ) -> Result<(R, CallStats), FunctionError> {
        if self.spent {
            return Err(HostError::Spent.into());
        }
        let Planned { record, mappings } = plan(self.sandbox.area())?;
        let bytes = record.as_bytes();
        self.sandbox.memory_mut()[self.args..][..bytes.len()].copy_from_slice(bytes);

        let runtime = self.function.runtime();
        let _running = runtime.ticker().running();
        let (wall, cpu) = (monotonic_ns(), thread_cpu_ns());
        let outcome = self.sandbox.with_windows(&mappings, |mut store| {
            arm(&mut store);
            entry.call(&mut store, ()).map_err(|error| store.data_mut().failure(name, &error))
        });
        let stats = CallStats { cpu_ns: thread_cpu_ns() - cpu, wall_ns: monotonic_ns() - wall };
        self.cpu_ns += stats.cpu_ns;
        // A window that could not be mapped leaves the instance as it was; a call that failed does not.
        self.spent |= matches!(outcome, Ok(Err(_)));
        let outcome = outcome.map_err(FunctionError::from).flatten();
        runtime.counters().call_done(stats.cpu_ns, outcome.is_err());
        Ok((outcome?, stats))
    }

    /// 0 is consent; anything else is the place of a reason.
    fn refusal(&mut self, packed: u64) -> Result<(), FunctionError> {
        if packed == 0 {
            return Ok(());
        }
        let reason = packed_text(self.sandbox.memory(), packed).inspect_err(|_| self.spent = true)?;
        Err(FunctionError::Refused { reason: printable(reason) })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.function.runtime().counters().instance_dropped();
    }
}

/// Writes bytes where the function makes room for them.
fn write_room(
    runtime: &Runtime,
    sandbox: &mut Sandbox,
    exports: &Exports,
    call: &'static str,
    bytes: &[u8],
) -> Result<(), FunctionError> {
    let address = guarded(runtime, sandbox, call, &exports.room, bytes.len() as u32)?;
    write_at(sandbox, address, bytes)
}

fn write_at(sandbox: &mut Sandbox, address: u32, bytes: &[u8]) -> Result<(), FunctionError> {
    let address = address as usize;
    match sandbox.memory_mut().get_mut(address..).and_then(|rest| rest.get_mut(..bytes.len())) {
        Some(room) => {
            room.copy_from_slice(bytes);
            Ok(())
        }
        None => Err(HostError::Contract(format!("its room for {} bytes is at {address}, outside", bytes.len())).into()),
    }
}

/// Calls an export within the limits, with no window mapped.
pub fn guarded<P: WasmParams, R: WasmResults>(
    runtime: &Runtime,
    sandbox: &mut Sandbox,
    name: &'static str,
    entry: &TypedFunc<P, R>,
    params: P,
) -> Result<R, FunctionError> {
    prepared(runtime, sandbox, name, entry, params, arm)
}

/// The same in the time of the call before: reading a thread's clock takes as long as a short call.
fn started<P: WasmParams, R: WasmResults>(
    runtime: &Runtime,
    sandbox: &mut Sandbox,
    name: &'static str,
    entry: &TypedFunc<P, R>,
    params: P,
) -> Result<R, FunctionError> {
    prepared(runtime, sandbox, name, entry, params, |store| forget(store.data_mut()))
}

/// Calls an export once its store is prepared for it.
fn prepared<P: WasmParams, R: WasmResults>(
    runtime: &Runtime,
    sandbox: &mut Sandbox,
    name: &'static str,
    entry: &TypedFunc<P, R>,
    params: P,
    prepare: impl FnOnce(&mut StoreContextMut<'_, Host>),
) -> Result<R, FunctionError> {
    let _running = runtime.ticker().running();
    sandbox.enter(|mut store| {
        prepare(&mut store);
        entry.call(&mut store, params).map_err(|error| store.data_mut().failure(name, &error))
    })
}
