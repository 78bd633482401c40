//! `make demo`: ten real clients, one server, one model that gets better while you watch.

mod chart;
mod cluster;
mod http;
mod platform;
mod programs;
mod routing;

use crate::workspace::target_dir;
use anyhow::{Context, Result, bail, ensure};
use http::Server;
use indicatif::{ProgressBar, ProgressStyle};
use platform::Platform;
use programs::{Program, json_of, release_binary};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What the demo trains.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The event bus: embedded, or a NATS server that the demo starts.
    #[arg(long, default_value = "embedded", value_parser = ["embedded", "nats"])]
    bus: String,
    /// Number of clients, each a process of its own.
    #[arg(long, default_value_t = 10)]
    clients: usize,
    /// Rounds of federated averaging.
    #[arg(long, default_value_t = 20)]
    rounds: u64,
    /// The network: mlp or cnn.
    #[arg(long, default_value = "mlp", value_parser = ["mlp", "cnn"])]
    model: String,
    /// Nodes of a cluster, with two coordinators on NATS; 0 for everything in one process. A node and a coordinator die
    /// while rounds go on.
    #[arg(long, default_value_t = 0, conflicts_with_all = ["bus", "runners"])]
    nodes: usize,
    /// Runner processes; with them the routing map is shown, and changed while rounds go on.
    #[arg(long, default_value_t = 0)]
    runners: u32,
    /// Seed of everything random.
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

/// Accuracy on held-out digits that federated training must end at.
const ACCURACY_WANTED: f64 = 0.94;
/// Federated training must beat the mean client that trains alone by at least this much.
const MARGIN_WANTED: f64 = 0.05;
/// How long all rounds may take together.
const TIME_MAX: Duration = Duration::from_secs(300);
const EPOCHS: u64 = 3;
const JOB: &str = "digits";

/// Runs the demo and checks what it shows.
pub fn run(arguments: &Arguments) -> Result<()> {
    let dir = target_dir().join("demo");
    std::fs::remove_dir_all(&dir).ok();
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let mut platform = match arguments.nodes {
        0 => Platform::one(&dir, arguments.bus == "nats", arguments.runners)?,
        nodes => Platform::cluster(&dir, nodes)?,
    };
    let urls: Vec<String> = platform.urls().into_iter().map(str::to_owned).collect();
    let server = Server::new(&urls[0])?;
    let bus = if arguments.nodes > 0 { "nats" } else { &arguments.bus };
    println!("catchment is up at {} (event bus: {bus}); logs in {}", urls.join(", "), dir.display());

    create_job(&server, arguments, &dir)?;
    let workers = (0..arguments.clients)
        .map(|index| start_worker(&urls[index % urls.len()], arguments, index, &dir))
        .collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    let accuracies = watch(&server, &mut platform, arguments, &workers, &dir)?;
    let seconds = begun.elapsed().as_secs_f64();
    for worker in workers {
        worker.wait(Duration::from_secs(30))?;
    }
    let usage = platform.usage()?;
    let metrics = urls.iter().map(|url| Server::new(url)?.text("/metrics")).collect::<Result<Vec<_>>>()?.join("\n");
    platform.stop()?;

    let (local, pooled) = baselines(arguments)?;
    let federated = accuracies.last().map(|(_, accuracy)| *accuracy).unwrap_or_default();
    let report = Report { federated, local: &local, pooled, seconds, usage, metrics: &metrics, arguments };
    report.print();
    let picture = dir.join("accuracy.svg");
    let means = [
        ("best client alone", number(&local, "best_accuracy")),
        ("mean client alone", number(&local, "mean_accuracy")),
        ("all data in one place", pooled),
    ];
    std::fs::write(&picture, chart::accuracy(&accuracies, &means)).context("write the picture")?;
    println!("\naccuracy over rounds: {}", picture.display());
    report.check()
}

fn create_job(server: &Server, arguments: &Arguments, dir: &Path) -> Result<()> {
    let spec = json!({
        "name": JOB,
        "function": "fedavg",
        "rounds": arguments.rounds,
        "goal": arguments.clients,
        "over_provision": 1.0,
        "client_config": { "model": arguments.model, "local_epochs": EPOCHS },
    });
    server.send("POST", "/v1/jobs", spec.to_string().as_bytes()).context("create the job")?;
    let initial = dir.join("initial.safetensors");
    let file = initial.display().to_string();
    json_of(
        &release_binary("catchment-worker")?,
        &["init", "--model", &arguments.model, "--seed", &arguments.seed.to_string(), "--out", &file],
    )?;
    let model = std::fs::read(&initial).context("read the initial model")?;
    server.send("PUT", &format!("/v1/jobs/{JOB}/model"), &model).context("put the initial model")?;
    Ok(())
}

fn start_worker(url: &str, arguments: &Arguments, index: usize, dir: &Path) -> Result<Program> {
    let numbers = [index.to_string(), arguments.clients.to_string(), arguments.seed.to_string()];
    let command = [
        "--output",
        "json",
        "train",
        "--url",
        url,
        "--job",
        JOB,
        "--index",
        &numbers[0],
        "--clients",
        &numbers[1],
        "--seed",
        &numbers[2],
    ];
    Program::start(&format!("worker-{index}"), &release_binary("catchment-worker")?, command.map(str::to_owned), dir)
}

