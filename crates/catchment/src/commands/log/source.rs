//! Where records come from: a log, or a file that one was exported to.

use crate::cluster::{NatsArgs, without_secrets};
use crate::progress;
use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use catchment_archive::{Entry, Reader};
use catchment_bus::NatsConfig;
use catchment_bus::offline::{Bounds, Place, StoredLog};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// Records read at one time.
const BATCH: usize = 128;

/// A log that an operator names. Nothing of the environment chooses it: what is replaced is what was written down.
#[derive(Debug, clap::Args)]
#[group(id = "log", required = true, multiple = false)]
pub struct Which {
    /// The log in this data directory. No process may be using it.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The cluster's log on this NATS server (JetStream).
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
}

/// The same, or a file.
#[derive(Debug, clap::Args)]
#[group(id = "log_or_file", required = true, multiple = false)]
pub struct WhichOrFile {
    /// The log in this data directory. No process may be using it.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The cluster's log on this NATS server (JetStream).
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// A file that `catchment log export` has written.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Where a log is, with what it takes to reach it.
pub enum Where {
    /// In a data directory.
    Data(PathBuf),
    /// On a server.
    Nats(Box<NatsConfig>),
}

impl Which {
    /// Where that is.
    pub fn place(&self, nats: &NatsArgs) -> Where {
        place(self.data.as_deref(), self.nats.as_deref(), nats).expect("one of them is required")
    }
}

fn place(data: Option<&Path>, url: Option<&str>, nats: &NatsArgs) -> Option<Where> {
    let on_server = || url.map(|url| Where::Nats(Box::new(nats.config(url))));
    data.map(|data| Where::Data(data.to_path_buf())).or_else(on_server)
}

impl WhichOrFile {
    /// Opens it.
    pub async fn open(&self, nats: &NatsArgs) -> Result<Source> {
        match (place(self.data.as_deref(), self.nats.as_deref(), nats), &self.file) {
            (Some(place), _) => place.open().await,
            (None, Some(file)) => Source::of_file(file),
            (None, None) => unreachable!("one of them is required"),
        }
    }
}

impl Where {
    /// The same for the bus.
    pub fn place(&self) -> Place<'_> {
        match self {
            Self::Data(dir) => Place::Data(dir),
            Self::Nats(config) => Place::Nats(config),
        }
    }

    /// For people.
    pub fn shown(&self) -> String {
        match self {
            Self::Data(dir) => dir.display().to_string(),
            Self::Nats(config) => without_secrets(&config.url),
        }
    }

    /// As the options of another command.
    pub fn as_options(&self) -> String {
        match self {
            Self::Data(dir) => format!("--data {}", dir.display()),
            Self::Nats(config) => format!("--nats {}", without_secrets(&config.url)),
        }
    }

    /// Opens the log, which must be there.
    pub async fn open(&self) -> Result<Source> {
        let found = self.try_open().await?;
        found.ok_or_else(|| match self {
            Self::Data(dir) => {
                anyhow!("there is no log in {}; a cluster's is on its NATS server: --nats URL", dir.display())
            }
            Self::Nats(_) => anyhow!("there is no log on {}", self.shown()),
        })
    }

    /// Opens the log if there is one.
    pub async fn try_open(&self) -> Result<Option<Source>> {
        let opened = self.place().open().await.with_context(|| format!("open the log of {}", self.shown()))?;
        let Some(log) = opened else { return Ok(None) };
        let (bounds, snapshots) = (log.bounds().await.context("look at the log")?, log.snapshots().await);
        // Without its list of snapshots the records are worth all the more.
        let snapshots = snapshots.unwrap_or_else(|error| {
            tracing::warn!(%error, "the log's snapshots cannot be listed");
            vec![]
        });
        let (shown, options) = (self.shown(), self.as_options());
        let bounds = match snapshots.last() {
            // What a snapshot stands for has been there, though no record may be left.
            Some(newest) if bounds.records() == 0 => Bounds { first: newest + 1, last: *newest },
            Some(newest) => Bounds { last: bounds.last.max(*newest), ..bounds },
            None => bounds,
        };
        Ok(Some(Source { shown, options, bounds, snapshots, from: From::Log(log) }))
    }
}

enum From {
    Log(Box<dyn StoredLog>),
    File(PathBuf),
}

/// Records, and snapshots of what they come to.
pub struct Source {
    /// For people.
    pub shown: String,
    /// As the options of a command.
    pub options: String,
    /// The first and the last record.
    pub bounds: Bounds,
    /// Sequences of the snapshots, the oldest first.
    pub snapshots: Vec<u64>,
    from: From,
}

