//! The event log on one NATS server: what it takes of many processes, and how soon a decision follows on an update while
//! another job is busy. Beside it the server's own pace: the same records, sent one after the other without waiting.
//!
//! The ledgers are those of nodes, each with a connection of its own, in this process; at the first feature level every
//! record names the log's end as it must be, at the second each goes on its way by itself.

use crate::observe::{Series, cpu_seconds};
use anyhow::{Context, Result, ensure};
use catchment_bus::{Bus, EventLog, NatsConfig};
use catchment_ledger::{AcceptOutcome, Envelope, Ledger, LedgerError, Outcome, State};
use catchment_tests::Nats;
use catchment_types::{Accept, Digest, JobUid, LogId, ModelCommit, NodeId, Record, SlabId, SpecPatch};
use futures::future::{join_all, try_join_all};
use futures::stream::{FuturesUnordered, StreamExt};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Processes that write at the same time.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3, 8, 16])]
    pub writers: Vec<usize>,
    /// Clients of each that wait for their update's answer and send the next.
    #[arg(long, default_value_t = 16)]
    pub clients: usize,
    /// For how long each time.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// How often, turn and turn about.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
}

/// The job that is busy, and the one that is decided about.
const BUSY: JobUid = JobUid::from_bytes([1; 16]);
const QUIET: JobUid = JobUid::from_bytes([2; 16]);
/// Records on their way at one time where the server's pace is measured.
const WINDOW: usize = 256;
/// Decisions timed in a row, and between two of them.
const DECISIONS: usize = 30;
const PAUSE: Duration = Duration::from_millis(20);

/// Figures of one way.
#[derive(Default)]
struct Figures {
    accepts_per_s: Series,
    records_per_s: Series,
    p50_ms: Series,
    p99_ms: Series,
    /// CPU of an accept: what each of the ledgers takes for it, clients and connection included, and what the server does.
    ledger_us: Series,
    server_us: Series,
}

/// Measures and makes Markdown tables.
pub fn run(arguments: &Arguments) -> Result<String> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure(arguments))
}

async fn measure(arguments: &Arguments) -> Result<String> {
    let mut ceiling = Series::default();
    let mut figures: BTreeMap<(usize, u32), Figures> = BTreeMap::new();
    let mut decided: BTreeMap<u32, Series> = BTreeMap::new();
    for _ in 0..arguments.rounds {
        ceiling.push(pace(arguments.seconds).await?);
        for writers in &arguments.writers {
            for level in [1, 2] {
                accepts(level, *writers, arguments, figures.entry((*writers, level)).or_default()).await?;
            }
        }
        for level in [1, 2] {
            decisions(level, arguments.clients, decided.entry(level).or_default()).await?;
        }
    }
    let mut text = format!(
        "Accepts by processes on one NATS server, {} clients each, medians (least–most) of {} times {} s. The server alone \
         takes {} records a second of one accept each, {WINDOW} on their way\n\n\
         | writers | feature level | accepts a second | of the server's pace | records a second | p50, ms | p99, ms | CPU of an accept, µs: each \
         ledger | the server |\n|---|---|---|---|---|---|---|---|---|\n",
        arguments.clients,
        arguments.rounds,
        arguments.seconds,
        ceiling.show(0)
    );
    for ((writers, level), figures) in &figures {
        let share = figures.accepts_per_s.median() / ceiling.median();
        let Figures { accepts_per_s, records_per_s, p50_ms, p99_ms, ledger_us, server_us } = figures;
        writeln!(
            text,
            "| {writers} | {level} | {} | {share:.2} | {} | {} | {} | {} | {} |",
            accepts_per_s.show(0),
            records_per_s.show(0),
            p50_ms.show(1),
            p99_ms.show(1),
            ledger_us.show(1),
            server_us.show(1)
        )?;
    }
    write!(
        text,
        "\nFrom an update to the decision that another process takes on it, while a third job's {} clients send without pause, \
         ms, of {DECISIONS} each time\n\n| feature level | p50 (least–most) |\n|---|---|\n",
        arguments.clients
    )?;
    for (level, series) in &decided {
        writeln!(text, "| {level} | {} |", series.show(1))?;
    }
    Ok(text)
}

/// Records a second that the server stores when nobody waits for one before the next.
async fn pace(seconds: f64) -> Result<f64> {
    let server = Nats::start();
    let log = Bus::nats(NatsConfig::new(server.url())).await?.log;
    let envelope = Envelope {
        writer: [1; 16],
        number: 1,
        guard: None,
        seen: Some(0),
        record: Record::Accepted(vec![accept(BUSY, 1)]),
    };
    let record = bytes::Bytes::from(envelope.to_bytes(2, 1 << 20).map_err(anyhow::Error::msg)?);
    let begun = Instant::now();
    let (mut on_their_way, mut stored) = (FuturesUnordered::new(), 0u64);
    while begun.elapsed().as_secs_f64() < seconds {
        while on_their_way.len() < WINDOW {
            on_their_way.push(log.push(record.clone()).await?);
        }
        on_their_way.next().await.context("one of many")??;
        stored += 1;
    }
    Ok(stored as f64 / begun.elapsed().as_secs_f64())
}

