//! One run: several jobs at once, each round of which real clients fill over HTTP.

use super::load::Arrivals;
use super::stage::{Sent, Stage};
use super::usage::Counts;
use crate::http::Connection;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How clients find their node, and how long a job lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Where the answer to their check-in sends them.
    Placed,
    /// To the node with the fewest of their connections, as a load balancer would have it.
    Balanced,
    /// As placed; every round is a job of its own, made before it and deleted after it, so nothing of it is warm.
    Fresh,
}

/// What is to be done.
pub struct Work<'a> {
    /// `host:port` of every node's gateway.
    pub nodes: &'a [String],
    /// What every client sends.
    pub update: &'a [u8],
    /// How clients find their node.
    pub way: Way,
    /// How updates come.
    pub arrivals: Arrivals,
    /// Jobs are called after it; so many, of so many rounds, of so many clients.
    pub name: String,
    /// See `name`.
    pub jobs: usize,
    /// See `name`.
    pub rounds: usize,
    /// See `name`.
    pub clients: usize,
    /// In how many seconds all of it comes.
    pub seconds: f64,
    /// What arrivals follow from.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Of each round: seconds from its last accepted update to its model.
    pub tails_s: Vec<f64>,
    /// Seconds from the first byte of its first update to its model.
    pub wholes_s: Vec<f64>,
    /// Nodes that took updates of it.
    pub nodes: Vec<f64>,
    /// What the nodes counted.
    pub counts: Counts,
}

/// How long anybody waits for a round.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs it to its end.
pub fn run(work: &Work) -> Result<Outcome> {
    let (balancer, begun) = (Balancer::new(work.nodes.len()), Instant::now());
    let mut outcome = Outcome::default();
    std::thread::scope(|scope| {
        let one = |job| {
            let balancer = &balancer;
            scope.spawn(move || run_job(work, job, balancer, begun))
        };
        let jobs: Vec<_> = (0..work.jobs).map(one).collect();
        jobs.into_iter().try_for_each(|job| {
            let of_job = job.join().expect("no job panics")?;
            outcome.tails_s.extend(of_job.tails_s);
            outcome.wholes_s.extend(of_job.wholes_s);
            outcome.nodes.extend(of_job.nodes);
            outcome.counts += of_job.counts;
            anyhow::Ok(())
        })
    })?;
    Ok(outcome)
}

fn run_job(work: &Work, job: usize, balancer: &Balancer, begun: Instant) -> Result<Outcome> {
    let stage = Stage::default();
    let moments = work.arrivals.draw(work.seed + job as u64, work.rounds, work.clients, work.seconds);
    std::thread::scope(|scope| {
        let client = |client| {
            let (stage, moments) = (&stage, &moments);
            scope.spawn(move || Client { work, stage, balancer, client }.live(begun, moments))
        };
        let clients: Vec<_> = (0..work.clients).map(client).collect();
        let owned = own(work, job, &stage);
        stage.end();
        // Why a client failed says more than that its round did not end.
        clients.into_iter().try_for_each(|client| client.join().expect("no client panics"))?;
        owned
    })
}

/// The job's owner: makes it, watches its rounds, and takes it away.
fn own(work: &Work, job: usize, stage: &Stage) -> Result<Outcome> {
    let mut api = Connection::open(&work.nodes[job % work.nodes.len()])?;
    let mut outcome = Outcome::default();
    let lives = if work.way == Way::Fresh { work.rounds } else { 1 };
    let rounds = work.rounds / lives;
    for life in 0..lives {
        let name = format!("{}-{job}-{life}", work.name);
        let spec = json!({"name": name, "function": "fedavg", "goal": work.clients, "rounds": rounds,
            "checkpoints": {"keep_last": 1}});
        until_taken(&mut api, "POST", "/v1/jobs", spec.to_string().as_bytes())?;
        until_taken(&mut api, "PUT", &format!("/v1/jobs/{name}/model"), work.update)?;
        for round in 1..=rounds as u64 {
            watch(&mut api, &name, |view| view["round"] == round && view["state"] == "open")?;
            stage.open(life * rounds + round as usize, &name, round);
            watch(&mut api, &name, |view| view["round"].as_u64() > Some(round) || view["state"] == "committed")?;
            let published = Instant::now();
            outcome.add(&stage.all_sent(work.clients)?, published);
        }
        outcome.counts += Counts::of(&name, work.nodes)?;
        until_taken(&mut api, "DELETE", &format!("/v1/jobs/{name}"), b"")?;
    }
    Ok(outcome)
}

/// Makes a call, again and again while the log is too slow to take it.
pub fn until_taken(api: &mut Connection, method: &str, path: &str, body: &[u8]) -> Result<()> {
    let begun = Instant::now();
    loop {
        match api.call(method, path, body)? {
            (200..300, _) => return Ok(()),
            (429 | 503, _) if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(50)),
            (status, answer) => bail!("{method} {path}: {status} {}", String::from_utf8_lossy(&answer)),
        }
    }
}

