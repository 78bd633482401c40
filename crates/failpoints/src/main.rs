//! The `catchment` program for tests: environment variables end it, hold it up, make it panic, or set its clock wrong.
//!
//! It is a program of its own, so that none of this is in the one that people get. What it is made of is compiled once for
//! both.
#![forbid(unsafe_code)]

use catchment::Hooks;
use catchment_types::{NoSteps, Step, Steps};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// For tests of sudden death: the process ends, as by `kill -9`, right after the step of this name (`Flipped`) was done,
/// or done so often (`Flipped:3`).
const END_AT: &str = "CATCHMENT_END_AT";
/// For tests of mistakes in the program: whoever has done the step of this name panics, once, or so often (`Flipped:3`).
const PANIC_AT: &str = "CATCHMENT_PANIC_AT";
/// For tests of what happens meanwhile: whoever has done the step of this name, or done it so often (`Frozen:2`), waits
/// while the file is there that [`HOLD_FILE`] names. Beside it lies another one, with `.held` after its name, once somebody
/// waits.
const HOLD_AT: &str = "CATCHMENT_HOLD_AT";
/// The file.
const HOLD_FILE: &str = "CATCHMENT_HOLD_FILE";
/// How often it is looked for.
const HOLD_LOOK: Duration = Duration::from_millis(5);
/// For tests of clocks that jump: a file with the milliseconds by which this process's clock is ahead of the machine's,
/// read at every look at the clock. While it is not there, or no number, the clock is right.
const CLOCK_SKEW_FILE: &str = "CATCHMENT_CLOCK_SKEW_FILE";

static CLOCK_SKEW: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os(CLOCK_SKEW_FILE).map(PathBuf::from));

/// What happens at a step, given how often it was done.
type Happens = fn(Step, i64);

fn main() -> ExitCode {
    catchment::run(Hooks { clock_ahead_ms: skew_ms, steps, runners_once: &[END_AT] })
}

fn skew_ms() -> i64 {
    let text = CLOCK_SKEW.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

/// Something that happens when a step was done.
struct At {
    step: Step,
    left: AtomicI64,
    happens: fn(Step, i64),
}

impl At {
    /// What a variable says, if it says anything.
    fn said(variable: &str, happens: fn(Step, i64)) -> Option<Self> {
        let said = std::env::var(variable).ok()?;
        let (name, count) = said.split_once(':').unwrap_or((&said, "1"));
        let step = Step::ALL.into_iter().find(|step| step.name() == name)?;
        Some(Self { step, left: AtomicI64::new(count.parse().unwrap_or(1)), happens })
    }
}

impl Steps for At {
    fn done(&self, step: Step) {
        if step == self.step {
            (self.happens)(step, self.left.fetch_sub(1, Relaxed));
        }
    }
}

fn end(_: Step, left: i64) {
    if left == 1 {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::KILL).expect("it is our own");
    }
}

fn panic_at(step: Step, left: i64) {
    assert!(left < 1, "{PANIC_AT} asks for a panic after {}", step.name());
}

fn hold(_: Step, left: i64) {
    let Some(file) = std::env::var_os(HOLD_FILE).map(PathBuf::from).filter(|_| left == 1) else { return };
    let wait = || {
        std::fs::write(file.with_added_extension("held"), "").expect("say that somebody waits");
        while file.exists() {
            std::thread::sleep(HOLD_LOOK);
        }
    };
    // Others must not wait for the thread of a task that waits here.
    match tokio::runtime::Handle::try_current() {
        Ok(_) => tokio::task::block_in_place(wait),
        Err(_) => wait(),
    }
}

/// What is to happen between steps: what a variable says.
fn steps() -> Arc<dyn Steps> {
    let said: [(&str, Happens); 3] = [(END_AT, end), (PANIC_AT, panic_at), (HOLD_AT, hold)];
    match said.into_iter().find_map(|(variable, happens)| At::said(variable, happens)) {
        Some(at) => Arc::new(at),
        None => Arc::new(NoSteps),
    }
}
