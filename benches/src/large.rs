//! A model with a tensor of more than 4 GiB, for real: up, folded twice, committed, down again, every number checked.
//!
//! Nothing in the platform may count bytes in 32 bits; with smaller models that would never show. It takes memory and
//! disk that few machines have to spare, so it is asked for by itself, and says at once what is missing.

use crate::http::Connection;
use crate::observe::{cpu_seconds, free_bytes};
use crate::platform::Platform;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What to try.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Arguments {
    /// MiB of the large tensor.
    #[arg(long, default_value_t = 4160)]
    pub mib: u64,
}

/// Numbers of the tensors before and behind the large one; no whole block of anything.
const SMALL: u64 = 1001;
/// What each update's numbers are multiplied by: their mean is by two.
const FACTORS: [f64; 2] = [1.0, 3.0];
const MEAN: f64 = 2.0;
/// Numbers that are made or checked at one time.
const CHUNK: usize = 1 << 17;
/// Left to others, of memory and of disk.
const SPARE_BYTES: u64 = 2 << 30;
/// The longest that 99 of 100 updates of a small job may take meanwhile, and how long its client waits between two.
const ACCEPT_TIME_MAX: Duration = Duration::from_millis(50);
const BETWEEN: Duration = Duration::from_millis(5);
/// How long a round of it may take.
const PATIENCE: Duration = Duration::from_secs(900);

/// Its tensors, in the order of the file.
struct Plan {
    /// Names and numbers.
    tensors: [(&'static str, u64); 3],
}

impl Plan {
    fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, elements)| elements * 8).sum()
    }

    /// Everything before the numbers.
    fn head(&self) -> Vec<u8> {
        let (mut header, mut at) = (serde_json::Map::new(), 0);
        for (name, elements) in self.tensors {
            let end = at + elements * 8;
            header.insert(name.to_owned(), json!({"dtype": "F64", "shape": [elements], "data_offsets": [at, end]}));
            at = end;
        }
        let mut text = Value::Object(header).to_string();
        text.extend(std::iter::repeat_n(' ', (8 - text.len() % 8) % 8));
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    /// The first number of a tensor, counted through all of them.
    fn base(&self, name: &str) -> Result<u64> {
        let place = self.tensors.iter().position(|(other, _)| *other == name).context("a tensor of this model")?;
        Ok(self.tensors[..place].iter().map(|(_, elements)| elements).sum())
    }
}

/// A number that differs from those 4 GiB away, and stays whole when it is multiplied.
fn number(i: u64) -> f64 {
    let mixed = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24;
    mixed as f64 - (1u64 << 39) as f64
}

