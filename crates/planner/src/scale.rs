//! How many nodes the fleet needs, and when to give some up.

use crate::config::Config;
use crate::demand::Demand;
use crate::need::Need;
use crate::node::{Amount, Node};
use catchment_types::TimeMs;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Nodes of this kind that serve these rounds in time: the most that cores, links or memory ask for. None for no round.
///
/// A lower bound when rounds do not divide evenly; a fleet that then has no room for one asks for one more.
pub fn nodes_wanted<'a>(demands: impl IntoIterator<Item = &'a Demand>, kind: &Node, config: &Config) -> u64 {
    let capacity = kind.capacity(config);
    let mut sum = Amount::default();
    for demand in demands {
        sum = sum.and(Need::new(demand, config).of(demand.updates, capacity));
    }
    let of = |wanted: u64, has: u64| wanted.div_ceil(has.max(1));
    of(sum.micro_cores, capacity.micro_cores)
        .max(of(sum.link_bytes_per_s, capacity.link_bytes_per_s))
        .max(of(sum.memory_bytes, capacity.memory_bytes))
}

/// Keeps a number from flapping: it goes up at once, and down only to the most that was wanted within `settle_ms`; the
/// last goes after `idle_ms` of wanting none. For nodes, runners or instances alike.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settle {
    /// Until when what was wanted, newest last, without those that a later one is as large as.
    wanted: VecDeque<(TimeMs, u64)>,
    /// The newest of them.
    latest: u64,
    /// What there is.
    held: u64,
    zero_since_ms: Option<TimeMs>,
}

impl Settle {
    /// Notes what is wanted now and says what to have.
    pub fn step(&mut self, wanted: u64, now_ms: TimeMs, config: &Config) -> u64 {
        // The one before was wanted up to this moment.
        self.note(self.latest, now_ms);
        self.note(wanted, now_ms);
        self.latest = wanted;
        self.zero_since_ms = if wanted > 0 { None } else { self.zero_since_ms.or(Some(now_ms)) };
        let horizon_ms = now_ms.saturating_sub(config.settle_ms);
        while self.wanted.len() > 1 && self.wanted.front().is_some_and(|(until, _)| *until < horizon_ms) {
            self.wanted.pop_front();
        }
        let most = self.wanted.front().map_or(wanted, |(_, most)| *most);
        let is_idle = self.zero_since_ms.is_none_or(|since| now_ms.saturating_sub(since) >= config.idle_ms);
        self.held = if most == 0 && self.held > 0 && !is_idle { 1 } else { most };
        self.held
    }

    /// When to ask again if nothing else happens, because something may then be given up.
    pub fn look_again_ms(&self, config: &Config) -> Option<TimeMs> {
        let settles = self.wanted.front().filter(|(_, most)| *most > self.latest);
        let settles = settles.map(|(until, _)| until + config.settle_ms + 1);
        let ends = self.zero_since_ms.filter(|_| self.held > 0).map(|since| since + config.idle_ms);
        settles.or(ends)
    }

    fn note(&mut self, wanted: u64, now_ms: TimeMs) {
        while self.wanted.back().is_some_and(|(_, before)| *before <= wanted) {
            self.wanted.pop_back();
        }
        self.wanted.push_back((now_ms, wanted));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_at_once_down_after_a_while_and_to_zero_when_idle() {
        let (config, mut settle) = (Config::default(), Settle::default());
        assert_eq!(settle.step(2, 0, &config), 2);
        assert_eq!(settle.step(5, 1_000, &config), 5);
        assert_eq!(settle.step(1, 2_000, &config), 5);
        assert_eq!(settle.step(3, 30_000, &config), 5);
        assert_eq!(settle.step(1, 40_000, &config), 5);
        assert_eq!(settle.step(1, 63_000, &config), 3, "three were wanted until 40 s");
        assert_eq!(settle.step(0, 101_000, &config), 1);
        assert_eq!(settle.step(0, 400_000, &config), 1);
        assert_eq!(settle.look_again_ms(&config), Some(401_000));
        assert_eq!(settle.step(0, 401_000, &config), 0);
        assert_eq!(settle.look_again_ms(&config), None);
    }

    #[test]
    fn what_goes_up_and_down_all_the_time_stays_up() {
        let (config, mut settle) = (Config::default(), Settle::default());
        settle.step(4, 0, &config);
        let all: Vec<u64> = (1..100).map(|i| settle.step(3 + i % 2, i * 5_000, &config)).collect();
        assert!(all.iter().all(|wanted| *wanted == 4), "{all:?}");
    }
}
