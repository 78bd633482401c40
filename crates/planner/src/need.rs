//! What a share of a round takes of a node, and how large a share a node can take.

use crate::config::Config;
use crate::demand::{Class, Demand};
use crate::node::{Amount, MICRO};

/// A demand, worked out once for all nodes that are asked.
pub(crate) struct Need<'a> {
    pub demand: &'a Demand,
    pub rate_per_s: f64,
    batch: u64,
    utilisation: f64,
    /// Of one update.
    micro_cores: f64,
    link: f64,
}

impl<'a> Need<'a> {
    pub fn new(demand: &'a Demand, config: &Config) -> Self {
        let rate_per_s = demand.rate_per_s(config);
        let each = rate_per_s / demand.updates.max(1) as f64;
        Self {
            demand,
            rate_per_s,
            batch: config.batch_updates.max(1),
            utilisation: config.utilisation.clamp(0.01, 1.0),
            micro_cores: each * demand.service_s() * MICRO,
            link: each * demand.update_bytes as f64,
        }
    }

    /// The same round with a load that is larger by the margin.
    pub fn with_margin(&self, margin: f64) -> Self {
        let larger = 1.0 / (1.0 - margin.clamp(0.0, 0.9));
        Self {
            rate_per_s: self.rate_per_s * larger,
            micro_cores: self.micro_cores * larger,
            link: self.link * larger,
            ..*self
        }
    }

    /// Bytes that a node of the round needs beside updates: for additive functions an accumulator's two blocks, a partial
    /// on its way in, and what finishing takes, which is two updates; for others the result. Every node of a round keeps
    /// room for finishing, because it may become the top when another is lost.
    fn base_bytes(&self) -> u64 {
        let (partial, update) = (self.demand.partial_bytes, self.demand.update_bytes);
        match self.demand.class {
            Class::Additive => partial.saturating_mul(3).saturating_add(update.saturating_mul(2)),
            _ => partial,
        }
    }

    /// Updates of a share that lie in memory at a time, by Little's law: their rate by the time each stays, which is at
    /// least its own way in and its own fold.
    fn waiting(&self, updates: u64, link_bytes_per_s: u64) -> u64 {
        let stays_s = self.demand.service_s() + self.demand.update_bytes as f64 / link_bytes_per_s.max(1) as f64;
        let rate = self.rate_per_s * updates as f64 / self.demand.updates.max(1) as f64;
        ((rate * stays_s / self.utilisation).ceil() as u64).clamp(1, updates.max(1))
    }

    /// The least memory for a share of so many updates.
    pub fn memory_bytes(&self, updates: u64, link_bytes_per_s: u64) -> u64 {
        self.base_bytes().saturating_add(self.slots_bytes(match self.demand.class {
            Class::Additive => u128::from(self.waiting(updates, link_bytes_per_s)),
            Class::CoordinateWise => self.exchanged(updates),
            Class::TwoPhase | Class::Whole => u128::from(updates),
        }))
    }

    /// Updates' worth of memory of a share cut by coordinate: its own updates, and its slice of all others'.
    fn exchanged(&self, updates: u64) -> u128 {
        let (n, all) = (u128::from(updates), u128::from(self.demand.updates.max(1)));
        n + (n * all.saturating_sub(n)).div_ceil(all)
    }

    fn slots_bytes(&self, slots: u128) -> u64 {
        u64::try_from(slots * u128::from(self.demand.update_bytes)).unwrap_or(u64::MAX)
    }

    /// What a share takes, memory at its least.
    pub fn of(&self, updates: u64, capacity: Amount) -> Amount {
        let of = |each: f64| (each * updates as f64).ceil() as u64;
        Amount {
            micro_cores: of(self.micro_cores),
            link_bytes_per_s: of(self.link),
            memory_bytes: self.memory_bytes(updates, capacity.link_bytes_per_s),
        }
    }

