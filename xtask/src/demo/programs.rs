//! Programs that the demo starts, and ends whatever happens.

use crate::workspace::target_dir;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A program that runs beside the demo, its logs in a file.
pub struct Program {
    name: String,
    child: Mutex<Child>,
    lines: Receiver<String>,
    log: PathBuf,
}

/// What a program has used.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Seconds of CPU time, its own and the kernel's for it.
    pub cpu_seconds: f64,
    /// Most resident memory at one time.
    pub peak_bytes: u64,
}

impl Program {
    /// Starts it; standard error goes to `<dir>/<name>.log`.
    pub fn start(name: &str, program: &Path, arguments: impl IntoIterator<Item = String>, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let stdout = child.stdout.take().context("read its output")?;
        let (sender, lines) = channel();
        // Ends with the program: its output is closed then.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                sender.send(line).ok();
            }
        });
        Ok(Self { name: name.to_owned(), child: Mutex::new(child), lines, log })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The address in its first line of output.
    pub fn ready_line(&self, within: Duration) -> Result<String> {
        match self.lines.recv_timeout(within) {
            Ok(line) => Ok(line.split_whitespace().last().unwrap_or_default().to_owned()),
            Err(_) => {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                bail!("{} did not start:\n{}", self.name, log.trim())
            }
        }
    }

    /// Whether it ended with an error.
    pub fn has_failed(&self) -> bool {
        let mut child = self.child.lock().expect("nobody panics with it");
        child.try_wait().is_ok_and(|status| status.is_some_and(|status| !status.success()))
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&self) {
        let mut child = self.child.lock().expect("nobody panics with it");
        child.kill().ok();
        child.wait().ok();
    }

    /// Waits for its end.
    pub fn wait(self, within: Duration) -> Result<()> {
        let begun = Instant::now();
        loop {
            let status = self.child.lock().expect("nobody panics with it").try_wait().context("wait for a program")?;
            match status {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("{} ended with {status}; its log is {}", self.name, self.log.display()),
                None if begun.elapsed() > within => bail!("{} did not end", self.name),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Asks it to stop and waits.
    pub fn stop(self) -> Result<()> {
        let id = self.child.lock().expect("nobody panics with it").id();
        Command::new("kill").arg(id.to_string()).status().context("ask a program to stop")?;
        self.wait(Duration::from_secs(20))
    }

    /// What it has used so far.
    pub fn usage(&self) -> Result<Usage> {
        let id = self.child.lock().expect("nobody panics with it").id();
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).context("read its CPU time")?;
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks: u64 =
            after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).context("read its memory")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
        let peak_kb: u64 = peak.trim().trim_end_matches(" kB").trim().parse().unwrap_or_default();
        // The kernel reports these ticks at 100 a second on every machine.
        Ok(Usage { cpu_seconds: ticks as f64 / 100.0, peak_bytes: peak_kb * 1024 })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program of this workspace.
pub fn release_binary(name: &str) -> Result<PathBuf> {
    let path = target_dir().join("release").join(name);
    if path.exists() { Ok(path) } else { bail!("{} is not built; run `make build`", path.display()) }
}

/// Runs a program to its end and reads the JSON it prints.
pub fn json_of(program: &Path, arguments: &[&str]) -> Result<Value> {
    let output = Command::new(program)
        .args(["--output", "json"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    if !output.status.success() {
        bail!("{} {arguments:?} failed: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("read what {} printed", program.display()))
}

/// A port that nobody listens on.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("find a free port")?.local_addr()?.port())
}

/// Waits until somebody listens on a port.
pub fn wait_for_port(port: u16, within: Duration) -> Result<()> {
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if begun.elapsed() > within {
            bail!("nobody listens on port {port}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
