//! Elements of several types on their way into a slab, and those that could not be computed with.

use super::tests::{receive, write};
use super::*;
use catchment_types::{Header, Layout, Limits, Rule, TensorRule};
use proptest::prelude::*;

/// An F32 model's update whose tensors are of several types, as training in mixed precision leaves them.
const MIXED: &str = r#"{"w":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},
    "n":{"dtype":"I64","shape":[],"data_offsets":[6,14]},
    "e":{"dtype":"F16","shape":[0],"data_offsets":[14,14]},
    "b":{"dtype":"F8_E5M2","shape":[70],"data_offsets":[14,84]},
    "v":{"dtype":"F32","shape":[1],"data_offsets":[84,88]},
    "u":{"dtype":"F16","shape":[300],"data_offsets":[88,688]}}"#;

fn mixed(nan: Option<usize>) -> (Fit, Vec<u8>, Vec<f32>) {
    let model = MIXED.replace("BF16", "F32").replace("F8_E5M2", "F32").replace("F16", "F32");
    let mut at = 0;
    let sizes = [("w", 12), ("n", 8), ("e", 0), ("b", 280), ("v", 4), ("u", 1200)];
    let entries: Vec<String> = sizes
        .iter()
        .map(|(name, bytes)| {
            let part = model.split(&format!("\"{name}\":")).nth(1).unwrap().split("data_offsets").next().unwrap();
            at += bytes;
            format!("\"{name}\":{part}data_offsets\":[{},{at}]}}", at - bytes)
        })
        .collect();
    let model = Header::parse(format!("{{{}}}", entries.join(",")).as_bytes(), &Limits::default()).unwrap();
    let update = Header::parse(MIXED.as_bytes(), &Limits::default()).unwrap();
    let layout = Layout::new(&model, &[]).unwrap();
    let dtypes = [Dtype::Bf16, Dtype::F16, Dtype::F8E5M2];
    let fit = Fit::new(&layout, &update, &dtypes).unwrap();
    let halves: Vec<half::f16> = (0..300).map(|i| half::f16::from_f32(i as f32 / 3.0 - 50.0)).collect();
    let mut data = Vec::new();
    data.extend([1.5f32, -2.0, 3e38].iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()));
    data.extend([0xff; 8]);
    // 2^-16 · i and so on: subnormals, normals, negative ones.
    data.extend((0..70u8).map(|i| if i % 2 == 0 { i } else { i | 0x80 }));
    data.extend(0.1f32.to_le_bytes());
    data.extend(halves.iter().flat_map(|x| x.to_le_bytes()));
    if let Some(at) = nan {
        data[14 + at] = 0x7d;
    }
    // Where the job's layout has them: each tensor at a multiple of 64.
    let mut expected = vec![0f32; 64 + 128 + 64 + 320];
    expected[..3].copy_from_slice(&[1.5, -2.0, half::bf16::from_f32(3e38).to_f32()]);
    for i in 0..70u8 {
        let (exponent, fraction) = (i32::from(i >> 2), f32::from(i & 3) / 4.0);
        let x = if exponent == 0 { fraction * 2f32.powi(-14) } else { (1.0 + fraction) * 2f32.powi(exponent - 15) };
        expected[64 + usize::from(i)] = if i % 2 == 0 { x } else { -x };
    }
    expected[192] = 0.1;
    for (place, x) in expected[256..].iter_mut().zip(&halves) {
        *place = x.to_f32();
    }
    (fit, data, expected)
}

/// What had come is taken to other memory, and the rest comes there.
fn moved(fit: &Fit, data: &[u8], cut: usize) -> Result<Vec<u8>, Problem> {
    let (mut before, mut after) = (vec![0xaa; fit.slab_bytes as usize], vec![0xbb; fit.slab_bytes as usize]);
    let mut scatter = Scatter::new(fit.clone());
    scatter.feed(&data[..cut], &mut before)?;
    for place in scatter.places() {
        after[place.clone()].copy_from_slice(&before[place]);
    }
    let mut scatter = Scatter::resumed(fit.clone(), None, scatter.position()).expect("so much has come");
    scatter.feed(&data[cut..], &mut after)?;
    scatter.finish(&mut after)?;
    Ok(after)
}

/// Wherever it was cut: between tensors, in the middle of an element that is widened, in one that is not stored.
#[test]
fn what_has_come_goes_on_in_other_memory() {
    let (fit, data, _) = mixed(None);
    let whole = write(&fit, &data, 7).unwrap();
    for cut in 0..=data.len() {
        assert_eq!(moved(&fit, &data, cut).unwrap(), whole, "cut at {cut}");
    }
    assert!(Scatter::resumed(fit.clone(), None, data.len() as u64 + 1).is_none());
    // A number that is none is named after the break as before.
    let (fit, data, _) = mixed(Some(40));
    for cut in [20, 53, 54] {
        assert_eq!(moved(&fit, &data, cut).unwrap_err().extra["index"], 40, "cut at {cut}");
    }
}

