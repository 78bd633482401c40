//! Jobs: created, listed, changed, ended.

use crate::{model, update};
use catchment_tests::{Bus, PATIENCE, Server, Tensor, file, on_both_buses, read, run_to_end};
use serde_json::{Value, json};

/// The names of the fields that a refused spec's answer names.
fn named(problem: &Value) -> Vec<&str> {
    let fields = problem["fields"].as_array().expect("fields");
    fields.iter().for_each(|field| assert!(field["message"].as_str().is_some_and(|m| !m.is_empty()), "{field}"));
    fields.iter().map(|field| field["field"].as_str().expect("a name")).collect()
}

fn tensors(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[2], &[value; 2])])
}

on_both_buses! {
    async fn a_job_is_created_once(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let spec = json!({"name": "digits", "function": "fedavg"});
        let created = api.post("/v1/jobs", &spec).await.expect(201).json();
        assert_eq!(created["state"], "waiting_for_model");
        assert!(created["reason"].as_str().is_some_and(|r| r.contains("/jobs/digits/model")), "{created}");
        assert_eq!(created["uid"].as_str().map(str::len), Some(32));
        assert_eq!(created["model_version"], Value::Null);
        assert_eq!((&created["round"]["round"], &created["round"]["state"]), (&json!(0), &json!("none")));
        for (field, default) in [
            ("namespace", json!("default")), ("rounds", json!(10)), ("goal", json!(2)), ("min_updates", json!(1)),
            ("update", json!("weights")), ("deadline", json!("10m")), ("on_shortfall", json!("retry")),
            ("topology", json!("auto")), ("over_provision", json!(1.3)), ("config", json!({})),
        ] {
            assert_eq!(created["spec"][field], default, "{field}");
        }
        api.post("/v1/jobs", &spec).await.problem(409, "exists");
        assert_eq!(api.get("/v1/jobs/digits").await.expect(200).json(), created);
        assert_eq!(api.get("/v1/namespaces/default/jobs/digits").await.expect(200).json(), created);
    }

    async fn every_bad_field_is_named(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let spec = json!({
            "name": "No", "function": "a b", "goal": 0, "rounds": -1, "min_updates": "x", "deadline": "soon",
            "topology": {"tree": {"leaves": 0, "middles": 0}}, "limits": {"cpu_ms": 0, "speed": 1},
            "update_dtypes": ["I8"], "on_shortfall": "give up", "update": "gradients", "over_provision": 0.5,
            "tensors": [{"match": "", "rule": "mean"}], "mode": "eventually", "exact": true, "colour": 1
        });
        let problem = api.post("/v1/jobs", &spec).await.problem(422, "invalid_spec");
        let mut found = named(&problem);
        found.sort_unstable();
        let expected = [
            "colour", "deadline", "exact", "function", "goal", "limits.cpu_ms", "limits.speed", "min_updates", "mode",
            "name", "on_shortfall", "over_provision", "rounds", "tensors.0.match", "topology", "update", "update_dtypes",
        ];
        assert_eq!(found, expected);
        assert_eq!(api.get("/v1/jobs").await.expect(200).json()["items"], json!([]));
    }

    async fn a_spec_that_is_none_is_refused(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let post = async |body: Vec<u8>| api.call("POST", "/v1/jobs", &[], Some(body)).await;
        for bad in ["", "{", "[]", "null", "{\"name\":\"a\",\"name\":", "\u{0}"] {
            let problem = post(bad.into()).await.problem(422, "invalid_spec");
            assert_eq!(named(&problem), [""], "{bad}");
        }
        let missing = post(b"{}".to_vec()).await.problem(422, "invalid_spec");
        assert_eq!(named(&missing), ["name", "function"]);
        for kib in [300, 3 << 10] {
            let padding = " ".repeat(kib << 10);
            post(format!("{{\"name\":\"a\",{padding}\"function\":\"fedavg\"}}").into()).await.problem(413, "too_large");
        }
    }

    async fn the_function_must_be_known_and_take_the_config(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let digest = api.get("/v1/functions/fedavg").await.expect(200).json()["digest"].as_str().unwrap().to_owned();
        for (spec, field, says) in [
            (json!({"function": "nosuch"}), "function", "fedavg"),
            (json!({"function": format!("fedavg@{}", "0".repeat(64))}), "function", digest.as_str()),
            (json!({"function": "fedavg", "config": {"weighting": "loud"}}), "config", "weighting"),
            (json!({"function": "fedavg", "config": {"momentum": 0.9}}), "config", "momentum"),
        ] {
            let mut spec = spec;
            spec["name"] = "a".into();
            let problem = api.post("/v1/jobs", &spec).await.problem(422, "invalid_spec");
            assert_eq!(named(&problem), [field], "{problem}");
            assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(says)), "{problem}");
        }
        let pinned = json!({"name": "a", "function": format!("fedavg@{digest}"), "config": {"weighting": "uniform"}});
        api.post("/v1/jobs", &pinned).await.expect(201);
    }

    async fn jobs_are_listed_in_pages_by_name(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        for name in ["e", "b", "d", "a", "c"] {
            api.create(name, json!({})).await;
        }
        let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let page = api.get(&format!("/v1/jobs?limit=2{cursor}")).await.expect(200).json();
            let items = page["items"].as_array().expect("items");
            assert!(items.len() <= 2, "{page}");
            seen.extend(items.iter().map(|job| job["spec"]["name"].as_str().expect("a name").to_owned()));
            pages += 1;
            match page["cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!((seen.concat().as_str(), pages), ("abcde", 3));
        api.get("/v1/jobs?limit=few").await.problem(400, "bad_request");
    }

    async fn namespaces_keep_jobs_apart(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let one = api.create("same", json!({})).await;
        let two = api.create("same", json!({"namespace": "lab"})).await;
        assert_ne!(one.created["uid"], two.created["uid"]);
        let three = api.post("/v1/namespaces/ward/jobs", &json!({"name": "same", "function": "fedavg"})).await;
        assert_eq!(three.expect(201).json()["spec"]["namespace"], "ward");
        for namespace in ["default", "lab", "ward"] {
            let list = api.get(&format!("/v1/namespaces/{namespace}/jobs")).await.expect(200).json();
            assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{namespace}");
        }
        api.call("DELETE", "/v1/namespaces/lab/jobs/same", &[], None).await.expect(204);
        api.get("/v1/namespaces/lab/jobs/same").await.problem(404, "not_found");
        api.get("/v1/jobs/same").await.expect(200);
        api.get("/v1/namespaces/Lab/jobs").await.problem(400, "bad_request");
    }

    async fn an_owner_ends_a_round_with_what_it_has(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("waits", json!({"goal": 3, "min_updates": 3, "rounds": 2, "deadline": null}), &tensors(0.0)).await;
        let empty = job.call("POST", "/rounds/1/close").await.problem(409, "wrong_state");
        assert!(empty["detail"].as_str().is_some_and(|detail| detail.contains("no update")), "{empty}");
        job.call("POST", "/rounds/2/close").await.problem(409, "wrong_state");
        job.call("POST", "/rounds/one/close").await.problem(400, "bad_request");
        job.accepted(1, "a", "weight=1", &tensors(1.0)).await;
        job.accepted(1, "b", "weight=3", &tensors(5.0)).await;
        let closed = job.call("POST", "/rounds/1/close").await.expect(200).json();
        assert_eq!(closed["job_state"], "running", "{closed}");
        job.published(1).await;
        assert_eq!(read(&job.model(1).await)["w"][0], 4.0);
        job.call("POST", "/rounds/1/close").await.problem(410, "round_closed");
        // As an operator does it.
        job.open_round(2).await;
        job.accepted(2, "a", "", &tensors(7.0)).await;
        let said = run_to_end(&["job", "close-round", "waits", "--url", &format!("http://{}", server.address())], PATIENCE);
        assert!(said.status.success(), "{said:?}");
        job.in_state("completed").await;
        assert_eq!(read(&job.model(2).await)["w"][0], 7.0);
    }

    async fn a_paused_job_takes_no_updates_until_it_is_resumed(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let job = api.create("a", json!({})).await;
        job.call("POST", "/pause").await.problem(409, "wrong_state");
        job.put_model(&model()).await.expect(201);
        job.open_round(1).await;
        job.call("POST", "/resume").await.problem(409, "wrong_state");
        assert_eq!(job.call("POST", "/pause").await.expect(200).json()["state"], "paused");
        job.call("POST", "/pause").await.problem(409, "wrong_state");
        let refused = job.submit(1, "c", "", &update(1.0)).await.problem(409, "wrong_state");
        assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("paused")), "{refused}");
        assert_eq!(api.checkin("c", &json!({"job": "a"})).await.expect(200).json()["task"], "wait");
        assert_eq!(job.call("POST", "/resume").await.expect(200).json()["state"], "running");
        job.accepted(1, "c", "", &update(1.0)).await;
    }

    async fn a_stopped_job_keeps_its_models_and_nothing_else_happens(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let job = api.begin("a", json!({"goal": 1}), &model()).await;
        let patched = api.patch(&job.path, &json!({"goal": 3, "deadline": "1h"})).await.expect(200).json();
        assert_eq!((&patched["spec"]["goal"], &patched["spec"]["deadline"]), (&json!(3), &json!("1h")));
        let whole = job.accepted(1, "c", "", &update(1.0)).await;
        job.open_round(2).await;
        let half = job.accepted(2, "c", "", &update(3.0)).await;
        assert_eq!(job.call("POST", "/stop").await.expect(200).json()["state"], "stopped");
        assert_eq!(api.receipt(&whole).await["state"], "committed");
        let dropped = api.receipt_in(&half, "discarded").await;
        assert_eq!(dropped["code"], "round_closed", "{dropped}");
        assert!(dropped["reason"].as_str().is_some_and(|reason| reason.contains("stopped")), "{dropped}");
        let closed = job.submit(2, "e", "", &update(4.0)).await.problem(410, "round_closed");
        assert_eq!(closed["next_round"], Value::Null);
        for action in ["/stop", "/pause", "/resume"] {
            job.call("POST", action).await.problem(409, "wrong_state");
        }
        api.patch(&job.path, &json!({"rounds": 5})).await.problem(409, "wrong_state");
        job.model(1).await;
        server.holds_no_slabs().await;
    }

    /// The goal of the open round stands; the next has the new one.
    async fn a_patch_changes_what_is_to_come(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 2, "rounds": 9}), &model()).await;
        server.api().patch(&job.path, &json!({"goal": 1, "rounds": 2})).await.expect(200);
        assert_eq!(job.round().await["goal"], 2);
        job.accepted(1, "c", "", &update(1.0)).await;
        job.accepted(1, "d", "", &update(1.0)).await;
        assert_eq!(job.open_round(2).await["goal"], 1);
        job.accepted(2, "c", "", &update(1.0)).await;
        job.in_state("completed").await;
        for bad in [json!({"goal": 0}), json!({"name": "b"}), json!({"deadline": 5}), json!([])] {
            server.api().patch(&job.path, &bad).await.problem(422, "invalid_spec");
        }
    }

    /// A straggler of the deleted job never lands in its namesake.
    async fn a_name_can_be_used_again_by_another_job(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let old = api.begin("a", json!({"goal": 3}), &model()).await;
        let task = api.checkin("c", &json!({"job": "a"})).await.expect(200).json();
        let receipt = old.accepted(1, "d", "", &update(1.0)).await;
        old.call("DELETE", "").await.expect(204);
        old.call("GET", "").await.problem(404, "not_found");
        old.call("DELETE", "").await.problem(404, "not_found");
        api.get(&format!("/v1/receipts/{}", receipt.as_str().unwrap())).await.problem(404, "not_found");
        server.holds_no_slabs().await;
        let new = api.begin("a", json!({"goal": 3}), &model()).await;
        assert_ne!(new.created["uid"], old.created["uid"]);
        assert_eq!(new.view().await["model_version"], 0);
        let query = format!("task={}", task["task_id"].as_str().expect("a task"));
        new.submit(1, "c", &query, &update(1.0)).await.problem(409, "conflict");
        assert_eq!(new.round().await["received"], 0);
    }
}
