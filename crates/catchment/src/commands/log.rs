//! `catchment log …`: what an operator does with an event log, while no process works on it.

mod export;
mod fold;
mod inspect;
mod plan;
mod restore;
mod source;
#[cfg(test)]
mod tests;
mod verify;

use crate::connection::Connection;
use crate::output::Output;
use anyhow::Result;
use clap::Subcommand;
use source::{Which, WhichOrFile};

/// A log, and what of it.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Show where a log begins and ends, what it holds, and the jobs that it comes to.
    #[command(after_help = "\
Examples:
  catchment log inspect --data ./catchment-data
  catchment log inspect --nats nats://127.0.0.1:4222 --records 1040..
  catchment log inspect --file log.catchlog --output json | jq .kinds")]
    Inspect(inspect::Inspect),
    /// Replay a log from its beginning or its oldest snapshot, and name the first record that is wrong.
    ///
    /// Every record is read and applied as a process does it, snapshots are compared with the records they stand for, and
    /// the state's sums are recounted. Exit status 1 when anything is wrong; what to do is said then.
    #[command(after_help = "\
Examples:
  catchment log verify --data ./catchment-data
  catchment log verify --file log.catchlog")]
    Verify(verify::Verify),
    /// Write a log, records and snapshots, to one file with checksums. Of a damaged log, everything that can be read.
    #[command(after_help = "\
Examples:
  catchment log export --data ./catchment-data --out log.catchlog
  catchment log export --nats nats://127.0.0.1:4222 --out log.catchlog")]
    Export(export::Export),
    /// Make a log of an exported file, up to a record, or without one.
    ///
    /// The log must be empty; with --replace, what is there is exported to a file beside FILE first. Nothing is written
    /// before the records that stay have been replayed: a log that no process would open is refused. What was accepted
    /// in records that do not stay is not known any more, and neither are models that were committed in them.
    #[command(after_help = "\
Examples:
  catchment log restore --data ./new-data --from log.catchlog
  catchment log restore --data ./catchment-data --from log.catchlog --until 1041 --replace
  catchment log restore --nats nats://127.0.0.1:4222 --from log.catchlog --skip 1042 --replace")]
    Restore(restore::Restore),
    /// Export and restore a snapshot by itself: what all records up to one come to.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
}

/// What of a snapshot.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Write a log's newest sound snapshot to a file.
    #[command(after_help = "\
Examples:
  catchment log snapshot export --data ./catchment-data --out snapshot.catchlog")]
    Export(export::SnapshotExport),
    /// Make a log that begins with a snapshot. Records after it are not restored: what happened in them is forgotten.
    #[command(after_help = "\
Examples:
  catchment log snapshot restore --data ./catchment-data --from snapshot.catchlog --replace")]
    Restore(restore::SnapshotRestore),
}

impl LogCommand {
    /// Runs it.
    pub async fn run(self, connection: &Connection) -> Result<()> {
        let output = Output::new(connection.output);
        match self {
            Self::Inspect(inspect) => inspect.run(output).await,
            Self::Verify(verify) => verify.run(output).await,
            Self::Export(export) => export.run(output).await,
            Self::Restore(restore) => restore.run(output).await,
            Self::Snapshot(SnapshotCommand::Export(export)) => export.run(output).await,
            Self::Snapshot(SnapshotCommand::Restore(restore)) => restore.run(output).await,
        }
    }
}
