//! The loops that carry the weight: sums, maxima and scaling, fast on every dtype.
//!
//! Aggregation runs at the speed of memory or not at all, so these loops are written for it: coordinates in blocks
//! that stay in the first-level cache, up to four updates at a time, and inner loops of fixed length, which compilers
//! turn into SIMD without a time check per vector.
//!
//! Every coordinate is summed in `f64`, strictly in the order of the terms and without fused multiply-add. So the
//! result is the same bits natively and in wasm, in ranges or whole, and however many terms are taken at once.

use crate::element::Sealed;
use crate::pair::{LANES, Pair};
use crate::{Element, Values, ValuesMut};
use core::array::from_fn;

/// Terms of one call at most.
pub const TERMS_MAX: usize = 16;

/// Coordinates per block: 4 KiB of partial, which stays in cache while the terms of a call go by.
const BLOCK: usize = 512;

static ZEROS: [f64; BLOCK] = [0.0; BLOCK];
static LOWEST: [f64; BLOCK] = [f64::NEG_INFINITY; BLOCK];

/// `acc_out[i] = acc_in[i] + Σ weight · values[i]`, starting from 0 without `acc_in`.
///
/// # Panics
/// On no term, on more than [`TERMS_MAX`] terms, and when lengths differ.
pub fn weighted_sum<'a>(
    acc_in: Option<&[f64]>,
    acc_out: &mut [f64],
    terms: impl IntoIterator<Item = (Values<'a>, f64)>,
) {
    run::<WeightedSum>(acc_in, acc_out, terms);
}

/// `acc_out[i] = max(acc_in[i], values[i], …)`, starting from negative infinity without `acc_in`.
///
/// # Panics
/// On no term, on more than [`TERMS_MAX`] terms, and when lengths differ.
pub fn max<'a>(acc_in: Option<&[f64]>, acc_out: &mut [f64], terms: impl IntoIterator<Item = Values<'a>>) {
    run::<Max>(acc_in, acc_out, terms.into_iter().map(|values| (values, 1.0)));
}

/// `acc_out[i] = acc_in[i] + Σ partial[i]`, starting from 0 without `acc_in`.
///
/// # Panics
/// On no term, on more than [`TERMS_MAX`] partials, and when lengths differ.
pub fn merge_sum(acc_in: Option<&[f64]>, acc_out: &mut [f64], partials: &[&[f64]]) {
    run::<WeightedSum>(acc_in, acc_out, partials.iter().map(|p| (Values::F64(p), 1.0)));
}

/// `acc_out[i] = max(acc_in[i], partial[i], …)`, starting from negative infinity without `acc_in`.
///
/// # Panics
/// On no term, on more than [`TERMS_MAX`] partials, and when lengths differ.
pub fn merge_max(acc_in: Option<&[f64]>, acc_out: &mut [f64], partials: &[&[f64]]) {
    max(acc_in, acc_out, partials.iter().map(|p| Values::F64(p)));
}

/// `out[i] = previous[i] + partial[i] / divisor`, computed in `f64` and rounded once to the dtype of `out`; without
/// `previous`, the quotient alone.
///
/// # Panics
/// When lengths differ.
pub fn scale(partial: &[f64], divisor: f64, previous: Option<Values<'_>>, mut out: ValuesMut<'_>) {
    assert_eq!(out.len(), partial.len(), "out and partial cover the same coordinates");
    assert!(previous.is_none_or(|p| p.len() == partial.len()), "previous and partial cover the same coordinates");
    let mut sums = [0.0; BLOCK];
    for (number, block) in partial.chunks(BLOCK).enumerate() {
        let start = number * BLOCK;
        let sums = &mut sums[..block.len()];
        match previous {
            Some(previous) => previous.read(start, sums),
            // Minus zero is what leaves every addend as it is.
            None => sums.fill(-0.0),
        }
        for (sum, x) in sums.iter_mut().zip(block) {
            *sum += x / divisor;
        }
        out.write(start, sums);
    }
}

/// Numbers and their weight.
type Term<'a> = (Values<'a>, f64);

/// What is done with the numbers of a term.
trait Step {
    /// What a coordinate starts from.
    const START: &'static [f64; BLOCK];
    fn step(acc: Pair, weight: Pair, x: Pair) -> Pair;
}

struct WeightedSum;

impl Step for WeightedSum {
    const START: &'static [f64; BLOCK] = &ZEROS;
    #[inline(always)]
    fn step(acc: Pair, weight: Pair, x: Pair) -> Pair {
        acc.add(weight.mul(x))
    }
}

struct Max;

impl Step for Max {
    const START: &'static [f64; BLOCK] = &LOWEST;
    #[inline(always)]
    fn step(acc: Pair, _: Pair, x: Pair) -> Pair {
        acc.max(x)
    }
}

fn run<'a, S: Step>(acc_in: Option<&[f64]>, acc_out: &mut [f64], terms: impl IntoIterator<Item = (Values<'a>, f64)>) {
    let mut list = [(Values::F64(&[]), 0.0); TERMS_MAX];
    let mut count = 0;
    for term in terms {
        assert!(count < TERMS_MAX, "at most {TERMS_MAX} terms a call");
        assert_eq!(term.0.len(), acc_out.len(), "term {count} and acc_out cover the same coordinates");
        list[count] = term;
        count += 1;
    }
    blocks::<S>(acc_in, acc_out, &list[..count]);
}

