//! A cluster in a storm: three nodes, two coordinators and a NATS server, each on a host of its own, twenty clients, and a
//! saboteur who kills, stops and cuts off whatever he likes. Afterwards the job is completed, every receipt has one fate at
//! every gateway, the committed ones are exactly the contribution sets, and the models have the bits of their exact sums.
//!
//! A plain test run has fifty short storms. `CHAOS_SEEDS=500` runs as many long ones, from 0 or from `CHAOS_FROM`; one in ten
//! of those is slow, with the timeouts that are the default. `CHAOS_SEED=17` runs one storm. A failure says which it was and
//! leaves the logs under `CHAOS_KEEP`. A seed fixes what the saboteur does, not what comes of it.

mod clients;
mod saboteur;

use catchment_tests::{Cluster, ExactMean, Reference, Release, Sent, Setup, Tensor, file, target_dir, until};
use clients::Client;
use futures::{FutureExt, StreamExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use saboteur::{Saboteur, Tempo};
use serde_json::{Value, json};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Storms of a plain test run.
const SHORT_STORMS: u64 = 50;
/// Storms at a time: they wait more than they work.
const AT_A_TIME: usize = 2;
/// Fewer storms than these may all be lucky ones.
const MANY: u64 = 20;
const CLIENTS: u64 = 20;
/// Fewer than there are clients, so that some come too late in every round; odd, so that there is a middle one.
const GOAL: u64 = 11;
const EXACT: ExactMean = ExactMean { bound: 64.0, weight_max: 16.0, updates_max: 64 };
const JOB: &str = "storm";
/// Of so many storms one is an upgrade, too.
const UPGRADED: u64 = 5;
/// Rounds after the storm.
const CALM_ROUNDS: u64 = 2;
/// How long a storm may last, everything included.
const STORM_TIME_MAX: Duration = Duration::from_secs(600);

fn body(round: u64, client: u64) -> Vec<u8> {
    let value = |i: usize| ((round * 7919 + client * 104_729 + i as u64 * 31) % 9973) as f32 / 9973.0 - 0.5;
    let wide: Vec<f32> = (0..20_000).map(|i| 90.0 * value(i)).collect();
    let precise: Vec<f64> = (0..1_500).map(|i| f64::from(value(i)) / 3.0).collect();
    file(&[
        Tensor::f32("wide", &[20_000], &wide),
        Tensor::f64("precise", &[1_500], &precise),
        Tensor::f32("peak", &[50], &[value(client as usize); 50]),
        Tensor::i64("steps", &[], &[7]),
    ])
}

fn weight(round: u64, client: u64) -> f64 {
    1.0 + (round * 7 + client * 13) as f64 % 11.0
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// What a storm came to.
struct Tally {
    rounds: u64,
    lost: u64,
}

/// Mostly exact sums; now and then a function that needs every update at once.
fn work(random: &mut StdRng) -> (Reference, Value) {
    let mut spec =
        json!({"goal": GOAL, "rounds": 100_000, "checkpoints": {"keep_last": 100_000}, "on_shortfall": "retry"});
    let mut add =
        |more: Value| spec.as_object_mut().expect("an object").extend(more.as_object().cloned().expect("an object"));
    if random.random_bool(0.25) {
        add(json!({"function": "median", "deadline": null}));
        return (Reference::Median, spec);
    }
    let leaves = random.random_range(1..=3);
    if leaves > 1 {
        add(json!({"topology": {"tree": {"leaves": leaves, "middles": 0}}}));
    }
    // A deadline that passes in no storm, however far clocks jump.
    add(json!({"deadline": "300s", "min_updates": GOAL / 2, "exact": EXACT.spec(),
        "tensors": [{"match": "peak", "rule": "max"}]}));
    (Reference::Exact(EXACT), spec)
}

async fn storm(cluster: &mut Cluster, saboteur: &mut Saboteur, seed: u64) -> Tally {
    let mut random = StdRng::seed_from_u64(seed);
    let (reference, spec) = work(&mut random);
    let sent = Arc::new(Sent::new(body, weight, reference));
    let mut job = cluster.nodes[0].api().begin(JOB, spec, &body(0, 0)).await;
    if cluster.nodes[0].process.release() == Release::Old {
        // It does not take the word of a client for which job it means.
        job.created = Value::Null;
    }
    let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.address().to_owned()).collect();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(Client::new(client, seed, &addresses, &job, sent.clone()).run());
    }
    saboteur.rage(cluster).await;
    let last = calm_down(cluster, saboteur).await + CALM_ROUNDS;
    let apis = cluster.apis();
    until("the job takes its last round", async || {
        let patched = apis[0].patch(&job.path, &json!({"rounds": last})).await;
        assert!([200, 503].contains(&patched.status), "{}", patched.text());
        (patched.status == 200).then_some(())
    })
    .await;
    // Who was cut off may have taken an old round for the newest; a job that is past its last round ends with this one.
    let mut rounds = last;
    for api in &apis {
        let view = job.through(api).in_state("completed").await;
        assert_eq!(view["model_version"], view["round"]["round"], "every round has a model");
        rounds = rounds.max(view["model_version"].as_u64().expect("a version"));
    }
    let mut unsure = Vec::new();
    while let Some(client) = clients.join_next().await {
        unsure.extend(client.expect("a client"));
    }
    // What was never answered is asked for now, when nothing can be accepted any more.
    for (round, client) in unsure {
        let path = sent.path(&job, round, client);
        let answer = apis[0].call("PUT", &path, &[], Some(sent.body(round, client))).await;
        match answer.status {
            200 => sent.note(round, client, &answer.json()["receipt"]),
            status => assert_eq!(status, 410, "{}", answer.text()),
        }
    }
    let lost = sent.check(&job, &apis).await;
    cluster.holds_no_slabs().await;
    for process in cluster.processes() {
        assert!(!process.log().contains("panicked at"), "{} panicked", process.name());
    }
    let count = sent.count();
    saboteur.note(&format!("calm: {rounds} rounds, {count} receipts, {lost} of them lost"));
    Tally { rounds, lost }
}

