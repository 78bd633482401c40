//! What the metering program says of a busy process, beside what the kernel says itself.

mod common;

use catchment_proxy::{CpuTime, Link, Options};
use common::{eventually, kernel, skipped};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// A process that only computes, killed at the end.
struct Busy(Child);

impl Busy {
    /// Metered from its beginning on: it waits for a line first.
    fn start(link: &dyn Link) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", "read line; while :; do :; done"]).stdin(Stdio::piped());
        let mut busy = Self(shell.spawn().expect("a shell"));
        link.meter(busy.0.id()).expect("room");
        busy.0.stdin.take().expect("it is piped").write_all(b"go\n").expect("it reads");
        busy
    }

    /// What the kernel's own accounting says.
    fn truth(&self) -> CpuTime {
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", self.0.id())).expect("its accounting");
        let mut numbers = text.split_whitespace().map(|number| number.parse().expect("a number"));
        CpuTime { on_cpu_ns: numbers.next().expect("time"), queued_ns: numbers.next().expect("delay") }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.kill().expect("it is ours");
        self.0.wait().expect("it ends");
    }
}

fn metered() -> Option<Arc<dyn Link>> {
    let (link, report) = kernel(&Options::default())?;
    match report.metering {
        None => Some(link),
        Some(lack) => {
            skipped(&lack.to_string());
            None
        }
    }
}

fn close(measured: u64, truth: u64, slack_ns: u64) -> bool {
    measured.abs_diff(truth) <= truth / 10 + slack_ns
}

#[test]
fn a_busy_process_is_metered_within_a_tenth() {
    let Some(link) = metered() else { return };
    // More than there are cores, so that some have to wait.
    let cores = std::thread::available_parallelism().expect("cores").get();
    let busy: Vec<Busy> = (0..=cores).map(|_| Busy::start(&*link)).collect();
    let before: Vec<CpuTime> = busy.iter().map(Busy::truth).collect();
    std::thread::sleep(Duration::from_secs(2));
    for (busy, before) in busy.iter().zip(before) {
        let pid = busy.0.id();
        let (truth, measured) = (busy.truth(), link.cpu(pid).expect("it is metered"));
        let truth =
            CpuTime { on_cpu_ns: truth.on_cpu_ns - before.on_cpu_ns, queued_ns: truth.queued_ns - before.queued_ns };
        println!("metered {measured:?}, the kernel says {truth:?}");
        // The kernel brings its own sums up to date with the clock's tick or at a switch.
        let slack_ns = 30_000_000;
        assert!(close(measured.on_cpu_ns, truth.on_cpu_ns, slack_ns), "{measured:?} is not {truth:?}");
        assert!(close(measured.queued_ns, truth.queued_ns, slack_ns), "{measured:?} is not {truth:?}");
        assert!(link.unmeter(pid).is_some_and(|last| last.on_cpu_ns >= measured.on_cpu_ns));
        assert_eq!(link.cpu(pid), None);
    }
}

#[test]
fn an_idle_process_uses_nothing_and_readings_never_go_back() {
    let Some(link) = metered() else { return };
    let mut sleeper = Command::new("sleep").arg("60").spawn().expect("a process");
    let busy = Busy::start(&*link);
    std::thread::sleep(Duration::from_millis(100));
    let (idle, pid) = (sleeper.id(), busy.0.id());
    link.meter(idle).expect("room");
    let mut last = CpuTime::default();
    for _ in 0..2000 {
        let now = link.cpu(pid).expect("it is metered");
        assert!(now.on_cpu_ns >= last.on_cpu_ns && now.queued_ns >= last.queued_ns);
        last = now;
    }
    eventually("it is seen", || link.cpu(pid).is_some_and(|now| now.on_cpu_ns > 0));
    assert!(link.cpu(idle).is_some_and(|time| time.on_cpu_ns < 20_000_000));
    sleeper.kill().expect("it is ours");
    sleeper.wait().expect("it ends");
    assert_eq!(link.cpu(1), None);
}
