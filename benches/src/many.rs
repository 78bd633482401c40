//! Many clients, one round: whether the thousandth update costs more than the first, in time or in memory.

use crate::chart::{Chart, Line};
use crate::model::Model;
use crate::observe::{Series, anonymous_bytes, cpu_seconds, pss_bytes};
use crate::platform::Platform;
use anyhow::{Result, bail, ensure};
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Clients, each with one update.
    #[arg(long, default_value_t = 1000)]
    pub clients: usize,
    /// Connections that they share.
    #[arg(long, default_value_t = 4)]
    pub connections: usize,
    /// Shared memory of the platform, MiB.
    #[arg(long, default_value_t = 640)]
    pub slab_mib: u64,
    /// Where to draw it.
    #[arg(long)]
    pub svg: Option<PathBuf>,
}

/// Parts that the series is cut into.
const PARTS: usize = 10;

#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    at_s: f64,
    private: u64,
    shared: u64,
    pss: u64,
    cpu_s: f64,
}

impl Sample {
    fn memory(&self) -> u64 {
        self.private + self.shared
    }
}

/// Measures and makes a Markdown table.
pub fn run(arguments: &Arguments) -> Result<String> {
    let Arguments { clients, connections, slab_mib, ref svg } = *arguments;
    ensure!(clients >= PARTS && connections > 0, "at least {PARTS} clients and one connection");
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("update.safetensors");
    let bytes = Model::Resnet18.write(&file)?;
    let update = std::fs::read(&file)?;
    let platform = Platform::start(slab_mib)?;
    let mut api = platform.connect()?;
    let spec = json!({"name": "bench", "function": "fedavg", "goal": clients, "rounds": 1,
        "limits": {"update_bytes": bytes * 2}});
    api.json("POST", "/v1/jobs", spec.to_string().as_bytes())?;
    api.json("PUT", "/v1/jobs/bench/model", &update)?;

    let (next, stop, begun) = (AtomicUsize::new(0), AtomicBool::new(false), Instant::now());
    let (accepted, samples) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let send = || -> Result<()> {
        let mut connection = platform.connect()?;
        loop {
            let client = next.fetch_add(1, Relaxed);
            if client >= clients {
                return Ok(());
            }
            let path = format!("/v1/jobs/bench/rounds/1/updates/client-{client}?weight={}", client + 1);
            loop {
                match connection.call("PUT", &path, &update)? {
                    (200 | 202, _) => break,
                    (429, _) => std::thread::sleep(Duration::from_millis(50)),
                    (status, answer) => bail!("PUT {path}: {status} {}", String::from_utf8_lossy(&answer)),
                }
            }
            accepted.lock().expect("nobody panics").push(begun.elapsed().as_secs_f64());
        }
    };
    let sample = || -> Result<Sample> {
        let pid = platform.pid();
        Ok(Sample {
            at_s: begun.elapsed().as_secs_f64(),
            private: anonymous_bytes(pid)?,
            shared: platform.slab_bytes()?,
            pss: pss_bytes(pid)?,
            cpu_s: cpu_seconds(pid)?,
        })
    };
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                if let Ok(sample) = sample() {
                    samples.lock().expect("nobody panics").push(sample);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let senders: Vec<_> = (0..connections).map(|_| scope.spawn(send)).collect();
        let sent = senders.into_iter().try_for_each(|sender| sender.join().expect("nobody panics"));
        let published = sent.and_then(|()| crate::round::until_published(&platform, 1));
        stop.store(true, Relaxed);
        published
    })?;
    let whole_s = begun.elapsed().as_secs_f64();
    let mut accepted = accepted.into_inner().expect("nobody panics");
    accepted.sort_by(f64::total_cmp);
    let parts = parts(&accepted, &samples.into_inner().expect("nobody panics"), bytes);
    if let Some(svg) = svg {
        std::fs::write(svg, chart(&parts, bytes).svg())?;
    }
    Ok(table(&parts, bytes, clients, connections, slab_mib, whole_s))
}

