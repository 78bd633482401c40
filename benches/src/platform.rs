//! `catchment up` as a process, on a data directory and shared memory of its own.

use crate::http::Connection;
use anyhow::{Context, Result, bail};
use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use tempfile::TempDir;

/// A running platform.
pub struct Platform {
    child: Child,
    /// `host:port`.
    pub address: String,
    slabs: TempDir,
    _data: TempDir,
}

impl Platform {
    /// Starts one with `slab_mib` of shared memory. The binary is the one beside this program.
    pub fn start(slab_mib: u64) -> Result<Self> {
        Self::start_with(slab_mib, &[], "warn", Stdio::inherit())
    }

    /// The same with more arguments, and a log of its own kind that goes to `log`.
    pub fn start_with(slab_mib: u64, arguments: &[&str], level: &str, log: Stdio) -> Result<Self> {
        let mut memory = tempfile::Builder::new();
        // A store takes no folder that others can look into.
        memory.prefix("catchment-bench-").permissions(Permissions::from_mode(0o700));
        let (data, slabs) = (TempDir::new()?, memory.tempdir_in("/dev/shm")?);
        let mut command = Command::new(binary()?);
        command.args(["up", "--listen", "127.0.0.1:0", "--room-wait", "60s", "--slab-mib", &slab_mib.to_string()]);
        command.arg("--data").arg(data.path().join("data")).arg("--slabs").arg(slabs.path());
        command.args(arguments).env("RUST_LOG", level).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().context("start catchment")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        let Some(address) = line.trim().strip_prefix("catchment is up: http://") else {
            bail!("catchment does not start: {line}");
        };
        Ok(Self { child, address: address.to_owned(), slabs, _data: data })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Bytes of shared memory it has.
    pub fn slab_bytes(&self) -> Result<u64> {
        crate::observe::directory_bytes(self.slabs.path())
    }

    /// What it logs, where it was started with a pipe for it.
    pub fn log(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// A connection to it.
    pub fn connect(&self) -> Result<Connection> {
        Connection::open(&self.address)
    }
}

/// The program under test: the one beside this.
pub fn binary() -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name("catchment");
    if !program.is_file() {
        bail!("{} is missing: run `make build`", program.display());
    }
    Ok(program)
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
