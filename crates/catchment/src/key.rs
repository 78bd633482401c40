//! The key of a cluster: `catchment key`, and the file that it is in.

use crate::output;
use crate::system::SystemEntropy;
use anyhow::{Context as _, Result};
use catchment_bus::ClusterKey;
use catchment_types::Entropy as _;
use clap::Subcommand;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key for a cluster: put the file where every member reads it, and name it to each with --cluster-key.
    #[command(after_help = "\
Examples:
  catchment key new --out cluster.key
  catchment key new | kubectl create secret generic catchment-key --from-file=cluster.key=/dev/stdin")]
    New {
        /// Where to write it, for its owner alone; to standard output when not given.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

impl KeyCommand {
    /// Runs it.
    pub fn run(self) -> Result<()> {
        let Self::New { out } = self;
        let mut bytes = [0; 32];
        bytes.chunks_mut(16).for_each(|half| half.copy_from_slice(&SystemEntropy.bytes16()));
        let text = ClusterKey::from_bytes(bytes).to_text();
        let Some(path) = out else { return output::write(&text) };
        // Never over another key: what a cluster has sealed with that could not be read any more.
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = made.and_then(|mut file| writeln!(file, "{text}").and_then(|()| file.sync_all()));
        written.with_context(|| format!("write {}", path.display()))
    }
}

/// Reads the key in a file.
///
/// # Errors
/// Why it has none.
pub fn read(path: &str) -> Result<ClusterKey, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let key = text.parse().map_err(|error| format!("{path}: {error}"))?;
    let mode = std::fs::metadata(path).map_or(0, |found| found.permissions().mode());
    if mode & 0o007 != 0 {
        eprintln!("warning: everybody on this machine can read the cluster's key in {path}; chmod o= {path}");
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cluster.key");
        let new = || KeyCommand::New { out: Some(path.clone()) }.run();
        new().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let key = read(path.to_str().unwrap()).unwrap();
        assert!(new().is_err(), "it is not overwritten");
        assert_eq!(read(path.to_str().unwrap()), Ok(key));
        std::fs::write(&path, "not a key").unwrap();
        let why = read(path.to_str().unwrap()).unwrap_err();
        assert!(why.contains("cluster.key") && why.contains("64 hexadecimal digits"), "{why}");
        assert!(read("/nowhere").unwrap_err().contains("/nowhere"));
    }
}
