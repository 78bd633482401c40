//! The life of a client: chosen or made to wait, too late, measuring instead of training; and what a job makes of what it
//! hears.
#![forbid(unsafe_code)]

use catchment_tests::{Api, Bus, Job, Nats, Server, Tensor, file, on_both_buses, run, until};
use serde_json::{Value, json};
use std::time::Duration;

fn model() -> Vec<u8> {
    update(0.0)
}

fn update(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[3], &[value, value + 1.0, value + 2.0])])
}

async fn ask(api: &Api, client: &str) -> Value {
    ask_with(api, client, json!({"job": "a"})).await
}

async fn ask_with(api: &Api, client: &str, checkin: Value) -> Value {
    api.checkin(client, &checkin).await.expect(200).json()
}

fn retry_ms(task: &Value) -> u64 {
    assert_eq!(task["task"], "wait", "{task}");
    task["retry_after_ms"].as_u64().filter(|ms| *ms > 0).unwrap_or_else(|| panic!("when to ask again? {task}"))
}

async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// Reports what a client measured.
async fn measure(job: &Job, version: u64, client: &str, query: &str, found: &Value) -> catchment_tests::Answer {
    let path = format!("{}/models/{version}/evaluations/{client}?{query}", job.path);
    job.api.call("PUT", &path, &[("content-type", "application/json")], Some(found.to_string().into())).await
}

