//! Exact sums through wasm: any order, any batches, any tree give the same bits, and they are those of native code.

mod common;

use catchment_fedavg::FedAvg;
use catchment_runtime::{
    BATCH_MAX, Dtype, Exact, FinalizeArgs, FoldArgs, FunctionError, Instance, Kind, Limits, MergeArgs, Rule,
    TypedWindow, UpdateWindow,
};
use catchment_sdk::{self as sdk, Additive, Partial, PartialMut, Values, ValuesMut};
use common::{Memory, fedavg, numbers, runtime};
use proptest::prelude::*;
use serde_json::json;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

fn function() -> &'static catchment_runtime::Function {
    static FUNCTION: OnceLock<catchment_runtime::Function> = OnceLock::new();
    FUNCTION.get_or_init(|| fedavg(&runtime()))
}

/// Folds updates in batches of `cut`, one range after the other; gives the memory that holds the partial.
fn fold(instance: &mut Instance, updates: &[(&Memory, f64)], len: usize, cut: usize) -> Memory {
    let blocks = [Memory::zeros(len * 8), Memory::zeros(len * 8)];
    let mut batches = 0;
    for batch in updates.chunks(cut) {
        let half = len / 2 / 8 * 8;
        for (start, count) in [(0, half), (half, len - half)].into_iter().filter(|(_, count)| *count > 0) {
            let window = |block: usize| blocks[block % 2].range((start * 8) as u64, (count * 8) as u64);
            let updates: Vec<UpdateWindow<BorrowedFd<'_>>> = batch
                .iter()
                .map(|(memory, weight)| UpdateWindow {
                    window: memory.range((start * 4) as u64, (count * 4) as u64),
                    dtype: Dtype::F32,
                    weight: *weight,
                    num_samples: 1.0,
                    staleness: 0,
                })
                .collect();
            let args = FoldArgs {
                elements: count as u64,
                rule: Rule::Mean,
                acc_in: (batches > 0).then(|| window(batches)),
                acc_out: window(batches + 1),
                updates: updates.clone(),
            };
            instance.fold(&args).unwrap();
        }
        batches += 1;
    }
    let [even, odd] = blocks;
    if batches % 2 == 0 { even } else { odd }
}

