//! Functions that take all updates at once, as wasm against the same code run natively, bit for bit.

mod common;

use catchment_flora::Flora;
use catchment_krum::Krum;
use catchment_median::Median;
use catchment_runtime::{
    BagWindow, ChooseArgs, CombineArgs, Dtype, FunctionError, HostError, Instance, Kind, Limits, MakeArgs, MeasureArgs,
    Rule, TensorPlace, TypedWindow, UPDATES_MAX, UpdateFacts, UpdateWindow,
};
use catchment_sdk::{self as sdk, CoordinateWise, TwoPhase, Values, ValuesMut, Whole};
use common::{Memory, built, numbers, runtime};
use proptest::prelude::*;
use serde_json::json;
use std::os::fd::BorrowedFd;

fn instance(name: &str) -> Instance {
    let function = runtime().load(&built(name)).expect("loads");
    function.instantiate(&json!({}), Limits::default()).expect("starts")
}

fn floats(count: usize, len: usize, seed: u64) -> Vec<Vec<f32>> {
    (0..count as u64).map(|n| numbers(seed ^ (n + 1), len).iter().map(|x| *x as f32).collect()).collect()
}

fn native(values: &[Vec<f32>]) -> Vec<sdk::Update<'_>> {
    let update = |v| sdk::Update { values: Values::F32(v), weight: 1.0, num_samples: 1.0, staleness: 0 };
    values.iter().map(|v| update(v)).collect()
}

fn combine(
    instance: &mut Instance,
    updates: &[UpdateWindow<BorrowedFd<'_>>],
    previous: &Memory,
    len: usize,
) -> Vec<f32> {
    let out = Memory::zeros(len * 4);
    let args = CombineArgs {
        elements: len as u64,
        rule: Rule::Mean,
        kind: Kind::Delta,
        updates: updates.to_vec(),
        previous: Some(TypedWindow { window: previous.window(), dtype: Dtype::F32 }),
        out: TypedWindow { window: out.window(), dtype: Dtype::F32 },
        seed: 3,
    };
    instance.combine(&args).unwrap();
    out.read_f32s()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_median_is_native_to_the_bit(count in 1usize..60, len in 1usize..900, seed in any::<u64>()) {
        let (values, before) = (floats(count, len, seed), floats(1, len, !seed).remove(0));
        let memories: Vec<Memory> = values.iter().map(|v| Memory::f32s(v)).collect();
        let windows: Vec<UpdateWindow<BorrowedFd<'_>>> = memories.iter().map(|m| m.update(Dtype::F32, 1.0)).collect();
        let wasm = combine(&mut instance("median"), &windows, &Memory::f32s(&before), len);
        let mut out = vec![0f32; len];
        Median::Median.combine(sdk::Combine {
            rule: Rule::Mean, kind: Kind::Delta, updates: &native(&values), previous: Some(Values::F32(&before)),
            out: ValuesMut::F32(&mut out), seed: 3,
        }).unwrap();
        prop_assert_eq!(wasm, out);
    }

    #[test]
    fn krum_is_native_to_the_bit(count in 3usize..40, len in 1usize..900, seed in any::<u64>()) {
        let (values, before) = (floats(count, len, seed), floats(1, len, !seed).remove(0));
        let memories: Vec<Memory> = values.iter().map(|v| Memory::f32s(v)).collect();
        let windows: Vec<UpdateWindow<BorrowedFd<'_>>> = memories.iter().map(|m| m.update(Dtype::F32, 1.0)).collect();
        let mut instance = instance("krum");
        let scalars = instance.scalars(count).unwrap() as usize;
        prop_assert_eq!(scalars, count * count);
        let (sums, weights) = (Memory::zeros(scalars * 8), Memory::zeros(count * 8));
        let (elements, rule, kind) = (len as u64, Rule::Mean, Kind::Delta);
        let args = MeasureArgs { elements, rule, kind, updates: windows.clone(), previous: None, sums: sums.window() };
        instance.measure(&args).unwrap();
        let facts = vec![UpdateFacts { weight: 1.0, num_samples: 1.0, staleness: 0 }; count];
        let args = ChooseArgs { updates: facts.clone(), sums: sums.window(), lists: 1, weights: weights.window(), seed: 3 };
        instance.choose(&args).unwrap();

        let krum = Krum::init(&sdk::Config::default()).unwrap();
        let (updates, mut expected, mut chosen) = (native(&values), vec![0.0; scalars], vec![0.0; count]);
        let call = sdk::Measure { rule, kind, elements: len, updates: &updates, previous: None, sums: &mut expected };
        krum.measure(call);
        prop_assert_eq!(sums.read_f64s(), &expected[..]);
        krum.choose(sdk::Choose { updates: &updates, sums: &expected, scalars, weights: &mut chosen, seed: 3 }).unwrap();
        prop_assert_eq!(weights.read_f64s(), &chosen[..]);
        let one = chosen.iter().position(|w| *w > 0.0).unwrap();
        let wasm = combine(&mut instance, &windows[one..=one], &Memory::f32s(&before), len);
        let plain: Vec<f32> = values[one].iter().zip(&before).map(|(x, b)| (f64::from(*x) + f64::from(*b)) as f32).collect();
        prop_assert_eq!(wasm, plain);
    }

    #[test]
    fn flora_is_native_to_the_bit(ranks in prop::collection::vec(1usize..12, 1..9), rows in 1usize..40, columns in 1usize..300, seed in any::<u64>()) {
        let before = floats(1, rows * columns, seed).remove(0);
        // Each update: A at the beginning, B at the next multiple of 8 bytes.
        let factors: Vec<(Vec<f32>, Vec<f32>)> = ranks.iter().zip(1..).map(|(r, k)| {
            (floats(1, r * columns, seed ^ k).remove(0), floats(1, rows * r, !seed ^ k).remove(0))
        }).collect();
        let memories: Vec<(Memory, Vec<TensorPlace>)> = factors.iter().zip(&ranks).map(|((a, b), r)| {
            let at = (a.len() * 4).next_multiple_of(8);
            let mut bytes: Vec<u8> = a.iter().flat_map(|x| x.to_le_bytes()).collect();
            bytes.resize(at, 0);
            bytes.extend(b.iter().flat_map(|x| x.to_le_bytes()));
            let place = |name: &str, shape: [usize; 2], offset: usize| TensorPlace {
                name: name.to_owned(),
                shape: shape.map(|d| d as u64).to_vec(),
                dtype: Dtype::F32,
                offset: offset as u64,
            };
            let places = vec![place("q.lora_A.weight", [*r, columns], 0), place("q.lora_B.weight", [rows, *r], at)];
            (Memory::new(&bytes), places)
        }).collect();
        let facts = |k: usize| UpdateFacts { weight: k as f64 + 0.5, num_samples: 1.0, staleness: 0 };
        let updates: Vec<BagWindow<BorrowedFd<'_>>> = memories.iter().enumerate().map(|(k, (memory, places))| {
            BagWindow { window: memory.window(), tensors: places.clone(), facts: facts(k) }
        }).collect();
        let tensor = TensorPlace {
            name: "q.weight".to_owned(), shape: vec![rows as u64, columns as u64], dtype: Dtype::F32, offset: 0,
        };
        let (previous, out) = (Memory::f32s(&before), Memory::zeros(rows * columns * 4));
        let mut instance = instance("flora");
        // Twice: the table of the second call takes the place of the first one's.
        for _ in 0..2 {
            instance.make(&MakeArgs {
                tensor: tensor.clone(), previous: previous.window(), out: out.window(), updates: updates.clone(), total_weight: 7.0, seed: 3,
            }).unwrap();
        }

        let shapes: Vec<[[u32; 2]; 2]> = ranks.iter().map(|r| [[*r as u32, columns as u32], [rows as u32, *r as u32]]).collect();
        let bags: Vec<sdk::Bag<'_>> = factors.iter().zip(&shapes).enumerate().map(|(k, ((a, b), shapes))| sdk::Bag {
            tensors: vec![
                sdk::Tensor { name: "q.lora_A.weight", shape: &shapes[0], values: Values::F32(a) },
                sdk::Tensor { name: "q.lora_B.weight", shape: &shapes[1], values: Values::F32(b) },
            ],
            weight: facts(k).weight, num_samples: 1.0, staleness: 0,
        }).collect();
        let mut expected = vec![0f32; rows * columns];
        let shape = [rows as u32, columns as u32];
        let before = sdk::Tensor { name: "q.weight", shape: &shape, values: Values::F32(&before) };
        let call = sdk::Make { previous: before, out: ValuesMut::F32(&mut expected), updates: &bags, total_weight: 7.0, seed: 3 };
        Flora::init(&sdk::Config::default()).unwrap().make(call).unwrap();
        prop_assert_eq!(out.read_f32s(), expected);
    }
}

