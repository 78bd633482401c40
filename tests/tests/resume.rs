//! Updates whose connection breaks go on where they were: nothing is sent twice, nothing is kept for ever, and the update
//! is the one it would have been in one piece.

use catchment_tests::{
    Answer, Api, Bus, Job, Raw, Server, Tensor, file, on_both_buses, read, request_head, request_head_of, run_to_end,
    until,
};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A megabyte of numbers.
const ELEMENTS: usize = 1 << 18;

fn update(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[ELEMENTS], &vec![value; ELEMENTS])])
}

fn head_bytes(body: &[u8]) -> usize {
    8 + u64::from_le_bytes(*body.first_chunk().expect("a length")) as usize
}

/// A server that keeps uploads as long as a test may take.
async fn patient(bus: Bus, settings: &[(&str, &str)]) -> Server {
    Server::start_with(bus, &[&[("--park-time", "120s"), ("--body-grace", "60s")], settings].concat()).await
}

async fn begin(server: &Server, spec: serde_json::Value) -> Job {
    server.api().begin("a", spec, &update(0.0)).await
}

async fn truncated(api: &Api) -> f64 {
    api.metrics().await.sum("catchment_updates_rejected_total", &[("reason", "truncated")])
}

async fn parked(api: &Api) -> f64 {
    api.metrics().await.sum("catchment_uploads_parked", &[("namespace", "default")])
}

fn put_head(path: &str, body: &[u8], more: &[(&str, &str)]) -> String {
    request_head(path, &[&[("content-length", body.len().to_string().as_str())], more].concat())
}

fn patch_head(path: &str, offset: usize, bytes: usize, complete: &str) -> String {
    let (offset, bytes) = (offset.to_string(), bytes.to_string());
    let mut headers = vec![("upload-offset", offset.as_str()), ("content-length", &bytes)];
    headers.push(("content-type", "application/partial-upload"));
    if !complete.is_empty() {
        headers.push(("upload-complete", complete));
    }
    request_head_of("PATCH", path, &headers)
}

/// PUTs the begin of an update on a connection that then ends, and waits until the server has noticed.
async fn broken_after(server: &Server, path: &str, body: &[u8], cut: usize, more: &[(&str, &str)]) {
    let (api, mut raw) = (server.api(), Raw::connect(server.address()).await);
    let before = truncated(&api).await;
    raw.send(put_head(path, body, more).as_bytes()).await;
    raw.send(&body[..cut]).await;
    drop(raw);
    until("the server has noticed", async || (truncated(&api).await > before).then_some(())).await;
}

async fn head(job: &Job, path: &str) -> Answer {
    job.api.call("HEAD", path, &[], None).await
}

/// Where the server says that the update stands.
async fn offset(job: &Job, path: &str) -> usize {
    let answer = head(job, path).await.expect(204);
    assert_eq!((answer.header("upload-complete"), answer.header("cache-control")), ("?0", "no-store"));
    answer.header("upload-offset").parse().expect("a number")
}

async fn patch(job: &Job, path: &str, offset: usize, complete: &str, part: &[u8]) -> Answer {
    let offset = offset.to_string();
    let mut headers = vec![("upload-offset", offset.as_str()), ("content-type", "application/partial-upload")];
    if !complete.is_empty() {
        headers.push(("upload-complete", complete));
    }
    job.api.call("PATCH", path, &headers, Some(part.to_vec())).await
}

