//! Those who hold what others need: memory, connections, disk.

use crate::{holds_no_more_than, lives_on, update};
use catchment_tests::{
    Answer, Api, Bus, Job, Raw, Server, Tensor, file, on_both_buses, request_head, request_head_of, until,
};
use serde_json::json;
use std::io::Write;
use std::time::{Duration, Instant};

/// A megabyte of numbers.
const LARGE: usize = 1 << 18;

fn large(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[LARGE], &vec![value; LARGE])])
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

async fn granted(api: &Api) -> f64 {
    api.metrics().await.sum("catchment_slab_bytes", &[("state", "granted")])
}

/// Sends all but the last `rest` bytes of a body, and is silent then.
async fn silent(server: &Server, path: &str, body: &[u8], rest: usize, more: &[(&str, &str)]) -> Raw {
    let length = body.len().to_string();
    let mut raw = Raw::connect(server.address()).await;
    raw.send(request_head(path, &[&[("content-length", length.as_str())], more].concat()).as_bytes()).await;
    raw.send(&body[..body.len() - rest]).await;
    raw
}

/// The same in one chunk.
async fn silent_chunk(server: &Server, path: &str, body: &[u8], rest: usize) -> Raw {
    let mut raw = Raw::connect(server.address()).await;
    raw.send(request_head(path, &[("transfer-encoding", "chunked")]).as_bytes()).await;
    raw.send(format!("{:x}\r\n", body.len()).as_bytes()).await;
    raw.send(&body[..body.len() - rest]).await;
    raw
}

async fn head(job: &Job, path: &str) -> Answer {
    job.api.call("HEAD", path, &[], None).await
}

