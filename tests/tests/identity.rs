//! Who a process is: the log that belongs to its data directory, and the one process that a node is.

use catchment_tests::{Bus, Server, Tensor, assert_close, file, read, run, weighted_mean};
use serde_json::json;
use std::path::Path;
use std::process::Command;

fn tensors(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[5000], &[value; 5000])])
}

/// A copy as a snapshot of a disk makes it, or a backup of a node that runs.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(format!("{}/.", from.display())).arg(to).status().expect("run cp");
    assert!(status.success(), "copy {}: {status}", from.display());
}

/// The data directory of one that ran alone is given to one in a cluster: nothing in it is touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_stays_with_its_log() {
    run(async {
        let mut server = Server::start(Bus::Embedded).await;
        let job = server.api().begin("digits", json!({"goal": 1, "rounds": 2}), &tensors(0.0)).await;
        job.accepted(1, "c", "", &tensors(1.0)).await;
        job.published(1).await;
        let before = job.model(1).await;
        server.kill9();
        let mut other = Server::not_started(Bus::Nats, &[("--data", &server.data().display().to_string())]);
        for message in ["belongs to event log", "move its `models` and `log-id` away first"] {
            other.fails_to_start(message).await;
        }
        // The same on a log that somebody else has begun.
        let mut beside = Server::start(Bus::Nats).await;
        other.set("--nats", &beside.nats().url());
        other.fails_to_start("belongs to event log").await;
        server.start_again().await;
        let job = job.through(&server.api());
        assert_eq!(job.model(1).await, before);
        job.accepted(2, "c", "", &tensors(2.0)).await;
        job.in_state("completed").await;
    })
    .await;
}

/// Two of four updates are in when the node's disk is cloned and a second process starts on the copy. All four clients
/// send again. None counts twice, and the older process says why it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_of_a_node_counts_nothing_twice() {
    run(async {
        for cloned_memory in [false, true] {
            let mut server = Server::start(Bus::Nats).await;
            let job = server.api().begin("cloned", json!({"goal": 4, "rounds": 1}), &tensors(0.0)).await;
            let values = [1.0, 10.0, 100.0, 1000.0];
            for (client, value) in values.iter().enumerate().take(2) {
                let receipt = job.accepted(1, &format!("c{client}"), "", &tensors(*value)).await;
                server.api().receipt_in(&receipt, "folded").await;
            }
            let mut clone = Server::not_started(Bus::Nats, &[]);
            clone.set("--nats", &server.nats().url());
            std::fs::create_dir_all(clone.data()).expect("make a folder");
            copy(server.data(), clone.data());
            if cloned_memory {
                copy(server.slabs(), clone.slabs());
            }
            clone.start_again().await;
            server.ended().await;
            assert!(server.log().contains("another process has started as node"), "{}", server.log());
            let job = job.through(&clone.api());
            for (client, value) in values.iter().enumerate() {
                job.submit(1, &format!("c{client}"), "", &tensors(*value)).await;
            }
            job.in_state("completed").await;
            let sent: Vec<_> = values.iter().map(|value| (1.0, read(&tensors(*value)))).collect();
            assert_close(&read(&job.model(1).await), &weighted_mean(&sent), 1e-6);
        }
    })
    .await;
}
