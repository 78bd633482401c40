//! The real function as wasm against the same code run natively, bit for bit.

mod common;

use catchment_fedavg::FedAvg;
use catchment_runtime::{
    Dtype, FinalizeArgs, FoldArgs, FunctionError, Kind, Limits, MergeArgs, Rule, TypedWindow, UpdateWindow,
};
use catchment_sdk::{self as sdk, Additive, Element, Values, ValuesMut};
use common::{Memory, fedavg, numbers, runtime};
use proptest::prelude::*;
use serde_json::json;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

/// One compiled function for all cases.
fn function() -> &'static catchment_runtime::Function {
    static FUNCTION: OnceLock<catchment_runtime::Function> = OnceLock::new();
    FUNCTION.get_or_init(|| fedavg(&runtime()))
}

fn native() -> FedAvg {
    FedAvg::init(&sdk::Config::parse(b"{}").unwrap()).unwrap()
}

/// Numbers of one dtype, natively and in a window.
struct Numbers {
    dtype: Dtype,
    raw: Vec<u8>,
    memory: Memory,
}

macro_rules! with_dtypes {
    ($call:ident!($($args:tt)*)) => {
        $call!($($args)*; F64 f64, F32 f32, Bf16 sdk::Bf16, F16 sdk::F16, F8E4M3 sdk::F8E4M3, F8E5M2 sdk::F8E5M2,
            I64 i64, I32 i32, I16 i16, I8 i8, U64 u64, U32 u32, U16 u16, U8 u8, Bool sdk::Bool)
    };
}

impl Numbers {
    fn new(dtype: Dtype, from: &[f64]) -> Self {
        macro_rules! raw {
            ($dtype:expr, $from:expr; $($variant:ident $type:ty),*) => {
                match $dtype {
                    $(Dtype::$variant => {
                        let typed: Vec<$type> = $from.iter().map(|&x| Element::from_f64(x)).collect();
                        zerocopy::IntoBytes::as_bytes(&typed[..]).to_vec()
                    })*
                }
            };
        }
        let raw = with_dtypes!(raw!(dtype, from));
        let memory = Memory::new(&raw);
        Self { dtype, raw, memory }
    }

    fn values(&self) -> Values<'_> {
        macro_rules! values {
            ($dtype:expr, $raw:expr; $($variant:ident $type:ty),*) => {
                match $dtype {
                    $(Dtype::$variant => Values::$variant(zerocopy::FromBytes::ref_from_bytes($raw).unwrap()),)*
                }
            };
        }
        with_dtypes!(values!(self.dtype, &self.raw))
    }

    fn values_mut(&mut self) -> ValuesMut<'_> {
        macro_rules! values {
            ($dtype:expr, $raw:expr; $($variant:ident $type:ty),*) => {
                match $dtype {
                    $(Dtype::$variant => ValuesMut::$variant(zerocopy::FromBytes::mut_from_bytes($raw).unwrap()),)*
                }
            };
        }
        with_dtypes!(values!(self.dtype, &mut self.raw[..]))
    }

    /// Numbers from `start` on.
    fn window(&self, start: usize, count: usize) -> catchment_runtime::Window<BorrowedFd<'_>> {
        let bytes = self.dtype.bytes() as u64;
        self.memory.range(start as u64 * bytes, count as u64 * bytes)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Fold, merge and finalise of every dtype, mixed, whole and in ranges.
    #[test]
    fn wasm_is_native_to_the_bit(
        blocks in 1usize..300,
        tail in 0usize..8,
        kinds in prop::collection::vec(prop::sample::select(Dtype::ALL), 1..=16),
        out_dtype in prop::sample::select(Dtype::ALL),
        rule in prop::sample::select(vec![Rule::Mean, Rule::Max]),
        kind in prop::sample::select(vec![Kind::Weights, Kind::Delta]),
        seed in any::<u64>(),
        cut in 0usize..300,
    ) {
        let len = blocks * 8 + tail;
        let cut = cut.min(blocks) * 8;
        let scale = 3.0;
        let stretched = |seed: u64| numbers(seed, len).iter().map(|x| x * scale).collect::<Vec<f64>>();
        let updates: Vec<Numbers> =
            kinds.iter().zip(1..).map(|(&dtype, n)| Numbers::new(dtype, &stretched(seed ^ n))).collect();
        let weights: Vec<f64> = numbers(seed ^ 55, kinds.len()).iter().map(|x| x.abs() + 0.1).collect();
        let acc = Numbers::new(Dtype::F64, &stretched(seed ^ 66));
        let previous = Numbers::new(out_dtype, &stretched(seed ^ 77));
        let total_weight = weights.iter().sum();

        // Natively.
        let list: Vec<sdk::Update<'_>> = updates
            .iter()
            .zip(&weights)
            .map(|(u, &weight)| sdk::Update { values: u.values(), weight, num_samples: 1.0, staleness: 0 })
            .collect();
        let Values::F64(acc_in) = acc.values() else { unreachable!() };
        let mut folded = vec![f64::NAN; len];
        let acc_in = sdk::Partial::F64(acc_in);
        let acc_out = sdk::PartialMut::F64(&mut folded);
        native().fold(sdk::Fold { rule, acc_in: Some(acc_in), acc_out, updates: &list });
        let mut merged = vec![f64::NAN; len];
        let partials = [acc_in, sdk::Partial::F64(&folded)];
        native().merge(sdk::Merge { rule, acc_in: None, acc_out: sdk::PartialMut::F64(&mut merged), partials: &partials });
        let mut out = Numbers::new(out_dtype, &vec![0.0; len]);
        let finalize = sdk::Finalize {
            rule,
            kind,
            partial: sdk::Partial::F64(&merged),
            previous: Some(previous.values()),
            out: out.values_mut(),
            total_weight,
            updates: 3,
            seed,
        };
        native().finalize(finalize).unwrap();

        // As wasm, in two ranges.
        let wasm_folded = Memory::zeros(len * 8);
        let wasm_merged = Memory::zeros(len * 8);
        let wasm_out = Memory::zeros(len * out_dtype.bytes());
        let mut instance = function().instantiate(&json!({}), Limits::default()).unwrap();
        for (start, count) in [(0, cut), (cut, len - cut)].into_iter().filter(|(_, count)| *count > 0) {
            let f64s = |memory| range_of(memory, start, count, 8);
            let windows: Vec<UpdateWindow<BorrowedFd<'_>>> = updates
                .iter()
                .zip(&weights)
                .map(|(u, &weight)| UpdateWindow {
                    window: u.window(start, count),
                    dtype: u.dtype,
                    weight,
                    num_samples: 1.0,
                    staleness: 0,
                })
                .collect();
            instance.fold(&FoldArgs {
                elements: count as u64,
                rule,
                acc_in: Some(acc.window(start, count)),
                acc_out: f64s(&wasm_folded),
                updates: windows.clone(),
            }).unwrap();
            instance.merge(&MergeArgs {
                elements: count as u64,
                rule,
                acc_in: None,
                acc_out: f64s(&wasm_merged),
                partials: vec![acc.window(start, count), f64s(&wasm_folded)],
            }).unwrap();
            instance.finalize(&FinalizeArgs {
                elements: count as u64,
                rule,
                kind,
                partial: f64s(&wasm_merged),
                previous: Some(TypedWindow { window: previous.window(start, count), dtype: out_dtype }),
                out: TypedWindow { window: range_of(&wasm_out, start, count, out_dtype.bytes()), dtype: out_dtype },
                total_weight,
                updates: 3,
                seed,
            }).unwrap();
        }
        prop_assert_eq!(bits(&wasm_folded.read_f64s()), bits(&folded), "fold");
        prop_assert_eq!(bits(&wasm_merged.read_f64s()), bits(&merged), "merge");
        prop_assert_eq!(wasm_out.bytes(), out.raw, "finalize");
    }
}