/// Ledgers of processes on one server, each with a connection of its own, and two jobs with an open round.
async fn ledgers(server: &Nats, level: u32, count: usize) -> Result<Vec<Ledger>> {
    let mut ledgers = Vec::new();
    for writer in 0..count {
        let log: Arc<dyn EventLog> = Bus::nats(NatsConfig::new(server.url())).await?.log;
        ledgers.push(Ledger::open(log, [writer as u8 + 1; 16]).await?);
    }
    let first = &ledgers[0];
    if level > 1 {
        first.propose(Record::LevelRaised { level, log: LogId::from_bytes([1; 16]), at_ms: 0 }).await?;
    }
    for (uid, name) in [(BUSY, "busy"), (QUIET, "quiet")] {
        let spec = format!(r#"{{"name":"{name}","function":"fedavg","goal":100000000,"deadline":null}}"#);
        let model = ModelCommit::initial(Digest::from_bytes([0; 32]), 64, NodeId(1));
        for record in [
            Record::JobCreated { uid, spec, at_ms: 0 },
            Record::ModelPut { uid, model, needs: Default::default(), at_ms: 0 },
            Record::RoundOpened { uid, round: 1, deadline_ms: None, places: Vec::new(), at_ms: 0 },
        ] {
            ensure!(first.propose(record).await? == Outcome::Done);
        }
    }
    let last = first.read(State::sequence);
    for ledger in &ledgers {
        ledger.watch().wait_for(|applied| *applied >= last).await?;
    }
    Ok(ledgers)
}

async fn accepts(level: u32, writers: usize, arguments: &Arguments, figures: &mut Figures) -> Result<()> {
    let server = Nats::start();
    let ledgers = ledgers(&server, level, writers).await?;
    let before = ledgers[0].read(State::sequence);
    let used = || anyhow::Ok((cpu_seconds(std::process::id())?, cpu_seconds(server.pid())?));
    let ((ours, servers), begun) = (used()?, Instant::now());
    let (seconds, clients) = (arguments.seconds, arguments.clients);
    let tasks = (0..writers * clients).map(|client| {
        let ledger = ledgers[client / clients].clone();
        tokio::spawn(async move {
            let mut waits = Vec::new();
            while begun.elapsed().as_secs_f64() < seconds {
                let (sent, number) = (Instant::now(), ((client as u64) << 32) + waits.len() as u64);
                ensure!(ledger.accept(accept(BUSY, number)).await?.is_accepted());
                waits.push(sent.elapsed().as_secs_f64() * 1e3);
            }
            Ok(waits)
        })
    });
    let waits: Vec<Vec<f64>> = try_join_all(tasks).await?.into_iter().collect::<Result<_>>()?;
    let took = begun.elapsed().as_secs_f64();
    let (ours, servers) = used().map(|(now, server)| (now - ours, server - servers))?;
    let last = ledgers.iter().map(|ledger| ledger.read(State::sequence)).max().context("there are some")?;
    let mut waits: Vec<f64> = waits.into_iter().flatten().collect();
    waits.sort_by(f64::total_cmp);
    let part = |part: f64| waits[((waits.len() - 1) as f64 * part) as usize];
    figures.accepts_per_s.push(waits.len() as f64 / took);
    figures.records_per_s.push((last - before) as f64 / took);
    figures.p50_ms.push(part(0.5));
    figures.p99_ms.push(part(0.99));
    let accepts = waits.len() as f64;
    figures.ledger_us.push(ours / writers as f64 / accepts * 1e6);
    figures.server_us.push(servers / accepts * 1e6);
    Ok(())
}

/// A process takes updates of a busy job, a second one an update of a quiet job, and a third one decides on that.
async fn decisions(level: u32, clients: usize, series: &mut Series) -> Result<()> {
    let server = Nats::start();
    let ledgers = ledgers(&server, level, 3).await?;
    let ends = Arc::new(AtomicBool::new(false));
    let busy = (0..clients).map(|client| {
        let (ledger, ends) = (ledgers[0].clone(), ends.clone());
        tokio::spawn(async move {
            for number in 0u64.. {
                if ends.load(Ordering::Relaxed) {
                    break;
                }
                ledger.accept(accept(BUSY, ((client as u64) << 32) + number)).await?;
            }
            anyhow::Ok(())
        })
    });
    let busy: Vec<_> = busy.collect();
    let mut waits = Vec::new();
    for number in 0..DECISIONS as u64 {
        tokio::time::sleep(PAUSE).await;
        let begun = Instant::now();
        let (came, decided) = tokio::join!(ledgers[1].accept(accept(QUIET, number)), decide(&ledgers[2], number + 1));
        ensure!(matches!(came?, AcceptOutcome::Accepted(_)));
        decided?;
        waits.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    ends.store(true, Ordering::Relaxed);
    join_all(busy).await.into_iter().try_for_each(|ended| ended?)?;
    waits.sort_by(f64::total_cmp);
    series.push(waits[waits.len() / 2]);
    Ok(())
}

/// Waits for so many updates of the quiet job, and decides something about it, again and again while that is stale.
async fn decide(ledger: &Ledger, updates: u64) -> Result<()> {
    let mut changes = ledger.watch();
    loop {
        changes.mark_unchanged();
        let record = Record::JobPatched { uid: QUIET, patch: SpecPatch::default(), at_ms: 1 };
        let (received, on) = ledger.read(|state| {
            let round = state.job(QUIET).and_then(|job| job.active_round());
            (round.map_or(0, |round| round.received()), state.decided(&record))
        });
        if received < updates {
            changes.changed().await?;
            continue;
        }
        match ledger.decide(record, on).await {
            Err(LedgerError::Stale { .. }) => {}
            decided => {
                ensure!(decided? == Outcome::Done);
                return Ok(());
            }
        }
    }
}

fn accept(uid: JobUid, number: u64) -> Accept {
    Accept {
        uid,
        round: 1,
        base: None,
        client: format!("client-{number:032}").parse().expect("it is one"),
        digest: Digest::from_bytes([7; 32]),
        weight: 1.0,
        num_samples: 1,
        metrics: BTreeMap::new(),
        bytes: 4096,
        node: NodeId(1),
        incarnation: 0,
        slab: SlabId::from_u64(number),
        at_ms: 5,
    }
}
