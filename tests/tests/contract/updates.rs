//! Updates: every way in and every way back.

use crate::{model, update};
use catchment_tests::{Bus, Server, Tensor, assert_close, file, on_both_buses, read, weighted_mean};
use serde_json::{Value, json};

on_both_buses! {
    async fn an_update_is_accepted_once(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 3}), &model()).await;
        let first = job.submit(1, "c", "weight=2.5&num_samples=7", &update(1.0)).await.expect(202).json();
        for (member, expected) in [
            ("uid", job.created["uid"].clone()), ("namespace", json!("default")), ("job", json!("a")), ("round", json!(1)),
            ("client", json!("c")), ("weight", json!(2.5)), ("code", Value::Null), ("model_version", Value::Null),
        ] {
            assert_eq!(first[member], expected, "{member}");
        }
        assert_eq!(first["digest"].as_str().map(str::len), Some(64));
        assert!(first["accepted_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{first}");
        for _ in 0..3 {
            let again = job.submit(1, "c", "num_samples=7&weight=2.5", &update(1.0)).await.expect(200).json();
            assert_eq!((&again["receipt"], &again["digest"]), (&first["receipt"], &first["digest"]));
        }
        assert_eq!(job.round().await["received"], 1);
    }

    /// Whatever is said differently makes another update, and the first one stands.
    async fn another_update_of_the_same_client_is_a_conflict(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 3}), &model()).await;
        let first = job.accepted(1, "c", "weight=2&num_samples=5", &update(1.0)).await;
        let metrics = [("catchment-metrics", "{\"loss\":1}")];
        for (query, headers, body) in [
            ("weight=2&num_samples=5", &[][..], update(1.5)),
            ("weight=3&num_samples=5", &[], update(1.0)),
            ("weight=2&num_samples=6", &[], update(1.0)),
            ("weight=2&num_samples=5", &metrics, update(1.0)),
        ] {
            let problem = job.submit_with(1, "c", query, headers, &body).await.problem(409, "conflict");
            assert_eq!(problem["receipt"], first);
        }
        assert_eq!(job.round().await["received"], 1);
    }

    async fn a_closed_round_says_which_is_next(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 1, "rounds": 2}), &model()).await;
        let first = job.accepted(1, "c", "", &update(1.0)).await;
        job.open_round(2).await;
        assert_eq!(job.submit(1, "d", "", &update(2.0)).await.problem(410, "round_closed")["next_round"], 2);
        let again = job.submit(1, "c", "", &update(1.0)).await.expect(200).json();
        assert_eq!((&again["receipt"], &again["state"], &again["model_version"]), (&first, &json!("committed"), &json!(1)));
        job.submit(1, "c", "", &update(9.0)).await.problem(409, "conflict");
        assert_eq!(job.submit(3, "d", "", &update(2.0)).await.problem(404, "not_found")["round"], 2);
        job.submit(0, "d", "", &update(2.0)).await.problem(410, "round_closed");
        job.accepted(2, "d", "", &update(2.0)).await;
        job.in_state("completed").await;
        assert_eq!(job.submit(2, "e", "", &update(2.0)).await.problem(410, "round_closed")["next_round"], Value::Null);
    }

    async fn a_tensor_that_does_not_fit_is_named(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({}), &model()).await;
        let (w, steps) = (Tensor::f32("w", &[3], &[1.0; 3]), Tensor::i64("steps", &[], &[1]));
        for (tensors, tensor, expected, found) in [
            (vec![w.clone()], "steps", "I64 []", "nothing"),
            (vec![steps.clone()], "w", "F32 [3]", "nothing"),
            (vec![w.clone(), steps.clone(), Tensor::f32("v", &[1], &[0.0])], "v", "no such tensor", "F32 [1]"),
            (vec![Tensor::f32("w", &[1, 3], &[1.0; 3]), steps.clone()], "w", "F32 [3]", "F32 [1, 3]"),
            (vec![Tensor::f64("w", &[3], &[1.0; 3]), steps.clone()], "w", "F32 [3]", "F64 [3]"),
            (vec![w.clone(), Tensor::f64("steps", &[], &[1.0])], "steps", "I64 []", "F64 []"),
        ] {
            let problem = job.submit(1, "c", "", &file(&tensors)).await.problem(422, "layout");
            assert_eq!((&problem["tensor"], &problem["found"]), (&json!(tensor), &json!(found)));
            assert!(problem["expected"].as_str().is_some_and(|text| text.contains(expected)), "{problem}");
            assert!(problem["detail"].as_str().is_some_and(|text| text.contains(tensor)), "{problem}");
        }
    }

    async fn a_number_that_is_none_is_named(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({}), &model()).await;
        for (index, bad) in [(0, f32::NAN), (1, f32::INFINITY), (2, f32::NEG_INFINITY)] {
            let mut values = [1.0; 3];
            values[index] = bad;
            let body = file(&[Tensor::f32("w", &[3], &values), Tensor::i64("steps", &[], &[1])]);
            let problem = job.submit(1, "c", "", &body).await.problem(422, "not_finite");
            assert_eq!((&problem["tensor"], &problem["index"]), (&json!("w"), &json!(index)));
        }
    }

    async fn a_weight_is_a_finite_positive_number_within_the_limit(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 4, "limits": {"weight_max": 1000.0}}), &model()).await;
        for bad in ["0", "-1", "NaN", "inf", "-inf", "1e999", "1000.1", "-0"] {
            let problem = job.submit(1, "c", &format!("weight={bad}"), &update(1.0)).await.problem(422, "out_of_range");
            assert!(problem["detail"].as_str().is_some_and(|text| text.contains("weight")), "{problem}");
        }
        job.submit(1, "c", "num_samples=0", &update(1.0)).await.problem(422, "out_of_range");
        job.submit(1, "c", "num_samples=1001", &update(1.0)).await.problem(422, "out_of_range");
        for (client, query, weight) in [("c", "", 1.0), ("d", "num_samples=12", 12.0), ("e", "weight=1000&num_samples=3", 1000.0)] {
            let receipt = job.submit(1, client, query, &update(1.0)).await.expect(202).json();
            assert_eq!(receipt["weight"], weight);
        }
    }

    async fn what_an_address_or_header_says_must_parse(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"limits": {"update_bytes": 4096}}), &model()).await;
        for query in ["weight=heavy", "num_samples=1.5", "num_samples=-1", "wieght=1", "task=none&weight="] {
            job.submit(1, "c", query, &update(1.0)).await.problem(400, "bad_request");
        }
        for header in [
            ("catchment-metrics", "loss=1"), ("catchment-metrics", "{\"loss\":\"low\"}"), ("catchment-metrics", "{\"loss\":1e999}"),
            ("catchment-metrics", &format!("{{\"a\":{}1}}", " ".repeat(4096))), ("catchment-digest", "xyz"),
            ("catchment-base", "\"1\""),
        ] {
            job.submit_with(1, "c", "", &[header], &update(1.0)).await.problem(400, "bad_request");
        }
        let put = async |path: String| server.api().call("PUT", &path, &[], Some(update(1.0))).await;
        put(format!("{}/rounds/one/updates/c", job.path)).await.problem(400, "bad_request");
        put(format!("{}/rounds/1/updates/c%20d", job.path)).await.problem(400, "bad_request");
        put(format!("{}/rounds/1/updates/{}", job.path, "x".repeat(129))).await.problem(400, "bad_request");
        put("/v1/jobs/nosuch/rounds/1/updates/c".to_owned()).await.problem(404, "not_found");
        let large = file(&[Tensor::f32("w", &[2000], &[1.0; 2000])]);
        let problem = job.submit(1, "c", "", &large).await.problem(413, "too_large");
        assert_eq!(problem["limit"], 4096);
        assert_eq!(job.round().await["received"], 0);
    }

    async fn a_declared_digest_is_checked(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({}), &model()).await;
        let wrong = blake3::hash(b"something else").to_hex();
        let problem = job.submit_with(1, "c", "", &[("catchment-digest", &wrong)], &update(1.0)).await;
        problem.problem(422, "checksum");
        let right = blake3::hash(&update(1.0)).to_hex();
        job.submit_with(1, "c", "", &[("catchment-digest", &right)], &update(1.0)).await.expect(202);
        job.submit_with(1, "c", "", &[("catchment-digest", &wrong)], &update(1.0)).await.problem(422, "checksum");
    }

    async fn a_delta_names_the_model_it_starts_from(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"update": "delta", "goal": 1}), &model()).await;
        let etag = job.call("GET", "/model").await.header("etag").to_owned();
        job.submit(1, "c", "", &update(1.0)).await.problem(400, "bad_request");
        let stale = format!("\"{}\"", "0".repeat(64));
        let problem = job.submit_with(1, "c", "", &[("catchment-base", &stale)], &update(1.0)).await;
        let problem = problem.problem(409, "stale_base");
        assert_eq!((&problem["model_version"], &problem["etag"]), (&json!(0), &json!(etag.trim_matches('"'))));
        job.submit_with(1, "c", "", &[("catchment-base", &etag)], &update(1.0)).await.expect(202);
        job.open_round(2).await;
        job.submit_with(2, "c", "", &[("catchment-base", &etag)], &update(1.0)).await.problem(409, "stale_base");
        assert_eq!(read(&job.model(1).await)["w"], [1.0, 3.0, 5.0]);
    }

    /// Weights of very different size, and as many updates as fill several batches.
    async fn every_update_counts_by_its_weight(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 40, "rounds": 1}), &model()).await;
        let sent: Vec<(f64, Vec<u8>)> = (0..40).map(|k| (1.5f64.powi(k - 20), update(0.37 * k as f32 + 1.0))).collect();
        let calls = sent.iter().enumerate().map(|(k, (weight, body))| {
            let job = job.clone();
            async move { job.submit(1, &format!("c{k}"), &format!("weight={weight}"), body).await.expect(202) }
        });
        futures::future::join_all(calls).await;
        job.in_state("completed").await;
        let mut expected = weighted_mean(&sent.iter().map(|(weight, body)| (*weight, read(body))).collect::<Vec<_>>());
        expected.insert("steps".to_owned(), vec![0.0]);
        assert_close(&read(&job.model(1).await), &expected, 1e-6);
    }
}
