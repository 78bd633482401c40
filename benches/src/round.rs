//! One round, end to end: from the moment all clients begin to send until the new model is published.

use crate::clients::{self, Clients};
use crate::model::Model;
use crate::observe::{anonymous_bytes, cpu_seconds, median};
use crate::platform::Platform;
use crate::sink::Sink;
use anyhow::{Context, Result};
use serde_json::json;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The model.
    #[arg(long, value_enum, default_value = "resnet18")]
    pub model: Model,
    /// Client processes.
    #[arg(long, default_value_t = 16)]
    pub clients: usize,
    /// Rounds; the first is cold and reported beside.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Shared memory of the platform, in updates, its accumulators not counted.
    #[arg(long, default_value_t = 16)]
    pub window: u64,
    /// A Python with `flwr` and `numpy`: measures Flower's gRPC server and NumPy's arithmetic in the same run.
    #[arg(long)]
    pub peers: Option<PathBuf>,
}

/// What users have today, and the least that arithmetic in Python costs, with the scripts that measure them.
const PEERS: [(&str, &str); 2] = [("Flower, gRPC server", "flower.py"), ("NumPy, arithmetic alone", "numpy_mean.py")];

#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    wall_s: f64,
    cpu_s: f64,
}

/// Measures and makes a Markdown table.
pub fn run(arguments: &Arguments) -> Result<String> {
    let Arguments { model, clients, rounds, window, .. } = *arguments;
    let dir = tempfile::Builder::new().prefix("catchment-bench-").tempdir_in("/dev/shm")?;
    let file = dir.path().join("update.safetensors");
    let bytes = model.write(&file)?;
    let sink = measure_sink(clients, rounds, &file)?;
    let (ours, peak_bytes) = measure_platform(arguments, bytes, &file)?;
    let total_gb = bytes as f64 * clients as f64 / 1e9;
    let of = |taken: &[Taken]| Taken {
        wall_s: median(taken[1..].iter().map(|taken| taken.wall_s)),
        cpu_s: median(taken[1..].iter().map(|taken| taken.cpu_s)),
    };
    let (warm, floor) = (of(&ours), of(&sink));
    let mut table = format!(
        "One round, {}, {clients} clients × {:.0} MB, window {window} updates, median of {} warm rounds\n\n\
         | | wall s | GB/s | server CPU s | peak memory MB |\n|---|---|---|---|---|\n",
        model.name(),
        bytes as f64 / 1e6,
        rounds - 1,
    );
    let mut row = |name: &str, taken: Taken, peak: &str| {
        let (wall, cpu) = (taken.wall_s, taken.cpu_s);
        writeln!(table, "| {name} | {wall:.3} | {:.2} | {cpu:.2} | {peak} |", total_gb / wall).expect("a string grows");
    };
    row("bare TCP sink", floor, "");
    row("Catchment, warm", warm, &format!("{:.0}", peak_bytes as f64 / 1e6));
    row("Catchment, first round", ours[0], "");
    let peers = arguments.peers.iter().flat_map(|python| PEERS.map(|peer| (python, peer)));
    for (python, (name, script)) in peers {
        let peer = measure_peer(python, script, arguments, &file)?;
        let (wall, cpu, peak) = (peer.taken.wall_s, peer.taken.cpu_s, peer.peak_bytes as f64 / 1e6);
        writeln!(table, "| {name} | {wall:.3} | {:.2} | {cpu:.2} | {peak:.0} |", total_gb / wall)?;
        writeln!(
            table,
            "| ratio, that to Catchment, warm | {:.1} | | {:.1} | {:.1} |",
            wall / warm.wall_s,
            cpu / warm.cpu_s,
            peer.peak_bytes as f64 / peak_bytes as f64
        )?;
    }
    writeln!(
        table,
        "| **ratio, warm to sink** | **{:.2}** | | **{:.2}** | {:.1} updates |",
        warm.wall_s / floor.wall_s,
        warm.cpu_s / floor.cpu_s,
        peak_bytes as f64 / bytes as f64
    )?;
    Ok(table)
}

