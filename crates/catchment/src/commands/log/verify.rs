//! `catchment log verify`.

use super::WhichOrFile;
use super::fold::{JobShown, SnapshotShown, lines, snapshot};
use super::inspect::Bad;
use super::source::Source;
use crate::cluster::NatsArgs;
use crate::exit::Failure;
use crate::output::Output;
use crate::text;
use anyhow::Result;
use catchment_ledger::offline::Replay;
use serde::Serialize;

/// Records after which the state's sums are recounted. When they do not hold, every record since the last time is looked
/// at by itself.
const AUDIT: u64 = 4096;
/// Findings that are listed; the others are counted.
const FINDINGS_MAX: usize = 20;

/// What is said of a snapshot that differs from a replay.
const SNAPSHOT_DIFFERS: &str = "the snapshot of this record is not what the records before it come to";

#[derive(Debug, clap::Args)]
pub struct Verify {
    #[command(flatten)]
    which: WhichOrFile,
    #[command(flatten)]
    nats: NatsArgs,
}

#[derive(Serialize)]
struct Verified {
    log: String,
    sound: bool,
    first: u64,
    last: u64,
    /// The record after which the replay began.
    replayed_after: Option<u64>,
    replayed: u64,
    without_effect: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    unsound: Option<String>,
    snapshots: Vec<SnapshotShown>,
    /// The first record that is wrong.
    first_bad: Option<Bad>,
    bad_records: u64,
    bad: Vec<Bad>,
    /// Whether a process that starts now reads the log to its end.
    opens: bool,
    jobs: Vec<JobShown>,
    advice: Option<String>,
}

impl Verify {
    /// Runs it.
    pub async fn run(self, output: Output) -> Result<()> {
        let source = self.which.open(&self.nats).await?;
        let verified = verify(&source).await?;
        output.item(&verified, || table(&verified))?;
        if verified.sound {
            return Ok(());
        }
        let what = verified.first_bad.as_ref().map(|bad| format!("record {}: {}", bad.sequence, bad.error));
        let what = what.or(verified.unsound).unwrap_or_else(|| "a snapshot is of no use".to_owned());
        Err(Failure::Unsound(what).into())
    }
}

/// The replay, and what was wrong on the way.
struct Run {
    replay: Option<Replay>,
    /// The last state whose sums held.
    held: Replay,
    replayed: u64,
    without_effect: u64,
    bad: Vec<Bad>,
    bad_records: u64,
}

impl Run {
    fn bad(&mut self, sequence: u64, error: String) {
        self.bad_records += 1;
        if self.bad.len() < FINDINGS_MAX {
            self.bad.push(Bad { sequence, error });
        }
    }
}

async fn verify(source: &Source) -> Result<Verified> {
    let mut snapshots = Vec::new();
    let mut sound = Vec::new();
    for sequence in &source.snapshots {
        let (shown, replay) = snapshot(source, *sequence).await;
        sound.extend(replay.map(|_| *sequence));
        snapshots.push(shown);
    }
    // From the beginning where it is there, else from the oldest snapshot that the records follow on.
    let usable = |sequence: &&u64| **sequence + 1 >= source.bounds.first;
    let begin = match source.bounds.first {
        1 => Some(Replay::default()),
        _ => match sound.iter().find(usable) {
            Some(sequence) => snapshot(source, *sequence).await.1,
            None => None,
        },
    };
    let replayed_after = begin.as_ref().map(|replay| replay.state().sequence());
    let mut run = Run {
        held: begin.clone().unwrap_or_default(),
        replay: begin,
        replayed: 0,
        without_effect: 0,
        bad: vec![],
        bad_records: 0,
    };
    let mut from = replayed_after.map_or(source.bounds.first, |after| (after + 1).max(source.bounds.first));
    // Piece by piece, from snapshot to snapshot: each is compared, and the one after a record that is wrong goes on.
    let stops = sound.iter().copied().filter(|sequence| *sequence + 1 > from && *sequence <= source.bounds.last);
    let mut stops: Vec<(u64, bool)> = stops.map(|sequence| (sequence, true)).collect();
    stops.push((source.bounds.last, false));
    for (to, is_snapshot) in stops {
        piece(source, &mut run, (from, to)).await?;
        from = to + 1;
        if is_snapshot {
            let Some(stored) = snapshot(source, to).await.1 else { continue };
            if let Some(replay) = &run.replay
                && let Err(why) = replay.compare(&stored)
            {
                run.bad(to, format!("{SNAPSHOT_DIFFERS}: {why}"));
            }
            // What a process goes on from.
            run.held = stored.clone();
            run.replay = Some(stored);
        }
    }
    let opens = run.replay.as_ref().is_some_and(|replay| replay.state().sequence() >= source.bounds.last);
    let has_useless = snapshots.iter().any(|snapshot| snapshot.error.is_some());
    let unsound = source.unsound().map(str::to_owned);
    let is_sound = run.bad_records == 0 && opens && !has_useless && unsound.is_none();
    let advice = (!is_sound).then(|| advice(source, &run, opens, unsound.is_some()));
    Ok(Verified {
        log: source.shown.clone(),
        sound: is_sound,
        first: source.bounds.first,
        last: source.bounds.last,
        replayed_after,
        replayed: run.replayed,
        without_effect: run.without_effect,
        unsound,
        snapshots,
        first_bad: run.bad.first().cloned(),
        bad_records: run.bad_records,
        opens,
        jobs: run.replay.as_ref().map_or_else(Vec::new, |replay| JobShown::of(replay.state())),
        bad: run.bad,
        advice,
    })
}

