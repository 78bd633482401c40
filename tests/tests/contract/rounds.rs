//! Rounds: waited for, ended by goal or deadline; and the receipts that follow them.

use crate::{model, update};
use catchment_tests::{Bus, Server, assert_close, on_both_buses, read, until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

on_both_buses! {
    async fn a_receipt_follows_its_update_to_the_model(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let job = api.begin("a", json!({"goal": 2, "rounds": 1}), &model()).await;
        let first = job.submit(1, "c", "", &update(1.0)).await.expect(202).json();
        assert!(["accepted", "folded"].contains(&first["state"].as_str().unwrap()), "{first}");
        let folded = api.receipt_in(&first["receipt"], "folded").await;
        assert_eq!((&folded["model_version"], &folded["digest"]), (&Value::Null, &first["digest"]));
        until("the round counts it as folded", async || (job.round().await["folded"] == 1).then_some(())).await;
        let second = job.accepted(1, "d", "", &update(3.0)).await;
        for receipt in [&first["receipt"], &second] {
            let committed = api.receipt_in(receipt, "committed").await;
            assert_eq!((&committed["model_version"], &committed["code"]), (&json!(1), &Value::Null));
        }
        api.get(&format!("/v1/receipts/{}", "0".repeat(32))).await.problem(404, "not_found");
        api.get("/v1/receipts/mine").await.problem(400, "bad_request");
    }

    async fn a_long_poll_wakes_every_waiter_when_the_round_changes(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 1, "rounds": 2}), &model()).await;
        let revision = job.round().await["revision"].as_u64().expect("a revision");
        let waiters: Vec<_> = (0..20)
            .map(|_| {
                let job = job.clone();
                tokio::spawn(async move {
                    let answer = job.call("GET", &format!("/round?wait=30s&after={revision}")).await.expect(200).json();
                    (answer, Instant::now())
                })
            })
            .collect();
        // Let them arrive; one that comes late is woken all the same, and the next test is about those.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(waiters.iter().all(|waiter| !waiter.is_finished()), "nobody is woken without a change");
        job.accepted(1, "c", "", &update(1.0)).await;
        let sent = Instant::now();
        for waiter in waiters {
            let (round, woken) = waiter.await.expect("a waiter");
            assert!(round["revision"].as_u64().expect("a revision") > revision, "{round}");
            assert!(woken.duration_since(sent) < Duration::from_secs(10), "woken after {:?}", woken - sent);
        }
    }

    /// Sixty rounds that close while their watcher is about to look: a wake-up that is lost costs thirty seconds.
    async fn no_wake_up_is_lost(bus: Bus) {
        let server = Server::start(bus).await;
        let (rounds, job) = (60, server.api().begin("a", json!({"goal": 1, "rounds": 60}), &model()).await);
        let begun = Instant::now();
        let watched = job.through(&server.api());
        let watcher = tokio::spawn(async move {
            let (mut seen, mut round) = (0, watched.round().await);
            while round["job_state"] == "running" {
                let after = round["revision"].as_u64().expect("a revision");
                round = watched.call("GET", &format!("/round?wait=30s&after={after}")).await.expect(200).json();
                assert!(round["revision"].as_u64().expect("a revision") > after, "{round}");
                seen += 1;
            }
            seen
        });
        for round in 1..=rounds {
            job.open_round(round).await;
            job.accepted(round, "c", "", &update(round as f32)).await;
        }
        let seen: u64 = watcher.await.expect("the watcher");
        assert!(seen >= rounds, "{seen} changes seen of {rounds} rounds");
        assert!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
    }

    async fn a_long_poll_without_a_change_ends_with_its_time(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 2}), &model()).await;
        job.accepted(1, "c", "", &update(1.0)).await;
        let round = job.round().await;
        let revision = round["revision"].as_u64().expect("a revision");
        let begun = Instant::now();
        let same = job.call("GET", &format!("/round?wait=400ms&after={revision}")).await.expect(200).json();
        assert!((Duration::from_millis(400)..Duration::from_secs(10)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        assert_eq!(same["revision"], revision);
        let begun = Instant::now();
        job.call("GET", &format!("/round?wait=20s&after={}", revision - 1)).await.expect(200);
        assert!(begun.elapsed() < Duration::from_secs(10), "an old revision is answered at once");
        for bad in ["wait=soon", "wait=5", "wait=1s&after=now"] {
            job.call("GET", &format!("/round?{bad}")).await.problem(400, "bad_request");
        }
    }

    async fn a_deleted_job_wakes_its_waiters(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({}), &model()).await;
        let revision = job.round().await["revision"].as_u64().expect("a revision");
        let waiting = job.clone();
        let waiter = tokio::spawn(async move { waiting.call("GET", &format!("/round?wait=30s&after={revision}")).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        job.call("DELETE", "").await.expect(204);
        let begun = Instant::now();
        waiter.await.expect("the waiter").problem(404, "not_found");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }

    async fn enough_updates_by_the_deadline_make_a_model(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let job = api.begin("a", json!({"goal": 5, "min_updates": 2, "deadline": "2s", "rounds": 1}), &model()).await;
        let receipts = [job.accepted(1, "c", "weight=1", &update(1.0)).await, job.accepted(1, "d", "weight=3", &update(5.0)).await];
        job.in_state("completed").await;
        for receipt in &receipts {
            assert_eq!(api.receipt(receipt).await["state"], "committed");
        }
        let expected = [("w".to_owned(), vec![4.0, 5.0, 6.0]), ("steps".to_owned(), vec![0.0])].into();
        assert_close(&read(&job.model(1).await), &expected, 1e-6);
    }

    /// The update that came in time is kept for as long as it takes another to come.
    async fn a_round_with_too_few_updates_is_tried_again(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let spec = json!({"goal": 3, "min_updates": 2, "deadline": "400ms", "on_shortfall": "retry", "rounds": 1});
        let job = api.begin("a", spec, &model()).await;
        let first = job.accepted(1, "c", "", &update(1.0)).await;
        let before = job.round().await;
        let extended = job.round_when("the round is extended twice", |round| {
            round["revision"].as_u64() >= before["revision"].as_u64().map(|revision| revision + 2)
        });
        let extended = extended.await;
        assert_eq!((&extended["round"], &extended["state"], &extended["received"]), (&json!(1), &json!("open"), &json!(1)));
        assert!(extended["deadline_at"].as_str() > before["deadline_at"].as_str(), "{extended}");
        job.accepted(1, "d", "", &update(3.0)).await;
        job.in_state("completed").await;
        assert_eq!(api.receipt(&first).await["state"], "committed");
        assert_eq!(read(&job.model(1).await)["w"], [2.0, 3.0, 4.0]);
    }

    async fn a_round_with_too_few_updates_is_skipped(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let spec = json!({"goal": 3, "min_updates": 2, "deadline": "1s", "on_shortfall": "skip", "rounds": 9});
        let job = api.begin("a", spec, &model()).await;
        let late = job.accepted(1, "c", "", &update(1.0)).await;
        job.round_when("the next round", |round| round["round"].as_u64() > Some(1)).await;
        let dropped = api.receipt(&late).await;
        assert_eq!((&dropped["state"], &dropped["code"]), (&json!("discarded"), &json!("round_closed")));
        assert!(dropped["reason"].as_str().is_some_and(|reason| reason.contains("too few")), "{dropped}");
        assert_eq!(job.view().await["model_version"], 0);
        until("the skipped round is counted", async || {
            let labels = [("job", "a"), ("outcome", "skipped")];
            (api.metrics().await.sum("catchment_rounds_total", &labels) >= 1.0).then_some(())
        })
        .await;
        job.call("POST", "/stop").await.expect(200);
        server.holds_no_slabs().await;
    }

    async fn a_round_with_too_few_updates_fails_the_job(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let spec = json!({"goal": 3, "min_updates": 2, "deadline": "1s", "on_shortfall": "fail"});
        let job = api.begin("a", spec, &model()).await;
        let late = job.accepted(1, "c", "", &update(1.0)).await;
        let failed = job.in_state("failed").await;
        assert!(failed["reason"].as_str().is_some_and(|r| r.contains("1 updates") && r.contains("needs 2")), "{failed}");
        assert_eq!(api.receipt(&late).await["state"], "discarded");
        assert_eq!(api.checkin("c", &json!({"job": "a"})).await.expect(200).json()["task"], "stop");
        server.holds_no_slabs().await;
    }
}
