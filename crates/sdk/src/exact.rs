//! Exact sums: fixed point, so that a partial is the same bits whatever the order, the batches and the tree.
//!
//! Addition of floats depends on its order; addition of integers does not. In a job with `exact`, each term `w · x` is
//! therefore rounded once to a whole multiple of 2^-s, and partials are sums of those integers. The scale `s` is
//! fixed when the job is created, so that no term is beyond 2^51 and no sum beyond 2^63.

/// How a job with `exact` rounds its terms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exact {
    /// The exponent `s`: terms are whole multiples of 2^-s.
    pub exponent: i32,
    /// What an update may count at most. (What its elements may be, the host has checked.)
    pub weight_max: f64,
}

/// Exponents whose power of two, and one over it, are ordinary numbers.
pub const EXPONENT_MAX: i32 = 1000;

impl Exact {
    /// 2^s.
    pub(crate) fn scale(self) -> f64 {
        power_of_two(self.exponent)
    }

    /// 2^-s.
    pub(crate) fn unit(self) -> f64 {
        power_of_two(-self.exponent)
    }
}

fn power_of_two(exponent: i32) -> f64 {
    assert!(exponent.abs() <= EXPONENT_MAX, "an exponent from -{EXPONENT_MAX} to {EXPONENT_MAX}");
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

/// The numbers of a partial. [`crate::kernels`] take either kind, so most functions never look inside.
#[derive(Debug, Clone, Copy)]
pub enum Partial<'a> {
    /// Plain sums.
    F64(&'a [f64]),
    /// Exact sums: multiples of 2^-s.
    Fixed(&'a [i64], Exact),
}

/// The numbers of a partial that is being written. Its former content means nothing and must be overwritten.
#[derive(Debug)]
pub enum PartialMut<'a> {
    /// Plain sums.
    F64(&'a mut [f64]),
    /// Exact sums: multiples of 2^-s.
    Fixed(&'a mut [i64], Exact),
}

impl Partial<'_> {
    /// How many numbers.
    pub const fn len(&self) -> usize {
        match self {
            Self::F64(x) => x.len(),
            Self::Fixed(x, _) => x.len(),
        }
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the numbers from `start` on into `out`, as many as it holds. Exact sums are rounded to the nearest.
    ///
    /// # Panics
    /// When fewer than that are left.
    pub fn read(&self, start: usize, out: &mut [f64]) {
        match self {
            Self::F64(from) => {
                let from = &from[start..][..out.len()];
                for (out, x) in out.iter_mut().zip(from) {
                    *out = *x;
                }
            }
            Self::Fixed(from, exact) => {
                let (from, unit) = (&from[start..][..out.len()], exact.unit());
                for (out, x) in out.iter_mut().zip(from) {
                    *out = *x as f64 * unit;
                }
            }
        }
    }
}

impl PartialMut<'_> {
    /// How many numbers.
    pub const fn len(&self) -> usize {
        match self {
            Self::F64(x) => x.len(),
            Self::Fixed(x, _) => x.len(),
        }
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
