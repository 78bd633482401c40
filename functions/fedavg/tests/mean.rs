//! Federated averaging, run natively, against the mean written down plainly.

use catchment_fedavg::FedAvg;
use catchment_sdk::{
    Additive, Bf16, Config, Element, Exact, F8E4M3, F16, Finalize, Fold, Kind, Merge, Partial, PartialMut, Rule,
    Update, Values, ValuesMut,
};
use proptest::prelude::*;

fn fedavg(config: &str) -> FedAvg {
    FedAvg::init(&Config::parse(config.as_bytes()).unwrap()).unwrap()
}

fn update(values: &[f64], weight: f64) -> Update<'_> {
    Update { values: Values::F64(values), weight, num_samples: weight, staleness: 0 }
}

/// Folds in batches of `batch`.
fn fold(function: FedAvg, rule: Rule, updates: &[Update<'_>], batch: usize) -> Vec<f64> {
    let len = updates[0].values.len();
    let mut acc: Option<Vec<f64>> = None;
    for updates in updates.chunks(batch) {
        let mut next = vec![f64::NAN; len];
        function.fold(Fold {
            rule,
            acc_in: acc.as_deref().map(Partial::F64),
            acc_out: PartialMut::F64(&mut next),
            updates,
        });
        acc = Some(next);
    }
    acc.unwrap()
}

fn finalize(function: FedAvg, rule: Rule, partial: &[f64], updates: &[Update<'_>]) -> Vec<f64> {
    let mut out = vec![f64::NAN; partial.len()];
    function
        .finalize(Finalize {
            rule,
            kind: Kind::Weights,
            partial: Partial::F64(partial),
            previous: None,
            out: ValuesMut::F64(&mut out),
            total_weight: updates.iter().map(|u| u.weight).sum(),
            updates: updates.len() as u64,
            seed: 0,
        })
        .unwrap();
    out
}

/// The weighted mean of coordinate `i`, by definition.
fn mean(updates: &[Update<'_>], i: usize) -> f64 {
    let sum: f64 = updates.iter().map(|u| u.values.get(i) * u.weight).sum();
    sum / updates.iter().map(|u| u.weight).sum::<f64>()
}

fn close(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * b.abs().max(1.0)
}

#[test]
fn configuration() {
    let refusal = |json: &str| FedAvg::init(&Config::parse(json.as_bytes()).unwrap()).unwrap_err();
    assert_eq!(
        refusal(r#"{"weighting": "median"}"#),
        "config.weighting: expected one of `weight`, `uniform`, found \"median\""
    );
    let exact = |weight_max| {
        let config = Config::parse(br#"{"weighting": "uniform"}"#).unwrap();
        FedAvg::init(&config.with_exact(Some(Exact { exponent: 40, weight_max })))
    };
    assert!(exact(1.0).is_ok() && exact(0.5).unwrap_err().contains("over exact.weight_max of 0.5"));
    assert_eq!(fedavg("{}"), fedavg(r#"{"weighting": "weight"}"#));
    assert_ne!(fedavg("{}"), fedavg(r#"{"weighting": "uniform"}"#));
}

#[test]
fn uniform_weighting_counts_clients() {
    let updates = [update(&[1.0], 100.0), update(&[2.0], 1.0), update(&[6.0], 0.5)];
    let function = fedavg(r#"{"weighting": "uniform"}"#);
    let partial = fold(function, Rule::Mean, &updates, 16);
    assert_eq!(finalize(function, Rule::Mean, &partial, &updates), [3.0]);
}

#[test]
fn max_is_the_largest_of_any_client() {
    let updates = [update(&[1.0, -9.0], 100.0), update(&[2.0, -8.0], 1.0), update(&[-6.0, -7.0], 0.5)];
    let partial = fold(fedavg("{}"), Rule::Max, &updates, 2);
    assert_eq!(finalize(fedavg("{}"), Rule::Max, &partial, &updates), [2.0, -7.0]);
}

#[test]
fn deltas_are_added_to_the_previous_model() {
    let finalize = |previous: Option<Values<'_>>| {
        let mut out = [0f32; 2];
        let call = Finalize {
            rule: Rule::Mean,
            kind: Kind::Delta,
            partial: Partial::F64(&[3.0, -6.0]),
            previous,
            out: ValuesMut::F32(&mut out),
            total_weight: 3.0,
            updates: 2,
            seed: 0,
        };
        fedavg("{}").finalize(call).map(|()| out)
    };
    assert_eq!(finalize(None).unwrap_err(), "deltas need the previous model");
    assert_eq!(finalize(Some(Values::F32(&[10.0, 10.0]))), Ok([11.0, 8.0]));
}

#[test]
fn no_weight_no_mean() {
    let mut out = [0f64; 1];
    let refused = fedavg("{}").finalize(Finalize {
        rule: Rule::Mean,
        kind: Kind::Weights,
        partial: Partial::F64(&[0.0]),
        previous: None,
        out: ValuesMut::F64(&mut out),
        total_weight: 0.0,
        updates: 0,
        seed: 0,
    });
    assert!(refused.unwrap_err().contains("positive"));
}

fn clients() -> impl Strategy<Value = (Vec<Vec<f64>>, Vec<f64>)> {
    (1usize..40, 1usize..60).prop_flat_map(|(clients, len)| {
        let values = prop::collection::vec(prop::collection::vec(-100.0f64..100.0, len), clients);
        (values, prop::collection::vec(0.001f64..1e4, clients))
    })
}

fn updates<'a>(values: &'a [Vec<f64>], weights: &[f64]) -> Vec<Update<'a>> {
    values.iter().zip(weights).map(|(v, &w)| update(v, w)).collect()
}

proptest! {
    #[test]
    fn it_is_the_weighted_mean((values, weights) in clients(), batch in 1usize..=16) {
        let updates = updates(&values, &weights);
        let partial = fold(fedavg("{}"), Rule::Mean, &updates, batch);
        for (i, found) in finalize(fedavg("{}"), Rule::Mean, &partial, &updates).into_iter().enumerate() {
            prop_assert!(close(found, mean(&updates, i), 1e-12), "coordinate {i}: {found}");
        }
        prop_assert_eq!(partial, fold(fedavg("{}"), Rule::Mean, &updates, 16), "batching changes no bit");
    }

    /// Leaves of any size under one top, merged in any order, give what one flat fold gives.
    #[test]
    fn a_tree_equals_flat((values, weights) in clients(), leaf in 1usize..8, rotate in 0usize..16) {
        let updates = updates(&values, &weights);
        for rule in [Rule::Mean, Rule::Max] {
            let flat = fold(fedavg("{}"), rule, &updates, 16);
            let mut leaves: Vec<Vec<f64>> =
                updates.chunks(leaf.max(updates.len().div_ceil(16))).map(|u| fold(fedavg("{}"), rule, u, 16)).collect();
            let turn = rotate % leaves.len();
            leaves.rotate_left(turn);
            let partials: Vec<Partial<'_>> = leaves.iter().map(|l| Partial::F64(l)).collect();
            let mut top = vec![f64::NAN; flat.len()];
            fedavg("{}").merge(Merge { rule, acc_in: None, acc_out: PartialMut::F64(&mut top), partials: &partials });
            let scale: f64 = weights.iter().sum();
            for (tree, flat) in top.iter().zip(&flat) {
                prop_assert!(close(tree / scale, flat / scale, 1e-12));
            }
        }
    }

    /// Every float dtype in and out: the mean is that of the stored numbers, rounded once.
    #[test]
    fn every_float_dtype(raw in prop::collection::vec(-2.0f64..2.0, 1..40), weight in 0.1f64..9.0) {
        macro_rules! check {
            ($($variant:ident: $type:ty),*) => {$({
                let one: Vec<$type> = raw.iter().map(|&x| Element::from_f64(x)).collect();
                let two: Vec<$type> = raw.iter().map(|&x| Element::from_f64(1.0 - x)).collect();
                let updates = [
                    Update { values: Values::$variant(&one), weight, num_samples: 1.0, staleness: 0 },
                    Update { values: Values::$variant(&two), weight: 1.0, num_samples: 1.0, staleness: 0 },
                ];
                let partial = fold(fedavg("{}"), Rule::Mean, &updates, 16);
                let mut out: Vec<$type> = vec![Element::from_f64(0.0); raw.len()];
                fedavg("{}").finalize(Finalize {
                    rule: Rule::Mean,
                    kind: Kind::Weights,
                    partial: Partial::F64(&partial),
                    previous: None,
                    out: ValuesMut::$variant(&mut out),
                    total_weight: weight + 1.0,
                    updates: 2,
                    seed: 0,
                }).unwrap();
                for (i, found) in out.iter().enumerate() {
                    let exact = (weight * one[i].to_f64() + two[i].to_f64()) / (weight + 1.0);
                    prop_assert_eq!(found.to_f64(), <$type as Element>::from_f64(exact).to_f64());
                }
            })*};
        }
        check!(F64: f64, F32: f32, Bf16: Bf16, F16: F16, F8E4M3: F8E4M3);
    }
}
