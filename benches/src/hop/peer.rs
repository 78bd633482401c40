//! The process at the other end of the network: receives updates into memory it reuses, folds them natively, says so.

use super::transport::{Sender, receiver, sender};
use crate::memory::{floats, floats_mut};
use crate::native;
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

/// What such a process does.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Numbers of one update.
    #[arg(long)]
    pub elements: usize,
    /// Updates that are folded at once.
    #[arg(long)]
    pub batch: usize,
    /// They are partials, of F64, and are merged.
    #[arg(long)]
    pub partials: bool,
    /// The NATS server; without one it listens for a connection.
    #[arg(long)]
    pub nats: Option<String>,
}

/// The process: for each batch one line, the microseconds that folding alone took.
pub fn child(arguments: &Arguments) -> Result<()> {
    let Arguments { elements, batch, partials, ref nats } = *arguments;
    let width = if partials { 8 } else { 4 };
    let threads = std::thread::available_parallelism()?.get();
    let mut updates = vec![vec![0u64; (elements * width).div_ceil(8)]; batch];
    let (mut from, mut to) = (vec![0f64; elements], vec![0f64; elements]);
    let mut receiver = receiver(nats.as_deref())?;
    loop {
        for update in &mut updates {
            let bytes = &mut zerocopy::IntoBytes::as_mut_bytes(&mut update[..])[..elements * width];
            if receiver.receive(bytes).is_err() {
                return Ok(());
            }
        }
        let begun = Instant::now();
        let bytes = updates.iter().map(|update| &zerocopy::IntoBytes::as_bytes(&update[..])[..elements * width]);
        let to_bytes = zerocopy::IntoBytes::as_mut_bytes(&mut to[..]);
        if partials {
            let terms = bytes.map(|bytes| Ok((floats::<f64>(bytes)?, 1.0))).collect::<Result<Vec<_>>>()?;
            native::fold_shared(threads, &from, floats_mut(to_bytes)?, &terms);
        } else {
            let terms = bytes.map(|bytes| Ok((floats::<f32>(bytes)?, 0.5))).collect::<Result<Vec<_>>>()?;
            native::fold_shared(threads, &from, floats_mut(to_bytes)?, &terms);
        }
        std::mem::swap(&mut from, &mut to);
        println!("{}", begun.elapsed().as_micros());
        std::io::stdout().flush()?;
    }
}

/// Such a process, and the way to it.
pub struct Peer {
    child: Child,
    said: BufReader<ChildStdout>,
    sender: Sender,
}

impl Peer {
    /// Starts one.
    pub fn start(arguments: &Arguments) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("peer").args(["--elements", &arguments.elements.to_string()]);
        command.args(["--batch", &arguments.batch.to_string()]).stdout(Stdio::piped());
        if arguments.partials {
            command.arg("--partials");
        }
        if let Some(nats) = &arguments.nats {
            command.args(["--nats", nats]);
        }
        let mut child = command.spawn().context("start a peer")?;
        let mut said = BufReader::new(child.stdout.take().context("piped")?);
        let mut address = String::new();
        said.read_line(&mut address)?;
        let sender = sender(address.trim(), arguments.nats.is_some())?;
        Ok(Self { child, said, sender })
    }

    /// Sends a batch and waits until it is folded. Seconds of folding alone.
    pub fn fold(&mut self, updates: &[&[u8]]) -> Result<f64> {
        for update in updates {
            self.sender.send(update)?;
        }
        let mut line = String::new();
        ensure!(self.said.read_line(&mut line)? > 0, "the peer has ended");
        Ok(line.trim().parse::<f64>()? / 1e6)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
