//! Two `f64` side by side.
//!
//! On wasm32 it is one SIMD register, named so that the inner loops unroll the way they are written; left to itself
//! the compiler takes one pair per loop, and the host's time check after each costs a third of the speed. Elsewhere
//! it is an array, and the arithmetic is the same to the bit.

#[cfg(target_arch = "wasm32")]
use core::arch::wasm32::{f64x2, f64x2_add, f64x2_extract_lane, f64x2_mul, f64x2_pmax, f64x2_splat, v128};

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

    /// `other` where it is larger, else `self`; so NaN in `other` counts for nothing.
    #[inline(always)]
    pub fn max(self, other: Self) -> Self {
        Self(f64x2_pmax(self.0, other.0))
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

    /// `other` where it is larger, else `self`; so NaN in `other` counts for nothing.
    #[inline(always)]
    pub fn max(self, other: Self) -> Self {
        let max = |a, b| if a < b { b } else { a };
        Self([max(self.0[0], other.0[0]), max(self.0[1], other.0[1])])
    }

    #[inline(always)]
    pub fn get(self) -> [f64; 2] {
        self.0
    }
}
