//! The time that a round's deadline leaves, in the fold: as durations, so that it does not matter whose clock was wrong.

use crate::round::Round;
use catchment_types::{NodeId, TimeMs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// So much time counts, at most, between two updates: their node's clock may have been set meanwhile.
const BETWEEN_MS_MAX: u64 = 60_000;
/// How long an update may be on its way to the log. The first one after a deadline was set may be from before that.
const ON_ITS_WAY_MS: u64 = 10_000;

/// What a record has set as a round's deadline, and how much of it the log itself shows to be used up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Term {
    /// Its number among those of its round, from 1, by which it is told from the one before.
    pub number: u64,
    /// How long it is.
    pub allowed_ms: u64,
    /// What of it was used up before the last pause, as far as the round showed.
    used_ms: u64,
    /// The updates that the round had when it began to run, or went on; `None` while its job is paused.
    since: Option<u64>,
}

impl Term {
    /// One that runs from now on, after another one of its round, which has so many updates.
    pub fn begin(before: Option<Self>, allowed_ms: u64, updates: u64) -> Self {
        let number = before.map_or(0, |before| before.number) + 1;
        Self { number, allowed_ms, used_ms: 0, since: Some(updates) }
    }
}

impl Round {
    /// A pause does not use its time up.
    pub(crate) fn pause(&mut self) {
        let used_ms = self.used_ms();
        if let Some(term) = &mut self.term {
            (term.used_ms, term.since) = (used_ms, None);
        }
    }

    /// Its time goes on.
    pub(crate) fn resume(&mut self) {
        let updates = self.len();
        if let Some(term) = &mut self.term {
            term.since.get_or_insert(updates);
        }
    }

    /// What is used up of its time at least: what passed by one node's clock between the updates that it took meanwhile.
    pub(crate) fn used_ms(&self) -> u64 {
        let Some(term) = self.term else { return 0 };
        let Some(since) = term.since else { return term.used_ms };
        let mut updates: Vec<_> = self.updates().filter(|update| update.order >= since).collect();
        updates.sort_unstable_by_key(|update| update.order);
        let mut nodes: BTreeMap<NodeId, (TimeMs, u64)> = BTreeMap::new();
        for accept in updates.into_iter().map(|update| &update.accept) {
            let (latest_ms, passed_ms) = nodes.entry(accept.node).or_insert((accept.at_ms, 0));
            // One that is out of order shows nothing.
            *passed_ms += accept.at_ms.saturating_sub(*latest_ms).min(BETWEEN_MS_MAX);
            *latest_ms = accept.at_ms.max(*latest_ms);
        }
        let passed_ms = nodes.into_values().map(|(_, passed_ms)| passed_ms).max().unwrap_or(0);
        term.used_ms.saturating_add(passed_ms.saturating_sub(ON_ITS_WAY_MS))
    }
}
