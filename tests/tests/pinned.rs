//! Jobs are pinned to their function's bytes: whatever comes under that name later, on this node or another, a job goes on
//! with what it was created with, or says what is lacking.

use catchment_tests::{
    Bus, Cluster, Job, Release, Server, Setup, Tensor, file, functions_dir, on_both_buses, read, run, until,
};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;

/// Of three updates: their mean, and their median.
const VALUES: [f32; 3] = [1.0, 2.0, 9.0];
const MEAN: f64 = 4.0;
const MEDIAN: f64 = 2.0;

fn built(name: &str) -> Vec<u8> {
    let folder = functions_dir().expect("functions are built: `cargo run --release -p xtask -- functions`");
    std::fs::read(folder.join(format!("{name}.wasm"))).expect("read a function")
}

/// The same function in other bytes: with a custom section, which says nothing to an engine.
fn noted(mut wasm: Vec<u8>) -> Vec<u8> {
    wasm.extend([0, 5, 4, b'n', b'o', b't', b'e']);
    wasm
}

/// A folder with one function.
fn folder(name: &str, wasm: &[u8]) -> TempDir {
    let folder = TempDir::new().expect("make a folder");
    std::fs::write(folder.path().join(format!("{name}.wasm")), wasm).expect("write a function");
    folder
}

fn digest(wasm: &[u8]) -> String {
    blake3::hash(wasm).to_string()
}

fn pinned(wasm: &[u8]) -> Value {
    format!("calm@{}", digest(wasm)).into()
}

fn update(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[1000], &[value; 1000])])
}

fn spec() -> Value {
    json!({"function": "calm", "goal": 3, "rounds": 2, "over_provision": 1.0, "deadline": null})
}

/// Sends updates `from` to the last of a round.
async fn send(job: &Job, round: u64, from: usize) -> Vec<Value> {
    job.open_round(round).await;
    let mut receipts = Vec::new();
    for (client, value) in VALUES.iter().enumerate().skip(from) {
        receipts.push(job.accepted(round, &format!("c{client}"), "", &update(*value)).await);
    }
    receipts
}

async fn made(job: &Job, version: u64) -> f64 {
    job.published(version).await;
    read(&job.model(version).await)["w"][999]
}

/// Modules that a data directory has.
fn kept(data: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(data.join("modules"))
        .expect("a folder of modules")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names
}

/// A server whose function `calm` is what the folder has.
async fn start(bus: Bus, functions: &TempDir) -> Server {
    Server::start_with(bus, &[("--functions", &functions.path().display().to_string())]).await
}

async fn start_again_with(server: &mut Server, functions: &TempDir) {
    server.kill9();
    server.set("--functions", &functions.path().display().to_string());
    server.start_again().await;
}

on_both_buses! {
    /// The next build has another function under that name, in the middle of a round.
    async fn a_round_ends_with_the_code_that_it_began_with(bus: Bus) {
        let (mean, median) = (noted(built("fedavg")), noted(built("median")));
        let (before, after) = (folder("calm", &mean), folder("calm", &median));
        let mut server = start(bus, &before).await;
        let job = server.api().begin("old", spec(), &update(0.0)).await;
        assert_eq!(job.created["spec"]["function"], pinned(&mean));
        let first = job.accepted(1, "c0", "", &update(VALUES[0])).await;
        server.api().receipt_in(&first, "folded").await;

        start_again_with(&mut server, &after).await;
        let job = job.through(&server.api());
        assert_eq!(job.view().await["spec"]["function"], pinned(&mean));
        send(&job, 1, 1).await;
        assert_eq!(made(&job, 1).await, MEAN);
        assert_eq!(server.api().receipt(&first).await["state"], "committed");
        // And so do the rounds that follow, and what is said of the model.
        send(&job, 2, 0).await;
        assert_eq!(made(&job, 2).await, MEAN);
        let models = job.call("GET", "/models").await.expect(200).json();
        let by: Vec<&Value> = models["items"].as_array().expect("items").iter().map(|model| &model["function"]).collect();
        assert!(by.iter().filter(|by| !by.is_null()).all(|by| **by == digest(&mean).as_str()), "{models}");

        let new = server.api().begin("new", spec(), &update(0.0)).await;
        assert_eq!(new.created["spec"]["function"], pinned(&median));
        send(&new, 1, 0).await;
        assert_eq!(made(&new, 1).await, MEDIAN);
        // Who wants the old code says so.
        let again = server.api().begin("again", json!({"function": pinned(&mean), "goal": 3}), &update(0.0)).await;
        send(&again, 1, 0).await;
        assert_eq!(made(&again, 1).await, MEAN);
        let mut both = [&mean, &median].map(|wasm| format!("{}.wasm", digest(wasm)));
        both.sort();
        assert_eq!(kept(server.data()), both);
        for name in both {
            let mode = std::fs::metadata(server.data().join("modules").join(name)).expect("a module").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    /// Nobody has the module any more, or what there is of it is damaged: the job waits, and says for what.
    async fn a_job_says_which_module_is_lacking(bus: Bus) {
        let (mean, median) = (built("fedavg"), built("median"));
        let mean = noted(mean);
        let (before, after, mended) = (folder("calm", &mean), folder("calm", &median), folder("other-name", &mean));
        let mut server = start(bus, &before).await;
        let job = server.api().begin("old", spec(), &update(0.0)).await;
        let first = job.accepted(1, "c0", "", &update(VALUES[0])).await;
        server.api().receipt_in(&first, "folded").await;
        server.kill9();
        let modules = server.data().join("modules");
        match bus {
            Bus::Embedded => std::fs::remove_dir_all(modules),
            Bus::Nats => std::fs::write(modules.join(format!("{}.wasm", digest(&mean))), "damaged"),
        }
        .expect("spoil the module");

        start_again_with(&mut server, &after).await;
        let job = job.through(&server.api());
        let says = format!("lacks the module of function `calm@{}`", digest(&mean));
        let refused = job.submit(1, "c1", "", &update(VALUES[1])).await.problem(503, "not_ready");
        assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains(&says)), "{refused}");
        until("the job says what is lacking", async || {
            let view = job.view().await;
            assert_eq!(view["state"], "running", "{view}");
            let reason = view["reason"].as_str()?;
            (reason.contains(&says) && reason.contains("--functions DIR")).then_some(())
        })
        .await;
        // Nobody else is held up by it.
        let new = server.api().begin("new", spec(), &update(0.0)).await;
        send(&new, 1, 0).await;
        assert_eq!(made(&new, 1).await, MEDIAN);

        start_again_with(&mut server, &mended).await;
        let job = job.through(&server.api());
        send(&job, 1, 1).await;
        assert_eq!(made(&job, 1).await, MEAN);
        assert_eq!(job.view().await["reason"], Value::Null);
    }
}

