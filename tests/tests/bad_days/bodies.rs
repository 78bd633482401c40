//! Bodies that are not what they say, or not what the job asked for.

use crate::{ELEMENTS, holds_no_more_than, lives_on, update};
use catchment_tests::{Bus, Raw, Server, Tensor, file, on_both_buses, raw_file, request_head};
use half::{bf16, f16};
use serde_json::json;

/// A file of one tensor `w` of 1000 F32 whose header says this about it.
fn described(entry: &str) -> Vec<u8> {
    raw_file(&format!("{{{entry}}}"), &[0; 4 * ELEMENTS])
}

/// Every bad body, with the answer it must get.
fn bad_bodies() -> Vec<(&'static str, Vec<u8>, u16, &'static str, &'static str)> {
    let good = update(1.0);
    let invalid = |what, body, says| (what, body, 422, "invalid_safetensors", says);
    let misfit = |what, body, says| (what, body, 422, "layout", says);
    let w = |shape: &[usize]| file(&[Tensor::f32("w", shape, &[0.0; ELEMENTS])]);
    let huge_header = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    let deep = raw_file(&"[".repeat(100_000), &[]);
    vec![
        ("nothing", vec![], 400, "truncated", "header"),
        ("less than a length", good[..7].to_vec(), 400, "truncated", "header"),
        invalid("a header longer than the file", good[..40].to_vec(), "longer than the file"),
        invalid("the longest header there could be", huge_header, "longer than the file"),
        invalid("a file that ends early", good[..good.len() - 1].to_vec(), "3999 bytes of data"),
        invalid("a file that goes on", [&good[..], &[0]].concat(), "4001 bytes of data"),
        invalid("no JSON", raw_file("{\"w\":", &[]), "JSON"),
        invalid("no object", raw_file("[]", &[]), "JSON"),
        invalid("very deep JSON", deep, "JSON"),
        invalid("no UTF-8", [&4u64.to_le_bytes()[..], b"{\xff\xff}"].concat(), "JSON"),
        invalid(
            "overlapping tensors",
            described(
                r#""w":{"dtype":"F32","shape":[999],"data_offsets":[0,3996]},"v":{"dtype":"F32","shape":[2],"data_offsets":[3992,4000]}"#,
            ),
            "overlap",
        ),
        invalid(
            "a hole between tensors",
            described(
                r#""w":{"dtype":"F32","shape":[10],"data_offsets":[0,40]},"v":{"dtype":"F32","shape":[1],"data_offsets":[3996,4000]}"#,
            ),
            "belong to no tensor",
        ),
        invalid(
            "a tensor twice",
            described(
                r#""w":{"dtype":"F32","shape":[500],"data_offsets":[0,2000]},"w":{"dtype":"F32","shape":[500],"data_offsets":[2000,4000]}"#,
            ),
            "w",
        ),
        invalid(
            "a dtype nobody knows",
            described(r#""w":{"dtype":"F33","shape":[1000],"data_offsets":[0,4000]}"#),
            "F33",
        ),
        invalid(
            "a shape that is no memory's",
            described(
                r#""w":{"dtype":"F32","shape":[18446744073709551615,18446744073709551615],"data_offsets":[0,4000]}"#,
            ),
            "`w`",
        ),
        invalid(
            "offsets that run backwards",
            described(r#""w":{"dtype":"F32","shape":[1000],"data_offsets":[4000,0]}"#),
            "backwards",
        ),
        invalid(
            "offsets that do not fit the shape",
            described(r#""w":{"dtype":"F32","shape":[999],"data_offsets":[0,4000]}"#),
            "3996",
        ),
        misfit("no tensors", raw_file("{}", &[]), "nothing"),
        misfit("another tensor", file(&[Tensor::f32("v", &[ELEMENTS], &[0.0; ELEMENTS])]), "`v`"),
        misfit("another shape", w(&[10, 100]), "[10, 100]"),
        misfit("another dtype", file(&[Tensor::f64("w", &[ELEMENTS], &[0.0; ELEMENTS])]), "F64"),
    ]
}

on_both_buses! {
    async fn a_bad_body_is_refused_and_leaves_nothing(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({}), &update(0.0)).await;
        let before = server.observe();
        for (what, body, status, code, says) in bad_bodies() {
            let problem = job.submit(1, "c", "", &body).await.problem(status, code);
            assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(says)), "{what}: {problem}");
            assert_eq!(server.api().metrics().await.slab_bytes_in_use(), 0, "after {what}");
        }
        let refused = server.api().metrics().await.sum("catchment_updates_rejected_total", &[("job", "a")]);
        assert_eq!(refused, bad_bodies().len() as f64);
        holds_no_more_than(&server, before).await;
        job.accepted(1, "c", "", &update(1.0)).await;
        lives_on(&server.api()).await;
    }

    /// In every float dtype, at the first and the last element.
    async fn nan_and_infinity_are_found_in_every_dtype(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        for (dtype, bad) in [("f32", f64::NAN), ("f64", f64::INFINITY), ("f16", f64::NEG_INFINITY), ("bf16", f64::NAN)] {
            let tensor = |values: &[f64]| match dtype {
                "f32" => Tensor::f32("w", &[ELEMENTS], &values.iter().map(|v| *v as f32).collect::<Vec<_>>()),
                "f64" => Tensor::f64("w", &[ELEMENTS], values),
                "f16" => Tensor::f16("w", &[ELEMENTS], &values.iter().map(|v| f16::from_f64(*v).to_bits()).collect::<Vec<_>>()),
                _ => Tensor::bf16("w", &[ELEMENTS], &values.iter().map(|v| bf16::from_f64(*v).to_bits()).collect::<Vec<_>>()),
            };
            let job = api.begin(&format!("job-{dtype}"), json!({}), &file(&[tensor(&[0.5; ELEMENTS])])).await;
            for index in [0, ELEMENTS - 1] {
                let mut values = [1.0; ELEMENTS];
                values[index] = bad;
                let problem = job.submit(1, "c", "", &file(&[tensor(&values)])).await.problem(422, "not_finite");
                assert_eq!((&problem["tensor"], &problem["index"]), (&json!("w"), &json!(index)), "{dtype}");
            }
            assert_eq!(api.metrics().await.slab_bytes_in_use(), 0, "{dtype}");
        }
    }

    async fn a_body_over_the_limit_is_refused_however_it_is_sent(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"limits": {"update_bytes": 8192}}), &update(0.0)).await;
        let before = server.observe();
        let path = job.update_path(1, "c", "");
        let mut declared = Raw::connect(server.address()).await;
        declared.send(request_head(&path, &[("content-length", "1000000000000")]).as_bytes()).await;
        declared.answer().await.expect("an answer").problem(413, "too_large");

        // Valid at first sight: the header is within the limit, and the data that follows is not.
        let header = r#"{"w":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}"#;
        for body in [raw_file(header, &[0; 65536]), raw_file(&" ".repeat(60_000), &[]), u64::MAX.to_le_bytes().to_vec()] {
            let mut chunked = Raw::connect(server.address()).await;
            chunked.send(request_head(&path, &[("transfer-encoding", "chunked")]).as_bytes()).await;
            chunked.send(format!("{:x}\r\n", body.len()).as_bytes()).await;
            chunked.send(&body).await;
            chunked.send(b"\r\n0\r\n\r\n").await;
            let answer = chunked.answer().await.expect("an answer");
            assert!([413, 422].contains(&answer.status), "{}", answer.text());
            answer.problem(answer.status, if answer.status == 413 { "too_large" } else { "layout" });
        }
        drop(declared);
        holds_no_more_than(&server, before).await;
        lives_on(&server.api()).await;
    }

    async fn a_chunked_body_counts_like_any_other(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 2, "rounds": 1}), &update(0.0)).await;
        let body = update(1.0);
        let mut raw = Raw::connect(server.address()).await;
        raw.send(request_head(&job.update_path(1, "c", ""), &[("transfer-encoding", "chunked")]).as_bytes()).await;
        for chunk in body.chunks(777) {
            raw.send(format!("{:x}\r\n", chunk.len()).as_bytes()).await;
            raw.send(chunk).await;
            raw.send(b"\r\n").await;
        }
        raw.send(b"0\r\n\r\n").await;
        let receipt = raw.answer().await.expect("an answer").expect(202).json();
        let again = job.submit(1, "c", "", &body).await.expect(200).json();
        assert_eq!(again["receipt"], receipt["receipt"]);
    }

    async fn a_content_length_that_lies_is_found_out(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({}), &update(0.0)).await;
        let before = server.observe();
        let (path, body) = (job.update_path(1, "c", ""), update(1.0));
        let length = |bytes: usize| bytes.to_string();
        let send = async |declared: String, sent: &[u8]| {
            let mut raw = Raw::connect(server.address()).await;
            raw.send(request_head(&path, &[("content-length", &declared)]).as_bytes()).await;
            raw.send(sent).await;
            raw
        };
        // More than is there, and the file's own header knows better.
        let problem = send(length(body.len() + 1), &body).await.answer().await.expect("an answer");
        problem.problem(422, "invalid_safetensors");
        // Less than is there: the rest would be the next request, so the connection must end.
        let mut raw = send(length(body.len() - 1), &body).await;
        raw.answer().await.expect("an answer").problem(422, "invalid_safetensors");
        raw.closed().await;
        // The right length, and the body ends before it.
        let mut raw = send(length(body.len()), &body[..body.len() / 2]).await;
        raw.finish().await;
        raw.answer().await.expect("an answer").problem(400, "truncated");
        for nonsense in ["-1", "lots", "1, 2", "99999999999999999999999"] {
            let mut raw = send(nonsense.to_owned(), &body).await;
            assert_eq!(raw.answer().await.expect("an answer").status, 400, "{nonsense}");
        }
        assert_eq!(job.round().await["received"], 0);
        holds_no_more_than(&server, before).await;
        lives_on(&server.api()).await;
    }

    /// Whoever writes all before it reads, on a connection that is to be closed, gets its answer too, and no reset.
    async fn a_refusal_reaches_who_is_still_sending(bus: Bus) {
        let server = Server::start(bus).await;
        let before = server.observe();
        let bytes = 40 << 20;
        let length = bytes.to_string();
        for more in [("connection", "close"), ("x-kept", "alive")] {
            let mut raw = Raw::connect(server.address()).await;
            let head = request_head("/v1/jobs/nosuch/rounds/1/updates/c", &[("content-length", &length), more]);
            raw.send(head.as_bytes()).await;
            for _ in 0..bytes >> 20 {
                raw.send(&[0; 1 << 20]).await;
            }
            raw.answer().await.expect("an answer").problem(404, "not_found");
        }
        holds_no_more_than(&server, before).await;
    }

    async fn bytes_that_are_no_request_do_no_harm(bus: Bus) {
        let server = Server::start(bus).await;
        let before = server.observe();
        let long_path = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(1 << 20));
        let many_headers: String = (0..5000).map(|i| format!("h{i}: x\r\n")).collect();
        let headers = format!("GET / HTTP/1.1\r\n{many_headers}\r\n");
        for bytes in [&b"\x16\x03\x01\x02\x00"[..], b"GET\r\n\r\n", b"\0\0\0\0\r\n\r\n", long_path.as_bytes(), headers.as_bytes()] {
            let mut raw = Raw::connect(server.address()).await;
            raw.send(bytes).await;
            raw.finish().await;
            if let Some(answer) = raw.answer().await {
                assert!((400..500).contains(&answer.status), "{}", answer.status);
            }
        }
        holds_no_more_than(&server, before).await;
        lives_on(&server.api()).await;
    }
}
