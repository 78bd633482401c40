//! `catchment log restore` and `catchment log snapshot restore`.

use super::Which;
use super::export::export;
use super::fold::{JobShown, lines, snapshot};
use super::plan::{Plan, Wish, plan};
use super::source::{Source, Where};
use crate::cluster::NatsArgs;
use crate::output::Output;
use crate::system::SystemClock;
use crate::text;
use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use catchment_bus::Snapshot;
use catchment_bus::offline::Bounds;
use catchment_fleet::BEATS;
use catchment_ledger::offline::{self, Replay};
use catchment_types::{Clock as _, NodeId};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bad records of one file.
const BAD_MAX: usize = 1_000_000;
/// Records written at one time, and their bytes.
const BATCH: usize = 128;
const BATCH_BYTES: usize = 8 << 20;
/// How long processes of the cluster are listened for. They speak every second, unless they were told otherwise.
const LISTEN: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub struct Restore {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    nats: NatsArgs,
    /// The file that `catchment log export` has written.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The last record that stays. What happened after it is forgotten.
    #[arg(long, value_name = "SEQUENCE")]
    until: Option<u64>,
    /// A record that does not stay; may be given more than once. In its place comes one that changes nothing, so the others
    /// keep their numbers. What depends on it has no effect either: the summary counts that, and names jobs that are gone.
    #[arg(long, value_name = "SEQUENCE")]
    skip: Vec<u64>,
    /// Put it in the place of the log that is there, which is exported to FILE.replaced first.
    #[arg(long)]
    replace: bool,
    /// Have nodes go on with the updates and sums that they have in shared memory. Only when no record that does not stay
    /// was written by this cluster: else an update that the log does not know any more may be in a sum, and count twice.
    #[arg(long)]
    keep_memory: bool,
}

#[derive(Debug, clap::Args)]
pub struct SnapshotRestore {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    nats: NatsArgs,
    /// A file that `catchment log snapshot export` or `catchment log export` has written.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The snapshot of this record, instead of the newest one.
    #[arg(long, value_name = "SEQUENCE")]
    sequence: Option<u64>,
    /// Put it in the place of the log that is there, which is exported to FILE.replaced first.
    #[arg(long)]
    replace: bool,
}

/// A record that was left out.
#[derive(Debug, Serialize)]
struct LeftOut {
    sequence: u64,
    what: String,
}

#[derive(Debug, Serialize)]
struct Restored {
    log: String,
    first: u64,
    last: u64,
    snapshots: Vec<u64>,
    left_out: Vec<LeftOut>,
    /// Later records that change nothing without those.
    without_effect: u64,
    jobs: Vec<JobShown>,
    /// Jobs that the file's records come to, and the log does not.
    jobs_lost: Vec<JobShown>,
    /// Nodes whose shared memory counts for nothing.
    nodes_begun_anew: Vec<String>,
    /// Where the log before it was exported to.
    replaced: Option<PathBuf>,
}

impl Restore {
    /// Runs it.
    pub async fn run(self, output: Output) -> Result<()> {
        let file = Source::of_file(&self.from)?;
        let (sound, bad, nodes) = look(&file, self.until).await?;
        let wish = Wish { until: self.until, skip: self.skip.into_iter().collect() };
        let plan = plan(file.bounds, &sound, &bad, &wish).map_err(|why| anyhow!(why))?;
        let place = self.which.place(&self.nats);
        let is_whole = plan.last == file.bounds.last && plan.nothing.is_empty();
        let begin_anew = (!is_whole && !self.keep_memory).then_some(nodes);
        let target = Target { place, from: self.from, replace: self.replace, begin_anew };
        target.restore(&file, &plan, &bad, output).await
    }
}

impl SnapshotRestore {
    /// Runs it.
    pub async fn run(self, output: Output) -> Result<()> {
        let file = Source::of_file(&self.from)?;
        let Some(sequence) = self.sequence.or(file.snapshots.last().copied()) else {
            bail!("{} holds no snapshot", file.shown);
        };
        if !file.snapshots.contains(&sequence) {
            bail!("{} holds no snapshot of record {sequence}; it holds those of {:?}", file.shown, file.snapshots);
        }
        let plan = Plan { first: sequence, last: sequence, nothing: [sequence].into(), snapshots: vec![sequence] };
        let place = self.which.place(&self.nats);
        let nodes = nodes_named(&file, file.bounds.first).await;
        let target = Target { place, from: self.from, replace: self.replace, begin_anew: Some(nodes) };
        target.restore(&file, &plan, &BTreeMap::new(), output).await
    }
}