on_both_buses! {
    async fn an_update_goes_on_wherever_it_broke(bus: Bus) {
        let server = patient(bus, &[]).await;
        let job = begin(&server, json!({"goal": 40, "rounds": 1})).await;
        let body = update(1.5);
        let (begin, end) = (head_bytes(&body), body.len());
        let whole = job.submit(1, "whole", "weight=2", &body).await.expect(202).json();
        // In the request's body before its first byte, in the length, in the header: nothing is kept.
        for cut in [0, 3, 8, begin / 2, begin - 1] {
            let path = job.update_path(1, &format!("head-{cut}"), "weight=2");
            broken_after(&server, &path, &body, cut, &[]).await;
            assert_eq!(head(&job, &path).await.status, 404, "cut at {cut}");
            patch(&job, &path, cut, "?1", &body[cut..]).await.problem(404, "not_found");
            job.api.call("PUT", &path, &[], Some(body.clone())).await.expect(202);
        }
        for cut in [begin, begin + 1, begin + 7, 65_536, 65_537, 300_001, end * 77 / 100, end - 1] {
            let path = job.update_path(1, &format!("data-{cut}"), "weight=2");
            broken_after(&server, &path, &body, cut, &[]).await;
            let bare = path.split('?').next().expect("a path");
            assert_eq!(offset(&job, bare).await, cut);
            assert_eq!(parked(&job.api).await, 1.0);
            // What the first PUT said counts, whatever is said now.
            let answer = patch(&job, &format!("{bare}?weight=7"), cut, "?1", &body[cut..]).await.expect(202);
            assert_eq!(answer.header("upload-complete"), "?1");
            let receipt = answer.json();
            assert_eq!((&receipt["digest"], &receipt["weight"]), (&whole["digest"], &whole["weight"]), "cut at {cut}");
            // The same in one piece is the same.
            let again = job.api.call("PUT", &path, &[], Some(body.clone())).await.expect(200).json();
            assert_eq!(again["receipt"], receipt["receipt"]);
            let answer = head(&job, bare).await.expect(204);
            assert_eq!((answer.header("upload-complete"), answer.header("upload-offset")), ("?1", end.to_string().as_str()));
            let answer = patch(&job, bare, cut, "?1", &body[cut..]).await;
            answer.problem(409, "wrong_offset");
            assert_eq!((answer.header("upload-complete"), answer.header("upload-offset")), ("?1", end.to_string().as_str()));
        }
        assert_eq!(parked(&job.api).await, 0.0);
        let labels = [("job", "a"), ("namespace", "default")];
        assert_eq!(job.api.metrics().await.sum("catchment_uploads_resumed_total", &labels), 8.0);
        for k in 0..26 {
            job.accepted(1, &format!("more-{k}"), "weight=2", &body).await;
        }
        job.in_state("completed").await;
        assert!(read(&job.model(1).await)["w"].iter().all(|value| *value == 1.5));
        server.holds_no_slabs().await;
    }

    /// Part by part, on one connection between other calls, however it is cut.
    async fn an_update_may_come_in_any_number_of_parts(bus: Bus) {
        let server = patient(bus, &[]).await;
        let job = begin(&server, json!({"goal": 2, "rounds": 1})).await;
        let body = update(3.0);
        let whole = job.submit(1, "whole", "", &body).await.expect(202).json();
        let path = job.update_path(1, "parts", "");
        broken_after(&server, &path, &body, 1000, &[]).await;
        let mut raw = Raw::connect(server.address()).await;
        let mut at = 1000;
        for bytes in [0, 1, 2, 3, 70_000, 1, 262_144, 400_001] {
            let complete = if bytes % 2 == 0 { "" } else { "?0" };
            // Two requests at a time: neither takes a byte of the other's.
            let next = request_head_of("GET", "/healthz", &[]);
            let part = &body[at..at + bytes];
            raw.send(&[patch_head(&path, at, bytes, complete).as_bytes(), part, next.as_bytes()].concat()).await;
            let answer = raw.answer().await.expect("an answer").expect(204);
            at += bytes;
            assert_eq!(answer.header("upload-offset"), at.to_string());
            assert_eq!((answer.header("upload-complete"), answer.header("upload-length")), ("?0", body.len().to_string().as_str()));
            assert_eq!(raw.answer().await.expect("an answer").expect(200).text(), "ok\n");
        }
        // All of it, and still not its end: that is said by a part without bytes.
        let rest = body.len() - at;
        raw.send(&[patch_head(&path, at, rest, "?0").as_bytes(), &body[at..]].concat()).await;
        raw.answer().await.expect("an answer").expect(204);
        assert_eq!(offset(&job, &path).await, body.len());
        raw.send(patch_head(&path, body.len(), 0, "?1").as_bytes()).await;
        let receipt = raw.answer().await.expect("an answer").expect(202).json();
        assert_eq!(receipt["digest"], whole["digest"]);
        raw.send(request_head_of("GET", "/healthz", &[]).as_bytes()).await;
        raw.answer().await.expect("an answer").expect(200);
        job.in_state("completed").await;
        assert!(read(&job.model(1).await)["w"].iter().all(|value| *value == 3.0));
        server.holds_no_slabs().await;
    }

    async fn a_part_that_does_not_go_on_is_refused_and_does_no_harm(bus: Bus) {
        let server = patient(bus, &[]).await;
        let job = begin(&server, json!({})).await;
        let (body, cut) = (update(1.0), 500_000);
        let (path, rest) = (job.update_path(1, "c", ""), &body[cut..]);
        patch(&job, &path, 0, "?1", &body).await.problem(404, "not_found");
        broken_after(&server, &path, &body, cut, &[("catchment-digest", &blake3::hash(&body).to_hex())]).await;
        for wrong in [0, cut - 1, cut + 1, body.len(), 999_999_999_999_999] {
            let answer = patch(&job, &path, wrong, "?1", rest).await;
            let problem = answer.problem(409, "wrong_offset");
            assert_eq!((&problem["upload_offset"], &problem["upload_length"]), (&json!(cut), &json!(body.len())));
            assert_eq!((answer.header("upload-offset"), answer.header("upload-complete")), (cut.to_string().as_str(), "?0"));
        }
        patch(&job, &path, cut, "?1", &[rest, &[0]].concat()).await.problem(400, "bad_request");
        patch(&job, &path, cut, "", &[rest, &[0]].concat()).await.problem(400, "bad_request");
        patch(&job, &path, cut, "?1", &rest[1..]).await.problem(400, "bad_request");
        let (at, with) = (cut.to_string(), |more: &[(&'static str, &'static str)]| more.to_vec());
        for (headers, status, code, says) in [
            (with(&[]), 400, "bad_request", "Upload-Offset"),
            (with(&[("upload-offset", "-1")]), 400, "bad_request", "Upload-Offset"),
            (with(&[("upload-offset", "12, 12")]), 400, "bad_request", "Upload-Offset"),
            (with(&[("upload-offset", "500000"), ("upload-offset", "500000")]), 400, "bad_request", "Upload-Offset"),
            (with(&[("upload-offset", "500000"), ("upload-complete", "1")]), 400, "bad_request", "Upload-Complete"),
            (with(&[("upload-offset", "500000"), ("content-encoding", "gzip")]), 415, "unsupported_encoding", "compressed"),
            (with(&[("upload-offset", "500000"), ("catchment-digest", "x")]), 400, "bad_request", "Catchment-Digest"),
            (
                with(&[("upload-offset", "500000"), ("catchment-digest", "00000000000000000000000000000000000000000000000000000000000000ff")]),
                409, "wrong_offset", "Catchment-Digest",
            ),
        ] {
            let problem = job.api.call("PATCH", &path, &headers, Some(rest.to_vec())).await.problem(status, code);
            assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(says)), "{problem}");
        }
        let mut raw = Raw::connect(server.address()).await;
        raw.send(request_head_of("PATCH", &path, &[("upload-offset", &at), ("transfer-encoding", "chunked")]).as_bytes()).await;
        raw.send(b"3\r\nabc\r\n0\r\n\r\n").await;
        let problem = raw.answer().await.expect("an answer").problem(400, "bad_request");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("Content-Length")), "{problem}");
        // Refused before its body was read: nothing more can come on that connection, and the client is told.
        let mut raw = Raw::connect(server.address()).await;
        let headers = [("upload-offset", at.as_str()), ("content-encoding", "gzip"), ("content-length", "100000")];
        raw.send(request_head_of("PATCH", &path, &headers).as_bytes()).await;
        let answer = raw.answer().await.expect("an answer");
        answer.problem(415, "unsupported_encoding");
        assert_eq!(answer.header("connection"), "close");
        job.api.call("PATCH", "/v1/jobs/nosuch/rounds/1/updates/c", &[("upload-offset", "1")], None).await.problem(404, "not_found");
        assert_eq!(head(&job, "/v1/jobs/nosuch/rounds/1/updates/c").await.status, 404);
        assert_eq!(head(&job, &job.update_path(7, "c", "")).await.status, 404);
        patch(&job, &path, cut, "?1", rest).await.expect(202);
    }

    /// A plain PUT with another body in between, and a damaged rest.
    async fn what_is_put_whole_replaces_what_is_parked(bus: Bus) {
        let server = patient(bus, &[]).await;
        let job = begin(&server, json!({"goal": 2, "rounds": 1})).await;
        let (one, two) = (update(1.0), update(2.0));
        let path = job.update_path(1, "c", "");
        broken_after(&server, &path, &one, 700_000, &[]).await;
        job.accepted(1, "c", "", &two).await;
        assert_eq!((head(&job, &path).await.expect(204).header("upload-complete"), parked(&job.api).await), ("?1", 0.0));
        let path = job.update_path(1, "d", "");
        broken_after(&server, &path, &one, 700_000, &[("catchment-digest", &blake3::hash(&one).to_hex())]).await;
        patch(&job, &path, 700_000, "?1", &two[700_000..]).await.problem(422, "checksum");
        assert_eq!(head(&job, &path).await.status, 404);
        broken_after(&server, &path, &one, 700_000, &[]).await;
        broken_after(&server, &path, &two, 300_000, &[]).await;
        assert_eq!(offset(&job, &path).await, 300_000);
        patch(&job, &path, 300_000, "?1", &two[300_000..]).await.expect(202);
        job.in_state("completed").await;
        assert!(read(&job.model(1).await)["w"].iter().all(|value| *value == 2.0));
        server.holds_no_slabs().await;
    }

    async fn a_nan_after_the_break_is_named(bus: Bus) {
        let server = patient(bus, &[]).await;
        let job = begin(&server, json!({})).await;
        for (bad, cut) in [(150_000, 4 * 100_000), (150_000, 4 * 150_000), (150_000, 4 * 150_000 + 2), (ELEMENTS - 1, 4 * ELEMENTS - 1)] {
            let mut values = vec![1.0; ELEMENTS];
            values[bad] = f32::NAN;
            let body = file(&[Tensor::f32("w", &[ELEMENTS], &values)]);
            let (path, cut) = (job.update_path(1, "c", ""), head_bytes(&body) + cut);
            broken_after(&server, &path, &body, cut, &[]).await;
            let problem = patch(&job, &path, cut, "?1", &body[cut..]).await.problem(422, "not_finite");
            assert_eq!((&problem["tensor"], &problem["index"]), (&json!("w"), &json!(bad)));
            assert_eq!(head(&job, &path).await.status, 404);
            server.holds_no_slabs().await;
        }
    }

    /// The connection of a client that changes its network does not end, it falls silent.
    async fn who_asks_takes_the_upload_from_a_silent_connection(bus: Bus) {
        let server = patient(bus, &[]).await;
        let job = begin(&server, json!({"goal": 1, "rounds": 1})).await;
        let (body, cut) = (update(1.0), 800_000);
        let path = job.update_path(1, "c", "");
        let mut silent = Raw::connect(server.address()).await;
        silent.send(put_head(&path, &body, &[]).as_bytes()).await;
        silent.send(&body[..cut]).await;
        let here = async || Some(head(&job, &path).await).filter(|answer| answer.status == 204);
        let answer = until("the server has some of it", here).await;
        let at: usize = answer.header("upload-offset").parse().expect("a number");
        assert!((head_bytes(&body)..=cut).contains(&at), "{at}");
        silent.answer().await.expect("an answer").problem(409, "wrong_offset");

        // Two go on at once: one has it, and the other is told so.
        let mut first = Raw::connect(server.address()).await;
        first.send(patch_head(&path, at, body.len() - at, "?1").as_bytes()).await;
        first.send(&body[at..at + 1000]).await;
        until("one of them has it", async || (parked(&job.api).await == 0.0).then_some(())).await;
        let answer = patch(&job, &path, at, "?1", &body[at..]).await;
        answer.problem(409, "wrong_offset");
        assert_eq!(answer.header("upload-offset"), "");
        first.send(&body[at + 1000..]).await;
        first.answer().await.expect("an answer").expect(202);
        job.in_state("completed").await;
        server.holds_no_slabs().await;
    }

    async fn of_two_who_go_on_at_once_one_does(bus: Bus) {
        let server = patient(bus, &[]).await;
        let job = begin(&server, json!({"goal": 20, "rounds": 1})).await;
        let (body, cut) = (update(1.0), 600_000);
        for k in 0..20 {
            let path = job.update_path(1, &format!("c{k}"), "");
            broken_after(&server, &path, &body, cut, &[]).await;
            let (one, other) = tokio::join!(patch(&job, &path, cut, "?1", &body[cut..]), patch(&job, &path, cut, "?1", &body[cut..]));
            let mut statuses = [one.status, other.status];
            statuses.sort_unstable();
            assert_eq!(statuses, [202, 409], "{} {}", one.text(), other.text());
        }
        job.in_state("completed").await;
        server.holds_no_slabs().await;
    }

    /// Chunked and compressed bodies: how many bytes of them have come says nothing to their sender. What hyper reads of
    /// a plain one is kept all the same.
    async fn only_plain_bodies_of_a_known_length_are_kept(bus: Bus) {
        let server = patient(bus, &[]).await;
        let job = begin(&server, json!({})).await;
        let body = update(1.0);
        let path = job.update_path(1, "c", "");
        for encoding in [("transfer-encoding", "chunked"), ("content-encoding", "gzip")] {
            let before = truncated(&job.api).await;
            let mut raw = Raw::connect(server.address()).await;
            let sent = match encoding.0 {
                "transfer-encoding" => [request_head(&path, &[encoding]).as_bytes(), b"80000\r\n", &body[..0x70000]].concat(),
                _ => {
                    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
                    std::io::Write::write_all(&mut encoder, &body).expect("memory writes");
                    let packed = encoder.finish().expect("memory writes");
                    [put_head(&path, &packed, &[encoding]).as_bytes(), &packed[..packed.len() / 2]].concat()
                }
            };
            raw.send(&sent).await;
            drop(raw);
            until("the server has noticed", async || (truncated(&job.api).await > before).then_some(())).await;
            assert_eq!(head(&job, &path).await.status, 404);
        }
        server.holds_no_slabs().await;
        broken_after(&server, &path, &body, 400_000, &[("connection", "close")]).await;
        assert_eq!(offset(&job, &path).await, 400_000);
        let headers = [("upload-offset", "400000"), ("connection", "close")];
        job.api.call("PATCH", &path, &headers, Some(body[400_000..].to_vec())).await.expect(202);
        let refused = job.submit_with(1, "d", "", &[("content-encoding", "br")], &body).await;
        refused.problem(415, "unsupported_encoding");
        let counted = [("job", "a"), ("reason", "unsupported_encoding")];
        assert_eq!(job.api.metrics().await.sum("catchment_updates_rejected_total", &counted), 1.0);
    }

    /// Where nothing is to be written to the disk.
    async fn what_nobody_asks_for_expires(bus: Bus) {
        let server = Server::start_with(bus, &[("--park-time", "700ms"), ("--park-mib", "0")]).await;
        let job = begin(&server, json!({})).await;
        let (body, path) = (update(1.0), job.update_path(1, "c", ""));
        let before = server.observe();
        for _ in 0..3 {
            broken_after(&server, &path, &body, 900_000, &[]).await;
            // Its accumulators go with it.
            server.holds_no_slabs().await;
            assert_eq!((head(&job, &path).await.status, parked(&job.api).await), (404, 0.0));
        }
        until("no more open files than before", async || (server.observe().files <= before.files + 2).then_some(())).await;
        job.accepted(1, "c", "", &body).await;
    }

    /// Twelve megabytes: the accumulator of a round takes four, finishing it two, each update one.
    async fn what_is_parked_gives_way_the_oldest_first(bus: Bus) {
        let server = patient(bus, &[("--slab-mib", "12"), ("--park-mib", "0")]).await;
        let job = begin(&server, json!({"goal": 3, "rounds": 1})).await;
        let (body, path) = (update(1.0), |client: &str| job.update_path(1, client, ""));
        for client in ["p1", "p2", "p3", "p4"] {
            broken_after(&server, &path(client), &body, 900_000, &[]).await;
        }
        assert_eq!(parked(&job.api).await, 4.0);
        let mut live = Vec::new();
        for k in 0..3 {
            let mut raw = Raw::connect(server.address()).await;
            raw.send(put_head(&path(&format!("l{k}")), &body, &[]).as_bytes()).await;
            raw.send(&body[..900_000]).await;
            live.push(raw);
        }
        until("the oldest have given way", async || (parked(&job.api).await < 4.0).then_some(())).await;
        assert_eq!((head(&job, &path("p1")).await.status, offset(&job, &path("p4")).await), (404, 900_000));
        patch(&job, &path("p4"), 900_000, "?1", &body[900_000..]).await.expect(202);
        drop(live);
        // Another job's accumulators are more than all that is parked.
        let other = job.api.begin("other", json!({"goal": 1, "rounds": 1}), &update(0.0)).await;
        other.accepted(1, "c", "", &update(5.0)).await;
        other.in_state("completed").await;
        job.accepted(1, "c", "", &body).await;
        job.accepted(1, "d", "", &body).await;
        job.in_state("completed").await;
        assert!(read(&job.model(1).await)["w"].iter().all(|value| *value == 1.0));
        server.holds_no_slabs().await;
    }

    async fn what_is_parked_ends_with_its_round_and_its_job(bus: Bus) {
        let server = patient(bus, &[]).await;
        let job = begin(&server, json!({"goal": 1, "rounds": 1})).await;
        let (body, path) = (update(1.0), job.update_path(1, "c", ""));
        broken_after(&server, &path, &body, 500_000, &[]).await;
        job.accepted(1, "d", "", &body).await;
        job.in_state("completed").await;
        server.holds_no_slabs().await;
        assert_eq!(head(&job, &path).await.status, 410);
        patch(&job, &path, 500_000, "?1", &body[500_000..]).await.problem(410, "round_closed");

        let job = job.api.begin("b", json!({}), &update(0.0)).await;
        broken_after(&server, &job.update_path(1, "c", ""), &body, 500_000, &[]).await;
        job.call("DELETE", "").await.expect(204);
        server.holds_no_slabs().await;
        let again = job.api.begin("b", json!({}), &update(0.0)).await;
        assert_eq!(head(&again, &again.update_path(1, "c", "")).await.status, 404);
        until("its series are gone", async || {
            let metrics = job.api.metrics().await;
            (metrics.sum("catchment_uploads_parked", &[]) == 0.0).then_some(())
        })
        .await;
    }

    async fn a_restart_forgets_what_was_parked_in_memory_only(bus: Bus) {
        let mut server = patient(bus, &[("--park-mib", "0")]).await;
        let job = begin(&server, json!({"goal": 1, "rounds": 1})).await;
        let (body, path) = (update(1.0), job.update_path(1, "c", ""));
        broken_after(&server, &path, &body, 500_000, &[]).await;
        assert!(server.api().metrics().await.slab_bytes_in_use() > 0);
        server.kill9();
        server.start_again().await;
        let job = job.through(&server.api());
        server.holds_no_slabs().await;
        assert_eq!(head(&job, &path).await.status, 404);
        patch(&job, &path, 500_000, "?1", &body[500_000..]).await.problem(404, "not_found");
        // And so does one that is asked to stop.
        broken_after(&server, &path, &body, 500_000, &[]).await;
        assert!(server.stop().await.success());
        server.start_again().await;
        let job = job.through(&server.api());
        job.accepted(1, "c", "", &body).await;
        job.in_state("completed").await;
        server.holds_no_slabs().await;
    }

    async fn there_are_only_so_many(bus: Bus) {
        let server = patient(bus, &[("--park-mib", "0")]).await;
        let small = file(&[Tensor::f32("w", &[1000], &[1.0; 1000])]);
        let job = server.api().begin("a", json!({}), &small).await;
        for k in 0..260 {
            let mut raw = Raw::connect(server.address()).await;
            raw.send(put_head(&job.update_path(1, &format!("c{k}"), ""), &small, &[]).as_bytes()).await;
            raw.send(&small[..3000]).await;
        }
        until("all have broken off", async || (truncated(&job.api).await >= 260.0).then_some(())).await;
        assert_eq!(parked(&job.api).await, 256.0);
        // Nor may one be parked for ever, a byte at a time.
        let path = job.update_path(1, "slow", "");
        broken_after(&server, &path, &small, 3000, &[]).await;
        let mut at = 3000;
        while patch(&job, &path, at, "?0", &small[at..at + 1]).await.status == 204 {
            at += 1;
        }
        assert_eq!((at, head(&job, &path).await.status), (3063, 404));
    }

    /// What a person sees: the link breaks at three quarters, the command goes on, and sends the rest only.
    async fn the_command_line_goes_on_by_itself(bus: Bus) {
        let server = patient(bus, &[]).await;
        let job = begin(&server, json!({"goal": 1, "rounds": 1})).await;
        let (body, sent) = (update(4.0), Arc::new(AtomicU64::new(0)));
        let cut = body.len() * 77 / 100;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(breaking(listener, server.address().to_owned(), cut, sent.clone()));
        let path = server.data().join("update.safetensors");
        std::fs::write(&path, &body).expect("write the update");
        let path = path.display().to_string();
        let submitted = tokio::task::spawn_blocking(move || {
            let arguments = ["submit", "a", "--client", "c", "--round", "1", "--file", &path, "--url", &url, "--output", "json"];
            run_to_end(&arguments, Duration::from_secs(60))
        });
        let output = submitted.await.expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(job.api.metrics().await.sum("catchment_uploads_resumed_total", &[("job", "a")]), 1.0);
        // The update once, and the heads of three requests.
        let sent = sent.load(Ordering::Relaxed) as usize;
        assert!((body.len()..body.len() + 4096).contains(&sent), "{sent} bytes for an update of {}", body.len());
        job.in_state("completed").await;
        assert!(read(&job.model(1).await)["w"].iter().all(|value| *value == 4.0));
    }
}

