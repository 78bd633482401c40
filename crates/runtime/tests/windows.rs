//! What a hostile guest can do to windows: nothing. The design leans on how the engine compiles 32-bit memories, so
//! these tests must stay and must run on every version of it.

mod common;

use catchment_runtime::{Dtype, FoldArgs, Function, FunctionError, HostError, Instance, Limits, Rule, Runtime, Window};
use common::{ACC_OUT, Guest, Memory, UPDATE, fedavg, runtime};
use serde_json::json;
use std::os::fd::BorrowedFd;

const PAGE: u64 = 4096;

fn instance(runtime: &Runtime, guest: Guest<'_>) -> Instance {
    runtime.load(&guest.wasm()).expect("loads").instantiate(&json!({}), Limits::default()).expect("starts")
}

/// Folds one update of `elements` numbers into a fresh output.
fn fold_once(instance: &mut Instance, update: &Memory, out: &Memory, elements: u64) -> Result<(), FunctionError> {
    let updates = [update.update(Dtype::F64, 1.0)];
    let args = FoldArgs { elements, rule: Rule::Mean, acc_in: None, acc_out: out.window(), updates: updates.to_vec() };
    instance.fold(&args).map(drop)
}

/// Runs a guest's fold over windows of one page and expects a clean trap that left the update alone.
fn expect_trap(runtime: &Runtime, fedavg: &Function, body: &str) {
    let mut instance = instance(runtime, Guest { fold: body, ..Guest::default() });
    let update = Memory::f64s(&[1.5; 512]);
    let out = Memory::zeros(4096);
    match fold_once(&mut instance, &update, &out, 512) {
        Err(FunctionError::Trap { call, reason }) if call == "fold" => {
            assert!(reason.contains("out of bounds memory access"), "{body}: {reason}");
        }
        other => panic!("{body}: expected a trap, got {other:?}"),
    }
    assert_eq!(update.read_f64s(), vec![1.5; 512], "{body}: the update is as it was");
    assert!(instance.is_spent());
    let again = fold_once(&mut instance, &update, &out, 512);
    assert_eq!(again, Err(FunctionError::Host(HostError::Spent)));
    drop(instance);
    fold_works(fedavg);
}

/// The runtime is as good as new.
fn fold_works(fedavg: &Function) {
    let mut instance = fedavg.instantiate(&json!({}), Limits::default()).expect("starts");
    let (update, out) = (Memory::f64s(&[2.5; 512]), Memory::zeros(4096));
    fold_once(&mut instance, &update, &out, 512).expect("folds");
    assert_eq!(out.read_f64s(), vec![2.5; 512]);
}

#[test]
fn writes_to_read_only_windows_trap() {
    let runtime = runtime();
    let fedavg = fedavg(&runtime);
    for body in [
        format!("(i32.store8 {UPDATE} (i32.const 1))"),
        format!("(i64.store {UPDATE} (i64.const 1))"),
        format!("(f64.store offset=4088 {UPDATE} (f64.const 1))"),
        format!("(v128.store {UPDATE} (v128.const i64x2 1 1))"),
        format!("(memory.fill {UPDATE} (i32.const 7) (i32.const 4096))"),
        format!("(memory.fill {UPDATE} (i32.const 7) (i32.const 1))"),
        format!("(memory.copy {UPDATE} (i32.const 0) (i32.const 64))"),
        format!("(memory.copy {UPDATE} {ACC_OUT} (i32.const 64))"),
        // Bulk instructions know only the module's own memory, so even these are refused.
        format!("(memory.copy (i32.const 0) {UPDATE} (i32.const 64))"),
        format!("(memory.fill {ACC_OUT} (i32.const 7) (i32.const 64))"),
    ] {
        expect_trap(&runtime, &fedavg, &body);
    }
}

#[test]
fn accesses_beside_windows_trap() {
    let runtime = runtime();
    let fedavg = fedavg(&runtime);
    for body in [
        // Beyond the last byte of a window, before the first, and where nothing was ever mapped.
        format!("(i32.store8 (i32.add {ACC_OUT} (i32.const 4096)) (i32.const 1))"),
        format!("(f64.store offset=4092 {ACC_OUT} (f64.const 1))"),
        format!("(drop (i32.load8_u (i32.sub {UPDATE} (i32.const 1))))"),
        format!("(drop (i32.load8_u (i32.add {UPDATE} (i32.const 4096))))"),
        format!("(i32.store offset=0xffff0000 {ACC_OUT} (i32.const 1))"),
        "(drop (i32.load (i32.const 0x7fffffff)))".to_string(),
        "(i32.store (i32.const -4) (i32.const 1))".to_string(),
        "(i32.store offset=0xffffffff (i32.const -1) (i32.const 1))".to_string(),
        // Between its own memory and the windows.
        "(i32.store (i32.const 131072) (i32.const 1))".to_string(),
        "(memory.fill (i32.const 131000) (i32.const 7) (i32.const 100))".to_string(),
    ] {
        expect_trap(&runtime, &fedavg, &body);
    }
}

