//! From bytes to a checked function.
//!
//! A module comes from outside. Whatever it is, the answer is a function that keeps the contract or a sentence that
//! says why not; everything later may rely on the exports being there with the right types.

use crate::engine::Runtime;
use crate::error::{FunctionError, HostError, LoadError};
use crate::function::{ConfigField, Description, Function};
use crate::host::{Host, arm, chain, packed_text};
use crate::instance::guarded;
use crate::sandbox::Sandbox;
use crate::{Class, Limits};
use catchment_sdk::abi::{self, name};
use serde::Deserialize;
use wasmtime::{
    AsContextMut, ExternType, InstancePre, Module, PoolConcurrencyLimitError, StoreContextMut, TypedFunc, ValType,
    WasmParams, WasmResults,
};

/// An instance's entry points, where all functions have them. Those of its class are looked up when they are called.
pub struct Exports {
    instance: wasmtime::Instance,
    pub args: TypedFunc<(), u32>,
    pub room: TypedFunc<u32, u32>,
    pub init: TypedFunc<(), u64>,
}

impl Exports {
    fn of(store: &mut StoreContextMut<'_, Host>, instance: wasmtime::Instance) -> Option<Self> {
        let args = instance.get_typed_func(&mut *store, name::ARGS).ok()?;
        let room = instance.get_typed_func(&mut *store, name::ROOM).ok()?;
        let init = instance.get_typed_func(&mut *store, name::INIT).ok()?;
        Some(Self { instance, args, room, init })
    }

    /// The entry point with this name, if the function has it.
    pub fn get<P: WasmParams, R: WasmResults>(&self, sandbox: &mut Sandbox, name: &str) -> Option<TypedFunc<P, R>> {
        sandbox.enter(|store| self.instance.get_typed_func(store, name).ok())
    }
}

/// What a function may import, with its parameters; none has results.
const IMPORTS: [(&str, &[ValType]); 2] =
    [(name::PANIC, &[ValType::I32, ValType::I32]), (name::F16_TO_F32, &[ValType::I32, ValType::I32, ValType::I32])];

/// An export, with its type in words and in wasm's terms.
type Export = (&'static str, &'static str, &'static [ValType], &'static [ValType]);

/// What every function exports.
const EXPORTS: [Export; 5] = [
    (name::ABI, "a function () -> i32", &[], &[ValType::I32]),
    (name::DESCRIBE, "a function () -> i64", &[], &[ValType::I64]),
    (name::ARGS, "a function () -> i32", &[], &[ValType::I32]),
    (name::ROOM, "a function (i32) -> i32", &[ValType::I32], &[ValType::I32]),
    (name::INIT, "a function () -> i64", &[], &[ValType::I64]),
];

const fn work(name: &'static str) -> Export {
    (name, "a function () -> ()", &[], &[])
}

const fn consent(name: &'static str) -> Export {
    (name, "a function () -> i64", &[], &[ValType::I64])
}

/// What functions of a class export besides.
const fn exports_of(class: Class) -> &'static [Export] {
    const SCALARS: Export = (name::SCALARS, "a function (i32) -> i32", &[ValType::I32], &[ValType::I32]);
    const ADDITIVE: &[Export] = &[work(name::FOLD), work(name::MERGE), consent(name::FINALIZE)];
    const COORDINATE_WISE: &[Export] = &[consent(name::COMBINE)];
    const TWO_PHASE: &[Export] = &[SCALARS, work(name::MEASURE), consent(name::CHOOSE), consent(name::COMBINE)];
    const WHOLE: &[Export] = &[consent(name::MAKE)];
    match class {
        Class::Additive => ADDITIVE,
        Class::CoordinateWise => COORDINATE_WISE,
        Class::TwoPhase => TWO_PHASE,
        Class::Whole => WHOLE,
    }
}

/// Compiles and checks a module, and asks it who it is.
pub fn load(runtime: &Runtime, wasm: &[u8]) -> Result<Function, LoadError> {
    let (bytes, max) = (wasm.len() as u64, runtime.config().module_bytes_max);
    if bytes > max {
        return Err(LoadError::TooLarge { bytes, max });
    }
    let module = Module::from_binary(runtime.engine(), wasm).map_err(|e| LoadError::Invalid(chain(&e)))?;
    check(runtime, &module, blake3::hash(wasm).to_hex().to_string())
}

/// Checks a compiled module, and asks it who it is.
pub fn check(runtime: &Runtime, module: &Module, digest: String) -> Result<Function, LoadError> {
    check_imports(module)?;
    check_exports(module, &EXPORTS)?;
    let pre = runtime.linker().instantiate_pre(module).map_err(|e| LoadError::Invalid(chain(&e)))?;
    let description = describe(runtime, &pre)?;
    check_exports(module, exports_of(description.class))?;
    Ok(Function::new(runtime.clone(), pre, description, digest))
}

fn check_imports(module: &Module) -> Result<(), LoadError> {
    for import in module.imports() {
        let known = IMPORTS.iter().find(|(name, _)| (import.module(), import.name()) == (name::HOST, *name));
        match (known, import.ty()) {
            (Some((name, params)), ExternType::Func(ty)) => {
                if !(ty.results().len() == 0 && same(ty.params(), params)) {
                    return Err(LoadError::Invalid(format!("its import of `{name}` has the type {ty}")));
                }
            }
            _ => {
                let (module, name) = (import.module().to_string(), import.name().to_string());
                return Err(LoadError::ForbiddenImport { module, name });
            }
        }
    }
    Ok(())
}

