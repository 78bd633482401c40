//! What is answered can be seen; and a number is judged alike at every door, and shown as the number it is.

use crate::{model, update};
use catchment_tests::{Bus, Job, Metrics, Server, on_both_buses};
use serde_json::{Value, json};

async fn reported(job: &Job, round: u64, client: &str, numbers: &str) {
    job.submit_with(round, client, "num_samples=2", &[("catchment-metrics", numbers)], &update(1.0)).await.expect(202);
}

/// The names under which numbers of a job are shown.
fn shown(metrics: &Metrics, job: &str) -> Vec<(String, f64)> {
    let of_job = metrics.samples.iter().filter(|sample| sample.name == "catchment_job_metric");
    let of_job = of_job.filter(|sample| sample.labels["job"] == job);
    of_job.map(|sample| (sample.labels["name"].clone(), sample.value)).collect()
}

on_both_buses! {
    /// Whoever asks for the round right after the model's answer finds it open.
    async fn the_round_is_open_when_the_model_is_answered(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        for k in 0..20 {
            let job = api.create(&format!("a{k}"), json!({"goal": 2})).await;
            let stored = job.put_model(&model()).await.expect(201);
            assert!(stored.headers.get("retry-after").is_none(), "{:?}", stored.headers);
            let stored = stored.json();
            let round = job.round().await;
            assert_eq!((&round["round"], &round["state"]), (&json!(1), &json!("open")), "{k}");
            assert_eq!((&stored["version"], &stored["round"]), (&json!(0), &Value::Null), "{stored}");
            for field in ["round", "state", "uid"] {
                assert_eq!(stored["current_round"][field], round[field], "{stored}");
            }
            assert_eq!(job.view().await["round"]["state"], "open");
        }
    }

    /// The same where a decision follows a resumed job, or one that has more rounds.
    async fn a_round_that_follows_from_a_call_is_open_when_it_is_answered(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 1, "rounds": 90}), &model()).await;
        for round in 1..=30 {
            job.accepted(round, "c", "", &update(round as f32)).await;
            job.call("POST", "/pause").await.expect(200);
            job.published(round).await;
            let resumed = job.call("POST", "/resume").await.expect(200).json();
            let opened = (&resumed["round"]["round"], &resumed["round"]["state"]);
            assert_eq!(opened, (&json!(round + 1), &json!("open")), "{resumed}");
        }
    }

    async fn a_number_is_shown_as_what_it_is(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let job = api.begin("a", json!({"goal": 1, "rounds": 2}), &model()).await;
        reported(&job, 1, "c", r#"{"m": 1e308, "n": -1e308}"#).await;
        job.published(1).await;
        let models = job.call("GET", "/models").await.expect(200).json();
        assert_eq!(models["items"][0]["metrics"], json!({"m": 1e308, "n": -1e308}));
        assert_eq!(shown(&api.metrics().await, "a"), [("m".to_owned(), 1e308), ("n".to_owned(), -1e308)]);

        let mixed = api.begin("mixed", json!({"goal": 4, "rounds": 1}), &model()).await;
        for (client, value) in [("a", "1.7e308"), ("b", "-1.7e308"), ("c", "1.7e308"), ("d", "-1.7e308")] {
            reported(&mixed, 1, client, &format!(r#"{{"m": {value}}}"#)).await;
            let path = format!("{}/models/0/evaluations/{client}?num_samples={}", mixed.path, u64::MAX);
            let measured = mixed.api.call("PUT", &path, &[], Some(format!(r#"{{"m": {value}}}"#).into())).await;
            assert!(measured.expect(201).json()["metrics"]["m"].is_f64());
        }
        mixed.in_state("completed").await;
        let models = mixed.call("GET", "/models").await.expect(200).json();
        let mean = models["items"][0]["metrics"]["m"].as_f64().expect("a number");
        assert!(mean.abs() <= 1.7e308, "{mean}");
        let text = api.get("/metrics").await.text();
        let spoilt = text.lines().filter(|line| !line.starts_with('#') && !line.contains("_bucket"));
        let spoilt: Vec<&str> = spoilt.filter(|line| line.ends_with("nf") || line.ends_with("NaN")).collect();
        assert!(spoilt.is_empty(), "{spoilt:?}");
    }

    /// Only the newest model's numbers are shown, and a restart changes nothing of it.
    async fn gauges_follow_the_state(bus: Bus) {
        let mut server = Server::start(bus).await;
        let api = server.api();
        let job = api.begin("a", json!({"goal": 1, "rounds": 9}), &model()).await;
        reported(&job, 1, "c", r#"{"loss": 0.5}"#).await;
        job.open_round(2).await;
        let path = format!("{}/models/1/evaluations/c", job.path);
        api.call("PUT", &path, &[], Some(br#"{"accuracy": 0.25}"#.to_vec())).await.expect(201);
        let before = api.metrics().await;
        assert_eq!(shown(&before, "a"), [("eval_accuracy".to_owned(), 0.25), ("loss".to_owned(), 0.5)]);
        reported(&job, 2, "c", r#"{"accuracy": 0.9}"#).await;
        job.open_round(3).await;
        let of_job = [("namespace", "default"), ("job", "a")];
        let gauges = async |api: &catchment_tests::Api| {
            let metrics = api.metrics().await;
            let committed = metrics.sum("catchment_last_commit_timestamp_seconds", &of_job);
            (shown(&metrics, "a"), committed, metrics.sum("catchment_queue_depth", &of_job))
        };
        let (names, committed, queue) = gauges(&api).await;
        assert_eq!(names, [("accuracy".to_owned(), 0.9), ("eval_accuracy".to_owned(), 0.25)]);
        assert!(committed > 1.6e9 && queue == 0.0, "{committed}, {queue}");
        server.kill9();
        server.start_again().await;
        assert_eq!(gauges(&server.api()).await, (names, committed, queue));
    }

    /// What comes of no samples is refused as a measurement as it is as an update, and nobody is sent for it.
    async fn no_samples_are_judged_alike_at_every_door(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let evaluate = json!({"fraction": 1, "min_results": 1, "metric": "accuracy", "goal": "max"});
        let job = api.begin("a", json!({"goal": 2, "evaluate": evaluate}), &model()).await;
        let measure = async |client: &str, query: &str, body: &str| {
            let path = format!("{}/models/0/evaluations/{client}?{query}", job.path);
            api.call("PUT", &path, &[], Some(body.as_bytes().to_vec())).await
        };
        measure("a", "num_samples=1", r#"{"accuracy": 1.0}"#).await.expect(201);
        measure("b", "num_samples=0", r#"{"accuracy": 0.0}"#).await.problem(422, "out_of_range");
        job.submit(1, "b", "num_samples=0", &update(1.0)).await.problem(422, "out_of_range");
        job.submit(1, "b", "num_samples=0&weight=2", &update(1.0)).await.problem(422, "out_of_range");
        for bad in ["num_samples=-1", "num_samples=1.5", "num_samples=18446744073709551616", "num_samples=1&num_samples=1"] {
            measure("b", bad, r#"{"accuracy": 0.0}"#).await.problem(400, "bad_request");
            job.submit(1, "b", bad, &update(1.0)).await.problem(400, "bad_request");
        }
        let models = job.call("GET", "/models").await.expect(200).json();
        let expected = json!({"results": 1, "num_samples": 1, "metrics": {"accuracy": 1.0}});
        assert_eq!(models["items"][0]["evaluation"], expected);
        for k in 0..5 {
            let task = api.checkin(&format!("none{k}"), &json!({"job": "a", "num_samples": 0})).await.expect(200).json();
            assert_eq!(task["task"], "wait", "{task}");
        }
        let task = api.checkin("some", &json!({"job": "a", "num_samples": 1})).await.expect(200).json();
        assert!(["train", "evaluate"].contains(&task["task"].as_str().expect("a kind")), "{task}");
    }
}
