//! `catchment up` as a process: started, killed, started again on what it left.

use crate::programs::{catchment_command_of, failpoints, functions_dir, uninfluenced};
use crate::{Api, Bus, Nats, Observed, PATIENCE, Release, shared_memory, until};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What the failpoints program reads how far its clock is off from.
const CLOCK_SKEW_FILE: &str = "CATCHMENT_CLOCK_SKEW_FILE";

/// What every server is started with unless a test says otherwise: impatient, so that tests of impatience are short.
pub(crate) const DEFAULTS: [(&str, &str); 7] = [
    ("--slab-mib", "256"),
    ("--body-grace", "1s"),
    ("--body-rate-min", "1024"),
    ("--room-wait", "500ms"),
    ("--accept-wait", "2s"),
    ("--park-time", "1s"),
    ("--lanes", "2"),
];
/// Lines of its log that a failing test shows.
const LOG_LINES: usize = 150;

/// A server, its data and its shared memory; all gone when it is dropped.
pub struct Server {
    child: Option<Child>,
    address: String,
    nats: Option<Nats>,
    arguments: BTreeMap<String, String>,
    more: Vec<String>,
    filter: Option<String>,
    /// What happens in its next life after a step: a variable and what it says.
    happens_at: Option<Vec<(&'static str, String)>>,
    /// Variables of every life.
    environment: Vec<(&'static str, String)>,
    /// Whether its clock is not the machine's.
    is_skewed: bool,
    lives: u32,
    /// Which program its next life is of.
    release: Release,
    /// While it is there, whoever has done a certain step waits.
    hold_file: Option<PathBuf>,
    // Removed last, in this order.
    home: TempDir,
    slabs: TempDir,
}

impl Server {
    /// Starts one with the usual settings.
    pub async fn start(bus: Bus) -> Self {
        Self::start_with(bus, &[]).await
    }

    /// Starts one with further or other settings, each a flag and its value.
    pub async fn start_with(bus: Bus, settings: &[(&str, &str)]) -> Self {
        let mut server = Self::not_started(bus, settings);
        server.start_again().await;
        server
    }

    /// One that is not there yet, for tests that put something into its folders or have it begin as another release.
    pub fn not_started(bus: Bus, settings: &[(&str, &str)]) -> Self {
        let prefix = format!("catchment-tests-{}-", std::process::id());
        let slabs = shared_memory();
        let home = tempfile::Builder::new().prefix(&prefix).tempdir().expect("make a folder for data");
        let nats = (bus == Bus::Nats).then(Nats::start);
        let mut arguments: BTreeMap<String, String> =
            DEFAULTS.iter().chain(settings).map(|(flag, value)| (flag.to_string(), value.to_string())).collect();
        arguments.entry("--listen".into()).or_insert_with(|| "127.0.0.1:0".into());
        arguments.entry("--data".into()).or_insert_with(|| home.path().join("data").display().to_string());
        arguments.insert("--slabs".into(), slabs.path().display().to_string());
        if let Some(nats) = &nats {
            arguments.insert("--nats".into(), nats.url());
        }
        let built = functions_dir().map(|dir| vec!["--functions".to_owned(), dir.display().to_string()]);
        let more = built.unwrap_or_default();
        Self {
            child: None,
            address: String::new(),
            nats,
            arguments,
            more,
            filter: None,
            happens_at: None,
            environment: vec![],
            is_skewed: false,
            lives: 0,
            release: Release::default(),
            hold_file: None,
            home,
            slabs,
        }
    }

    /// From its next life on this flag has this value.
    pub fn set(&mut self, flag: &str, value: &str) {
        self.arguments.insert(flag.to_owned(), value.to_owned());
    }

    /// From its next life on it is of this release.
    pub fn change_to(&mut self, release: Release) {
        self.release = release;
    }

    /// In its next life whoever has done this step (`Flipped`), or has done it so often (`Flipped:3`), ends the process.
    pub fn end_at(&mut self, step: &str) {
        self.happens_at = Some(vec![("CATCHMENT_END_AT", step.to_owned())]);
    }

    /// The same, saying more: `filter` as `RUST_LOG` takes it.
    pub async fn start_saying(bus: Bus, filter: &str) -> Self {
        let mut server = Self::start(bus).await;
        server.kill9();
        server.filter = Some(filter.to_owned());
        server.start_again().await;
        server
    }

    /// One whose first life ends right after a step of this name was done.
    pub async fn start_to_end_at(bus: Bus, settings: &[(&str, &str)], step: &str) -> Self {
        Self::start_for(bus, settings, vec![("CATCHMENT_END_AT", step.to_owned())]).await
    }

    /// One in whose first life whoever has done a step of this name panics.
    pub async fn start_to_panic_at(bus: Bus, step: &str) -> Self {
        Self::start_for(bus, &[], vec![("CATCHMENT_PANIC_AT", step.to_owned())]).await
    }

    /// One in whose first life whoever has done a step of this name, or done it so often (`Frozen:2`), waits until
    /// [`Server::let_go`] is called.
    pub async fn start_to_hold_at(bus: Bus, settings: &[(&str, &str)], step: &str) -> Self {
        let mut server = Self::start_with(bus, settings).await;
        server.kill9();
        let file = server.home.path().join("hold");
        std::fs::write(&file, "").expect("make a file");
        let says = vec![("CATCHMENT_HOLD_AT", step.to_owned()), ("CATCHMENT_HOLD_FILE", file.display().to_string())];
        (server.happens_at, server.hold_file) = (Some(says), Some(file));
        server.start_again().await;
        server
    }

    /// From its next life on its clock goes on from this moment, in milliseconds since 1970: for what was written then and
    /// has deadlines.
    pub fn set_clock(&mut self, at_ms: u64) {
        #[allow(clippy::disallowed_methods, reason = "the program's clock is set by its distance from the machine's")]
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
        let file = self.home.path().join("clock");
        std::fs::write(&file, (i128::from(at_ms) - now as i128).to_string()).expect("set a clock");
        self.skew_clock(&file);
    }

    /// From its next life on its clock is ahead of the machine's by as many milliseconds as this file says.
    pub fn skew_clock(&mut self, file: &Path) {
        self.environment.push((CLOCK_SKEW_FILE, file.display().to_string()));
        self.is_skewed = true;
    }

    /// One that people get, with these variables in its environment.
    pub async fn start_in(bus: Bus, environment: &[(&'static str, &str)]) -> Self {
        let mut server = Self::start(bus).await;
        server.kill9();
        server.environment = environment.iter().map(|(name, says)| (*name, (*says).to_owned())).collect();
        server.start_again().await;
        server
    }

    fn hold_file(&self) -> &Path {
        self.hold_file.as_deref().expect("this server was started to hold")
    }

    /// Waits until somebody waits at the step.
    pub async fn holds(&self) {
        let held = self.hold_file().with_added_extension("held");
        until("somebody waits at the step", async || held.exists().then_some(())).await;
    }

    /// Lets whoever waits at the step go on.
    pub fn let_go(&self) {
        std::fs::remove_file(self.hold_file()).expect("remove a file");
    }

    async fn start_for(bus: Bus, settings: &[(&str, &str)], says: Vec<(&'static str, String)>) -> Self {
        let mut server = Self::start_with(bus, settings).await;
        server.kill9();
        server.happens_at = Some(says);
        server.start_again().await;
        server
    }

    /// How often it was started.
    pub fn lives(&self) -> u32 {
        self.lives
    }

    /// Whether it has ended by itself; it can be started again then.
    pub fn has_ended(&mut self) -> bool {
        let ended = self.child.as_mut().is_some_and(|child| child.try_wait().expect("wait for catchment").is_some());
        if ended {
            self.child = None;
        }
        ended
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) {
        let server = std::cell::RefCell::new(self);
        until("the server ends", async || server.borrow_mut().has_ended().then_some(())).await;
    }

    /// Starts it on what an earlier life left, and waits until it is ready.
    pub async fn start_again(&mut self) {
        self.spawn();
        let child = self.child.as_mut().expect("spawned just now");
        let stdout = child.stdout.take().expect("piped");
        let (sender, ready) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).ok();
            sender.send(line).ok();
        });
        let line =
            tokio::time::timeout(PATIENCE, ready).await.expect("catchment says that it is up").unwrap_or_default();
        let Some(address) = line.trim().strip_prefix("catchment is up: http://") else {
            panic!("catchment does not start; it says `{}`", line.trim());
        };
        self.address = address.to_owned();
    }

    /// Starts the process and does not wait for it: for tests that kill it before it is ready.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "one life at a time");
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).expect("open the log");
        // Most tests run what people get. An old release has the hooks in that.
        let happens_at = self.happens_at.take();
        let has_hooks = happens_at.is_some() || self.is_skewed;
        let mut command = match (has_hooks, self.release) {
            (true, Release::Present) => uninfluenced(Command::new(failpoints())),
            _ => catchment_command_of(self.release),
        };
        let known = self.arguments.iter().filter(|(flag, _)| self.release.takes("up", flag));
        command.arg("up").args(known.flat_map(|(flag, value)| [flag, value])).args(&self.more);
        command.envs(self.filter.iter().map(|filter| ("RUST_LOG", filter)));
        command.envs(self.environment.iter().cloned()).envs(happens_at.into_iter().flatten());
        self.lives += 1;
        self.child = Some(command.stdout(Stdio::piped()).stderr(log).spawn().expect("run catchment"));
    }

