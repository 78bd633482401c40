//! A real NATS server of a test's own: a free port, a JetStream store that is removed with it, killed on drop.

use crate::Host;
use crate::ports::free_port;
use crate::programs::nats_server;
use rustix::process::{Pid, Signal, kill_process};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// On a host of its own no other server is in the way.
const USUAL_PORT: u16 = 4222;

/// A NATS server with JetStream.
pub struct Nats {
    child: Child,
    address: SocketAddrV4,
    dir: tempfile::TempDir,
    host: Option<Host>,
}

impl Nats {
    /// Starts one.
    pub fn start() -> Self {
        let dir = folder();
        // Between finding a port free and taking it another process may come: then another one.
        for _ in 0..5 {
            let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_port());
            if let Some(child) = spawn(address, dir.path(), None) {
                return Self { child, address, dir, host: None };
            }
        }
        panic!("nats-server does not start:\n{}", log(dir.path()));
    }

    /// Starts one on a host.
    pub fn start_on(host: Host) -> Self {
        let (dir, address) = (folder(), SocketAddrV4::new(host.address(), USUAL_PORT));
        let child = spawn(address, dir.path(), Some(&host));
        let child = child.unwrap_or_else(|| panic!("nats-server does not start:\n{}", log(dir.path())));
        Self { child, address, dir, host: Some(host) }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its link, where it has a host of its own.
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// Stops its time (SIGSTOP): connections stay, and nothing is answered.
    pub fn freeze(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).expect("send a signal");
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).expect("send a signal");
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
            if let Some(child) = spawn(self.address, self.dir.path(), self.host.as_ref()) {
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

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("catchment-tests-nats-").tempdir().expect("make a folder for NATS")
}

fn log(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("server.log")).unwrap_or_default()
}

/// Starts a server and waits for its greeting. `None` when it ends before that.
fn spawn(address: SocketAddrV4, dir: &Path, host: Option<&Host>) -> Option<Child> {
    let log = std::fs::File::create(dir.join("server.log")).expect("make a log for NATS");
    let mut command = host.map_or_else(|| Command::new(nats_server()), |host| host.command(&nats_server()));
    let mut child = command
        .args(["-a", &address.ip().to_string(), "-p", &address.port().to_string(), "-js", "-sd"])
        .arg(dir.join("jetstream"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("run nats-server");
    let begun = Instant::now();
    while begun.elapsed() < crate::PATIENCE && child.try_wait().expect("wait for nats-server").is_none() {
        if greets(address) {
            return Some(child);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().ok();
    child.wait().ok();
    None
}

fn greets(address: SocketAddrV4) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok();
    let mut greeting = [0; 4];
    stream.read_exact(&mut greeting).is_ok() && &greeting == b"INFO"
}
