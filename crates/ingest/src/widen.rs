//! Brings elements into a wider float type, exactly.
//!
//! An update may have several float types where its slab has one, the narrowest that holds them all. Its narrower tensors
//! are received into the end of their place, and each element goes to its own place as soon as it is there. So nothing
//! is received twice, and only bytes that are still in cache are touched.

use crate::range::Format;
use catchment_types::Dtype;
use std::sync::LazyLock;

/// Elements that are taken out of the way before their places are written.
const BLOCK: usize = 256;

/// Takes `count` elements of the type and place `from`, and writes them as the type and to the place `to`, which may
/// reach into where they were: no element's new place may lie behind its old one's end.
///
/// # Panics
/// When `to` does not hold every number of `from`, or they are no float types.
pub fn widen(from: (Dtype, usize), to: (Dtype, usize), count: usize, memory: &mut [u8]) {
    let ((narrow, from), to) = (from, to);
    match narrow {
        Dtype::F32 if to.0 == Dtype::F64 => {
            each(from, to.1, count, memory, |b| f64::from(f32::from_le_bytes(b)).to_le_bytes());
        }
        // The upper half of an F16.
        Dtype::F8E5M2 if to.0 == Dtype::F16 => each(from, to.1, count, memory, |[b]| [0, b]),
        Dtype::Bf16 => each_f32(from, to, count, memory, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        Dtype::F16 => each_f32(from, to, count, memory, |b| f16_to_f32(u16::from_le_bytes(b))),
        Dtype::F8E4M3 => each_f32(from, to, count, memory, |[b]| F8E4M3[usize::from(b)]),
        Dtype::F8E5M2 => each_f32(from, to, count, memory, |[b]| F8E5M2[usize::from(b)]),
        other => unreachable!("{other} is not widened to {}", to.0),
    }
}

fn each_f32<const N: usize>(
    from: usize,
    (wide, to): (Dtype, usize),
    count: usize,
    memory: &mut [u8],
    number: impl Fn([u8; N]) -> f32,
) {
    match wide {
        Dtype::F64 => each(from, to, count, memory, |b| f64::from(number(b)).to_le_bytes()),
        Dtype::F32 => each(from, to, count, memory, |b| number(b).to_le_bytes()),
        // Its upper half, as it holds the number.
        Dtype::Bf16 => each(from, to, count, memory, |b| ((number(b).to_bits() >> 16) as u16).to_le_bytes()),
        Dtype::F16 => each(from, to, count, memory, |b| f32_to_f16(number(b)).to_le_bytes()),
        other => unreachable!("nothing is widened to {other}"),
    }
}

/// A finite F16, without arithmetic on subnormals, which is slow.
fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let x = f32::from_bits(magnitude + (112 << 23));
    // An exponent of 0 has no implicit one: what reads as 2^-15 (1 + f) stands for 2^-14 f.
    let x = if magnitude < 1 << 23 { x + (x - f32::from_bits(113 << 23)) } else { x };
    f32::from_bits(x.to_bits() | u32::from(bits & 0x8000) << 16)
}

/// Of zero, or of a number that is a normal F16, as those of F8_E4M3 are.
fn f32_to_f16(x: f32) -> u16 {
    let (sign, magnitude) = ((x.to_bits() >> 16) as u16 & 0x8000, x.to_bits() & 0x7fff_ffff);
    if magnitude == 0 { sign } else { sign | ((magnitude >> 13) - (112 << 10)) as u16 }
}

fn each<const N: usize, const W: usize>(
    from: usize,
    to: usize,
    count: usize,
    memory: &mut [u8],
    convert: impl Fn([u8; N]) -> [u8; W],
) {
    let mut block = [[0; N]; BLOCK];
    for first in (0..count).step_by(BLOCK) {
        let block = &mut block[..BLOCK.min(count - first)];
        let bytes = block.len() * N;
        block.as_flattened_mut().copy_from_slice(&memory[from + first * N..][..bytes]);
        let places = memory[to + first * W..][..block.len() * W].as_chunks_mut::<W>().0;
        for (place, element) in places.iter_mut().zip(&*block) {
            *place = convert(*element);
        }
    }
}