/// Follows the job to its end; measures every new model on the held-out digits.
fn watch(
    server: &Server,
    platform: &mut Platform,
    arguments: &Arguments,
    workers: &[Program],
    dir: &Path,
) -> Result<Vec<(u64, f64)>> {
    let bar = ProgressBar::new(arguments.rounds);
    bar.set_style(ProgressStyle::with_template("round {pos:>3} of {len} {bar:40} {elapsed:>4}  {msg}")?);
    let mut accuracies = Vec::new();
    let mut routing = routing::Routing::new();
    let mut trouble = cluster::Trouble::new(arguments.rounds);
    let begun = Instant::now();
    loop {
        let round = server.json(&format!("/v1/jobs/{JOB}/round")).context("look at the round")?;
        if arguments.runners > 0 {
            routing.look(server, &round, &bar)?;
        }
        if arguments.nodes > 0 {
            trouble.look(platform, server, &round, &bar)?;
        }
        let versions = server.json(&format!("/v1/jobs/{JOB}"))?["model_version"].as_u64().unwrap_or_default();
        for version in accuracies.len() as u64..=versions {
            accuracies.push((version, measure(server, version, arguments.seed, dir)?));
        }
        let newest = accuracies.last().map_or(0.0, |(_, accuracy)| *accuracy);
        bar.set_position(versions);
        bar.set_message(format!("accuracy {newest:.4}, updates {} of {}", round["received"], round["goal"]));
        match round["job_state"].as_str() {
            Some("completed") if versions >= arguments.rounds => break,
            Some("failed" | "stopped") => bail!("the job ended as {}", round["job_state"]),
            _ => {}
        }
        if let Some(worker) = workers.iter().find(|worker| worker.has_failed()) {
            bail!("{} ended before the job; its log is {}", worker.name(), worker.log().display());
        }
        ensure!(begun.elapsed() < TIME_MAX, "the job is not done after {} s", TIME_MAX.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
    bar.finish();
    if bar.is_hidden() {
        for (version, accuracy) in &accuracies {
            println!("model {version:>2}: accuracy {accuracy:.4}");
        }
    }
    Ok(accuracies)
}

fn measure(server: &Server, version: u64, seed: u64, dir: &Path) -> Result<f64> {
    let file: PathBuf = dir.join("model.safetensors");
    let model = server.bytes(&format!("/v1/jobs/{JOB}/model?version={version}")).context("fetch a model")?;
    std::fs::write(&file, model).context("write a model")?;
    let file = file.display().to_string();
    let facts = json_of(
        &release_binary("catchment-worker")?,
        &["evaluate", "--model-file", &file, "--seed", &seed.to_string()],
    )?;
    Ok(number(&facts, "accuracy"))
}

/// The same training without federation: every client alone, and one model on all data.
fn baselines(arguments: &Arguments) -> Result<(Value, f64)> {
    println!("\nfor comparison, the same epochs without federation …");
    let worker = release_binary("catchment-worker")?;
    let [clients, rounds, epochs, seed] =
        [arguments.clients as u64, arguments.rounds, EPOCHS, arguments.seed].map(|value| value.to_string());
    let common = ["--model", &arguments.model, "--rounds", &rounds, "--local-epochs", &epochs, "--seed", &seed];
    let (local, pooled) = std::thread::scope(|scope| {
        let local =
            scope.spawn(|| json_of(&worker, &[&["baseline", "local", "--clients", &clients], &common[..]].concat()));
        let pooled = json_of(&worker, &[&["baseline", "pooled"], &common[..]].concat());
        (local.join().expect("it does not panic"), pooled)
    });
    Ok((local?, number(&pooled?["holdout"], "accuracy")))
}

fn number(value: &Value, field: &str) -> f64 {
    value[field].as_f64().unwrap_or(f64::NAN)
}

struct Report<'a> {
    federated: f64,
    local: &'a Value,
    pooled: f64,
    seconds: f64,
    usage: programs::Usage,
    metrics: &'a str,
    arguments: &'a Arguments,
}

impl Report<'_> {
    fn print(&self) {
        let sum = |name: &str| http::metric_sum(self.metrics, name);
        let rows = [
            ("rounds", format!("{} of {} clients", self.arguments.rounds, self.arguments.clients)),
            ("accuracy, federated", format!("{:.4}", self.federated)),
            ("accuracy, best client alone", format!("{:.4}", number(self.local, "best_accuracy"))),
            ("accuracy, mean client alone", format!("{:.4}", number(self.local, "mean_accuracy"))),
            ("accuracy, all data in one place", format!("{:.4}", self.pooled)),
            ("time, all rounds", format!("{:.1} s", self.seconds)),
            (
                "update bytes in",
                format!(
                    "{:.2} MB in {} updates",
                    sum("catchment_update_bytes_total") / 1e6,
                    sum("catchment_updates_received_total")
                ),
            ),
            ("CPU of the aggregation side", format!("{:.2} s", self.usage.cpu_seconds)),
            ("cold starts", format!("{}", sum("catchment_cold_starts_total"))),
            ("peak memory of the aggregation side", format!("{:.1} MB", self.usage.peak_bytes as f64 / 1e6)),
        ];
        println!();
        let routed = ("descriptors to runners", format!("{}", sum("catchment_descriptors_routed_total")));
        for (name, value) in rows.into_iter().chain((self.arguments.runners > 0).then_some(routed)) {
            println!("  {name:<38}{value}");
        }
    }

    fn check(&self) -> Result<()> {
        let mean = number(self.local, "mean_accuracy");
        ensure!(
            self.federated >= ACCURACY_WANTED,
            "federated accuracy {:.4} is under {ACCURACY_WANTED}",
            self.federated
        );
        ensure!(
            self.federated >= mean + MARGIN_WANTED,
            "federated accuracy {:.4} does not clearly beat the mean client alone ({mean:.4})",
            self.federated
        );
        Ok(())
    }
}
