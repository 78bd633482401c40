//! Means of what clients report: finite, whatever finite numbers they are of.

use crate::common::*;
use catchment_ledger::{Outcome, State};
use catchment_types::{Accept, EvaluationResult, ModelView, Record};
use std::collections::BTreeMap;

const MANY: &str = r#","goal":900,"deadline":null"#;

/// Values and samples of one number, one client each.
fn reported(values: &[(f64, u64)]) -> Vec<Accept> {
    let each = values.iter().zip(0..).map(|((value, num_samples), number)| Accept {
        num_samples: *num_samples,
        metrics: BTreeMap::from([("m".to_owned(), *value)]),
        ..accept(JOB, 1, number, 0)
    });
    each.collect()
}

fn mixes() -> Vec<(&'static str, Vec<(f64, u64)>)> {
    const MAX: f64 = f64::MAX;
    let mixed = |n: u64| (if n.is_multiple_of(2) { 1e308 } else { -1e308 }, n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    vec![
        ("one client's large number", vec![(1e308, 2)]),
        ("as large as there is", vec![(MAX, u64::MAX), (MAX, u64::MAX)]),
        ("both ends", vec![(-MAX, 1), (MAX, 1), (-MAX, u64::MAX), (MAX, 3)]),
        ("the smallest", vec![(5e-324, u64::MAX), (-5e-324, 1)]),
        ("many of both signs", (0..500).map(mixed).collect()),
    ]
}

/// Whether JSON has all of its numbers.
fn is_number(view: &ModelView) -> bool {
    let measured = view.evaluation.iter().flat_map(|evaluation| evaluation.metrics.values());
    view.metrics.values().chain(measured).all(|value| value.is_finite())
}

#[test]
fn the_mean_of_finite_numbers_is_finite() {
    for (what, values) in mixes() {
        let mut fixture = Fixture::running(MANY);
        let outcome = fixture.apply(Record::Accepted(reported(&values)));
        assert!(matches!(outcome, Outcome::Accepts(_)), "{what}");
        let mean = fixture.round().metrics()["m"];
        let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), (v, _)| (a.min(*v), b.max(*v)));
        assert!((least..=most).contains(&mean), "{what}: {mean}");
        let results = values.iter().zip(0..).map(|((value, num_samples), number)| EvaluationResult {
            client: client(number),
            num_samples: *num_samples,
            metrics: BTreeMap::from([("m".to_owned(), *value)]),
        });
        fixture.apply(Record::Evaluated { uid: JOB, version: 0, results: results.collect() });
        let view = fixture.job().model_view(fixture.job().model(0).unwrap());
        let measured = view.evaluation.as_ref().unwrap().metrics["m"];
        assert_eq!(measured.to_bits(), mean.to_bits(), "{what}: the same numbers in the same order");
        assert!(is_number(&view), "{what}");
        // The same in every process: one that went on from a snapshot in the middle says so, too.
        let again = State::from_snapshot(&fixture.state.to_snapshot().unwrap()).unwrap();
        assert_eq!(again.job(JOB).unwrap().round.as_ref().unwrap().metrics()["m"].to_bits(), mean.to_bits());
    }
}

#[test]
fn one_clients_number_is_its_own_mean() {
    for value in [1e308, -1e308, f64::MAX, 5e-324, 0.1] {
        let mut fixture = Fixture::running(MANY);
        fixture.apply(Record::Accepted(reported(&[(value, u64::MAX)])));
        assert_eq!(fixture.round().metrics()["m"].to_bits(), value.to_bits());
    }
}

/// Older releases committed such sums. They are not numbers in JSON.
#[test]
fn a_sum_that_overflowed_in_an_older_release_is_not_shown() {
    let mut fixture = Fixture::running(r#","goal":1,"deadline":null"#);
    fixture.accepted(1, 1);
    fixture.fold_pending();
    let mut model = commit_of(fixture.job(), fixture.round());
    model.metrics = [("a", f64::INFINITY), ("b", f64::NAN), ("c", f64::NEG_INFINITY), ("d", 0.5)]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
    assert_eq!(fixture.commit_as(model), Outcome::Done);
    let view = fixture.job().model_view(fixture.job().model(1).unwrap());
    assert_eq!(view.metrics, BTreeMap::from([("d".to_owned(), 0.5)]));
    assert!(is_number(&view));
}
