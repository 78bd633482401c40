//! Asynchronous jobs (FedBuff), end to end: each update goes into the buffer that is open, weighted by how stale it is.

use catchment_tests::{Answer, Bus, Job, Server, Tensor, file, on_both_buses, read};
use serde_json::{Value, json};

const ELEMENTS: usize = 1000;

fn delta(seed: usize) -> Vec<f32> {
    (0..ELEMENTS).map(|i| ((seed * 31 + i * 7) % 101) as f32 / 101.0 - 0.5).collect()
}

fn body(values: &[f32]) -> Vec<u8> {
    file(&[Tensor::f32("w", &[ELEMENTS], values)])
}

async fn begin(bus: Bus, staleness: Value, more: Value) -> (Server, Job) {
    let server = Server::start(bus).await;
    let mut spec = json!({"update": "delta", "rounds": 4,
        "mode": {"async": {"buffer": 2, "staleness": staleness, "staleness_max": 2}}});
    spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let job = server.api().begin("buffered", spec, &body(&vec![1.0; ELEMENTS])).await;
    (server, job)
}

/// Sends a delta that was trained from `base`.
async fn send(job: &Job, base: u64, client: &str, weight: f64, seed: usize) -> Answer {
    let model = job.call("GET", &format!("/model?version={base}")).await;
    let etag = model.header("etag").to_owned();
    let headers = [("catchment-base", etag.as_str())];
    job.submit_with(base, client, &format!("weight={weight}"), &headers, &body(&delta(seed))).await
}

async fn weights(job: &Job, version: u64) -> Vec<f64> {
    job.published(version).await;
    read(&job.model(version).await)["w"].clone()
}

/// The model before, and what a buffer of (weight, factor, seed) makes of it.
fn assert_next(before: &[f64], after: &[f64], buffer: &[(f64, f64, usize)]) {
    let total: f64 = buffer.iter().map(|(weight, ..)| weight).sum();
    for i in 0..ELEMENTS {
        let sum: f64 = buffer.iter().map(|(weight, factor, seed)| weight * factor * f64::from(delta(*seed)[i])).sum();
        let expected = before[i] + sum / total;
        assert!((after[i] - expected).abs() < 1e-6, "element {i}: {} instead of {expected}", after[i]);
    }
}

