//! Loops over whole rounds: every update's numbers for a block of coordinates side by side.
//!
//! Their order of additions and comparisons is fixed, so they too give the same bits natively and in wasm.

use super::BLOCK;
use crate::pair::Pair;
use crate::{Combine, Update};
use alloc::string::String;
use core::array::from_fn;

/// Sorts every column of a matrix whose rows have `width` numbers: row 0 gets the smallest.
///
/// Batcher's odd-even merge sort: which rows are compared does not depend on the numbers, so whole rows are compared
/// at once. (Batcher, "Sorting networks and their applications", 1968.) Minus zero counts as zero, NaN as nothing.
///
/// # Panics
/// When `width` is no multiple of 8.
pub fn sort_rows(rows: &mut [f64], width: usize) {
    assert!(width.is_multiple_of(8) && rows.len().is_multiple_of(width), "whole rows of a multiple of 8");
    let count = rows.len() / width;
    rows.iter_mut().for_each(|x| *x += 0.0);
    let mut p = 1;
    while p < count {
        let mut k = p;
        while k > 0 {
            for j in (k % p..count.saturating_sub(k)).step_by(2 * k) {
                for i in 0..k.min(count - j - k) {
                    if (i + j) / (2 * p) == (i + j + k) / (2 * p) {
                        let (low, high) = rows.split_at_mut((i + j + k) * width);
                        exchange(&mut low[(i + j) * width..][..width], &mut high[..width]);
                    }
                }
            }
            k /= 2;
        }
        p *= 2;
    }
}

/// The smaller of each pair to `low`, the larger to `high`.
fn exchange(low: &mut [f64], high: &mut [f64]) {
    let (low, high) = (low.as_chunks_mut::<2>().0, high.as_chunks_mut::<2>().0);
    for (low, high) in low.iter_mut().zip(high) {
        let (a, b) = (Pair::new(low[0], low[1]), Pair::new(high[0], high[1]));
        (*low, *high) = (a.min(b).get(), a.max(b).get());
    }
}

/// `Σ (a[i] − b[i])²`, in eight sums that are added up at the end.
///
/// # Panics
/// When lengths differ or are no multiple of 8.
pub fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    assert!(a.len() == b.len() && a.len().is_multiple_of(8), "as many numbers on both sides, a multiple of 8");
    let mut sums = [Pair::both(0.0); 4];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        sums = from_fn(|i| {
            let apart = Pair::new(a[2 * i], a[2 * i + 1]).sub(Pair::new(b[2 * i], b[2 * i + 1]));
            sums[i].add(apart.mul(apart))
        });
    }
    let [a, b] = sums[0].add(sums[1]).add(sums[2].add(sums[3])).get();
    a + b
}

/// Writes the updates' weighted mean, summed in the updates' order.
///
/// # Errors
/// Weights that add up to nothing; a delta without its base.
pub fn weighted_mean(call: Combine<'_>) -> Result<(), String> {
    let total: f64 = call.updates.iter().map(|update| update.weight).sum();
    if !(total > 0.0 && total.is_finite()) {
        return Err("the updates' weights do not add up to a positive finite number".into());
    }
    by_blocks(call, 0.0, |sum, update, x| sum + update.weight * x, |sum| sum / total)
}

/// Writes the largest value of any update; of two zeros the positive one.
///
/// # Errors
/// A delta without its base.
pub fn largest(call: Combine<'_>) -> Result<(), String> {
    by_blocks(call, f64::NEG_INFINITY, |max, _, x| if x > max { x + 0.0 } else { max }, |max| max)
}

fn by_blocks(
    mut call: Combine<'_>,
    start_from: f64,
    step: impl Fn(f64, &Update<'_>, f64) -> f64,
    end: impl Fn(f64) -> f64,
) -> Result<(), String> {
    let (mut sums, mut numbers) = ([0.0; BLOCK], [0.0; BLOCK]);
    for start in (0..call.out.len()).step_by(BLOCK) {
        let count = BLOCK.min(call.out.len() - start);
        let (sums, numbers) = (&mut sums[..count], &mut numbers[..count]);
        sums.iter_mut().for_each(|sum| *sum = start_from);
        for update in call.updates {
            update.values.read(start, numbers);
            for (sum, x) in sums.iter_mut().zip(&*numbers) {
                *sum = step(*sum, update, *x);
            }
        }
        sums.iter_mut().for_each(|sum| *sum = end(*sum));
        call.write(start, sums)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn columns_are_sorted(values in prop::collection::vec(prop_oneof![-9.0f64..9.0, Just(-0.0), Just(3.0)], 1..70)) {
            let width = 8;
            let mut rows: Vec<f64> =
                (0..values.len()).flat_map(|i| (0..width).map(|c| values[(i * (c + 1)) % values.len()]).collect::<Vec<_>>()).collect();
            let before = rows.clone();
            sort_rows(&mut rows, width);
            for c in 0..width {
                let column = |rows: &[f64]| rows.iter().skip(c).step_by(width).map(|x| x + 0.0).collect::<Vec<f64>>();
                let mut expected = column(&before);
                expected.sort_by(f64::total_cmp);
                prop_assert_eq!(column(&rows), expected);
            }
        }

        #[test]
        fn distances(a in prop::collection::vec(-9.0f64..9.0, 64), b in prop::collection::vec(-9.0f64..9.0, 64)) {
            let plain: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
            prop_assert!((squared_distance(&a, &b) - plain).abs() <= 1e-12 * plain.max(1.0));
        }
    }
}
