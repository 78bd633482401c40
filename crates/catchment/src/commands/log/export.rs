//! `catchment log export` and `catchment log snapshot export`.

use super::Which;
use super::fold::snapshot;
use super::source::Source;
use crate::cluster::NatsArgs;
use crate::output::Output;
use crate::progress::Unfinished;
use anyhow::{Context as _, Result, bail};
use catchment_archive::{Counts, Head, Writer};
use catchment_bus::offline::Bounds;
use indicatif::BinaryBytes;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::BufWriter;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Export {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    nats: NatsArgs,
    /// The file to write. It must not be there yet.
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct SnapshotExport {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    nats: NatsArgs,
    /// The file to write. It must not be there yet.
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// The snapshot of this record, instead of the newest one that is sound.
    #[arg(long, value_name = "SEQUENCE")]
    sequence: Option<u64>,
}

/// What was written.
#[derive(Debug, Serialize)]
pub struct Exported {
    pub file: PathBuf,
    pub bytes: u64,
    pub first: u64,
    pub last: u64,
    pub records: u64,
    /// Records that could not be read.
    pub missing: u64,
    pub snapshots: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsound: Option<String>,
}

impl Export {
    /// Runs it.
    pub async fn run(self, output: Output) -> Result<()> {
        let source = self.which.place(&self.nats).open().await?;
        let exported = export(&source, &self.out).await?;
        output.item(&exported, || exported.line())
    }
}

impl SnapshotExport {
    /// Runs it.
    pub async fn run(self, output: Output) -> Result<()> {
        let source = self.which.place(&self.nats).open().await?;
        let wanted = |sequence: &u64| self.sequence.is_none_or(|wanted| wanted == *sequence);
        let candidates: Vec<u64> = source.snapshots.iter().rev().copied().filter(wanted).collect();
        let mut found = None;
        for sequence in candidates {
            match snapshot(&source, sequence).await.0.error {
                None => {
                    found = Some(sequence);
                    break;
                }
                Some(why) => eprintln!("the snapshot of record {sequence} is of no use: {why}"),
            }
        }
        let Some(sequence) = found else { bail!("there is no sound snapshot of the log of {}", source.shown) };
        let bounds = Bounds { first: sequence + 1, last: sequence };
        let exported = write(&source, &self.out, bounds, &[sequence]).await?;
        output.item(&exported, || exported.line())
    }
}

impl Exported {
    fn line(&self) -> String {
        let Self { file, bytes, first, last, records, missing, snapshots, unsound } = self;
        let size = BinaryBytes(*bytes);
        let mut text =
            format!("{}: {size}, records {first} to {last} ({records}), {snapshots} snapshots", file.display());
        if *missing > 0 {
            text.push_str(&format!("\n{missing} of them could not be read: `catchment log verify --file` names them"));
        }
        if let Some(why) = unsound {
            text.push_str(&format!("\nnot all of it need be what was written: {why}"));
        }
        text
    }
}

/// Writes everything of a log that can be read.
pub async fn export(source: &Source, out: &Path) -> Result<Exported> {
    write(source, out, source.bounds, &source.snapshots).await
}

async fn write(source: &Source, out: &Path, bounds: Bounds, snapshots: &[u64]) -> Result<Exported> {
    if out.exists() {
        bail!("{} is there already; --out names a file that is not", out.display());
    }
    let mut part = out.as_os_str().to_owned();
    part.push(".part");
    let part = Unfinished(PathBuf::from(part));
    let doing = || format!("write {}", part.0.display());
    // It holds who takes part in what.
    let file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part.0).with_context(doing)?;
    let writer = format!("catchment {} from {}", env!("CARGO_PKG_VERSION"), source.shown);
    let head = Head { first: bounds.first, last: bounds.last, writer };
    let mut archive = Writer::begin(BufWriter::with_capacity(1 << 20, file), &head).with_context(doing)?;
    for sequence in snapshots {
        match source.snapshot(*sequence).await {
            Ok(bytes) => archive.snapshot(*sequence, &bytes).with_context(doing)?,
            Err(why) => eprintln!("the snapshot of record {sequence} is left out, for it does not read: {why}"),
        }
    }
    if bounds.records() > 0 {
        source
            .walk((bounds.first, bounds.last), "records exported", async |sequence, record| {
                match record {
                    Ok(bytes) => archive.record(sequence, &bytes),
                    Err(why) => archive.missing(sequence, &why),
                }
                .with_context(doing)?;
                Ok(true)
            })
            .await?;
    }
    let first_now = source.first_now().await?;
    if bounds.records() > 0 && first_now > bounds.first {
        bail!("the log has forgotten records up to {first_now} meanwhile; run this again");
    }
    let (buffer, Counts { records, missing, snapshots }) = archive.finish().with_context(doing)?;
    let file = buffer.into_inner().context("write the last bytes")?;
    keep(&file, &part.0, out).with_context(doing)?;
    let bytes = file.metadata().with_context(doing)?.len();
    let unsound = source.unsound().map(str::to_owned);
    let Bounds { first, last } = bounds;
    Ok(Exported { file: out.to_path_buf(), bytes, first, last, records, missing, snapshots, unsound })
}

/// Gives a whole file its name, for good.
fn keep(file: &File, part: &Path, out: &Path) -> std::io::Result<()> {
    file.sync_all()?;
    std::fs::rename(part, out)?;
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
