//! F16 to F32 for functions: the one thing the host computes on their behalf.
//!
//! Common processors convert eight of them with one instruction; in wasm it takes some twenty for four. Without this,
//! folding F16 would be bound by arithmetic instead of memory.
#![allow(unsafe_code, reason = "a guest's addresses, once checked, and an instruction that not every processor has")]

use catchment_sdk::F16;

/// Converts `count` numbers in little endian. Neither address needs to be aligned.
///
/// # Safety
/// `2 · count` bytes can be read at `from`, `4 · count` bytes can be written at `to`, and they do not overlap. Others may
/// be writing to what is read; then the numbers are any.
pub unsafe fn widen(from: *const u8, to: *mut u8, count: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("f16c") {
        // SAFETY: the processor has it, and the rest is the caller's promise.
        return unsafe { x86::widen(from, to, count) };
    }
    // SAFETY: the caller's promise.
    unsafe { portable(from, to, count) }
}

/// # Safety
/// As [`widen`].
unsafe fn portable(from: *const u8, to: *mut u8, count: usize) {
    for i in 0..count {
        // SAFETY: `i` is below `count`, for which the caller has promised.
        unsafe {
            let bits = u16::from_le(from.cast::<u16>().add(i).read_unaligned());
            to.cast::<u32>().add(i).write_unaligned(F16(bits).to_f32().to_bits().to_le());
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_cvtph_ps, _mm256_storeu_ps};

    const LANES: usize = 8;
    /// Numbers of a cache line.
    const LINE: usize = 32;

    /// # Safety
    /// As [`super::widen`], on a processor with F16C.
    #[target_feature(enable = "f16c")]
    pub unsafe fn widen(from: *const u8, to: *mut u8, count: usize) {
        let whole = count - count % LANES;
        for i in (0..whole).step_by(LANES) {
            if i.is_multiple_of(LINE) {
                // Kernels go through many updates in turn, a block of each: too many streams for the processor to guess
                // that this one's next block is wanted soon. Fetching ahead reads nothing, whatever lies there.
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(2 * (count + i)).cast());
            }
            // SAFETY: eight numbers from `i` on lie below `count`, for which the caller has promised; both instructions
            // take any address.
            unsafe {
                let eight = _mm_loadu_si128(from.add(2 * i).cast());
                _mm256_storeu_ps(to.add(4 * i).cast(), _mm256_cvtph_ps(eight));
            }
        }
        // SAFETY: what is left lies below `count`.
        unsafe { super::portable(from.add(2 * whole), to.add(4 * whole), count - whole) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Way = unsafe fn(*const u8, *mut u8, usize);

    fn run(way: Way, from: &[u8], count: usize) -> Vec<u8> {
        let mut to = vec![0xa5; 4 * count + 8];
        assert!(2 * count <= from.len());
        // SAFETY: both are long enough, as was just checked, and apart.
        unsafe { way(from.as_ptr(), to.as_mut_ptr(), count) };
        assert_eq!(to.split_off(4 * count), [0xa5; 8], "nothing is written beyond the last");
        to
    }

    /// Every F16 there is, subnormals included, in both ways, at any place and length.
    #[test]
    fn every_number_is_the_one_that_half_gives() {
        let codes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for way in [widen as Way, portable] {
            let found = run(way, &codes, 1 << 16);
            for (code, found) in (0..=u16::MAX).zip(found.as_chunks::<4>().0) {
                let (found, expected) = (f32::from_le_bytes(*found), ::half::f16::from_bits(code).to_f32());
                let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                assert!(same, "{code:#06x} is {expected}, not {found}");
            }
            for (first, count) in [(0, 0), (0, 1), (3, 7), (1, 8), (5, 9), (2, 1023)] {
                let whole = run(way, &codes, first + count);
                assert_eq!(run(way, &codes[2 * first..], count), whole[4 * first..], "{count} from {first} on");
                assert_eq!(run(way, &codes[2 * first + 1..], count).len(), 4 * count, "at an odd address");
            }
        }
    }
}
