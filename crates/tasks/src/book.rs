//! Appointments, so many in each slot of time.

use catchment_types::TimeMs;
use std::collections::VecDeque;

/// Length of a slot.
const SLOT_MS: u64 = 500;
/// Slots of the book: an hour and a bit.
const SLOTS_MAX: usize = 8_000;

/// How many come in each slot, from now on. Hashing alone keeps the mean; this keeps the peaks.
#[derive(Debug, Default)]
pub struct Book {
    /// The number of the first slot since the epoch.
    first: u64,
    taken: VecDeque<u32>,
}

impl Book {
    /// The first time at or after `wanted_ms` in whose slot there is room; the last slot takes everybody.
    /// `per_s`: appointments a second. `place`: where in the slot, from 0 to 1.
    pub fn take(&mut self, now_ms: TimeMs, wanted_ms: TimeMs, per_s: f64, place: f64) -> TimeMs {
        let now = now_ms / SLOT_MS;
        if now < self.first {
            self.taken.clear();
        }
        while self.first < now && self.taken.pop_front().is_some() {
            self.first += 1;
        }
        self.first = now;
        let capacity = (per_s * SLOT_MS as f64 / 1000.0).ceil().max(1.0) as u32;
        let mut slot = (wanted_ms.max(now_ms) / SLOT_MS).saturating_sub(self.first) as usize;
        slot = slot.min(SLOTS_MAX - 1);
        while slot + 1 < SLOTS_MAX && self.taken.get(slot).is_some_and(|taken| *taken >= capacity) {
            slot += 1;
        }
        if self.taken.len() <= slot {
            self.taken.resize(slot + 1, 0);
        }
        self.taken[slot] = self.taken[slot].saturating_add(1);
        let begin_ms = (self.first + slot as u64) * SLOT_MS;
        if begin_ms <= wanted_ms { wanted_ms } else { begin_ms + (place * (SLOT_MS - 1) as f64) as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_full_slot_passes_on_to_the_next() {
        let mut book = Book::default();
        let times: Vec<u64> = (0..6).map(|_| book.take(10_000, 10_100, 4.0, 0.5)).collect();
        assert_eq!(times, [10_100, 10_100, 10_749, 10_749, 11_249, 11_249]);
        assert_eq!(book.take(10_600, 10_700, 4.0, 0.0), 11_500, "time goes on, appointments stay");
        assert_eq!(book.take(900, 1_000, 4.0, 0.0), 1_000, "a clock that was set back begins a new book");
    }

    proptest! {
        #[test]
        fn no_slot_has_more_than_its_share(wanted in proptest::collection::vec((0u64..50, 0u64..20_000), 1..500), per_s in 1u32..50) {
            let (mut book, mut now_ms, mut slots) = (Book::default(), 5_000, HashMap::<u64, u32>::new());
            for (later, ahead) in wanted {
                now_ms += later;
                let at = book.take(now_ms, now_ms + ahead, per_s.into(), 0.7);
                prop_assert!(at >= now_ms + ahead);
                *slots.entry(at / SLOT_MS).or_default() += 1;
            }
            let most = per_s.div_ceil(2);
            prop_assert!(slots.values().all(|count| *count <= most), "{slots:?}");
            prop_assert!(book.taken.len() <= SLOTS_MAX);
        }
    }
}
