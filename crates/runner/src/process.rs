//! One runner process, as its node sees it.

use crate::lock;
use crate::message::{Setup, ToNode, ToRunner, VERSION};
use crate::wire::{self, SAID_BYTES_MAX};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::io::{Error, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// How long a runner may leave its messages unread.
const WRITE_TIME: Duration = Duration::from_secs(2);
/// How long a process may take to be ready.
const START_TIME: Duration = Duration::from_secs(20);

/// What of the environment says how to log.
const LOGGING: [&str; 3] = ["RUST_LOG", "RUST_BACKTRACE", "CATCHMENT_LOG_JSON"];

/// A running process. Dropping it kills it and waits for its end.
pub struct Process {
    child: Child,
    /// What it can do no more, in words.
    pub confined: String,
}

impl Process {
    /// Starts a process and sets it up; `link` is its end of the link, `lock` the slab store's. Of the environment it gets what logging needs, and what `with` names.
    pub fn start(
        program: &Path,
        arguments: &[OsString],
        setup: Setup,
        link: OwnedFd,
        lock: BorrowedFd<'_>,
        with: &[&'static str],
    ) -> Result<(Self, Control)> {
        let (here, there) = UnixStream::pair()?;
        let mut command = Command::new(program);
        // Its own group: Ctrl-C is for the node, which ends its runners when it is done with them.
        command.args(arguments).stdin(OwnedFd::from(there)).stdout(Stdio::null()).process_group(0);
        // The node's environment may hold secrets.
        command.env_clear().envs(LOGGING.iter().chain(with).filter_map(|name| Some((name, std::env::var_os(name)?))));
        let child = command.spawn()?;
        drop(command);
        let mut process = Self { child, confined: String::new() };
        let told = wire::send(&here, &ToRunner::Start { version: VERSION, setup }, &[link.as_fd(), lock]);
        if let Err(error) = told {
            // It may have ended before it heard anything; then its end says more.
            tracing::debug!(%error, "set a runner up");
        }
        drop(link);
        here.set_read_timeout(Some(START_TIME))?;
        here.set_write_timeout(Some(WRITE_TIME))?;
        match wire::receive_alone(&here, SAID_BYTES_MAX)? {
            Some(ToNode::Ready { confined }) => process.confined = confined,
            Some(ToNode::Failed { reason }) => return Err(Error::other(reason)),
            Some(_) => return Err(Error::other("it did not begin with `ready`")),
            None => return Err(Error::other(format!("it ended at once: {}", process.child.wait()?))),
        }
        here.set_read_timeout(None)?;
        let control = Control { writing: Mutex::new(here.try_clone()?), reading: here, pid: process.pid() };
        Ok((process, control))
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end, which is made certain. Says how it ended.
    pub fn end(mut self) -> String {
        self.child.kill().ok();
        match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The node's end of a runner's control socket.
pub struct Control {
    reading: UnixStream,
    writing: Mutex<UnixStream>,
    pid: u32,
}

impl Control {
    /// Says something. A runner that does not listen is let go: what it has of a message it could not make sense of.
    pub fn send(&self, message: &ToRunner) -> Result<()> {
        self.send_bytes(&wire::encode(message)?, &[])
    }

    /// The same with an encoded message, and files.
    pub fn send_bytes(&self, message: &[u8], files: &[BorrowedFd<'_>]) -> Result<()> {
        wire::send_bytes(&lock(&self.writing), message, files).inspect_err(|_| self.close())
    }

    /// The next message; `None` when the runner is gone.
    pub fn receive(&self) -> Result<Option<ToNode>> {
        wire::receive_alone(&self.reading, SAID_BYTES_MAX)
    }

    /// Ends the connection, upon which the runner ends.
    pub fn close(&self) {
        self.reading.shutdown(std::net::Shutdown::Both).ok();
    }

    /// Ends a runner that does not listen. To be called only before it was waited for.
    pub fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.pid as i32) {
            kill_process(pid, Signal::KILL).ok();
        }
    }
}
