//! What happens next: events by time, and in the order they were planned where the time is the same.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Virtual time, in microseconds.
pub type Micros = u64;

/// Seconds as virtual time.
pub fn micros(seconds: f64) -> Micros {
    (seconds.max(0.0) * 1e6).round() as Micros
}

/// Virtual time as seconds.
pub fn seconds(micros: Micros) -> f64 {
    micros as f64 / 1e6
}

struct Entry<E> {
    at: Micros,
    number: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// The events to come.
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    pub now: Micros,
    /// Events planned so far.
    pub number: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), now: 0, number: 0 }
    }
}

impl<E> Queue<E> {
    pub fn at(&mut self, at: Micros, event: E) {
        self.number += 1;
        self.heap.push(Reverse(Entry { at: at.max(self.now), number: self.number, event }));
    }

    pub fn after(&mut self, seconds: f64, event: E) {
        self.at(self.now + micros(seconds), event);
    }

    /// The next event; the time is then its time.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}
