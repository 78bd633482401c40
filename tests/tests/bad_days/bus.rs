//! NATS goes away in the middle, and comes back.

use crate::{mean_of, update};
use catchment_tests::{Bus, Server, read, run, until};
use serde_json::json;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_wait_out_the_death_of_nats_and_count_once() {
    run(test()).await;
}

async fn test() {
    let mut server = Server::start(Bus::Nats).await;
    let api = server.api();
    let job = api.begin("a", json!({"goal": 4, "rounds": 2}), &update(0.0)).await;
    let mut receipts =
        vec![job.accepted(1, "c0", "", &update(0.0)).await, job.accepted(1, "c1", "", &update(1.0)).await];
    for life in 0..2 {
        server.nats().kill();
        let begun = Instant::now();
        let (client, body) = (format!("c{}", 2 + life), update((2 + life) as f32));
        let refused = job.submit(1, &client, "", &body).await.problem(503, "log_unavailable");
        assert!(begun.elapsed() < Duration::from_secs(10), "answered after {:?}", begun.elapsed());
        assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("send it again")), "{refused}");
        api.get("/readyz").await.problem(503, "not_ready");
        api.get("/healthz").await.expect(200);
        // What is known can still be read.
        assert_eq!(job.round().await["received"], 2 + life);
        job.model(0).await;
        api.post("/v1/jobs", &json!({"name": "b", "function": "fedavg"})).await.problem(503, "log_unavailable");
        server.nats().start_again();
        let receipt = until("the same update is accepted", async || {
            let answer = job.submit(1, &client, "", &body).await;
            match answer.status {
                200 | 202 => Some(answer.json()["receipt"].clone()),
                _ => {
                    answer.problem(503, "log_unavailable");
                    None
                }
            }
        })
        .await;
        receipts.push(receipt);
        until("ready again", async || (api.get("/readyz").await.status == 200).then_some(())).await;
    }
    // The one that was refused may have been stored after all; then it stood for its client, and counts once.
    job.published(1).await;
    for receipt in &receipts {
        assert_eq!(api.receipt(receipt).await["state"], "committed");
    }
    assert_eq!(job.call("GET", "/models?limit=1").await.json()["items"][0]["contributors"], 4);
    assert_eq!(read(&job.model(1).await)["w"], mean_of(&[0.0, 1.0, 2.0, 3.0]));
    // Events flow again as well: nothing here waits for a sweep.
    job.open_round(2).await;
    for k in 0..4 {
        job.accepted(2, &format!("c{k}"), "", &update(k as f32)).await;
    }
    job.in_state("completed").await;
    server.holds_no_slabs().await;
}