impl Source {
    /// A file.
    pub fn of_file(path: &Path) -> Result<Self> {
        let mut reader = reader(path)?;
        let bounds = Bounds { first: reader.head().first, last: reader.head().last };
        let mut snapshots = Vec::new();
        loop {
            match reader.entry().with_context(|| format!("read {}", path.display()))? {
                Some(Entry::Snapshot { sequence, .. }) => snapshots.push(sequence),
                Some(Entry::Piece(_)) => {}
                _ => break,
            }
        }
        let shown = path.display().to_string();
        let options = format!("--file {shown}");
        Ok(Self { shown, options, bounds, snapshots, from: From::File(path.to_path_buf()) })
    }

    /// What is wrong with it as a whole.
    pub fn unsound(&self) -> Option<&str> {
        match &self.from {
            From::Log(log) => log.unsound(),
            From::File(_) => None,
        }
    }

    /// The first record there is now.
    pub async fn first_now(&self) -> Result<u64> {
        match &self.from {
            From::Log(log) => Ok(log.bounds().await.context("look at the log")?.first),
            From::File(_) => Ok(self.bounds.first),
        }
    }

    /// A snapshot's content, or why it is of no use.
    pub async fn snapshot(&self, sequence: u64) -> Result<Bytes, String> {
        match &self.from {
            From::Log(log) => log.snapshot(sequence).await.map(|snapshot| snapshot.bytes).map_err(|e| e.to_string()),
            From::File(path) => snapshot_in(path, sequence).map(Bytes::from).map_err(|error| format!("{error:#}")),
        }
    }

    /// Shows each record from `from` to `to` to `visit`, in order, until it has seen enough. A file is read to its end when
    /// that is asked for, so that all of its checksums are looked at.
    pub async fn walk(
        &self,
        (from, to): (u64, u64),
        what: &str,
        mut visit: impl AsyncFnMut(u64, Result<Bytes, String>) -> Result<bool>,
    ) -> Result<()> {
        let bar = progress::counting((to + 1).saturating_sub(from), what);
        let mut visit = async |sequence, record| {
            bar.inc(1);
            visit(sequence, record).await
        };
        match &self.from {
            From::Log(log) => {
                let mut next = from;
                while next <= to {
                    let found = log.read(next, BATCH).await.context("read the log")?;
                    if found.is_empty() {
                        // The store has no more, and yet there were more.
                        for sequence in next..=to {
                            if !visit(sequence, Err("it is not there any more".to_owned())).await? {
                                return Ok(());
                            }
                        }
                        break;
                    }
                    let last = found.last().map_or(to, |(sequence, _)| *sequence);
                    for (sequence, record) in found.into_iter().filter(|(sequence, _)| *sequence <= to) {
                        if !visit(sequence, record).await? {
                            return Ok(());
                        }
                    }
                    next = last + 1;
                }
            }
            From::File(path) => {
                let doing = || format!("read {}", path.display());
                let mut reader = reader(path)?;
                let mut seen = 0u64;
                while let Some(entry) = reader.entry().with_context(doing)? {
                    let (sequence, record) = match entry {
                        Entry::Record { sequence, bytes } => (sequence, Ok(Bytes::from(bytes))),
                        Entry::Missing { sequence, why } => (sequence, Err(why)),
                        _ => continue,
                    };
                    if sequence > to || (sequence >= from && !visit(sequence, record).await?) {
                        return Ok(());
                    }
                    // What comes after need not be sound.
                    if sequence == to && to < self.bounds.last {
                        return Ok(());
                    }
                    seen += 1;
                    if seen.is_multiple_of(BATCH as u64) {
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
        Ok(())
    }
}

fn reader(path: &Path) -> Result<Reader<BufReader<File>>> {
    let doing = || format!("read {}", path.display());
    let file = File::open(path).with_context(doing)?;
    Reader::begin(BufReader::with_capacity(1 << 20, file)).with_context(doing)
}

fn snapshot_in(path: &Path, wanted: u64) -> Result<Vec<u8>> {
    let mut reader = reader(path)?;
    let mut content = None;
    loop {
        match (reader.entry()?, &mut content) {
            (Some(Entry::Snapshot { sequence, .. }), None) if sequence == wanted => content = Some(Vec::new()),
            (Some(Entry::Piece(piece)), Some(content)) => content.extend(piece),
            (Some(Entry::Snapshot { .. } | Entry::Piece(_)), None) => {}
            (_, None) => bail!("there is no snapshot of record {wanted}"),
            (_, Some(_)) => break,
        }
    }
    content.context("there is no such snapshot")
}