proptest! {
    #[test]
    fn several_types_become_one_whatever_the_cut(step in 1usize..200, cut in 0usize..=688, sink in 1usize..9) {
        let (fit, data, expected) = mixed(None);
        let expected: Vec<u8> = expected.iter().flat_map(|x| x.to_le_bytes()).collect();
        prop_assert_eq!(&write(&fit, &data, step).unwrap(), &expected);
        let (received, seen) = receive(&fit, &data, step, sink).unwrap();
        prop_assert_eq!(&received, &expected);
        prop_assert_eq!(&seen, &data, "what is digested is what was sent");
        // Broken off and gone on with.
        let mut memory = vec![0xaa; fit.slab_bytes as usize];
        let mut scatter = Scatter::new(fit.clone());
        scatter.feed(&data[..cut], &mut memory).unwrap();
        for chunk in data[cut..].chunks(step) {
            scatter.feed(chunk, &mut memory).unwrap();
        }
        scatter.finish(&mut memory).unwrap();
        prop_assert_eq!(&memory, &expected);
    }

    #[test]
    fn a_nan_of_a_narrow_type_is_named(step in 1usize..90, at in 0usize..70) {
        let (fit, data, _) = mixed(Some(at));
        let problem = write(&fit, &data, step).unwrap_err();
        prop_assert_eq!((problem.code.as_str(), problem.extra["index"].as_u64()), ("not_finite", Some(at as u64)));
        prop_assert_eq!(problem.extra["tensor"].as_str(), Some("b"));
    }
}

/// They would be rounded without a word.
#[test]
fn whole_numbers_that_f64_does_not_hold_are_refused_where_they_are_used() {
    let header = |dtype: &str| {
        let text = format!(r#"{{"n":{{"dtype":"{dtype}","shape":[3],"data_offsets":[0,24]}}}}"#);
        Header::parse(text.as_bytes(), &Limits::default()).unwrap()
    };
    let most = (1i64 << 53) - 1;
    for (dtype, bad) in [("I64", most + 1), ("I64", -most - 1), ("I64", i64::MIN), ("U64", most + 1), ("U64", -1)] {
        for rule in [Rule::Max, Rule::Mean] {
            let rules = [TensorRule { pattern: "n".to_owned(), rule }];
            let layout = Layout::new(&header(dtype), &rules).unwrap();
            // The bounds of exact sums may be larger, or smaller.
            for bound in [None, Some(1e30)] {
                let fit = Fit::new(&layout, &header(dtype), &[]).unwrap().within(&layout, bound);
                let data = |last: i64| [0, most, last].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
                assert!(write(&fit, &data(most - 1), 5).is_ok());
                let problem = write(&fit, &data(bad), 5).unwrap_err();
                let place = (problem.extra["tensor"].as_str(), problem.extra["index"].as_u64());
                assert_eq!((problem.code.as_str(), place), ("out_of_range", (Some("n"), Some(2))), "{problem}");
                assert!(problem.detail.contains("2^53 - 1") && problem.detail.contains("`keep`"), "{problem}");
            }
        }
        let kept = Layout::new(&header(dtype), &[]).unwrap();
        let fit = Fit::new(&kept, &header(dtype), &[]).unwrap();
        assert!(write(&fit, &[bad; 3].map(i64::to_le_bytes).concat(), 5).is_ok(), "what is kept is not computed with");
    }
}

#[test]
fn numbers_that_their_weight_makes_too_small_are_refused() {
    let text = br#"{"w":{"dtype":"F64","shape":[2],"data_offsets":[0,16]},
        "m":{"dtype":"F64","shape":[1],"data_offsets":[16,24]},"f":{"dtype":"F32","shape":[1],"data_offsets":[24,28]}}"#;
    let header = Header::parse(text, &Limits::default()).unwrap();
    let rules = [TensorRule { pattern: "m".to_owned(), rule: Rule::Max }];
    let layout = Layout::new(&header, &rules).unwrap();
    let fit = Fit::new(&layout, &header, &[]).unwrap();
    let data = |w: f64| [&[1.0, w, 1e-300].map(f64::to_le_bytes).concat()[..], &1e-45f32.to_le_bytes()].concat();
    assert!(write(&fit, &data(1e-300), 7).is_ok(), "without a bound there is none");
    let fit = fit.at_least(&layout, 2e-278);
    assert!(write(&fit, &data(2e-278), 7).is_ok() && write(&fit, &data(-0.0), 7).is_ok());
    let problem = write(&fit, &data(-1e-288), 7).unwrap_err();
    assert_eq!((problem.code.as_str(), problem.extra["index"].as_u64()), ("out_of_range", Some(1)), "{problem}");
    assert!(problem.detail.contains("2e-278"), "{problem}");
}
