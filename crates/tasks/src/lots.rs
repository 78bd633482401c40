//! Drawing lots among those who asked within a window.

use crate::seed::Seed;
use crate::utility::{CUT_OFF, Utilities, exploration};
use catchment_types::{ClientId, Policy, TimeMs};
use std::collections::BTreeMap;

/// Candidates of one draw; more are told to wait as if they had come too late.
const CANDIDATES_MAX: usize = 1 << 16;

/// A client that wants a place.
#[derive(Debug, Clone)]
struct Candidate {
    client: ClientId,
    num_samples: u64,
}

/// The candidates of the next draw, and when it is.
#[derive(Debug, Default)]
pub struct Lots {
    candidates: BTreeMap<u64, Candidate>,
    closes_ms: TimeMs,
    draw: u64,
}

impl Lots {
    /// Forgets everybody: their round is over.
    pub fn clear(&mut self) {
        self.candidates.clear();
    }

    pub fn len(&self) -> usize {
        self.candidates.len()
    }

    /// Adds a client to the draw, and opens one if there is none. Returns when it is; `None` when there are enough.
    pub fn enter(
        &mut self,
        key: u64,
        client: &ClientId,
        num_samples: Option<u64>,
        now_ms: TimeMs,
        window_ms: u64,
    ) -> Option<TimeMs> {
        if self.candidates.is_empty() {
            self.closes_ms = now_ms + window_ms;
            self.draw += 1;
        }
        if self.candidates.len() >= CANDIDATES_MAX {
            return None;
        }
        let num_samples = num_samples.unwrap_or(1);
        self.candidates.insert(key, Candidate { client: client.clone(), num_samples });
        Some(self.closes_ms)
    }

    /// Whether there is a draw to be made.
    pub fn is_due(&self, now_ms: TimeMs) -> bool {
        !self.candidates.is_empty() && now_ms >= self.closes_ms
    }

    /// Draws for so many places. The same candidates and the same seed have the same winners.
    pub fn draw(
        &mut self,
        policy: Policy,
        places: u64,
        round: u64,
        seed: &Seed,
        utilities: &Utilities,
    ) -> Vec<(u64, ClientId)> {
        let candidates = std::mem::take(&mut self.candidates);
        let places = usize::try_from(places).unwrap_or(usize::MAX);
        let lot = |key: &u64| seed.lot(*key, round, self.draw);
        let winners = if candidates.len() <= places {
            candidates.keys().copied().collect()
        } else {
            let everybody = candidates.iter().map(|(key, candidate)| (*key, candidate.num_samples.max(1) as f64));
            match policy {
                Policy::All | Policy::Random => sample(everybody.map(|(key, _)| (key, 1.0)), places, lot),
                Policy::Weighted => sample(everybody, places, lot),
                Policy::Utility => guided(candidates.keys().copied(), places, round, utilities, lot),
            }
        };
        let mut candidates = candidates;
        winners.into_iter().filter_map(|key| Some((key, candidates.remove(&key)?.client))).collect()
    }
}

/// Draws without replacement, each time with probabilities in proportion to the weights: those whose lots, as times of
/// exponential clocks with these rates, ring first (Efraimidis and Spirakis, *Weighted random sampling with a reservoir*,
/// Information Processing Letters 2006).
fn sample(weighted: impl Iterator<Item = (u64, f64)>, places: usize, lot: impl Fn(&u64) -> f64) -> Vec<u64> {
    let mut rings: Vec<(f64, u64)> = weighted.map(|(key, weight)| (-lot(&key).ln() / weight.max(1e-12), key)).collect();
    let order = |a: &(f64, u64), b: &(f64, u64)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    if places < rings.len() {
        rings.select_nth_unstable_by(places, order);
        rings.truncate(places);
    }
    rings.into_iter().map(|(_, key)| key).collect()
}

