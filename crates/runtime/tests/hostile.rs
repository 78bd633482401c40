//! Functions that loop, panic, ask for too much, or are none at all.

mod common;

use catchment_runtime::{
    Dtype, FinalizeArgs, FoldArgs, FunctionError, HostError, Kind, Limits, LoadError, Rule, Runtime, RuntimeConfig,
    RuntimeError, TypedWindow,
};
use common::{Guest, Memory, fedavg, runtime};
use serde_json::json;
use std::time::Instant;

fn fold(runtime: &Runtime, guest: Guest<'_>, limits: Limits) -> Result<(), FunctionError> {
    let mut instance = runtime.load(&guest.wasm()).expect("loads").instantiate(&json!({}), limits)?;
    let (update, out) = (Memory::f64s(&[1.0]), Memory::f64s(&[0.0]));
    let updates = [update.update(Dtype::F64, 1.0)];
    let args =
        FoldArgs { elements: 1, rule: Rule::Mean, acc_in: None, acc_out: out.window(), updates: updates.to_vec() };
    instance.fold(&args).map(drop)
}

#[test]
fn an_endless_loop_is_stopped_in_time() {
    let runtime = runtime();
    let limits = Limits { cpu_ms: 100, ..Limits::default() };
    let endless = "(loop $on (br $on))";
    let started = Instant::now();
    let error = fold(&runtime, Guest { fold: endless, ..Guest::default() }, limits).unwrap_err();
    assert_eq!(error, FunctionError::TimedOut { call: "fold".into(), limit_ms: 100 });
    assert_eq!(error.to_string(), "fold: stopped after 100 ms of CPU time");
    // Also before the first call: in init, and in a start function.
    let init = format!("{endless} (i64.const 0)");
    let error = fold(&runtime, Guest { init: &init, ..Guest::default() }, limits).unwrap_err();
    assert_eq!(error, FunctionError::TimedOut { call: "init".into(), limit_ms: 100 });
    let start = "(memory (export \"memory\") 1) (func $go (loop $on (br $on))) (start $go)";
    let error = runtime.load(&Guest { header: start, ..Guest::default() }.wasm()).unwrap_err();
    assert_eq!(error, LoadError::Describe(FunctionError::TimedOut { call: "start".into(), limit_ms: 1000 }));
    // CPU time, so a busy machine may take longer; but not without end.
    assert!(started.elapsed().as_secs() < 60);
}

#[test]
fn memory_is_capped() {
    let runtime = runtime();
    let limits = Limits { heap_bytes: 4 << 20, ..Limits::default() };
    // Refused growth shows as -1, as the language says; a guest that copes is fine.
    let copes = "(if (i32.ne (memory.grow (i32.const 64)) (i32.const -1)) (then unreachable))";
    assert_eq!(fold(&runtime, Guest { fold: copes, ..Guest::default() }, limits), Ok(()));
    let dies = "(if (i32.eq (memory.grow (i32.const 64)) (i32.const -1)) (then unreachable))";
    let error = fold(&runtime, Guest { fold: dies, ..Guest::default() }, limits).unwrap_err();
    assert_eq!(error, FunctionError::OutOfMemory { call: "fold".into(), heap_bytes: 4 << 20 });
    // The runtime's own cap holds whatever the limits say.
    let limits = Limits { heap_bytes: 1 << 40, ..Limits::default() };
    let dies = "(if (i32.eq (memory.grow (i32.const 255)) (i32.const -1)) (then unreachable))";
    let error = fold(&runtime, Guest { fold: dies, ..Guest::default() }, limits).unwrap_err();
    assert_eq!(error, FunctionError::OutOfMemory { call: "fold".into(), heap_bytes: 16 << 20 });
    // Too large from the start.
    let large = "(memory (export \"memory\") 80)";
    let function = runtime.load(&Guest { header: large, ..Guest::default() }.wasm()).unwrap();
    let error = function.instantiate(&json!({}), Limits { heap_bytes: 4 << 20, ..Limits::default() }).unwrap_err();
    assert_eq!(error, FunctionError::OutOfMemory { call: "start".into(), heap_bytes: 4 << 20 });
    let larger = "(memory (export \"memory\") 300)";
    let error = runtime.load(&Guest { header: larger, ..Guest::default() }.wasm()).unwrap_err();
    assert!(matches!(&error, LoadError::Invalid(text) if text.contains("minimum byte size")), "{error}");
}

