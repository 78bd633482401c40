//! Jobs of every kind, each with as much of a life as it can have: what is left in hand is finished by whoever reads it.

use catchment_tests::{Answer, Api, ExactMean, Job, Tensor, file, until};
use serde_json::{Value, json};

pub const EXACT: ExactMean = ExactMean { bound: 64.0, weight_max: 16.0, updates_max: 100 };
/// Updates of each round of the exact job.
pub const GOAL: u64 = 6;
/// Of its second round so many are there, and folded; the next one is being folded when the release ends.
pub const FOLDED: u64 = 3;

/// Repeats itself, so that it packs well; several ranges, so that there is something between two of them.
pub fn body(round: u64, client: u64) -> Vec<u8> {
    let value = |i: usize| ((round * 7919 + client * 104_729 + i as u64 * 31) % 97) as f32 / 97.0 - 0.5;
    let wide: Vec<f32> = (0..4_000).map(|i| 40.0 * value(i)).collect();
    let precise: Vec<f64> = (0..500).map(|i| f64::from(value(i)) / 3.0).collect();
    file(&[
        Tensor::f32("wide", &[4_000], &wide),
        Tensor::f64("precise", &[500], &precise),
        Tensor::f32("peak", &[8], &[client as f32 * 0.75 - 3.0; 8]),
        Tensor::i64("steps", &[], &[7]),
    ])
}

pub fn weight(round: u64, client: u64) -> f64 {
    1.0 + (round * 5 + client * 3) as f64 % 7.0
}

pub fn floats(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[100], &[value; 100])])
}

pub fn layer(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("q.weight", &[6, 5], &[value; 30])])
}

/// Adapters of another rank for each client.
pub fn adapter(client: u64) -> Vec<u8> {
    let rank = 1 + client as usize;
    let values = |n: usize| (0..n).map(|i| (i as u64 * 31 + client * 7) as f32 % 13.0 - 6.0).collect::<Vec<_>>();
    file(&[
        Tensor::f32("q.lora_A.weight", &[rank, 5], &values(rank * 5)),
        Tensor::f32("q.lora_B.weight", &[6, rank], &values(rank * 6)),
    ])
}

pub fn job_named(api: &Api, name: &str) -> Job {
    Job { api: api.clone(), path: format!("/v1/jobs/{name}"), created: Value::Null }
}

/// Sends one client's update of the exact job, with everything that can be said beside it; `None` when no answer comes.
pub async fn try_send_exact(job: &Job, round: u64, client: u64) -> Option<Answer> {
    let query = format!("weight={}&num_samples={}", weight(round, client), 10 + client);
    let path = job.update_path(round, &format!("c{client}"), &query);
    let metrics = json!({"loss": 1.0 / (client + 1) as f64, "accuracy": 0.5}).to_string();
    let headers = [("catchment-metrics", metrics.as_str())];
    job.api.try_call("PUT", &path, &headers, Some(body(round, client))).await.ok()
}

/// The same, and it is answered.
pub async fn send_exact(job: &Job, round: u64, client: u64) -> Answer {
    try_send_exact(job, round, client).await.expect("an answer")
}

/// Sends a difference from a version.
pub async fn send_delta(job: &Job, (version, round): (u64, u64), client: &str, body: &[u8]) -> Answer {
    let etag = job.call("GET", &format!("/model?version={version}")).await.header("etag").to_owned();
    job.submit_with(round, client, "weight=2", &[("catchment-base", &etag)], body).await
}

fn receipt(answer: Answer) -> Value {
    answer.expect(202).json()["receipt"].clone()
}

/// Makes them. Gives the receipts of what they are made of.
pub async fn live(api: &Api) -> Vec<Value> {
    let mut receipts = Vec::new();
    in_progress(api, &mut receipts).await;
    by_deadlines(api, &mut receipts).await;
    by_owners(api, &mut receipts).await;
    receipts
}

/// Jobs with a round behind them and another in hand.
async fn in_progress(api: &Api, receipts: &mut Vec<Value>) {
    let spec = json!({"goal": GOAL, "rounds": 2, "exact": EXACT.spec(), "deadline": null,
        "tensors": [{"match": "peak", "rule": "max"}], "topology": {"tree": {"leaves": 2, "middles": 1}},
        "client_config": {"lr": 0.1, "layers": [1, 2], "note": "größer"}, "client_config_from_round": {"2": {"lr": 0.01}}});
    let exact = api.begin("exact", spec, &body(0, 0)).await;
    for client in 0..GOAL {
        receipts.push(receipt(send_exact(&exact, 1, client).await));
    }
    exact.open_round(2).await;
    for client in 0..FOLDED {
        let receipt = receipt(send_exact(&exact, 2, client).await);
        api.receipt_in(&receipt, "folded").await;
        receipts.push(receipt);
    }
    let spec = json!({"update": "delta", "rounds": 2, "deadline": null,
        "mode": {"async": {"buffer": 2, "staleness": {"polynomial": {"a": 0.5}}, "staleness_max": 2}}});
    let buffered = api.begin("buffered", spec, &floats(1.0)).await;
    for client in ["a", "b"] {
        receipts.push(receipt(send_delta(&buffered, (0, 0), client, &floats(0.5)).await));
    }
    buffered.published(1).await;
    buffered.open_round(2).await;
    receipts.push(receipt(send_delta(&buffered, (0, 0), "c", &floats(2.0)).await));
    let spec = json!({"function": "median", "goal": 3, "rounds": 2, "deadline": "5h"});
    let gathered = api.begin("gathered", spec, &floats(0.0)).await;
    for (round, values) in [(1, &[1.0, 2.0, 9.0][..]), (2, &[4.0, 5.0])] {
        gathered.open_round(round).await;
        for value in values {
            receipts.push(gathered.accepted(round, &format!("c{value}"), "", &floats(*value)).await);
        }
    }
    let stack =
        api.begin("stack", json!({"function": "flora", "update": "delta", "goal": 2, "rounds": 1}), &layer(0.5)).await;
    receipts.push(receipt(send_delta(&stack, (0, 1), "c1", &adapter(1)).await));
}