static F8E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| table(&Format { bits: 7, mantissa: 3, infinity: 0x7f }));
static F8E5M2: LazyLock<[f32; 256]> = LazyLock::new(|| table(&Format { bits: 7, mantissa: 2, infinity: 0x7c }));

/// The numbers of an 8-bit format. Those that are none are never asked for: they were refused before.
fn table(format: &Format) -> [f32; 256] {
    std::array::from_fn(|code| {
        let (code, sign) = (code as u32 & 0x7f, if code < 0x80 { 1.0 } else { -1.0 });
        if code < format.infinity { (sign * format.number(code)) as f32 } else { f32::NAN }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// Every finite code of a type with its number.
    fn codes(dtype: Dtype) -> Vec<(Vec<u8>, f64)> {
        let eight = |mantissa: i32, bias: i32, infinity: u8| {
            let number = move |code: u8| {
                let (exponent, fraction) =
                    (i32::from(code & 0x7f) >> mantissa, i32::from(code) & ((1 << mantissa) - 1));
                let (lead, power) = if exponent == 0 { (0, 1) } else { (1 << mantissa, exponent) };
                let magnitude = f64::from(lead + fraction) * 2f64.powi(power - bias - mantissa);
                if code < 0x80 { magnitude } else { -magnitude }
            };
            (0..=u8::MAX).filter(|code| code & 0x7f < infinity).map(|code| (vec![code], number(code))).collect()
        };
        let sixteen = |number: fn(u16) -> f64| {
            let all = (0..=u16::MAX).map(|code| (code.to_le_bytes().to_vec(), number(code)));
            all.filter(|(_, x)| x.is_finite()).collect()
        };
        match dtype {
            Dtype::F8E4M3 => eight(3, 7, 0x7f),
            Dtype::F8E5M2 => eight(2, 15, 0x7c),
            Dtype::F16 => sixteen(|code| f16::from_bits(code).to_f64()),
            Dtype::Bf16 => sixteen(|code| bf16::from_bits(code).to_f64()),
            Dtype::F32 => {
                let some = [0.0, -0.0, 1.5, f32::MAX, -f32::MIN_POSITIVE, f32::from_bits(1), 1.0 / 3.0];
                some.iter().map(|x| (x.to_le_bytes().to_vec(), f64::from(*x))).collect()
            }
            other => panic!("{other}"),
        }
    }

    fn number(dtype: Dtype, bytes: &[u8]) -> f64 {
        match dtype {
            Dtype::F64 => f64::from_le_bytes(bytes.try_into().unwrap()),
            Dtype::F32 => f32::from_le_bytes(bytes.try_into().unwrap()).into(),
            Dtype::Bf16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
            Dtype::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn every_number_of_every_type_is_the_same_in_every_wider_one() {
        let all = Dtype::ALL.iter().filter(|dtype| dtype.is_float());
        let pairs = all.clone().flat_map(|narrow| all.clone().map(move |wide| (*narrow, *wide)));
        let mut tried = 0;
        for (narrow, wide) in pairs.filter(|(a, b)| a != b && Dtype::holding(&[*a, *b]) == Some(*b)) {
            let codes = codes(narrow);
            let (n, w) = ((narrow.bits() / 8) as usize, (wide.bits() / 8) as usize);
            let mut memory = vec![0xaa; codes.len() * w];
            let landing = memory.len() - codes.len() * n;
            for (place, (code, _)) in memory[landing..].chunks_exact_mut(n).zip(&codes) {
                place.copy_from_slice(code);
            }
            // In pieces of any size, as they come.
            let mut done = 0;
            for piece in (1..).map(|i| i * 37 % 1000) {
                let count = piece.min(codes.len() - done);
                widen((narrow, landing + done * n), (wide, done * w), count, &mut memory);
                done += count;
                if done == codes.len() {
                    break;
                }
            }
            for (found, (_, expected)) in memory.chunks_exact(w).zip(&codes) {
                assert_eq!(number(wide, found).to_bits(), expected.to_bits(), "{narrow} to {wide}");
            }
            tried += 1;
        }
        assert_eq!(tried, 1 + 2 + 2 + 4 + 4, "every pair");
    }
}
