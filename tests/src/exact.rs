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
