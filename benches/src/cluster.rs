//! Three nodes on hosts of their own, a coordinator and NATS: what placement, locality and warm instances are worth there.
//!
//! Hosts are network namespaces on one machine (`tests/src/hosts.rs`), so bytes between nodes are counted as on wires, but
//! all nodes, all clients and NATS share the machine's cores. Ways are measured turn and turn about on one cluster.

mod drive;
mod load;
mod report;
mod stage;
mod usage;

use crate::http::Connection;
use crate::model;
use anyhow::{Context, Result, ensure};
use catchment_tests::{Cluster, NodeProcess, Setup};
use drive::{Outcome, Way, Work};
use load::Arrivals;
use report::{Case, Idle, Report};
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use usage::Usage;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// How often each load is measured in each way.
    #[arg(long, default_value_t = 3)]
    pub repeats: usize,
    /// Jobs at once.
    #[arg(long, default_value_t = 3)]
    pub jobs: usize,
    /// Rounds of each.
    #[arg(long, default_value_t = 8)]
    pub rounds: usize,
    /// Clients of each.
    #[arg(long, default_value_t = 12)]
    pub clients: usize,
    /// KiB of an update.
    #[arg(long, default_value_t = 4096)]
    pub kib: u64,
    /// Seconds in which the updates of one run come.
    #[arg(long, default_value_t = 7.0)]
    pub seconds: f64,
    /// Seconds of watching it while nothing comes.
    #[arg(long, default_value_t = 10)]
    pub idle_seconds: u64,
    /// What arrivals follow from.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where to draw it.
    #[arg(long)]
    pub svg: Option<PathBuf>,
}

/// How updates come, and what nodes' links let out, if not what they can.
const LOADS: [(&str, Arrivals, Option<&str>); 4] = [
    ("steady", Arrivals::Steady, None),
    ("burst", Arrivals::Burst, None),
    ("diurnal", Arrivals::Diurnal, None),
    ("burst, links of 1 Gbit/s", Arrivals::Burst, Some("1gbit")),
];
/// The first is what the others are held against.
const WAYS: [Way; 3] = [Way::Placed, Way::Balanced, Way::Fresh];
/// Between two runs: for what is still being copied or deleted.
const SETTLE: Duration = Duration::from_millis(700);
/// As the program has them by default.
const HEARTBEAT: Duration = Duration::from_secs(1);
const NODE_TIMEOUT: Duration = Duration::from_secs(10);

/// Measures and makes Markdown tables.
pub fn run(arguments: &Arguments) -> Result<String> {
    let Some(report) = measure(arguments)? else {
        return Ok("Three nodes on hosts of their own: skipped: needs root (network namespaces)\n".to_owned());
    };
    if let Some(svg) = &arguments.svg {
        std::fs::write(svg, report.chart().svg())?;
    }
    Ok(report.table())
}

/// `None` where hosts cannot be made; why is on standard error.
fn measure(arguments: &Arguments) -> Result<Option<Report>> {
    let Arguments { repeats, jobs, rounds, clients, seconds, seed, .. } = *arguments;
    ensure!(jobs > 0 && rounds > 0 && clients > 0 && repeats > 0, "at least one of each");
    let file = tempfile::NamedTempFile::new()?;
    model::write(vec![("w".to_owned(), vec![arguments.kib * 256])], file.path())?;
    let update = std::fs::read(file.path())?;
    let setup = Setup {
        coordinators: 1,
        heartbeat: HEARTBEAT,
        node_timeout: NODE_TIMEOUT,
        slab_mib: 768,
        failpoints: false,
        ..Setup::default()
    };
    // It goes when the thread that started it does, so it stays with this one.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let Some(mut cluster) = runtime.block_on(Cluster::start_on_hosts(setup, "cluster")) else { return Ok(None) };
    let nodes: Vec<String> = cluster.nodes.iter().map(|node| node.address().to_owned()).collect();
    until_acquainted(&nodes)?;

    let work = |name: String, way, arrivals, seed| Work {
        nodes: &nodes,
        update: &update,
        way,
        arrivals,
        name,
        jobs,
        rounds,
        clients,
        seconds,
        seed,
    };
    // Functions are compiled and memory is touched for the first time.
    for (i, way) in WAYS.into_iter().enumerate() {
        drive::run(&Work {
            rounds: rounds.min(3),
            seconds: 0.5,
            ..work(format!("warm-{i}"), way, Arrivals::Burst, seed)
        })?;
    }
    let mut cases: Vec<Case> =
        LOADS.iter().flat_map(|(load, ..)| WAYS.map(|way| Case { load, way, runs: Vec::new() })).collect();
    for repeat in 0..repeats {
        for (l, (load, arrivals, link)) in LOADS.into_iter().enumerate() {
            cluster.nodes.iter().for_each(|node| link.iter().for_each(|rate| node.host().narrow(rate)));
            for step in 0..WAYS.len() {
                let w = (step + repeat) % WAYS.len();
                std::thread::sleep(SETTLE);
                let (before, begun) = (Usage::of(&mut cluster)?, Instant::now());
                let name = format!("r{repeat}-{l}-{w}");
                let outcome = drive::run(&work(name, WAYS[w], arrivals, seed + 100 * repeat as u64))
                    .with_context(|| format!("{load}, {:?}", WAYS[w]))?;
                let used = Usage::of(&mut cluster)? - before;
                eprintln!("{load}, {:?}: {:.1} s", WAYS[w], begun.elapsed().as_secs_f64());
                cases[l * WAYS.len() + w].runs.push((outcome, used));
            }
            cluster
                .nodes
                .iter()
                .filter(|_| link.is_some())
                .map(NodeProcess::host)
                .for_each(catchment_tests::Host::heal);
        }
    }
    let idle = idle(arguments, &mut cluster, &nodes, &update)?;
    Ok(Some(Report { arguments: arguments.clone(), bytes: update.len() as u64, cases, idle }))
}

/// Waits until every node knows the others.
fn until_acquainted(nodes: &[String]) -> Result<()> {
    let begun = Instant::now();
    for node in nodes {
        let mut api = Connection::open(node)?;
        while api.json("GET", "/v1/nodes", b"")?["items"].as_array().is_none_or(|items| items.len() < nodes.len()) {
            ensure!(begun.elapsed() < drive::PATIENCE, "{node} does not hear the others");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// What it costs while jobs have an open round and nobody sends anything.
fn idle(arguments: &Arguments, cluster: &mut Cluster, nodes: &[String], update: &[u8]) -> Result<Idle> {
    let mut api = Connection::open(&nodes[0])?;
    for job in 0..arguments.jobs {
        let spec = json!({"name": format!("idle-{job}"), "function": "fedavg", "goal": arguments.clients});
        drive::until_taken(&mut api, "POST", "/v1/jobs", spec.to_string().as_bytes())?;
        drive::until_taken(&mut api, "PUT", &format!("/v1/jobs/idle-{job}/model"), update)?;
    }
    std::thread::sleep(Duration::from_secs(3));
    let before = Usage::of(cluster)?;
    std::thread::sleep(Duration::from_secs(arguments.idle_seconds));
    let used = Usage::of(cluster)? - before;
    Ok(Idle { seconds: arguments.idle_seconds as f64, used, memory_bytes: usage::memory_bytes(cluster)? })
}