/// Two nodes have different functions under one name, and each makes both jobs' partials with the right one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_fetches_the_module_that_it_lacks() {
    run(async {
        let (mean, other) = (noted(built("fedavg")), noted(built("median")));
        let folders = [folder("calm", &mean), folder("calm", &other)];
        let functions = folders.iter().map(|folder| folder.path().to_owned()).collect();
        let cluster = Cluster::start(Setup { nodes: 2, functions, ..Setup::default() }).await;
        for (node, wasm, expected) in [(0, &mean, MEAN), (1, &other, MEDIAN)] {
            let job = cluster.nodes[node].api().begin(&format!("of-{node}"), spec(), &update(0.0)).await;
            assert_eq!(job.created["spec"]["function"], pinned(wasm));
            let jobs = cluster.through(&job);
            for round in 1..=2 {
                for (client, value) in VALUES.iter().enumerate() {
                    let job = &jobs[(client + node) % 2];
                    job.open_round(round).await;
                    job.accepted(round, &format!("c{client}"), "", &update(*value)).await;
                }
                assert_eq!(made(&job, round).await, expected, "job of node {node}, round {round}");
            }
            let file = format!("{}.wasm", digest(wasm));
            for node in &cluster.nodes {
                assert!(kept(node.data()).contains(&file), "{:?}", kept(node.data()));
            }
            let fetched = cluster.nodes[1 - node].process.log();
            assert!(fetched.contains("fetched a function's module"), "{fetched}");
        }
        cluster.holds_no_slabs().await;
    })
    .await;
}

/// A job of the first release names no digest, so the next build's function goes on with it. Not with the old one's sum.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sum_of_a_job_that_is_not_pinned_is_not_gone_on_with_by_another_function() {
    run(async {
        let (mean, newer) = (built("fedavg"), noted(built("fedavg")));
        let (before, after) = (folder("calm", &mean), folder("calm", &newer));
        let mut server = Server::not_started(Bus::Embedded, &[("--functions", &before.path().display().to_string())]);
        server.change_to(Release::Old);
        server.start_again().await;
        let job = server.api().begin("old", spec(), &update(0.0)).await;

        server.kill9();
        server.change_to(Release::Present);
        server.start_again().await;
        // Once a new job is pinned, the whole log is of the second level.
        let is_pinned = async |k: usize| {
            let job = server.api().create(&format!("new-{k}"), spec()).await;
            job.created["spec"]["function"] == pinned(&mean)
        };
        let tries = std::cell::Cell::new(0);
        until("new jobs are pinned", async || {
            tries.set(tries.get() + 1);
            is_pinned(tries.get()).await.then_some(())
        })
        .await;
        let job = job.through(&server.api());
        assert_eq!(job.view().await["spec"]["function"], "calm");
        let lost = job.accepted(1, "c0", "", &update(VALUES[0])).await;
        server.api().receipt_in(&lost, "folded").await;

        start_again_with(&mut server, &after).await;
        let job = job.through(&server.api());
        // Found at the start, whether or not there is anything more to fold.
        server.api().receipt_in(&lost, "lost").await;
        let log = server.log();
        assert!(log.contains("an accumulator begins anew") && log.contains("another function has made it"), "{log}");
        let second = job.accepted(1, "c1", "", &update(VALUES[1])).await;
        job.accepted(1, "c0", "", &update(VALUES[0])).await;
        job.accepted(1, "c2", "", &update(VALUES[2])).await;
        assert_eq!(made(&job, 1).await, MEAN);
        assert_eq!(server.api().receipt(&second).await["state"], "committed");
    })
    .await;
}
