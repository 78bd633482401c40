//! FLoRA, run natively, against the products written down plainly.

use catchment_flora::Flora;
use catchment_sdk::{Bag, Config, Make, Tensor, Values, ValuesMut, Whole};

/// Numbers that look random, from -1 to 1.
fn numbers(seed: u64, len: usize) -> Vec<f64> {
    let next =
        |i: u64| (seed * 1_000_003 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 11;
    (0..len as u64).map(|i| next(i) as f64 / (1u64 << 52) as f64 - 1.0).collect()
}

#[test]
fn it_adds_the_mean_of_the_products() {
    const ROWS: usize = 37;
    const COLUMNS: usize = 9001;
    // One of them has factors without numbers, which say the same as none.
    let ranks = [4usize, 1, 0, 64, 16];
    let weights = [1.0, 2.5, 7.0, 0.125, 30.0];
    let total: f64 = weights.iter().sum();
    let factors: Vec<(Vec<f64>, Vec<f64>)> =
        ranks.iter().zip(1..).map(|(r, k)| (numbers(k, r * COLUMNS), numbers(100 + k, ROWS * r))).collect();
    let shapes: Vec<[[u32; 2]; 2]> =
        ranks.iter().map(|r| [[*r as u32, COLUMNS as u32], [ROWS as u32, *r as u32]]).collect();
    let before = numbers(7, ROWS * COLUMNS);
    let mut updates: Vec<Bag<'_>> = Vec::new();
    for (((a, b), shapes), weight) in factors.iter().zip(&shapes).zip(weights) {
        let tensor = |name, shape, values| Tensor { name, shape, values: Values::F64(values) };
        let tensors = vec![
            tensor("base_model.model.q.lora_B.weight", &shapes[1][..], b),
            tensor("other.lora_A.weight", &[], &before[..1]),
            tensor("base_model.model.q.lora_A.weight", &shapes[0][..], a),
        ];
        updates.push(Bag { tensors, weight, num_samples: 1.0, staleness: 0 });
    }
    // One client has no adapter for this layer.
    updates.push(Bag { tensors: Vec::new(), weight: 0.5, num_samples: 1.0, staleness: 0 });
    let total = total + 0.5;
    for alpha in [None, Some(16.0)] {
        let config = alpha.map_or("{}".to_owned(), |alpha| format!(r#"{{"alpha":{alpha}}}"#));
        let function = Flora::init(&Config::parse(config.as_bytes()).unwrap()).unwrap();
        let mut out = vec![f64::NAN; ROWS * COLUMNS];
        let shape = [ROWS as u32, COLUMNS as u32];
        let previous = Tensor { name: "q.weight", shape: &shape, values: Values::F64(&before) };
        let call = Make { previous, out: ValuesMut::F64(&mut out), updates: &updates, total_weight: total, seed: 0 };
        function.make(call).unwrap();
        for (at, found) in out.iter().enumerate().step_by(17) {
            let (i, j) = (at / COLUMNS, at % COLUMNS);
            let product = |((a, b), r): (&(Vec<f64>, Vec<f64>), usize)| {
                let scale = alpha.map_or(1.0, |alpha| alpha / r.max(1) as f64);
                scale * (0..r).map(|r_| b[i * r + r_] * a[r_ * COLUMNS + j]).sum::<f64>()
            };
            let sum: f64 = factors.iter().zip(ranks).zip(weights).map(|(factor, w)| w * product(factor)).sum();
            let expected = before[at] + sum / total;
            assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{found} {expected}");
        }
    }
}
