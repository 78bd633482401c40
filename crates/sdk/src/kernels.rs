//! The loops that carry the weight: sums, maxima and scaling, fast on every dtype.
//!
//! Aggregation runs at the speed of memory or not at all, so these loops are written for it: coordinates in blocks
//! that stay in the first-level cache, up to four updates at a time, and inner loops of fixed length, which compilers
//! turn into SIMD without a time check per vector.
//!
//! A plain sum is taken in `f64`, strictly in the order of the terms and without fused multiply-add. So the result is
//! the same bits natively and in wasm, in ranges or whole, and however many terms are taken at once. An exact sum
//! ([`crate::Exact`]) is taken in integers, and is the same bits in any order as well.
//!
//! A term becomes an integer without a conversion: where `p = w · 2^s · x` is at most 2^51 from zero, `p + 1.5 · 2^52`
//! is a float whose last bit is worth 1, so the addition itself rounds `p` to a whole number (ties to even), and the
//! float's bits less those of `1.5 · 2^52` are that number. It costs one addition more than a plain sum.

#[cfg(target_arch = "wasm32")]
use crate::guest::widen;
use crate::pair::{LANES, Longs, Pair};
use crate::{Element, Exact, Partial, PartialMut, Values, ValuesMut};
use core::array::from_fn;

mod rows;
pub use rows::{largest, sort_rows, squared_distance, weighted_mean};

/// Terms of one call at most.
pub const TERMS_MAX: usize = 16;

/// Coordinates per block: 4 KiB of partial, which stays in cache while the terms of a call go by.
const BLOCK: usize = 512;

/// Added to a number of at most 2^51 from zero, it leaves a float whose last bit is worth 1.
const MAGIC: f64 = 6_755_399_441_055_744.0; // 1.5 · 2^52

/// Terms that the inner loops take at a time.
const GROUP: usize = 4;

static ZEROS: [f64; BLOCK] = [0.0; BLOCK];
static NOTHING: [i64; BLOCK] = [0; BLOCK];
static LOWEST: [f64; BLOCK] = [f64::NEG_INFINITY; BLOCK];

/// `acc_out[i] = acc_in[i] + Σ weight · values[i]`, starting from 0 without `acc_in`.
///
/// # Panics
/// On no term, on more than [`TERMS_MAX`] terms, when lengths or kinds of partial differ, and in an exact sum on a
/// weight beyond the job's `weight_max`.
pub fn weighted_sum<'a>(
    acc_in: Option<Partial<'_>>,
    acc_out: PartialMut<'_>,
    terms: impl IntoIterator<Item = (Values<'a>, f64)>,
) {
    match acc_out {
        PartialMut::F64(out) => run::<WeightedSum>(acc_in.map(plain), out, terms),
        PartialMut::Fixed(out, exact) => {
            let scale = exact.scale();
            let scaled = terms.into_iter().map(|(values, weight)| {
                assert!(weight.abs() <= exact.weight_max, "weight {weight}: at most {}", exact.weight_max);
                (values, weight * scale)
            });
            run::<FixedSum>(acc_in.map(|acc| fixed(acc, exact)), out, scaled);
        }
    }
}

/// `acc_out[i] = max(acc_in[i], values[i], …)`, starting from negative infinity without `acc_in`. Of the two zeros it
/// gives the positive one, so that the result does not depend on the order.
///
/// # Panics
/// On no term, on more than [`TERMS_MAX`] terms, when lengths differ, and on exact partials: a maximum needs no
/// rounding, and the host keeps its partial plain.
pub fn max<'a>(acc_in: Option<Partial<'_>>, acc_out: PartialMut<'_>, terms: impl IntoIterator<Item = Values<'a>>) {
    let PartialMut::F64(acc_out) = acc_out else { panic!("a maximum has a plain partial") };
    run::<Max>(acc_in.map(plain), acc_out, terms.into_iter().map(|values| (values, 1.0)));
}