#[test]
fn outputs_can_be_written_and_updates_read() {
    let runtime = runtime();
    let body = format!("(f64.store {ACC_OUT} (f64.add (f64.load {UPDATE}) (f64.const 1)))");
    let mut instance = instance(&runtime, Guest { fold: &body, ..Guest::default() });
    let (update, out) = (Memory::f64s(&[41.0]), Memory::f64s(&[0.0]));
    fold_once(&mut instance, &update.read_only(), &out, 1).expect("folds");
    assert_eq!(out.read_f64s(), [42.0]);
}

/// Ors together every word of the module's memory above its own data, and writes the result to the output.
const SCAN: &str = "(local $at i32) (local $found i32)
    (local.set $at (i32.const 20480))
    (loop $next
        (local.set $found (i32.or (local.get $found) (i32.load (local.get $at))))
        (local.set $at (i32.add (local.get $at) (i32.const 4)))
        (br_if $next (i32.lt_u (local.get $at) (i32.mul (memory.size) (i32.const 65536)))))
    (f64.store (i32.load (i32.const 4108)) (f64.convert_i32_u (local.get $found)))";

#[test]
fn a_later_tenant_sees_nothing() {
    let config = catchment_runtime::RuntimeConfig { instances_max: 1, ..Default::default() };
    let runtime = Runtime::new(config).expect("a runtime with one slot");
    // The first tenant fills memory that it has grown, and its windows, with sevens.
    let write = format!(
        "(drop (memory.grow (i32.const 16))) (memory.fill (i32.const 8192) (i32.const 7) (i32.const 1100000))
         (global.set $seen {UPDATE}) (f64.store {ACC_OUT} (f64.convert_i32_u {UPDATE}))"
    );
    let header = "(memory (export \"memory\") 2) (global $seen (mut i32) (i32.const 0))";
    let mut first = instance(&runtime, Guest { header, fold: &write, ..Guest::default() });
    let (update, out) = (Memory::f64s(&[7.0; 512]), Memory::zeros(4096));
    fold_once(&mut first, &update, &out, 512).expect("folds");
    let address = out.read_f64s()[0] as u32;
    assert!(address >= 16 << 20);
    let busy = runtime.load(&Guest::default().wasm()).unwrap_err();
    assert!(busy.to_string().contains("all 1 instances are in use"), "{busy}");
    drop(first);

    // The second looks through its own memory, which lies where the first one's was.
    let header = "(memory (export \"memory\") 18)";
    let mut second = instance(&runtime, Guest { header, fold: SCAN, ..Guest::default() });
    let (other, out) = (Memory::f64s(&[0.0; 8]), Memory::f64s(&[9.0; 8]));
    fold_once(&mut second, &other, &out, 8).expect("folds");
    assert_eq!(out.read_f64s()[0], 0.0, "the heap is wiped");
    drop(second);

    // The third looks where the first had its window.
    let look = format!("(drop (i32.load (i32.const {}))) (i64.const 0)", address as i32 + 4092);
    let third = runtime.load(&Guest { init: &look, ..Guest::default() }.wasm()).expect("loads");
    let error = third.instantiate(&json!({}), Limits::default()).expect_err("the window is gone");
    assert!(matches!(&error, FunctionError::Trap { call, .. } if call == "init"), "{error}");
}

