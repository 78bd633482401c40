//! `catchment log inspect`.

use super::WhichOrFile;
use super::fold::{JobShown, SnapshotShown, beginning, hex, lines, snapshot};
use super::source::Source;
use crate::cluster::NatsArgs;
use crate::output::{Output, write};
use crate::text;
use anyhow::Result;
use bytes::Bytes;
use catchment_ledger::{Envelope, offline};
use indicatif::BinaryBytes;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::str::FromStr;

/// Bad records that are listed; the others are counted.
const BAD_SHOWN: usize = 20;

#[derive(Debug, clap::Args)]
pub struct Inspect {
    #[command(flatten)]
    which: WhichOrFile,
    #[command(flatten)]
    nats: NatsArgs,
    /// Show these records one by one, as JSON: A..B with both, A.. or ..B, or one. Those that do not read, with their bytes.
    #[arg(long, value_name = "A..B")]
    records: Option<Records>,
}

/// A range of records, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Records {
    first: u64,
    last: u64,
}

impl FromStr for Records {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str, default: u64| if text.is_empty() { Ok(default) } else { text.parse::<u64>() };
        let (first, last) = text.split_once("..").map_or((text, text), |ends| ends);
        let parsed = number(first, 1).and_then(|first| Ok(Self { first, last: number(last, u64::MAX - 1)? }));
        let parsed = parsed.ok().filter(|range| !text.is_empty() && range.first <= range.last && range.last < u64::MAX);
        parsed.ok_or_else(|| format!("`{text}` is no range of records, such as 12..20, 12.. or 12"))
    }
}

/// A record that is wrong.
#[derive(Debug, Clone, Serialize)]
pub struct Bad {
    pub sequence: u64,
    pub error: String,
}

#[derive(Serialize)]
struct Inspected {
    log: String,
    first: u64,
    last: u64,
    records: u64,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    unsound: Option<String>,
    snapshots: Vec<SnapshotShown>,
    kinds: BTreeMap<&'static str, u64>,
    bad_records: u64,
    bad: Vec<Bad>,
    /// The record up to which the jobs are as they are shown.
    jobs_at: Option<u64>,
    jobs: Vec<JobShown>,
}

impl Inspect {
    /// Runs it.
    pub async fn run(self, output: Output) -> Result<()> {
        let source = self.which.open(&self.nats).await?;
        match self.records {
            Some(records) => show(&source, records).await,
            None => {
                let inspected = inspect(&source).await?;
                output.item(&inspected, || table(&inspected))
            }
        }
    }
}

async fn inspect(source: &Source) -> Result<Inspected> {
    let mut snapshots = Vec::new();
    for sequence in &source.snapshots {
        snapshots.push(snapshot(source, *sequence).await.0);
    }
    let mut replay = beginning(source).await?;
    let (mut bytes, mut kinds, mut bad_records, mut bad) = (0, BTreeMap::new(), 0, Vec::new());
    let range = (source.bounds.first, source.bounds.last);
    source
        .walk(range, "records", async |sequence, record| {
            bytes += record.as_ref().map_or(0, |record| record.len() as u64);
            match record.clone().and_then(|record| offline::read(sequence, &record)) {
                Ok(stored) => *kinds.entry(stored.record.kind()).or_default() += 1,
                Err(error) => {
                    bad_records += 1;
                    if bad.len() < BAD_SHOWN {
                        bad.push(Bad { sequence, error });
                    }
                }
            }
            // As far as a process gets.
            if let (Some(replay), Ok(record)) = (&mut replay, record)
                && replay.state().sequence() + 1 == sequence
            {
                replay.apply(sequence, &record).ok();
            }
            Ok(true)
        })
        .await?;
    let records = source.bounds.records();
    let jobs = replay.as_ref().map_or_else(Vec::new, |replay| JobShown::of(replay.state()));
    Ok(Inspected {
        log: source.shown.clone(),
        first: source.bounds.first,
        last: source.bounds.last,
        records,
        bytes,
        unsound: source.unsound().map(str::to_owned),
        snapshots,
        kinds,
        bad_records,
        bad,
        jobs_at: replay.map(|replay| replay.state().sequence()),
        jobs,
    })
}

