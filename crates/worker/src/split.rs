//! Who holds which digits.
//!
//! Clients of a real federation do not see the same mix of classes, and an even split would hide what that does to a
//! model trained alone. Each class is dealt to the clients in proportions drawn from a symmetric Dirichlet
//! distribution (Yurochkin et al., *Bayesian Nonparametric Federated Learning of Neural Networks*, 2019, section 4):
//! with a concentration of 0.5 a client has mostly a few of the ten digits.

use crate::data::Samples;
use crate::rng::stream;
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use rand_distr::{Distribution, Gamma};

/// Part of the digits that no client ever sees.
pub const HOLDOUT_FRACTION: f64 = 0.2;
/// Concentration of the label skew.
pub const CONCENTRATION: f64 = 0.5;
/// Fewest samples of a client.
pub const SAMPLES_MIN: usize = 8;
/// Most clients: beyond it the digits do not give each its fewest samples.
pub const CLIENTS_MAX: usize = 100;

/// A split that cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SplitError {
    /// Too few or too many clients.
    #[error("{0} clients: from 1 to {CLIENTS_MAX} can share the digits")]
    Clients(usize),
    /// There is no such client.
    #[error("client index {index} of {clients} clients: indices start at 0 and end at {}", clients - 1)]
    Index {
        /// What was asked.
        index: usize,
        /// How many there are.
        clients: usize,
    },
}

/// The digits, divided.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// A random fifth, for measuring only. Does not depend on the number of clients.
    pub holdout: Samples,
    /// What each client holds; together everything else.
    pub clients: Vec<Samples>,
}

impl Split {
    /// Divides `all` for `clients` clients. The same arguments give the same split on every machine.
    pub fn new(all: &Samples, clients: usize, seed: u64) -> Result<Self, SplitError> {
        if !(1..=CLIENTS_MAX).contains(&clients) || all.len() < clients * SAMPLES_MIN * 2 {
            return Err(SplitError::Clients(clients));
        }
        let (training, holdout) = divide(all, seed);
        let shares = deal(all, &training, clients, seed);
        Ok(Self { holdout: all.select(&holdout), clients: shares.iter().map(|indices| all.select(indices)).collect() })
    }

    /// What the client at `index` holds.
    pub fn client(&self, index: usize) -> Result<&Samples, SplitError> {
        self.clients.get(index).ok_or(SplitError::Index { index, clients: self.clients.len() })
    }

    /// What all clients hold, as if one had it.
    pub fn pooled(all: &Samples, seed: u64) -> Samples {
        all.select(&divide(all, seed).0)
    }

    /// The part that no client sees.
    pub fn holdout(all: &Samples, seed: u64) -> Samples {
        all.select(&divide(all, seed).1)
    }
}

/// Indices for training and for the hold-out, each ascending.
fn divide(all: &Samples, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut indices: Vec<usize> = (0..all.len()).collect();
    indices.shuffle(&mut stream(seed, "holdout", &[]));
    let kept = (all.len() as f64 * HOLDOUT_FRACTION).round() as usize;
    let mut training = indices.split_off(kept);
    training.sort_unstable();
    indices.sort_unstable();
    (training, indices)
}

/// Deals the `training` indices class by class.
fn deal(all: &Samples, training: &[usize], clients: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut rng = stream(seed, "label skew", &[clients as u64]);
    let mut shares = vec![Vec::new(); clients];
    for class in 0..crate::data::CLASSES {
        let mut members: Vec<usize> =
            training.iter().copied().filter(|index| usize::from(all.labels()[*index]) == class).collect();
        members.shuffle(&mut rng);
        let proportions = dirichlet(clients, &mut rng);
        let (mut begin, mut sum) = (0, 0.0);
        for (client, proportion) in proportions.iter().enumerate() {
            sum += proportion;
            let end = if client + 1 == clients { members.len() } else { (sum * members.len() as f64) as usize };
            let end = end.clamp(begin, members.len());
            shares[client].extend_from_slice(&members[begin..end]);
            begin = end;
        }
    }
    top_up(&mut shares);
    for share in &mut shares {
        share.sort_unstable();
    }
    assert_eq!(shares.iter().map(Vec::len).sum::<usize>(), training.len());
    shares
}