on_both_buses! {
    async fn lots_are_drawn_among_those_who_ask(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let selection = json!({"policy": "random", "window": "300ms"});
        let spec = json!({"goal": 2, "over_provision": 1, "deadline": "1h", "selection": selection});
        let job = api.begin("a", spec, &model()).await;
        assert_eq!(job.created["spec"]["selection"]["policy"], "random");
        let clients: Vec<String> = (0..6).map(|k| format!("c{k}")).collect();
        let mut latest = 0;
        for client in &clients {
            let first = ask(&api, client).await;
            latest = latest.max(retry_ms(&first));
        }
        pause(latest + 50).await;
        let mut chosen = Vec::new();
        for client in &clients {
            let task = ask(&api, client).await;
            if task["task"] == "train" {
                assert_eq!(ask(&api, client).await["task_id"], task["task_id"]);
                chosen.push(client);
            }
        }
        assert_eq!(chosen.len(), 2, "{chosen:?}");
        for (value, client) in (1..).zip(&chosen) {
            job.accepted(1, client, "", &update(value as f32)).await;
        }
        job.published(1).await;
    }

    async fn labels_are_a_condition(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        api.begin("a", json!({"goal": 2, "selection": {"where": {"site": "north"}}}), &model()).await;
        let without = ask(&api, "c").await;
        assert!(retry_ms(&without) >= 30_000, "{without}");
        let with = ask_with(&api, "d", json!({"job": "a", "labels": {"site": "north", "tier": "1"}})).await;
        assert_eq!(with["task"], "train");
        let any = ask_with(&api, "e", json!({"labels": {"site": "south"}})).await;
        assert!(retry_ms(&any) >= 30_000, "{any}");
    }

    async fn a_task_that_takes_too_long_is_handed_on(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let spec = json!({"goal": 1, "over_provision": 1, "deadline": "1h", "selection": {"task_timeout": "1500ms"}});
        let job = api.begin("a", spec, &model()).await;
        assert_eq!(ask(&api, "c").await["task"], "train");
        pause(1_000).await;
        assert_eq!(ask(&api, "c").await["task"], "train", "it is still at work");
        pause(1_000).await;
        retry_ms(&ask(&api, "d").await);
        until("the task is handed on", async || (ask(&api, "d").await["task"] == "train").then_some(())).await;
        // The first one was slow, not wrong.
        job.accepted(1, "c", "", &update(1.0)).await;
    }

    async fn who_is_too_late_has_the_next_task_at_once(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let selection = json!({"policy": "random", "window": "100ms"});
        let spec = json!({"goal": 2, "over_provision": 1.5, "deadline": "1h", "selection": selection});
        let job = api.begin("a", spec, &model()).await;
        for client in ["c", "d", "e"] {
            ask(&api, client).await;
        }
        for client in ["c", "d", "e"] {
            until("there are three tasks for three", async || (ask(&api, client).await["task"] == "train").then_some(())).await;
        }
        job.accepted(1, "c", "", &update(1.0)).await;
        job.accepted(1, "d", "", &update(2.0)).await;
        job.open_round(2).await;
        let late = job.submit(1, "e", "", &update(3.0)).await.problem(410, "round_closed");
        assert_eq!(late["next_round"], 2);
        let next = ask(&api, "e").await;
        assert_eq!((&next["task"], &next["round"]), (&json!("train"), &json!(2)));
    }

    async fn clients_measure_models(bus: Bus) {
        let mut server = Server::start(bus).await;
        let api = server.api();
        let evaluate = json!({"fraction": 1, "min_results": 2, "metric": "accuracy", "goal": "max"});
        let job = api.begin("a", json!({"goal": 2, "rounds": 9, "deadline": "1h", "evaluate": evaluate}), &model()).await;
        let mut tasks = Vec::new();
        for client in ["c0", "c1", "c2", "c3"] {
            tasks.push((client, ask(&api, client).await));
        }
        let measuring: Vec<_> = tasks.iter().filter(|(_, task)| task["task"] == "evaluate").collect();
        assert!(measuring.len() == 2 && tasks.iter().filter(|(_, task)| task["task"] == "train").count() == 2, "{tasks:?}");
        let (client, task) = measuring[0];
        assert_eq!((&task["model_version"], &task["round"]), (&json!(0), &json!(1)));
        api.get(task["model_url"].as_str().expect("an address")).await.expect(200);
        assert_eq!(ask(&api, client).await["task_id"], task["task_id"]);

        let found = json!({"accuracy": 0.5, "loss": 2.0});
        assert_eq!(measure(&job, 0, client, "num_samples=30", &found).await.expect(201).json()["results"], 1);
        assert_eq!(measure(&job, 0, client, "num_samples=30", &found).await.expect(200).json()["results"], 1);
        measure(&job, 0, client, "num_samples=31", &found).await.problem(409, "conflict");
        measure(&job, 0, client, "num_samples=30", &json!({"accuracy": 0.6, "loss": 2.0})).await.problem(409, "conflict");
        assert_eq!(job.view().await["best_version"], Value::Null, "one result is too few");
        let whole = measure(&job, 0, "other", "num_samples=10", &json!({"accuracy": 0.9})).await.expect(201).json();
        assert_eq!((&whole["results"], &whole["num_samples"]), (&json!(2), &json!(40)));
        assert!((whole["metrics"]["accuracy"].as_f64().unwrap() - 0.6).abs() < 1e-9, "{whole}");
        let models = job.call("GET", "/models").await.expect(200).json();
        assert_eq!((&models["items"][0]["evaluation"], &models["items"][0]["best"]), (&whole, &json!(true)));
        assert_eq!(job.view().await["best_version"], 0);
        let shown = api.metrics().await.sum("catchment_job_metric", &[("job", "a"), ("name", "eval_accuracy")]);
        assert!((shown - 0.6).abs() < 1e-9, "{shown}");

        measure(&job, 1, "c", "", &found).await.problem(404, "not_found");
        for bad in [json!([]), json!({}), json!({"a": "b"}), json!({"a".repeat(5000): 1})] {
            measure(&job, 0, "bad", "", &bad).await.problem(400, "bad_request");
        }
        measure(&job, 0, "bad", "num_samples=-1", &found).await.problem(400, "bad_request");
        measure(&job, 0, "b%2Fd", "", &found).await.problem(400, "bad_request");
        measure(&job.through(&api), 0, "late", "", &json!({"accuracy": 0.6})).await.expect(201);

        let before = job.call("GET", "/models").await.expect(200).json();
        server.kill9();
        server.start_again().await;
        let job = job.through(&server.api());
        assert_eq!(job.call("GET", "/models").await.expect(200).json(), before);
        assert_eq!(measure(&job, 0, client, "num_samples=30", &found).await.expect(200).json()["results"], 3);
    }

    async fn the_best_model_is_kept_and_a_job_that_gets_no_better_ends(bus: Bus) {
        let server = Server::start(bus).await;
        let evaluate = json!({"min_results": 1, "metric": "accuracy", "goal": "max", "patience": 2});
        let spec = json!({"goal": 1, "rounds": 50, "evaluate": evaluate, "checkpoints": {"keep_last": 1}});
        let job = server.api().begin("a", spec, &model()).await;
        let mut best = Vec::new();
        for (version, accuracy) in [0.1, 0.9, 0.5].into_iter().enumerate() {
            let version = version as u64;
            measure(&job, version, "c", "", &json!({"accuracy": accuracy})).await.expect(201);
            if version == 1 {
                best = job.model(1).await;
            }
            job.accepted(version + 1, "c", "", &update(version as f32)).await;
            job.open_round(version + 2).await;
        }
        assert_eq!(job.view().await["best_version"], 1);
        measure(&job, 3, "c", "", &json!({"accuracy": 0.9})).await.expect(201);
        let ended = job.in_state("completed").await;
        assert!(ended["reason"].as_str().is_some_and(|reason| reason.contains("no better than version 1")), "{ended}");
        assert_eq!((&ended["best_version"], &ended["model_version"]), (&json!(1), &json!(3)));
        assert_eq!(job.model(1).await, best, "the best one is there although only the newest one is kept");
        job.call("GET", "/model?version=2").await.problem(404, "not_found");
        assert_eq!(ask(&server.api(), "c").await["task"], "stop");
        server.holds_no_slabs().await;
    }
}

