//! No room in shared memory.

use crate::holds_no_more_than;
use catchment_tests::{Bus, Raw, Server, Tensor, assert_close, file, on_both_buses, read, request_head};
use serde_json::json;
use std::time::Duration;

/// A megabyte of numbers.
const LARGE: usize = 1 << 18;

fn large(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[LARGE], &vec![value; LARGE])])
}

/// Sends most of an update, and goes on slowly: it holds the memory that it was granted.
async fn hold(server: &Server, path: &str) -> AbortOnDrop {
    let (body, mut raw) = (large(1.0), Raw::connect(server.address()).await);
    let rest = body.len() - 200_000;
    raw.send(request_head(path, &[("content-length", &body.len().to_string())]).as_bytes()).await;
    raw.send(&body[..rest]).await;
    AbortOnDrop(tokio::spawn(async move {
        for part in body[rest..].chunks(400) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            raw.send(part).await;
        }
    }))
}

/// A client that hangs up when it is dropped.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

on_both_buses! {
    /// Twelve megabytes: the accumulator of a round takes four, finishing it two, each update one.
    async fn an_update_without_room_is_told_to_come_again(bus: Bus) {
        let server = Server::start_with(bus, &[("--slab-mib", "12"), ("--body-grace", "60s")]).await;
        let api = server.api();
        let job = api.begin("a", json!({"goal": 3, "rounds": 1}), &large(0.0)).await;
        let before = server.observe();
        let mut holders = Vec::new();
        for k in 0..11 {
            holders.push(hold(&server, &job.update_path(1, &format!("h{k}"), "")).await);
        }
        catchment_tests::until("the memory is taken", async || {
            (api.metrics().await.sum("catchment_slab_bytes", &[("state", "granted")]) > 5e6).then_some(())
        })
        .await;
        for _ in 0..3 {
            let problem = job.submit(1, "c", "", &large(1.0)).await.problem(429, "no_room");
            assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("try again")), "{problem}");
        }
        assert_eq!(job.round().await["received"], 0);
        // They hang up, and room is back.
        drop(holders);
        holds_no_more_than(&server, before).await;
        for (client, value) in [("c", 1.0), ("d", 2.0), ("e", 6.0)] {
            job.accepted(1, client, "", &large(value)).await;
        }
        job.in_state("completed").await;
        let expected = [("w".to_owned(), vec![3.0; LARGE])].into();
        assert_close(&read(&job.model(1).await), &expected, 1e-6);
        server.holds_no_slabs().await;
    }

    /// Far more updates than there is memory: everybody who is told to come again does, and all are counted.
    async fn a_flood_is_counted_in_the_room_there_is(bus: Bus) {
        let server = Server::start_with(bus, &[("--slab-mib", "9")]).await;
        let job = server.api().begin("a", json!({"goal": 30, "rounds": 1}), &large(0.0)).await;
        let clients = (0..30).map(|k| {
            let job = job.clone();
            tokio::spawn(async move {
                let body = large(k as f32);
                loop {
                    let answer = job.submit(1, &format!("c{k}"), "", &body).await;
                    match answer.status {
                        202 => return,
                        _ => answer.problem(429, "no_room"),
                    };
                }
            })
        });
        for client in futures::future::join_all(clients).await {
            client.expect("a client");
        }
        job.in_state("completed").await;
        let expected = [("w".to_owned(), vec![14.5; LARGE])].into();
        assert_close(&read(&job.model(1).await), &expected, 1e-6);
        server.holds_no_slabs().await;
    }

    /// A model that could never be aggregated here is not left waiting for room that cannot come.
    async fn a_model_larger_than_the_memory_is_refused(bus: Bus) {
        let server = Server::start_with(bus, &[("--slab-mib", "1")]).await;
        let job = server.api().create("a", json!({})).await;
        let problem = job.put_model(&large(0.0)).await.problem(422, "invalid_spec");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("--slab-mib")), "{problem}");
        server.holds_no_slabs().await;
    }
}
