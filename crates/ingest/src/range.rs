//! Finds elements beyond a job's bound: exact sums have room for no larger ones.
//!
//! Magnitudes of floats sort like their bits, so the bound becomes a number to compare bits with, once for each piece,
//! and the loop is as fast as the screen for NaN, which it takes the place of: NaN and infinity are beyond any bound.

use crate::screen::find;
use catchment_types::Dtype;
use std::fmt;

/// The index of the first element of `bytes` that is further than `bound` from zero, or no number at all. `bytes`
/// holds whole little-endian elements.
pub fn first_beyond(dtype: Dtype, bytes: &[u8], bound: f64) -> Option<usize> {
    // Casts of floats to integers saturate, and cut towards zero, as is wanted here.
    let whole = bound as u64;
    match dtype {
        Dtype::F64 => find(bytes, |b| u64::from_le_bytes(b) & (u64::MAX >> 1) > bound.to_bits()),
        Dtype::F32 => {
            let limit = Format::F32.limit(bound);
            find(bytes, |b| u32::from_le_bytes(b) & (u32::MAX >> 1) > limit)
        }
        Dtype::Bf16 => {
            let limit = Format::BF16.limit(bound) as u16;
            find(bytes, |b| u16::from_le_bytes(b) & 0x7fff > limit)
        }
        Dtype::F16 => {
            let limit = Format::F16.limit(bound) as u16;
            find(bytes, |b| u16::from_le_bytes(b) & 0x7fff > limit)
        }
        Dtype::F8E5M2 => {
            let limit = Format::F8E5M2.limit(bound) as u8;
            find(bytes, |[b]| b & 0x7f > limit)
        }
        Dtype::F8E4M3 => {
            let limit = Format::F8E4M3.limit(bound) as u8;
            find(bytes, |[b]| b & 0x7f > limit)
        }
        Dtype::I64 => find(bytes, |b| i64::from_le_bytes(b).unsigned_abs() > whole),
        Dtype::U64 => find(bytes, |b| u64::from_le_bytes(b) > whole),
        Dtype::I32 => find(bytes, |b| u64::from(i32::from_le_bytes(b).unsigned_abs()) > whole),
        Dtype::U32 => find(bytes, |b| u64::from(u32::from_le_bytes(b)) > whole),
        Dtype::I16 => find(bytes, |b| u64::from(i16::from_le_bytes(b).unsigned_abs()) > whole),
        Dtype::U16 => find(bytes, |b| u64::from(u16::from_le_bytes(b)) > whole),
        Dtype::I8 => find(bytes, |[b]| u64::from(b.cast_signed().unsigned_abs()) > whole),
        Dtype::U8 => find(bytes, |[b]| u64::from(b) > whole),
        Dtype::Bool => find(bytes, |[b]| u64::from(b != 0) > whole),
        // Never folded.
        _ => None,
    }
}

/// Up to here whole numbers are f64, and none beyond is rounded to them.
const WHOLE_MAX: f64 = ((1u64 << 53) - 1) as f64;

/// The index of the first whole number of `bytes` that f64 may not tell from its neighbours.
pub fn first_inexact(dtype: Dtype, bytes: &[u8]) -> Option<usize> {
    if dtype.exceeds_f64() { first_beyond(dtype, bytes, WHOLE_MAX) } else { None }
}

/// The index of the first F64 of `bytes` that is nearer to zero than `least`, but is not zero.
pub fn first_nearer(bytes: &[u8], least: f64) -> Option<usize> {
    let magnitude = |b| u64::from_le_bytes(b) & (u64::MAX >> 1);
    // Zero less one is the largest of all.
    find(bytes, |b| magnitude(b).wrapping_sub(1) < least.to_bits() - 1)
}

