//! Updates over NATS alone: any client of the bus publishes one as a request, and the reply is the receipt.

use async_nats::HeaderMap;
use async_nats::client::RequestErrorKind;
use catchment_tests::{
    Bus, Job, PATIENCE, Raw, Server, Tensor, assert_close, file, read, request_head, run, until, weighted_mean,
};
use futures::StreamExt;
use serde_json::{Value, json};
use std::time::Duration;

/// A client that knows NATS and nothing of HTTP.
struct Outside {
    client: async_nats::Client,
}

impl Outside {
    async fn connect(server: &mut Server) -> Self {
        let options = async_nats::ConnectOptions::new().request_timeout(Some(Duration::from_secs(20)));
        Self { client: options.connect(server.nats().url()).await.expect("connect to NATS") }
    }

    async fn send(&self, subject: &str, headers: &[(&str, &str)], body: &[u8]) -> Value {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, *value));
        let reply = self.client.request_with_headers(subject.to_owned(), map, body.to_vec().into()).await;
        let reply = reply.unwrap_or_else(|error| panic!("{subject}: {error}"));
        serde_json::from_slice(&reply.payload).expect("a reply in JSON")
    }
}

fn model() -> Vec<u8> {
    update(0.0)
}

fn update(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[3], &[value, value + 1.0, value + 2.0])])
}