/// What a file holds: the snapshots that are sound, the records that do not read, and the nodes that are named.
type Looked = (Vec<u64>, BTreeMap<u64, String>, BTreeSet<NodeId>);

async fn look(file: &Source, until: Option<u64>) -> Result<Looked> {
    let mut sound = Vec::new();
    for sequence in &file.snapshots {
        match snapshot(file, *sequence).await.0.error {
            None => sound.push(*sequence),
            Some(why) => eprintln!("the snapshot of record {sequence} is not restored, for it is of no use: {why}"),
        }
    }
    let (mut bad, mut nodes) = (BTreeMap::new(), BTreeSet::new());
    let last = until.unwrap_or(file.bounds.last).min(file.bounds.last);
    file.walk((file.bounds.first, last), "records looked at", async |sequence, record| {
        match record.and_then(|record| offline::read(sequence, &record)) {
            Ok(stored) => nodes.extend(offline::nodes(&stored.record)),
            Err(why) => drop(bad.insert(sequence, why)),
        }
        if bad.len() > BAD_MAX {
            bail!(
                "more than {BAD_MAX} records do not read: restore a snapshot instead (catchment log snapshot restore)"
            );
        }
        Ok(true)
    })
    .await
    .context("with --until, what comes before the damage can be restored")?;
    if last < file.bounds.last {
        nodes.extend(nodes_named(file, last + 1).await);
    }
    Ok((sound, bad, nodes))
}

/// Nodes that a file's records name from one on: who took updates that nobody will know of. It need not be sound.
async fn nodes_named(file: &Source, first: u64) -> BTreeSet<NodeId> {
    let mut nodes = BTreeSet::new();
    let walk = file.walk((first, file.bounds.last), "records looked at", async |sequence, record| {
        let read = record.and_then(|record| offline::read(sequence, &record));
        nodes.extend(read.iter().flat_map(|stored| offline::nodes(&stored.record)));
        Ok(true)
    });
    let walked = walk.await;
    walked.unwrap_or_else(|error| eprintln!("not all of what does not stay can be read: {error:#}"));
    nodes
}

/// The record that a plan puts at a place.
fn planned(plan: &Plan, touched: &Touched, sequence: u64, record: Result<Bytes, String>) -> Result<Bytes> {
    if plan.nothing.contains(&sequence) || touched.hashes.contains(&sequence) {
        return Ok(offline::nothing(sequence).into());
    }
    if let Ok(record) = &record
        && touched.decisions.contains(&sequence)
    {
        return offline::unguarded(sequence, record)
            .map(Bytes::from)
            .map_err(|why| anyhow!("record {sequence}: {why}"));
    }
    record.map_err(|why| anyhow!("record {sequence} does not read: {why}"))
}

/// Records that say something of one that is left out.
#[derive(Default)]
struct Touched {
    /// Decisions that were taken on it. They count all the same: each says itself what it is about, and without it everything
    /// after it would be without effect.
    decisions: BTreeSet<u64>,
    /// Hashes of states that are not come to any more. They go, too.
    hashes: BTreeSet<u64>,
}

/// What a plan comes to.
struct Outlook {
    replay: Replay,
    left_out: Vec<LeftOut>,
    touched: Touched,
    without_effect: u64,
    jobs_lost: Vec<JobShown>,
}

