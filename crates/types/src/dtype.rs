//! Element types of tensors, as safetensors names them.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! dtypes {
    ($($variant:ident $text:literal $bits:literal),* $(,)?) => {
        /// The type of a tensor's elements. Every dtype of safetensors 0.8 is known.
        #[allow(missing_docs, reason = "the names are the format's own")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum Dtype {
            $(#[serde(rename = $text)] $variant),*
        }

        impl Dtype {
            /// Every dtype.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Bits of one element.
            pub const fn bits(self) -> u64 {
                match self { $(Self::$variant => $bits),* }
            }

            /// The name in a safetensors header.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// The dtype with this name in a safetensors header.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

dtypes! {
    F64 "F64" 64, F32 "F32" 32, Bf16 "BF16" 16, F16 "F16" 16, F8E4M3 "F8_E4M3" 8, F8E5M2 "F8_E5M2" 8,
    I64 "I64" 64, I32 "I32" 32, I16 "I16" 16, I8 "I8" 8, U64 "U64" 64, U32 "U32" 32, U16 "U16" 16, U8 "U8" 8,
    Bool "BOOL" 8, C64 "C64" 64, F8E8M0 "F8_E8M0" 8, F8E4M3Fnuz "F8_E4M3FNUZ" 8, F8E5M2Fnuz "F8_E5M2FNUZ" 8,
    F6E2M3 "F6_E2M3" 6, F6E3M2 "F6_E3M2" 6, F4 "F4" 4,
}

impl Dtype {
    /// Whether a tensor of this type is averaged when the spec says nothing of it.
    ///
    /// Floats are. The packed block-scaled formats (F4, F6, the scale type F8_E8M0), complex numbers and the FNUZ
    /// variants are carried but kept, because an average of their codes has no meaning without their scales.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::Bf16 | Self::F16 | Self::F8E4M3 | Self::F8E5M2)
    }

    /// Whether functions can read and write elements of this type, so that a rule may ask for its mean or maximum.
    pub const fn is_foldable(self) -> bool {
        !matches!(
            self,
            Self::C64 | Self::F8E8M0 | Self::F8E4M3Fnuz | Self::F8E5M2Fnuz | Self::F6E2M3 | Self::F6E3M2 | Self::F4
        )
    }

    /// The narrowest type that holds every number of all of these exactly, of types that [`Dtype::is_float`]. One alone,
    /// whatever it is, holds its own. `None` without any.
    pub fn holding(dtypes: &[Self]) -> Option<Self> {
        let first = *dtypes.first()?;
        let has = |dtype| dtypes.contains(&dtype);
        if dtypes.iter().all(|dtype| *dtype == first) {
            return Some(first);
        }
        if has(Self::F64) {
            return Some(Self::F64);
        }
        // Neither of the 16-bit types holds the other: one has more exponents, the other more digits.
        if has(Self::F32) || (has(Self::Bf16) && has(Self::F16)) {
            return Some(Self::F32);
        }
        // Each of them holds both 8-bit types.
        Some(if has(Self::F16) { Self::F16 } else { Self::Bf16 })
    }

    /// Whether it has whole numbers that are no f64, as functions compute in: some beyond 2^53 - 1.
    pub const fn exceeds_f64(self) -> bool {
        matches!(self, Self::I64 | Self::U64)
    }

    /// Bytes of `elements` elements; `None` when that is no whole number of bytes or overflows.
    pub fn bytes(self, elements: u64) -> Option<u64> {
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_several_types_is_as_narrow_as_can_be() {
        use Dtype::*;
        for (dtypes, expected) in [
            (&[][..], None),
            (&[I64], Some(I64)),
            (&[F16, F16], Some(F16)),
            (&[F16, Bf16], Some(F32)),
            (&[F8E4M3, F8E5M2], Some(Bf16)),
            (&[F8E4M3, F16, F8E5M2], Some(F16)),
            (&[F8E5M2, Bf16], Some(Bf16)),
            (&[F8E5M2, Bf16, F16], Some(F32)),
            (&[Bf16, F32], Some(F32)),
            (&[F8E4M3, F64, F32], Some(F64)),
        ] {
            assert_eq!(Dtype::holding(dtypes), expected, "{dtypes:?}");
            let turned: Vec<Dtype> = dtypes.iter().rev().copied().collect();
            assert_eq!(Dtype::holding(&turned), expected, "{turned:?}");
        }
    }
}
