//! The element types of tensors, and their ways to `f64` and back.

use crate::pair::{self, LANES, Pair};
use crate::{Bf16, F8E4M3, F8E5M2, F16};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A boolean as stored: 0 is false, anything else true. (A byte from outside may hold any value, so it cannot be
/// Rust's `bool`.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Bool(
    /// The byte as stored.
    pub u8,
);

mod sealed {
    use crate::pair::{LANES, Pair};

    pub trait Sealed: Sized {
        /// Eight numbers at once, for the inner loops of the kernels.
        fn pairs(values: &[Self; LANES]) -> [Pair; LANES / 2];
    }
}
pub(crate) use sealed::Sealed;

/// An element of a tensor. Every dtype a function may meet implements it.
pub trait Element: Copy + Sealed + 'static {
    /// The value: exact for all but 64-bit integers beyond 2^53, which round to nearest.
    fn to_f64(self) -> f64;

    /// The nearest value, ties to even. Integers saturate, and NaN becomes 0.
    fn from_f64(x: f64) -> Self;
}

/// Rounds to a whole number, ties to even (`core` has no stable function for it).
#[inline(always)]
fn round_even(x: f64) -> f64 {
    const WHOLE: f64 = 4_503_599_627_370_496.0; // 2^52: from here on every f64 is whole
    if x.abs() < WHOLE { ((x.abs() + WHOLE) - WHOLE).copysign(x) } else { x }
}

macro_rules! element {
    ($($type:ty, $x:ident, $to:expr, $y:ident, $from:expr $(, $pairs:path)?;)*) => {
        $(
            impl Sealed for $type {
                #[inline(always)]
                #[allow(unreachable_code, reason = "the general way follows the special one, where there is one")]
                fn pairs(values: &[Self; LANES]) -> [Pair; LANES / 2] {
                    $(return $pairs(values);)?
                    pair::pairs_of(values, Self::to_f64)
                }
            }
            impl Element for $type {
                #[inline(always)]
                fn to_f64(self) -> f64 {
                    let $x = self;
                    $to
                }
                #[inline(always)]
                fn from_f64($y: f64) -> Self {
                    $from
                }
            }
        )*
    };
}

element! {
    f64, x, x, y, y;
    f32, x, x as f64, y, y as f32, pair::pairs_of_f32;
    Bf16, x, x.to_f32() as f64, y, Self::from_f64(y), pair::pairs_of_bf16;
    F16, x, x.to_f32() as f64, y, Self::from_f64(y), pair::pairs_of_f16;
    F8E4M3, x, x.to_f32() as f64, y, Self::from_f64(y);
    F8E5M2, x, x.to_f32() as f64, y, Self::from_f64(y);
    i64, x, x as f64, y, round_even(y) as i64;
    i32, x, x as f64, y, round_even(y) as i32;
    i16, x, x as f64, y, round_even(y) as i16;
    i8, x, x as f64, y, round_even(y) as i8;
    u64, x, x as f64, y, round_even(y) as u64;
    u32, x, x as f64, y, round_even(y) as u32;
    u16, x, x as f64, y, round_even(y) as u16;
    u8, x, x as f64, y, round_even(y) as u8;
    Bool, x, f64::from(u8::from(x.0 != 0)), y, Self(u8::from(y >= 0.5));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_round_to_even_and_saturate() {
        assert_eq!(i32::from_f64(2.5), 2);
        assert_eq!(i32::from_f64(3.5), 4);
        assert_eq!(i32::from_f64(-2.5), -2);
        assert_eq!(i32::from_f64(-0.6), -1);
        assert_eq!(i8::from_f64(1e9), 127);
        assert_eq!(u8::from_f64(-3.0), 0);
        assert_eq!(i64::from_f64(1e30), i64::MAX);
        assert_eq!(u64::from_f64(f64::NAN), 0);
        assert_eq!(i64::from_f64(9_007_199_254_740_993.0), 9_007_199_254_740_992);
        assert_eq!(i64::from_f64(4_503_599_627_370_495.5), 4_503_599_627_370_496);
    }

    #[test]
    fn rounding_agrees_with_the_standard_library() {
        let mut x = -3.0f64;
        while x < 3.0 {
            assert_eq!(round_even(x).to_bits(), x.round_ties_even().to_bits(), "{x}");
            x += 0.015625;
        }
    }
}
