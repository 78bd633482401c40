//! What the processor itself can do: reading memory, and the fused sum with nothing between it and the numbers.
//!
//! The loops are plain Rust; each is compiled for AVX2 and AVX-512 as well, and the widest that the processor has is
//! taken. That choice is what needs unsafe code here.
#![allow(unsafe_code, reason = "calling what was compiled for the processor that is there")]

use std::hint::black_box;

/// Coordinates per block: 4 KiB of partial, as in the wasm kernel.
const BLOCK: usize = 512;
/// Updates taken at a time, as there.
const STREAMS: usize = 4;

/// Numbers that are summed in `f64`.
pub trait Number: Copy + Into<f64> + Sync {}
impl Number for f32 {}
impl Number for f64 {}

/// The instructions that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// What every processor of the architecture has.
    Base,
    /// 32 bytes at a time.
    Avx2,
    /// 64 bytes at a time.
    Avx512,
}

impl Width {
    /// The widest there is.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") {
                return Self::Avx2;
            }
        }
        Self::Base
    }

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "baseline SIMD",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
        }
    }
}

/// Reads every byte, in several streams at once, and does next to nothing with them.
pub fn read(streams: &[&[u8]]) {
    #[cfg(target_arch = "x86_64")]
    match Width::detect() {
        // SAFETY: the processor has it, as was just found.
        Width::Avx512 => return unsafe { x86::read_avx512(streams) },
        // SAFETY: the same.
        Width::Avx2 => return unsafe { x86::read_avx2(streams) },
        Width::Base => {}
    }
    read_plain(streams);
}

/// `out[i] = from[i] + Σ weight · term[i]` in `f64`, in the order of the terms, without fused multiply-add: the same
/// arithmetic as the wasm kernel, and so the same bits.
pub fn fold<T: Number>(from: &[f64], out: &mut [f64], terms: &[(&[T], f64)]) {
    #[cfg(target_arch = "x86_64")]
    match Width::detect() {
        // SAFETY: the processor has it, as was just found.
        Width::Avx512 => return unsafe { x86::fold_avx512(from, out, terms) },
        // SAFETY: the same.
        Width::Avx2 => return unsafe { x86::fold_avx2(from, out, terms) },
        Width::Base => {}
    }
    fold_plain(from, out, terms);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Number, fold_plain, read_plain};

    #[target_feature(enable = "avx2")]
    pub fn read_avx2(streams: &[&[u8]]) {
        read_plain(streams);
    }

    #[target_feature(enable = "avx512f,avx512dq,avx512vl")]
    pub fn read_avx512(streams: &[&[u8]]) {
        read_plain(streams);
    }

    #[target_feature(enable = "avx2")]
    pub fn fold_avx2<T: Number>(from: &[f64], out: &mut [f64], terms: &[(&[T], f64)]) {
        fold_plain(from, out, terms);
    }

    #[target_feature(enable = "avx512f,avx512dq,avx512vl")]
    pub fn fold_avx512<T: Number>(from: &[f64], out: &mut [f64], terms: &[(&[T], f64)]) {
        fold_plain(from, out, terms);
    }
}

#[inline(always)]
fn read_plain(streams: &[&[u8]]) {
    let length = streams.iter().map(|stream| stream.len()).min().unwrap_or(0);
    let mut sums = [0u64; 32];
    for at in (0..length).step_by(4096) {
        for stream in streams {
            for line in stream[at..length.min(at + 4096)].as_chunks::<256>().0 {
                for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                    *sum = sum.wrapping_add(u64::from_le_bytes(*word));
                }
            }
        }
    }
    black_box(sums);
}

#[inline(always)]
fn fold_plain<T: Number>(from: &[f64], out: &mut [f64], terms: &[(&[T], f64)]) {
    assert!(from.len() == out.len() && terms.iter().all(|(term, _)| term.len() == out.len()), "the same coordinates");
    for (number, out) in out.chunks_mut(BLOCK).enumerate() {
        let start = number * BLOCK;
        let within = start..start + out.len();
        let mut from = Some(&from[within.clone()]);
        let mut rest = terms;
        while !rest.is_empty() {
            let count = match rest.len() {
                STREAMS.. => STREAMS,
                2.. => 2,
                _ => 1,
            };
            let (group, after) = rest.split_at(count);
            let term = |k: usize| (&group[k].0[within.clone()], group[k].1);
            match count {
                STREAMS => add(from.take(), out, [term(0), term(1), term(2), term(3)]),
                2 => add(from.take(), out, [term(0), term(1)]),
                _ => add(from.take(), out, [term(0)]),
            }
            rest = after;
        }
    }
}

#[inline(always)]
fn add<T: Number, const K: usize>(from: Option<&[f64]>, out: &mut [f64], terms: [(&[T], f64); K]) {
    let weights = terms.map(|(_, weight)| weight);
    let values = terms.map(|(values, _)| &values[..out.len()]);
    let sum = |start: f64, i: usize| {
        let mut sum = start;
        for k in 0..K {
            let x: f64 = values[k][i].into();
            sum += weights[k] * x;
        }
        sum
    };
    match from {
        Some(from) => {
            for (i, (to, from)) in out.iter_mut().zip(from).enumerate() {
                *to = sum(*from, i);
            }
        }
        None => {
            for (i, to) in out.iter_mut().enumerate() {
                *to = sum(*to, i);
            }
        }
    }
}

/// The same by several threads, each with its share of the coordinates.
pub fn fold_shared<T: Number>(threads: usize, from: &[f64], out: &mut [f64], terms: &[(&[T], f64)]) {
    let share = out.len().div_ceil(threads).next_multiple_of(BLOCK);
    std::thread::scope(|scope| {
        for (number, out) in out.chunks_mut(share).enumerate() {
            let within = number * share..number * share + out.len();
            let from = &from[within.clone()];
            let terms: Vec<(&[T], f64)> = terms.iter().map(|(term, weight)| (&term[within.clone()], *weight)).collect();
            scope.spawn(move || fold(from, out, &terms));
        }
    });
}

/// Reads slabs with several threads, each its share of every one, `streams` of them at a time.
pub fn read_shared(threads: usize, streams: usize, slabs: &[&[u8]]) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for group in slabs.chunks(streams) {
                    let share = group[0].len() / threads;
                    let parts: Vec<&[u8]> = group.iter().map(|slab| &slab[thread * share..][..share]).collect();
                    read(&parts);
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_widest_gives_the_same_bits_as_the_plainest() {
        let term = |seed: usize| (0..1300).map(|i| ((i * 37 + seed * 101) % 251) as f32 / 7.0).collect::<Vec<_>>();
        let terms: Vec<Vec<f32>> = (0..7).map(term).collect();
        let terms: Vec<(&[f32], f64)> = terms.iter().enumerate().map(|(k, term)| (&term[..], 0.1 + k as f64)).collect();
        let from: Vec<f64> = (0..1300).map(|i| f64::from(i) / 3.0).collect();
        let (mut plain, mut wide, mut shared) = (vec![0.0; 1300], vec![0.0; 1300], vec![0.0; 1300]);
        for i in 0..1300 {
            plain[i] = terms.iter().fold(from[i], |sum, (term, weight)| sum + weight * f64::from(term[i]));
        }
        fold(&from, &mut wide, &terms);
        fold_shared(2, &from, &mut shared, &terms);
        assert_eq!(plain, wide);
        assert_eq!(plain, shared);
    }
}
