//! What goes wrong around a job without anybody meaning harm: races, lost files, wrong settings, numbers that run over.

use crate::{ELEMENTS, lives_on, mean_of, update};
use catchment_tests::{Bus, Raw, Server, Tensor, file, on_both_buses, read, request_head, run, until};
use serde_json::json;
use std::time::Duration;

on_both_buses! {
    async fn two_initial_models_at_once_are_one_of_the_two(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().create("a", json!({"goal": 1, "rounds": 1})).await;
        let (late, first) = (file(&[Tensor::f32("w", &[2], &[7.0, 7.0])]), update(0.0));
        let head = request_head(&format!("{}/model", job.path), &[("content-length", &late.len().to_string())]);
        let mut slow = Raw::connect(server.address()).await;
        slow.send(&[head.as_bytes(), &late[..late.len() - 4]].concat()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        job.put_model(&first).await.expect(201);
        slow.send(&late[late.len() - 4..]).await;
        slow.answer().await.expect("an answer").problem(409, "wrong_state");
        assert_eq!(job.model(0).await, first);
        // The same one again, as after a lost answer, is no conflict.
        assert_eq!(job.put_model(&first).await.expect(201).json()["version"], 0);
        job.put_model(&update(0.5)).await.problem(409, "wrong_state");
        job.accepted(1, "c", "", &update(1.0)).await;
        job.in_state("completed").await;
        assert_eq!(read(&job.model(1).await)["w"], mean_of(&[1.0]));
    }

    /// A client that knows its round need not ask before it sends.
    async fn an_update_for_the_next_round_waits_for_it(bus: Bus) {
        let server = Server::start(bus).await;
        for k in 0..10 {
            let job = server.api().create(&format!("job-{k}"), json!({"goal": 1, "rounds": 4})).await;
            job.put_model(&update(0.0)).await.expect(201);
            for round in 1..=4 {
                job.accepted(round, "c", "", &update(round as f32)).await;
            }
            job.in_state("completed").await;
        }
    }

    async fn a_model_that_runs_over_is_not_published(bus: Bus) {
        let server = Server::start(bus).await;
        let model = |value: f64| file(&[Tensor::f64("w", &[2], &[1.0, value])]);
        let job = server.api().begin("a", json!({"goal": 2, "rounds": 1}), &model(0.0)).await;
        job.submit(1, "c", "weight=1000", &model(1e308)).await.problem(422, "out_of_range");
        for client in ["c", "d"] {
            job.accepted(1, client, "weight=1", &model(1e308)).await;
        }
        job.open_round(2).await;
        let view = job.view().await;
        let reason = view["reason"].as_str().expect("a reason");
        assert!(reason.contains("element 1 of tensor `w` is NaN or infinite"), "{reason}");
        assert_eq!(view["model_version"], 0);
        job.submit(2, "e", "weight=1e-300", &model(0.0)).await.problem(422, "out_of_range");
        lives_on(&server.api()).await;
    }

    /// Names of numbers come from clients; what they may take in the log and in metrics has a limit.
    async fn a_flood_of_named_numbers_ends_in_a_model(bus: Bus) {
        let server = Server::start(bus).await;
        let goal = 280;
        let job = server.api().begin("a", json!({"goal": goal, "rounds": 1}), &update(0.0)).await;
        for k in 0..goal {
            let names: Vec<String> = (0..10).map(|i| format!("\"{k}-{i}-{}\":1", "x".repeat(380))).collect();
            let metrics = format!("{{{}}}", names.join(","));
            let client = format!("c{k}");
            job.submit_with(1, &client, "", &[("catchment-metrics", &metrics)], &update(1.0)).await.expect(202);
        }
        job.in_state("completed").await;
        let mut series = 0;
        // They are published right after the commit.
        for _ in 0..50 {
            let shown = server.api().get("/metrics").await.text();
            series = shown.lines().filter(|line| line.starts_with("catchment_job_metric{")).count();
            if series > 0 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert!((1..=64).contains(&series), "{series} series");
    }

    /// Many that take their time fill no memory that folding needs: they get in, a few at a time.
    async fn slow_clients_and_little_memory_get_through(bus: Bus) {
        let server = Server::start_with(bus, &[("--slab-mib", "12"), ("--body-grace", "20s"), ("--room-wait", "1s")]).await;
        let elements = 1 << 17;
        let large = |value: f32| file(&[Tensor::f32("w", &[elements], &vec![value; elements])]);
        let job = server.api().begin("a", json!({"goal": 30, "rounds": 1}), &large(0.0)).await;
        let mut clients = Vec::new();
        for k in 0..30 {
            let (address, path, body) = (server.address().to_owned(), job.update_path(1, &format!("c{k}"), ""), large(k as f32));
            clients.push(tokio::spawn(async move {
                let head = request_head(&path, &[("content-length", &body.len().to_string())]);
                loop {
                    let mut raw = Raw::connect(&address).await;
                    raw.send(head.as_bytes()).await;
                    for part in body.chunks(body.len() / 4 + 1) {
                        raw.send(part).await;
                        tokio::time::sleep(Duration::from_millis(150)).await;
                    }
                    match raw.answer().await {
                        Some(answer) if answer.status == 202 => return,
                        Some(answer) => drop(answer.problem(429, "no_room")),
                        None => {}
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }));
        }
        for client in clients {
            client.await.expect("every client gets in");
        }
        job.in_state("completed").await;
        assert_eq!(read(&job.model(1).await)["w"][0], 14.5);
        server.holds_no_slabs().await;
    }

    /// Bodies that are announced and never sent hold their connections for a while, not for ever.
    async fn silent_bodies_do_not_stop_the_server(bus: Bus) {
        let server = Server::start_with(bus, &[("--connections", "8")]).await;
        let mut silent = Vec::new();
        for _ in 0..8 {
            let mut raw = Raw::connect(server.address()).await;
            raw.send(b"POST /v1/clients/c/checkin HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n{").await;
            silent.push(raw);
        }
        silent[0].answer().await.expect("an answer").problem(408, "too_slow");
        drop(silent);
        lives_on(&server.api()).await;
    }

    async fn a_patch_is_checked_like_a_spec(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 4, "rounds": 2, "deadline": "1h"}), &update(0.0)).await;
        for (patch, field) in [
            (json!({"rounds": 99_999_999_999_999_999u64}), "rounds"),
            (json!({"goal": 0}), "goal"),
            (json!({"deadline": "0s"}), "deadline"),
        ] {
            let problem = server.api().patch(&job.path, &patch).await.problem(422, "invalid_spec");
            assert_eq!(problem["fields"][0]["field"], field, "{problem}");
        }
        assert_eq!(job.view().await["spec"]["goal"], 4);
        let patched = server.api().patch(&job.path, &json!({"goal": 3})).await.expect(200).json();
        assert_eq!(patched["spec"]["goal"], 3);
    }

    /// Files that a kill left behind go at the next start; those of the jobs stay.
    async fn left_over_files_go_at_the_next_start(bus: Bus) {
        let mut server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 1, "rounds": 1}), &update(0.0)).await;
        let uid = job.view().await["uid"].as_str().expect("a uid").to_owned();
        server.kill9();
        let models = server.data().join("models");
        let draft = models.join(&uid).join("version-1.draft");
        std::fs::write(&draft, "half a model").expect("write a draft");
        let gone = models.join("f".repeat(uid.len()));
        std::fs::create_dir(&gone).expect("make the folder of a job that is gone");
        let foreign = models.join("notes.txt");
        std::fs::write(&foreign, "not ours").expect("write a file");
        server.start_again().await;
        assert!(!draft.exists() && !gone.exists() && foreign.exists());
        assert_eq!(job.through(&server.api()).model(0).await, update(0.0));
    }

    async fn compressed_updates_count_like_plain_ones(bus: Bus) {
        let server = Server::start(bus).await;
        let limits = json!({"update_bytes": 20_000});
        let job = server.api().begin("a", json!({"goal": 2, "rounds": 1, "limits": limits}), &update(0.0)).await;
        let gzip = |body: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut encoder, body).expect("memory takes it");
            encoder.finish().expect("memory takes it")
        };
        let send = async |client: &str, encoding: &str, body: &[u8]| {
            job.submit_with(1, client, "", &[("content-encoding", encoding)], body).await
        };
        let receipt = send("c", "gzip", &gzip(&update(1.0))).await.expect(202).json();
        // The digest is of what was compressed.
        assert_eq!(job.submit(1, "c", "", &update(1.0)).await.expect(200).json()["receipt"], receipt["receipt"]);
        let whole = gzip(&update(3.0));
        send("d", "gzip", &whole[..whole.len() / 2]).await.problem(400, "truncated");
        send("d", "br", &whole).await.problem(415, "unsupported_encoding");
        let bomb = gzip(&[&update(3.0)[..], &vec![0; 8 << 20]].concat());
        send("d", "gzip", &bomb).await.problem(413, "too_large");
        send("d", "gzip", &whole).await.expect(202);
        job.in_state("completed").await;
        assert_eq!(read(&job.model(1).await)["w"], mean_of(&[1.0, 3.0]));
        assert_eq!(read(&job.model(1).await)["w"].len(), ELEMENTS);
        server.holds_no_slabs().await;
    }
}