on_both_buses! {
    /// However fast they began: twelve megabytes are full of uploads that stand still, and whoever comes gets in at once.
    async fn who_stands_still_gives_way_to_who_waits(bus: Bus) {
        let server =
            Server::start_with(bus, &[("--slab-mib", "12"), ("--park-time", "120s"), ("--body-grace", "60s"), ("--room-wait", "4s")]).await;
        let api = server.api();
        let job = api.begin("a", json!({"goal": 4, "rounds": 1}), &large(0.0)).await;
        let before = server.observe();
        let path = |client: &str| job.update_path(1, client, "");
        let (body, mut holders) = (large(1.0), Vec::new());
        for k in 0..3 {
            // Nobody can go on with a chunked body; it gives way all the same.
            holders.push(silent_chunk(&server, &path(&format!("chunked{k}")), &body, 1000).await);
            holders.push(silent(&server, &path(&format!("plain{k}")), &body, 1000, &[]).await);
        }
        until("the memory is taken", async || (granted(&api).await > 5e6).then_some(())).await;
        let begun = Instant::now();
        for (client, value) in [("c", 1.0), ("d", 2.0), ("e", 6.0)] {
            job.accepted(1, client, "", &large(value)).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(12), "after {:?}", begun.elapsed());
        drop(holders);
        job.accepted(1, "f", "", &large(3.0)).await;
        job.in_state("completed").await;
        holds_no_more_than(&server, before).await;
    }

    /// One that is gone on with is where it was, if nobody needed all of its memory.
    async fn who_gave_way_is_told_and_may_go_on(bus: Bus) {
        let settings = [("--slab-mib", "12"), ("--park-time", "120s"), ("--body-grace", "60s"), ("--room-wait", "2s")];
        let server = Server::start_with(bus, &settings).await;
        let api = server.api();
        let job = api.begin("a", json!({"goal": 9, "rounds": 1}), &large(0.0)).await;
        let (body, path) = (large(1.0), |client: &str| job.update_path(1, client, ""));
        let mut holders = Vec::new();
        for k in 0..6 {
            let mut raw = silent(&server, &path(&format!("h{k}")), &body, 1000, &[]).await;
            // Each gains a little later than the one before it.
            tokio::time::sleep(Duration::from_millis(50)).await;
            raw.send(&body[body.len() - 1000..body.len() - 999]).await;
            holders.push(raw);
        }
        until("the memory is taken", async || (granted(&api).await > 5e6).then_some(())).await;
        for client in ["c", "d"] {
            job.accepted(1, client, "", &large(1.0)).await;
        }
        // The first that stood still was told so, and those that nobody needed are not bothered.
        let problem = holders[0].answer().await.expect("an answer").problem(408, "too_slow");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("others wait")), "{problem}");
        let last = holders.last_mut().expect("six of them");
        last.send(&body[body.len() - 999..]).await;
        last.answer().await.expect("an answer").expect(202);
    }

    /// Not an hour because the begin was fast: the park time, and then it is parked.
    async fn silence_within_a_body_has_a_limit(bus: Bus) {
        let server = Server::start_with(bus, &[("--park-time", "3s")]).await;
        let api = server.api();
        let job = api.begin("a", json!({}), &large(0.0)).await;
        let fresh = api.create("fresh", json!({})).await;
        let before = server.observe();
        let (body, begun) = (large(1.0), Instant::now());
        let path = |client: &str| job.update_path(1, client, "");
        let mut plain = silent(&server, &path("plain"), &body, 1000, &[]).await;
        let values: Vec<f32> = (0..LARGE).map(|i| i as f32).collect();
        let varied = gzip(&file(&[Tensor::f32("w", &[LARGE], &values)]));
        assert!(varied.len() > 100_000);
        let mut more = vec![
            silent_chunk(&server, &path("chunked"), &body, 1000).await,
            silent(&server, &path("packed"), &varied, 1000, &[("content-encoding", "gzip")]).await,
            silent(&server, &format!("{}/model", fresh.path), &body, 1000, &[]).await,
            // Through hyper.
            silent(&server, &path("closing"), &body, 1000, &[("connection", "close")]).await,
        ];
        let closing = more.last_mut().expect("some");
        closing.answer().await.expect("an answer").problem(408, "too_slow");
        let after = begun.elapsed();
        assert!((Duration::from_secs(2)..Duration::from_secs(12)).contains(&after), "cut off after {after:?}");
        assert_eq!(head(&job, &path("closing")).await.header("upload-complete"), "?0");
        for raw in more.iter_mut().take(3).chain([&mut plain]) {
            raw.answer().await.expect("an answer").problem(408, "too_slow");
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "cut off after {:?}", begun.elapsed());
        drop((plain, more));
        holds_no_more_than(&server, before).await;
        fresh.put_model(&body).await.expect(201);
        job.accepted(1, "plain", "", &body).await;
    }

    /// A fast begin does not pay for a trickle, which is never silent for long.
    async fn a_trickle_after_a_fast_begin_is_cut_off(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({}), &large(0.0)).await;
        let (body, begun) = (large(1.0), Instant::now());
        let mut raw = silent(&server, &job.update_path(1, "c", ""), &body, 2000, &[]).await;
        let trickle = tokio::spawn(async move {
            for byte in body[body.len() - 2000..].chunks(1) {
                if begun.elapsed() > Duration::from_secs(8) || !raw.send(byte).await {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            (raw.answer().await.expect("an answer"), begun.elapsed())
        });
        let (answer, after) = trickle.await.expect("a slow client");
        answer.problem(408, "too_slow");
        assert!(after < Duration::from_secs(15), "cut off after {after:?}");
    }

    /// Whoever does not read what it asked for holds a connection, and what is sent on it, for a while only.
    async fn a_client_that_reads_nothing_is_cut_off(bus: Bus) {
        let server = Server::start_with(bus, &[("--silence", "1s")]).await;
        let tall = file(&[Tensor::f32("w", &[8 << 20], &vec![0.5; 8 << 20])]);
        let job = server.api().begin("a", json!({}), &tall).await;
        let before = server.observe();
        let mut readers = Vec::new();
        for more in [&[][..], &[("connection", "close")]] {
            let mut raw = Raw::connect(server.address()).await;
            raw.send(request_head_of("GET", &format!("{}/model", job.path), more).as_bytes()).await;
            readers.push(raw);
        }
        until("both are being served", async || (server.observe().files >= before.files + 4).then_some(())).await;
        until("both are cut off", async || (server.observe().files <= before.files + 2).then_some(())).await;
        drop(readers);
        lives_on(&server.api()).await;
    }

    /// What is known has a length, so the first byte beyond it says that this is something else.
    async fn a_known_update_is_not_unpacked_beyond_its_end(bus: Bus) {
        let server = Server::start_with(bus, &[("--park-time", "20s"), ("--body-grace", "20s")]).await;
        let job = server.api().begin("a", json!({"goal": 2}), &update(0.0)).await;
        let receipt = job.accepted(1, "c", "", &update(1.0)).await;
        let path = job.update_path(1, "c", "");
        let bomb = gzip(&[&update(1.0)[..], &vec![0; 64 << 20]].concat());
        let headers = [("content-encoding", "gzip"), ("content-length", "1000000000")];
        let begun = Instant::now();
        let mut raw = Raw::connect(server.address()).await;
        raw.send(request_head(&path, &headers).as_bytes()).await;
        // Its end never comes.
        raw.send(&bomb[..bomb.len() - 100]).await;
        let problem = raw.answer().await.expect("an answer").problem(409, "conflict");
        assert_eq!(problem["receipt"], receipt, "{problem}");
        assert!(begun.elapsed() < Duration::from_secs(10), "after {:?}", begun.elapsed());
        // A declared length says so before the body does, and less is another update, too.
        let mut raw = silent(&server, &path, &[update(1.0), vec![0; 20 << 20]].concat(), 20 << 20, &[]).await;
        raw.answer().await.expect("an answer").problem(409, "conflict");
        let shorter = update(1.0)[..2000].to_vec();
        job.api.call("PUT", &path, &[], Some(shorter.clone())).await.problem(409, "conflict");
        job.submit_with(1, "c", "", &[("content-encoding", "gzip")], &gzip(&shorter)).await.problem(409, "conflict");
        job.submit_with(1, "c", "", &[("content-encoding", "gzip")], &gzip(&update(1.0))).await.expect(200);
        // Nor is an initial model that is there.
        let model = format!("{}/model", job.path);
        let mut raw = Raw::connect(server.address()).await;
        raw.send(request_head(&model, &headers).as_bytes()).await;
        raw.send(&gzip(&[&update(0.0)[..], &vec![0; 64 << 20]].concat())).await;
        raw.answer().await.expect("an answer").problem(409, "wrong_state");
        let again = [("content-encoding", "gzip")];
        job.api.call("PUT", &model, &again, Some(gzip(&update(0.0)))).await.expect(201);
    }

    async fn initial_models_on_their_way_are_limited(bus: Bus) {
        let settings = [("--drafts", "2"), ("--draft-mib", "3"), ("--body-grace", "60s"), ("--park-time", "60s")];
        let server = Server::start_with(bus, &settings).await;
        let (api, body) = (server.api(), large(0.0));
        let mut jobs = Vec::new();
        for name in ["a", "b", "c", "d"] {
            jobs.push(api.create(name, json!({})).await);
        }
        let model = |job: &Job| format!("{}/model", job.path);
        let drafts = async || api.metrics().await.sum("catchment_model_drafts", &[]);
        let first = silent(&server, &model(&jobs[0]), &body, 1000, &[]).await;
        let mut second = silent(&server, &model(&jobs[1]), &body, 1000, &[]).await;
        until("two are on their way", async || (drafts().await == 2.0).then_some(())).await;
        assert_eq!(api.metrics().await.sum("catchment_model_draft_bytes", &[]), 2.0 * body.len() as f64);
        let problem = jobs[2].put_model(&update(0.0)).await.problem(429, "no_room");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("--drafts")), "{problem}");
        drop(first);
        until("one has ended", async || (drafts().await == 1.0).then_some(())).await;
        let two = file(&[Tensor::f32("w", &[2 * LARGE], &vec![0.0; 2 * LARGE])]);
        let problem = jobs[2].put_model(&two).await.problem(429, "no_room");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("--draft-mib")), "{problem}");
        let four = file(&[Tensor::f32("w", &[4 * LARGE], &vec![0.0; 4 * LARGE])]);
        jobs[2].put_model(&four).await.problem(413, "too_large");
        // A job that goes takes the model with it that was on its way.
        jobs[1].call("DELETE", "").await.expect(204);
        second.answer().await.expect("an answer").problem(404, "not_found");
        jobs[2].put_model(&two).await.expect(201);
        jobs[0].put_model(&body).await.expect(201);
        until("none is on its way", async || (drafts().await == 0.0).then_some(())).await;
        let left: Vec<_> = walk(&server.data().join("models")).into_iter().filter(|path| path.ends_with(".draft")).collect();
        assert!(left.is_empty(), "{left:?}");
        server.holds_no_slabs().await;
    }

    /// A decoder's window is its sender's choice; all of them together are not.
    async fn windows_and_heads_have_a_budget(bus: Bus) {
        let settings = [("--buffer-mib", "20"), ("--body-grace", "60s"), ("--park-time", "60s")];
        let server = Server::start_with(bus, &settings).await;
        let (api, body) = (server.api(), update(1.0));
        let job = api.begin("a", json!({"goal": 3}), &update(0.0)).await;
        let packed = crate::encodings::zstd(&[&body], 13);
        let zstd = [("content-encoding", "zstd")];
        let decoders = async || api.metrics().await.sum("catchment_buffer_bytes", &[("kind", "decoder")]);
        let mut first = silent(&server, &job.update_path(1, "c", ""), &packed, 1000, &zstd).await;
        until("a window is taken", async || (decoders().await > 8e6).then_some(())).await;
        let problem = job.submit_with(1, "d", "", &zstd, &packed).await.problem(429, "no_room");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("--buffer-mib")), "{problem}");
        // A small window and a plain body have room.
        job.submit_with(1, "d", "", &zstd, &crate::encodings::zstd(&[&body], 0)).await.expect(202);
        job.accepted(1, "e", "", &update(2.0)).await;
        first.send(&packed[packed.len() - 1000..]).await;
        first.answer().await.expect("an answer").expect(202);
        until("the window is given back", async || (decoders().await == 0.0).then_some(())).await;

        // A head that is announced is counted before it comes.
        let job = api.begin("b", json!({}), &update(0.0)).await;
        let heads = async || api.metrics().await.sum("catchment_buffer_bytes", &[("kind", "head")]);
        let announced = [&(8u64 << 20).to_le_bytes()[..], &[b' '; 1000], &vec![b' '; (8 << 20) + 5000]].concat();
        let first = silent(&server, &job.update_path(1, "c", ""), &announced, 8 << 20, &[]).await;
        until("a head is counted", async || (heads().await >= 5e6).then_some(())).await;
        let mut second = silent(&server, &job.update_path(1, "d", ""), &announced, 8 << 20, &[]).await;
        second.answer().await.expect("an answer").problem(429, "no_room");
        // Large ones do not keep ordinary ones out.
        job.accepted(1, "e", "", &body).await;
        drop(first);
        until("the head is given back", async || (heads().await == 0.0).then_some(())).await;
        job.accepted(1, "d", "", &body).await;
    }
}

/// Every file under a folder.
fn walk(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let below = |entry: std::fs::DirEntry| match entry.path() {
        path if path.is_dir() => walk(&path),
        path => vec![path.display().to_string()],
    };
    entries.flat_map(below).collect()
}
