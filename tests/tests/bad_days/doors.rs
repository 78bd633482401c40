//! Small bodies that are not what is asked for, at every door.

use crate::{ELEMENTS, update};
use catchment_tests::{Bus, Server, Tensor, file, on_both_buses, read};
use serde_json::{Value, json};

on_both_buses! {
    async fn an_array_is_no_object_at_any_door(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let job = api.begin("a", json!({}), &update(0.0)).await;
        let evaluation = format!("{}/models/0/evaluations/c", job.path);
        let doors = [
            ("POST", "/v1/clients/c/checkin", 400, "bad_request"),
            ("PUT", &evaluation, 400, "bad_request"),
            ("POST", "/v1/jobs", 422, "invalid_spec"),
            ("POST", "/v1/namespaces/lab/jobs", 422, "invalid_spec"),
            ("PATCH", &job.path, 422, "invalid_spec"),
        ];
        for (method, path, status, code) in doors {
            for text in ["[]", "[null]", "[\"a\", null, {}, 3]", "3", "\"{}\"", "true", "null", "{}{}", "{} x", "{"] {
                let problem = api.call(method, path, &[], Some(text.into())).await.problem(status, code);
                let detail = problem["detail"].as_str().expect("a detail").to_owned();
                let fields = problem["fields"].to_string();
                let is_json = serde_json::from_str::<Value>(text).is_ok();
                assert!(!is_json || format!("{detail}{fields}").contains("a JSON object"), "{method} {path} {text}: {problem}");
            }
        }
        // Within them, too.
        for (spec, field) in [
            (json!({"tensors": [["w", "keep"]]}), "tensors"),
            (json!({"topology": {"tree": [4, 0]}}), "topology"),
            (json!({"limits": []}), "limits"),
            (json!({"checkpoints": [3]}), "checkpoints"),
            (json!({"config": []}), "config"),
            (json!({"exact": [1.0, 1.0, 1]}), "exact"),
            (json!({"selection": ["all"]}), "selection"),
            (json!({"evaluate": [1]}), "evaluate"),
            (json!({"mode": {"async": [8, null]}, "update": "delta"}), "mode"),
        ] {
            let mut whole = json!({"name": "b", "function": "fedavg"});
            whole.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
            let problem = api.post("/v1/jobs", &whole).await.problem(422, "invalid_spec");
            let fields = problem["fields"].as_array().expect("fields");
            assert!(fields.iter().any(|bad| bad["field"].as_str().is_some_and(|f| f.starts_with(field))), "{problem}");
        }
        let metrics = [("catchment-metrics", "[]")];
        let problem = job.submit_with(1, "c", "", &metrics, &update(1.0)).await.problem(400, "bad_request");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("JSON object")), "{problem}");
        // An empty check-in asks for anything, as ever.
        api.call("POST", "/v1/clients/c/checkin", &[], Some(vec![])).await.expect(200);
        api.checkin("c", &json!({})).await.expect(200);
    }

    /// Buffers of a `state_dict` that hold minus infinity, as attention masks do: the refusal says what to write.
    async fn a_mask_is_refused_with_its_remedy(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let dict = |value: f32, mask: f32| {
            let w = Tensor::f32("w", &[ELEMENTS], &[value; ELEMENTS]);
            file(&[w, Tensor::f32("attn.mask", &[4], &[0.0, mask, mask, 0.0])])
        };
        let rule = json!({"match": "attn.mask", "rule": "keep"});
        let says = format!("\"tensors\": [{rule}]");
        for (k, bad) in [f32::NEG_INFINITY, f32::INFINITY, f32::NAN].into_iter().enumerate() {
            // At the door of the initial model, and at those of updates.
            let job = api.create(&format!("a{k}"), json!({"goal": 1, "rounds": 1})).await;
            let problem = job.put_model(&dict(0.0, bad)).await.problem(422, "not_finite");
            assert_eq!((&problem["tensor"], &problem["index"]), (&json!("attn.mask"), &json!(1)));
            assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(&says)), "{problem}");
            job.put_model(&dict(0.0, 0.0)).await.expect(201);
            job.open_round(1).await;
            let problem = job.submit(1, "c", "", &dict(1.0, bad)).await.problem(422, "not_finite");
            assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(&says)), "{problem}");
            // Whoever does what it says gets through, and the model has its mask.
            for kept in ["keep", "exclude"] {
                let tensors = json!([{"match": "attn.mask", "rule": kept}]);
                let spec = json!({"goal": 1, "rounds": 1, "tensors": tensors});
                let job = api.begin(&format!("{kept}{k}"), spec, &dict(0.0, bad)).await;
                job.accepted(1, "c", "", &dict(3.0, bad)).await;
                job.in_state("completed").await;
                let model = read(&job.model(1).await);
                assert_eq!((model["w"][0], model["attn.mask"][1].to_bits()), (3.0, f64::from(bad).to_bits()));
            }
        }
    }
}
