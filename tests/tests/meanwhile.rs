//! What happens while somebody is between two steps: a buffer closes, memory goes, a job is deleted.

use catchment_tests::{Answer, Bus, Job, Raw, Server, Tensor, file, on_both_buses, request_head, until};
use serde_json::json;
use std::time::{Duration, Instant};

/// Four mebibytes of numbers: an update takes 4 MiB of shared memory, its round's accumulator 18.
const ELEMENTS: usize = 1 << 20;

fn update(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[ELEMENTS], &vec![value; ELEMENTS])])
}

fn numbers(count: usize) -> Vec<u8> {
    file(&[Tensor::f32("w", &[count], &vec![1.0; count])])
}

/// An asynchronous job whose buffers are of one update. `held`: the update of the first client, received and about to be
/// offered to the log for a buffer that has closed meanwhile.
struct Moving {
    server: Server,
    job: Job,
    held: tokio::task::JoinHandle<Answer>,
}

async fn send(job: &Job, base: u64, client: &str) -> Answer {
    let etag = job.call("GET", &format!("/model?version={base}")).await.header("etag").to_owned();
    job.submit_with(base, client, "", &[("catchment-base", &etag)], &update(1.0)).await
}

impl Moving {
    async fn begin(bus: Bus) -> Self {
        let settings = [("--slab-mib", "40"), ("--park-time", "120s"), ("--body-grace", "60s")];
        let server = Server::start_to_hold_at(bus, &settings, "Frozen").await;
        let spec = json!({"update": "delta", "rounds": 3, "mode": {"async": {"buffer": 1, "staleness_max": 2}}});
        let job = server.api().begin("moving", spec, &update(0.0)).await;
        let sender = job.clone();
        let held = tokio::spawn(async move { send(&sender, 0, "held").await });
        server.holds().await;
        send(&job, 0, "first").await.expect(202);
        job.published(1).await;
        job.round_when("the next buffer is open", |round| round["round"] == 2).await;
        Self { server, job, held }
    }

    async fn answer(self) -> (Server, Job, Answer) {
        self.server.let_go();
        let answer =
            tokio::time::timeout(Duration::from_secs(20), self.held).await.expect("an answer").expect("no panic");
        (self.server, self.job, answer)
    }
}

on_both_buses! {
    /// What does not give way has the memory that folding would take: the update is refused, not accepted and never folded.
    async fn an_update_is_not_moved_to_where_it_could_not_be_folded(bus: Bus) {
        let moving = Moving::begin(bus).await;
        let other = moving.server.api().begin("keeps", json!({"function": "median", "goal": 6, "over_provision": 1.0}), &update(0.0)).await;
        for k in 0..5 {
            other.accepted(1, &format!("c{k}"), "", &update(1.0)).await;
        }
        let (server, job, answer) = moving.answer().await;
        answer.problem(429, "no_room");
        assert_eq!(job.round().await["received"], 0);
        server.api().call("DELETE", &other.path, &[], None).await.expect(204);
        send(&job, 0, "held").await.expect(202);
        job.published(2).await;
        send(&job, 2, "last").await.expect(202);
        job.in_state("completed").await;
        server.holds_no_slabs().await;
    }

    /// An upload that broke off gives way to it.
    async fn an_update_that_moves_is_in_no_parked_uploads_way(bus: Bus) {
        let moving = Moving::begin(bus).await;
        let other = moving.server.api().begin("parks", json!({"goal": 6}), &update(0.0)).await;
        let (path, body) = (other.update_path(1, "parked", ""), update(1.0));
        let mut raw = Raw::connect(moving.server.address()).await;
        raw.send(request_head(&path, &[("content-length", &body.len().to_string())]).as_bytes()).await;
        raw.send(&body[..3 << 20]).await;
        drop(raw);
        let api = moving.server.api();
        let parked = async || (api.metrics().await.sum("catchment_uploads_parked", &[]) == 1.0).then_some(());
        until("the upload is parked", parked).await;
        let begun = Instant::now();
        let (server, job, answer) = moving.answer().await;
        answer.expect(202);
        job.published(2).await;
        assert!(begun.elapsed() < Duration::from_secs(20), "it waited for the parked upload to expire");
        // Its memory is free: what has come of it is on the disk.
        let api = server.api();
        let stored = async || (api.metrics().await.sum("catchment_uploads_stored", &[]) == 1.0).then_some(());
        until("it is on the disk", stored).await;
        send(&job, 2, "last").await.expect(202);
        job.in_state("completed").await;
    }

    /// The initial model of a job that is deleted while its model waits for memory to be checked in.
    async fn a_model_that_comes_too_late_leaves_no_folder(bus: Bus) {
        let settings = [("--slab-mib", "43"), ("--room-wait", "30s"), ("--body-grace", "60s")];
        let server = Server::start_to_hold_at(bus, &settings, "Granted").await;
        let api = server.api();
        // Its accumulator and its first update take all but 12 MiB.
        let holds = api.begin("holds", json!({"goal": 2}), &numbers(1_400_000)).await;
        let holder = holds.clone();
        let held = tokio::spawn(async move { holder.submit(1, "held", "", &numbers(1_400_000)).await });
        server.holds().await;
        let late = api.create("late", json!({"function": "median", "goal": 1, "over_provision": 1.0})).await;
        let uid = late.view().await["uid"].as_str().expect("a uid").to_owned();
        let (path, body) = (format!("{}/model", late.path), numbers(3_500_000));
        let sender = api.clone();
        let put = tokio::spawn(async move { sender.call("PUT", &path, &[], Some(body)).await });
        let comes = async || (api.metrics().await.sum("catchment_model_drafts", &[]) == 1.0).then_some(());
        until("the model comes", comes).await;
        api.call("DELETE", &late.path, &[], None).await.expect(204);
        server.let_go();
        held.await.expect("no panic").expect(202);
        put.await.expect("no panic").problem(404, "not_found");
        assert!(!server.data().join("models").join(uid).exists());
    }

    /// The model of a job that is deleted while it is made.
    async fn a_deleted_job_leaves_no_files(bus: Bus) {
        for step in ["Scratched", "Finalized", "Kept"] {
            let server = Server::start_to_hold_at(bus, &[], step).await;
            let job = server.api().begin("deleted", json!({"goal": 1, "rounds": 1}), &update(0.0)).await;
            let uid = job.view().await["uid"].as_str().expect("a uid").to_owned();
            let models = server.data().join("models");
            assert!(models.join(&uid).is_dir());
            job.accepted(1, "c", "", &update(1.0)).await;
            server.holds().await;
            server.api().call("DELETE", &job.path, &[], None).await.expect(204);
            until("the node has forgotten it", async || (!models.join(&uid).exists()).then_some(())).await;
            server.let_go();
            // Scratch memory is given back when all is done.
            server.holds_no_slabs().await;
            let left: Vec<_> = std::fs::read_dir(&models).expect("a folder").flatten().map(|entry| entry.path()).collect();
            assert!(left.is_empty(), "deleted at {step}: {left:?}");
            // And others go on.
            let job = server.api().begin("another", json!({"goal": 1, "rounds": 1}), &update(0.0)).await;
            job.accepted(1, "c", "", &update(1.0)).await;
            job.in_state("completed").await;
        }
    }
}
