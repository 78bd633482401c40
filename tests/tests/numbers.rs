//! Numbers at the ends of what is computed with: they come out right, or they are refused by name.

use catchment_tests::{Bus, Raw, Server, Tensor, file, on_both_buses, raw_file, read, request_head};
use serde_json::json;

/// Up to here every whole number is an f64, and none beyond is taken for it.
const WHOLE: i64 = (1 << 53) - 1;
const FUNCTIONS: [&str; 3] = ["fedavg", "median", "krum"];

fn signed(values: &[i64]) -> Vec<u8> {
    file(&[Tensor::i64("n", &[values.len()], values), Tensor::f32("w", &[1], &[1.0])])
}

fn unsigned(values: &[u64]) -> Vec<u8> {
    file(&[Tensor::u64("n", &[values.len()], values), Tensor::f32("w", &[1], &[1.0])])
}

on_both_buses! {
    /// Further from zero they would be rounded without a word; up to there every one is exact.
    async fn whole_numbers_are_exact_or_refused(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        for (function, rule) in FUNCTIONS.into_iter().flat_map(|function| ["max", "mean"].map(|rule| (function, rule))) {
            let spec = json!({"function": function, "goal": 3, "rounds": 1, "tensors": [{"match": "n", "rule": rule}]});
            let job = api.begin(&format!("signed-{function}-{rule}"), spec.clone(), &signed(&[0; 3])).await;
            for bad in [WHOLE + 1, WHOLE + 2, -WHOLE - 1, i64::MAX, i64::MIN] {
                let problem = job.submit(1, "a", "", &signed(&[WHOLE, -WHOLE, bad])).await.problem(422, "out_of_range");
                assert_eq!((problem["tensor"].as_str(), problem["index"].as_u64()), (Some("n"), Some(2)), "{problem}");
            }
            let job_u = api.begin(&format!("unsigned-{function}-{rule}"), spec.clone(), &unsigned(&[0; 3])).await;
            let top = WHOLE as u64;
            for bad in [u64::MAX - 6, u64::MAX - 4, u64::MAX - 2, top + 1] {
                job_u.submit(1, "a", "", &unsigned(&[0, top, bad])).await.problem(422, "out_of_range");
            }
            for (client, x) in [("a", 2), ("b", 1), ("c", 3)] {
                job.accepted(1, client, "", &signed(&[WHOLE - x, x - WHOLE, WHOLE])).await;
                job_u.accepted(1, client, "", &unsigned(&[top - x as u64, x as u64, top])).await;
            }
            // Krum takes one of several that are as near to each other: the first.
            let (high, low) = match (function, rule) {
                ("fedavg" | "median", "max") => (1, 3),
                _ => (2, 2),
            };
            // A sum of such numbers is rounded before it is divided.
            let off = f64::from(u8::from((function, rule) == ("fedavg", "mean")));
            for (job, expected) in [(&job, [WHOLE - high, low - WHOLE, WHOLE]), (&job_u, [WHOLE - high, low, WHOLE])] {
                job.in_state("completed").await;
                let found = read(&job.model(1).await)["n"].clone();
                let is_right = |(found, expected): (&f64, i64)| (found - expected as f64).abs() <= off;
                assert!(found.iter().zip(expected).all(is_right), "{function} {rule}: {found:?} {expected:?}");
                assert_eq!(found[2], WHOLE as f64);
            }
        }
        // The model itself.
        let spec = json!({"goal": 2, "tensors": [{"match": "n", "rule": "max"}]});
        let job = api.create("model", spec).await;
        let problem = job.put_model(&unsigned(&[0, u64::MAX - 2])).await.problem(422, "out_of_range");
        assert_eq!((problem["tensor"].as_str(), problem["index"].as_u64()), (Some("n"), Some(1)), "{problem}");
        assert!(problem["detail"].as_str().is_some_and(|text| text.contains("2^53 - 1") && text.contains("`keep`")), "{problem}");
        job.put_model(&unsigned(&[0, 5])).await.expect(201);
        // What is kept is not computed with, and may be anything.
        let job = api.begin("kept", json!({"goal": 1, "rounds": 1}), &unsigned(&[u64::MAX - 2])).await;
        job.accepted(1, "a", "", &unsigned(&[u64::MAX])).await;
        job.in_state("completed").await;
        let (model, initial) = (job.model(1).await, unsigned(&[u64::MAX - 2]));
        assert!(model == initial, "the same bytes");
        server.holds_no_slabs().await;
    }

    /// Counters that grow by deltas end at 2^53 - 1, with a refusal, rather than going wrong.
    async fn sums_of_whole_numbers_do_not_leave_f64_unseen(bus: Bus) {
        let server = Server::start(bus).await;
        let spec = json!({"goal": 1, "rounds": 3, "update": "delta", "tensors": [{"match": "n", "rule": "max"}]});
        let job = server.api().begin("grows", spec, &signed(&[WHOLE - 10, -5])).await;
        let send = |round, step| {
            let job = job.clone();
            async move {
                let etag = job.call("GET", "/model").await.header("etag").to_owned();
                job.submit_with(round, "a", "", &[("catchment-base", etag.as_str())], &signed(&[step, 1])).await.expect(202);
            }
        };
        send(1, 10).await;
        job.published(1).await;
        job.open_round(2).await;
        assert_eq!(read(&job.model(1).await)["n"], [WHOLE as f64, -4.0]);
        let etag = job.call("GET", "/model").await.header("etag").to_owned();
        let beyond = job.submit_with(2, "a", "", &[("catchment-base", etag.as_str())], &signed(&[1, 1])).await;
        let problem = beyond.problem(422, "out_of_range");
        assert_eq!((problem["tensor"].as_str(), problem["index"].as_u64()), (Some("n"), Some(0)), "{problem}");
        send(2, 0).await;
        job.published(2).await;
        assert_eq!(read(&job.model(2).await)["n"], [WHOLE as f64, -3.0]);
        server.holds_no_slabs().await;
    }

    /// A weight may be tiny as long as it does not make numbers vanish.
    async fn tiny_weights_give_the_mean_or_a_refusal(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let wide = |x: f64| file(&[Tensor::f64("w", &[2], &[1.0, x])]);
        for (name, function, weight, a, b, taken) in [
            ("lost", "fedavg", "1e-30", 1e-288, 3e-288, false),
            ("tiny", "fedavg", "1e-30", f64::from_bits(1), 0.0, false),
            ("fine", "fedavg", "1e-30", 1e-277, 3e-277, true),
            ("usual", "fedavg", "1e-19", 1e-288, 3e-288, true),
            ("unused", "median", "1e-30", 1e-288, 3e-288, true),
        ] {
            let job = api.begin(name, json!({"function": function, "goal": 2, "rounds": 1}), &wide(0.0)).await;
            let query = format!("weight={weight}");
            if !taken {
                let problem = job.submit(1, "a", &query, &wide(a)).await.problem(422, "out_of_range");
                assert_eq!((problem["tensor"].as_str(), problem["index"].as_u64()), (Some("w"), Some(1)), "{problem}");
                assert!(problem["detail"].as_str().is_some_and(|text| text.contains("multiply the weights")), "{problem}");
                continue;
            }
            job.accepted(1, "a", &query, &wide(a)).await;
            job.accepted(1, "b", &query, &wide(b)).await;
            job.in_state("completed").await;
            let (found, expected) = (read(&job.model(1).await)["w"][1], a / 2.0 + b / 2.0);
            assert!((found - expected).abs() <= expected * 1e-15, "{name}: {found:e} instead of {expected:e}");
        }
        // Narrower types have no such numbers.
        let narrow = |x: f32| file(&[Tensor::f32("w", &[2], &[f32::from_bits(3), x])]);
        let job = api.begin("narrow", json!({"goal": 2, "rounds": 1}), &narrow(0.0)).await;
        job.accepted(1, "a", "weight=1e-30", &narrow(1e-38)).await;
        job.accepted(1, "b", "weight=1e-30", &narrow(3e-38)).await;
        job.in_state("completed").await;
        let mean = f64::from((f64::from(1e-38f32) / 2.0 + f64::from(3e-38f32) / 2.0) as f32);
        assert_eq!(read(&job.model(1).await)["w"], [f64::from(f32::from_bits(3)), mean]);
        server.holds_no_slabs().await;
    }

    /// Zeros of either sign, subnormals, and the largest numbers of narrow types.
    async fn the_ends_of_narrow_types_survive_a_mean(bus: Bus) {
        let server = Server::start(bus).await;
        // A list of numbers, as bits, of which each is the mean of itself.
        let bf16 = [0x0001, 0x8001, 0x007f, 0x0080, 0x7f7f, 0xff7f, 0x3f80];
        let f16 = [0x0001, 0x8001, 0x03ff, 0x0400, 0x7bff, 0xfbff, 0x3c00];
        let (e4m3, e5m2) = (vec![0x01, 0x81, 0x07, 0x7e, 0xfe, 0x38], vec![0x01, 0x81, 0x03, 0x7b, 0xfb, 0x3c]);
        let body = file(&[
            Tensor::bf16("bf16", &[7], &bf16),
            Tensor::f16("f16", &[7], &f16),
            Tensor::new("e4m3", safetensors::Dtype::F8_E4M3, &[6], e4m3),
            Tensor::new("e5m2", safetensors::Dtype::F8_E5M2, &[6], e5m2),
            Tensor::f64("f64", &[3], &[f64::from_bits(1), f64::MIN_POSITIVE, 2f64.powi(960)]),
        ]);
        for (name, spec) in [
            ("fedavg", json!({})),
            ("tree", json!({"topology": {"tree": {"leaves": 2, "middles": 1}}})),
            ("largest", json!({"tensors": [{"match": "*", "rule": "max"}]})),
            ("median", json!({"function": "median"})),
            ("krum", json!({"function": "krum"})),
        ] {
            let mut whole = json!({"goal": 3, "rounds": 1});
            whole.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
            let job = server.api().begin(name, whole, &body).await;
            for (client, samples) in [("a", 3), ("b", 8), ("c", 1000)] {
                job.accepted(1, client, &format!("num_samples={samples}"), &body).await;
            }
            job.in_state("completed").await;
            assert!(job.model(1).await == body, "{name}");
        }
        // Of zeros, the sign may go.
        let zero = |x: f32| file(&[Tensor::f32("w", &[1], &[x])]);
        let job = server.api().begin("zeros", json!({"goal": 2, "rounds": 1}), &zero(-0.0)).await;
        job.accepted(1, "a", "", &zero(-0.0)).await;
        job.accepted(1, "b", "", &zero(-0.0)).await;
        job.in_state("completed").await;
        assert_eq!(read(&job.model(1).await)["w"], [0.0]);
    }

    /// Each tensor could be, and all together overflow; in a body that says its length and in one that does not.
    async fn absurd_sizes_are_refused(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().create("a", json!({"goal": 2})).await;
        let path = format!("{}/model", job.path);
        let (most, near) = ((1u64 << 61) - 1, (1u64 << 56) + 1);
        for (dtype, count, elements) in [("U8", 8, most), ("F8_E4M3", 8, most), ("F8_E5M2", 1, near), ("U8", 1, u64::MAX)] {
            let entry = |i: u64| {
                let (begin, end) = (i.wrapping_mul(elements), (i + 1).wrapping_mul(elements));
                format!(r#""w{i}":{{"dtype":"{dtype}","shape":[{elements}],"data_offsets":[{begin},{end}]}}"#)
            };
            let entries: Vec<String> = (0..count).map(entry).collect();
            let body = raw_file(&format!("{{{}}}", entries.join(",")), &[0; 8]);
            job.put_model(&body).await.problem(422, "invalid_safetensors");
            let mut chunked = Raw::connect(server.address()).await;
            chunked.send(request_head(&path, &[("transfer-encoding", "chunked")]).as_bytes()).await;
            chunked.send(format!("{:x}\r\n", body.len()).as_bytes()).await;
            chunked.send(&body).await;
            chunked.send(b"\r\n0\r\n\r\n").await;
            chunked.answer().await.expect("an answer").problem(422, "invalid_safetensors");
        }
        job.put_model(&file(&[Tensor::f32("w", &[1], &[1.0])])).await.expect(201);
    }

    /// Names are any text, for the spec, for functions and in what is published.
    async fn names_may_be_any_text(bus: Bus) {
        let server = Server::start(bus).await;
        let names = ["", "*", "a\"b\\c", "line\nbreak\t\u{0}", "ünïcode 😀", "__metadata", "../../etc", "q.weight*", &"x".repeat(1024)];
        let body = |x: f32| {
            let shapes = names.iter().map(|name| Tensor::f32(name, &[1, 1], &[x]));
            file(&shapes.chain([Tensor::f32("q.weight", &[1, 1], &[x])]).collect::<Vec<_>>())
        };
        let spec = json!({"goal": 2, "rounds": 1, "tensors": [{"match": "a\"b*", "rule": "keep"}, {"match": "ünï*😀", "rule": "max"}]});
        let job = server.api().begin("means", spec, &body(0.0)).await;
        job.accepted(1, "a", "", &body(2.0)).await;
        job.accepted(1, "b", "", &body(4.0)).await;
        job.in_state("completed").await;
        let model = read(&job.model(1).await);
        assert_eq!(model.len(), names.len() + 1);
        for (name, values) in &model {
            let expected = if name.starts_with("a\"b") { 0.0 } else if name.starts_with('ü') { 4.0 } else { 3.0 };
            assert_eq!(*values, [expected], "{name:?}");
        }
        // A tensor that flora does not make has a name that would be a pattern for one that it does.
        let layers = file(&[
            Tensor::f32("*.weight", &[2], &[7.0, 7.0]),
            Tensor::f32("q.weight", &[1, 1], &[1.0]),
            Tensor::f32("😀 \"\n*.weight", &[1, 1], &[1.0]),
        ]);
        let job = server.api().begin("adapters", json!({"function": "flora", "goal": 1, "rounds": 1}), &layers).await;
        let pair = |layer: &str| ["lora_A", "lora_B"].map(|part| Tensor::f32(&format!("{layer}.{part}.weight"), &[1, 1], &[3.0]));
        job.accepted(1, "a", "", &file(&[pair("q"), pair("😀 \"\n*")].concat())).await;
        job.in_state("completed").await;
        let model = read(&job.model(1).await);
        let of = |name: &str| model[name].clone();
        assert_eq!((of("q.weight"), of("😀 \"\n*.weight"), of("*.weight")), (vec![10.0], vec![10.0], vec![7.0, 7.0]));
        server.holds_no_slabs().await;
    }
}
