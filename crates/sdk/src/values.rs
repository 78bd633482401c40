//! Typed slices: a tensor's numbers in whatever dtype they were submitted.

use crate::{Bf16, Bool, Element, F8E4M3, F8E5M2, F16};

macro_rules! dtypes {
    ($($variant:ident $type:ty, $code:literal, $text:literal;)*) => {
        /// The dtype of a tensor's elements. Numbers are fixed for good: the host and functions exchange them.
        #[allow(missing_docs, reason = "the names are safetensors' own")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Dtype {
            $($variant = $code,)*
        }

        impl Dtype {
            /// Every dtype a function may meet.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Bytes of one element.
            pub const fn bytes(self) -> usize {
                match self { $(Self::$variant => size_of::<$type>(),)* }
            }

            /// The name in a safetensors header.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        /// Read-only numbers of one dtype.
        #[allow(missing_docs, reason = "the names are safetensors' own")]
        #[derive(Debug, Clone, Copy)]
        pub enum Values<'a> {
            $($variant(&'a [$type]),)*
        }

        /// Writable numbers of one dtype.
        #[allow(missing_docs, reason = "the names are safetensors' own")]
        #[derive(Debug)]
        pub enum ValuesMut<'a> {
            $($variant(&'a mut [$type]),)*
        }

        impl Values<'_> {
            /// The dtype.
            pub const fn dtype(&self) -> Dtype {
                match self { $(Self::$variant(_) => Dtype::$variant,)* }
            }

            /// How many numbers.
            pub const fn len(&self) -> usize {
                match self { $(Self::$variant(x) => x.len(),)* }
            }

            /// Number `i` as `f64`: exact for all but 64-bit integers beyond 2^53, which round to nearest.
            ///
            /// # Panics
            /// When `i` is not below [`Values::len`]. In loops, [`Values::read`] is many times faster.
            pub fn get(&self, i: usize) -> f64 {
                match self {
                    $(Self::$variant(x) => x[i].to_f64(),)*
                }
            }

            /// Copies the numbers from `start` on into `out`, as many as it holds.
            ///
            /// # Panics
            /// When fewer than that are left.
            pub fn read(&self, start: usize, out: &mut [f64]) {
                match self {
                    $(Self::$variant(x) => read(&x[start..], out),)*
                }
            }
        }

        impl ValuesMut<'_> {
            /// The dtype.
            pub const fn dtype(&self) -> Dtype {
                match self { $(Self::$variant(_) => Dtype::$variant,)* }
            }

            /// How many numbers.
            pub const fn len(&self) -> usize {
                match self { $(Self::$variant(x) => x.len(),)* }
            }

            /// Writes `numbers` from `start` on, each rounded once to the nearest, ties to even. Integers saturate,
            /// and booleans are true from one half on.
            ///
            /// # Panics
            /// When they do not fit.
            pub fn write(&mut self, start: usize, numbers: &[f64]) {
                match self {
                    $(Self::$variant(out) => write(&mut out[start..], numbers),)*
                }
            }

            /// The same numbers, read-only.
            pub fn as_values(&self) -> Values<'_> {
                match self { $(Self::$variant(x) => Values::$variant(x),)* }
            }
        }
    };
}

dtypes! {
    F64 f64, 1, "F64";
    F32 f32, 2, "F32";
    Bf16 Bf16, 3, "BF16";
    F16 F16, 4, "F16";
    F8E4M3 F8E4M3, 5, "F8_E4M3";
    F8E5M2 F8E5M2, 6, "F8_E5M2";
    I64 i64, 7, "I64";
    I32 i32, 8, "I32";
    I16 i16, 9, "I16";
    I8 i8, 10, "I8";
    U64 u64, 11, "U64";
    U32 u32, 12, "U32";
    U16 u16, 13, "U16";
    U8 u8, 14, "U8";
    Bool Bool, 15, "BOOL";
}

impl Dtype {
    /// The dtype with this number.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|d| *d as u32 == code)
    }

    /// The dtype with this name in a safetensors header; `None` also for those that functions never meet (packed
    /// formats below 8 bits, complex numbers, bare scales).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|d| d.as_str() == name)
    }
}

impl Values<'_> {
    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl ValuesMut<'_> {
    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn read<T: Element>(from: &[T], out: &mut [f64]) {
    let from = &from[..out.len()];
    for (o, x) in out.iter_mut().zip(from) {
        *o = x.to_f64();
    }
}

fn write<T: Element>(out: &mut [T], numbers: &[f64]) {
    let out = &mut out[..numbers.len()];
    for (o, x) in out.iter_mut().zip(numbers) {
        *o = T::from_f64(*x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_are_unique_and_found_again() {
        for &dtype in Dtype::ALL {
            assert_eq!(Dtype::from_code(dtype as u32), Some(dtype));
            assert_eq!(Dtype::from_name(dtype.as_str()), Some(dtype));
        }
        assert_eq!(Dtype::from_code(0), None);
        assert_eq!(Dtype::from_name("F4"), None);
        assert_eq!(Dtype::Bf16.bytes(), 2);
    }

    #[test]
    fn reads_and_writes_every_dtype() {
        let numbers = [0.0, 1.0, 2.0, 96.0];
        let mut out = [0.0; 3];
        macro_rules! check {
            ($($variant:ident $zero:expr;)*) => {$(
                let mut store = [$zero; 4];
                let mut values = ValuesMut::$variant(&mut store);
                values.write(0, &numbers);
                assert_eq!((values.len(), values.is_empty(), values.dtype()), (4, false, Dtype::$variant));
                let values = values.as_values();
                values.read(1, &mut out);
                assert_eq!(out, [1.0, 2.0, 96.0], "{:?}", values.dtype());
                assert_eq!(values.get(3), 96.0);
            )*};
        }
        check! {
            F64 0.0; F32 0.0; Bf16 Bf16(0); F16 F16(0); F8E4M3 F8E4M3(0); F8E5M2 F8E5M2(0);
            I64 0; I32 0; I16 0; I8 0; U64 0; U32 0; U16 0; U8 0;
        }
    }

    #[test]
    fn booleans_are_zero_or_one() {
        let mut store = [Bool(7); 3];
        ValuesMut::Bool(&mut store).write(0, &[0.49, 0.5, -1.0]);
        assert_eq!(store, [Bool(0), Bool(1), Bool(0)]);
        assert_eq!(Values::Bool(&[Bool(9)]).get(0), 1.0);
    }
}