fn range_of(memory: &Memory, start: usize, count: usize, bytes: usize) -> catchment_runtime::Window<BorrowedFd<'_>> {
    memory.range((start * bytes) as u64, (count * bytes) as u64)
}

fn bits(numbers: &[f64]) -> Vec<u64> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn it_says_what_it_is() {
    let description = function().description();
    assert_eq!((description.name.as_str(), description.class.as_str()), ("fedavg", "additive"));
    assert_eq!(description.config[0].name, "weighting");
    let json = serde_json::to_value(description).unwrap();
    assert_eq!(json["class"], "additive");
    assert_eq!(function().digest(), blake3::hash(&common::built("fedavg")).to_hex().as_str());
}

#[test]
fn configurations_are_checked_by_the_function() {
    let refusal = |config| match function().check_config(&config) {
        Err(FunctionError::Refused { reason }) => reason,
        other => panic!("expected a refusal, got {other:?}"),
    };
    function().check_config(&json!({})).unwrap();
    function().check_config(&json!(null)).unwrap();
    function().check_config(&json!({"weighting": "uniform"})).unwrap();
    assert_eq!(refusal(json!({"wieghting": "x"})), "config: unknown field `wieghting`; known are `weighting`");
    assert_eq!(refusal(json!({"weighting": 3})), "config.weighting: expected one of `weight`, `uniform`, found 3");
    assert_eq!(refusal(json!([1])), "config: expected an object, found an array");
    assert!(refusal(json!({"weighting": "w".repeat(300_000)})).contains("at most"));
}

/// Many instances on several threads, all over the same read-only slab.
#[test]
fn instances_run_in_parallel_over_one_slab() {
    const LEN: usize = 64 * 1024;
    let slab = Memory::f32s(&numbers(1, LEN).iter().map(|&x| x as f32).collect::<Vec<f32>>());
    let slab = slab.read_only();
    let expected: Vec<f64> = slab.read_f32s().iter().map(|&x| f64::from(x) * 2.0 + f64::from(x)).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    let mut instance = function().instantiate(&json!({}), Limits::default()).unwrap();
                    let out = Memory::zeros(LEN * 8);
                    let updates = [slab.update(Dtype::F32, 2.0), slab.update(Dtype::F32, 1.0)];
                    let args = FoldArgs {
                        elements: LEN as u64,
                        rule: Rule::Mean,
                        acc_in: None,
                        acc_out: out.window(),
                        updates: updates.to_vec(),
                    };
                    let stats = instance.fold(&args).unwrap();
                    assert!(stats.cpu_ns > 0 && stats.wall_ns > 0);
                    assert_eq!(out.read_f64s(), expected);
                }
            });
        }
    });
}
