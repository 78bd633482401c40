//! A real NATS server of a test's own: a free port, a JetStream store that is removed with it, killed on drop.

use crate::programs::{free_port, nats_server};
use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A NATS server with JetStream.
pub struct Nats {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Nats {
    /// Starts one.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("catchment-tests-nats-").tempdir().expect("make a folder for NATS");
        // Between finding a port free and taking it another process may come: then another one.
        for _ in 0..5 {
            let port = free_port();
            if let Some(child) = spawn(port, dir.path()) {
                return Self { child, port, dir };
            }
        }
        panic!("nats-server does not start:\n{}", log(dir.path()));
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Ends it as `kill -9` does. Its store stays.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Starts it again with the same port and store.
    pub fn start_again(&mut self) {
        self.kill();
        let begun = Instant::now();
        while begun.elapsed() < crate::PATIENCE {
            if let Some(child) = spawn(self.port, self.dir.path()) {
                self.child = child;
                return;
            }
        }
        panic!("nats-server does not start again:\n{}", log(self.dir.path()));
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}

fn log(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("server.log")).unwrap_or_default()
}

/// Starts a server and waits for its greeting. `None` when it ends before that.
fn spawn(port: u16, dir: &Path) -> Option<Child> {
    let log = std::fs::File::create(dir.join("server.log")).expect("make a log for NATS");
    let mut child = Command::new(nats_server())
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"])
        .arg(dir.join("jetstream"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("run nats-server");
    let begun = Instant::now();
    while begun.elapsed() < crate::PATIENCE && child.try_wait().expect("wait for nats-server").is_none() {
        if greets(port) {
            return Some(child);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().ok();
    child.wait().ok();
    None
}

fn greets(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok();
    let mut greeting = [0; 4];
    stream.read_exact(&mut greeting).is_ok() && &greeting == b"INFO"
}
