//! The sum of a round's weights, the same bits in whatever order they come.
//!
//! It divides every coordinate of an exact mean, so it must not depend on the order of arrival, nor on receipts, whose
//! order differs from job to job. Sums of floats do; rounding the weights to integers would cost small weights their
//! precision. So the sum is taken without any rounding and rounded once at its end.

/// The sum of finite numbers, rounded once to the nearest.
///
/// Shewchuk, "Adaptive Precision Floating-Point Arithmetic and Fast Robust Geometric Predicates", 1997: a sum is kept
/// as parts that do not overlap, smallest first, and each addition leaves what it rounds off as another part.
pub fn exact_sum(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let mut parts: Vec<f64> = Vec::new();
    for mut x in numbers {
        let mut kept = 0;
        for i in 0..parts.len() {
            let mut y = parts[i];
            if x.abs() < y.abs() {
                (x, y) = (y, x);
            }
            let high = x + y;
            let low = y - (high - x);
            if low != 0.0 {
                parts[kept] = low;
                kept += 1;
            }
            x = high;
        }
        parts.truncate(kept);
        parts.push(x);
    }
    round(&parts)
}

/// The parts' sum. Adding from the largest on rounds at the first addition that is not exact; when that is half way
/// between two numbers, the sign of what is left decides.
fn round(parts: &[f64]) -> f64 {
    let mut rest = parts.iter().rev().copied();
    let mut high = rest.next().unwrap_or(0.0);
    while let Some(y) = rest.next() {
        let sum = high + y;
        let low = y - (sum - high);
        high = sum;
        if low != 0.0 {
            if rest.next().is_some_and(|below| (low < 0.0) == (below < 0.0)) {
                let twice = low * 2.0;
                if high + twice - high == twice {
                    high += twice;
                }
            }
            break;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of very different size; a plain sum of them depends on the order.
    fn numbers() -> Vec<f64> {
        (0..200u64)
            .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 * 2f64.powi((i % 90) as i32 - 60))
            .collect()
    }

    #[test]
    fn no_order_changes_a_bit() {
        let mut some = numbers();
        let sum = exact_sum(some.iter().copied());
        let mut plain = vec![some.iter().sum::<f64>()];
        for turn in [1, 7, 50, 113] {
            some.rotate_left(turn);
            some.reverse();
            assert_eq!(exact_sum(some.iter().copied()).to_bits(), sum.to_bits());
            plain.push(some.iter().sum());
        }
        assert!(plain.iter().any(|other| *other != plain[0]), "these numbers show nothing");
    }

    #[test]
    fn it_is_rounded_once() {
        assert_eq!(exact_sum([]), 0.0);
        assert_eq!(exact_sum([0.1; 10]), 1.0);
        assert_eq!(exact_sum([1e100, 1.0, -1e100]), 1.0);
        // Half way between two numbers, and a little more.
        assert_eq!(exact_sum([1.0, 2f64.powi(-53)]), 1.0);
        assert_eq!(exact_sum([1.0, 2f64.powi(-53), 2f64.powi(-110)]), 1.0 + 2f64.powi(-52));
        assert_eq!(exact_sum([1.0 + 2f64.powi(-52), 2f64.powi(-53), -2f64.powi(-110)]), 1.0 + 2f64.powi(-52));
    }
}