fn table(inspected: &Inspected) -> String {
    let size = BinaryBytes(inspected.bytes);
    let range = match inspected.records {
        0 => "none".to_owned(),
        records => format!("{} to {} ({records}, {size})", inspected.first, inspected.last),
    };
    let snapshot = |shown: &SnapshotShown| match &shown.error {
        None => format!("of record {}, {}", shown.sequence, BinaryBytes(shown.bytes)),
        Some(error) => format!("of record {}: of no use: {error}", shown.sequence),
    };
    let or_none = |lines: Vec<String>| if lines.is_empty() { "none".to_owned() } else { lines.join("\n") };
    let mut shown = vec![("log", inspected.log.clone()), ("records", range)];
    shown.extend(inspected.unsound.clone().map(|why| ("unsound", why)));
    shown.push(("snapshots", or_none(inspected.snapshots.iter().map(snapshot).collect())));
    shown.push(("kinds", or_none(inspected.kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect())));
    if inspected.bad_records > 0 {
        let mut bad: Vec<String> = inspected.bad.iter().map(|bad| format!("{}: {}", bad.sequence, bad.error)).collect();
        let more = inspected.bad_records - bad.len() as u64;
        bad.extend((more > 0).then(|| format!("and {more} more")));
        shown.push(("bad", bad.join("\n")));
    }
    match inspected.jobs_at {
        Some(at) if at < inspected.last => {
            shown.push(("jobs", format!("as of record {at}:\n{}", lines(&inspected.jobs))))
        }
        Some(_) => shown.push(("jobs", lines(&inspected.jobs))),
        None => shown.push(("jobs", "unknown: the log's beginning is forgotten, and no snapshot is sound".to_owned())),
    }
    text::pairs(&shown)
}

/// Records one by one.
async fn show(source: &Source, Records { first, last }: Records) -> Result<()> {
    let range = (first.max(source.bounds.first), last.min(source.bounds.last));
    let print = async |sequence, record| write(&line(sequence, record).to_string()).map(|()| true);
    source.walk(range, "records", print).await
}

fn line(sequence: u64, record: Result<Bytes, String>) -> serde_json::Value {
    let bytes = match record {
        Ok(bytes) => bytes,
        Err(error) => return json!({"sequence": sequence, "error": error}),
    };
    match offline::read(sequence, &bytes) {
        Ok(Envelope { writer, number, guard, seen, record }) => json!({
            "sequence": sequence, "bytes": bytes.len(), "kind": record.kind(), "writer": hex(&writer), "number": number,
            "guard": guard, "seen": seen, "record": record,
        }),
        Err(error) => json!({"sequence": sequence, "bytes": bytes.len(), "error": error, "hex": hex(&bytes)}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_records() {
        let range = |text: &str| text.parse::<Records>().ok().map(|range| (range.first, range.last));
        assert_eq!(range("12..20"), Some((12, 20)));
        assert_eq!(range("12"), Some((12, 12)));
        assert_eq!(range("12.."), Some((12, u64::MAX - 1)));
        assert_eq!(range("..20"), Some((1, 20)));
        for text in ["", "a", "20..12", "1..2..3", "-1", "18446744073709551615"] {
            assert_eq!(range(text), None, "{text}");
        }
    }

    #[test]
    fn a_record_that_does_not_read_is_shown_with_its_bytes() {
        let bad = line(7, Ok(Bytes::from_static(b"\xffx")));
        assert_eq!((&bad["sequence"], &bad["hex"]), (&json!(7), &json!("ff78")));
        assert!(bad["error"].as_str().is_some_and(|why| why.contains("version 255")), "{bad}");
        let good = line(8, Ok(offline::nothing(8).into()));
        assert_eq!((&good["kind"], &good["record"]), (&json!("accepted"), &json!({"Accepted": []})));
        assert_eq!(line(9, Err("gone".to_owned())), json!({"sequence": 9, "error": "gone"}));
    }
}
