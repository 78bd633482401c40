//! The clients that wait, and when each was told to come.

use catchment_types::TimeMs;
use std::collections::HashMap;

/// Clients of one job that are remembered while they wait. More get appointments all the same, but nobody knows whether
/// they keep them.
pub const WAITING_MAX: usize = 1 << 18;
/// What one of them takes in memory at most: a name and a time, and the table's slack.
pub const WAITING_BYTES: usize = 44;
/// A client that is this late is not waiting any more.
const GONE_MS: u64 = 60_000;
/// How often those are looked for.
const SWEEP_MS: u64 = 10_000;
/// A client may come so much earlier: clocks differ.
const EARLY_MS: u64 = 20;

#[derive(Debug, Default)]
pub struct Waiting {
    due: HashMap<u64, TimeMs>,
    swept_ms: TimeMs,
}

impl Waiting {
    pub fn len(&self) -> usize {
        self.due.len()
    }

    /// The appointment of a client that comes before it.
    pub fn early(&self, client: u64, now_ms: TimeMs) -> Option<TimeMs> {
        self.due.get(&client).copied().filter(|due| *due > now_ms + EARLY_MS)
    }

    pub fn appoint(&mut self, client: u64, due_ms: TimeMs) {
        if self.due.len() < WAITING_MAX || self.due.contains_key(&client) {
            self.due.insert(client, due_ms);
        }
    }

    pub fn remove(&mut self, client: u64) {
        self.due.remove(&client);
    }

    /// Forgets those that do not come any more, now and then.
    pub fn sweep(&mut self, now_ms: TimeMs) {
        if now_ms.abs_diff(self.swept_ms) >= SWEEP_MS {
            self.swept_ms = now_ms;
            self.due.retain(|_, due| *due + GONE_MS > now_ms);
            if self.due.capacity() > 4 * self.due.len().max(64) {
                self.due.shrink_to_fit();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_late_are_forgotten_and_the_early_are_sent_away() {
        let mut waiting = Waiting::default();
        waiting.appoint(1, 5_000);
        assert_eq!((waiting.early(1, 4_000), waiting.early(1, 4_990), waiting.early(2, 0)), (Some(5_000), None, None));
        waiting.sweep(60_000);
        assert_eq!(waiting.len(), 1);
        waiting.sweep(70_001);
        assert_eq!(waiting.len(), 0);
    }

    #[test]
    fn memory_has_a_limit() {
        let mut waiting = Waiting::default();
        (0..2 * WAITING_MAX as u64).for_each(|client| waiting.appoint(client, 1));
        assert_eq!(waiting.len(), WAITING_MAX);
        // Sixteen bytes and a control byte for each place of the table, at most 16/7 places a client right after it grew.
        let bytes = waiting.due.capacity() * 17 * 8 / 7 / waiting.len();
        assert!(bytes <= WAITING_BYTES, "{bytes} bytes a client");
    }
}