/// `acc_out[i] = acc_in[i] + Σ partial[i]`, starting from 0 without `acc_in`.
///
/// # Panics
/// On no partial, on more than [`TERMS_MAX`] of them, and when lengths or kinds of partial differ.
pub fn merge_sum(acc_in: Option<Partial<'_>>, acc_out: PartialMut<'_>, partials: &[Partial<'_>]) {
    match acc_out {
        PartialMut::F64(_) => weighted_sum(acc_in, acc_out, partials.iter().map(|p| (Values::F64(plain(*p)), 1.0))),
        PartialMut::Fixed(out, exact) => merge_fixed(acc_in.map(|acc| fixed(acc, exact)), out, partials, exact),
    }
}

/// `acc_out[i] = max(acc_in[i], partial[i], …)`, starting from negative infinity without `acc_in`.
///
/// # Panics
/// As [`max`].
pub fn merge_max(acc_in: Option<Partial<'_>>, acc_out: PartialMut<'_>, partials: &[Partial<'_>]) {
    max(acc_in, acc_out, partials.iter().map(|p| Values::F64(plain(*p))));
}

fn plain(partial: Partial<'_>) -> &[f64] {
    match partial {
        Partial::F64(numbers) => numbers,
        Partial::Fixed(..) => panic!("partials of one call are all plain or all exact"),
    }
}

fn fixed(partial: Partial<'_>, exact: Exact) -> &[i64] {
    match partial {
        Partial::Fixed(numbers, other) if other == exact => numbers,
        _ => panic!("partials of one call are all exact, to the same scale"),
    }
}

fn merge_fixed(acc_in: Option<&[i64]>, acc_out: &mut [i64], partials: &[Partial<'_>], exact: Exact) {
    assert!(acc_in.is_none_or(|a| a.len() == acc_out.len()), "acc_in and acc_out cover the same coordinates");
    assert!((1..=TERMS_MAX).contains(&partials.len()), "1 to {TERMS_MAX} partials a call");
    for (number, out) in acc_out.chunks_mut(BLOCK).enumerate() {
        let start = number * BLOCK;
        for (out, from) in out.iter_mut().zip(acc_in.map_or(&NOTHING[..], |acc| &acc[start..])) {
            *out = *from;
        }
        for partial in partials {
            let from = &fixed(*partial, exact)[start..][..out.len()];
            for (out, from) in out.iter_mut().zip(from) {
                *out = out.wrapping_add(*from);
            }
        }
    }
}

/// `out[i] = previous[i] + partial[i] / divisor`, computed in `f64` and rounded once to the dtype of `out`; without
/// `previous`, the quotient alone.
///
/// # Panics
/// When lengths differ.
pub fn scale(partial: Partial<'_>, divisor: f64, previous: Option<Values<'_>>, mut out: ValuesMut<'_>) {
    assert_eq!(out.len(), partial.len(), "out and partial cover the same coordinates");
    assert!(previous.is_none_or(|p| p.len() == partial.len()), "previous and partial cover the same coordinates");
    let (mut sums, mut numbers) = ([0.0; BLOCK], [0.0; BLOCK]);
    for start in (0..partial.len()).step_by(BLOCK) {
        let count = BLOCK.min(partial.len() - start);
        let (sums, numbers) = (&mut sums[..count], &mut numbers[..count]);
        partial.read(start, numbers);
        match previous {
            Some(previous) => previous.read(start, sums),
            // Minus zero is what leaves every addend as it is.
            None => sums.fill(-0.0),
        }
        for (sum, x) in sums.iter_mut().zip(numbers) {
            *sum += *x / divisor;
        }
        out.write(start, sums);
    }
}

/// Numbers and their weight.
type Term<'a> = (Values<'a>, f64);

/// What is done with the numbers of a term.
trait Step {
    /// A coordinate of the partial.
    type Number: Copy + 'static;
    /// Two of them.
    type Register: Copy;
    /// What a coordinate starts from.
    const START: &'static [Self::Number; BLOCK];
    /// Puts two coordinates side by side, on the way into as many terms as are said.
    fn load(numbers: [Self::Number; 2], terms: usize) -> Self::Register;
    fn step(acc: Self::Register, weight: Pair, x: Pair) -> Self::Register;
    fn store(acc: Self::Register) -> [Self::Number; 2];
}

struct WeightedSum;

impl Step for WeightedSum {
    type Number = f64;
    type Register = Pair;
    const START: &'static [f64; BLOCK] = &ZEROS;
    #[inline(always)]
    fn load([a, b]: [f64; 2], _: usize) -> Pair {
        Pair::new(a, b)
    }
    #[inline(always)]
    fn step(acc: Pair, weight: Pair, x: Pair) -> Pair {
        acc.add(weight.mul(x))
    }
    #[inline(always)]
    fn store(acc: Pair) -> [f64; 2] {
        acc.get()
    }
}

struct FixedSum;

impl Step for FixedSum {
    type Number = i64;
    type Register = Longs;
    const START: &'static [i64; BLOCK] = &NOTHING;
    /// Each term adds the bits of [`MAGIC`] too; they are taken off beforehand, for all terms at once.
    #[inline(always)]
    fn load([a, b]: [i64; 2], terms: usize) -> Longs {
        let off = (MAGIC.to_bits() as i64).wrapping_mul(terms as i64).wrapping_neg();
        Longs::new(a, b).add(Longs::new(off, off))
    }
    #[inline(always)]
    fn step(acc: Longs, weight: Pair, x: Pair) -> Longs {
        acc.add(weight.mul(x).add(Pair::both(MAGIC)).to_bits())
    }
    #[inline(always)]
    fn store(acc: Longs) -> [i64; 2] {
        acc.get()
    }
}

struct Max;

impl Step for Max {
    type Number = f64;
    type Register = Pair;
    const START: &'static [f64; BLOCK] = &LOWEST;
    #[inline(always)]
    fn load([a, b]: [f64; 2], _: usize) -> Pair {
        Pair::new(a, b)
    }
    #[inline(always)]
    fn step(acc: Pair, _: Pair, x: Pair) -> Pair {
        // Zero added turns minus zero into zero.
        acc.max(x.add(Pair::both(0.0)))
    }
    #[inline(always)]
    fn store(acc: Pair) -> [f64; 2] {
        acc.get()
    }
}

fn run<'a, S: Step>(
    acc_in: Option<&[S::Number]>,
    acc_out: &mut [S::Number],
    terms: impl IntoIterator<Item = (Values<'a>, f64)>,
) {
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
fn blocks<S: Step>(acc_in: Option<&[S::Number]>, acc_out: &mut [S::Number], terms: &[Term<'_>]) {
    assert!(acc_in.is_none_or(|a| a.len() == acc_out.len()), "acc_in and acc_out cover the same coordinates");
    assert!(!terms.is_empty(), "a call has at least one term");
    let mut room = [[0.0; BLOCK]; GROUP];
    for (number, out) in acc_out.chunks_mut(BLOCK).enumerate() {
        let start = number * BLOCK;
        let from = match acc_in {
            Some(acc) => &acc[start..][..out.len()],
            None => &S::START[..out.len()],
        };
        match (from.as_array(), out.as_mut_array()) {
            (Some(from), Some(out)) => whole_block::<S>(from, out, start, terms, &mut room),
            _ => {
                for (out, from) in out.iter_mut().zip(from) {
                    *out = *from;
                }
                converted::<S>(out, start, terms);
            }
        }
    }
}

/// Takes one block of coordinates through all terms. Terms of one dtype in a row go up to four at a time. What has to be
/// converted beforehand goes to `room`.
fn whole_block<S: Step>(
    from: &[S::Number; BLOCK],
    out: &mut [S::Number; BLOCK],
    start: usize,
    terms: &[Term<'_>],
    room: &mut [[f32; BLOCK]; GROUP],
) {
    // Only the first group reads the partial so far; from then on `out` holds it.
    let mut from = Some(from);
    let mut rest = terms;
    while let Some((first, _)) = rest.first() {
        let alike = rest.iter().take_while(|(values, _)| values.dtype() == first.dtype()).count();
        let (group, after) = rest.split_at(match alike {
            GROUP.. => GROUP,
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
            Values::F16(_) => widened::<S>(from.take(), out, start, group, room),
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

/// F16: as F32, a block of each term at a time, because the host has an instruction for it and wasm has none.
fn widened<S: Step>(
    from: Option<&[S::Number; BLOCK]>,
    out: &mut [S::Number; BLOCK],
    start: usize,
    group: &[Term<'_>],
    room: &mut [[f32; BLOCK]; GROUP],
) {
    for ((values, _), room) in group.iter().zip(&mut *room) {
        let Values::F16(values) = values else { unreachable!("a group has one dtype") };
        widen(&values[start..][..BLOCK], room);
    }
    let room = &*room;
    let term = |i: usize| (&room[i], group[i].1);
    match group.len() {
        GROUP => lanes::<S, f32, GROUP>(from, out, from_fn(term)),
        2 => lanes::<S, f32, 2>(from, out, from_fn(term)),
        1 => lanes::<S, f32, 1>(from, out, from_fn(term)),
        other => unreachable!("a group of {other}"),
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn widen(from: &[crate::F16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.to_f32();
    }
}

/// The dtypes that matter for speed: converted on the way, in registers.
fn direct<'a, S: Step, T: Element>(
    from: Option<&[S::Number; BLOCK]>,
    out: &mut [S::Number; BLOCK],
    start: usize,
    group: &[Term<'a>],
    pick: impl Fn(Values<'a>) -> &'a [T],
) {
    let term = |i: usize| {
        let (values, weight) = group[i];
        (pick(values)[start..][..BLOCK].as_array().expect("a block"), weight)
    };
    match group.len() {
        GROUP => lanes::<S, T, GROUP>(from, out, from_fn(term)),
        2 => lanes::<S, T, 2>(from, out, from_fn(term)),
        1 => lanes::<S, T, 1>(from, out, from_fn(term)),
        other => unreachable!("a group of {other}"),
    }
}

/// The other dtypes, and the coordinates behind the last whole block: converted first, then taken one by one.
fn converted<S: Step>(out: &mut [S::Number], start: usize, terms: &[Term<'_>]) {
    let mut numbers = [0.0; BLOCK];
    let numbers = &mut numbers[..out.len()];
    for (values, weight) in terms {
        values.read(start, numbers);
        let weight = Pair::both(*weight);
        for (acc, x) in out.iter_mut().zip(&*numbers) {
            *acc = S::store(S::step(S::load([*acc; 2], 1), weight, Pair::both(*x)))[0];
        }
    }
}

/// The inner loops. Every length is a constant, so nothing is checked within them.
#[inline(never)]
fn lanes<S: Step, T: Element, const N: usize>(
    from: Option<&[S::Number; BLOCK]>,
    out: &mut [S::Number; BLOCK],
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
    acc: &[S::Number; LANES],
    values: [&[T; LANES]; N],
    weights: &[Pair; N],
) -> [S::Number; LANES] {
    let mut acc: [S::Register; LANES / 2] = from_fn(|i| S::load([acc[2 * i], acc[2 * i + 1]], N));
    for term in 0..N {
        let x = T::pairs(values[term]);
        for (acc, x) in acc.iter_mut().zip(x) {
            *acc = S::step(*acc, weights[term], x);
        }
    }
    from_fn(|i| S::store(acc[i / 2])[i % 2])
}

#[cfg(test)]
#[path = "kernels_tests.rs"]
mod tests;
