//! The clock that stops functions which run too long.
//!
//! Compiled functions look at the engine's epoch now and then; somebody has to move it. A thread does, but only while
//! calls run: when the last has ended it goes to sleep for good, so an idle runtime costs no wake-up. It lingers for
//! one tick, so that a burst of short calls does not wake it each time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;
use wasmtime::Engine;

/// Moves an engine's epoch while calls run.
#[derive(Debug)]
pub struct Ticker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    asleep: bool,
    stop: bool,
    /// Ticks so far; for tests.
    ticks: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is counts only: whoever panicked while holding it left it whole.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Ticker {
    /// Starts the thread, asleep.
    pub fn start(engine: Engine, tick: Duration) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::new(State::default()), wake: Condvar::new() });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name("catchment-epoch".to_string()).spawn(move || run(&theirs, &engine, tick))?;
        Ok(Self { shared })
    }

    /// Keeps the epoch moving until the guard is dropped.
    pub fn running(&self) -> Running<'_> {
        let mut state = self.shared.lock();
        state.running += 1;
        if state.asleep {
            state.asleep = false;
            self.shared.wake.notify_one();
        }
        Running { ticker: self }
    }

    /// Ticks so far.
    #[cfg(test)]
    fn ticks(&self) -> u64 {
        self.shared.lock().ticks
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_one();
    }
}

/// A call that runs.
pub struct Running<'a> {
    ticker: &'a Ticker,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.ticker.shared.lock().running -= 1;
    }
}

fn run(shared: &Shared, engine: &Engine, tick: Duration) {
    let mut state = shared.lock();
    while !state.stop {
        if state.running == 0 {
            state.asleep = true;
            while state.asleep && !state.stop {
                state = shared.wake.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
        }
        drop(state);
        std::thread::sleep(tick);
        engine.increment_epoch();
        state = shared.lock();
        state.ticks += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_only_while_something_runs() {
        let ticker = Ticker::start(Engine::default(), Duration::from_millis(1)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(ticker.ticks(), 0, "nothing has run yet");
        let running = ticker.running();
        while ticker.ticks() < 3 {
            std::thread::yield_now();
        }
        drop(running);
        std::thread::sleep(Duration::from_millis(50));
        let rest = ticker.ticks();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(ticker.ticks(), rest, "asleep again");
        drop(ticker.running());
        std::thread::sleep(Duration::from_millis(50));
        assert!(ticker.ticks() > rest, "woken again");
    }
}
