//! Two hundred rounds in a row, and nothing grows.

use catchment_tests::{Bus, Job, Server, Tensor, assert_close, file, on_both_buses, read};
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// Rounds until every pool and cache has its size.
const WARM_UP: u64 = 60;
const ROUNDS: u64 = 200;
const CLIENTS: u64 = 4;
const ELEMENTS: usize = 5000;

fn update(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[ELEMENTS], &vec![value; ELEMENTS])])
}

/// One round, as its clients go through it: look, fetch, train, submit.
async fn one_round(clients: &[Job], number: u64) {
    let calls = clients.iter().enumerate().map(|(k, job)| async move {
        job.open_round(number).await;
        job.model(number - 1).await;
        job.accepted(number, &format!("c{k}"), "", &update(number as f32 + k as f32)).await;
    });
    futures::future::join_all(calls).await;
}

/// Bytes of shared memory that the files of the store really take.
fn slab_files_bytes(server: &Server) -> u64 {
    let mut folders = vec![server.slabs().to_path_buf()];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the store's folder").flatten() {
            let facts = entry.metadata().expect("facts of a file");
            bytes += facts.blocks() * 512;
            if facts.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    bytes
}

on_both_buses! {
    async fn nothing_grows_in_two_hundred_rounds(bus: Bus) {
        let server = Server::start(bus).await;
        let begun = Instant::now();
        let spec = json!({"goal": CLIENTS, "rounds": WARM_UP + ROUNDS, "checkpoints": {"keep_last": 2}});
        let job = server.api().begin("long", spec, &update(0.0)).await;
        // Each with connections of its own, which it keeps.
        let clients: Vec<Job> = (0..CLIENTS).map(|_| job.through(&server.api())).collect();
        for round in 1..=WARM_UP {
            one_round(&clients, round).await;
        }
        job.open_round(WARM_UP + 1).await;
        server.holds_no_slabs().await;
        let (before, slabs_before) = (server.observe(), slab_files_bytes(&server));
        for round in WARM_UP + 1..=WARM_UP + ROUNDS {
            one_round(&clients, round).await;
        }
        job.in_state("completed").await;
        server.holds_no_slabs().await;
        let (after, slabs_after) = (server.observe(), slab_files_bytes(&server));
        eprintln!("{:?} for {} rounds\nbefore {before:?}, {slabs_before} B of slabs\nafter {after:?}, {slabs_after} B", begun.elapsed(), WARM_UP + ROUNDS);
        // Files of recycled slabs follow the most that was ever in use at one time. A leak of one update a round would be
        // several megabytes by now.
        let slack = 512 << 10;
        assert!(slabs_before > 0 && slabs_after <= slabs_before + slack, "slab files: {slabs_before} B, then {slabs_after} B");
        assert!(after.files <= before.files + 6, "open files: {} then {}", before.files, after.files);
        assert!(after.rss_bytes <= before.rss_bytes + (6 << 20), "memory: {} B then {} B", before.rss_bytes, after.rss_bytes);
        assert!(after.threads <= before.threads + 8, "threads: {} then {}", before.threads, after.threads);
        assert!(after.mappings <= before.mappings + 40, "mappings: {} then {}", before.mappings, after.mappings);
        let last = (WARM_UP + ROUNDS) as f64 + 1.5;
        assert_close(&read(&job.model(WARM_UP + ROUNDS).await), &[("w".to_owned(), vec![last; ELEMENTS])].into(), 1e-6);
        assert!(begun.elapsed() < Duration::from_secs(60), "it took {:?}", begun.elapsed());
    }
}
