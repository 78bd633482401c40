//! Who a node is: its name, the event log that its data belongs to, and which process works as it.
//!
//! The name lies in the data directory, so a copy of that (a cloned disk, a backup that was put back beside the original,
//! a volume mounted twice) is a second process with the same name. Two of them would each declare lost what the other has.
//! So the log says which process works as a node: the last that started. What others write as that node does not count,
//! and they end as soon as they read it.

use crate::context::Context;
use crate::node::NodeError;
use catchment_ledger::{Ledger, LedgerError};
use catchment_types::{Entropy, LogId, NodeId, Record, TimeMs};
use std::io::{Error, ErrorKind, Result, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long to wait before saying again what could not be written down.
const RETRY: Duration = Duration::from_millis(500);

/// What the data directory says of the node, and what this process has said in the log.
#[derive(Debug)]
pub struct Identity {
    node: NodeId,
    data_dir: PathBuf,
    /// The log that the data is of, where the directory remembers one.
    log: Option<LogId>,
    /// Whether the log says that this process works as the node.
    is_announced: AtomicBool,
}

impl Identity {
    /// Reads what the data directory remembers.
    pub fn open(node: NodeId, data_dir: &Path) -> Result<Self> {
        let log = read(&data_dir.join("log-id"), "32 hexadecimal digits")?;
        Ok(Self { node, data_dir: data_dir.to_path_buf(), log, is_announced: AtomicBool::new(false) })
    }

    /// Refuses another log than the one that the data is of. An empty log is another one, too: on it every model would
    /// seem to belong to nobody.
    pub fn check_log(&self, ledger: &Ledger) -> std::result::Result<(), NodeError> {
        let Some(remembered) = self.log else { return Ok(()) };
        let found = match ledger.read(|state| (state.log(), state.sequence())) {
            (Some(found), _) if found == remembered => return Ok(()),
            (Some(found), _) => found.to_string(),
            (None, 0) => "an empty one".to_owned(),
            (None, _) => "one without an identity, older than the data".to_owned(),
        };
        Err(NodeError::OtherLog { path: self.data_dir.display().to_string(), remembered, found })
    }

    /// Writes down which log the data is of, as soon as the log has an identity.
    pub fn remember_log(&self, ledger: &Ledger) -> Result<()> {
        match ledger.read(|state| state.log()) {
            Some(log) if self.log.is_none() => write(&self.data_dir, "log-id", &log.to_string()),
            _ => Ok(()),
        }
    }

    /// Says in the log that this process works as the node, where the log's level has words for it.
    pub async fn take_over(&self, ledger: &Ledger, at_ms: TimeMs) -> std::result::Result<(), LedgerError> {
        if ledger.read(|state| state.level()) < 2 {
            return Ok(());
        }
        ledger.propose(Record::NodeStarted { node: self.node, at_ms }).await?;
        self.is_announced.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether the log says that another process works as the node.
    pub fn is_replaced(&self, ledger: &Ledger) -> bool {
        let process = || ledger.read(|state| state.process(self.node));
        self.is_announced.load(Ordering::Acquire) && process().is_some_and(|process| process != ledger.writer())
    }
}

/// Watches over the node's identity until it ends: says who works as it once the log's level has words for that, and ends
/// the node when another process has taken its name.
pub async fn keep(context: Arc<Context>) -> std::result::Result<(), NodeError> {
    let Context { identity, ledger, clock, ending, .. } = &*context;
    let mut changes = ledger.watch();
    let mut is_remembered = false;
    loop {
        changes.mark_unchanged();
        let path = || identity.data_dir.display().to_string();
        if identity.is_replaced(ledger) {
            return Err(NodeError::Replaced { node: identity.node, path: path() });
        }
        if !is_remembered && ledger.read(|state| state.log().is_some()) {
            identity.remember_log(ledger).map_err(|error| NodeError::Data { path: path(), error })?;
            is_remembered = true;
        }
        let mut retry = None;
        if !identity.is_announced.load(Ordering::Acquire)
            && let Err(error) = identity.take_over(ledger, clock.now_ms()).await
        {
            tracing::warn!(%error, "say which process works as this node");
            retry = Some(RETRY);
        }
        let again = async {
            match retry {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            () = again => {}
            () = ending.stop.cancelled() => return Ok(()),
        }
    }
}

/// The node's name, kept in its data directory. A name that was lost is not drawn again: what the log says this node
/// holds would then be nobody's.
pub fn node_id(data_dir: &Path, entropy: &dyn Entropy) -> Result<NodeId> {
    std::fs::create_dir_all(data_dir)?;
    if let Some(node) = read(&data_dir.join("node-id"), "16 hexadecimal digits")? {
        return Ok(node);
    }
    let node = NodeId(u64::from_le_bytes(*entropy.bytes16().first_chunk().expect("sixteen bytes have eight")));
    write(data_dir, "node-id", &node.to_string())?;
    Ok(node)
}

/// What a file of one line says; `None` where there is none.
fn read<T: std::str::FromStr>(path: &Path, expected: &str) -> Result<Option<T>> {
    match std::fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| {
            let message = format!("{} does not hold {expected}; put it back from a backup", path.display());
            Error::new(ErrorKind::InvalidData, message)
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a file of one line, whole or not at all, and durably.
fn write(dir: &Path, name: &str, line: &str) -> Result<()> {
    let draft = dir.join(format!("{name}.draft"));
    let mut file = std::fs::File::create(&draft)?;
    file.write_all(format!("{line}\n").as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&draft, dir.join(name))?;
    std::fs::File::open(dir)?.sync_all()
}
