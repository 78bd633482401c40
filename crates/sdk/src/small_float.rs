//! Floats of 16 and 8 bits: exact to `f64`, rounded once from it.
//!
//! Conversions never multiply subnormals (that is some twenty times slower on common processors) and never round
//! twice: going through `f32` on the way down would turn some ties the wrong way.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Defines a float of few bits over its integer representation.
macro_rules! small_float {
    ($(#[$doc:meta])* $name:ident($bits:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(transparent)]
        pub struct $name(
            /// Sign, exponent and fraction as stored.
            pub $bits,
        );
    };
}

small_float!(
    /// bfloat16: the upper half of an `f32`.
    Bf16(u16)
);
small_float!(
    /// IEEE 754 binary16.
    F16(u16)
);
small_float!(
    /// OCP 8-bit float with 4 bits of exponent and 3 of fraction: largest value 448, no infinity.
    F8E4M3(u8)
);
small_float!(
    /// OCP 8-bit float with 5 bits of exponent and 2 of fraction: largest finite value 57344.
    F8E5M2(u8)
);

impl Bf16 {
    /// The value, exactly.
    #[inline(always)]
    pub const fn to_f32(self) -> f32 {
        f32::from_bits((self.0 as u32) << 16)
    }

    /// The nearest bfloat16, ties to even; infinity beyond the largest.
    #[inline]
    pub const fn from_f64(x: f64) -> Self {
        Self(round_to::<8, 7, 0x7f80>(x) as u16)
    }
}

impl F16 {
    /// The value, exactly.
    #[inline(always)]
    pub const fn to_f32(self) -> f32 {
        // Without branches, so that loops over it vectorise, and without subnormal operands.
        let shifted = ((self.0 & 0x7fff) as u32) << 13;
        let infinite = if shifted >= 31 << 23 { 112 << 23 } else { 0 };
        let x = f32::from_bits(shifted + (112 << 23) + infinite);
        // An exponent of 0 has no implicit one: what reads as 2^-15 (1 + f) stands for 2^-14 f.
        let excess = if shifted < 1 << 23 { x - f32::from_bits(113 << 23) } else { 0.0 };
        let sign = ((self.0 & 0x8000) as u32) << 16;
        let bits = (x + excess).to_bits();
        f32::from_bits(bits | sign)
    }

    /// The nearest binary16, ties to even; infinity beyond the largest.
    #[inline]
    pub const fn from_f64(x: f64) -> Self {
        Self(round_to::<5, 10, 0x7c00>(x) as u16)
    }
}

impl F8E4M3 {
    /// The value, exactly.
    #[inline]
    pub const fn to_f32(self) -> f32 {
        F8E4M3_VALUES[self.0 as usize]
    }

    /// The nearest value, ties to even. The format has no infinity: whatever lies beyond 448 becomes 448.
    #[inline]
    pub const fn from_f64(x: f64) -> Self {
        if x.is_nan() {
            return Self(0x7f);
        }
        Self(round_to::<4, 3, 0x7e>(x) as u8)
    }
}

impl F8E5M2 {
    /// The value, exactly.
    #[inline]
    pub const fn to_f32(self) -> f32 {
        F8E5M2_VALUES[self.0 as usize]
    }

    /// The nearest value, ties to even; infinity beyond the largest.
    #[inline]
    pub const fn from_f64(x: f64) -> Self {
        Self(round_to::<5, 2, 0x7c>(x) as u8)
    }
}

static F8E4M3_VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        values[code] = if code & 0x7f == 0x7f { f32::NAN } else { decode::<4, 3>(code as u32) };
        code += 1;
    }
    values
};

static F8E5M2_VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (sign, magnitude) = (code & 0x80, code & 0x7f);
        values[code] = match magnitude {
            0x7c if sign == 0 => f32::INFINITY,
            0x7c => f32::NEG_INFINITY,
            0x7d.. => f32::NAN,
            _ => decode::<5, 2>(code as u32),
        };
        code += 1;
    }
    values
};

