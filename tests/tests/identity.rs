//! Who a process is: the cluster whose key it has, the log that belongs to its data directory, and the one process of a node.

use bytes::Bytes;
use catchment_tests::{
    Bus, Nats, PATIENCE, Server, Tensor, assert_close, file, read, run, run_to_end, until, weighted_mean,
};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

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

/// A key as an operator makes it.
fn key(folder: &TempDir, name: &str) -> PathBuf {
    let path = folder.path().join(name);
    let made = run_to_end(&["key", "new", "--out", &path.display().to_string()], PATIENCE);
    assert!(made.status.success(), "{made:?}");
    path
}

/// The log's stream.
async fn stream(nats: &Nats) -> (async_nats::jetstream::Context, async_nats::jetstream::stream::Stream) {
    let client = async_nats::connect(nats.url()).await.expect("connect to NATS");
    let context = async_nats::jetstream::new(client);
    let stream = context.get_stream("CATCHMENT_LOG").await.expect("the log's stream");
    (context, stream)
}

/// The newest record, as it is stored.
async fn newest(nats: &Nats) -> Bytes {
    let (_, stream) = stream(nats).await;
    let last = stream.get_info().await.expect("the stream is there").state.last_sequence;
    stream.get_raw_message(last).await.expect("its last message").payload
}

/// What a stranger makes of a member's record who knows how records are written: the same, said by a process of his own. A
/// mere copy counts for nothing anyway.
fn by_a_stranger(record: &Bytes) -> Bytes {
    // Its mark and checksum, the message's version, then who wrote it.
    let mut message = record[20..].to_vec();
    message[1..17].copy_from_slice(&[9; 16]);
    let mut hasher = blake3::Hasher::new_derive_key("catchment v2 log record");
    hasher.update(&message);
    [&record[..4], &hasher.finalize().as_bytes()[..16], &message].concat().into()
}

/// Says on the log's subject what a member would.
async fn forge(nats: &Nats, record: Bytes) {
    let (context, _) = stream(nats).await;
    context.publish("catchment.v1.log", record).await.expect("publish").await.expect("the stream takes it");
}

fn verify(server: &mut Server, key: Option<&Path>) -> Output {
    let (url, key) = (server.nats().url(), key.map(|key| key.display().to_string()));
    let mut arguments = vec!["log", "verify", "--nats", &url];
    arguments.extend(key.iter().flat_map(|key| ["--cluster-key", key]));
    run_to_end(&arguments, PATIENCE)
}

/// A log that began without a key gets one. From then on whoever lacks it can neither write nor go on, and says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_seal_of_the_clusters_key_counts_for_nothing() {
    run(async {
        let folder = tempfile::tempdir().expect("make a folder");
        let (ours, theirs) = (key(&folder, "ours"), key(&folder, "theirs"));
        let mut server = Server::start(Bus::Nats).await;
        let job = server.api().begin("kept", json!({"goal": 2, "rounds": 2}), &tensors(0.0)).await;
        let receipt = job.accepted(1, "a", "", &tensors(1.0)).await;
        // So that the newest record is what is said next.
        server.api().receipt_in(&receipt, "folded").await;
        assert!(server.log().contains("no --cluster-key"), "{}", server.log());
        job.call("POST", "/pause").await.expect(200);
        let pause = newest(server.nats()).await;
        job.call("POST", "/resume").await.expect(200);
        // Without a key whoever says this is believed, when it is no copy.
        forge(server.nats(), pause.clone()).await;
        forge(server.nats(), by_a_stranger(&pause)).await;
        job.in_state("paused").await;
        job.call("POST", "/resume").await.expect(200);
        server.kill9();
        server.set("--cluster-key", &ours.display().to_string());
        server.start_again().await;
        let job = job.through(&server.api());
        job.accepted(1, "b", "", &tensors(3.0)).await;
        job.published(1).await;
        assert_eq!(read(&job.model(1).await)["w"][0], 2.0);
        let sealed = newest(server.nats()).await;
        forge(server.nats(), pause.clone()).await;
        forge(server.nats(), by_a_stranger(&pause)).await;
        // What is sealed and comes again is known by its number.
        forge(server.nats(), sealed).await;
        let api = server.api();
        let counted = async || (api.metrics().await.sum("catchment_log_foreign", &[]) == 2.0).then_some(());
        until("what was forged is counted", counted).await;
        assert_eq!(job.view().await["state"], "running");
        // Whoever lacks the key finds out at the first thing that is sealed.
        let url = server.nats().url();
        for (lacks, key) in [("none or another one", None), ("none or another one", Some(&theirs))] {
            let mut other = Server::not_started(Bus::Nats, &[("--nats", &url)]);
            other.set("--nats", &url);
            key.into_iter().for_each(|key| other.set("--cluster-key", &key.display().to_string()));
            other.fails_to_start(lacks).await;
        }
        assert!(verify(&mut server, Some(&ours)).status.success());
        let blind = verify(&mut server, None);
        assert!(!blind.status.success());
        assert!(String::from_utf8_lossy(&blind.stderr).contains("--cluster-key"), "{blind:?}");
        // A life that begins from the log sees the same.
        server.kill9();
        server.start_again().await;
        let job = job.through(&server.api());
        for client in ["a", "b"] {
            job.accepted(2, client, "", &tensors(5.0)).await;
        }
        job.in_state("completed").await;
    })
    .await;
}