async fn lost_name() {
    let mut server = Server::start(Bus::Embedded).await;
    let job = server.api().begin("a", json!({"goal": 3, "rounds": 1}), &update(0.0)).await;
    job.accepted(1, "c", "", &update(1.0)).await;
    until("it is folded", async || (job.round().await["folded"] == 1).then_some(())).await;
    server.kill9();
    let name = server.data().join("node-id");
    let kept = std::fs::read(&name).expect("the node has a name");
    std::fs::write(&name, "").expect("empty it");
    server.fails_to_start("node-id").await;
    // Somebody who has no backup removes it: then this node holds nothing of what the log says, and says so.
    std::fs::remove_file(&name).expect("remove it");
    server.start_again().await;
    let job = job.through(&server.api());
    until("the update is open again", async || (job.round().await["received"] == 0).then_some(())).await;
    for (k, client) in ["c", "d", "e"].into_iter().enumerate() {
        job.accepted(1, client, "", &update(k as f32)).await;
    }
    job.in_state("completed").await;
    assert_eq!(read(&job.model(1).await)["w"], mean_of(&[0.0, 1.0, 2.0]));
    assert_ne!(std::fs::read(&name).expect("a new name"), kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_name_is_said_and_spoils_no_model() {
    run(lost_name()).await;
}

async fn foreign_log() {
    let mut server = Server::start(Bus::Nats).await;
    server.api().begin("a", json!({"goal": 1, "rounds": 1}), &update(0.0)).await;
    server.kill9();
    let (models, aside) = (server.data().join("models"), server.data().join("aside"));
    std::fs::rename(&models, &aside).expect("move the models away");
    server.fails_to_start("the log belongs to another data directory").await;
    std::fs::remove_dir_all(&models).ok();
    std::fs::rename(&aside, &models).expect("put them back");
    server.start_again().await;
    lives_on(&server.api()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_another_data_directory_is_refused() {
    run(foreign_log()).await;
}