/// Proportions from a symmetric Dirichlet distribution: gamma draws over their sum.
fn dirichlet(count: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let gamma = Gamma::new(CONCENTRATION, 1.0).expect("a positive concentration");
    let draws: Vec<f64> = (0..count).map(|_| gamma.sample(rng).max(f64::MIN_POSITIVE)).collect();
    let sum: f64 = draws.iter().sum();
    draws.iter().map(|draw| draw / sum).collect()
}

/// Gives clients below [`SAMPLES_MIN`] samples of whoever has most at the time.
fn top_up(shares: &mut [Vec<usize>]) {
    for poor in 0..shares.len() {
        while shares[poor].len() < SAMPLES_MIN {
            let rich = (0..shares.len()).max_by_key(|client| shares[*client].len()).expect("at least one client");
            assert!(shares[rich].len() > SAMPLES_MIN, "the count of clients leaves enough samples for each");
            let given = shares[rich].pop().expect("the richest has some");
            shares[poor].push(given);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::digits;

    fn fingerprint(split: &Split) -> String {
        let mut hasher = blake3::Hasher::new();
        for samples in std::iter::once(&split.holdout).chain(&split.clients) {
            hasher.update(&(samples.len() as u64).to_le_bytes()).update(samples.labels());
        }
        hasher.finalize().to_hex()[..16].to_owned()
    }

    #[test]
    fn nothing_is_lost_and_nothing_shared() {
        let all = digits().unwrap();
        for (clients, seed) in [(1, 0), (10, 1), (10, 2), (CLIENTS_MAX, 3)] {
            let (training, holdout) = divide(&all, seed);
            let mut dealt: Vec<usize> = deal(&all, &training, clients, seed).concat();
            dealt.extend(&holdout);
            dealt.sort_unstable();
            assert_eq!(dealt, (0..all.len()).collect::<Vec<_>>());
            assert_eq!(holdout.len(), 359);
            let split = Split::new(&all, clients, seed).unwrap();
            assert!(split.clients.iter().all(|samples| samples.len() >= SAMPLES_MIN));
        }
    }

    #[test]
    fn the_split_stays_the_same_across_versions_and_machines() {
        let all = digits().unwrap();
        assert_eq!(fingerprint(&Split::new(&all, 10, 42).unwrap()), "b28bd62bcf0e715a");
    }

    #[test]
    fn the_holdout_is_not_the_end_of_the_file_and_does_not_depend_on_the_clients() {
        let all = digits().unwrap();
        let (_, holdout) = divide(&all, 42);
        let late = holdout.iter().filter(|index| **index >= all.len() - holdout.len()).count();
        assert!((36..108).contains(&late), "{late} of 359 come from the last fifth");
        assert_eq!(Split::new(&all, 3, 42).unwrap().holdout, Split::new(&all, 10, 42).unwrap().holdout);
    }

    #[test]
    fn labels_are_skewed() {
        let all = digits().unwrap();
        let split = Split::new(&all, 10, 42).unwrap();
        let top_two: f64 = split
            .clients
            .iter()
            .map(|samples| {
                let mut counts = samples.label_counts();
                counts.sort_unstable();
                (counts[8] + counts[9]) as f64 / samples.len() as f64
            })
            .sum::<f64>()
            / 10.0;
        assert!(top_two > 0.4, "an even split has 0.2 in two classes, this one {top_two}");
    }

    #[test]
    fn impossible_splits_are_refused() {
        let all = digits().unwrap();
        assert_eq!(Split::new(&all, 0, 1), Err(SplitError::Clients(0)));
        assert_eq!(Split::new(&all, CLIENTS_MAX + 1, 1), Err(SplitError::Clients(CLIENTS_MAX + 1)));
        let split = Split::new(&all, 4, 1).unwrap();
        assert_eq!(split.client(4), Err(SplitError::Index { index: 4, clients: 4 }));
    }
}
