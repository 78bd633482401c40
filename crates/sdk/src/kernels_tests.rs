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
        weighted_sum(acc_in.map(Partial::F64), PartialMut::F64(&mut out), terms.iter().copied());
        prop_assert_eq!(&out, &naive(acc_in, &terms, len));

        // One term a call gives the same bits as all at once.
        let mut step = acc_in.map(<[f64]>::to_vec);
        for &term in &terms {
            let mut next = vec![f64::NAN; len];
            weighted_sum(step.as_deref().map(Partial::F64), PartialMut::F64(&mut next), [term]);
            step = Some(next);
        }
        prop_assert_eq!(step.as_deref(), Some(&out[..]));
    }

    #[test]
    fn max_is_the_largest(len in 1usize..1100, count in 1usize..=TERMS_MAX, seed in any::<u64>()) {
        let lists: Vec<Vec<f64>> = (1..=count as u64).map(|n| numbers(seed ^ n, len)).collect();
        let mut out = vec![f64::NAN; len];
        max(None, PartialMut::F64(&mut out), lists.iter().map(|l| Values::F64(l)));
        for (i, found) in out.iter().enumerate() {
            prop_assert_eq!(*found, lists.iter().map(|l| l[i]).fold(f64::NEG_INFINITY, f64::max));
        }
        let partials: Vec<Partial<'_>> = lists.iter().map(|l| Partial::F64(l)).collect();
        let mut merged = vec![f64::NAN; len];
        merge_max(Some(Partial::F64(&out)), PartialMut::F64(&mut merged), &partials);
        prop_assert_eq!(merged, out);
    }
}

#[test]
fn merging_adds() {
    let mut out = [0.0; 3];
    let partials = [Partial::F64(&[10.0, 20.0, 30.0]), Partial::F64(&[100.0, 200.0, 300.0])];
    merge_sum(Some(Partial::F64(&[1.0, 2.0, 3.0])), PartialMut::F64(&mut out), &partials);
    assert_eq!(out, [111.0, 222.0, 333.0]);
    merge_sum(None, PartialMut::F64(&mut out), &[Partial::F64(&[1.0, 2.0, 3.0])]);
    assert_eq!(out, [1.0, 2.0, 3.0]);
}

#[test]
fn scaling_divides_and_adds_the_previous_model() {
    let mut out = [0f32; 3];
    scale(Partial::F64(&[3.0, -6.0, -0.0]), 3.0, None, ValuesMut::F32(&mut out));
    assert_eq!(out.map(f32::to_bits), [1f32, -2.0, -0.0].map(f32::to_bits));
    scale(Partial::F64(&[3.0, -6.0, 0.0]), 3.0, Some(Values::F32(&[0.5, 0.5, 0.5])), ValuesMut::F32(&mut out));
    assert_eq!(out, [1.5, -1.5, 0.5]);
}

#[test]
#[should_panic(expected = "same coordinates")]
fn lengths_must_agree() {
    weighted_sum(None, PartialMut::F64(&mut [0.0; 2]), [(Values::F64(&[1.0]), 1.0)]);
}

#[test]
#[should_panic(expected = "at most 16 terms")]
fn terms_are_limited() {
    weighted_sum(None, PartialMut::F64(&mut [0.0]), (0..17).map(|_| (Values::F64(&[1.0]), 1.0)));
}

/// Terms, some of them at the very bounds, and the exponent that those bounds allow.
fn bounded(seed: u64, len: usize, count: usize, bound: f64, weight_max: f64) -> (Vec<Vec<f32>>, Vec<f64>) {
    let values = |n: u64| {
        let edge = |i: usize, x: f64| match (seed ^ n ^ i as u64) % 5 {
            0 => bound,
            1 => -bound,
            _ => x * bound,
        };
        numbers(seed ^ n, len).into_iter().enumerate().map(|(i, x)| edge(i, x) as f32).collect()
    };
    // Whole numbers below 2^29: products with f32 have no rounding of their own.
    let weights = numbers(seed ^ 99, count).into_iter().map(|x| (x.abs() * weight_max).ceil()).collect();
    ((1..=count as u64).map(values).collect(), weights)
}

