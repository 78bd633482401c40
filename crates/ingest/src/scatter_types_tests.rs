//! Elements of several types on their way into a slab.

use super::tests::{receive, write};
use super::*;
use catchment_types::{Dtype, Header, Layout, Limits};
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
