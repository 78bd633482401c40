//! Jobs of one name, one after the other: what was meant for the old one never lands in the new one.

use crate::{model, update};
use catchment_tests::{Answer, Api, Bus, Job, Server, on_both_buses};
use serde_json::{Value, json};

/// A job that was deleted, and one with its name, spec and model.
async fn namesakes(api: &Api, spec: Value) -> (Job, Job) {
    let old = api.begin("twin", spec.clone(), &model()).await;
    old.call("DELETE", "").await.expect(204);
    let new = api.begin("twin", spec, &model()).await;
    assert_ne!(uid(&old), uid(&new));
    (old, new)
}

fn uid(job: &Job) -> &str {
    job.created["uid"].as_str().expect("a uid")
}

async fn measure(job: &Job, query: &str, headers: &[(&str, &str)]) -> Answer {
    let path = format!("{}/models/0/evaluations/late?{query}", job.path);
    job.api.call("PUT", &path, headers, Some(br#"{"accuracy": 0.5}"#.to_vec())).await
}

fn says_how(problem: &Value) {
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(["`uid`", "/round", "check-in"].iter().all(|part| detail.contains(part)), "{detail}");
    assert_eq!(problem["retryable"], false, "{problem}");
}

on_both_buses! {
    async fn an_update_for_a_deleted_job_lands_in_no_namesake(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let (old, new) = namesakes(&api, json!({"goal": 5, "rounds": 2})).await;
        let body = update(1.0);
        says_how(&new.submit(1, "late", "num_samples=120", &body).await.problem(409, "uid_required"));
        says_how(&new.submit(1, "late", "", &body).await.problem(409, "uid_required"));
        new.submit(1, "late", &format!("uid={}", uid(&old)), &body).await.problem(404, "not_found");
        new.submit(1, "late", &format!("task={}", "0".repeat(32)), &body).await.problem(409, "conflict");
        new.submit(1, "late", "uid=here", &body).await.problem(400, "bad_request");
        new.submit(1, "late", &format!("uid={0}&uid={0}", uid(&new)), &body).await.problem(400, "bad_request");
        let other = [("catchment-base", "1".repeat(64))];
        let other = other.each_ref().map(|(name, value)| (*name, value.as_str()));
        new.submit_with(1, "late", "", &other, &body).await.problem(409, "stale_base");
        assert_eq!(new.round().await["received"], 0);

        // Each of the three says which job is meant.
        new.submit(1, "a", &format!("num_samples=120&uid={}", uid(&new)), &body).await.expect(202);
        let task = api.checkin("b", &json!({"job": "twin"})).await.expect(200).json();
        new.submit(1, "b", &format!("task={}", task["task_id"].as_str().expect("a task")), &body).await.expect(202);
        let etag = task["etag"].as_str().expect("an ETag").to_owned();
        new.submit_with(1, "c", "", &[("catchment-base", &etag)], &body).await.expect(202);
        assert_eq!(new.round().await["received"], 3);
    }

    async fn a_measurement_of_a_deleted_jobs_model_counts_for_no_namesake(bus: Bus) {
        let server = Server::start(bus).await;
        let (old, new) = namesakes(&server.api(), json!({})).await;
        says_how(&measure(&new, "num_samples=3", &[]).await.problem(409, "uid_required"));
        measure(&new, &format!("uid={}", uid(&old)), &[]).await.problem(404, "not_found");
        measure(&new, &format!("task={}", "0".repeat(32)), &[]).await.problem(409, "conflict");
        let other = "1".repeat(64);
        measure(&new, "", &[("catchment-base", &other)]).await.problem(409, "stale_base");
        let models = new.call("GET", "/models").await.expect(200).json();
        assert_eq!(models["items"][0]["evaluation"], Value::Null);
        measure(&new, &format!("num_samples=3&uid={}", uid(&new)), &[]).await.expect(201);
        let etag = models["items"][0]["etag"].as_str().expect("an ETag");
        assert_eq!(measure(&new, "num_samples=3", &[("catchment-base", etag)]).await.expect(200).json()["results"], 1);
    }

    async fn the_rest_of_an_upload_and_its_question_are_the_meant_jobs(bus: Bus) {
        let server = Server::start(bus).await;
        let (old, new) = namesakes(&server.api(), json!({"goal": 5})).await;
        new.submit(1, "c", &format!("uid={}", uid(&new)), &update(1.0)).await.expect(202);
        let ask = async |method: &str, query: &str| {
            let headers = [("upload-offset", "0")];
            let body = (method == "PATCH").then(|| update(1.0));
            new.api.call(method, &new.update_path(1, "c", query), &headers, body).await
        };
        for method in ["HEAD", "PATCH"] {
            assert_eq!(ask(method, "").await.status, 409, "{method}");
            assert_eq!(ask(method, &format!("uid={}", uid(&old))).await.status, 404, "{method}");
        }
        ask("PATCH", "").await.problem(409, "uid_required");
        let known = ask("HEAD", &format!("uid={}", uid(&new))).await.expect(204);
        assert_eq!(known.header("upload-complete"), "?1");
    }

    /// Whatever a check-in hands out names the job, so that it is of no use with another.
    async fn what_is_handed_out_names_its_job(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let old = api.begin("twin", json!({}), &model()).await;
        let task = api.checkin("c", &json!({"job": "twin"})).await.expect(200).json();
        let address = task["model_url"].as_str().expect("an address");
        assert!(address.contains(uid(&old)), "{address}");
        api.get(address).await.expect(200);
        old.call("DELETE", "").await.expect(204);
        let new = api.begin("twin", json!({}), &model()).await;
        api.get(address).await.problem(404, "not_found");
        for path in ["/model", "/round", "/rounds/1/broadcast", "/models", ""] {
            new.call("GET", &format!("{path}?uid={}", uid(&old))).await.problem(404, "not_found");
        }
        new.call("POST", &format!("/stop?uid={}", uid(&old))).await.problem(404, "not_found");
        new.call("DELETE", &format!("?uid={}", uid(&old))).await.problem(404, "not_found");
        new.call("GET", &format!("/round?uid={}", uid(&new))).await.expect(200);
        // The old task, with the address of the round that both have.
        let query = format!("task={}", task["task_id"].as_str().expect("a task"));
        new.submit(1, "c", &query, &update(1.0)).await.problem(409, "conflict");
    }

    /// A name that has stood for one job needs no more; that it has stood for two is not forgotten.
    async fn only_a_name_of_several_jobs_asks_for_more(bus: Bus) {
        let mut server = Server::start(bus).await;
        let api = server.api();
        let (_, _) = namesakes(&api, json!({"goal": 5})).await;
        let other = api.begin("single", json!({"goal": 5}), &model()).await;
        other.accepted(1, "c", "num_samples=3", &update(1.0)).await;
        let elsewhere = api.begin("twin", json!({"goal": 5, "namespace": "lab"}), &model()).await;
        elsewhere.accepted(1, "c", "", &update(1.0)).await;
        server.kill9();
        server.start_again().await;
        let api = server.api();
        other.through(&api).accepted(1, "d", "", &update(1.0)).await;
        let path = "/v1/jobs/twin/rounds/1/updates/late";
        api.call("PUT", path, &[], Some(update(1.0))).await.problem(409, "uid_required");
    }
}
