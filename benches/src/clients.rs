//! Client processes: each has its update in memory, waits for a line, sends or fetches, and says when it is done.

use crate::http::Connection;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What a client process does.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The server, `host:port`.
    #[arg(long)]
    address: String,
    /// The update it sends; without one it fetches.
    #[arg(long)]
    file: Option<PathBuf>,
}

/// A client process: for each line on standard input, one call to the path it names.
pub fn child(arguments: &Arguments) -> Result<()> {
    let update = arguments.file.as_deref().map(read).transpose()?;
    let mut connection = Connection::open(&arguments.address)?;
    for line in std::io::stdin().lines() {
        let path = line?;
        match &update {
            Some(update) => loop {
                let (status, answer) = connection.call("PUT", &path, update)?;
                match status {
                    200 | 202 => break,
                    // No room: as its answer says.
                    429 => std::thread::sleep(std::time::Duration::from_millis(200)),
                    _ => bail!("PUT {path}: {status} {}", String::from_utf8_lossy(&answer)),
                }
            },
            None => drop(connection.fetch(&path)?),
        }
        println!("done");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// Client processes that wait for their turn.
pub struct Clients {
    processes: Vec<(Child, ChildStdin, BufReader<ChildStdout>)>,
}

impl Clients {
    /// Starts `count` of them.
    pub fn start(count: usize, address: &str, file: Option<&Path>) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut processes = Vec::new();
        for _ in 0..count {
            let mut command = Command::new(&program);
            command.args(["client", "--address", address]).stdin(Stdio::piped()).stdout(Stdio::piped());
            if let Some(file) = file {
                command.arg("--file").arg(file);
            }
            let mut child = command.spawn().context("start a client")?;
            let (input, output) = (child.stdin.take().context("piped")?, child.stdout.take().context("piped")?);
            processes.push((child, input, BufReader::new(output)));
        }
        Ok(Self { processes })
    }

    /// Has each make one call, all at once; returns when the last has its answer.
    pub fn call(&mut self, path: impl Fn(usize) -> String) -> Result<()> {
        for (i, (_, input, _)) in self.processes.iter_mut().enumerate() {
            writeln!(input, "{}", path(i))?;
        }
        let mut line = String::new();
        for (_, _, output) in &mut self.processes {
            line.clear();
            if output.read_line(&mut line)? == 0 {
                bail!("a client gave up");
            }
        }
        Ok(())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for (child, _, _) in &mut self.processes {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// A file's length.
pub fn length(path: &Path) -> Result<u64> {
    Ok(File::open(path)?.metadata()?.len())
}