struct Part {
    last_client: usize,
    gb_s: f64,
    peak: Sample,
    cpu_s: f64,
}

fn parts(accepted: &[f64], samples: &[Sample], bytes: u64) -> Vec<Part> {
    let each = accepted.len() / PARTS;
    let part = |number: usize| {
        let from_s = if number == 0 { 0.0 } else { accepted[number * each - 1] };
        let to_s = accepted[(number + 1) * each - 1];
        let within: Vec<&Sample> = samples.iter().filter(|s| s.at_s >= from_s && s.at_s <= to_s).collect();
        let most = |of: fn(&Sample) -> u64| within.iter().map(|s| of(s)).max().unwrap_or(0);
        let peak = within.iter().max_by_key(|s| s.memory()).map_or(Sample::default(), |s| **s);
        let cpu_s = within.last().map_or(0.0, |s| s.cpu_s) - within.first().map_or(0.0, |s| s.cpu_s);
        let peak = Sample { pss: most(|s| s.pss), ..peak };
        let gb_s = bytes as f64 * each as f64 / 1e9 / (to_s - from_s);
        Part { last_client: (number + 1) * each, gb_s, peak, cpu_s }
    };
    (0..PARTS).map(part).collect()
}

fn table(parts: &[Part], bytes: u64, clients: usize, connections: usize, slab_mib: u64, whole_s: f64) -> String {
    let gb = bytes as f64 * clients as f64 / 1e9;
    let mut table = format!(
        "{clients} clients × {:.0} MB, one round, {connections} connections, --slab-mib {slab_mib}: {gb:.1} GB in {whole_s:.1} s \
         until the model is published, {:.2} GB/s\n\n\
         | to client | GB/s | server CPU s | private MB | shared memory MB | together MB | PSS MB |\n|---|---|---|---|---|---|---|\n",
        bytes as f64 / 1e6,
        gb / whole_s
    );
    for Part { last_client, gb_s, peak, cpu_s } in parts {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let (private, shared, both, pss) = (mb(peak.private), mb(peak.shared), mb(peak.memory()), mb(peak.pss));
        writeln!(
            table,
            "| {last_client} | {gb_s:.2} | {cpu_s:.2} | {private:.0} | {shared:.0} | {both:.0} | {pss:.0} |"
        )
        .expect("a string grows");
    }
    // The first part pays for memory that the system has never handed out.
    let warm = &parts[1..];
    let spread = |of: &dyn Fn(&Part) -> f64| warm.iter().map(of).collect::<Series>();
    let last = |of: &dyn Fn(&Part) -> f64| of(&parts[PARTS - 1]) / of(&parts[1]);
    let (rate, memory) = (|part: &Part| part.gb_s, |part: &Part| part.peak.memory() as f64 / 1e6);
    writeln!(
        table,
        "| after client {} | {} | | | | {} | |\n| **last part to second** | **{:.2}** | | | | **{:.2}** | |",
        parts[0].last_client,
        spread(&rate).show(2),
        spread(&memory).show(0),
        last(&rate),
        last(&memory),
    )
    .expect("a string grows");
    table
}

fn chart(parts: &[Part], bytes: u64) -> Chart {
    let points = |of: &dyn Fn(&Part) -> f64| parts.iter().map(|part| (part.last_client as f64, of(part))).collect();
    Chart {
        title: format!("One round of {} clients × {:.0} MB", parts[PARTS - 1].last_client, bytes as f64 / 1e6),
        panels: vec![
            Line { title: "Throughput, GB/s", unit: "GB/s", digits: 2, points: points(&|part| part.gb_s) }.into(),
            Line {
                title: "Memory of the server, private and shared, peak, MB",
                unit: "MB",
                digits: 0,
                points: points(&|part| part.peak.memory() as f64 / 1e6),
            }
            .into(),
        ],
    }
}