#[test]
fn windows_are_gone_after_a_call() {
    let runtime = runtime();
    // The first fold remembers the address; the second reads it although other windows are mapped now.
    let body = format!(
        "(if (i32.eqz (global.get $seen))
            (then (global.set $seen (i32.add {UPDATE} (i32.const 16384))))
            (else (drop (i32.load (global.get $seen)))))"
    );
    let header = "(memory (export \"memory\") 2) (global $seen (mut i32) (i32.const 0))";
    let mut instance = instance(&runtime, Guest { header, fold: &body, ..Guest::default() });
    let (large, out) = (Memory::f64s(&[1.0; 8192]), Memory::zeros(65536));
    fold_once(&mut instance, &large, &out, 8192).expect("folds");
    let (small, out) = (Memory::f64s(&[1.0; 8]), Memory::zeros(64));
    let error = fold_once(&mut instance, &small, &out, 8).unwrap_err();
    assert!(matches!(error, FunctionError::Trap { .. }), "{error}");
}

#[test]
fn bad_windows_are_refused_before_anything_is_mapped() {
    let runtime = runtime();
    let mut instance = fedavg(&runtime).instantiate(&json!({}), Limits::default()).expect("starts");
    let file = Memory::zeros(3 * PAGE as usize);
    let mut fold = |elements: u64, out: Window<BorrowedFd<'_>>, updates: &[Window<BorrowedFd<'_>>], weight: f64| {
        let updates: Vec<_> = updates
            .iter()
            .map(|&window| catchment_runtime::UpdateWindow {
                window,
                dtype: Dtype::F64,
                weight,
                num_samples: 1.0,
                staleness: 0,
            })
            .collect();
        let args = FoldArgs { elements, rule: Rule::Mean, acc_in: None, acc_out: out, updates: updates.to_vec() };
        instance.fold(&args).map(drop).map_err(|e| e.to_string())
    };
    let (first, second) = (file.range(0, PAGE), file.range(PAGE, PAGE));
    let refused = |outcome: Result<(), String>, text: &str| {
        let error = outcome.expect_err(text);
        assert!(error.contains(text), "{error:?} names {text:?}");
    };
    assert_eq!(fold(512, first, &[second], 1.0), Ok(()));
    refused(fold(512, first, &[], 1.0), "updates: 0; a call takes 1 to 16");
    refused(fold(512, first, &[second; 17], 1.0), "updates: 17");
    refused(fold(512, first, &[second], f64::NAN), "update 0: weight NaN");
    refused(fold(0, first, &[second], 1.0), "elements: 0");
    refused(fold(511, first, &[second], 1.0), "update 0: 4096 bytes; 511 numbers of F64 take 4088");
    refused(fold(512, first, &[first], 1.0), "acc_out: it overlaps update 0");
    refused(fold(512, first, &[file.range(PAGE - 8, PAGE)], 1.0), "acc_out: it overlaps update 0");
    refused(
        fold(512, first, &[file.range(3 * PAGE - 8, PAGE)], 1.0),
        "update 0: bytes 12280..+4096 of a file of 12288",
    );
    refused(fold(512, first, &[file.range(PAGE + 4, PAGE)], 1.0), "multiple of 8");
    let read_only = file.read_only();
    refused(fold(512, read_only.range(0, PAGE), &[second], 1.0), "map acc_out: ");
    let null = std::fs::File::open("/dev/null").unwrap();
    let device = Window { file: std::os::fd::AsFd::as_fd(&null), offset_bytes: 0, len_bytes: PAGE };
    refused(fold(512, first, &[device], 1.0), "update 0: ");
    assert_eq!(fold(512, first, &[file.read_only().range(PAGE, PAGE)], 1.0), Ok(()), "and it still works");
}

#[test]
fn windows_that_do_not_fit_together_say_so() {
    let runtime = runtime();
    let mut instance = fedavg(&runtime).instantiate(&json!({}), Limits::default()).expect("starts");
    let elements = (runtime.window_bytes_max() / 8 / 3) + (4 << 20);
    let bytes = elements * 8;
    // Nothing is ever touched, so these files take no memory.
    let sparse = |len| {
        let file = Memory::zeros(0);
        rustix::fs::ftruncate(file.window().file, len).unwrap();
        file
    };
    let (out, a) = (sparse(bytes), sparse(bytes));
    let update = catchment_runtime::UpdateWindow {
        window: a.range(0, bytes),
        dtype: Dtype::F64,
        weight: 1.0,
        num_samples: 1.0,
        staleness: 0,
    };
    let args = FoldArgs {
        elements,
        rule: Rule::Mean,
        acc_in: None,
        acc_out: out.range(0, bytes),
        updates: vec![update, update],
    };
    let error = instance.fold(&args).unwrap_err();
    assert!(matches!(error, FunctionError::Host(HostError::TooLarge { .. })), "{error}");
    assert!(!instance.is_spent());
}
