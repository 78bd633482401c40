//! Krum, run natively, against its definition.

use catchment_krum::Krum;
use catchment_sdk::{Choose, Combine, Config, Kind, Measure, Rule, TwoPhase, Update, Values, ValuesMut};
use proptest::prelude::*;

fn updates(values: &[Vec<f64>]) -> Vec<Update<'_>> {
    let update = |v| Update { values: Values::F64(v), weight: 5.0, num_samples: 1.0, staleness: 0 };
    values.iter().map(|v| update(v)).collect()
}

/// Measures in two ranges, on two lists, as a host would.
fn choose(config: &str, values: &[Vec<f64>]) -> Result<Vec<f64>, String> {
    let function = Krum::init(&Config::parse(config.as_bytes()).unwrap())?;
    let scalars = function.scalars(values.len());
    let mut sums = vec![0.0; 2 * scalars];
    let half = values[0].len() / 2;
    for (sums, range) in sums.chunks_mut(scalars).zip([0..half, half..values[0].len()]) {
        let parts: Vec<Vec<f64>> = values.iter().map(|v| v[range.clone()].to_vec()).collect();
        let (updates, elements) = (updates(&parts), range.len());
        function.measure(Measure {
            rule: Rule::Mean,
            kind: Kind::Weights,
            elements,
            updates: &updates,
            previous: None,
            sums,
        });
    }
    let mut weights = vec![0.0; values.len()];
    function.choose(Choose { updates: &updates(values), sums: &sums, scalars, weights: &mut weights, seed: 0 })?;
    Ok(weights)
}

/// The chosen, by definition.
fn expected(values: &[Vec<f64>], byzantine: usize, select: usize) -> Vec<usize> {
    let n = values.len();
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    let score = |i: usize| {
        let mut others: Vec<f64> = (0..n).filter(|j| *j != i).map(|j| distance(&values[i], &values[j])).collect();
        others.sort_by(f64::total_cmp);
        others[..n - byzantine - 2].iter().sum::<f64>()
    };
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| score(*a).total_cmp(&score(*b)));
    order.truncate(select);
    order.sort_unstable();
    order
}

proptest! {
    #[test]
    fn it_chooses_as_its_definition_says(
        values in (1usize..700).prop_flat_map(|len| prop::collection::vec(prop::collection::vec(-9.0f64..9.0, len), 7..14)),
        byzantine in 0usize..=2,
        select in 1usize..5,
    ) {
        let weights = choose(&format!(r#"{{"byzantine":{byzantine},"select":{select}}}"#), &values).unwrap();
        let chosen: Vec<usize> = (0..values.len()).filter(|i| weights[*i] > 0.0).collect();
        prop_assert_eq!(chosen, expected(&values, byzantine, select));
    }
}

#[test]
fn a_wrong_update_is_never_chosen() {
    let mut values: Vec<Vec<f64>> = (0..9).map(|i| vec![i as f64 / 10.0; 50]).collect();
    values[4] = vec![1e9; 50];
    values[7] = vec![-1e9; 50];
    let weights = choose(r#"{"byzantine":2,"select":3}"#, &values).unwrap();
    assert_eq!((weights[4], weights[7], weights.iter().sum::<f64>()), (0.0, 0.0, 3.0));
    assert_eq!(
        choose(r#"{"byzantine":4}"#, &values).unwrap_err(),
        "with config.byzantine 4 a round needs 11 updates, this one has 9"
    );
}

#[test]
fn the_chosen_are_averaged_alike() {
    let function = Krum::init(&Config::default()).unwrap();
    let (a, b) = (vec![1.0; 700], vec![2.0; 700]);
    let mut chosen = updates(&[]);
    for (values, weight) in [(&a, 1.0), (&b, 1.0)] {
        chosen.push(Update { values: Values::F64(values), weight, num_samples: 1.0, staleness: 0 });
    }
    let mut out = vec![0f32; 700];
    let call = Combine {
        rule: Rule::Mean,
        kind: Kind::Delta,
        updates: &chosen,
        previous: Some(Values::F64(&b)),
        out: ValuesMut::F32(&mut out),
        seed: 0,
    };
    function.combine(call).unwrap();
    assert_eq!(out, [3.5; 700]);
}