    /// Updates that may lie in memory with so much room for the share, at most a batch more than have to.
    pub fn window(&self, updates: u64, memory_bytes: u64) -> u64 {
        if self.demand.class.keeps_updates() {
            return updates;
        }
        let room = memory_bytes.saturating_sub(self.base_bytes()) / self.demand.update_bytes.max(1);
        room.clamp(1, updates.max(1))
    }

    /// Memory for the share: what it must have, and room for a whole batch where there is room.
    pub fn granted_bytes(&self, updates: u64, least: u64, free: u64) -> u64 {
        if self.demand.class.keeps_updates() {
            return least;
        }
        let batch = self.base_bytes().saturating_add(self.slots_bytes(u128::from(self.batch.min(updates.max(1)))));
        least.max(batch.min(free))
    }

    /// The largest share that a node takes within everything it has free.
    pub fn most_in_time(&self, free: Amount, capacity: Amount) -> u64 {
        let all = self.demand.updates;
        // One more than the quotient, which a float may have rounded down; whether it fits is then seen exactly.
        let by = |free: u64, each: f64| if each > 0.0 { ((free as f64 / each) as u64).saturating_add(1) } else { all };
        let by_rate = by(free.micro_cores, self.micro_cores).min(by(free.link_bytes_per_s, self.link)).min(all);
        let fits = |updates| self.of(updates, capacity).is_within(free);
        if !self.demand.class.can_spread() {
            return if fits(all) { all } else { 0 };
        }
        largest(by_rate, fits)
    }

    /// The largest share whose memory fits, however long it takes.
    pub fn most_at_all(&self, free: Amount) -> u64 {
        let all = self.demand.updates;
        match self.demand.class {
            Class::Additive if self.base_bytes().saturating_add(self.demand.update_bytes) <= free.memory_bytes => all,
            Class::Additive => 0,
            Class::CoordinateWise => largest(all, |updates| self.memory_bytes(updates, 1) <= free.memory_bytes),
            Class::TwoPhase | Class::Whole if self.memory_bytes(all, 1) <= free.memory_bytes => all,
            Class::TwoPhase | Class::Whole => 0,
        }
    }

    /// On how many of these nodes, in order, a round that is late is made soonest. Each comes with the share it could take
    /// in time, and its link.
    ///
    /// More nodes take updates faster, but each brings one more partial to the top: `N / Σ speed + (m − 1) · partial / link`
    /// is least for some `m`. Where updates are cut by coordinate there are no partials, and all help.
    pub fn soonest(&self, nodes: impl Iterator<Item = (u64, f64)>) -> usize {
        let (mut sum, mut link, mut best) = (0.0, 0.0f64, (f64::INFINITY, 0));
        let partial = if self.demand.class == Class::Additive { self.demand.partial_bytes as f64 } else { 0.0 };
        for (place, (share, bytes_per_s)) in nodes.enumerate() {
            sum += share as f64;
            link = link.max(bytes_per_s);
            let took_s = self.demand.updates as f64 * self.demand.updates as f64 / (self.rate_per_s * sum);
            let merged_s = place as f64 * partial / link.max(1.0);
            if merged_s > best.0 {
                // Those after it would only add to that.
                break;
            }
            let made_s = took_s + merged_s;
            if made_s < best.0 {
                best = (made_s, place + 1);
            }
        }
        best.1
    }

    /// The least memory of a share that need not be in time.
    pub fn least_bytes_late(&self, updates: u64) -> u64 {
        match self.demand.class {
            Class::Additive => self.base_bytes().saturating_add(self.demand.update_bytes),
            _ => self.memory_bytes(updates, 1),
        }
    }
}

/// The largest number up to `most` for which `fits` holds, where it holds for all below it; 0 if for none.
fn largest(most: u64, fits: impl Fn(u64) -> bool) -> u64 {
    // Mostly the bound is met, or missed by a rounding.
    for near in [most, most.saturating_sub(1)] {
        if near == 0 || fits(near) {
            return near;
        }
    }
    let (mut low, mut high) = (0, most);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    low
}