/// Replays what is planned as a process will that opens it, and beside it what the file says, where that can be.
async fn look_ahead(file: &Source, plan: &Plan, bad: &BTreeMap<u64, String>) -> Result<Outlook> {
    let begin = match plan.begins_after() {
        0 => Replay::default(),
        sequence => {
            let (shown, replay) = snapshot(file, sequence).await;
            let error = shown.error.unwrap_or_default();
            replay.with_context(|| format!("the snapshot of record {sequence} is of no use: {error}"))?
        }
    };
    let (mut replay, mut whole) = (begin.clone(), Some(begin));
    let (mut left_out, mut touched, mut without_effect) = (Vec::new(), Touched::default(), 0);
    let range = (replay.state().sequence() + 1, plan.last);
    if range.0 <= range.1 {
        file.walk(range, "records replayed", async |sequence, record| {
            let did = match (&mut whole, &record) {
                (Some(whole), Ok(record)) if !bad.contains_key(&sequence) => whole.apply(sequence, record).ok(),
                _ => None,
            };
            if plan.nothing.contains(&sequence) {
                let read = record.clone().and_then(|record| offline::read(sequence, &record));
                let what = read.map_or_else(|why| why, |stored| stored.record.kind().to_owned());
                left_out.push(LeftOut { sequence, what });
            }
            if let Ok(record) = &record
                && !left_out.is_empty()
            {
                if replay.lacks_what_it_was_decided_on(sequence, record) {
                    touched.decisions.insert(sequence);
                } else if offline::is_of_a_state(sequence, record) {
                    touched.hashes.insert(sequence);
                }
            }
            let record = planned(plan, &touched, sequence, record)?;
            let does = replay.apply(sequence, &record);
            let does = does.map_err(|why| {
                anyhow!(
                    "{why}: no process would read past record {sequence}; end before it with --until {}",
                    sequence - 1
                )
            })?;
            match did {
                Some(did) => without_effect += u64::from(did && !does && !plan.nothing.contains(&sequence)),
                // What the file says from here on is not known.
                None => whole = None,
            }
            Ok(true)
        })
        .await?;
    }
    // Jobs that came only after what stays are lost as well.
    if let Some(said) = whole.as_mut().filter(|_| plan.last < file.bounds.last) {
        let rest = file.walk((plan.last + 1, file.bounds.last), "records looked at", async |sequence, record| {
            Ok(record.and_then(|record| said.apply(sequence, &record)).is_ok())
        });
        rest.await.ok();
    }
    replay.audit().map_err(|why| {
        anyhow!(
            "the sums of what is planned do not hold ({why}); `catchment log verify {}` names the record",
            file.options
        )
    })?;
    let jobs = JobShown::of(replay.state());
    let lost = |job: &JobShown| !jobs.iter().any(|kept| kept.uid == job.uid);
    let jobs_lost = whole.map_or_else(Vec::new, |whole| JobShown::of(whole.state()).into_iter().filter(lost).collect());
    Ok(Outlook { replay, left_out, touched, without_effect, jobs_lost })
}

/// Where a log is to be, and what may happen to the one there.
struct Target {
    place: Where,
    from: PathBuf,
    replace: bool,
    /// Nodes that begin anew beside those that the log names, if any do.
    begin_anew: Option<BTreeSet<NodeId>>,
}

impl Target {
    async fn restore(self, file: &Source, plan: &Plan, bad: &BTreeMap<u64, String>, output: Output) -> Result<()> {
        let outlook = look_ahead(file, plan, bad).await?;
        if self.place.place().hears(BEATS, LISTEN).await.context("listen for the cluster's processes")? {
            bail!(
                "processes of the cluster are at work on {}: stop every node and coordinator first",
                self.place.shown()
            );
        }
        let (is_there, replaced) = self.put_aside().await?;
        let doing = || format!("make a log of {}", self.place.shown());
        let mut log = self.place.place().begin(plan.first, is_there).await.with_context(doing)?;
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        let mut next = plan.first;
        if file.bounds.first <= plan.last && file.bounds.last >= plan.first {
            file.walk((plan.first, plan.last), "records restored", async |sequence, record| {
                let record = planned(plan, &outlook.touched, sequence, record)?;
                next = sequence + 1;
                batch_bytes += record.len();
                batch.push(record);
                if batch.len() == BATCH || batch_bytes > BATCH_BYTES {
                    batch_bytes = 0;
                    log.append(std::mem::take(&mut batch)).await.with_context(doing)?;
                }
                Ok(true)
            })
            .await?;
        }
        // Of a snapshot by itself the file has no record.
        for sequence in next..=plan.last {
            batch.push(planned(plan, &outlook.touched, sequence, Err("it is not in the file".to_owned()))?);
        }
        let ended = self.ended(&outlook.replay)?;
        let lost = (plan.last + 1..).zip(&ended);
        let lost = lost.map(|(at, (node, life))| offline::node_lost(at, *node, *life, SystemClock.now_ms()).into());
        batch.extend(lost);
        log.append(batch).await.with_context(doing)?;
        let mut snapshots = Vec::new();
        for sequence in &plan.snapshots {
            let bytes = file.snapshot(*sequence).await.map_err(|why| anyhow!("read a snapshot: {why}"))?;
            snapshots.push(Snapshot { sequence: *sequence, bytes });
        }
        log.finish(snapshots).await.with_context(doing)?;
        let Outlook { replay, left_out, without_effect, jobs_lost, .. } = outlook;
        let restored = Restored {
            log: self.place.shown(),
            first: plan.first,
            last: plan.last + ended.len() as u64,
            snapshots: plan.snapshots.clone(),
            left_out,
            without_effect,
            jobs: JobShown::of(replay.state()),
            jobs_lost,
            nodes_begun_anew: ended.iter().map(|(node, _)| node.to_string()).collect(),
            replaced,
        };
        output.item(&restored, || table(&restored))
    }