/// Measures and makes a Markdown table; fails on any number that is not the mean.
pub fn run(arguments: &Arguments) -> Result<String> {
    let plan = Plan { tensors: [("a", SMALL), ("b", arguments.mib << 17), ("c", SMALL)] };
    let bytes = plan.bytes();
    let (data, free) = (tempfile::tempdir()?, free_bytes()?);
    // Two blocks of accumulator, an update, and the model that is made.
    let memory = 4 * bytes + SPARE_BYTES;
    ensure!(memory <= free, "{} MB of memory are needed, and {} MB are free", memory >> 20, free >> 20);
    let disk = rustix::fs::statvfs(data.path())?;
    let (disk, wanted) = (disk.f_bavail * disk.f_frsize, 3 * bytes + SPARE_BYTES);
    ensure!(wanted <= disk, "{} MB of disk are needed, and {} MB are free", wanted >> 20, disk >> 20);
    drop(data);

    // What a node keeps free for finishing is never all used here.
    let platform = Platform::start(((5 * bytes) >> 20) + 256)?;
    let mut table = format!(
        "A model of {:.2} GB, one tensor of it {:.2} GB, {} updates\n\n| | s | GB/s | server CPU s |\n|---|---|---|---|\n",
        bytes as f64 / 1e9,
        (plan.tensors[1].1 * 8) as f64 / 1e9,
        FACTORS.len()
    );
    let mut row = |what: &str, run: &mut dyn FnMut() -> Result<()>| {
        let (begun, before) = (Instant::now(), cpu_seconds(platform.pid())?);
        run().with_context(|| what.to_owned())?;
        let (taken, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds(platform.pid())? - before);
        eprintln!("{what}: {taken:.1} s");
        writeln!(table, "| {what} | {taken:.1} | {:.2} | {cpu:.1} |", bytes as f64 / 1e9 / taken)?;
        anyhow::Ok(())
    };
    let mut api = platform.connect()?;
    let beside = Beside::start(&platform)?;
    let spec = json!({"name": "large", "function": "fedavg", "goal": FACTORS.len(), "rounds": 1});
    api.json("POST", "/v1/jobs", spec.to_string().as_bytes())?;
    row("initial model", &mut || upload(&mut api, "/v1/jobs/large/model", &plan, 0.0))?;
    for (client, factor) in FACTORS.into_iter().enumerate() {
        let path = format!("/v1/jobs/large/rounds/1/updates/client-{client}?weight=1");
        beside.counts.store(true, Relaxed);
        row(&format!("update {}", client + 1), &mut || upload(&mut api, &path, &plan, factor))?;
        beside.counts.store(false, Relaxed);
    }
    let (count, p99, longest) = beside.end()?;
    row("until the model is published", &mut || published(&mut api))?;
    row("download, every number checked", &mut || download(&platform, &plan))?;
    row("ranges around 4 GiB and at the end", &mut || ranges(&platform, &plan))?;
    writeln!(table, "\n{} MB of shared memory were held at the end.", platform.slab_bytes()? >> 20)?;
    writeln!(
        table,
        "\nMeanwhile a job of 4 kB updates had {count} accepted: p99 {:.1} ms, the longest {:.1} ms.",
        p99.as_secs_f64() * 1e3,
        longest.as_secs_f64() * 1e3
    )?;
    ensure!(
        p99 < ACCEPT_TIME_MAX,
        "an update of the small job took {p99:?} (p99): it waits for the large one's memory"
    );
    Ok(table)
}

/// A small job beside the large one: its updates take no notice of the gigabytes that are made for the other.
struct Beside {
    /// Whether what is taken now counts.
    counts: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Duration>>>,
}

impl Beside {
    fn start(platform: &Platform) -> Result<Self> {
        let plan = Plan { tensors: [("a", 500), ("b", 1), ("c", 1)] };
        let mut api = platform.connect()?;
        let spec = json!({"name": "small", "function": "fedavg", "goal": 1_000_000, "deadline": null});
        api.json("POST", "/v1/jobs", spec.to_string().as_bytes())?;
        upload(&mut api, "/v1/jobs/small/model", &plan, 0.0)?;
        let (counts, ends) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (counted, ended) = (counts.clone(), ends.clone());
        let thread = std::thread::spawn(move || {
            let mut taken = Vec::new();
            for client in 0.. {
                if ended.load(Relaxed) {
                    break;
                }
                let begun = Instant::now();
                upload(&mut api, &format!("/v1/jobs/small/rounds/1/updates/client-{client}"), &plan, 1.0)?;
                if counted.load(Relaxed) {
                    taken.push(begun.elapsed());
                }
                std::thread::sleep(BETWEEN);
            }
            Ok(taken)
        });
        Ok(Self { counts, ends, thread })
    }

    /// How many were taken, how long 99 of 100 took at most, and the longest.
    fn end(self) -> Result<(usize, Duration, Duration)> {
        self.ends.store(true, Relaxed);
        let joined = self.thread.join().map_err(|_| anyhow::anyhow!("the small job's thread panicked"))?;
        let mut taken = joined.context("the small job")?;
        taken.sort_unstable();
        let longest = *taken.last().context("updates of the small job")?;
        Ok((taken.len(), taken[(taken.len() * 99 / 100).min(taken.len() - 1)], longest))
    }
}

