//! Finds NaN and infinity. One non-finite element would spoil the model for everybody, and min and max order NaN
//! differently on different machines, so such an update is refused at the door.

use catchment_types::Dtype;

/// The index of the first element of `bytes` that is NaN or infinite. `bytes` holds whole little-endian elements.
pub fn first_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<usize> {
    match dtype {
        Dtype::F64 => find(bytes, |b| u64::from_le_bytes(b) & (0x7ff << 52) == 0x7ff << 52),
        Dtype::F32 => find(bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        Dtype::Bf16 => find(bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        Dtype::F16 => find(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
        Dtype::F8E5M2 => find(bytes, |[b]| b & 0x7c == 0x7c),
        Dtype::F8E4M3 => find(bytes, |[b]| b & 0x7f == 0x7f),
        _ => None,
    }
}

/// The index of the first element that is bad. Whole blocks are looked at without a branch per element, so that the compiler makes vectors of them.
pub fn find<const WIDTH: usize>(bytes: &[u8], bad: impl Fn([u8; WIDTH]) -> bool) -> Option<usize> {
    let (elements, rest) = bytes.as_chunks::<WIDTH>();
    assert!(rest.is_empty(), "whole elements are screened");
    let mut first = 0;
    for block in elements.chunks(512) {
        if block.iter().fold(false, |any, element| any | bad(*element)) {
            return block.iter().position(|element| bad(*element)).map(|at| first + at);
        }
        first += block.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first() {
        for (at, bad) in [(0, f32::NAN), (700, f32::INFINITY), (1023, f32::NEG_INFINITY)] {
            let mut values = vec![f32::MAX; 1024];
            values[at] = bad;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(first_non_finite(Dtype::F32, &bytes), Some(at));
        }
        let fine: Vec<u8> =
            [0.0, -0.0, f64::MIN_POSITIVE / 2.0, f64::MAX].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(first_non_finite(Dtype::F64, &fine), None);
    }

    #[test]
    fn small_floats_agree_with_their_definition() {
        for bits in 0..=u16::MAX {
            let finite = |value: f64| value.is_finite().then_some(()).is_none().then_some(0);
            let f16 = half::f16::from_bits(bits).to_f64();
            assert_eq!(first_non_finite(Dtype::F16, &bits.to_le_bytes()), finite(f16));
            let bf16 = half::bf16::from_bits(bits).to_f64();
            assert_eq!(first_non_finite(Dtype::Bf16, &bits.to_le_bytes()), finite(bf16));
        }
        assert_eq!(first_non_finite(Dtype::F8E4M3, &[0x7e, 0xff]), Some(1));
        assert_eq!(first_non_finite(Dtype::F8E5M2, &[0x7b, 0x7c]), Some(1));
        assert_eq!(first_non_finite(Dtype::I32, &[0xff; 4]), None);
    }
}
