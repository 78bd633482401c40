//! A real nats-server for a test: a free port, a JetStream store of its own, killed on drop.

use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

#[path = "../../../../tests/src/ports.rs"]
mod ports;

pub use ports::free_port;
use rustix::process::{Pid, Signal, kill_process};

pub struct NatsServer {
    child: Child,
    port: u16,
    arguments: Vec<String>,
    dir: tempfile::TempDir,
}

/// `$NATS_SERVER`, else the first `nats-server` of `$PATH` and the system's folders.
pub fn find() -> PathBuf {
    if let Some(path) = std::env::var_os("NATS_SERVER") {
        return path.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin"].map(PathBuf::from);
    let mut candidates = std::env::split_paths(&path).chain(system).map(|dir| dir.join("nats-server"));
    candidates
        .find(|path| path.is_file())
        .expect("these tests need a real nats-server: apt-get install nats-server, or set NATS_SERVER to its path")
}

impl NatsServer {
    /// A server with JetStream.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("jetstream").display().to_string();
        Self::start_in(dir, vec!["-js".to_owned(), "-sd".to_owned(), store])
    }

    /// A server with these arguments beside its address; no JetStream unless they say so.
    pub fn start_with(arguments: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), arguments.iter().map(ToString::to_string).collect())
    }

    /// A server with this configuration, in which `$DIR` stands for its folder.
    pub fn start_configured(dir: tempfile::TempDir, configuration: &str) -> Self {
        let file = dir.path().join("nats.conf");
        std::fs::write(&file, configuration.replace("$DIR", &dir.path().display().to_string())).unwrap();
        Self::start_in(dir, vec!["-c".to_owned(), file.display().to_string()])
    }

    /// The server's folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn start_in(dir: tempfile::TempDir, arguments: Vec<String>) -> Self {
        // Another process may take the port before the server does: then another one.
        for _ in 0..5 {
            let port = free_port();
            if let Some(child) = spawn(port, &arguments, dir.path()) {
                return Self { child, port, arguments, dir };
            }
        }
        let log = std::fs::read_to_string(dir.path().join("server.log")).unwrap_or_default();
        panic!("nats-server does not start:\n{log}");
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The same address and the same store, after [`NatsServer::kill`].
    pub fn start_again(&mut self) {
        self.child = spawn(self.port, &self.arguments, self.dir.path()).expect("nats-server starts again");
    }

    /// Stops answering without closing connections.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
        // A signal takes effect in each thread by and by.
        for _ in 0..200 {
            if self.threads_have_stopped() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("nats-server does not stop");
    }

    fn threads_have_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        threads.flatten().all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // "pid (name) state …", and the name may hold anything.
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        })
    }

    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts the server and waits until it greets. None when it ends before that.
fn spawn(port: u16, arguments: &[String], dir: &Path) -> Option<Child> {
    let log = std::fs::File::create(dir.join("server.log")).unwrap();
    let mut child = Command::new(find())
        .args(["-a", "127.0.0.1", "-p", &port.to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("run nats-server");
    for _ in 0..400 {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        if greets(port) {
            return Some(child);
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

fn greets(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let mut greeting = [0; 4];
    stream.read_exact(&mut greeting).is_ok() && &greeting == b"INFO"
}