/// Everybody is there again. Gives the round that is on.
async fn calm_down(cluster: &mut Cluster, saboteur: &mut Saboteur) -> u64 {
    saboteur.wait_for_everybody(cluster).await;
    let job = format!("/v1/jobs/{JOB}/round");
    let api = cluster.nodes[0].api();
    until("the job goes on", async || {
        let round = api.get(&job).await.expect(200).json();
        (round["job_state"] == "running").then(|| round["round"].as_u64().expect("a round"))
    })
    .await
}

/// What every gateway says of the round, for people.
async fn diagnosis(cluster: &Cluster) -> Vec<String> {
    let mut said = Vec::new();
    for (i, api) in cluster.apis().into_iter().enumerate() {
        let path = format!("/v1/jobs/{JOB}/round");
        let answer = tokio::time::timeout(Duration::from_secs(3), api.try_call("GET", &path, &[], None)).await;
        said.push(match answer {
            Ok(Ok(answer)) => format!("node-{i} says {} {}", answer.status, answer.text()),
            other => format!("node-{i} does not answer: {other:?}"),
        });
    }
    said
}

/// How fast a storm goes. `long`: not one of a plain test run.
fn tempo(seed: u64, long: bool) -> Tempo {
    match (long, seed % 10) {
        (false, _) => Tempo::SHORT,
        (true, 9) => Tempo::SLOW,
        (true, _) => Tempo::QUICK,
    }
}

async fn run(seed: u64, long: bool) -> Tally {
    let tempo = tempo(seed, long);
    let Tempo { heartbeat, node_timeout, .. } = tempo;
    // In some, two nodes stand together, so that one of them is a middle.
    let zones: &[&str] = if seed % 3 == 2 { &["north", "south", "south"] } else { &[] };
    // In some, everybody is of the old release, and is replaced while it storms.
    let release = if seed % UPGRADED == 3 { Release::Old } else { Release::Present };
    let runners = u32::from(seed % 4 == 1);
    let setup = Setup { release, heartbeat, node_timeout, runners, zones, ..Setup::default() };
    let mut cluster = match Cluster::start_on_hosts(setup.clone(), "links that are cut and spoiled").await {
        Some(cluster) => cluster,
        None => Cluster::start(setup).await,
    };
    let (mut saboteur, begun) = (Saboteur::new(seed, tempo), Instant::now());
    let storm = async {
        let limited = tokio::time::timeout(STORM_TIME_MAX, storm(&mut cluster, &mut saboteur, seed)).await;
        limited.unwrap_or_else(|_| panic!("the storm takes longer than {STORM_TIME_MAX:?}"))
    };
    let outcome = AssertUnwindSafe(storm).catch_unwind().await;
    match outcome {
        Ok(tally) => {
            eprintln!("seed {seed}: {:.0?}; {}", begun.elapsed(), saboteur.journal.join("; "));
            tally
        }
        Err(panic) => {
            let kept =
                std::env::var_os("CHAOS_KEEP").map_or_else(|| target_dir().join("chaos-failures"), PathBuf::from);
            let kept = kept.join(format!("seed-{seed}"));
            let mut said = diagnosis(&cluster).await;
            said.splice(0..0, saboteur.journal.clone());
            cluster.keep_logs(&kept);
            std::fs::write(kept.join("journal"), said.join("\n")).expect("keep the journal");
            eprintln!("--- what happened ---\n{}\n---", said.join("\n"));
            eprintln!("logs: {}", kept.display());
            let long = if long { "CHAOS_SEEDS=1 " } else { "" };
            eprintln!("replay: {long}CHAOS_SEED={seed} cargo test --release -p catchment-tests --test chaos");
            resume_unwind(panic);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_counted_twice_in_a_storm() {
    let (wanted, one, from) = (number("CHAOS_SEEDS"), number("CHAOS_SEED"), number("CHAOS_FROM"));
    let from = one.or(from).unwrap_or(0);
    let seeds = if one.is_some() { 1 } else { wanted.unwrap_or(SHORT_STORMS) };
    let storms = futures::stream::iter(from..from + seeds).map(|seed| run(seed, wanted.is_some()));
    let tallies: Vec<Tally> = storms.buffer_unordered(AT_A_TIME).collect().await;
    let lost: u64 = tallies.iter().map(|tally| tally.lost).sum();
    let rounds: u64 = tallies.iter().map(|tally| tally.rounds).sum();
    eprintln!("{seeds} storms: {rounds} rounds, {lost} updates lost and said to be");
    if seeds >= MANY {
        assert!(lost > 0, "no update was ever lost: the storms were none");
        // Short storms have few rounds but those after them.
        assert!(wanted.is_none() || rounds >= 5 * seeds, "only {rounds} rounds: the storms hit nothing");
    }
}