/// A real Rust function that runs out of memory panics; the reason survives the way through the import.
#[test]
fn a_rust_function_out_of_memory_says_so() {
    let runtime = runtime();
    let limits = Limits { heap_bytes: 20 * 65_536, ..Limits::default() };
    let config = json!({ "weighting": "w".repeat(200_000) });
    let error = fedavg(&runtime).instantiate(&config, limits).unwrap_err();
    assert_eq!(error, FunctionError::OutOfMemory { call: "init".into(), heap_bytes: 20 * 65_536 });
}

#[test]
fn a_panic_text_reaches_the_error() {
    let runtime = runtime();
    let panics = "(call $panic (i32.const 64) (i32.const 4)) unreachable";
    let error = fold(&runtime, Guest { fold: panics, ..Guest::default() }, Limits::default()).unwrap_err();
    assert_eq!(error, FunctionError::Trap { call: "fold".into(), reason: "boom".to_string() });
    // A text outside the memory, or endless, hurts nobody.
    for (address, len) in [(-1, 4), (64, -1), (131_070, 4)] {
        let panics = format!("(call $panic (i32.const {address}) (i32.const {len})) unreachable");
        let error = fold(&runtime, Guest { fold: &panics, ..Guest::default() }, Limits::default()).unwrap_err();
        assert!(matches!(&error, FunctionError::Trap { reason, .. } if reason.len() <= 3 * 4096), "{error}");
        assert!(!error.to_string().contains('\0'), "{error}");
    }
    for (body, text) in [
        ("unreachable", "unreachable"),
        ("(drop (i32.div_s (i32.const 1) (i32.const 0)))", "divide by zero"),
        ("(call $again)", "call stack exhausted"),
    ] {
        let header = "(memory (export \"memory\") 2) (func $again (call $again))";
        let error = fold(&runtime, Guest { header, fold: body, ..Guest::default() }, Limits::default()).unwrap_err();
        assert!(matches!(&error, FunctionError::Trap { reason, .. } if reason.contains(text)), "{error}");
    }
}