    /// Starts it on what an earlier life left; it must end by itself and say this.
    pub async fn fails_to_start(&mut self, says: &str) {
        let before = self.log().len();
        self.spawn();
        let child = std::cell::RefCell::new(self.child.take().expect("spawned just now"));
        let ended = async || child.borrow_mut().try_wait().expect("wait for catchment");
        let status = until("the server ends", ended).await;
        assert!(!status.success(), "it must not start");
        let said = self.log().split_off(before);
        assert!(said.contains(says), "it says {said}");
    }

    /// Ends it as `kill -9` does.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().expect("wait for catchment");
        }
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub async fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::TERM).expect("send SIGTERM");
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = child.try_wait().expect("wait for catchment") {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.child = Some(child);
        panic!("catchment does not stop on SIGTERM");
    }

    /// Whether the process is alive.
    pub fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("wait for catchment").is_none())
    }

    /// `host:port` of its HTTP interface.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A client of its HTTP interface.
    pub fn api(&self) -> Api {
        Api::new(&self.address)
    }

    /// The bus's own server.
    pub fn nats(&mut self) -> &mut Nats {
        self.nats.as_mut().expect("this test runs on NATS")
    }

    /// Uses another server from its next life on.
    pub fn use_nats(&mut self, nats: Nats) {
        self.set("--nats", &nats.url());
        self.nats = Some(nats);
    }

    /// Its process.
    pub fn pid(&self) -> u64 {
        self.child.as_ref().expect("it runs").id().into()
    }

    /// What the process holds.
    pub fn observe(&self) -> Observed {
        Observed::of(self.child.as_ref().expect("it runs").id())
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        Path::new(&self.arguments["--data"])
    }

    /// The folder of its slabs.
    pub fn slabs(&self) -> &Path {
        self.slabs.path()
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("catchment.log")
    }

    /// Everything it has said so far, in every life.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Waits until no shared memory is in use: nothing received, nothing kept, no accumulator.
    pub async fn holds_no_slabs(&self) {
        let api = self.api();
        until("no shared memory is in use", async || (api.metrics().await.slab_bytes_in_use() == 0).then_some(()))
            .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let died = self.child.is_some() && !self.is_alive();
        self.kill9();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LOG_LINES)..];
            let end = if died { " (it had died)" } else { "" };
            eprintln!("--- catchment's log{end}, last {} lines ---\n{}\n---", shown.len(), shown.join("\n"));
        }
    }
}