on_both_buses! {
    /// Three buffers: fresh updates, one that is a version behind, one that is two; a third is too old.
    async fn stale_updates_count_less(bus: Bus) {
        let (server, job) = begin(bus, json!({"polynomial": {"a": 0.5}}), json!({})).await;
        send(&job, 0, "a", 1.0, 1).await.expect(202);
        send(&job, 0, "b", 3.0, 2).await.expect(202);
        let (zero, one) = (weights(&job, 0).await, weights(&job, 1).await);
        assert_next(&zero, &one, &[(1.0, 1.0, 1), (3.0, 1.0, 2)]);
        // Late by one version: c still trained from version 0.
        send(&job, 1, "a", 1.0, 3).await.expect(202);
        let late = send(&job, 0, "c", 2.0, 4).await.expect(202).json()["receipt"].clone();
        let two = weights(&job, 2).await;
        assert_next(&one, &two, &[(1.0, 1.0, 3), (2.0, 0.5f64.sqrt(), 4)]);
        assert_eq!(server.api().receipt_in(&late, "committed").await["model_version"], 2);
        // The same again is the same receipt, though it is in an earlier buffer; other bytes conflict.
        assert_eq!(send(&job, 0, "c", 2.0, 4).await.expect(200).json()["receipt"], late);
        send(&job, 0, "c", 2.0, 5).await.problem(409, "conflict");
        send(&job, 0, "d", 1.0, 6).await.expect(202);
        send(&job, 2, "a", 1.0, 7).await.expect(202);
        let three = weights(&job, 3).await;
        assert_next(&two, &three, &[(1.0, 3f64.sqrt().recip(), 6), (1.0, 1.0, 7)]);
        let gone = send(&job, 0, "e", 1.0, 8).await;
        assert_eq!(gone.problem(410, "round_closed")["next_round"], 3);
        send(&job, 1, "e", 1.0, 8).await.expect(202);
        send(&job, 3, "a", 1.0, 9).await.expect(202);
        let four = weights(&job, 4).await;
        assert_next(&three, &four, &[(1.0, 3f64.sqrt().recip(), 8), (1.0, 1.0, 9)]);
        job.in_state("completed").await;
        server.holds_no_slabs().await;
    }

    /// Many clients that never wait for each other: every update that was answered with 202 is in exactly one version.
    async fn nobody_waits_and_nothing_is_lost(bus: Bus) {
        let more = json!({"rounds": 12, "mode": {"async": {"buffer": 3, "staleness": "constant", "staleness_max": 50}}});
        let (server, job) = begin(bus, json!("constant"), more).await;
        let clients = (0..6).map(|client| {
            let job = job.clone();
            async move {
                let mut receipts = Vec::new();
                loop {
                    let task = job.api.checkin(&format!("c{client}"), &json!({"job": "buffered"})).await.expect(200).json();
                    match task["task"].as_str() {
                        Some("train") => {
                            let base = task["round"].as_u64().expect("a version");
                            assert_eq!(task["model_version"], base);
                            let answer = send(&job, base, &format!("c{client}"), 1.0, client).await;
                            match answer.status {
                                202 => receipts.push(answer.json()["receipt"].clone()),
                                200 | 410 | 503 | 409 => {}
                                _ => panic!("{answer:?}"),
                            }
                        }
                        Some("stop") => return receipts,
                        _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                    }
                }
            }
        });
        let receipts: Vec<Value> = futures::future::join_all(clients).await.concat();
        let mut in_version = std::collections::BTreeMap::<u64, u64>::new();
        for receipt in &receipts {
            let receipt = server.api().receipt(receipt).await;
            match receipt["state"].as_str() {
                Some("committed") => *in_version.entry(receipt["model_version"].as_u64().expect("a version")).or_default() += 1,
                state => panic!("{state:?}: {receipt}"),
            }
        }
        assert_eq!(in_version, (1..=12).map(|version| (version, 3)).collect());
        server.holds_no_slabs().await;
    }

    /// A buffer survives the node's death.
    async fn a_killed_node_goes_on_with_its_buffer(bus: Bus) {
        let (mut server, job) = begin(bus, json!("constant"), json!({})).await;
        send(&job, 0, "a", 1.0, 1).await.expect(202);
        server.kill9();
        server.start_again().await;
        let job = job.through(&server.api());
        send(&job, 0, "b", 1.0, 2).await.expect(202);
        let (zero, one) = (weights(&job, 0).await, weights(&job, 1).await);
        assert_next(&zero, &one, &[(1.0, 1.0, 1), (1.0, 1.0, 2)]);
    }

    /// What cannot work is refused when the job is created, each field by its name.
    async fn a_spec_that_cannot_be_asynchronous_is_refused(bus: Bus) {
        let server = Server::start(bus).await;
        let mode = json!({"async": {"buffer": 2}});
        for (spec, field) in [
            (json!({"mode": mode}), "update"),
            (json!({"mode": mode, "update": "delta", "goal": 5}), "goal"),
            (json!({"mode": mode, "update": "delta", "exact": {"bound": 1, "weight_max": 1, "updates_max": 10}}), "exact"),
            (json!({"mode": mode, "update": "delta", "function": "median"}), "mode"),
            (json!({"mode": {"async": {"buffer": 0}}, "update": "delta"}), "mode.async.buffer"),
            (json!({"mode": {"async": {"buffer": 2, "staleness": {"hinge": {"a": -1, "b": 1}}}}, "update": "delta"}),
                "mode.async.staleness.hinge.a"),
            (json!({"mode": "eventually"}), "mode"),
        ] {
            let mut whole = json!({"name": "bad", "function": "fedavg"});
            whole.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
            let problem = server.api().post("/v1/jobs", &whole).await.problem(422, "invalid_spec");
            let named = problem["fields"].as_array().expect("fields").iter().any(|f| f["field"] == field);
            assert!(named, "{field} in {problem}");
        }
    }
}
