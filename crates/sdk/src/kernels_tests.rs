//! The kernels against plain loops.

use super::*;
use crate::{Bf16, F8E4M3, F16};
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

/// What [`weighted_sum`] promises, written the plain way: strictly in order, in `f64`.
fn naive(acc_in: Option<&[f64]>, terms: &[Term<'_>], len: usize) -> Vec<f64> {
    (0..len)
        .map(|i| terms.iter().fold(acc_in.map_or(0.0, |a| a[i]), |sum, (values, weight)| sum + weight * values.get(i)))
        .collect()
}

fn numbers(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

/// Owned numbers of one dtype.
enum Owned {
    F64(Vec<f64>),
    F32(Vec<f32>),
    Bf16(Vec<Bf16>),
    F16(Vec<F16>),
    F8(Vec<F8E4M3>),
    I32(Vec<i32>),
}

impl Owned {
    fn new(kind: u8, from: Vec<f64>) -> Self {
        match kind {
            0 => Self::F64(from),
            1 => Self::F32(from.into_iter().map(Element::from_f64).collect()),
            2 => Self::Bf16(from.into_iter().map(Element::from_f64).collect()),
            3 => Self::F16(from.into_iter().map(Element::from_f64).collect()),
            4 => Self::F8(from.into_iter().map(Element::from_f64).collect()),
            _ => Self::I32(from.into_iter().map(|x| Element::from_f64(x * 1e6)).collect()),
        }
    }

    fn values(&self) -> Values<'_> {
        match self {
            Self::F64(x) => Values::F64(x),
            Self::F32(x) => Values::F32(x),
            Self::Bf16(x) => Values::Bf16(x),
            Self::F16(x) => Values::F16(x),
            Self::F8(x) => Values::F8E4M3(x),
            Self::I32(x) => Values::I32(x),
        }
    }
}

proptest! {
    /// Any dtypes, mixed, any number of terms, any length: bit for bit the plain loop.
    #[test]
    fn weighted_sum_is_the_plain_loop(
        len in 1usize..1400,
        kinds in prop::collection::vec(0u8..6, 1..=TERMS_MAX),
        seed in any::<u64>(),
        fresh in any::<bool>(),
    ) {
        let owned: Vec<Owned> =
            kinds.iter().zip(1..).map(|(&kind, n)| Owned::new(kind, numbers(seed ^ n, len))).collect();
        let weights = numbers(seed ^ 99, kinds.len());
        let terms: Vec<Term<'_>> = owned.iter().map(Owned::values).zip(weights).collect();
        let acc = numbers(seed ^ 77, len);
        let acc_in = (!fresh).then_some(&acc[..]);
        let mut out = vec![f64::NAN; len];
        weighted_sum(acc_in, &mut out, terms.iter().copied());
        prop_assert_eq!(&out, &naive(acc_in, &terms, len));

        // One term a call gives the same bits as all at once.
        let mut step = acc_in.map(<[f64]>::to_vec);
        for &term in &terms {
            let mut next = vec![f64::NAN; len];
            weighted_sum(step.as_deref(), &mut next, [term]);
            step = Some(next);
        }
        prop_assert_eq!(step.as_deref(), Some(&out[..]));
    }

    #[test]
    fn max_is_the_largest(len in 1usize..1100, count in 1usize..=TERMS_MAX, seed in any::<u64>()) {
        let lists: Vec<Vec<f64>> = (1..=count as u64).map(|n| numbers(seed ^ n, len)).collect();
        let mut out = vec![f64::NAN; len];
        max(None, &mut out, lists.iter().map(|l| Values::F64(l)));
        for (i, found) in out.iter().enumerate() {
            prop_assert_eq!(*found, lists.iter().map(|l| l[i]).fold(f64::NEG_INFINITY, f64::max));
        }
        let partials: Vec<&[f64]> = lists.iter().map(|l| &l[..]).collect();
        let mut merged = vec![f64::NAN; len];
        merge_max(Some(&out), &mut merged, &partials);
        prop_assert_eq!(merged, out);
    }
}

#[test]
fn merging_adds() {
    let mut out = [0.0; 3];
    merge_sum(Some(&[1.0, 2.0, 3.0]), &mut out, &[&[10.0, 20.0, 30.0], &[100.0, 200.0, 300.0]]);
    assert_eq!(out, [111.0, 222.0, 333.0]);
    merge_sum(None, &mut out, &[&[1.0, 2.0, 3.0]]);
    assert_eq!(out, [1.0, 2.0, 3.0]);
}

#[test]
fn scaling_divides_and_adds_the_previous_model() {
    let mut out = [0f32; 3];
    scale(&[3.0, -6.0, -0.0], 3.0, None, ValuesMut::F32(&mut out));
    assert_eq!(out.map(f32::to_bits), [1f32, -2.0, -0.0].map(f32::to_bits));
    scale(&[3.0, -6.0, 0.0], 3.0, Some(Values::F32(&[0.5, 0.5, 0.5])), ValuesMut::F32(&mut out));
    assert_eq!(out, [1.5, -1.5, 0.5]);
}

#[test]
#[should_panic(expected = "same coordinates")]
fn lengths_must_agree() {
    weighted_sum(None, &mut [0.0; 2], [(Values::F64(&[1.0]), 1.0)]);
}

#[test]
#[should_panic(expected = "at most 16 terms")]
fn terms_are_limited() {
    weighted_sum(None, &mut [0.0], (0..17).map(|_| (Values::F64(&[1.0]), 1.0)));
}