fn check_exports(module: &Module, expected: &'static [Export]) -> Result<(), LoadError> {
    let wrong = |name, expected, found: Option<ExternType>| LoadError::Export {
        name,
        expected,
        found: found.map_or("missing".to_string(), |ty| match ty {
            ExternType::Func(ty) => format!("a function {ty}"),
            other => format!("{other:?}").to_lowercase(),
        }),
    };
    match module.get_export(name::MEMORY) {
        Some(ExternType::Memory(ty)) if !ty.is_64() && !ty.is_shared() && ty.page_size() == 65_536 => {}
        other => return Err(wrong(name::MEMORY, "a 32-bit memory", other)),
    }
    for &(name, expected, params, results) in expected {
        match module.get_export(name) {
            Some(ExternType::Func(ty)) if same(ty.params(), params) && same(ty.results(), results) => {}
            other => return Err(wrong(name, expected, other)),
        }
    }
    Ok(())
}

fn same(found: impl ExactSizeIterator<Item = ValType>, expected: &[ValType]) -> bool {
    found.len() == expected.len() && found.zip(expected).all(|(a, b)| ValType::eq(&a, b))
}

/// Makes an instance and looks its exports up.
pub fn start(runtime: &Runtime, pre: &InstancePre<Host>, limits: Limits) -> Result<(Sandbox, Exports), FunctionError> {
    let config = runtime.config();
    let mut store = Host::new(limits.within(config), config.tick_ms).store(runtime.engine());
    let _running = runtime.ticker().running();
    arm(&mut store.as_context_mut());
    let instance = match pre.instantiate(&mut store) {
        Ok(instance) => instance,
        Err(error) if error.is::<PoolConcurrencyLimitError>() => {
            return Err(HostError::NoRoom { instances_max: config.instances_max }.into());
        }
        Err(error) => return Err(store.data_mut().failure("start", &error)),
    };
    let contract = |text: &str| HostError::Contract(text.to_string());
    let memory = instance.get_memory(&mut store, name::MEMORY).ok_or_else(|| contract("it has no memory"))?;
    store.data_mut().view.owns(memory);
    let exports = Exports::of(&mut store.as_context_mut(), instance).ok_or_else(|| contract("an export is missing"))?;
    Ok((Sandbox::new(store, memory, runtime.heap_cap_bytes())?, exports))
}

/// What a module says about itself, as it says it. Fields beyond these are of later versions and passed over.
#[derive(Deserialize)]
struct RawDescription {
    name: String,
    version: String,
    class: String,
    partial: String,
    summary: String,
    config: Vec<ConfigField>,
    needs_previous: bool,
    exact: bool,
    update_layout: serde_json::Value,
}

fn describe(runtime: &Runtime, pre: &InstancePre<Host>) -> Result<Description, LoadError> {
    let limits = Limits { cpu_ms: 1000, ..Limits::default() };
    let (mut sandbox, exports) = start(runtime, pre, limits).map_err(LoadError::Describe)?;
    let missing = || LoadError::Describe(HostError::Contract("an export is missing".to_owned()).into());
    let entry = exports.get(&mut sandbox, name::ABI).ok_or_else(missing)?;
    let found = guarded(runtime, &mut sandbox, "abi", &entry, ()).map_err(LoadError::Describe)?;
    if !(abi::VERSION_OLDEST..=abi::VERSION).contains(&found) {
        return Err(LoadError::Version { found, supported: abi::VERSION });
    }
    let entry = exports.get(&mut sandbox, name::DESCRIBE).ok_or_else(missing)?;
    let packed = guarded(runtime, &mut sandbox, "describe", &entry, ()).map_err(LoadError::Describe)?;
    let text = packed_text(sandbox.memory(), packed).map_err(|e| LoadError::Describe(e.into()))?;
    read_description(&text, found).map_err(LoadError::Description)
}

fn read_description(text: &str, abi: u32) -> Result<Description, String> {
    let raw: RawDescription = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if !is_label(&raw.name) {
        return Err(format!("its name {:?} is no DNS label (a-z, 0-9, inner hyphens, at most 63)", raw.name));
    }
    for (field, text, max) in [("version", &raw.version, 64), ("summary", &raw.summary, 512)] {
        if text.is_empty() || text.len() > max || text.chars().any(char::is_control) {
            return Err(format!("its {field} must be one line of 1 to {max} bytes"));
        }
    }
    if raw.config.len() > 64 {
        return Err(format!("it takes {} configuration fields; at most 64", raw.config.len()));
    }
    if raw.partial != "F64" {
        return Err(format!("its partials are {:?}; this host keeps them as F64", raw.partial));
    }
    let class = Class::from_name(&raw.class).ok_or_else(|| format!("its class {:?} is unknown", raw.class))?;
    let RawDescription { name, version, summary, config, needs_previous, exact, update_layout, .. } = raw;
    Ok(Description { name, version, abi, class, summary, config, needs_previous, exact, update_layout })
}

fn is_label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}