struct Peer {
    taken: Taken,
    peak_bytes: u64,
}

fn measure_peer(python: &Path, script: &str, arguments: &Arguments, file: &Path) -> Result<Peer> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(script);
    let mut command = Command::new(python);
    command.arg(&script).arg(file).args([arguments.clients.to_string(), arguments.rounds.to_string()]);
    let output = command.stderr(Stdio::null()).output().with_context(|| format!("run {}", python.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().with_context(|| format!("{} says nothing", script.display()))?;
    let said: serde_json::Value = serde_json::from_str(line)?;
    let number = |name: &str| said[name].as_f64().with_context(|| format!("{name} in {line}"));
    let taken = Taken { wall_s: number("wall_s")?, cpu_s: number("cpu_s")? };
    Ok(Peer { taken, peak_bytes: number("peak_bytes")? as u64 })
}

fn measure_sink(count: usize, rounds: usize, file: &Path) -> Result<Vec<Taken>> {
    let sink = Sink::start(None)?;
    let mut clients = Clients::start(count, &sink.address, Some(file))?;
    let mut taken = Vec::new();
    for _ in 0..rounds {
        let (cpu, begun) = (cpu_seconds(sink.pid())?, Instant::now());
        clients.call(|_| "/".to_owned())?;
        taken.push(Taken { wall_s: begun.elapsed().as_secs_f64(), cpu_s: cpu_seconds(sink.pid())? - cpu });
    }
    Ok(taken)
}

fn measure_platform(arguments: &Arguments, bytes: u64, file: &Path) -> Result<(Vec<Taken>, u64)> {
    let Arguments { clients: count, rounds, window, .. } = *arguments;
    // The accumulator's two blocks of f64, and what finishing takes: the old and the new model.
    let slab_mib = (bytes * (window + 7)) >> 20;
    let platform = Platform::start(slab_mib)?;
    let mut api = platform.connect()?;
    let spec = json!({"name": "bench", "function": "fedavg", "goal": count, "rounds": rounds,
        "checkpoints": {"keep_last": 1}, "limits": {"update_bytes": bytes * 2}});
    api.json("POST", "/v1/jobs", spec.to_string().as_bytes())?;
    api.json("PUT", "/v1/jobs/bench/model", &std::fs::read(file)?)?;
    let mut clients = Clients::start(count, &platform.address, Some(file))?;
    assert_eq!(clients::length(file)?, bytes, "the update is whole");
    let (peak, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let taken = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let now = anonymous_bytes(platform.pid()).unwrap_or(0) + platform.slab_bytes().unwrap_or(0);
                peak.fetch_max(now, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let taken = (1..=rounds).map(|round| {
            let (cpu, begun) = (cpu_seconds(platform.pid())?, Instant::now());
            clients.call(|i| format!("/v1/jobs/bench/rounds/{round}/updates/c{i}"))?;
            until_published(&platform, round as u64)?;
            Ok(Taken { wall_s: begun.elapsed().as_secs_f64(), cpu_s: cpu_seconds(platform.pid())? - cpu })
        });
        let taken = taken.collect::<Result<Vec<_>>>();
        stop.store(true, Ordering::Relaxed);
        taken
    })?;
    Ok((taken, peak.into_inner()))
}

fn until_published(platform: &Platform, version: u64) -> Result<()> {
    let mut api = platform.connect()?;
    let mut after = 0;
    loop {
        let path = format!("/v1/jobs/bench/round?wait=30s&after={after}");
        let view = api.json("GET", &path, b"")?;
        after = view["revision"].as_u64().context("a revision")?;
        let job = api.json("GET", "/v1/jobs/bench", b"")?;
        if job["model_version"].as_u64() >= Some(version) {
            return Ok(());
        }
        anyhow::ensure!(job["state"] != "failed", "the job failed: {}", job["reason"]);
    }
}