/// The value of a finite code with `EXP` bits of exponent and `MAN` of fraction.
const fn decode<const EXP: u32, const MAN: u32>(code: u32) -> f32 {
    let bias = (1 << (EXP - 1)) - 1;
    let sign = (code >> (EXP + MAN)) << 31;
    let exponent = (code >> MAN) & ((1 << EXP) - 1);
    let fraction = code & ((1 << MAN) - 1);
    let magnitude = if exponent == 0 {
        // Subnormal: fraction × 2^(1 − bias − MAN), a normal f32.
        fraction as f32 * f32::from_bits((127 + 1 - bias - MAN) << 23)
    } else {
        f32::from_bits(((exponent + 127 - bias) << 23) | (fraction << (23 - MAN)))
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

/// Rounds to the nearest code with `EXP` bits of exponent and `MAN` of fraction, ties to even, in one step. `TOP` is
/// the code of everything beyond the finite numbers.
#[inline(always)]
const fn round_to<const EXP: u32, const MAN: u32, const TOP: u32>(x: f64) -> u32 {
    let bias: i64 = (1 << (EXP - 1)) - 1;
    let bits = x.to_bits();
    let sign = ((bits >> 63) as u32) << (EXP + MAN);
    let magnitude = bits & (u64::MAX >> 1);
    if magnitude > f64::INFINITY.to_bits() {
        return sign | TOP | 1 << (MAN - 1);
    }
    let exponent = (magnitude >> 52) as i64 - 1023;
    let code = if exponent >= 1 - bias {
        // A carry out of the fraction raises the exponent, as it should.
        nearest_shift(magnitude - (((1023 - bias) as u64) << 52), 52 - MAN)
    } else {
        let below = (1 - bias) - exponent;
        let shift = 52 - MAN as i64 + below;
        let fraction = (magnitude & ((1 << 52) - 1)) | 1 << 52;
        if shift > 54 { 0 } else { nearest_shift(fraction, shift as u32) }
    };
    sign | if code > TOP as u64 { TOP } else { code as u32 }
}

/// `value / 2^shift`, rounded to nearest, ties to even. `shift` is 1 to 54.
#[inline(always)]
const fn nearest_shift(value: u64, shift: u32) -> u64 {
    let odd = (value >> shift) & 1;
    (value + (1 << (shift - 1)) - 1 + odd) >> shift
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sixteen_bit_floats_agree_with_half() {
        for code in 0..=u16::MAX {
            let (ours, theirs) = (F16(code).to_f32(), half::f16::from_bits(code).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "f16 {code:#06x}");
            let (ours, theirs) = (Bf16(code).to_f32(), half::bf16::from_bits(code).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "bf16 {code:#06x}");
        }
    }

    #[test]
    fn every_code_survives_the_way_there_and_back() {
        for code in 0..=u16::MAX {
            let f = F16(code);
            assert!(f.to_f32().is_nan() || F16::from_f64(f.to_f32().into()) == f);
            let f = Bf16(code);
            assert!(f.to_f32().is_nan() || Bf16::from_f64(f.to_f32().into()) == f);
        }
        for code in 0..=u8::MAX {
            let f = F8E4M3(code);
            assert!(f.to_f32().is_nan() || F8E4M3::from_f64(f.to_f32().into()) == f);
            let f = F8E5M2(code);
            assert!(f.to_f32().is_nan() || F8E5M2::from_f64(f.to_f32().into()) == f);
        }
    }

    #[test]
    fn known_values_of_eight_bit_floats() {
        assert_eq!(F8E4M3(0x7e).to_f32(), 448.0);
        assert_eq!(F8E4M3(0x01).to_f32(), 2f32.powi(-9));
        assert_eq!(F8E4M3(0xb8).to_f32(), -1.0);
        assert_eq!(F8E5M2(0x7b).to_f32(), 57344.0);
        assert_eq!(F8E5M2(0x01).to_f32(), 2f32.powi(-16));
        assert_eq!(F8E4M3::from_f64(1e9), F8E4M3(0x7e));
        assert_eq!(F8E4M3::from_f64(f64::NEG_INFINITY), F8E4M3(0xfe));
        assert_eq!(F8E4M3::from_f64(465.0), F8E4M3(0x7e), "rounds to the code that would be NaN");
        assert!(F8E4M3::from_f64(f64::NAN).to_f32().is_nan());
        assert_eq!(F8E5M2::from_f64(1e9).to_f32(), f32::INFINITY);
        assert!(F16::from_f64(f64::NAN).to_f32().is_nan());
        assert_eq!(Bf16::from_f64(1e300).to_f32(), f32::INFINITY);
        assert_eq!(F16::from_f64(-0.0).0, 0x8000);
        assert_eq!(F16::from_f64(f64::MIN_POSITIVE / 4.0).0, 0);
    }

    #[test]
    fn a_tie_that_double_rounding_gets_wrong() {
        // Just above the middle of two bf16 neighbours: f32 would round it onto the tie, and the tie to even, down.
        let x = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(Bf16::from_f64(x).to_f32(), 1.0078125);
        assert_eq!(Bf16::from_f64(1.0 + 2f64.powi(-8)).to_f32(), 1.0, "a true tie goes to even");
    }

    /// Checks `code = from(x)` against both neighbouring codes: none is nearer, and a tie has gone to even.
    fn is_nearest(x: f64, code: u32, largest: u32, value: impl Fn(u32) -> f64) -> bool {
        let distance = (value(code) - x).abs();
        let neighbours = [code.checked_sub(1), (code < largest).then_some(code + 1)];
        neighbours.into_iter().flatten().all(|other| {
            let far = (value(other) - x).abs();
            distance < far || distance == far && code.is_multiple_of(2)
        })
    }

    proptest! {
        #[test]
        fn rounding_is_to_nearest_even(mantissa in 1.0f64..2.0, exponent in -30i32..16) {
            let x = mantissa * 2f64.powi(exponent);
            if x < 65504.0 {
                prop_assert!(is_nearest(x, F16::from_f64(x).0.into(), 0x7bff, |c| F16(c as u16).to_f32().into()));
            }
            if x < 57344.0 {
                prop_assert!(is_nearest(x, F8E5M2::from_f64(x).0.into(), 0x7b, |c| F8E5M2(c as u8).to_f32().into()));
            }
            prop_assert!(is_nearest(x, Bf16::from_f64(x).0.into(), 0x7f7f, |c| Bf16(c as u16).to_f32().into()));
            if x < 448.0 {
                prop_assert!(is_nearest(x, F8E4M3::from_f64(x).0.into(), 0x7e, |c| F8E4M3(c as u8).to_f32().into()));
            }
            prop_assert_eq!(F16::from_f64(-x).0, F16::from_f64(x).0 | 0x8000);
        }

        #[test]
        fn bf16_subnormals_round_to_nearest(mantissa in 1.0f64..2.0, exponent in -140i32..-120) {
            let x = mantissa * 2f64.powi(exponent);
            prop_assert!(is_nearest(x, Bf16::from_f64(x).0.into(), 0x7f7f, |c| Bf16(c as u16).to_f32().into()));
        }
    }
}