/// Follows a job's rounds by long-polls.
fn watch(api: &mut Connection, job: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
    let (begun, path) = (Instant::now(), format!("/v1/jobs/{job}/round"));
    let mut view = api.json("GET", &path, b"")?;
    while !is_so(&view) {
        ensure!(begun.elapsed() < PATIENCE && view["job_state"] != "failed", "{job} does not go on: {view}");
        view = api.json("GET", &format!("{path}?wait=5s&after={}", view["revision"]), b"")?;
    }
    Ok(())
}

impl Outcome {
    fn add(&mut self, sent: &[Sent], published: Instant) {
        // A client may learn of its receipt later than others of the model.
        let since =
            |moment: Option<Instant>| moment.map_or(0.0, |at| published.saturating_duration_since(at).as_secs_f64());
        self.tails_s.push(since(sent.iter().map(|sent| sent.accepted).max()));
        self.wholes_s.push(since(sent.iter().map(|sent| sent.begun).min()));
        self.nodes.push(sent.iter().map(|sent| sent.node).collect::<BTreeSet<_>>().len() as f64);
    }
}

/// A load balancer's idea of who has how much to do.
struct Balancer {
    open: Vec<AtomicUsize>,
    next: AtomicUsize,
}

impl Balancer {
    fn new(nodes: usize) -> Self {
        Self { open: (0..nodes).map(|_| AtomicUsize::new(0)).collect(), next: AtomicUsize::new(0) }
    }

    /// The node with the fewest open requests; of equals, each in turn.
    fn least(&self) -> usize {
        let (nodes, first) = (self.open.len(), self.next.fetch_add(1, SeqCst));
        let in_turn = (0..nodes).map(|step| (first + step) % nodes);
        in_turn.min_by_key(|node| self.open[*node].load(SeqCst)).expect("there are nodes")
    }
}

/// One client of one job, and its connections.
struct Client<'a> {
    work: &'a Work<'a>,
    stage: &'a Stage,
    balancer: &'a Balancer,
    client: usize,
}

impl Client<'_> {
    /// Sends one update in each round, as soon as its moment has come and the round is open.
    fn live(&self, begun: Instant, moments: &[f64]) -> Result<()> {
        let mut connections: Vec<Connection> =
            self.work.nodes.iter().map(|node| Connection::open(node)).collect::<Result<_>>()?;
        for turn in 1..=self.work.rounds {
            let moment = Duration::from_secs_f64(moments[(turn - 1) * self.work.clients + self.client]);
            std::thread::sleep(moment.saturating_sub(begun.elapsed()));
            let Some((job, round)) = self.stage.wait(turn)? else { return Ok(()) };
            let asked = self.client % connections.len();
            let told = self.check_in(&mut connections[asked], &job, round)?;
            let node = match self.work.way {
                Way::Balanced => self.balancer.least(),
                Way::Placed | Way::Fresh => told.unwrap_or(asked),
            };
            self.balancer.open[node].fetch_add(1, SeqCst);
            let sent = self.send(&mut connections[node], &job, round, node);
            self.balancer.open[node].fetch_sub(1, SeqCst);
            self.stage.sent(sent?);
        }
        Ok(())
    }

    /// Asks for this round's task; the node that the answer names, if it names one.
    fn check_in(&self, at: &mut Connection, job: &str, round: u64) -> Result<Option<usize>> {
        let begun = Instant::now();
        let body = json!({"job": job}).to_string();
        loop {
            let (status, answer) =
                at.call("POST", &format!("/v1/clients/c{}/checkin", self.client), body.as_bytes())?;
            let task: Value = serde_json::from_slice(&answer)?;
            if status == 200 && task["task"] == "train" && task["round"] == round {
                let Some(gateway) = task["gateway"].as_str() else { return Ok(None) };
                let is_meant = |node: &String| gateway.strip_prefix("http://") == Some(node);
                return self.work.nodes.iter().position(is_meant).map(Some).context("a gateway of this cluster");
            }
            // A node may hear of a new job or round a moment later than another.
            ensure!(begun.elapsed() < PATIENCE, "no task in round {round} of {job}: {status} {task}");
            std::thread::sleep(Duration::from_millis(task["retry_after_ms"].as_u64().unwrap_or(5).min(50)));
        }
    }

    fn send(&self, to: &mut Connection, job: &str, round: u64, node: usize) -> Result<Sent> {
        let (path, begun) = (format!("/v1/jobs/{job}/rounds/{round}/updates/c{}", self.client), Instant::now());
        until_taken(to, "PUT", &path, self.work.update)?;
        Ok(Sent { begun, accepted: Instant::now(), node })
    }
}
