//! Two `f64` side by side.
//!
//! On wasm32 it is one SIMD register, named so that the inner loops unroll the way they are written; left to itself
//! the compiler takes one pair per loop, and the host's time check after each costs a third of the speed. Elsewhere
//! it is an array, and the arithmetic is the same to the bit.

use crate::{Bf16, F16};
#[cfg(target_arch = "wasm32")]
use core::arch::wasm32::*;

/// Numbers per step of the inner loops.
pub const LANES: usize = 8;

/// Two numbers.
#[derive(Clone, Copy)]
pub struct Pair(#[cfg(target_arch = "wasm32")] v128, #[cfg(not(target_arch = "wasm32"))] [f64; 2]);

#[cfg(target_arch = "wasm32")]
impl Pair {
    #[inline(always)]
    pub fn new(a: f64, b: f64) -> Self {
        Self(f64x2(a, b))
    }

    #[inline(always)]
    pub fn both(x: f64) -> Self {
        Self(f64x2_splat(x))
    }

    #[inline(always)]
    pub fn add(self, other: Self) -> Self {
        Self(f64x2_add(self.0, other.0))
    }

    #[inline(always)]
    pub fn mul(self, other: Self) -> Self {
        Self(f64x2_mul(self.0, other.0))
    }

    #[inline(always)]
    pub fn sub(self, other: Self) -> Self {
        Self(f64x2_sub(self.0, other.0))
    }

    /// `other` where it is smaller, else `self`.
    #[inline(always)]
    pub fn min(self, other: Self) -> Self {
        Self(f64x2_pmin(self.0, other.0))
    }

    /// `other` where it is larger, else `self`; so NaN in `other` counts for nothing.
    #[inline(always)]
    pub fn max(self, other: Self) -> Self {
        Self(f64x2_pmax(self.0, other.0))
    }

    #[inline(always)]
    pub fn to_bits(self) -> Longs {
        Longs(self.0)
    }

    #[inline(always)]
    pub fn get(self) -> [f64; 2] {
        [f64x2_extract_lane::<0>(self.0), f64x2_extract_lane::<1>(self.0)]
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Pair {
    #[inline(always)]
    pub fn new(a: f64, b: f64) -> Self {
        Self([a, b])
    }

    #[inline(always)]
    pub fn both(x: f64) -> Self {
        Self([x, x])
    }

    #[inline(always)]
    pub fn add(self, other: Self) -> Self {
        Self([self.0[0] + other.0[0], self.0[1] + other.0[1]])
    }

    #[inline(always)]
    pub fn mul(self, other: Self) -> Self {
        Self([self.0[0] * other.0[0], self.0[1] * other.0[1]])
    }

    #[inline(always)]
    pub fn sub(self, other: Self) -> Self {
        Self([self.0[0] - other.0[0], self.0[1] - other.0[1]])
    }

    /// `other` where it is smaller, else `self`.
    #[inline(always)]
    pub fn min(self, other: Self) -> Self {
        let min = |a, b| if b < a { b } else { a };
        Self([min(self.0[0], other.0[0]), min(self.0[1], other.0[1])])
    }

    /// `other` where it is larger, else `self`; so NaN in `other` counts for nothing.
    #[inline(always)]
    pub fn max(self, other: Self) -> Self {
        let max = |a, b| if a < b { b } else { a };
        Self([max(self.0[0], other.0[0]), max(self.0[1], other.0[1])])
    }

    #[inline(always)]
    pub fn to_bits(self) -> Longs {
        Longs(self.0.map(|x| x.to_bits() as i64))
    }

    #[inline(always)]
    pub fn get(self) -> [f64; 2] {
        self.0
    }
}

/// Two `i64` side by side; sums wrap around.
#[derive(Clone, Copy)]
pub struct Longs(#[cfg(target_arch = "wasm32")] v128, #[cfg(not(target_arch = "wasm32"))] [i64; 2]);

#[cfg(target_arch = "wasm32")]
impl Longs {
    #[inline(always)]
    pub fn new(a: i64, b: i64) -> Self {
        Self(i64x2(a, b))
    }

    #[inline(always)]
    pub fn add(self, other: Self) -> Self {
        Self(i64x2_add(self.0, other.0))
    }

    #[inline(always)]
    pub fn get(self) -> [i64; 2] {
        [i64x2_extract_lane::<0>(self.0), i64x2_extract_lane::<1>(self.0)]
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Longs {
    #[inline(always)]
    pub fn new(a: i64, b: i64) -> Self {
        Self([a, b])
    }

    #[inline(always)]
    pub fn add(self, other: Self) -> Self {
        Self([self.0[0].wrapping_add(other.0[0]), self.0[1].wrapping_add(other.0[1])])
    }

    #[inline(always)]
    pub fn get(self) -> [i64; 2] {
        self.0
    }
}

/// Eight numbers of any kind, one conversion each.
#[inline(always)]
pub fn pairs_of<T: Copy>(values: &[T; LANES], to_f64: impl Fn(T) -> f64) -> [Pair; LANES / 2] {
    core::array::from_fn(|i| Pair::new(to_f64(values[2 * i]), to_f64(values[2 * i + 1])))
}

/// Eight `f32` numbers.
#[inline(always)]
pub fn pairs_of_f32(values: &[f32; LANES]) -> [Pair; LANES / 2] {
    #[cfg(target_arch = "wasm32")]
    {
        from_f32(zerocopy::transmute!(*values))
    }
    #[cfg(not(target_arch = "wasm32"))]
    pairs_of(values, f64::from)
}

/// Eight bfloat16 numbers.
#[inline(always)]
pub fn pairs_of_bf16(values: &[Bf16; LANES]) -> [Pair; LANES / 2] {
    #[cfg(target_arch = "wasm32")]
    {
        from_f32(words(zerocopy::transmute!(*values)).map(|words| i32x4_shl(words, 16)))
    }
    #[cfg(not(target_arch = "wasm32"))]
    pairs_of(values, |x| x.to_f32().into())
}

/// Eight binary16 numbers. See [`F16::to_f32`] for the arithmetic.
#[inline(always)]
pub fn pairs_of_f16(values: &[F16; LANES]) -> [Pair; LANES / 2] {
    #[cfg(target_arch = "wasm32")]
    {
        from_f32(words(zerocopy::transmute!(*values)).map(|words| {
            let shifted = i32x4_shl(v128_and(words, u32x4_splat(0x7fff)), 13);
            let infinite = v128_and(i32x4_ge(shifted, u32x4_splat(31 << 23)), u32x4_splat(112 << 23));
            let x = i32x4_add(i32x4_add(shifted, u32x4_splat(112 << 23)), infinite);
            let no_implicit_one = i32x4_lt(shifted, u32x4_splat(1 << 23));
            let excess = v128_and(f32x4_sub(x, u32x4_splat(113 << 23)), no_implicit_one);
            let sign = i32x4_shl(v128_and(words, u32x4_splat(0x8000)), 16);
            v128_or(f32x4_add(x, excess), sign)
        }))
    }
    #[cfg(not(target_arch = "wasm32"))]
    pairs_of(values, |x| x.to_f32().into())
}

/// Eight 16-bit words, widened to 32 bits.
#[cfg(target_arch = "wasm32")]
#[inline(always)]
fn words(words: v128) -> [v128; 2] {
    [u32x4_extend_low_u16x8(words), u32x4_extend_high_u16x8(words)]
}

/// Eight `f32` in two registers, widened to `f64`.
#[cfg(target_arch = "wasm32")]
#[inline(always)]
fn from_f32([low, high]: [v128; 2]) -> [Pair; LANES / 2] {
    let upper = |words| f64x2_promote_low_f32x4(i32x4_shuffle::<2, 3, 2, 3>(words, words));
    [f64x2_promote_low_f32x4(low), upper(low), f64x2_promote_low_f32x4(high), upper(high)].map(Pair)
}
