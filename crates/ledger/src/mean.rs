//! Means of what clients report.

/// The running, sample-weighted mean of one number.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Mean {
    pub clients: u64,
    pub samples: f64,
    pub value: f64,
}

impl Mean {
    /// A running mean stays in the range of its values, where a sum of large ones would overflow. Finite values in the
    /// same order give the same bits everywhere.
    pub fn add(&mut self, value: f64, samples: u64) {
        let samples = samples.max(1) as f64;
        self.clients += 1;
        self.samples += samples;
        let share = samples / self.samples;
        let step = (value - self.value) * share;
        if step.is_finite() {
            self.value += step;
        } else {
            // The two lie further apart than there are numbers: half of the way, twice.
            let half = (value / 2.0 - self.value / 2.0) * share;
            self.value += half;
            self.value += half;
        }
    }

    /// The mean. `None` where it is no number: means of older releases could overflow, and snapshots keep those.
    pub fn value(&self) -> Option<f64> {
        Some(self.value).filter(|value| value.is_finite())
    }

    /// Clients that it is of.
    pub fn clients(&self) -> u64 {
        self.clients
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(values: &[(f64, u64)]) -> f64 {
        let mut mean = Mean::default();
        values.iter().for_each(|(value, samples)| mean.add(*value, *samples));
        assert_eq!(mean.clients(), values.len() as u64);
        mean.value().expect("finite values have a finite mean")
    }

    #[test]
    fn the_mean_of_finite_values_is_finite_and_among_them() {
        const MAX: f64 = f64::MAX;
        assert_eq!(mean(&[(1e308, 2)]), 1e308);
        assert_eq!(mean(&[(-1e308, u64::MAX)]), -1e308);
        assert_eq!(mean(&[(1e308, 1), (-1e308, 1)]), 0.0);
        let apart = mean(&[(MAX, 1), (-MAX, 1), (MAX, 2), (-MAX, 4)]);
        assert!((apart / MAX + 0.25).abs() < 1e-15, "{apart}");
        assert_eq!(mean(&[(MAX, u64::MAX), (MAX, u64::MAX), (MAX, 0)]), MAX);
        assert_eq!(mean(&[(0.25, 1), (0.75, 3)]), 0.625);
        assert_eq!(mean(&[(5e-324, 3), (5e-324, 4)]), 5e-324);
        let mixed: Vec<(f64, u64)> = (0..10_000u64)
            .map(|n| (if n % 3 == 0 { MAX } else { -MAX }, n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
            .collect();
        let value = mean(&mixed);
        assert!((-MAX..=MAX).contains(&value));
    }

    #[test]
    fn a_mean_that_overflowed_in_an_older_release_is_not_shown() {
        for value in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            assert_eq!(Mean { clients: 2, samples: 2.0, value }.value(), None);
        }
    }
}
