//! Clients that wait: what each costs the server while nothing happens, and how soon the last of them knows.
//!
//! They wait as clients do (docs/clients.md): each has a keep-alive connection of its own and a long-poll on its job's
//! round. The update that closes the round wakes them all.

use crate::observe::{Series, cpu_seconds, pss_bytes};
use crate::platform::Platform;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// What to measure.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Arguments {
    /// Clients, each with a connection of its own.
    #[arg(long, default_value_t = 10_000)]
    pub clients: usize,
    /// How long the server is watched while they wait. A call waits for a minute at most.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=30))]
    pub seconds: u64,
    /// How often, each time with a new server.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
}

/// What the waiting process is told.
#[derive(Debug, clap::Args)]
pub struct ChildArguments {
    /// The server, `host:port`.
    #[arg(long)]
    address: String,
    /// How many.
    #[arg(long)]
    clients: usize,
    /// The revision that they know.
    #[arg(long)]
    after: u64,
}

/// Connections opened at one time: no more than a server's queue of new ones holds.
const AT_ONCE: usize = 256;
/// How long a server is left alone before it is looked at.
const SETTLE: Duration = Duration::from_secs(3);

/// Measures and makes a Markdown table.
pub fn run(arguments: &Arguments) -> Result<String> {
    let Arguments { clients, seconds, rounds } = *arguments;
    let (mut bytes, mut cpu, mut idle, mut woken, mut woken_cpu) =
        (Series::default(), Series::default(), Series::default(), Series::default(), Series::default());
    for _ in 0..rounds {
        let platform = Platform::start(64)?;
        let mut api = platform.connect()?;
        let header = r#"{"w":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}"#;
        let model = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4000]].concat();
        let spec = json!({"name": "bench", "function": "fedavg", "goal": 1, "rounds": 1});
        api.json("POST", "/v1/jobs", spec.to_string().as_bytes())?;
        api.json("PUT", "/v1/jobs/bench/model", &model)?;
        let after = open_round(&mut api)?;
        std::thread::sleep(SETTLE);
        let before = pss_bytes(platform.pid())?;
        let used = cpu_seconds(platform.pid())?;
        std::thread::sleep(SETTLE);
        idle.push((cpu_seconds(platform.pid())? - used) / SETTLE.as_secs_f64());

        let mut crowd = Crowd::gather(&platform.address, clients, after)?;
        std::thread::sleep(SETTLE);
        let used = cpu_seconds(platform.pid())?;
        std::thread::sleep(Duration::from_secs(seconds));
        cpu.push((cpu_seconds(platform.pid())? - used) / seconds as f64);
        bytes.push(pss_bytes(platform.pid())?.saturating_sub(before) as f64 / clients as f64);

        let used = cpu_seconds(platform.pid())?;
        let (status, answer) = api.call("PUT", "/v1/jobs/bench/rounds/1/updates/one", &model)?;
        ensure!(status == 202, "{status} {}", String::from_utf8_lossy(&answer));
        let event = api.last_byte.context("it was sent")?;
        crowd.hear("answered")?;
        woken.push(event.elapsed().as_secs_f64());
        woken_cpu.push(cpu_seconds(platform.pid())? - used);
        crowd.hear("checked")?;
    }
    let percent = |series: &Series| series.map(|share| share * 100.0).show(2);
    Ok(format!(
        "{clients} clients that wait for a round, each with a connection of its own, medians (least–most) of {rounds} \
         servers\n\n\
         | memory of the server, kB a client | CPU while they wait, % of one core, {seconds} s | the same without them | \
         from the update that wakes them until the last is answered, s | CPU of that, s |\n|---|---|---|---|---|\n\
         | {} | {} | {} | {} | {} |\n",
        bytes.map(|bytes| bytes / 1e3).show(1),
        percent(&cpu),
        percent(&idle),
        woken.show(2),
        woken_cpu.show(2),
    ))
}

/// The revision of the job once its round is open.
fn open_round(api: &mut crate::http::Connection) -> Result<u64> {
    let mut view = api.json("GET", "/v1/jobs/bench/round", b"")?;
    while view["state"] != "open" {
        view = api.json("GET", &format!("/v1/jobs/bench/round?wait=5s&after={}", view["revision"]), b"")?;
    }
    view["revision"].as_u64().context("a revision")
}

/// The process in which they wait.
struct Crowd {
    child: Child,
    says: BufReader<ChildStdout>,
}

impl Crowd {
    fn gather(address: &str, clients: usize, after: u64) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["waiters", "--address", address, "--clients", &clients.to_string()]);
        command.args(["--after", &after.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start those who wait")?;
        let says = BufReader::new(child.stdout.take().context("piped")?);
        let mut crowd = Self { child, says };
        crowd.hear("waiting")?;
        Ok(crowd)
    }

    fn hear(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        ensure!(line.trim() == word, "those who wait say `{}` and not `{word}`", line.trim());
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The waiting process: makes a call on every connection, then asks on every one, says so, and reads one answer after the
/// other. What comes to one connection meanwhile waits in the kernel, so the last answer is read when the last has come.
pub fn child(arguments: &ChildArguments) -> Result<()> {
    let ChildArguments { address, clients, after } = arguments;
    raise_descriptor_limit(*clients)?;
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n");
    let mut streams = Vec::with_capacity(*clients);
    while streams.len() < *clients {
        let first = streams.len();
        for _ in 0..AT_ONCE.min(clients - first) {
            let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
            stream.write_all(request("/healthz").as_bytes())?;
            streams.push(stream);
        }
        streams[first..].iter().try_for_each(|stream| answer(stream).map(drop))?;
    }
    let ask = request(&format!("/v1/jobs/bench/round?wait=60s&after={after}"));
    streams.iter_mut().try_for_each(|stream| stream.write_all(ask.as_bytes()))?;
    say("waiting")?;
    let answers: Vec<Vec<u8>> = streams.iter().map(answer).collect::<Result<_>>()?;
    say("answered")?;
    for body in answers {
        let view: Value = serde_json::from_slice(&body)?;
        ensure!(view["revision"].as_u64() > Some(*after), "answered before anything happened: {view}");
    }
    say("checked")
}

fn say(word: &str) -> Result<()> {
    println!("{word}");
    Ok(std::io::stdout().flush()?)
}

/// The body of an answer.
fn answer(mut stream: &TcpStream) -> Result<Vec<u8>> {
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let taken = stream.read(&mut buffer)?;
        ensure!(taken > 0, "the server hung up: {}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&buffer[..taken]);
        let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")).context("a length")?;
        if !head.starts_with("http/1.1 200") {
            bail!("{head}");
        }
        if read.len() >= end + 4 + length.trim().parse::<usize>()? {
            return Ok(read.split_off(end + 4));
        }
    }
}

fn raise_descriptor_limit(clients: usize) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    ensure!(maximum.is_none_or(|most| most > clients as u64 + 64), "{clients} connections: raise `ulimit -Hn`");
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}
