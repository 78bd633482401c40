//! Check-ins: what a client is told to do.

use crate::{model, update};
use catchment_tests::{Bus, Server, on_both_buses};
use serde_json::{Value, json};

on_both_buses! {
    async fn a_client_is_told_to_train_then_to_wait_then_to_stop(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let spec = json!({"goal": 2, "rounds": 2, "deadline": "1h",
            "client_config": {"lr": 0.1, "epochs": 3}, "client_config_from_round": {"2": {"lr": 0.01}}});
        let job = api.create("a", spec).await;
        let checkin = async |client: &str| api.checkin(client, &json!({"job": "a", "num_samples": 5})).await.expect(200).json();
        let waiting = checkin("c").await;
        assert_eq!(waiting["task"], "wait");
        assert!(waiting["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0), "{waiting}");

        job.put_model(&model()).await.expect(201);
        job.open_round(1).await;
        let task = checkin("c").await;
        for (member, expected) in [
            ("task", json!("train")), ("namespace", json!("default")), ("job", json!("a")), ("uid", job.created["uid"].clone()),
            ("round", json!(1)), ("model_version", json!(0)), ("config", json!({"lr": 0.1, "epochs": 3})),
        ] {
            assert_eq!(task[member], expected, "{member}");
        }
        assert!(task["deadline_in_ms"].as_u64().is_some_and(|ms| (3_000_000..=3_600_000).contains(&ms)), "{task}");
        assert!(task["deadline_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{task}");
        let model_there = api.get(task["model_url"].as_str().expect("an address")).await.expect(200);
        assert_eq!(model_there.header("etag").trim_matches('"'), task["etag"].as_str().expect("an ETag"));
        assert_eq!(checkin("c").await["task_id"], task["task_id"]);

        let query = format!("task={}", task["task_id"].as_str().expect("a name"));
        job.submit(1, "d", &query, &update(1.0)).await.problem(409, "conflict");
        job.accepted(1, "c", &query, &update(1.0)).await;
        assert_eq!(checkin("c").await["task"], "wait");
        job.accepted(1, "d", "", &update(1.0)).await;
        job.open_round(2).await;
        let next = checkin("c").await;
        assert_eq!((&next["task"], &next["round"], &next["config"]["lr"]), (&json!("train"), &json!(2), &json!(0.01)));
        assert_ne!(next["task_id"], task["task_id"]);
        job.call("POST", "/stop").await.expect(200);
        assert_eq!(checkin("c").await["task"], "stop");
    }

    /// No more clients train for a round than its goal and the over-provision ask for.
    async fn tasks_are_limited_by_the_goal(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        api.begin("a", json!({"goal": 4, "over_provision": 1.5}), &model()).await;
        let mut tasks = Vec::new();
        for k in 0..9 {
            tasks.push(api.checkin(&format!("c{k}"), &json!({"job": "a"})).await.expect(200).json()["task"].clone());
        }
        assert_eq!(tasks.iter().filter(|task| **task == "train").count(), 6, "{tasks:?}");
        assert_eq!(tasks[6..], ["wait", "wait", "wait"].map(Value::from));
    }

    async fn a_client_may_take_any_work_there_is(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let anything = async || api.checkin("c", &json!({})).await.expect(200).json();
        assert_eq!(anything().await["task"], "wait");
        api.create("a", json!({})).await;
        assert_eq!(anything().await["task"], "wait");
        let job = api.begin("b", json!({}), &model()).await;
        assert_eq!(anything().await["job"], "b");
        api.begin("c", json!({"namespace": "lab"}), &model()).await;
        let elsewhere = api.checkin("c", &json!({"namespace": "lab", "labels": {"site": "x"}})).await.expect(200).json();
        assert_eq!(elsewhere["job"], "c");
        job.call("POST", "/stop").await.expect(200);
        assert_eq!(anything().await["task"], "wait");
    }

    async fn a_check_in_that_makes_no_sense_is_refused(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        api.checkin("c", &json!({"job": "nosuch"})).await.problem(404, "not_found");
        api.checkin("c", &json!({"job": "No Such"})).await.problem(400, "bad_request");
        api.checkin("c", &json!({"jbo": "a"})).await.problem(400, "bad_request");
        api.checkin("c%2Fd", &json!({})).await.problem(400, "bad_request");
        api.call("POST", "/v1/clients/c/checkin", &[], Some(b"{".to_vec())).await.problem(400, "bad_request");
    }
}
