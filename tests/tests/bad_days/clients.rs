//! Clients that are slow, or gone.

use crate::{ELEMENTS, holds_no_more_than, lives_on, mean_of, update};
use catchment_tests::{Bus, Raw, Server, on_both_buses, read, request_head, until};
use serde_json::json;
use std::time::{Duration, Instant};

on_both_buses! {
    async fn a_client_that_hangs_up_half_way_leaves_nothing(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 2, "rounds": 1}), &update(0.0)).await;
        let before = server.observe();
        let body = update(1.0);
        for cut in 0..60 {
            let head = request_head(&job.update_path(1, "c", ""), &[("content-length", &body.len().to_string())]);
            let mut raw = Raw::connect(server.address()).await;
            raw.send(head.as_bytes()).await;
            raw.send(&body[..body.len() * cut / 60]).await;
            if cut % 3 == 0 {
                // In the middle of a body that the server is certainly reading.
                let bytes = async || (server.api().metrics().await.slab_bytes_in_use() > 0 || cut < 6).then_some(());
                until("the body is being received", bytes).await;
            }
            drop(raw);
        }
        holds_no_more_than(&server, before).await;
        assert_eq!(job.round().await["received"], 0);
        // None of the sixty stands in the way of the one that comes whole.
        job.accepted(1, "c", "", &body).await;
        job.accepted(1, "d", "", &update(3.0)).await;
        job.in_state("completed").await;
        assert_eq!(read(&job.model(1).await)["w"], mean_of(&[1.0, 3.0]));
    }

    /// Whoever sends everything and does not wait for the answer is counted all the same, or not at all.
    async fn a_client_that_does_not_wait_is_counted_once(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 40, "rounds": 1}), &update(0.0)).await;
        let before = server.observe();
        for k in 0..20 {
            let body = update(k as f32);
            let head = request_head(&job.update_path(1, &format!("c{k}"), ""), &[("content-length", &body.len().to_string())]);
            let mut raw = Raw::connect(server.address()).await;
            raw.send(&[head.as_bytes(), &body].concat()).await;
        }
        // Twenty are too many; the round's accumulators are files, too, and those of the runners.
        until("the connections are gone", async || (server.observe().files <= before.files + 8).then_some(())).await;
        let mut sent = Vec::new();
        for k in 0..40 {
            let answer = job.submit(1, &format!("c{k}"), "", &update(k as f32)).await;
            assert!([200, 202].contains(&answer.status), "{}", answer.text());
            sent.push(k as f32);
        }
        job.in_state("completed").await;
        assert_eq!(job.view().await["round"]["received"], 40);
        assert_eq!(read(&job.model(1).await)["w"], mean_of(&sent));
        server.holds_no_slabs().await;
    }

    async fn a_slow_body_is_cut_off_and_does_not_hold_up_others(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 2, "rounds": 1}), &update(0.0)).await;
        let before = server.observe();
        let body = update(1.0);
        let head = request_head(&job.update_path(1, "slow", ""), &[("content-length", &body.len().to_string())]);
        let mut slow = Raw::connect(server.address()).await;
        slow.send(head.as_bytes()).await;
        let begun = Instant::now();
        let (address, path) = (server.address().to_owned(), job.path.clone());
        let trickle = tokio::spawn(async move {
            for byte in body.chunks(1) {
                if begun.elapsed() > Duration::from_secs(2) || !slow.send(byte).await {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (slow.answer().await.expect("an answer"), begun.elapsed())
        });
        // A second one that stops in the middle of its head of tensors, and one that says nothing at all.
        let mut silent = Raw::connect(&address).await;
        silent.send(request_head(&format!("{path}/rounds/1/updates/silent"), &[("content-length", "4096")]).as_bytes()).await;
        job.accepted(1, "c", "", &update(1.0)).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "others are not held up");
        let (answer, after) = trickle.await.expect("the slow client");
        let problem = answer.problem(408, "too_slow");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("1024 bytes a second")), "{problem}");
        assert!(after < Duration::from_secs(15), "cut off after {after:?}");
        silent.answer().await.expect("an answer").problem(408, "too_slow");
        drop(silent);
        job.accepted(1, "d", "", &update(3.0)).await;
        job.in_state("completed").await;
        holds_no_more_than(&server, before).await;
    }

    /// A head that never ends: sixteen connections of it are closed, and others are served meanwhile.
    async fn a_head_that_never_ends_is_cut_off(bus: Bus) {
        let server = Server::start(bus).await;
        let before = server.observe();
        let begun = Instant::now();
        let lines: Vec<_> = (0..16)
            .map(|_| {
                let address = server.address().to_owned();
                tokio::spawn(async move {
                    let mut raw = Raw::connect(&address).await;
                    raw.send(b"GET /healthz HTTP/1.1\r\n").await;
                    while begun.elapsed() < Duration::from_secs(60) && raw.send(b"x: y\r\n").await {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                })
            })
            .collect();
        lives_on(&server.api()).await;
        for line in lines {
            line.await.expect("a slow client");
        }
        assert!(begun.elapsed() < Duration::from_secs(40), "cut off after {:?}", begun.elapsed());
        holds_no_more_than(&server, before).await;
    }

    async fn an_update_for_a_closed_round_or_no_job_costs_nothing(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let job = api.begin("a", json!({"goal": 1, "rounds": 1}), &update(0.0)).await;
        job.accepted(1, "c", "", &update(1.0)).await;
        job.in_state("completed").await;
        server.holds_no_slabs().await;
        let before = server.observe();
        assert_eq!(ELEMENTS, 1000);
        for k in 0..30 {
            job.submit(1, &format!("late{k}"), "", &update(1.0)).await.problem(410, "round_closed");
            let path = format!("/v1/jobs/nosuch/rounds/1/updates/c{k}");
            api.call("PUT", &path, &[], Some(update(1.0))).await.problem(404, "not_found");
            assert_eq!(api.metrics().await.slab_bytes_in_use(), 0);
        }
        holds_no_more_than(&server, before).await;
        // Nobody can make labels by asking for jobs that do not exist.
        let metrics = api.metrics().await;
        assert_eq!(metrics.sum("catchment_updates_rejected_total", &[("job", ""), ("reason", "not_found")]), 30.0);
    }
}
