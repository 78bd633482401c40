//! What the tests share.
#![allow(dead_code, reason = "not every test uses all of it")]

mod basics;

#[allow(unused_imports, reason = "not every test uses both")]
pub use basics::{descriptor, skipped};
use catchment_proxy::{Link, Mode, Options, Report, open};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A link on which the kernel routes, or a line that says why the test is skipped.
pub fn kernel(options: &Options) -> Option<(Arc<dyn Link>, Report)> {
    match open(Mode::On, options) {
        Ok(opened) => Some(opened),
        Err(error) => {
            skipped(&error.to_string());
            None
        }
    }
}

/// Waits for something that is bound to happen.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs in a thread of its own, whose identity and capabilities can be changed without harm to other tests.
pub fn apart<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let name = std::thread::current().name().unwrap_or_default().to_string();
    let thread = std::thread::Builder::new().name(name).spawn(body).expect("a thread");
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Makes this thread an ordinary user's.
pub fn become_nobody() {
    let nobody = 65534;
    rustix::thread::set_thread_groups(&[]).expect("no groups");
    rustix::thread::set_thread_gid(rustix::process::Gid::from_raw(nobody)).expect("another group");
    rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(nobody)).expect("another user");
}
