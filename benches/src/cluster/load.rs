//! When updates come: the same seed, the same moments.

use std::f64::consts::TAU;

/// A day of the diurnal load, in parts of a run.
const DAYS: f64 = 2.0;
/// How far it goes up and down about its mean.
const SWING: f64 = 0.9;
/// Seconds in which a burst comes.
const BURST_S: f64 = 0.1;

/// How updates come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrivals {
    /// By chance, at the same rate all the time.
    Steady,
    /// All of a round within a moment.
    Burst,
    /// By chance, at a rate that goes up and down twice.
    Diurnal,
}

/// Numbers from zero to one that follow from a seed (SplitMix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Arrivals {
    /// Seconds from the run's beginning at which the updates of one job come, round after round.
    pub fn draw(self, seed: u64, rounds: usize, clients: usize, seconds: f64) -> Vec<f64> {
        let mut chance = Chance(seed);
        let mut at = |update: usize| match self {
            Self::Steady => chance.next() * seconds,
            Self::Burst => (update / clients) as f64 * seconds / rounds as f64 + chance.next() * BURST_S,
            Self::Diurnal => diurnal(chance.next()) * seconds,
        };
        let mut moments: Vec<f64> = (0..rounds * clients).map(&mut at).collect();
        moments.sort_by(f64::total_cmp);
        moments
    }
}

/// The part of the run by which this part of all updates has come.
fn diurnal(part: f64) -> f64 {
    let come = |at: f64| at + SWING / (TAU * DAYS) * (1.0 - (TAU * DAYS * at).cos());
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..40 {
        let middle = (low + high) / 2.0;
        if come(middle) < part { low = middle } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_load_brings_as_many_and_the_same_again() {
        for arrivals in [Arrivals::Steady, Arrivals::Burst, Arrivals::Diurnal] {
            let drawn = arrivals.draw(7, 10, 4, 20.0);
            assert_eq!(drawn.len(), 40);
            assert!(drawn.iter().all(|at| (0.0..=20.0).contains(at)), "{drawn:?}");
            assert_eq!(drawn, arrivals.draw(7, 10, 4, 20.0));
        }
        let day: Vec<f64> = Arrivals::Diurnal.draw(7, 100, 10, 1.0);
        let within = |from: f64, to: f64| day.iter().filter(|at| (from..to).contains(*at)).count();
        assert!(within(0.0, 0.25) > 3 * within(0.25, 0.5), "more by day than by night");
    }
}