/// A gateway that has not heard yet of a job or its round reads on before it answers: whoever checks in there is given a
/// task, and the address of the node that the round is on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_reads_on_before_it_sends_clients_anywhere() {
    run(async {
        let nats = Nats::start();
        let url = nats.url();
        let settings = [("--nats", url.as_str()), ("--heartbeat", "100ms"), ("--node-timeout", "2s")];
        let first = Server::start_with(Bus::Embedded, &settings).await;
        let second = Server::start_with(Bus::Embedded, &settings).await;
        // Until each has heard the other.
        pause(1_000).await;
        for k in 0..30 {
            let name = format!("job-{k}");
            let job = first.api().create(&name, json!({"goal": 1})).await;
            let early = second.api().checkin("early", &json!({"job": name})).await.expect(200).json();
            assert_eq!(early["task"], "wait", "{early}");
            job.put_model(&model()).await.expect(201);
            let round = job.open_round(1).await;
            // The job's home may not have heard of the round yet.
            let task = until(&format!("a task of {name}"), async || {
                let task = second.api().checkin("c", &json!({"job": name})).await.expect(200).json();
                (task["task"] == "train").then_some(task)
            })
            .await;
            // As the first sees it: absent where the round is on itself.
            let (at_first, at_second) = (format!("http://{}", first.address()), format!("http://{}", second.address()));
            let on = round["gateway"].as_str().unwrap_or(&at_first);
            assert_eq!(task["gateway"].as_str().unwrap_or(&at_second), on, "{name}: {task}, and the round {round}");
        }
    })
    .await;
}

/// Two gateways, one desk for a job: no more tasks than there are, whoever is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_share_a_jobs_tasks() {
    run(async {
        let nats = Nats::start();
        let url = nats.url();
        let settings = [("--nats", url.as_str()), ("--heartbeat", "100ms"), ("--node-timeout", "2s")];
        let mut first = Server::start_with(Bus::Embedded, &settings).await;
        let second = Server::start_with(Bus::Embedded, &settings).await;
        let spec = json!({"goal": 5, "over_provision": 1, "deadline": "1h"});
        let job = first.api().begin("a", spec, &model()).await;
        let other = job.through(&second.api());
        other.open_round(1).await;
        // Until each has heard the other.
        pause(1_000).await;
        let apis = [first.api(), second.api()];
        let mut tasks = Vec::new();
        for k in 0..12 {
            let task = ask(&apis[k % 2], &format!("c{k}")).await;
            if task["task"] == "train" {
                let same = ask(&apis[(k + 1) % 2], &format!("c{k}")).await;
                assert_eq!(same["task_id"], task["task_id"], "whichever gateway it asks");
                tasks.push(k);
            }
        }
        assert_eq!(tasks.len(), 5, "{tasks:?}");
        // Whether or not the first was the job's home: the other one answers, at once.
        first.kill9();
        let begun = std::time::Instant::now();
        let late = ask(&second.api(), "late").await;
        assert!(late["task"] == "train" || late["task"] == "wait", "{late}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    })
    .await;
}
