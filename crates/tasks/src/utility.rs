//! What clients' updates were worth, after Oort (Lai, Zhu, Madhyastha, Chowdhury, *Oort: Efficient Federated Learning via
//! Guided Participant Selection*, OSDI 2021).
//!
//! - Statistical utility (section 4.2): `|B| · sqrt(1/|B| · Σ loss²)` over a client's samples `B`. Clients report the mean
//!   of the loss, as `loss` in their metrics, and `num_samples`; so it is `num_samples · |loss|` here, which is a little
//!   less where losses spread. Without a loss the samples alone count.
//! - Clipped at the 95th percentile (section 4.4, robustness to outliers) and scaled to 0…1 over the known clients, as the
//!   authors' implementation does, so that the next term means the same for every model.
//! - Temporal uncertainty (algorithm 1): `+ sqrt(0.1 · ln R / L)` in round `R` for a client whose last update was in round
//!   `L`, so that old knowledge is tried again.
//! - System utility (section 4.3): `· (T / t)^α` with α = 2 where the client's time `t` is over the preferred `T`.
//! - Pacer (section 4.3): `T` is a percentile of the known times, the 30th at first. When the utility won in the last 20
//!   rounds is less than in the 20 before, five percentiles more; at the hundredth nobody is slow.
//! - Exploration (section 4.1): a share ε of the places goes to clients that were never tried: 0.9, times 0.98 with each
//!   round, down to 0.2. Oort picks those by speed; nothing is known of theirs here, so they are drawn by lot.
//! - Exploitation (algorithm 1): of those with at least 95% of the utility of the last one that would have a place, by lot,
//!   with probabilities in proportion to the utility.

use std::collections::{HashMap, VecDeque};

const ALPHA: i32 = 2;
const CLIP_PERCENT: f64 = 95.0;
/// Share of the utility of the last client with a place that makes another one eligible.
pub const CUT_OFF: f64 = 0.95;
const EXPLORATION: f64 = 0.9;
const EXPLORATION_DECAY: f64 = 0.98;
const EXPLORATION_MIN: f64 = 0.2;
const PACER_ROUNDS: usize = 20;
const PACER_PERCENT: f64 = 30.0;
const PACER_STEP: f64 = 5.0;
/// Clients of whom something is known; more stay untried.
const KNOWN_MAX: usize = 1 << 17;

/// The share of places for clients that were never tried.
pub fn exploration(round: u64) -> f64 {
    (EXPLORATION * EXPLORATION_DECAY.powf(round as f64)).max(EXPLORATION_MIN)
}

/// What is known of a client.
#[derive(Debug, Clone, Copy)]
struct Known {
    statistical: f32,
    duration_ms: f32,
    round: u64,
}

/// What is known of a job's clients.
#[derive(Debug)]
pub struct Utilities {
    known: HashMap<u64, Known>,
    /// What each of the last rounds won.
    won: VecDeque<f64>,
    percent: f64,
    /// The preferred duration, if anybody can be too slow.
    preferred_ms: Option<f64>,
    least: f64,
    clip: f64,
}

impl Default for Utilities {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            won: VecDeque::new(),
            percent: PACER_PERCENT,
            preferred_ms: None,
            least: 0.0,
            clip: 0.0,
        }
    }
}

impl Utilities {
    /// Learns from a client's update. Returns its statistical utility.
    pub fn learn(&mut self, client: u64, round: u64, num_samples: u64, loss: Option<f64>, duration_ms: u64) -> f64 {
        let loss = loss.map_or(1.0, f64::abs);
        let statistical = (num_samples.max(1) as f64 * loss).clamp(0.0, f64::from(f32::MAX));
        if self.known.len() < KNOWN_MAX || self.known.contains_key(&client) {
            let (statistical, duration_ms) = (statistical as f32, duration_ms as f32);
            self.known.insert(client, Known { statistical, duration_ms, round });
        }
        statistical
    }

    /// Learns that a client took longer than this, and was too late.
    pub fn learn_slow(&mut self, client: u64, at_least_ms: u64) {
        if let Some(known) = self.known.get_mut(&client) {
            known.duration_ms = known.duration_ms.max(at_least_ms as f32);
        }
    }

    /// Ends a round that won so much.
    pub fn end_round(&mut self, won: f64) {
        self.won.push_back(won);
        if self.won.len() >= 2 * PACER_ROUNDS {
            let sum = |rounds: std::ops::Range<usize>| self.won.range(rounds).sum::<f64>();
            if sum(0..PACER_ROUNDS) > sum(PACER_ROUNDS..2 * PACER_ROUNDS) {
                self.percent = (self.percent + PACER_STEP).min(100.0);
            }
            self.won.drain(..PACER_ROUNDS);
        }
    }