fn assert_problem(reply: &Value, status: u16, code: &str) {
    assert_eq!((&reply["status"], &reply["code"]), (&json!(status), &json!(code)), "{reply}");
    assert!(reply["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{reply}");
    assert!(reply.get("retryable").is_some() && reply.get("receipt").is_none_or(|_| code == "conflict"), "{reply}");
}

async fn begin(server: &Server, spec: Value) -> Job {
    server.api().begin("lora", spec, &model()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reply_to_an_update_is_its_receipt() {
    run(async {
        let mut server = Server::start(Bus::Nats).await;
        let job = begin(&server, json!({"goal": 3, "rounds": 1, "namespace": "lab"})).await;
        let outside = Outside::connect(&mut server).await;
        let subject = |client: &str| format!("catchment.v1.lab.lora.ingest.1.{client}");
        let headers =
            [("Catchment-Weight", "2.5"), ("Catchment-Num-Samples", "7"), ("Catchment-Metrics", "{\"loss\":3}")];
        let receipt = outside.send(&subject("c"), &headers, &update(1.0)).await;
        for (member, expected) in
            [("client", json!("c")), ("round", json!(1)), ("weight", json!(2.5)), ("namespace", json!("lab"))]
        {
            assert_eq!(receipt[member], expected, "{receipt}");
        }
        // The same again, over either way in, is the same update.
        let again = outside.send(&subject("c"), &headers, &update(1.0)).await;
        assert_eq!(again["receipt"], receipt["receipt"]);
        let http = [("catchment-metrics", "{\"loss\":3}")];
        let over_http =
            job.submit_with(1, "c", "weight=2.5&num_samples=7", &http, &update(1.0)).await.expect(200).json();
        assert_eq!(over_http["receipt"], receipt["receipt"]);

        let samples = outside.send(&subject("d"), &[("Catchment-Num-Samples", "4")], &update(5.0)).await;
        assert_eq!(samples["weight"], 4.0);
        job.accepted(1, "e", "", &update(9.0)).await;
        job.in_state("completed").await;
        for receipt in [&receipt, &samples] {
            assert_eq!(server.api().receipt(&receipt["receipt"]).await["state"], "committed");
        }
        let sent = [(2.5, read(&update(1.0))), (4.0, read(&update(5.0))), (1.0, read(&update(9.0)))];
        assert_close(&read(&job.model(1).await), &weighted_mean(&sent), 1e-6);
        server.holds_no_slabs().await;
    })
    .await;
}

/// Only the node that holds an update can fold it, so no other one asks to be told of it. Whoever listens outside is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_not_woken_by_updates_that_others_hold() {
    run(async {
        let mut server = Server::start(Bus::Nats).await;
        let job = begin(&server, json!({"goal": 3, "rounds": 1})).await;
        let outside = Outside::connect(&mut server).await;
        let subject = "catchment.v1.default.lora.update.accepted";
        let error = outside.client.request(subject, "".into()).await.expect_err("no node answers");
        assert_eq!(error.kind(), RequestErrorKind::NoResponders, "{error}");
        let mut events = outside.client.subscribe(subject).await.expect("subscribe");
        outside.client.flush().await.expect("reach NATS");
        for client in ["a", "b", "c"] {
            let receipt = job.accepted(1, client, "", &update(1.0)).await;
            let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("an event").expect("an event");
            assert_eq!(event.payload.len(), 64);
            // Nothing else wakes the task before the round is complete.
            if client != "c" {
                server.api().receipt_in(&receipt, "folded").await;
            }
        }
        job.in_state("completed").await;
    })
    .await;
}

/// Two clusters on one server, each with a job of the same name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_with_different_prefixes_see_nothing_of_each_other() {
    run(async {
        let mut one = Server::start(Bus::Nats).await;
        let url = one.nats().url();
        let other = Server::start_with(Bus::Embedded, &[("--nats", &url), ("--nats-prefix", "LAB-2")]).await;
        let (job, other_job) = (begin(&one, json!({"goal": 9})).await, begin(&other, json!({"goal": 9})).await);
        let outside = Outside::connect(&mut one).await;
        for (prefix, client, job) in [("catchment", "a", &job), ("lab-2", "b", &other_job)] {
            let uid = &job.view().await["uid"];
            // Of two members of one group, either might answer.
            for k in 0..4 {
                let subject = format!("{prefix}.v1.default.lora.ingest.1.{client}{k}");
                assert_eq!(outside.send(&subject, &[], &update(1.0)).await["uid"], *uid, "{subject}");
            }
        }
        for (server, job) in [(&one, &job), (&other, &other_job)] {
            assert_eq!(job.round().await["received"], 4);
            // They speak once a second.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let nodes = server.api().get("/v1/nodes").await.expect(200).json();
            assert_eq!(nodes["items"].as_array().map(Vec::len), Some(1), "{nodes}");
            let jobs = server.api().get("/v1/jobs").await.expect(200).json();
            assert_eq!(jobs["items"].as_array().map(Vec::len), Some(1), "{jobs}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reply_to_a_bad_update_is_the_problem() {
    run(async {
        let mut server = Server::start(Bus::Nats).await;
        let job = begin(&server, json!({"goal": 2, "rounds": 1})).await;
        let outside = Outside::connect(&mut server).await;
        let subject = "catchment.v1.default.lora.ingest.1.c";
        let nan = file(&[Tensor::f32("w", &[3], &[1.0, f32::NAN, 2.0])]);
        let digest = [("Catchment-Digest", &*"0".repeat(64))];
        for (subject, headers, body, status, code) in [
            (subject, &[][..], nan, 422, "not_finite"),
            (subject, &[], b"nothing".to_vec(), 400, "truncated"),
            (subject, &[], vec![], 400, "truncated"),
            (subject, &[], file(&[Tensor::f32("v", &[3], &[0.0; 3])]), 422, "layout"),
            (subject, &[("Catchment-Weight", "0")], update(1.0), 422, "out_of_range"),
            (subject, &[("Catchment-Weight", "heavy")], update(1.0), 400, "bad_request"),
            (subject, &[("Catchment-Num-Samples", "0")], update(1.0), 422, "out_of_range"),
            (subject, &[("Catchment-Num-Samples", "-1")], update(1.0), 400, "bad_request"),
            (subject, &[("Catchment-Task", "mine")], update(1.0), 409, "conflict"),
            (subject, &[("Catchment-Uid", "mine")], update(1.0), 400, "bad_request"),
            (subject, &digest, update(1.0), 422, "checksum"),
            (subject, &[], [&update(1.0)[..], &[0]].concat(), 422, "invalid_safetensors"),
            (subject, &[("Catchment-Metrics", "[]")], update(1.0), 400, "bad_request"),
            (subject, &[("Catchment-Metrics", "{} {}")], update(1.0), 400, "bad_request"),
            ("catchment.v1.default.nosuch.ingest.1.c", &[], update(1.0), 404, "not_found"),
            ("catchment.v1.default.lora.ingest.one.c", &[], update(1.0), 400, "bad_request"),
            ("catchment.v1.default.lora.ingest.9.c", &[], update(1.0), 404, "not_found"),
            ("catchment.v1.default.lora.ingest.1.c$d", &[], update(1.0), 400, "bad_request"),
        ] {
            assert_problem(&outside.send(subject, headers, &body).await, status, code);
        }
        assert_eq!(job.round().await["received"], 0);
        server.holds_no_slabs().await;

        outside.send(subject, &[], &update(1.0)).await;
        assert_problem(&outside.send(subject, &[], &update(2.0)).await, 409, "conflict");
        outside.send("catchment.v1.default.lora.ingest.1.d", &[], &update(3.0)).await;
        job.in_state("completed").await;
        assert_problem(
            &outside.send("catchment.v1.default.lora.ingest.1.e", &[], &update(3.0)).await,
            410,
            "round_closed",
        );
    })
    .await;
}

/// A request that waits for memory is answered when the node ends, instead of being left without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_under_way_is_answered_when_the_node_ends() {
    run(async {
        let settings = [("--slab-mib", "12"), ("--body-grace", "60s"), ("--room-wait", "30s")];
        let mut server = Server::start_with(Bus::Nats, &settings).await;
        let large = |elements: usize| file(&[Tensor::f32("w", &[elements], &vec![1.0; elements])]);
        let whole = large(1 << 18);
        let full = server.api().begin("full", json!({"goal": 20}), &whole).await;
        let waits = server.api().begin("waits", json!({"goal": 20}), &large(1 << 17)).await;
        let mut raws = Vec::new();
        for k in 0..6 {
            let mut raw = Raw::connect(server.address()).await;
            let length = whole.len().to_string();
            let head = request_head(&full.update_path(1, &format!("h{k}"), ""), &[("content-length", &length)]);
            raw.send(&[head.as_bytes(), &whole[..whole.len() - 1000]].concat()).await;
            raws.push(raw);
        }
        until("the memory is taken", async || {
            let granted = [("state", "granted")];
            (server.api().metrics().await.sum("catchment_slab_bytes", &granted) > 5e6).then_some(())
        })
        .await;
        assert_eq!(waits.round().await["received"], 0);
        let outside = Outside::connect(&mut server).await;
        let sent =
            tokio::spawn(
                async move { outside.send("catchment.v1.default.waits.ingest.1.c", &[], &large(1 << 17)).await },
            );
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(server.stop().await.success());
        assert_problem(&sent.await.expect("an answer"), 503, "not_ready");
    })
    .await;
}

/// Hundreds at once through one subject tree: everybody gets the own receipt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_over_nats_is_counted_one_by_one() {
    run(async {
        let mut server = Server::start(Bus::Nats).await;
        let job = begin(&server, json!({"goal": 300, "rounds": 1})).await;
        let outside = Outside::connect(&mut server).await;
        let calls = (0..300).map(|k| {
            let outside = &outside;
            async move {
                let subject = format!("catchment.v1.default.lora.ingest.1.c{k}");
                let receipt = outside.send(&subject, &[], &update(k as f32)).await;
                assert_eq!(receipt["client"], format!("c{k}"), "{receipt}");
            }
        });
        futures::future::join_all(calls).await;
        job.in_state("completed").await;
        assert_close(&read(&job.model(1).await), &[("w".to_owned(), vec![149.5, 150.5, 151.5])].into(), 1e-6);
        server.holds_no_slabs().await;
    })
    .await;
}

/// A job was deleted, and another has its name: what is on its way for the old one does not land in the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_for_a_deleted_job_lands_in_no_namesake() {
    run(async {
        let mut server = Server::start(Bus::Nats).await;
        let old = begin(&server, json!({"goal": 5})).await;
        let outside = Outside::connect(&mut server).await;
        let subject = |client: &str| format!("catchment.v1.default.lora.ingest.1.{client}");
        outside.send(&subject("before"), &[], &update(1.0)).await["receipt"].as_str().expect("a receipt");
        old.call("DELETE", "").await.expect(204);
        let new = begin(&server, json!({"goal": 5})).await;
        let uid = |job: &Job| job.created["uid"].as_str().expect("a uid").to_owned();
        assert_problem(&outside.send(&subject("late"), &[], &update(1.0)).await, 409, "uid_required");
        let of_old = [("Catchment-Uid", &*uid(&old))];
        assert_problem(&outside.send(&subject("late"), &of_old, &update(1.0)).await, 404, "not_found");
        assert_eq!(new.round().await["received"], 0);

        let task = server.api().checkin("b", &json!({"job": "lora"})).await.expect(200).json();
        let said = |member: &str| task[member].as_str().expect("a text").to_owned();
        for (client, name, value) in [
            ("a", "Catchment-Uid", uid(&new)),
            ("b", "Catchment-Task", said("task_id")),
            ("c", "Catchment-Base", said("etag")),
        ] {
            let receipt = outside.send(&subject(client), &[(name, &*value)], &update(1.0)).await;
            assert_eq!(receipt["uid"], uid(&new), "{receipt}");
        }
        assert_eq!(new.round().await["received"], 3);
    })
    .await;
}
