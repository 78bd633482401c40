//! What an exact sum must come to, worked out from the published contract alone.
//!
//! Each product of weight and element is rounded once to a whole multiple of 2^-s; those are summed as integers, of which
//! here there are 128 bits; the sum is divided by the sum of weights at the end.

use crate::read;
use safetensors::{Dtype, SafeTensors};

/// The bounds of a job with exact sums, as its spec has them.
#[derive(Debug, Clone, Copy)]
pub struct ExactMean {
    /// No element is further from zero.
    pub bound: f64,
    /// No weight is larger.
    pub weight_max: f64,
    /// No round has more updates.
    pub updates_max: u64,
}

impl ExactMean {
    /// As a spec has it.
    pub fn spec(&self) -> serde_json::Value {
        serde_json::json!({"bound": self.bound, "weight_max": self.weight_max, "updates_max": self.updates_max})
    }

    /// 2^s, with the largest `s` that neither a product nor a sum outgrows.
    fn scale(&self) -> f64 {
        let fits = |s: &i32| {
            let units = self.bound * self.weight_max * 2f64.powi(*s);
            units <= 2f64.powi(51) && units.ceil() as u128 * u128::from(self.updates_max) < 1 << 63
        };
        2f64.powi((-1000..=1000).rev().find(fits).expect("some scale fits"))
    }

    /// Checks that `model` has exactly the bits of these weighted updates: of the mean, and of the maximum of tensors whose
    /// names begin with `peak`. Integers are as they are in the updates.
    pub fn check(&self, model: &[u8], updates: &[(f64, Vec<u8>)]) -> Result<(), String> {
        let (scale, total) = (self.scale(), updates.iter().map(|(weight, _)| weight).sum::<f64>());
        let sent: Vec<_> = updates.iter().map(|(weight, body)| (*weight, read(body))).collect();
        let parsed = SafeTensors::deserialize(model).map_err(|error| error.to_string())?;
        for (name, found) in read(model) {
            let dtype = parsed.tensor(&name).map_err(|error| error.to_string())?.dtype();
            for (i, found) in found.iter().enumerate() {
                let terms = sent.iter().map(|(weight, values)| (*weight, values[&name][i]));
                let expected = match dtype {
                    Dtype::I64 => sent[0].1[&name][i],
                    _ if name.starts_with("peak") => terms.map(|(_, x)| x).fold(f64::NEG_INFINITY, f64::max),
                    _ => {
                        let sum: i128 = terms.map(|(weight, x)| (x * (weight * scale)).round_ties_even() as i128).sum();
                        sum as i64 as f64 / scale / total
                    }
                };
                let expected = if dtype == Dtype::F32 { f64::from(expected as f32) } else { expected };
                if found.to_bits() != expected.to_bits() {
                    return Err(format!("{name}[{i}] is {found:e}, and the exact sum gives {expected:e}"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tensor, file};

    fn body(x: f32) -> Vec<u8> {
        file(&[
            Tensor::f32("w", &[2], &[x, -x / 3.0]),
            Tensor::f64("precise", &[1], &[f64::from(x) / 7.0]),
            Tensor::f32("peak", &[1], &[x]),
            Tensor::i64("n", &[], &[7]),
        ])
    }

    #[test]
    fn other_sets_and_other_bits_are_found() {
        let exact = ExactMean { bound: 8.0, weight_max: 4.0, updates_max: 10 };
        let updates = [(1.0, body(1.25)), (3.0, body(-0.3)), (2.5, body(0.7))];
        let mean = |of: fn(f64) -> f64| {
            updates.iter().map(|(w, _)| w).zip([1.25f32, -0.3, 0.7]).map(move |(w, x)| w * of(x.into())).sum::<f64>()
                / 6.5
        };
        let wide = [mean(|x| x) as f32, mean(|x| f64::from(-(x as f32) / 3.0)) as f32];
        let model = |precise: f64| {
            file(&[
                Tensor::f32("w", &[2], &wide),
                Tensor::f64("precise", &[1], &[precise]),
                Tensor::f32("peak", &[1], &[1.25]),
                Tensor::i64("n", &[], &[7]),
            ])
        };
        // In units of 2^-46, as 8 · 4 · 2^46 is 2^51: rounded by hand.
        let unit = 2f64.powi(46);
        let terms = updates
            .iter()
            .zip([1.25f32, -0.3, 0.7])
            .map(|((w, _), x)| (w * unit * (f64::from(x) / 7.0)).round_ties_even());
        let precise = terms.sum::<f64>() / unit / 6.5;
        assert_eq!(exact.check(&model(precise), &updates), Ok(()));
        assert!(exact.check(&model(precise.next_up()), &updates).is_err());
        assert!(exact.check(&model(precise), &updates[..2]).is_err());
        let twice: Vec<_> = updates.iter().chain(&updates[..1]).cloned().collect();
        assert!(exact.check(&model(precise), &twice).is_err());
    }
}