#[test]
fn what_is_no_function_is_refused_with_a_reason() {
    let runtime = runtime();
    let refused = |wasm: &[u8]| runtime.load(wasm).expect_err("refused");
    for garbage in [&b""[..], b"\0asm", b"not wasm at all", &[0xff; 4096]] {
        assert!(matches!(refused(garbage), LoadError::Invalid(_)));
    }
    let mut cut = common::built("fedavg");
    cut.truncate(cut.len() / 2);
    assert!(matches!(refused(&cut), LoadError::Invalid(_)));
    let clock = "(import \"wasi_snapshot_preview1\" \"clock_time_get\" (func (param i32 i64 i32) (result i32)))
        (memory (export \"memory\") 1)";
    let error = refused(&Guest { header: clock, ..Guest::default() }.wasm());
    assert!(error.to_string().contains("imports `wasi_snapshot_preview1`.`clock_time_get`"), "{error}");
    let memory = "(import \"env\" \"memory\" (memory 1)) (export \"memory\" (memory 0))";
    assert!(matches!(refused(&Guest { header: memory, ..Guest::default() }.wasm()), LoadError::ForbiddenImport { .. }));
    let panic = "(import \"catchment\" \"panic\" (func (param i64))) (memory (export \"memory\") 1)";
    assert!(matches!(refused(&Guest { header: panic, ..Guest::default() }.wasm()), LoadError::Invalid(_)));
    let error = refused(&wat::parse_str("(module (memory (export \"memory\") 1))").unwrap());
    assert!(matches!(error, LoadError::Export { name: "catchment_abi", .. }), "{error}");
    let error = refused(&wat::parse_str("(module)").unwrap());
    assert!(matches!(error, LoadError::Export { name: "memory", .. }), "{error}");
    let error = refused(&Guest { abi: "(i32.const 99)", ..Guest::default() }.wasm());
    assert_eq!(error, LoadError::Version { found: 99, supported: catchment_sdk::abi::VERSION });
    let long = vec![0; RuntimeConfig::default().module_bytes_max as usize + 1];
    assert!(matches!(refused(&long), LoadError::TooLarge { .. }));
    let relaxed = "(memory (export \"memory\") 1) (func (param v128) (result v128)
        (f32x4.relaxed_madd (local.get 0) (local.get 0) (local.get 0)))";
    assert!(matches!(refused(&Guest { header: relaxed, ..Guest::default() }.wasm()), LoadError::Invalid(_)));
}

#[test]
fn descriptions_are_checked() {
    let runtime = runtime();
    let load =
        |description: &str| runtime.load(&Guest { description, ..Guest::default() }.wasm()).expect_err("refused");
    let good = Guest::default().description.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(runtime.load(&Guest { description: &good, ..Guest::default() }.wasm()).is_ok());
    for (from, to, text) in [
        ("by-hand", "By Hand", "DNS label"),
        ("additive", "magic", "unknown"),
        ("\"F64\"", "\"F32\"", "partials"),
        ("a test", "", "summary"),
        ("\"version\":\"1\",", "", "missing field `version`"),
        ("{", "", "expected"),
    ] {
        let error = load(&good.replacen(from, to, 1)).to_string();
        assert!(error.contains(text), "{error:?} names {text:?}");
    }
    let other = load(&good.replace("additive", "two-phase"));
    assert!(matches!(other, LoadError::Export { name: "catchment_scalars", .. }), "{other}");
    let ahead = good.replace("{", "{\"new-in-version-9\":true,");
    assert!(runtime.load(&Guest { description: &ahead, ..Guest::default() }.wasm()).is_ok(), "additions are free");
}

#[test]
fn addresses_a_guest_hands_out_are_checked() {
    let runtime = runtime();
    let start = |guest: Guest<'_>| {
        let function = runtime.load(&guest.wasm()).expect("loads");
        function.instantiate(&json!({}), Limits::default()).expect_err("refused")
    };
    for guest in [
        Guest { args: "(i32.const -8)", ..Guest::default() },
        Guest { args: "(i32.const 131000)", ..Guest::default() },
        Guest { args: "(i32.const 4097)", ..Guest::default() },
        Guest { config: "(i32.const -1)", ..Guest::default() },
        Guest { config: "(i32.const 131071)", ..Guest::default() },
        Guest { init: "(i64.const -1)", ..Guest::default() },
        Guest { init: "(i64.const 0x00000400_fffffff0)", ..Guest::default() },
    ] {
        let error = start(guest);
        assert!(matches!(error, FunctionError::Host(HostError::Contract(_))), "{error}");
    }
    let error = start(Guest { init: "(i64.const 0x00000004_00000040)", ..Guest::default() });
    assert_eq!(error, FunctionError::Refused { reason: "boom".to_string() });
}

#[test]
fn a_refusal_in_finalize_is_no_trap() {
    let runtime = runtime();
    let guest = Guest { finalize: "(i64.const 0x00000004_00000040)", ..Guest::default() };
    let mut instance = runtime.load(&guest.wasm()).unwrap().instantiate(&json!({}), Limits::default()).unwrap();
    let (partial, out) = (Memory::f64s(&[1.0]), Memory::f64s(&[0.0]));
    let args = FinalizeArgs {
        elements: 1,
        rule: Rule::Mean,
        kind: Kind::Weights,
        partial: partial.window(),
        previous: None,
        out: TypedWindow { window: out.window(), dtype: Dtype::F64 },
        total_weight: 1.0,
        updates: 1,
        seed: 0,
    };
    for _ in 0..2 {
        assert_eq!(instance.finalize(&args), Err(FunctionError::Refused { reason: "boom".to_string() }));
    }
    assert!(!instance.is_spent());
}

#[test]
fn limits_that_cannot_be_are_refused() {
    let refused = |config| Runtime::new(config).expect_err("refused");
    let default = RuntimeConfig::default();
    for config in [
        RuntimeConfig { instances_max: 0, ..default },
        RuntimeConfig { heap_bytes_max: 5 << 30, ..default },
        RuntimeConfig { tick_ms: 0, ..default },
    ] {
        assert!(matches!(refused(config), RuntimeError::Config { .. }));
    }
}
