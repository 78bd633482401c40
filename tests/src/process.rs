//! One process of a cluster: started, stopped, killed, started again on what it left; its log is shown when a test fails.

use crate::Release;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Lines of its log that a failing test shows.
const LOG_LINES: usize = 60;

/// A process that has a name, a log and perhaps a life.
pub struct Process {
    name: String,
    folder: PathBuf,
    make: Box<dyn Fn(Release) -> Command + Send + Sync>,
    /// Which program its next life is of.
    release: Release,
    child: Option<Child>,
    /// How often its earlier lives have said that they are up.
    ups: usize,
}

impl Process {
    /// One that is not started yet. `folder`: where it logs and has its clock.
    pub fn new(name: &str, folder: &Path, make: impl Fn(Release) -> Command + Send + Sync + 'static) -> Self {
        let (name, folder, release) = (name.to_owned(), folder.to_path_buf(), Release::default());
        Self { name, folder, make: Box::new(make), release, child: None, ups: 0 }
    }

    /// Which release it is of, or will be when it is started next.
    pub fn release(&self) -> Release {
        self.release
    }

    /// From its next life on it is of this release.
    pub fn change_to(&mut self, release: Release) {
        self.release = release;
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number, while it is started.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it, and does not wait for anything.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// The same, in a life that ends right after this step was done (`Flipped`), or done so often (`Flipped:3`).
    pub fn start_to_end_at(&mut self, step: &str) {
        self.start_with(&[("CATCHMENT_END_AT", step)]);
    }

    fn start_with(&mut self, settings: &[(&str, &str)]) {
        assert!(self.child.is_none(), "one life at a time");
        let open = |path: PathBuf| OpenOptions::new().create(true).append(true).open(path).expect("open a log");
        let mut command = (self.make)(self.release);
        command.env("CATCHMENT_CLOCK_SKEW_FILE", self.clock_path()).envs(settings.iter().copied()).stdin(Stdio::null());
        command.stdout(open(self.said_path())).stderr(open(self.log_path()));
        self.ups = self.count_ups();
        self.child = Some(command.spawn().expect("start a process"));
    }

    /// Waits until it has said in this life that it is up.
    pub async fn up(&self) {
        let what = format!("{} is up", self.name);
        crate::until(&what, async || (self.count_ups() > self.ups).then_some(())).await;
    }

    fn count_ups(&self) -> usize {
        self.said().matches(" is up").count()
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.said_path()).unwrap_or_default()
    }

    /// `host:port` that it said last that it is up at.
    pub fn said_address(&self) -> Option<String> {
        let said = self.said();
        let (_, address) = said.trim_end().rsplit_once("http://")?;
        Some(address.to_owned())
    }

    /// Whether it has ended by itself; it can be started again then.
    pub fn has_ended(&mut self) -> bool {
        let ended = self.child.as_mut().is_some_and(|child| child.try_wait().expect("wait for a process").is_some());
        if ended {
            self.child = None;
        }
        ended
    }

    /// Whether it has been started and neither killed nor seen to end.
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Ends it as `kill -9` does.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().expect("wait for a process");
        }
    }

    /// Ends the processes that it has started, as `kill -9` does. Gives their number.
    pub fn kill9_children(&self) -> usize {
        let Some(child) = &self.child else { return 0 };
        let of = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id()));
        let listed: Vec<String> = tasks.into_iter().flatten().flatten().map(of).collect();
        let children =
            listed.iter().flat_map(|list| list.split_whitespace()).filter_map(|id| Pid::from_raw(id.parse().ok()?));
        children.filter(|child| kill_process(*child, Signal::KILL).is_ok()).count()
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Interrupts it (SIGINT).
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Waits until it has ended by itself. Gives the time that took.
    pub async fn ended(&mut self) -> Duration {
        let (begun, name) = (Instant::now(), self.name.clone());
        let process = std::cell::RefCell::new(self);
        crate::until(&format!("{name} ends"), async || process.borrow_mut().has_ended().then_some(())).await;
        begun.elapsed()
    }

    /// Stops its time (SIGSTOP).
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            kill_process(Pid::from_child(child), signal).expect("send a signal");
        }
    }

    /// Makes its clock jump to this much beside the machine's.
    pub fn skew_clock(&self, ms: i64) {
        let draft = self.folder.join(format!("{}.clock.draft", self.name));
        std::fs::write(&draft, ms.to_string()).expect("set a clock");
        std::fs::rename(&draft, self.clock_path()).expect("set a clock");
    }

    /// Everything it has said so far, in every life.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }

    fn said_path(&self) -> PathBuf {
        self.folder.join(format!("{}.out", self.name))
    }

    fn clock_path(&self) -> PathBuf {
        self.folder.join(format!("{}.clock", self.name))
    }

    /// Shows the end of its log.
    pub fn show_log(&mut self) {
        let died = if self.has_ended() { " (it had died)" } else { "" };
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES)..];
        eprintln!("--- log of {}{died}, last {} lines ---\n{}\n---", self.name, shown.len(), shown.join("\n"));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_log();
        }
        self.kill9();
    }
}