/// Kept apart from [`run`], and whole, so that a module holds it once however many kinds of iterators there are.
#[inline(never)]
fn blocks<S: Step>(acc_in: Option<&[f64]>, acc_out: &mut [f64], terms: &[Term<'_>]) {
    assert!(acc_in.is_none_or(|a| a.len() == acc_out.len()), "acc_in and acc_out cover the same coordinates");
    assert!(!terms.is_empty(), "a call has at least one term");
    for (number, out) in acc_out.chunks_mut(BLOCK).enumerate() {
        let start = number * BLOCK;
        let from = match acc_in {
            Some(acc) => &acc[start..][..out.len()],
            None => &S::START[..out.len()],
        };
        match (from.as_array(), out.as_mut_array()) {
            (Some(from), Some(out)) => whole_block::<S>(from, out, start, terms),
            _ => {
                for (out, from) in out.iter_mut().zip(from) {
                    *out = *from;
                }
                converted::<S>(out, start, terms);
            }
        }
    }
}

/// Takes one block of coordinates through all terms. Terms of one dtype in a row go up to four at a time.
fn whole_block<S: Step>(from: &[f64; BLOCK], out: &mut [f64; BLOCK], start: usize, terms: &[Term<'_>]) {
    // Only the first group reads the partial so far; from then on `out` holds it.
    let mut from = Some(from);
    let mut rest = terms;
    while let Some((first, _)) = rest.first() {
        let alike = rest.iter().take_while(|(values, _)| values.dtype() == first.dtype()).count();
        let (group, after) = rest.split_at(match alike {
            4.. => 4,
            2.. => 2,
            _ => 1,
        });
        macro_rules! direct {
            ($variant:ident) => {
                direct::<S, _>(from.take(), out, start, group, |values| match values {
                    Values::$variant(x) => x,
                    _ => unreachable!("a group has one dtype"),
                })
            };
        }
        match first {
            Values::F64(_) => direct!(F64),
            Values::F32(_) => direct!(F32),
            Values::Bf16(_) => direct!(Bf16),
            Values::F16(_) => direct!(F16),
            _ => {
                if let Some(from) = from.take() {
                    *out = *from;
                }
                converted::<S>(out, start, group);
            }
        }
        rest = after;
    }
}

/// The dtypes that matter for speed: converted on the way, in registers.
fn direct<'a, S: Step, T: Element>(
    from: Option<&[f64; BLOCK]>,
    out: &mut [f64; BLOCK],
    start: usize,
    group: &[Term<'a>],
    pick: impl Fn(Values<'a>) -> &'a [T],
) {
    let term = |i: usize| {
        let (values, weight) = group[i];
        (pick(values)[start..][..BLOCK].as_array().expect("a block"), weight)
    };
    match group.len() {
        4 => lanes::<S, T, 4>(from, out, from_fn(term)),
        2 => lanes::<S, T, 2>(from, out, from_fn(term)),
        1 => lanes::<S, T, 1>(from, out, from_fn(term)),
        other => unreachable!("a group of {other}"),
    }
}

/// The other dtypes, and the coordinates behind the last whole block: converted first, then taken one by one.
fn converted<S: Step>(out: &mut [f64], start: usize, terms: &[Term<'_>]) {
    let mut numbers = [0.0; BLOCK];
    let numbers = &mut numbers[..out.len()];
    for (values, weight) in terms {
        values.read(start, numbers);
        let weight = Pair::both(*weight);
        for (acc, x) in out.iter_mut().zip(&*numbers) {
            *acc = S::step(Pair::both(*acc), weight, Pair::both(*x)).get()[0];
        }
    }
}

/// The inner loops. Every length is a constant, so nothing is checked within them.
#[inline(never)]
fn lanes<S: Step, T: Element, const N: usize>(
    from: Option<&[f64; BLOCK]>,
    out: &mut [f64; BLOCK],
    terms: [(&[T; BLOCK], f64); N],
) {
    let weights = terms.map(|(_, weight)| Pair::both(weight));
    let steps = terms.map(|(values, _)| values.as_chunks::<LANES>().0);
    let out = out.as_chunks_mut::<LANES>().0;
    match from.map(|from| from.as_chunks::<LANES>().0) {
        None => {
            for at in 0..BLOCK / LANES {
                out[at] = step::<S, T, N>(&out[at], from_fn(|n| &steps[n][at]), &weights);
            }
        }
        Some(from) => {
            for at in 0..BLOCK / LANES {
                out[at] = step::<S, T, N>(&from[at], from_fn(|n| &steps[n][at]), &weights);
            }
        }
    }
}

/// One step of the inner loop: `LANES` coordinates through all terms.
#[inline(always)]
fn step<S: Step, T: Element, const N: usize>(
    acc: &[f64; LANES],
    values: [&[T; LANES]; N],
    weights: &[Pair; N],
) -> [f64; LANES] {
    let mut acc = f64::pairs(acc);
    for term in 0..N {
        let x = T::pairs(values[term]);
        for (acc, x) in acc.iter_mut().zip(x) {
            *acc = S::step(*acc, weights[term], x);
        }
    }
    from_fn(|i| acc[i / 2].get()[i % 2])
}

#[cfg(test)]
#[path = "kernels_tests.rs"]
mod tests;