/// How far from zero the elements of `bytes` are at most; infinite when one of them is no finite number. `bytes` holds
/// whole little-endian elements.
pub fn largest(dtype: Dtype, bytes: &[u8]) -> f64 {
    fn most<const WIDTH: usize, T: Ord + Default>(bytes: &[u8], size: impl Fn([u8; WIDTH]) -> T) -> T {
        let (elements, rest) = bytes.as_chunks::<WIDTH>();
        assert!(rest.is_empty(), "whole elements are looked at");
        elements.iter().fold(T::default(), |most, element| most.max(size(*element)))
    }
    let float = |format: Format, code: u32| if code < format.infinity { format.number(code) } else { f64::INFINITY };
    match dtype {
        Dtype::F64 => {
            let bits = most(bytes, |b| u64::from_le_bytes(b) & (u64::MAX >> 1));
            if bits < f64::INFINITY.to_bits() { f64::from_bits(bits) } else { f64::INFINITY }
        }
        Dtype::F32 => float(Format::F32, most(bytes, |b| u32::from_le_bytes(b) & (u32::MAX >> 1))),
        Dtype::Bf16 => float(Format::BF16, most(bytes, |b| u16::from_le_bytes(b) & 0x7fff).into()),
        Dtype::F16 => float(Format::F16, most(bytes, |b| u16::from_le_bytes(b) & 0x7fff).into()),
        Dtype::F8E5M2 => float(Format::F8E5M2, most(bytes, |[b]| b & 0x7f).into()),
        Dtype::F8E4M3 => float(Format::F8E4M3, most(bytes, |[b]| b & 0x7f).into()),
        Dtype::I64 => most(bytes, |b| i64::from_le_bytes(b).unsigned_abs()) as f64,
        Dtype::U64 => most(bytes, u64::from_le_bytes) as f64,
        Dtype::I32 => f64::from(most(bytes, |b| i32::from_le_bytes(b).unsigned_abs())),
        Dtype::U32 => f64::from(most(bytes, u32::from_le_bytes)),
        Dtype::I16 => f64::from(most(bytes, |b| i16::from_le_bytes(b).unsigned_abs())),
        Dtype::U16 => f64::from(most(bytes, u16::from_le_bytes)),
        Dtype::I8 => f64::from(most(bytes, |[b]| b.cast_signed().unsigned_abs())),
        Dtype::U8 => f64::from(most(bytes, |[b]| b)),
        // Of others, functions read no more than whether they are 0.
        _ => 0.0,
    }
}

/// One element, exactly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// Of a float type.
    Float(f64),
    /// Of an integer type.
    Whole(i128),
}

impl Number {
    /// The element in these bytes.
    pub fn read(dtype: Dtype, bytes: &[u8]) -> Self {
        let small = |format: Format, bits: u32| {
            let code = bits & ((1 << format.bits) - 1);
            let size = if code < format.infinity { format.number(code) } else { f64::NAN };
            Self::Float(if bits == code { size } else { -size })
        };
        let word = |width: usize| {
            let mut word = [0; 8];
            word[..width].copy_from_slice(&bytes[..width]);
            u64::from_le_bytes(word)
        };
        match dtype {
            Dtype::F64 => Self::Float(f64::from_bits(word(8))),
            Dtype::F32 => Self::Float(f32::from_bits(word(4) as u32).into()),
            Dtype::Bf16 => Self::Float(f32::from_bits((word(2) as u32) << 16).into()),
            Dtype::F16 => small(Format::F16, word(2) as u32),
            Dtype::F8E5M2 => small(Format::F8E5M2, word(1) as u32),
            Dtype::F8E4M3 => small(Format::F8E4M3, word(1) as u32),
            Dtype::I64 => Self::Whole((word(8) as i64).into()),
            Dtype::I32 => Self::Whole((word(4) as i32).into()),
            Dtype::I16 => Self::Whole((word(2) as i16).into()),
            Dtype::I8 => Self::Whole((word(1) as i8).into()),
            _ => Self::Whole(word((dtype.bits() / 8) as usize).into()),
        }
    }

    /// How far it is from zero; not finite when it is no number.
    pub fn size(self) -> f64 {
        match self {
            Self::Float(x) => x.abs(),
            Self::Whole(x) => x.unsigned_abs() as f64,
        }
    }

    /// Whether its sum with the model's own element is a number of the model's type.
    pub fn fits_beside(self, own: Self, dtype: Dtype) -> bool {
        let float = |number| match number {
            Self::Float(x) => x,
            Self::Whole(x) => x as f64,
        };
        match (self, own) {
            (Self::Whole(x), Self::Whole(own)) => {
                let (sum, bits) = (x + own, dtype.bits() as u32);
                let is_signed = matches!(dtype, Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8);
                if dtype.exceeds_f64() {
                    let most = WHOLE_MAX as i128;
                    return (if is_signed { -most } else { 0 }..=most).contains(&sum);
                }
                let range = if is_signed { -(1i128 << (bits - 1))..1 << (bits - 1) } else { 0..1 << bits };
                range.contains(&sum)
            }
            (x, own) => (float(x) + float(own)).abs() <= dtype.rounds_up_to(),
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(x) if *x == 0.0 || (1e-4..1e7).contains(&x.abs()) => write!(f, "{x}"),
            Self::Float(x) => write!(f, "{x:e}"),
            Self::Whole(x) => write!(f, "{x}"),
        }
    }
}

/// A float format, its sign left aside.
pub struct Format {
    pub bits: u32,
    pub mantissa: u32,
    /// The first code that is no finite number.
    pub infinity: u32,
}

