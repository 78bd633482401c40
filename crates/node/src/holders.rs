//! Bodies that have been granted shared memory and are still on their way: who of them holds it for nothing.
//!
//! Memory is granted for the whole of a body before its data comes, so a sender that stands still keeps others out. As long
//! as nobody else wants the memory, that is nobody's loss. When somebody waits for room, the one that gained the least of
//! late gives way, if it gained less than the minimum rate.

use crate::slack::Slack;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// It does not wait for its sender.
const BUSY: u64 = u64::MAX;

/// The bodies of one node that hold memory.
#[derive(Debug)]
pub struct Holders {
    table: Mutex<Table>,
    base: Instant,
    /// Over how long what a body gains is looked at.
    window: Duration,
    bytes_per_s: u64,
}

#[derive(Debug, Default)]
struct Table {
    holders: HashMap<u64, Arc<Holder>>,
    /// How many there ever were.
    count: u64,
}

/// One body that holds memory.
#[derive(Debug)]
struct Holder {
    /// From when on it will have gained too little, in milliseconds since the base; or [`BUSY`].
    until_ms: AtomicU64,
    gives_way: CancellationToken,
}

/// What one body gains. While it is there, its body counts as holding memory.
#[derive(Debug)]
pub struct Holding {
    holders: Arc<Holders>,
    holder: Arc<Holder>,
    number: u64,
    slack: Slack,
}

/// What became of looking for somebody who gives way.
#[derive(Debug, PartialEq, Eq)]
pub enum Pressed {
    /// Somebody was told to.
    One,
    /// Nobody stands still; earliest then somebody will have.
    Nobody(Instant),
}

impl Holders {
    /// Looks at what came within `window`, which is to be `bytes_per_s` at least.
    pub fn new(window: Duration, bytes_per_s: u64) -> Arc<Self> {
        let table = Mutex::default();
        Arc::new(Self { table, base: Instant::now(), window: window.max(Duration::from_millis(10)), bytes_per_s })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a body that was granted memory.
    pub fn begin(self: &Arc<Self>) -> Holding {
        let holder = Arc::new(Holder { until_ms: AtomicU64::new(BUSY), gives_way: CancellationToken::new() });
        let mut table = self.lock();
        table.count += 1;
        let number = table.count;
        table.holders.insert(number, holder.clone());
        let mut slack = Slack::new(self.window, self.bytes_per_s, self.window);
        slack.gain(0);
        Holding { holders: self.clone(), holder, number, slack }
    }

    /// Tells the body that gained the least of late to give way, if that is less than it should have.
    pub fn press(&self) -> Pressed {
        let now = Instant::now();
        let now_ms = self.ms(now);
        let waiting = |holder: &Arc<Holder>| {
            let until_ms = holder.until_ms.load(Ordering::Relaxed);
            (until_ms != BUSY && !holder.gives_way.is_cancelled()).then(|| (until_ms, holder.clone()))
        };
        let least = self.lock().holders.values().filter_map(waiting).min_by_key(|(until_ms, _)| *until_ms);
        match least {
            Some((until_ms, holder)) if until_ms <= now_ms => {
                holder.gives_way.cancel();
                Pressed::One
            }
            // Who is busy now may begin to stand still at any moment.
            Some((until_ms, _)) => {
                Pressed::Nobody((self.base + Duration::from_millis(until_ms)).min(now + self.window))
            }
            None => Pressed::Nobody(now + self.window),
        }
    }

    fn ms(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.base).as_millis() as u64
    }
}

impl Holding {
    /// Its body begins to wait for its sender.
    pub fn wait(&mut self) {
        let until = self.holders.ms(self.slack.wait());
        self.holder.until_ms.store(until, Ordering::Relaxed);
    }

    /// Its body waits no longer; it has gained `bytes` bytes.
    pub fn gain(&mut self, bytes: usize) {
        self.holder.until_ms.store(BUSY, Ordering::Relaxed);
        self.slack.gain(bytes);
    }

    /// Told once it shall give way.
    pub fn gives_way(&self) -> CancellationToken {
        self.holder.gives_way.clone()
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.holders.lock().holders.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn who_gained_least_gives_way() {
        let holders = Holders::new(1000 * MS, 1000);
        let mut all: Vec<Holding> = (0..4).map(|_| holders.begin()).collect();
        all[..3].iter_mut().for_each(Holding::wait);
        assert!(matches!(holders.press(), Pressed::Nobody(_)));
        advance(600 * MS).await;
        for (holding, bytes) in all.iter_mut().zip([300, 100, 10_000]) {
            holding.gain(bytes);
            holding.wait();
        }
        // They have 700, 500 and 1000 ms left: what they had, and a millisecond for each byte, at most the window.
        assert_eq!(holders.press(), Pressed::Nobody(Instant::now() + 500 * MS));
        advance(800 * MS).await;
        assert_eq!(holders.press(), Pressed::One);
        assert_eq!(holders.press(), Pressed::One);
        assert!(matches!(holders.press(), Pressed::Nobody(_)));
        let gone = all.iter().map(|holding| holding.gives_way().is_cancelled());
        assert_eq!(gone.collect::<Vec<_>>(), [true, true, false, false]);
        // A fast begin is no excuse, and one that is gone is not asked.
        drop(all.remove(2));
        advance(5000 * MS).await;
        assert!(matches!(holders.press(), Pressed::Nobody(_)), "the last one does not wait for its sender");
        all[2].wait();
        assert!(matches!(holders.press(), Pressed::Nobody(_)));
        advance(1001 * MS).await;
        assert_eq!(holders.press(), Pressed::One);
    }
}