/// Replays some records. After one that is wrong the others are only read.
async fn piece(source: &Source, run: &mut Run, (from, to): (u64, u64)) -> Result<()> {
    let mut miscounted = false;
    source
        .walk((from, to), "records replayed", async |sequence, record| {
            let applied = match (&mut run.replay, record) {
                (_, Err(error)) => Err(error),
                (Some(replay), Ok(record)) => replay.apply(sequence, &record),
                (None, Ok(record)) => catchment_ledger::offline::read(sequence, &record).map(|_| true),
            };
            match applied {
                Ok(has_effect) => {
                    run.replayed += u64::from(run.replay.is_some());
                    run.without_effect += u64::from(!has_effect);
                }
                Err(error) => {
                    run.bad(sequence, error);
                    run.replay = None;
                }
            }
            let is_due = sequence % AUDIT == 0 || sequence == to;
            if let Some(replay) = run.replay.as_ref().filter(|_| is_due) {
                if replay.audit().is_err() {
                    miscounted = true;
                    return Ok(false);
                }
                run.held = replay.clone();
            }
            Ok(true)
        })
        .await?;
    if !miscounted {
        return Ok(());
    }
    let (mut replay, mut found) = (std::mem::take(&mut run.held), None);
    source
        .walk((replay.state().sequence() + 1, to), "records recounted", async |sequence, record| {
            let applied = record.and_then(|record| replay.apply(sequence, &record)).and_then(|_| replay.audit());
            found = applied.err().map(|error| (sequence, error));
            Ok(found.is_none())
        })
        .await?;
    let (sequence, error) = found.unwrap_or((to, "the state's sums do not hold".to_owned()));
    run.bad(sequence, format!("after it the state's sums do not hold: {error}"));
    run.replay = None;
    Ok(())
}

/// What to do next.
fn advice(source: &Source, run: &Run, opens: bool, is_unsound: bool) -> String {
    let options = &source.options;
    let is_file = options.starts_with("--file");
    let (file, export) = if is_file {
        (source.shown.clone(), String::new())
    } else {
        ("log.catchlog".to_owned(), format!("  catchment log export {options} --out log.catchlog\n"))
    };
    let place = if is_file { "--data DIR|--nats URL" } else { options };
    let restore = |with: String| format!("{export}  catchment log restore {place} --from {file}{with} --replace");
    match run.bad.first() {
        Some(Bad { sequence, error }) if error.starts_with(SNAPSHOT_DIFFERS) => format!(
            "processes go on from the snapshot of record {sequence}, and their state is not what the records say. Stop them, \
             keep an exported file, and find out which of the two is right before anything else is accepted"
        ),
        Some(Bad { sequence, .. }) if !opens => format!(
            "no process reads past record {sequence}. Stop every process, export the log, and make it anew without that \
             record:\n{}\nor only up to the record before it, and forget what came after:\n  … --until {} in place of \
             --skip {sequence}",
            restore(format!(" --skip {sequence}")),
            sequence - 1
        ),
        _ if is_unsound => format!("export what can be read and make it anew:\n{}", restore(String::new())),
        Some(Bad { sequence, .. }) => format!(
            "processes start from a snapshot after record {sequence} and do not read it; to have a log without it:\n{}",
            restore(String::new())
        ),
        None if !opens => {
            "the log's beginning is forgotten, and no snapshot stands for it: restore the newest file that \
                           `catchment log export` has written, if there is one"
                .to_owned()
        }
        None => format!(
            "a snapshot that is of no use is passed over; to have a log without it:\n{}",
            restore(String::new())
        ),
    }
}

fn table(verified: &Verified) -> String {
    let word = if verified.sound { "sound" } else { "NOT SOUND" };
    let mut shown = vec![("log", verified.log.clone()), ("state", word.to_owned())];
    shown.push(("records", format!("{} to {}", verified.first, verified.last)));
    shown.push(match verified.replayed_after {
        Some(0) => ("replayed", format!("{} from the beginning", verified.replayed)),
        Some(after) => ("replayed", format!("{} from the snapshot of record {after}", verified.replayed)),
        None => ("replayed", "none: no snapshot stands for what is forgotten".to_owned()),
    });
    shown.extend(verified.unsound.clone().map(|why| ("unsound", why)));
    for snapshot in &verified.snapshots {
        let why = snapshot.error.as_ref().map(|why| format!("of no use: {why}"));
        let state = why.unwrap_or_else(|| "sound".to_owned());
        shown.push(("snapshot", format!("of record {}: {state}", snapshot.sequence)));
    }
    for bad in &verified.bad {
        shown.push(("bad", format!("{}: {}", bad.sequence, bad.error)));
    }
    let more = verified.bad_records - verified.bad.len() as u64;
    shown.extend((more > 0).then(|| ("bad", format!("and {more} more"))));
    shown.push(("jobs", lines(&verified.jobs)));
    shown.extend(verified.advice.clone().map(|advice| ("next", advice)));
    text::pairs(&shown)
}