/// Oort's algorithm 1: most places by utility, the rest to those never tried.
fn guided(
    keys: impl Iterator<Item = u64>,
    places: usize,
    round: u64,
    utilities: &Utilities,
    lot: impl Fn(&u64) -> f64,
) -> Vec<u64> {
    let (mut tried, mut untried) = (Vec::new(), Vec::new());
    for key in keys {
        match utilities.of(key, round) {
            Some(utility) => tried.push((key, utility)),
            None => untried.push((key, 1.0)),
        }
    }
    tried.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let explored = ((exploration(round) * places as f64).round() as usize).min(untried.len());
    let exploited = (places - explored).min(tried.len());
    let cut_off = exploited.checked_sub(1).map_or(0.0, |last| CUT_OFF * tried[last].1);
    let eligible = tried.into_iter().filter(|(_, utility)| *utility >= cut_off);
    let mut winners = sample(eligible, exploited, &lot);
    winners.extend(sample(untried.into_iter(), places - exploited, &lot));
    winners
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn client(number: u64) -> ClientId {
        format!("c{number}").parse().unwrap()
    }

    /// How often each of `clients` wins in so many draws.
    fn wins(
        policy: Policy,
        clients: u64,
        places: u64,
        draws: u64,
        samples: impl Fn(u64) -> u64,
        utilities: &Utilities,
    ) -> HashMap<u64, u64> {
        let (seed, mut lots, mut wins) = (Seed::new([7; 16]), Lots::default(), HashMap::new());
        for round in 1..=draws {
            for number in 0..clients {
                assert_eq!(lots.enter(number, &client(number), Some(samples(number)), 5, 10), Some(15));
            }
            assert!(!lots.is_due(14) && lots.is_due(15));
            let winners = lots.draw(policy, places, round, &seed, utilities);
            assert_eq!(winners.len() as u64, places.min(clients));
            assert!(winners.iter().all(|(key, name)| *name == client(*key)));
            winners.into_iter().for_each(|(key, _)| *wins.entry(key).or_default() += 1);
            assert!(!lots.is_due(u64::MAX));
        }
        wins
    }

    /// The statistic of a chi-squared test with 49 degrees of freedom: 94 is one in ten thousand.
    #[test]
    fn random_is_fair() {
        let wins = wins(Policy::Random, 50, 10, 2_000, |number| number, &Utilities::default());
        let expected = 400.0;
        let chi: f64 = (0..50).map(|number| (wins[&number] as f64 - expected).powi(2) / expected).sum();
        assert!(chi < 94.0, "{chi}");
    }

    #[test]
    fn weighted_goes_by_samples() {
        let wins =
            wins(Policy::Weighted, 100, 1, 20_000, |number| if number < 50 { 10 } else { 30 }, &Utilities::default());
        let heavy: u64 = wins.iter().filter(|(number, _)| **number >= 50).map(|(_, wins)| wins).sum();
        assert!((14_700..15_300).contains(&heavy), "{heavy} of 20000 where 15000 are expected");
    }

    #[test]
    fn few_candidates_all_win() {
        for policy in [Policy::Random, Policy::Weighted, Policy::Utility] {
            assert_eq!(wins(policy, 3, 5, 1, |_| 0, &Utilities::default()).len(), 3);
        }
        assert!(wins(Policy::Random, 3, 0, 1, |_| 0, &Utilities::default()).is_empty());
    }

    #[test]
    fn utility_prefers_the_useful_and_fast_and_still_explores() {
        let mut utilities = Utilities::default();
        for number in 0..60 {
            // Ten useful and fast, ten useful and slow, forty of little use; forty more were never tried.
            let (loss, duration) = match number {
                0..10 => (5.0, 10),
                10..20 => (5.0, 100),
                _ => (0.1 + number as f64 / 1000.0, 10),
            };
            utilities.learn(number, 200, 100, Some(loss), duration);
        }
        utilities.measure(Some(20));
        let mut by = [0u64; 4];
        // Late rounds, with the least exploration: twelve tried and three untried.
        for (number, wins) in wins_from(201, 15, &utilities) {
            by[match number {
                0..10 => 0,
                10..20 => 1,
                20..60 => 2,
                _ => 3,
            }] += wins;
        }
        let [good, slow, useless, untried] = by;
        assert_eq!(untried, 3 * 500);
        assert!(good >= 9 * 500, "{by:?}");
        assert!(good > 3 * slow && good > 3 * useless, "{by:?}");
    }

    fn wins_from(first: u64, places: u64, utilities: &Utilities) -> HashMap<u64, u64> {
        let (seed, mut lots, mut wins) = (Seed::new([7; 16]), Lots::default(), HashMap::new());
        for round in first..first + 500 {
            (0..100).for_each(|number| {
                lots.enter(number, &client(number), None, 0, 1).unwrap();
            });
            for (key, _) in lots.draw(Policy::Utility, places, round, &seed, utilities) {
                *wins.entry(key).or_default() += 1;
            }
        }
        wins
    }

    #[test]
    fn a_draw_depends_on_its_seed_and_round_and_not_on_the_order() {
        let draw = |seed: u8, round: u64, numbers: &[u64]| {
            let mut lots = Lots::default();
            numbers.iter().for_each(|number| {
                lots.enter(*number, &client(*number), None, 0, 1).unwrap();
            });
            let mut keys: Vec<u64> = lots
                .draw(Policy::Random, 5, round, &Seed::new([seed; 16]), &Utilities::default())
                .into_iter()
                .map(|(key, _)| key)
                .collect();
            keys.sort_unstable();
            keys
        };
        let forth: Vec<u64> = (0..40).collect();
        let back: Vec<u64> = (0..40).rev().collect();
        assert_eq!(draw(1, 1, &forth), draw(1, 1, &back));
        assert_ne!(draw(1, 1, &forth), draw(2, 1, &forth));
        assert_ne!(draw(1, 1, &forth), draw(1, 2, &forth));
    }
}