fn upload(api: &mut Connection, path: &str, plan: &Plan, factor: f64) -> Result<()> {
    let head = plan.head();
    let (status, answer) = api.send("PUT", path, head.len() as u64 + plan.bytes(), |to| {
        to.write_all(&head)?;
        let (mut at, end) = (0, plan.bytes() / 8);
        let mut chunk = Vec::with_capacity(CHUNK * 8);
        while at < end {
            let next = (at + CHUNK as u64).min(end);
            chunk.clear();
            chunk.extend((at..next).flat_map(|i| (factor * number(i)).to_le_bytes()));
            to.write_all(&chunk)?;
            at = next;
        }
        Ok(())
    })?;
    ensure!((200..300).contains(&status), "{path}: {status} {}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn published(api: &mut Connection) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let job = api.json("GET", "/v1/jobs/large", b"")?;
        ensure!(job["state"] != "failed", "the job failed: {}", job["reason"]);
        if job["model_version"] == 1 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("the round is not committed within {} s", PATIENCE.as_secs())
}

/// The model's bytes in order, each number compared with the mean.
fn download(platform: &Platform, plan: &Plan) -> Result<()> {
    let mut api = platform.connect()?;
    let (status, length, mut body) = api.get("/v1/jobs/large/model?version=1", None)?;
    ensure!(status == 200, "status {status}");
    let (data, head) = tensors(&mut body, plan)?;
    ensure!(length == head + plan.bytes(), "{length} bytes, {head} of them the head");
    let mut chunk = vec![0; CHUNK * 8];
    for (base, elements) in data {
        let mut done = 0;
        while done < elements {
            let count = (elements - done).min(CHUNK as u64);
            let chunk = &mut chunk[..count as usize * 8];
            body.read_exact(chunk)?;
            check(chunk, base + done)?;
            done += count;
        }
    }
    Ok(())
}

/// Each tensor in the order of the file, as its first number and how many there are; and the bytes before them.
fn tensors(body: &mut impl Read, plan: &Plan) -> Result<(Vec<(u64, u64)>, u64)> {
    let mut length = [0; 8];
    body.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    ensure!(length < 1 << 20, "a head of {length} bytes");
    let mut text = vec![0; length as usize];
    body.read_exact(&mut text)?;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&text)?;
    let mut found = Vec::new();
    for (name, tensor) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let offset = |at: usize| tensor["data_offsets"][at].as_u64().context("an offset");
        found.push((offset(0)?, plan.base(name)?, (offset(1)? - offset(0)?) / 8));
    }
    found.sort_unstable();
    Ok((found.into_iter().map(|(_, base, elements)| (base, elements)).collect(), 8 + length))
}

fn check(chunk: &[u8], first: u64) -> Result<()> {
    for (i, bytes) in (first..).zip(chunk.as_chunks::<8>().0) {
        let (found, expected) = (f64::from_le_bytes(*bytes), MEAN * number(i));
        ensure!(found.to_bits() == expected.to_bits(), "number {i} is {found}, not {expected}");
    }
    Ok(())
}

/// Asks for stretches of the file, of which the first lies across 4 GiB.
fn ranges(platform: &Platform, plan: &Plan) -> Result<()> {
    let mut api = platform.connect()?;
    let mut whole = platform.connect()?;
    let (_, length, mut body) = whole.get("/v1/jobs/large/model?version=1", None)?;
    let (data, head) = tensors(&mut body, plan)?;
    drop(body);
    ensure!(data.is_sorted(), "tensors keep their order");
    let middle = (head + (4u64 << 30)).min(length / 16 * 8 + head);
    for first in [head, middle - 4096, length - 8192] {
        let first = head + (first - head) / 8 * 8;
        let range = format!("bytes={first}-{}", first + 8191);
        let (status, length, mut body) = api.get("/v1/jobs/large/model?version=1", Some(&range))?;
        ensure!((status, length) == (206, 8192), "{range}: {status}, {length} bytes");
        let mut chunk = [0; 8192];
        body.read_exact(&mut chunk)?;
        check(&chunk, (first - head) / 8).with_context(|| range.clone())?;
    }
    Ok(())
}
