//! A large job beside a small one: to make gigabytes of shared memory takes seconds, and nobody else waits for that.

use catchment_tests::{Bus, Job, Raw, Server, Tensor, file, on_both_buses, raw_file, request_head, until};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Bytes of the large model: numbers of eight bytes, so that its accumulator has twice as many.
const LARGE_BYTES: u64 = 1 << 30;
/// Longer than this part of the time in which the memory is made takes no update of the small job, but for one of a hundred.
/// (It is to be 50 ms, and is 20 on a machine with nothing else to do, of three seconds; who waits for the memory waits for a
/// third of that.)
const PART: u32 = 10;
/// Bytes sent at one time.
const PIECE: usize = 1 << 20;

/// The head of a file with one tensor of this many bytes, and nothing of its data.
fn head(bytes: u64) -> Vec<u8> {
    raw_file(&format!(r#"{{"w":{{"dtype":"F64","shape":[{}],"data_offsets":[0,{bytes}]}}}}"#, bytes / 8), &[])
}

/// Puts the large model, which is all zeros.
async fn put_model(server: &Server, job: &Job) {
    let head = head(LARGE_BYTES);
    let length = (head.len() as u64 + LARGE_BYTES).to_string();
    let mut raw = Raw::connect(server.address()).await;
    raw.send(request_head(&format!("{}/model", job.path), &[("content-length", &length)]).as_bytes()).await;
    raw.send(&head).await;
    let zeros = vec![0; PIECE];
    for _ in 0..LARGE_BYTES / PIECE as u64 {
        assert!(raw.send(&zeros).await, "the server takes the model");
    }
    raw.answer().await.expect("an answer").expect(201);
}

/// How long updates of a small job take, one after the other, until `ends`.
async fn small_updates(job: Job, name: &'static str, body: Vec<u8>, ends: Arc<AtomicBool>) -> Vec<Duration> {
    let mut taken = Vec::new();
    while !ends.load(Relaxed) {
        let begun = Instant::now();
        job.accepted(1, &format!("{name}-{}", taken.len()), "", &body).await;
        taken.push(begun.elapsed());
    }
    taken
}

on_both_buses! {
    /// The large update's memory is made: two gigabytes of sums, one of update. Meanwhile small updates begin and end.
    async fn a_small_job_does_not_wait_for_a_large_ones_memory(bus: Bus) {
        let server = Server::start_with(bus, &[("--slab-mib", "5600"), ("--body-grace", "60s"), ("--park-time", "60s")]).await;
        let spec = json!({"goal": 2, "rounds": 1, "deadline": null, "limits": {"update_bytes": LARGE_BYTES + 4096}});
        let large = server.api().create("large", spec).await;
        put_model(&server, &large).await;
        large.open_round(1).await;
        let update = file(&[Tensor::f32("w", &[1000], &[1.0; 1000])]);
        let small = server.api().begin("small", json!({"goal": 100_000, "deadline": null}), &update).await;
        // What was written to the disk is on its way there no longer.
        rustix::fs::sync();

        let before = server.api().metrics().await.slab_bytes_in_use();
        let ends = Arc::new(AtomicBool::new(false));
        let clients = ["a", "b", "c", "d"].map(|name| {
            tokio::spawn(small_updates(small.clone(), name, update.clone(), ends.clone()))
        });
        let length = (head(LARGE_BYTES).len() as u64 + LARGE_BYTES).to_string();
        let path = large.update_path(1, "c", "");
        let mut raw = Raw::connect(server.address()).await;
        let begun = Instant::now();
        raw.send(request_head(&path, &[("content-length", &length)]).as_bytes()).await;
        raw.send(&head(LARGE_BYTES)).await;
        let api = server.api();
        // Granted is counted when it is reserved; the body is read once all is made.
        raw.send(&vec![0; PIECE]).await;
        until("its memory is there", async || {
            (api.metrics().await.slab_bytes_in_use() >= before + 3 * LARGE_BYTES).then_some(())
        })
        .await;
        let piece = vec![0; PIECE];
        // More than sockets hold: it is received.
        for _ in 0..64 {
            raw.send(&piece).await;
        }
        let made = begun.elapsed();
        ends.store(true, Relaxed);
        let mut taken: Vec<Duration> = Vec::new();
        for client in clients {
            taken.extend(client.await.expect("small updates"));
        }
        taken.sort_unstable();
        let (p99, longest) = (taken[(taken.len() * 99 / 100).min(taken.len() - 1)], taken[taken.len() - 1]);
        eprintln!("{bus:?}: memory made in {made:?}; {} small updates: p99 {p99:?}, longest {longest:?}", taken.len());
        assert!(p99 < made / PART, "p99 {p99:?}, longest {longest:?} of {} in {made:?}", taken.len());
        assert!(taken.len() >= 100, "{} updates in {made:?}", taken.len());
    }
}