    /// The nodes whose present life is to end, and which it is.
    fn ended(&self, replay: &Replay) -> Result<Vec<(NodeId, u64)>> {
        let Some(named) = &self.begin_anew else { return Ok(vec![]) };
        let mut nodes: BTreeSet<NodeId> = named.iter().copied().chain(replay.nodes()).collect();
        if let Where::Data(dir) = &self.place {
            // The one that has this log need not have done anything that is still known.
            let path = dir.join("node-id");
            match std::fs::read_to_string(&path) {
                Ok(text) => nodes.extend(text.trim().parse::<NodeId>().ok()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
            }
        }
        Ok(nodes.into_iter().map(|node| (node, replay.state().incarnation(node))).collect())
    }

    /// Exports what is there, if there is anything. Says whether there is a log, with records or without.
    async fn put_aside(&self) -> Result<(bool, Option<PathBuf>)> {
        let Some(there) = self.place.try_open().await? else { return Ok((false, None)) };
        let is_empty = there.bounds.last == 0 && there.snapshots.is_empty() && there.unsound().is_none();
        if is_empty {
            return Ok((true, None));
        }
        if !self.replace {
            let Bounds { first, last } = there.bounds;
            bail!(
                "there is a log of records {first} to {last} in {}: with --replace it is exported to a file beside {} and \
                 replaced",
                self.place.shown(),
                self.from.display()
            );
        }
        let aside = free_name(&self.from)?;
        export(&there, &aside).await.context("export the log that is there")?;
        if let (Where::Data(dir), Some(_)) = (&self.place, there.unsound()) {
            // What the export could not read may yet be read by somebody.
            let (file, copy) = (dir.join(catchment_bus::LOG_FILE), aside.with_added_extension("redb"));
            if file.exists() {
                std::fs::copy(&file, &copy)
                    .with_context(|| format!("copy {} to {}", file.display(), copy.display()))?;
            }
        }
        Ok((true, Some(aside)))
    }
}

/// A name beside `from` that nothing has.
fn free_name(from: &Path) -> Result<PathBuf> {
    let names = (1..1000).map(|number| match number {
        1 => from.with_added_extension("replaced"),
        number => from.with_added_extension(format!("replaced-{number}")),
    });
    let mut free = names.filter(|name| !name.exists());
    free.next().with_context(|| format!("there are too many files {}.replaced", from.display()))
}

fn table(restored: &Restored) -> String {
    let Restored { log, first, last, snapshots, left_out, without_effect, jobs, jobs_lost, nodes_begun_anew, replaced } =
        restored;
    let mut shown = vec![("log", log.clone()), ("records", format!("{first} to {last}"))];
    shown.extend(snapshots.last().map(|newest| ("snapshot", format!("of record {newest}"))));
    for LeftOut { sequence, what } in left_out {
        shown.push(("left out", format!("record {sequence}: {what}")));
    }
    if *without_effect > 0 {
        shown.push(("without it", format!("{} later have no effect", text::count(*without_effect, "record"))));
    }
    if !jobs_lost.is_empty() {
        let what =
            "copy their models away before a node starts, which removes models of jobs that its log does not know";
        shown.push(("jobs lost", format!("{}\n{what}", lines(jobs_lost))));
    }
    shown.push(("jobs", lines(jobs)));
    if !nodes_begun_anew.is_empty() {
        let nodes = text::count(nodes_begun_anew.len() as u64, "node");
        let what = "begins anew: what it has of open rounds in shared memory is lost, and its clients are asked again";
        shown.push(("memory", format!("{nodes} {what}")));
    }
    shown.extend(replaced.as_ref().map(|file| ("replaced", format!("what was there is in {}", file.display()))));
    shown.push(("next", "start the processes again".to_owned()));
    text::pairs(&shown)
}
