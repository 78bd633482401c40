//! `kill -9` of everything, at ten random moments of a job, some of them before the server is even ready again.
//!
//! Afterwards the job finishes. Every update that was answered with a receipt is in its round's model, once; the model
//! is the float64 weighted mean of exactly those; and no client was asked for one of them again.

use catchment_tests::{
    Api, Bus, Job, PATIENCE, Server, Tensor, Values, assert_close, file, on_both_buses, read, weighted_mean,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const CLIENTS: u64 = 6;
/// Fewer than there are clients, so that some come too late in every round.
const GOAL: u64 = 4;
const KILLS: u64 = 10;
/// Kills that come while the server is still starting.
const EARLY: [u64; 3] = [2, 5, 8];

/// Receipts by round and client: everything that any client was ever told is accepted.
type Acknowledged = Arc<Mutex<BTreeMap<(u64, u64), Value>>>;

/// Three stretches of coordinates with a rule or dtype each, so that a fold can be interrupted between them.
fn tensors(value: f32) -> Vec<u8> {
    let wide: Vec<f32> = (0..40_000).map(|i| value + (i % 97) as f32).collect();
    let precise: Vec<f64> = (0..10_000).map(|i| f64::from(value) * 3.0 + f64::from(i % 89)).collect();
    file(&[
        Tensor::f32("wide", &[40_000], &wide),
        Tensor::f64("precise", &[10_000], &precise),
        Tensor::f32("peak", &[500], &[value; 500]),
        Tensor::i64("steps", &[], &[7]),
    ])
}

fn value_of(round: u64, client: u64) -> f32 {
    (round * 31 % 17) as f32 + client as f32 * 0.75 + 0.125
}

fn weight_of(round: u64, client: u64) -> f64 {
    1.0 + (round * 7 + client * 13) as f64 % 5.0
}

/// One client: trains for every round it meets, and asks again until it has a definite answer.
async fn client(number: u64, mut address: watch::Receiver<String>, path: String, acknowledged: Acknowledged) {
    let mut last = 0;
    loop {
        let job = current(&mut address, &path).await;
        let Some(round) = seen(&job, last).await else { continue };
        if ["completed", "failed", "stopped"].contains(&round["job_state"].as_str().unwrap_or_default()) {
            return;
        }
        let open = round["round"].as_u64().unwrap_or_default();
        if round["state"] == "open" && open > last {
            last = open;
            submit(number, open, &mut address, &path, &acknowledged).await;
        }
    }
}

/// The job at wherever the server is now.
async fn current(address: &mut watch::Receiver<String>, path: &str) -> Job {
    let address = address.wait_for(|address| !address.is_empty()).await.expect("the test goes on").clone();
    Job { api: Api::new(&address), path: path.to_owned(), created: Value::Null }
}

/// The round, as soon as it may have something for a client that has done `last`.
async fn seen(job: &Job, last: u64) -> Option<Value> {
    let get = async |query: &str| {
        let answer = job.api.try_call("GET", &format!("{}/round{query}", job.path), &[], None).await.ok()?;
        (answer.status == 200).then(|| answer.json())
    };
    let Some(round) = get("").await else {
        tokio::time::sleep(Duration::from_millis(20)).await;
        return None;
    };
    if round["state"] == "open" && round["round"].as_u64() > Some(last) {
        return Some(round);
    }
    get(&format!("?wait=1s&after={}", round["revision"])).await
}

async fn submit(
    number: u64,
    round: u64,
    address: &mut watch::Receiver<String>,
    path: &str,
    acknowledged: &Acknowledged,
) {
    let body = tensors(value_of(round, number));
    let begun = Instant::now();
    loop {
        let job = current(address, path).await;
        let query = format!("weight={}", weight_of(round, number));
        let update = job.update_path(round, &format!("c{number}"), &query);
        let answer = job.api.try_call("PUT", &update, &[], Some(body.clone())).await;
        match answer {
            Ok(answer) if [200, 202].contains(&answer.status) => {
                let receipt = answer.json()["receipt"].clone();
                acknowledged.lock().expect("no test has failed").insert((round, number), receipt);
                return;
            }
            Ok(answer) if answer.status == 410 => return,
            Ok(answer) => assert!([429, 503].contains(&answer.status), "{}: {}", answer.status, answer.text()),
            Err(_) => {}
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "no definite answer for round {round}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// After a restart: everything acknowledged is still there, and nobody is asked for it again.
async fn check_kept(api: &Api, acknowledged: &Acknowledged) {
    let known = acknowledged.lock().expect("no test has failed").clone();
    let newest = known.keys().map(|(round, _)| *round).max().unwrap_or(0);
    for ((round, client), receipt) in known.range((newest.saturating_sub(1), 0)..) {
        let receipt = api.receipt(receipt).await;
        let state = receipt["state"].as_str().expect("a state");
        assert!(["accepted", "folded", "committed"].contains(&state), "{receipt}");
        let task = api.checkin(&format!("c{client}"), &json!({"job": "crash"})).await.expect(200).json();
        assert!(task["task"] != "train" || task["round"].as_u64() > Some(*round), "asked again: {task}");
    }
}

/// Every version is the mean of those whose receipts are for its round.
async fn check_models(job: &Job, acknowledged: &Acknowledged) -> u64 {
    let known = acknowledged.lock().expect("no test has failed").clone();
    let newest = job.view().await["model_version"].as_u64().expect("a model");
    let listed = job.call("GET", "/models?limit=1000").await.expect(200).json();
    for version in 1..=newest {
        let set: Vec<u64> = known.keys().filter(|(round, _)| *round == version).map(|(_, client)| *client).collect();
        let view = &listed["items"][(newest - version) as usize];
        assert_eq!((view["version"].as_u64(), view["contributors"].as_u64()), (Some(version), Some(GOAL)));
        assert_eq!(set.len() as u64, GOAL, "receipts of round {version}");
        for client in &set {
            let receipt = job.api.receipt(&known[&(version, *client)]).await;
            assert_eq!((&receipt["state"], &receipt["model_version"]), (&json!("committed"), &json!(version)));
        }
        let sent =
            set.iter().map(|k| (weight_of(version, *k), read(&tensors(value_of(version, *k))))).collect::<Vec<_>>();
        let mut expected: Values = weighted_mean(&sent);
        let peak = set.iter().map(|k| value_of(version, *k)).fold(f32::MIN, f32::max);
        expected.insert("peak".to_owned(), vec![peak.into(); 500]);
        assert_close(&read(&job.model(version).await), &expected, 1e-6);
    }
    newest
}

on_both_buses! {
    async fn every_accepted_update_survives_ten_kills(bus: Bus) {
        let seed = std::env::var("CATCHMENT_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_122);
        eprintln!("CATCHMENT_TEST_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut server = Server::start(bus).await;
        let spec = json!({"goal": GOAL, "rounds": 100_000, "checkpoints": {"keep_last": 100_000},
            "over_provision": 2.0, "tensors": [{"match": "peak", "rule": "max"}], "deadline": null});
        let job = server.api().begin("crash", spec, &tensors(0.0)).await;
        let acknowledged = Acknowledged::default();
        let (address, here) = watch::channel(server.address().to_owned());
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| tokio::spawn(client(number, here.clone(), job.path.clone(), acknowledged.clone())))
            .collect();
        let mut rounds = 0;
        for kill in 0..KILLS {
            if EARLY.contains(&kill) {
                server.spawn();
                tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
            } else {
                if kill > 0 {
                    server.start_again().await;
                    check_kept(&server.api(), &acknowledged).await;
                    address.send_replace(server.address().to_owned());
                }
                tokio::time::sleep(Duration::from_millis(random.random_range(20..400))).await;
                let now = job.through(&server.api()).round().await["round"].as_u64().expect("a round");
                assert!(now >= rounds, "round {now} after round {rounds}");
                rounds = now;
            }
            address.send_replace(String::new());
            server.kill9();
        }
        server.start_again().await;
        check_kept(&server.api(), &acknowledged).await;
        address.send_replace(server.address().to_owned());
        let job = job.through(&server.api());
        let last = job.round().await["round"].as_u64().expect("a round") + 2;
        server.api().patch(&job.path, &json!({"rounds": last})).await.expect(200);
        job.in_state("completed").await;
        for client in clients {
            client.await.expect("a client");
        }
        let published = check_models(&job, &acknowledged).await;
        assert_eq!(published, last);
        // How many rounds end between two kills depends on the machine; some must, or the kills hit nothing.
        assert!(published >= 3, "only {published} rounds: the kills hit nothing");
        server.holds_no_slabs().await;
    }
}
