//! The median and the trimmed mean, run natively, against their definitions.

use catchment_median::Median;
use catchment_sdk::{Combine, Config, CoordinateWise, Kind, Rule, Update, Values, ValuesMut};
use proptest::prelude::*;

fn combine(config: &str, rule: Rule, kind: Kind, values: &[Vec<f64>], previous: Option<&[f64]>) -> Vec<f64> {
    let function = Median::init(&Config::parse(config.as_bytes()).unwrap()).unwrap();
    let update = |v| Update { values: Values::F64(v), weight: 5.0, num_samples: 1.0, staleness: 0 };
    let updates: Vec<Update<'_>> = values.iter().map(|v| update(v)).collect();
    let mut out = vec![f64::NAN; values[0].len()];
    let (previous, target) = (previous.map(Values::F64), ValuesMut::F64(&mut out));
    function.combine(Combine { rule, kind, updates: &updates, previous, out: target, seed: 0 }).unwrap();
    out
}

proptest! {
    #[test]
    fn it_is_what_its_definition_says(
        (values, len) in (1usize..200).prop_flat_map(|len| (prop::collection::vec(prop::collection::vec(-9.0f64..9.0, len), 1..40), Just(len))),
        trim in 0.0f64..0.49,
    ) {
        let (n, previous) = (values.len(), vec![100.0; len]);
        let sorted = |i: usize| {
            let mut column: Vec<f64> = values.iter().map(|v| v[i]).collect();
            column.sort_by(f64::total_cmp);
            column
        };
        let median = combine("{}", Rule::Mean, Kind::Weights, &values, None);
        let trimmed = combine(&format!(r#"{{"trim":{trim}}}"#), Rule::Mean, Kind::Delta, &values, Some(&previous));
        let largest = combine("{}", Rule::Max, Kind::Weights, &values, None);
        for i in 0..len {
            let column = sorted(i);
            prop_assert_eq!(median[i], if n % 2 == 1 { column[n / 2] } else { (column[n / 2 - 1] + column[n / 2]) / 2.0 });
            let kept = &column[(trim * n as f64) as usize..n - (trim * n as f64) as usize];
            let mean = kept.iter().sum::<f64>() / kept.len() as f64;
            prop_assert!((trimmed[i] - 100.0 - mean).abs() < 1e-11);
            prop_assert_eq!(largest[i], column[n - 1]);
        }
        let mut turned = values.clone();
        turned.reverse();
        prop_assert_eq!(combine("{}", Rule::Mean, Kind::Weights, &turned, None), median);
    }
}