/// Rounds that end, go on or fail because their time is over.
async fn by_deadlines(api: &Api, receipts: &mut Vec<Value>) {
    for (name, more) in [
        ("extended", json!({"goal": 3, "min_updates": 2})),
        ("skipped", json!({"goal": 3, "min_updates": 2, "on_shortfall": "skip"})),
        ("failed", json!({"goal": 3, "min_updates": 2, "on_shortfall": "fail"})),
        ("closed", json!({"goal": 3, "min_updates": 1})),
    ] {
        let mut spec = json!({"rounds": 1, "deadline": "1s"});
        spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let job = api.begin(name, spec, &floats(0.0)).await;
        let receipt = job.accepted(1, "c", "num_samples=3", &floats(4.0)).await;
        match name {
            "extended" => {
                let before = job.round().await["deadline_at"].clone();
                job.round_when("its deadline moves", |round| round["deadline_at"] != before).await;
                job.call("POST", "/stop").await.expect(200);
            }
            "skipped" => drop(api.receipt_in(&receipt, "discarded").await),
            "failed" => drop(job.in_state("failed").await),
            _ => drop(job.in_state("completed").await),
        }
        receipts.push(receipt);
    }
}

/// What owners, and functions, do to jobs.
async fn by_owners(api: &Api, receipts: &mut Vec<Value>) {
    let patched = api.begin("patched", json!({"goal": 4, "deadline": "1h"}), &floats(0.0)).await;
    receipts.push(patched.accepted(1, "c", "", &floats(4.0)).await);
    api.patch(&patched.path, &json!({"rounds": 7, "goal": 3, "deadline": "2h"})).await.expect(200);
    for action in ["/pause", "/resume", "/pause"] {
        patched.call("POST", action).await.expect(200);
    }
    let deleted = api.begin("deleted", json!({"goal": 2}), &floats(0.0)).await;
    deleted.accepted(1, "c", "", &floats(4.0)).await;
    deleted.call("DELETE", "").await.expect(204);
    let spec = json!({"name": "waiting", "namespace": "lab", "function": "fedavg", "config": {}, "update_dtypes": ["F64"],
        "over_provision": 1.5, "receipts": "2h", "checkpoints": {"keep_last": 3}, "limits": {"instances": 2},
        "selection": {"policy": "random", "where": {"region": "eu"}, "window": "2s"},
        "evaluate": {"every": 2, "fraction": 0.25, "min_results": 3, "metric": "loss", "goal": "min"}});
    api.post("/v1/jobs", &spec).await.expect(201);
    let trapped = json!({"function": "hostile", "goal": 2, "rounds": 1});
    let trapped = api.begin("trapped", trapped, &floats(0.0)).await;
    let update = |first: f32| file(&[Tensor::f32("w", &[100], &[&[first][..], &[2.0; 99]].concat())]);
    let culprit = trapped.accepted(1, "culprit", "", &update(666.0)).await;
    api.receipt_in(&culprit, "discarded").await;
    receipts.push(culprit);
    for client in ["c", "d"] {
        receipts.push(trapped.accepted(1, client, "", &update(1.0)).await);
    }
    trapped.in_state("completed").await;
    let evaluate = json!({"min_results": 1, "metric": "accuracy", "goal": "max", "patience": 1});
    let spec = json!({"goal": 1, "rounds": 50, "evaluate": evaluate, "checkpoints": {"keep_last": 1}});
    let measured = api.begin("measured", spec, &floats(0.0)).await;
    for (version, accuracy) in [0.5, 0.9, 0.1].into_iter().enumerate() {
        let found = json!({"accuracy": accuracy, "loss": 1.0}).to_string();
        let path = format!("{}/models/{version}/evaluations/c?num_samples=7", measured.path);
        until("a measurement is taken", async || {
            let answer =
                api.call("PUT", &path, &[("content-type", "application/json")], Some(found.clone().into())).await;
            [200, 201].contains(&answer.status).then_some(())
        })
        .await;
        if version < 2 {
            measured.open_round(version as u64 + 1).await;
            receipts.push(measured.accepted(version as u64 + 1, "c", "", &floats(version as f32)).await);
            measured.published(version as u64 + 1).await;
        }
    }
    let ended = measured.in_state("completed").await;
    assert!(ended["reason"].as_str().is_some_and(|reason| reason.contains("no better")), "{ended}");
}

/// What a release says of all that: every job, its models, and every receipt.
pub async fn said(api: &Api, receipts: &[Value]) -> Value {
    let mut jobs = Vec::new();
    for namespace in ["default", "lab"] {
        let listed = api.get(&format!("/v1/namespaces/{namespace}/jobs?limit=1000")).await.expect(200).json();
        for view in listed["items"].as_array().expect("a list") {
            let name = view["spec"]["name"].as_str().expect("a name");
            let path = format!("/v1/namespaces/{namespace}/jobs/{name}");
            let models = api.get(&format!("{path}/models?limit=1000")).await.expect(200).json()["items"].clone();
            jobs.push(json!({"path": path, "view": view, "models": models}));
        }
    }
    let mut all = Vec::new();
    for id in receipts {
        all.push(api.receipt(id).await);
    }
    json!({"jobs": jobs, "receipts": all})
}