impl Format {
    const F32: Self = Self { bits: 31, mantissa: 23, infinity: 0x7f80_0000 };
    const BF16: Self = Self { bits: 15, mantissa: 7, infinity: 0x7f80 };
    const F16: Self = Self { bits: 15, mantissa: 10, infinity: 0x7c00 };
    const F8E5M2: Self = Self { bits: 7, mantissa: 2, infinity: 0x7c };
    const F8E4M3: Self = Self { bits: 7, mantissa: 3, infinity: 0x7f };

    /// The largest code whose number is at most `bound`.
    fn limit(&self, bound: f64) -> u32 {
        let (mut fits, mut too_large) = (0, self.infinity);
        while too_large - fits > 1 {
            let code = fits + (too_large - fits) / 2;
            if self.number(code) <= bound {
                fits = code;
            } else {
                too_large = code;
            }
        }
        fits
    }

    /// The number of a code below `infinity`.
    pub fn number(&self, code: u32) -> f64 {
        let (exponent, mantissa) = (code >> self.mantissa, code & ((1 << self.mantissa) - 1));
        let bias = (1 << (self.bits - self.mantissa - 1)) - 1;
        let (lead, power) = if exponent == 0 { (0, 1) } else { (1 << self.mantissa, exponent as i32) };
        f64::from(lead + mantissa) * 2f64.powi(power - bias - self.mantissa as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn beyond(bound: f64, value: f64) -> bool {
        !value.is_finite() || value.abs() > bound
    }

    proptest! {
        #[test]
        fn floats_of_16_bits_agree_with_their_definition(bound in prop_oneof![0.0f64..1e-4, 0.0f64..10.0, 1.0f64..1e6, 1e30..1e40]) {
            for bits in 0..=u16::MAX {
                for (dtype, value) in [
                    (Dtype::F16, half::f16::from_bits(bits).to_f64()),
                    (Dtype::Bf16, half::bf16::from_bits(bits).to_f64()),
                ] {
                    let found = first_beyond(dtype, &bits.to_le_bytes(), bound);
                    prop_assert_eq!(found, beyond(bound, value).then_some(0), "{} {}", dtype, value);
                }
            }
        }

        #[test]
        fn wide_numbers_agree_with_plain_comparison(bound in 0.0f64..1e3, value in -2e3f64..2e3, float in any::<f32>(), long in any::<i64>()) {
            let at = |dtype, bytes: &[u8]| first_beyond(dtype, bytes, bound).is_some();
            prop_assert_eq!(at(Dtype::F64, &value.to_le_bytes()), beyond(bound, value));
            prop_assert_eq!(at(Dtype::F32, &(value as f32).to_le_bytes()), beyond(bound, f64::from(value as f32)));
            prop_assert_eq!(at(Dtype::F32, &float.to_le_bytes()), beyond(bound, float.into()));
            prop_assert_eq!(at(Dtype::I32, &(value as i32).to_le_bytes()), beyond(bound, f64::from(value as i32)));
            prop_assert_eq!(at(Dtype::I64, &long.to_le_bytes()), beyond(bound, long as f64));
            prop_assert_eq!(at(Dtype::U8, &[value as u8]), beyond(bound, f64::from(value as u8)));
            prop_assert_eq!(at(Dtype::Bool, &[7]), bound < 1.0);
        }
    }

    #[test]
    fn zero_is_not_too_near_to_zero() {
        let least = 2e-278;
        let fine = [0.0, -0.0, least, -least, 1.0, f64::MAX];
        let bytes = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(first_nearer(&bytes(&fine), least), None);
        for bad in [least.next_down(), -least.next_down(), f64::from_bits(1), -1e-300] {
            assert_eq!(first_nearer(&bytes(&[0.0, 1.0, bad, bad]), least), Some(2), "{bad}");
        }
    }

    #[test]
    fn the_bound_itself_is_within() {
        for bound in [0.5, 1.0, 448.0, 57344.0, 3.4e38f32 as f64] {
            let next = |x: f32| f32::from_bits(x.to_bits() + 1);
            let bytes: Vec<u8> =
                [bound as f32, -bound as f32, next(bound as f32)].iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(first_beyond(Dtype::F32, &bytes, bound), Some(2), "{bound}");
        }
        assert_eq!(first_beyond(Dtype::F8E4M3, &[0x7e, 0xfe, 0x7f], 448.0), Some(2));
        assert_eq!(first_beyond(Dtype::F8E4M3, &[0x7d, 0xfe], 447.0), Some(1));
        assert_eq!(first_beyond(Dtype::F8E5M2, &[0x7b, 0x7c], 1e9), Some(1));
    }
}
