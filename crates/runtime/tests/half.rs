//! The import that converts F16: right for every number, and no way out of the sandbox.

mod common;

use catchment_runtime::{Dtype, FoldArgs, FunctionError, Limits, LoadError, Rule, Runtime};
use common::{ACC_OUT, Guest, Memory, UPDATE, runtime};
use half::f16;
use serde_json::json;

const HEADER: &str = "(import \"catchment\" \"f16_to_f32\" (func $widen (param i32 i32 i32)))
    (memory (export \"memory\") 2)";

/// Folds one update of F16 with a guest that says what to do.
fn fold(runtime: &Runtime, body: &str, update: &Memory, out: &Memory, elements: u64) -> Result<(), FunctionError> {
    let guest = Guest { header: HEADER, abi: "(i32.const 4)", fold: body, ..Guest::default() };
    let mut instance = runtime.load(&guest.wasm()).expect("loads").instantiate(&json!({}), Limits::default())?;
    let updates = vec![update.update(Dtype::F16, 1.0)];
    instance.fold(&FoldArgs { elements, rule: Rule::Mean, acc_in: None, acc_out: out.window(), updates }).map(drop)
}

/// Every F16 there is, out of a read-only window, and its bits into the output.
#[test]
fn every_number_comes_through_a_window() {
    let codes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let (update, out) = (Memory::new(&codes).read_only(), Memory::zeros(8 << 16));
    let body = format!(
        "(local $done i32) (local $at i32)
        (loop $part
            (call $widen (i32.add {UPDATE} (i32.mul (local.get $done) (i32.const 2)))
                (i32.const 65536) (i32.const 16384))
            (local.set $at (i32.const 0))
            (loop $one
                (i64.store (i32.add {ACC_OUT} (i32.mul (i32.add (local.get $done) (local.get $at)) (i32.const 8)))
                    (i64.load32_u offset=65536 (i32.mul (local.get $at) (i32.const 4))))
                (local.set $at (i32.add (local.get $at) (i32.const 1)))
                (br_if $one (i32.lt_u (local.get $at) (i32.const 16384))))
            (local.set $done (i32.add (local.get $done) (i32.const 16384)))
            (br_if $part (i32.lt_u (local.get $done) (i32.const 65536))))"
    );
    fold(&runtime(), &body, &update, &out, 1 << 16).unwrap();
    for (code, found) in (0..=u16::MAX).zip(out.read_f64s()) {
        let (found, expected) = (f32::from_bits(found.to_bits() as u32), f16::from_bits(code).to_f32());
        let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
        assert!(same, "{code:#06x} is {expected}, not {found}");
    }
}

#[test]
fn its_own_memory_and_nothing_at_all_can_be_converted_too() {
    let (update, out) = (Memory::zeros(1024), Memory::zeros(4096));
    let body = format!(
        "(i32.store (i32.const 8192) (i32.const 0xbc003c00))
        (call $widen (i32.const 8192) (i32.const 131064) (i32.const 2))
        (call $widen (i32.const 131072) (i32.const 131072) (i32.const 0))
        (f64.store {ACC_OUT} (f64.promote_f32 (f32.load (i32.const 131064))))
        (f64.store offset=8 {ACC_OUT} (f64.promote_f32 (f32.load (i32.const 131068))))"
    );
    fold(&runtime(), &body, &update, &out, 512).unwrap();
    assert_eq!(out.read_f64s()[..2], [1.0, -1.0]);
}

#[test]
fn wild_addresses_trap() {
    let runtime = runtime();
    // One page of F16, and one of output.
    let update = Memory::new(&[0x3c; 4096]);
    let wild = [
        // Beyond a window, before it, between its own memory and the windows, and where nothing ever was.
        (format!("(i32.add {UPDATE} (i32.const 2))"), "(i32.const 8192)".to_owned(), 2048),
        (format!("(i32.add {UPDATE} (i32.const 4096))"), "(i32.const 8192)".to_owned(), 1),
        (format!("(i32.sub {UPDATE} (i32.const 1))"), "(i32.const 8192)".to_owned(), 1),
        ("(i32.const 131071)".to_owned(), "(i32.const 8192)".to_owned(), 1),
        ("(i32.const 0x7fffffff)".to_owned(), "(i32.const 8192)".to_owned(), 1),
        ("(i32.const -2)".to_owned(), "(i32.const 8192)".to_owned(), 1),
        // More than there is, up to what does not fit into 32 bits.
        (UPDATE.to_owned(), "(i32.const 8192)".to_owned(), 2049),
        (UPDATE.to_owned(), "(i32.const 8192)".to_owned(), i32::MAX),
        (UPDATE.to_owned(), "(i32.const 8192)".to_owned(), -1),
        // Results go nowhere but into its own memory: not beyond it, not into windows, not over what is read.
        (UPDATE.to_owned(), "(i32.const 131070)".to_owned(), 1),
        (UPDATE.to_owned(), "(i32.const -4)".to_owned(), 1),
        (UPDATE.to_owned(), UPDATE.to_owned(), 1),
        (UPDATE.to_owned(), ACC_OUT.to_owned(), 1),
        ("(i32.const 8192)".to_owned(), "(i32.const 8194)".to_owned(), 2),
        ("(i32.const 8196)".to_owned(), "(i32.const 8192)".to_owned(), 2),
    ];
    for (from, to, count) in wild {
        let out = Memory::zeros(16384);
        let body = format!("(call $widen {from} {to} (i32.const {count}))");
        match fold(&runtime, &body, &update, &out, 2048) {
            Err(FunctionError::Trap { call, reason }) if call == "fold" => {
                assert!(reason.contains("out of bounds memory access"), "{body}: {reason}");
            }
            other => panic!("{body}: expected a trap, got {other:?}"),
        }
        assert_eq!(update.bytes(), [0x3c; 4096], "{body}: the update is as it was");
        assert_eq!(out.bytes(), [0; 16384], "{body}: nor was the output written");
    }
}

/// A window of a call that is over is out of bounds, in the next call and without any.
#[test]
fn windows_of_before_cannot_be_converted() {
    let runtime = runtime();
    let body = format!(
        "(if (i32.eqz (global.get $seen))
            (then (global.set $seen (i32.add {UPDATE} (i32.const 16384))))
            (else (call $widen (global.get $seen) (i32.const 8192) (i32.const 1))))"
    );
    let header = format!("{HEADER} (global $seen (mut i32) (i32.const 0))");
    let guest = Guest { header: &header, abi: "(i32.const 4)", fold: &body, ..Guest::default() };
    let mut instance = runtime.load(&guest.wasm()).unwrap().instantiate(&json!({}), Limits::default()).unwrap();
    let mut fold = |elements: usize| {
        let (update, out) = (Memory::zeros(2 * elements), Memory::zeros(8 * elements));
        let updates = vec![update.update(Dtype::F16, 1.0)];
        let elements = elements as u64;
        instance.fold(&FoldArgs { elements, rule: Rule::Mean, acc_in: None, acc_out: out.window(), updates }).map(drop)
    };
    fold(32768).unwrap();
    let error = fold(8).unwrap_err();
    assert!(matches!(error, FunctionError::Trap { .. }), "{error}");

    let init = "(call $widen (i32.const 16777216) (i32.const 8192) (i32.const 1)) (i64.const 0)";
    let guest = Guest { header: HEADER, init, ..Guest::default() };
    let error = runtime.load(&guest.wasm()).unwrap().instantiate(&json!({}), Limits::default()).unwrap_err();
    assert!(matches!(&error, FunctionError::Trap { call, .. } if call == "init"), "{error}");
}

#[test]
fn only_its_own_type_can_be_imported() {
    let runtime = runtime();
    let header = "(import \"catchment\" \"f16_to_f32\" (func (param i32 i32))) (memory (export \"memory\") 1)";
    let error = runtime.load(&Guest { header, ..Guest::default() }.wasm()).unwrap_err();
    assert!(matches!(&error, LoadError::Invalid(text) if text.contains("f16_to_f32")), "{error}");
    // One that ran before the instance has its memory would have nothing to write to.
    let header = format!("{HEADER} (func $go (call $widen (i32.const 0) (i32.const 64) (i32.const 1))) (start $go)");
    let error = runtime.load(&Guest { header: &header, ..Guest::default() }.wasm()).unwrap_err();
    assert!(matches!(error, LoadError::Describe(FunctionError::Trap { .. })), "{error}");
}
