//! Which records of each writer are there: what comes twice, or so late that its writer has given it up, counts for nothing.
//!
//! A record without a guard may be stored after its writer has taken it for lost and has written it anew, and somebody may
//! store a copy of one. A writer numbers its records and sends them in that order, so one that comes behind a later one of its
//! writer is one of these.

use catchment_types::TimeMs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A record may lie behind the last one that its writer knew of by so many; then it comes too late. So a writer that has
/// stored nothing for as long can be forgotten.
pub(crate) const WINDOW: u64 = 1 << 17;
/// How often those are looked for, in records.
const LOOK: u64 = 1 << 14;

/// The newest record of a writer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Newest {
    number: u64,
    sequence: u64,
    /// The latest time that it has said.
    said_ms: Option<TimeMs>,
}

/// The writers of the last records.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Writers(BTreeMap<[u8; 16], Newest>);

impl Writers {
    /// The number of the writer's newest record that counts, while it is known.
    pub(crate) fn newest(&self, writer: &[u8; 16]) -> Option<u64> {
        self.0.get(writer).map(|newest| newest.number)
    }

    /// Takes note of a record. Whether it comes in time; if not, it counts for nothing.
    pub(crate) fn take(&mut self, sequence: u64, writer: [u8; 16], number: u64, seen: Option<u64>) -> bool {
        if sequence.is_multiple_of(LOOK) {
            self.0.retain(|_, newest| newest.sequence + WINDOW >= sequence);
        }
        let is_late = seen.is_some_and(|seen| seen.saturating_add(WINDOW) < sequence);
        let before = self.0.get(&writer).copied();
        if is_late || before.is_some_and(|newest| newest.number >= number) {
            return false;
        }
        self.0.insert(writer, Newest { number, sequence, said_ms: before.and_then(|newest| newest.said_ms) });
        true
    }

    /// The latest time that a writer has said, as far as it is known.
    pub(crate) fn said_ms(&self, writer: &[u8; 16]) -> Option<TimeMs> {
        self.0.get(writer).and_then(|newest| newest.said_ms)
    }

    /// Takes note of it.
    pub(crate) fn say(&mut self, writer: &[u8; 16], at_ms: TimeMs) {
        if let Some(newest) = self.0.get_mut(writer) {
            newest.said_ms = newest.said_ms.max(Some(at_ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_twice_or_late_does_not_count() {
        let mut writers = Writers::default();
        assert!(writers.take(1, [1; 16], 1, Some(0)) && writers.take(2, [2; 16], 1, Some(0)));
        assert!(!writers.take(3, [1; 16], 1, Some(0)), "a copy");
        assert!(writers.take(4, [1; 16], 5, Some(0)), "some were lost");
        assert!(!writers.take(5, [1; 16], 4, Some(0)), "its writer has given it up");
        let late = 5 * LOOK.max(WINDOW);
        assert!(writers.take(late, [3; 16], 1, Some(late - WINDOW)));
        assert_eq!(writers.0.len(), 1, "the others are forgotten");
        assert!(!writers.take(late + 1, [1; 16], 5, Some(3)), "and cannot come back");
        assert!(writers.take(late + 2, [1; 16], 6, Some(late)));
    }
}