/// As many updates as a call takes, in ranges as a node cuts them.
#[test]
fn a_call_takes_256_updates() {
    const LEN: usize = 4096;
    let memory = Memory::f32s(&[1.5; LEN]);
    let windows = vec![memory.update(Dtype::F32, 1.0); UPDATES_MAX];
    let (previous, mut median) = (Memory::f32s(&[1.0; LEN]), instance("median"));
    assert_eq!(combine(&mut median, &windows, &previous, LEN), [2.5; LEN]);
    let more = vec![memory.update(Dtype::F32, 1.0); UPDATES_MAX + 1];
    let out = Memory::zeros(LEN * 4);
    let out = TypedWindow { window: out.window(), dtype: Dtype::F32 };
    let args = CombineArgs {
        elements: LEN as u64,
        rule: Rule::Mean,
        kind: Kind::Weights,
        updates: more,
        previous: None,
        out,
        seed: 0,
    };
    let error = median.combine(&args).unwrap_err();
    assert!(matches!(error, FunctionError::Host(HostError::Argument { .. })), "{error}");
}

#[test]
fn a_class_has_its_own_calls_only() {
    let memory = Memory::f32s(&[1.0; 8]);
    let out = Memory::zeros(32);
    let updates = [memory.update(Dtype::F32, 1.0)];
    let mut krum = instance("krum");
    let tensor = TensorPlace { name: "w".to_owned(), shape: vec![8], dtype: Dtype::F32, offset: 0 };
    let args = MakeArgs {
        tensor: tensor.clone(),
        previous: memory.window(),
        out: out.window(),
        updates: vec![],
        total_weight: 1.0,
        seed: 0,
    };
    assert!(krum.make(&args).unwrap_err().to_string().contains("class two-phase has none"));
    let args = catchment_runtime::FoldArgs {
        elements: 8,
        rule: Rule::Mean,
        acc_in: None,
        acc_out: out.window(),
        updates: updates.to_vec(),
    };
    assert!(krum.fold(&args).unwrap_err().to_string().contains("class two-phase has none"));
}