/// Hands connections on to `server` and counts what clients send. The first that sends more than `cut` bytes ends there.
async fn breaking(listener: TcpListener, server: String, cut: usize, sent: Arc<AtomicU64>) {
    let breaks = Arc::new(AtomicBool::new(true));
    loop {
        let (client, _) = listener.accept().await.expect("accept");
        let upstream = TcpStream::connect(&server).await.expect("connect to the server");
        // A client may open another connection before it has ended the one before.
        tokio::spawn(hand_on(client, upstream, cut, breaks.clone(), sent.clone()));
    }
}

async fn hand_on(client: TcpStream, upstream: TcpStream, cut: usize, breaks: Arc<AtomicBool>, sent: Arc<AtomicU64>) {
    let (mut from, mut to) = client.into_split();
    let (mut back, mut out) = upstream.into_split();
    let answers = tokio::spawn(async move { tokio::io::copy(&mut back, &mut to).await });
    let (mut buffer, mut here) = (vec![0; 64 << 10], 0);
    loop {
        let left = if breaks.load(Ordering::Relaxed) { cut - here } else { usize::MAX };
        if left == 0 {
            breaks.store(false, Ordering::Relaxed);
            break;
        }
        let room = buffer.len().min(left);
        match from.read(&mut buffer[..room]).await {
            Ok(taken) if taken > 0 && out.write_all(&buffer[..taken]).await.is_ok() => {
                here += taken;
                sent.fetch_add(taken as u64, Ordering::Relaxed);
            }
            _ => break,
        }
    }
    answers.abort();
}