proptest! {
    /// Any order, any cut into calls, any tree: the same integers, and as close to the true sum as is promised.
    #[test]
    fn exact_sums_do_not_depend_on_the_order(
        len in 1usize..1100,
        count in 1usize..60,
        seed in any::<u64>(),
        bound_log in -20i32..20,
        weight_log in 0i32..28,
        order in any::<prop::sample::Index>(),
        cut in 1usize..=TERMS_MAX,
        leaves in 1usize..=TERMS_MAX,
    ) {
        let (bound, weight_max) = (2f64.powi(bound_log), 2f64.powi(weight_log));
        // 2^51, and 60 of it are below 2^63.
        let exact = Exact { exponent: 51 - bound_log - weight_log, weight_max };
        let (values, weights) = bounded(seed, len, count, bound, weight_max);
        let terms: Vec<Term<'_>> = values.iter().map(|v| Values::F32(v)).zip(weights.iter().copied()).collect();
        let sum = |terms: &[Term<'_>], cut: usize| {
            let mut acc: Option<Vec<i64>> = None;
            for batch in terms.chunks(cut) {
                let mut next = vec![-1; len];
                let before = acc.as_deref().map(|acc| Partial::Fixed(acc, exact));
                weighted_sum(before, PartialMut::Fixed(&mut next, exact), batch.iter().copied());
                acc = Some(next);
            }
            acc.unwrap()
        };
        let all = sum(&terms, TERMS_MAX);
        let mut turned = terms.clone();
        turned.rotate_left(order.index(count));
        turned.reverse();
        prop_assert_eq!(&sum(&turned, cut), &all);
        let parts: Vec<Vec<i64>> = turned.chunks(count.div_ceil(leaves)).map(|leaf| sum(leaf, cut)).collect();
        let parts: Vec<Partial<'_>> = parts.iter().map(|part| Partial::Fixed(part, exact)).collect();
        let mut top = vec![-1; len];
        merge_sum(None, PartialMut::Fixed(&mut top, exact), &parts);
        prop_assert_eq!(&top, &all);

        // Products of f32 and these weights are whole in f64, so what each loses in rounding can be seen.
        for (i, found) in all.iter().enumerate() {
            let unit = 2f64.powi(exact.exponent);
            let error: f64 = terms.iter().map(|(x, w)| {
                let p = x.get(i) * (w * unit);
                p - p.round_ties_even()
            }).sum();
            let rounded: i64 = terms.iter().map(|(x, w)| (x.get(i) * (w * unit)).round_ties_even() as i64).sum();
            prop_assert_eq!(*found, rounded);
            prop_assert!(error.abs() <= count as f64 / 2.0, "half a unit for each term");
        }
        let mut mean = vec![0f64; len];
        let total: f64 = weights.iter().sum();
        scale(Partial::Fixed(&all, exact), total, None, ValuesMut::F64(&mut mean));
        for (i, found) in mean.iter().enumerate() {
            let true_sum: f64 = terms.iter().map(|(x, w)| x.get(i) * w).sum();
            // The reference itself is rounded with every addition.
            let allowed = count as f64 * exact.unit() / 2.0 + count as f64 * count as f64 * bound * weight_max * 2f64.powi(-53);
            prop_assert!((found - true_sum / total).abs() <= allowed / total, "{} {}", found, true_sum / total);
        }
    }

    /// The largest of two zeros is the same whichever comes first.
    #[test]
    fn a_maximum_does_not_depend_on_the_order(mut values in prop::collection::vec(prop::sample::select(vec![0.0f64, -0.0, -1.0]), 2..16)) {
        let largest = |values: &[f64]| {
            let mut out = [f64::NAN];
            let one: Vec<[f64; 1]> = values.iter().map(|x| [*x]).collect();
            max(None, PartialMut::F64(&mut out), one.iter().map(|x| Values::F64(x)));
            out[0].to_bits()
        };
        let first = largest(&values);
        values.reverse();
        prop_assert_eq!(largest(&values), first);
    }
}

/// 4095 updates of the largest weight, every element at the bound: the sum is still below 2^63.
#[test]
fn the_extremes_do_not_overflow() {
    let exact = Exact { exponent: 51, weight_max: 1.0 };
    for sign in [1.0f32, -1.0] {
        let values = [sign; 20];
        let mut acc: Option<Vec<i64>> = None;
        for left in (0..4095usize).step_by(16) {
            let count = 16.min(4095 - left);
            let mut next = vec![0; 20];
            let before = acc.as_deref().map(|acc| Partial::Fixed(acc, exact));
            weighted_sum(before, PartialMut::Fixed(&mut next, exact), vec![(Values::F32(&values), 1.0); count]);
            acc = Some(next);
        }
        assert_eq!(acc.unwrap(), [sign as i64 * 4095 * (1 << 51); 20]);
    }
}

#[test]
#[should_panic(expected = "weight 3: at most 2")]
fn exact_weights_are_bounded() {
    let exact = Exact { exponent: 1, weight_max: 2.0 };
    weighted_sum(None, PartialMut::Fixed(&mut [0], exact), [(Values::F64(&[1.0]), 3.0)]);
}