fn model(instance: &mut Instance, partial: &Memory, previous: &Memory, kind: Kind, len: usize, total: f64) -> Vec<u8> {
    let out = Memory::zeros(len * 4);
    let args = FinalizeArgs {
        elements: len as u64,
        rule: Rule::Mean,
        kind,
        partial: partial.window(),
        previous: Some(TypedWindow { window: previous.window(), dtype: Dtype::F32 }),
        out: TypedWindow { window: out.window(), dtype: Dtype::F32 },
        total_weight: total,
        updates: 7,
        seed: 0,
    };
    instance.finalize(&args).unwrap();
    out.bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_order_cut_or_tree_changes_a_bit(
        len in 1usize..1300,
        count in 1usize..50,
        kind in prop::sample::select(vec![Kind::Weights, Kind::Delta]),
        seed in any::<u64>(),
        cut in 1usize..=BATCH_MAX,
        leaves in 1usize..=BATCH_MAX,
        turn in any::<prop::sample::Index>(),
    ) {
        let (bound, weight_max) = (4.0, 1000.0);
        let exact = Exact { exponent: 51 - 2 - 10, weight_max };
        let values: Vec<Vec<f32>> = (1..=count as u64)
            .map(|n| numbers(seed ^ n, len).iter().map(|x| if *x > 0.9 { bound as f32 } else { (x * bound) as f32 }).collect())
            .collect();
        let weights: Vec<f64> = numbers(seed ^ 55, count).iter().map(|x| (x.abs() * weight_max).max(0.001)).collect();
        let memories: Vec<Memory> = values.iter().map(|v| Memory::f32s(v)).collect();
        let previous = Memory::f32s(&numbers(seed ^ 77, len).iter().map(|&x| x as f32).collect::<Vec<f32>>());
        let mut updates: Vec<(&Memory, f64)> = memories.iter().zip(weights.iter().copied()).collect();
        let mut instance = function().instantiate_with(&json!({}), Some(exact), Limits::default()).unwrap();
        let total = 12345.678;

        let flat = fold(&mut instance, &updates, len, BATCH_MAX);
        let expected = model(&mut instance, &flat, &previous, kind, len, total);

        // Another order, other batches, a tree.
        updates.rotate_left(turn.index(count));
        updates.reverse();
        let parts: Vec<Memory> =
            updates.chunks(count.div_ceil(leaves)).map(|leaf| fold(&mut instance, leaf, len, cut)).collect();
        let windows: Vec<_> = parts.iter().map(Memory::window).collect();
        let top = Memory::zeros(len * 8);
        let (elements, rule) = (len as u64, Rule::Mean);
        instance.merge(&MergeArgs { elements, rule, acc_in: None, acc_out: top.window(), partials: windows.clone() }).unwrap();
        prop_assert_eq!(top.bytes(), flat.bytes(), "the tree's sums");
        prop_assert_eq!(&model(&mut instance, &top, &previous, kind, len, total), &expected, "the tree's model");

        // Natively.
        let native = FedAvg::init(&sdk::Config::default().with_exact(Some(exact))).unwrap();
        let mut acc: Option<Vec<i64>> = None;
        for batch in values.iter().zip(&weights).collect::<Vec<_>>().chunks(BATCH_MAX) {
            let list: Vec<sdk::Update<'_>> = batch
                .iter()
                .map(|(v, weight)| sdk::Update { values: Values::F32(v), weight: **weight, num_samples: 1.0, staleness: 0 })
                .collect();
            let mut next = vec![-1; len];
            let acc_in = acc.as_deref().map(|acc| Partial::Fixed(acc, exact));
            native.fold(sdk::Fold { rule: Rule::Mean, acc_in, acc_out: PartialMut::Fixed(&mut next, exact), updates: &list });
            acc = Some(next);
        }
        let partial = acc.unwrap();
        let before = previous.read_f32s();
        let mut out = vec![0f32; len];
        let call = sdk::Finalize {
            rule: Rule::Mean,
            kind,
            partial: Partial::Fixed(&partial, exact),
            previous: Some(Values::F32(&before)),
            out: ValuesMut::F32(&mut out),
            total_weight: total,
            updates: 7,
            seed: 0,
        };
        native.finalize(call).unwrap();
        prop_assert_eq!(out.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>(), expected, "native");
    }
}

#[test]
fn what_cannot_be_exact_is_refused() {
    let exact = Exact { exponent: 40, weight_max: 0.5 };
    let refused = |config| match function().instantiate_with(&config, Some(exact), Limits::default()) {
        Err(FunctionError::Refused { reason }) => reason,
        other => panic!("expected a refusal, got {other:?}"),
    };
    assert!(refused(json!({"weighting": "uniform"})).contains("over exact.weight_max of 0.5"));
    let by_hand = runtime().load(&common::Guest::default().wasm()).unwrap();
    let refused = by_hand.instantiate_with(&json!({}), Some(exact), Limits::default()).unwrap_err();
    assert!(refused.to_string().contains("no exact sums"), "{refused}");
}

/// A weight that the host should never let through costs a trap, not a wrong sum.
#[test]
fn a_weight_beyond_the_bound_traps() {
    let exact = Exact { exponent: 40, weight_max: 2.0 };
    let mut instance = function().instantiate_with(&json!({}), Some(exact), Limits::default()).unwrap();
    let (update, out) = (Memory::f32s(&[1.0; 8]), Memory::zeros(64));
    let updates = [update.update(Dtype::F32, 2.5)];
    let args =
        FoldArgs { elements: 8, rule: Rule::Mean, acc_in: None, acc_out: out.window(), updates: updates.to_vec() };
    let FunctionError::Trap { reason, .. } = instance.fold(&args).unwrap_err() else { panic!("a trap") };
    assert!(reason.contains("weight 2.5: at most 2"), "{reason}");
}
