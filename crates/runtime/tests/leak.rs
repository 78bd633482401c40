//! Thousands of calls leave nothing behind. Alone in its process, so that it can count maps and files.

mod common;

use catchment_runtime::{Dtype, FoldArgs, Limits, Rule};
use common::{Memory, fedavg, runtime};
use serde_json::json;

#[test]
fn ten_thousand_folds_leak_neither_maps_nor_files() {
    let runtime = runtime();
    let function = fedavg(&runtime);
    let mut instance = function.instantiate(&json!({}), Limits::default()).unwrap();
    let updates: Vec<Memory> = (0..16).map(|i| Memory::f64s(&[f64::from(i); 600])).collect();
    let windows: Vec<_> = updates.iter().map(|u| u.update(Dtype::F64, 2.0)).collect();
    let (acc, out) = (Memory::zeros(4800), Memory::zeros(4800));
    let count = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        (maps, std::fs::read_dir("/proc/self/fd").unwrap().count())
    };
    let args = |k: usize| FoldArgs {
        elements: 600,
        rule: Rule::Mean,
        acc_in: Some(acc.window()),
        acc_out: out.window(),
        updates: windows[..k].to_vec(),
    };
    for k in 1..=16 {
        instance.fold(&args(k)).unwrap();
    }
    let before = count();
    for i in 0..10_000 {
        instance.fold(&args(1 + i % 16)).unwrap();
        if i % 1000 == 0 {
            instance = function.instantiate(&json!({}), Limits::default()).unwrap();
        }
    }
    let after = count();
    // The allocator's own maps come and go; thousands of calls must not show.
    assert!(after.0 <= before.0 + 8 && after.1 <= before.1, "maps and files: {before:?}, then {after:?}");
    let metrics = runtime.metrics();
    assert_eq!((metrics.instances_created, metrics.instances_live), (11, 1));
    assert_eq!((metrics.calls, metrics.calls_failed), (10_016, 0));
}
