//! Models: the first one in, every version out.

use crate::{model, update};
use catchment_tests::{Bus, Server, Tensor, file, on_both_buses, raw_file};
use serde_json::{Value, json};

on_both_buses! {
    async fn the_initial_model_is_stored_once_and_opens_the_first_round(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let job = api.create("a", json!({"deadline": "1h"})).await;
        job.call("GET", "/model").await.problem(404, "not_found");
        assert_eq!(job.call("GET", "/models").await.expect(200).json()["items"], json!([]));
        let stored = job.put_model(&model()).await.expect(201).json();
        assert_eq!((&stored["version"], &stored["contributors"]), (&json!(0), &json!(0)));
        assert_eq!(stored["etag"], blake3::hash(&model()).to_hex().as_str());
        assert_eq!(stored["bytes"], model().len());
        let round = job.open_round(1).await;
        assert_eq!((&round["model_version"], &round["received"]), (&json!(0), &json!(0)));
        assert!(round["deadline_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{round}");
        let other = file(&[Tensor::f32("other", &[1], &[1.0])]);
        job.put_model(&other).await.problem(409, "wrong_state");
        // The same one once more, as after an answer that got lost.
        assert_eq!(job.put_model(&model()).await.expect(201).json()["etag"], stored["etag"]);
        assert_eq!(job.model(0).await, model());
        server.holds_no_slabs().await;
    }

    async fn a_bad_model_is_refused_and_another_may_follow(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let job = api.create("a", json!({"limits": {"update_bytes": 4096}, "tensors": [{"match": "p", "rule": "mean"}]})).await;
        let packed = raw_file(r#"{"p":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#, &[0]);
        for (bytes, status, code, says) in [
            (b"no model".to_vec(), 422, "invalid_safetensors", "longer than the file"),
            (file(&[Tensor::f32("w", &[2], &[1.0, f32::NAN])]), 422, "not_finite", "`w`"),
            (file(&[Tensor::f32("w", &[2000], &[0.0; 2000])]), 413, "too_large", "4096"),
            (packed, 422, "layout", "`p`"),
        ] {
            let problem = job.put_model(&bytes).await.problem(status, code);
            assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(says)), "{problem}");
        }
        assert_eq!(job.view().await["state"], "waiting_for_model");
        server.holds_no_slabs().await;
        job.put_model(&model()).await.expect(201);
    }

    async fn a_model_is_served_whole_in_parts_and_not_again(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({}), &model()).await;
        let (whole, length) = (model(), model().len());
        let etag = format!("\"{}\"", blake3::hash(&whole).to_hex());
        let path = format!("{}/model", job.path);
        let get = async |headers: &[(&str, &str)]| server.api().call("GET", &path, headers, None).await;

        let answer = get(&[]).await.expect(200);
        assert_eq!((answer.header("etag"), answer.header("catchment-model-version")), (etag.as_str(), "0"));
        assert_eq!((answer.header("accept-ranges"), answer.body.len()), ("bytes", length));
        for known in [etag.clone(), "*".to_owned(), format!("\"x\", {etag}"), format!("W/{etag}")] {
            let answer = get(&[("if-none-match", &known)]).await.expect(304);
            assert_eq!((answer.header("etag"), answer.body.len()), (etag.as_str(), 0), "{known}");
        }
        get(&[("if-none-match", "\"x\"")]).await.expect(200);

        let last = length - 1;
        for (range, begin, end) in [
            ("bytes=0-7".to_owned(), 0, 8),
            ("bytes=8-".to_owned(), 8, length),
            ("bytes=-5".to_owned(), length - 5, length),
            (format!("bytes={last}-{}", length + 100), last, length),
        ] {
            let answer = get(&[("range", &range)]).await.expect(206);
            assert_eq!(answer.body, whole[begin..end], "{range}");
            assert_eq!(answer.header("content-range"), format!("bytes {begin}-{}/{length}", end - 1));
        }
        let answer = get(&[("range", &format!("bytes={length}-"))]).await.expect(416);
        assert_eq!(answer.header("content-range"), format!("bytes */{length}"));
        get(&[("range", "bytes=0-7"), ("if-range", &etag)]).await.expect(206);
        get(&[("range", "bytes=0-7"), ("if-range", "\"another\"")]).await.expect(200);
        let head = server.api().call("HEAD", &path, &[], None).await.expect(200);
        assert_eq!((head.header("content-length"), head.body.len()), (length.to_string().as_str(), 0));
    }

    async fn versions_are_listed_newest_first_with_what_they_are_made_of(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let job = api.begin("a", json!({"goal": 2, "rounds": 3}), &model()).await;
        for round in 1..=3 {
            job.open_round(round).await;
            let metrics = |loss: f64| format!("{{\"loss\":{loss}}}");
            for (client, samples, loss) in [("c", 1, 4.0), ("d", 3, 8.0)] {
                let (metrics, body) = (metrics(loss), update(round as f32));
                let headers = [("catchment-metrics", metrics.as_str())];
                job.submit_with(round, client, &format!("num_samples={samples}"), &headers, &body).await.expect(202);
            }
        }
        job.in_state("completed").await;
        let function = api.get("/v1/functions/fedavg").await.expect(200).json()["digest"].clone();
        let first = job.call("GET", "/models?limit=3").await.expect(200).json();
        let cursor = first["cursor"].as_str().expect("one more page").to_owned();
        let second = job.call("GET", &format!("/models?limit=3&cursor={cursor}")).await.expect(200).json();
        assert_eq!(second["cursor"], Value::Null);
        let items: Vec<&Value> = [&first, &second].iter().flat_map(|page| page["items"].as_array().unwrap()).collect();
        assert_eq!(items.iter().map(|m| m["version"].as_u64().unwrap()).collect::<Vec<_>>(), [3, 2, 1, 0]);
        for made in &items[..3] {
            let version = made["version"].as_u64().unwrap();
            assert_eq!(made["parent"], version - 1);
            assert_eq!((&made["function"], &made["contributors"]), (&function, &json!(2)));
            assert_eq!(made["metrics"], json!({"loss": 7.0}));
            assert_eq!(made["available"], true);
            assert!(made["created_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{made}");
            let file = job.model(version).await;
            assert_eq!(made["etag"], blake3::hash(&file).to_hex().as_str());
            assert_eq!(made["bytes"], file.len());
        }
        let initial = items[3];
        assert_eq!((&initial["parent"], &initial["function"]), (&Value::Null, &Value::Null));
    }

    async fn old_versions_are_let_go_as_the_spec_says(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 1, "rounds": 4, "checkpoints": {"keep_last": 2}}), &model()).await;
        for round in 1..=4 {
            job.open_round(round).await;
            job.accepted(round, "c", "", &update(round as f32)).await;
        }
        job.in_state("completed").await;
        for (version, kept) in [(0, true), (1, false), (2, false), (3, true), (4, true)] {
            let answer = job.call("GET", &format!("/model?version={version}")).await;
            if kept {
                answer.expect(200);
            } else {
                answer.problem(404, "not_found");
            }
        }
        let listed = job.call("GET", "/models").await.expect(200).json();
        let available: Vec<bool> =
            listed["items"].as_array().unwrap().iter().map(|m| m["available"].as_bool().unwrap()).collect();
        assert_eq!(available, [true, true, false, false, true]);
        job.call("GET", "/model?version=99").await.problem(404, "not_found");
        job.call("GET", "/model?version=new").await.problem(400, "bad_request");
    }
}
