//! What a job with exact sums promises of its updates, and the scale that follows from it.

use super::fields::Fields;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// Bounds of a job whose sums are exact: the model is the same bits whatever the order, the batches and the tree.
///
/// Each product of weight and element is rounded to a multiple of 2^-s, with the largest `s` for which no product is
/// beyond 2^51 units and no sum of `updates_max` of them beyond 2^63. The error of the mean is then at most
/// `N · 2^-(s+1) / Σw`, before it is rounded to the model's dtype.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Exact {
    /// No averaged element is further from zero.
    pub bound: f64,
    /// No weight is larger.
    pub weight_max: f64,
    /// No round has more updates.
    pub updates_max: u64,
}

/// Magnitudes within which every scale is an ordinary number.
const MAGNITUDES: std::ops::RangeInclusive<f64> = 1e-60..=1e60;

impl Exact {
    /// The exponent `s`.
    pub fn exponent(&self) -> i32 {
        // A rounded product is at most the rounded largest one, so this product may be rounded too.
        let largest = self.bound * self.weight_max;
        let fits = |s: &i32| {
            let units = largest * 2f64.powi(*s);
            // Rounded up: so much is a term at most. Beyond 2^51 the conversion does not matter.
            units <= 2f64.powi(51) && (units.ceil() as u128) * u128::from(self.updates_max) < 1 << 63
        };
        // Where products are tiny their ceiling is 1, so some exponent always fits.
        let start = 52 - largest.log2().floor() as i32;
        (-1000..=start).rev().find(fits).expect("updates_max is below 2^62")
    }

    /// Reads the field `exact`.
    pub(super) fn read(f: &mut Fields) -> Option<Self> {
        let exact = match f.or_else("exact", || Value::Bool(false)) {
            Value::Bool(false) => return None,
            value => crate::read_value::<Self>(value),
        };
        let exact = match exact {
            Ok(exact) => exact,
            Err(error) => {
                f.unreadable("exact", &format!("false, or {{bound, weight_max, updates_max}}: {error}"));
                return None;
            }
        };
        for (name, found) in [("bound", exact.bound), ("weight_max", exact.weight_max)] {
            if !MAGNITUDES.contains(&found) {
                f.error(&format!("exact.{name}"), "a number from 1e-60 to 1e60");
            }
        }
        if !(1..=super::COUNT_MAX).contains(&exact.updates_max) {
            f.error("exact.updates_max", &format!("a number from 1 to {}", super::COUNT_MAX));
        }
        Some(exact)
    }

    /// As specs have it: `false` where sums are not exact.
    pub(super) fn write<S: Serializer>(exact: &Option<Self>, serializer: S) -> Result<S::Ok, S::Error> {
        match exact {
            None => serializer.serialize_bool(false),
            Some(exact) => exact.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_scale_is_the_largest_that_fits() {
        let exponent = |bound, weight_max, updates_max| Exact { bound, weight_max, updates_max }.exponent();
        assert_eq!(exponent(1.0, 1.0, 1), 51);
        assert_eq!(exponent(1.0, 1.0, 4095), 51);
        assert_eq!(exponent(1.0, 1.0, 4096), 50, "4096 · 2^51 is 2^63");
        assert_eq!(exponent(8.0, 1024.0, 100), 38);
        assert_eq!(exponent(1.5, 1.0, 100), 50);
        assert_eq!(exponent(1e60, 1e60, 1), 51 - 399);
        assert_eq!(exponent(1e-60, 1e-60, 1), 51 + 398);
    }

    proptest! {
        #[test]
        fn nothing_overflows_and_half_the_unit_would_not_fit(bound in 1e-60f64..1e60, weight in 1e-60f64..1e60, updates in 1u64..1 << 40) {
            let s = Exact { bound, weight_max: weight, updates_max: updates }.exponent();
            let sum = |s: i32| (bound * weight * 2f64.powi(s)).ceil() * updates as f64;
            prop_assert!(bound * weight * 2f64.powi(s) <= 2f64.powi(51) && sum(s) <= 2f64.powi(63));
            prop_assert!(bound * weight * 2f64.powi(s + 1) > 2f64.powi(51) || sum(s + 1) >= 2f64.powi(63));
        }
    }
}
