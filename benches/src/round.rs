//! One round, end to end: from the moment all clients begin to send until the new model is published.

use crate::clients::{self, Clients};
use crate::model::Model;
use crate::observe::{Series, anonymous_bytes, cpu_seconds};
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
    /// Flower's SuperLink too.
    #[arg(long, requires = "peers")]
    pub superlink: bool,
}

/// What users have today, and the least that arithmetic in Python costs, with the scripts that measure them. The last
/// takes minutes a round.
const PEERS: [(&str, &str); 3] = [
    ("Flower, gRPC server", "flower.py"),
    ("NumPy, arithmetic alone", "numpy_mean.py"),
    ("Flower, SuperLink", "superlink.py"),
];

#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    wall_s: f64,
    cpu_s: f64,
}

/// Who was measured.
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// Seconds of one round.
    pub wall: Series,
    /// CPU seconds of the server.
    pub cpu: Series,
    peak_bytes: Option<u64>,
}

/// What was measured.
pub struct Report {
    /// The model and how many clients.
    pub what: String,
    window: u64,
    bytes: u64,
    total_gb: f64,
    first: Taken,
    /// A bare TCP sink, Catchment, and the peers that were asked for.
    pub rows: Vec<Row>,
}

impl Report {
    /// A Markdown table.
    pub fn table(&self) -> String {
        let ours = &self.rows[1];
        let mut table = format!(
            "One round, {}, window {} updates, medians (least–most) of {} warm rounds\n\n\
             | | wall s | GB/s | server CPU s | peak memory MB |\n|---|---|---|---|---|\n",
            self.what,
            self.window,
            ours.wall.count(),
        );
        let mut line = |text: String| writeln!(table, "{text}").expect("a string grows");
        for row in &self.rows {
            let peak = row.peak_bytes.map_or(String::new(), |bytes| format!("{:.0}", bytes as f64 / 1e6));
            let rate = self.total_gb / row.wall.median();
            line(format!("| {} | {} | {rate:.2} | {} | {peak} |", row.name, row.wall.show(3), row.cpu.show(2)));
        }
        let Taken { wall_s, cpu_s } = self.first;
        line(format!("| Catchment, first round | {wall_s:.3} | {:.2} | {cpu_s:.2} | |", self.total_gb / wall_s));
        let updates = ours.peak_bytes.unwrap_or(0) as f64 / self.bytes as f64;
        let sink = &self.rows[0];
        line(format!(
            "| **ratio, Catchment to sink** | **{}** | | **{}** | {updates:.1} updates |",
            ours.wall.over(&sink.wall).show(2),
            ours.cpu.over(&sink.cpu).show(2),
        ));
        for row in &self.rows[2..] {
            let peak = row.peak_bytes.unwrap_or(0) as f64 / ours.peak_bytes.unwrap_or(0) as f64;
            let (wall, cpu) = (row.wall.median() / ours.wall.median(), row.cpu.median() / ours.cpu.median());
            line(format!("| **ratio, {} to Catchment** | **{wall:.1}** | | **{cpu:.1}** | {peak:.1} |", row.name));
        }
        table
    }
}

/// Measures: the sink and the platform turn and turn about, then the peers.
pub fn run(arguments: &Arguments) -> Result<Report> {
    let Arguments { model, clients, rounds, window, .. } = *arguments;
    let dir = tempfile::Builder::new().prefix("catchment-bench-").tempdir_in("/dev/shm")?;
    let file = dir.path().join("update.safetensors");
    let bytes = model.write(&file)?;
    let (sink, ours, peak_bytes) = measure(arguments, bytes, &file)?;
    let row = |name, taken: &[Taken], peak_bytes| Row {
        name,
        wall: taken[1..].iter().map(|taken| taken.wall_s).collect(),
        cpu: taken[1..].iter().map(|taken| taken.cpu_s).collect(),
        peak_bytes,
    };
    let mut rows = vec![row("bare TCP sink", &sink, None), row("Catchment", &ours, Some(peak_bytes))];
    let peers = if arguments.superlink { &PEERS[..] } else { &PEERS[..2] };
    for (python, (name, script)) in arguments.peers.iter().flat_map(|python| peers.iter().map(move |p| (python, *p))) {
        let peer = measure_peer(python, script, arguments, &file)?;
        let of = |value: f64| [value].into_iter().collect();
        let Taken { wall_s, cpu_s } = peer.taken;
        rows.push(Row { name, wall: of(wall_s), cpu: of(cpu_s), peak_bytes: Some(peer.peak_bytes) });
    }
    let what = format!("{}, {clients} clients × {:.0} MB", model.name(), bytes as f64 / 1e6);
    let total_gb = bytes as f64 * clients as f64 / 1e9;
    assert_eq!(ours.len(), rounds, "every round was measured");
    Ok(Report { what, window, bytes, total_gb, first: ours[0], rows })
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

/// Rounds into a sink and into the platform, in turn, and the platform's peak of memory.
fn measure(arguments: &Arguments, bytes: u64, file: &Path) -> Result<(Vec<Taken>, Vec<Taken>, u64)> {
    let Arguments { clients: count, rounds, window, .. } = *arguments;
    // The accumulator's two blocks of f64, and what finishing takes: the old and the new model.
    let slab_mib = (bytes * (window + 7)) >> 20;
    let (platform, sink) = (Platform::start(slab_mib)?, Sink::start(None)?);
    let mut api = platform.connect()?;
    let spec = json!({"name": "bench", "function": "fedavg", "goal": count, "rounds": rounds,
        "checkpoints": {"keep_last": 1}, "limits": {"update_bytes": bytes * 2}});
    api.json("POST", "/v1/jobs", spec.to_string().as_bytes())?;
    api.json("PUT", "/v1/jobs/bench/model", &std::fs::read(file)?)?;
    let mut to_sink = Clients::start(count, &sink.address, Some(file))?;
    let mut to_platform = Clients::start(count, &platform.address, Some(file))?;
    assert_eq!(clients::length(file)?, bytes, "the update is whole");
    let (peak, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (mut sunk, mut taken) = (Vec::new(), Vec::new());
    let mut all = || -> Result<()> {
        for round in 1..=rounds {
            let begun = Instant::now();
            let cpu = cpu_seconds(sink.pid())?;
            to_sink.call(|_| "/".to_owned())?;
            sunk.push(Taken { wall_s: begun.elapsed().as_secs_f64(), cpu_s: cpu_seconds(sink.pid())? - cpu });

            let (cpu, begun) = (cpu_seconds(platform.pid())?, Instant::now());
            to_platform.call(|i| format!("/v1/jobs/bench/rounds/{round}/updates/c{i}"))?;
            until_published(&platform, round as u64)?;
            taken.push(Taken { wall_s: begun.elapsed().as_secs_f64(), cpu_s: cpu_seconds(platform.pid())? - cpu });
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let now = anonymous_bytes(platform.pid()).unwrap_or(0) + platform.slab_bytes().unwrap_or(0);
                peak.fetch_max(now, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let all = all();
        stop.store(true, Ordering::Relaxed);
        all
    })?;
    Ok((sunk, taken, peak.into_inner()))
}

/// Waits for a version of the job's model.
pub fn until_published(platform: &Platform, version: u64) -> Result<()> {
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