    /// Works out what utilities are compared with. `preferred_ms`: what the owner prefers, instead of the pacer.
    pub fn measure(&mut self, preferred_ms: Option<u64>) {
        let mut values: Vec<f32> = self.known.values().map(|known| known.duration_ms).collect();
        let paced = (self.percent < 100.0).then(|| percentile(&mut values, self.percent)).flatten();
        self.preferred_ms = preferred_ms.map(|ms| ms as f64).or(paced);
        let mut values: Vec<f32> = self.known.values().map(|known| known.statistical).collect();
        self.clip = percentile(&mut values, CLIP_PERCENT).unwrap_or_default();
        self.least = values.into_iter().reduce(f32::min).unwrap_or_default().into();
    }

    /// The utility of a client that was tried before.
    pub fn of(&self, client: u64, round: u64) -> Option<f64> {
        let known = self.known.get(&client)?;
        let range = self.clip - self.least;
        let clipped = f64::from(known.statistical).min(self.clip);
        let scaled = if range > 0.0 { ((clipped - self.least) / range).max(0.0) } else { 1.0 };
        let last = known.round.max(1) as f64;
        let utility = scaled + (0.1 * (round.max(1) as f64).ln() / last).sqrt();
        let duration_ms = f64::from(known.duration_ms);
        let slow = self.preferred_ms.filter(|preferred| duration_ms > *preferred);
        Some(utility * slow.map_or(1.0, |preferred| (preferred / duration_ms).powi(ALPHA)))
    }
}

/// The value below which this share lies.
fn percentile(values: &mut [f32], percent: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let at = ((values.len() as f64 * percent / 100.0) as usize).min(last);
    Some((*values.select_nth_unstable_by(at, f32::total_cmp).1).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Utilities {
        fn settle(&mut self, won: f64, preferred_ms: Option<u64>) {
            self.end_round(won);
            self.measure(preferred_ms);
        }
    }

    fn learnt(clients: &[(u64, u64, f64, u64)]) -> Utilities {
        let mut utilities = Utilities::default();
        for (client, samples, loss, duration_ms) in clients {
            utilities.learn(*client, 1, *samples, Some(*loss), *duration_ms);
        }
        utilities
    }

    #[test]
    fn utility_is_samples_times_loss_and_less_for_the_slow() {
        let mut utilities = learnt(&[(1, 100, 0.5, 10), (2, 100, 2.0, 10), (3, 400, 0.5, 10), (4, 100, 2.0, 40)]);
        utilities.settle(0.0, Some(20));
        let of = |client| utilities.of(client, 1).unwrap();
        assert_eq!((of(1), of(2), of(3)), (0.0, 1.0, 1.0));
        assert_eq!(of(4), 0.25, "twice the preferred time, squared");
        assert_eq!(utilities.of(5, 1), None);
    }

    #[test]
    fn who_was_not_asked_for_long_is_worth_more() {
        let mut utilities = learnt(&[(1, 10, 1.0, 10)]);
        utilities.learn(2, 50, 10, Some(1.0), 10);
        utilities.settle(0.0, None);
        let (old, new) = (utilities.of(1, 51).unwrap(), utilities.of(2, 51).unwrap());
        assert!((old - (1.0 + (0.1 * 51f64.ln()).sqrt())).abs() < 1e-9);
        assert!(old > new && new > 1.0);
    }

    #[test]
    fn one_outlier_does_not_make_all_others_worthless() {
        let clients: Vec<_> =
            (0..100).map(|n| (n, 10, if n == 99 { 1e9 } else { 1.0 + n as f64 / 100.0 }, 10)).collect();
        let mut utilities = learnt(&clients);
        utilities.settle(0.0, None);
        assert!(utilities.of(50, 1).unwrap() > 0.4);
        assert_eq!(utilities.of(99, 1), utilities.of(96, 1));
    }

    #[test]
    fn the_pacer_waits_longer_when_less_is_won() {
        let clients: Vec<_> = (0..100).map(|n| (n, 10, 1.0, 100 * (n + 1))).collect();
        let mut utilities = learnt(&clients);
        for _ in 0..PACER_ROUNDS {
            utilities.settle(10.0, None);
        }
        assert_eq!(utilities.preferred_ms, Some(3_100.0));
        for _ in 0..PACER_ROUNDS {
            utilities.settle(5.0, None);
        }
        assert_eq!(utilities.preferred_ms, Some(3_600.0));
        for round in 0..1_000 {
            utilities.settle(5.0 / f64::from(round + 1), None);
        }
        assert_eq!(utilities.preferred_ms, None, "in the end nobody is slow");
        assert!(utilities.won.len() < 2 * PACER_ROUNDS);
    }

    #[test]
    fn exploration_decays_to_its_least() {
        assert!((exploration(1) - 0.882).abs() < 1e-9);
        assert_eq!(exploration(1_000), 0.2);
        assert_eq!(exploration(u64::MAX), 0.2);
    }
}
