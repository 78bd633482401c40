//! A server that is told to end answers whoever waits, and holds itself up for nobody.

use crate::update;
use catchment_tests::{
    Answer, Api, Bus, Raw, Server, Tensor, file, on_both_buses, request_head, request_head_of, until,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Ends the server; gives the time that it took.
async fn ends(server: &mut Server) -> Duration {
    let begun = Instant::now();
    assert!(server.stop().await.success());
    begun.elapsed()
}

/// Makes a call beside everything else.
fn call(
    api: &Api,
    method: &'static str,
    path: String,
    body: Option<Vec<u8>>,
) -> JoinHandle<Result<Answer, reqwest::Error>> {
    let api = api.clone();
    tokio::spawn(async move { api.try_call(method, &path, &[], body).await })
}

on_both_buses! {
    async fn every_poller_is_answered_at_once(bus: Bus) {
        let mut server = Server::start(bus).await;
        let job = server.api().begin("a", json!({}), &update(0.0)).await;
        let (round, before) = (job.round().await, server.observe());
        let after = round["revision"].as_u64().expect("a revision");
        let mut polls = Vec::new();
        for _ in 0..50 {
            let api = Api::new(server.address());
            polls.push(call(&api, "GET", format!("{}/round?wait=60s&after={after}", job.path), None));
        }
        until("all are there", async || (server.observe().files >= before.files + 50).then_some(())).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let took = ends(&mut server).await;
        for poll in polls {
            let seen: Value = poll.await.expect("it runs").expect("an answer").expect(200).json();
            assert_eq!((&seen["revision"], &seen["round"], &seen["state"]), (&round["revision"], &json!(1), &json!("open")));
        }
        assert!(took < Duration::from_secs(1), "it ended after {took:?}");
    }

    /// Bodies that have begun, calls that wait for memory or for a round, and connections on which nothing comes.
    async fn whoever_waits_for_something_is_told(bus: Bus) {
        let settings = [("--slab-mib", "12"), ("--body-grace", "60s"), ("--park-time", "60s"), ("--room-wait", "30s")];
        let mut server = Server::start_with(bus, &settings).await;
        let elements = 1 << 18;
        let large = file(&[Tensor::f32("w", &[elements], &vec![1.0; elements])]);
        let api = server.api();
        let job = api.begin("a", json!({"goal": 20}), &large).await;
        let length = large.len().to_string();
        // Their heads are here, and memory is granted; each has a little more to say, slowly.
        let mut bodies = Vec::new();
        for k in 0..6 {
            let mut raw = Raw::connect(server.address()).await;
            let head = request_head(&job.update_path(1, &format!("h{k}"), ""), &[("content-length", &length)]);
            raw.send(&[head.as_bytes(), &large[..large.len() - 4000]].concat()).await;
            bodies.push(raw);
        }
        until("the memory is taken", async || {
            (api.metrics().await.sum("catchment_slab_bytes", &[("state", "granted")]) > 5e6).then_some(())
        })
        .await;
        let next = call(&api, "PUT", job.update_path(2, "next", ""), Some(large.clone()));
        let mut texts = Vec::new();
        for (method, path) in [("POST", "/v1/clients/c/checkin".to_owned()), ("PATCH", job.path.clone())] {
            let mut raw = Raw::connect(server.address()).await;
            raw.send(request_head_of(method, &path, &[("content-length", "10")]).as_bytes()).await;
            raw.send(b"{").await;
            texts.push(raw);
        }
        let mut half_a_head = Raw::connect(server.address()).await;
        half_a_head.send(b"GET /healthz HTT").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let took = ends(&mut server).await;
        assert!(took < Duration::from_secs(3), "it ended after {took:?}");
        for raw in bodies.iter_mut().chain(&mut texts) {
            let answer = raw.answer().await.expect("an answer");
            assert!([503, 408].contains(&answer.status), "{}", answer.text());
            assert_eq!(answer.json()["retryable"], true);
        }
        half_a_head.closed().await;
        // A round that is not the next one is unknown, and that is an answer, too.
        let answer = next.await.expect("it runs").expect("an answer");
        assert!([404, 503].contains(&answer.status), "{}", answer.text());
    }

    /// An update that is sent to the end is accepted, although the server ends: it is there after the next start.
    async fn what_comes_to_its_end_is_accepted(bus: Bus) {
        let mut server = Server::start_with(bus, &[("--body-grace", "60s")]).await;
        let job = server.api().begin("a", json!({"goal": 2, "rounds": 1}), &update(0.0)).await;
        let body = update(1.0);
        let head = request_head(&job.update_path(1, "c", ""), &[("content-length", &body.len().to_string())]);
        let mut raw = Raw::connect(server.address()).await;
        raw.send(&[head.as_bytes(), &body[..2000]].concat()).await;
        until("it is being received", async || {
            (server.api().metrics().await.slab_bytes_in_use() > 0).then_some(())
        })
        .await;
        let rest = tokio::spawn(async move {
            for part in body[2000..].chunks(300) {
                tokio::time::sleep(Duration::from_millis(50)).await;
                raw.send(part).await;
            }
            raw.answer().await
        });
        let took = ends(&mut server).await;
        rest.await.expect("it runs").expect("an answer").expect(202);
        assert!(took < Duration::from_secs(4), "it ended after {took:?}");
        server.start_again().await;
        let job = job.through(&server.api());
        job.submit(1, "c", "", &update(1.0)).await.expect(200);
        job.accepted(1, "d", "", &update(2.0)).await;
        job.in_state("completed").await;
    }
}
