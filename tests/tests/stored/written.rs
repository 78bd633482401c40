//! Writes the fixtures again, with the old release's own program. Run by hand, by `make fixtures`: what is committed is
//! what that release once wrote, and need not change.

use crate::fixture;
use crate::packed::pack;
use crate::world::{FOLDED, floats, job_named, live, said, try_send_exact};
use catchment_tests::{Bus, Cluster, NodeProcess, Release, Server, Setup, functions_dir};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// Where a record's variant lies in a stored record: after the version, who wrote it, and its number there.
const VARIANT_AT: usize = 1 + 16 + 8;
/// Every variant that the release writes.
const VARIANTS: u32 = 17;
/// What makes a spec almost as long as one may be: two snapshots are then taken after hundreds of them.
const FILLING: usize = 250 << 10;
/// A snapshot is taken after this much.
const SNAPSHOT_AFTER: usize = 64 << 20;

/// Built functions, and one that fails on purpose.
fn functions() -> TempDir {
    let (dir, built) = (TempDir::new().expect("make a folder"), functions_dir().expect("functions are built"));
    for entry in std::fs::read_dir(built).expect("list functions").flatten() {
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copy a function");
    }
    let description = json!({"name": "hostile", "version": "1.0.0", "class": "additive", "partial": "F64",
        "summary": "Fails when told to", "config": [], "needs_previous": false, "exact": false,
        "update_layout": "as_model"})
    .to_string();
    let text = include_str!("../../functions/hostile.wat")
        .replace("$LENGTH", &description.len().to_string())
        .replace("$DESCRIPTION", &description.replace('"', "\\\""))
        .replace("(result i32) (i32.const $CONTRACT))", "(result i32) (i32.const 4))");
    std::fs::write(dir.path().join("hostile.wasm"), wat::parse_str(text).expect("the function's text")).expect("write");
    dir
}

async fn start(functions: &TempDir) -> Server {
    let functions = functions.path().display().to_string();
    let mut server = Server::not_started(Bus::Embedded, &[("--functions", &functions), ("--slab-mib", "16")]);
    server.change_to(Release::Old);
    server.start_again().await;
    server
}

/// Its memory is gone, and what it held is lost.
async fn lose_memory(server: &mut Server) -> Value {
    let spec = json!({"goal": 2, "rounds": 1, "deadline": null});
    let job = server.api().begin("lost", spec, &floats(0.0)).await;
    let receipt = job.accepted(1, "c", "", &floats(1.0)).await;
    server.kill9();
    std::fs::remove_dir_all(server.slabs()).expect("empty the memory");
    std::fs::create_dir(server.slabs()).expect("make a folder");
    server.start_again().await;
    server.api().receipt_in(&receipt, "lost").await;
    receipt
}

/// Ends it while it folds one more update of the exact job, and packs what it left.
async fn cut_off(mut server: Server, receipts: &[Value], name: &str) {
    let expected = said(&server.api(), receipts).await;
    server.kill9();
    server.end_at("Flipped:2");
    server.start_again().await;
    let job = job_named(&server.api(), "exact");
    try_send_exact(&job, 2, FOLDED).await;
    server.ended().await;
    let all = TempDir::new().expect("make a folder");
    for (from, to) in [(server.data(), "data"), (server.slabs(), "slabs")] {
        copy(from, &all.path().join(to));
    }
    std::fs::write(all.path().join("said.json"), serde_json::to_string_pretty(&expected).expect("JSON"))
        .expect("write");
    pack(all.path(), &fixture(name));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("make a folder");
    for entry in std::fs::read_dir(from).expect("list a folder").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(&from, &to).expect("copy a file");
        }
    }
}

/// Jobs that come and go, until the log has two snapshots and has forgotten what is in the first.
async fn fill(server: &Server) {
    let filling = "a".repeat(FILLING);
    let spec = json!({"name": "filling", "function": "fedavg", "client_config": {"a": filling}});
    let snapshots = || {
        let names = std::fs::read_dir(server.data()).expect("list a folder").flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with("snapshot-")).count()
    };
    // While records keep coming the release takes every second one only.
    for _ in 0..4 * SNAPSHOT_AFTER / FILLING {
        server.api().post("/v1/jobs", &spec).await.expect(201);
        job_named(&server.api(), "filling").call("DELETE", "").await.expect(204);
        if snapshots() == 2 {
            return;
        }
    }
    panic!("there are no two snapshots");
}

/// Everything that is in the stream of the log, each record after its length.
async fn records(url: &str) -> Vec<u8> {
    let client = async_nats::connect(url).await.expect("connect to NATS");
    let mut stream = async_nats::jetstream::new(client).get_stream("CATCHMENT_LOG").await.expect("the log's stream");
    let last = stream.info().await.expect("about the stream").state.last_sequence;
    let (mut bytes, mut variants) = (Vec::new(), BTreeSet::new());
    for sequence in 1..=last {
        let record = stream.get_raw_message(sequence).await.expect("a record").payload;
        bytes.extend((record.len() as u32).to_le_bytes());
        bytes.extend(&record);
        let variant = record[VARIANT_AT..].first_chunk().expect("a record has a variant");
        variants.insert(u32::from_le_bytes(*variant));
    }
    assert_eq!(variants, (0..VARIANTS).collect(), "every variant is to be there");
    bytes
}

/// One update of a job through each gateway, so that every node holds something.
async fn spread(cluster: &Cluster, name: &str) -> Vec<Value> {
    let spec = json!({"goal": 9, "rounds": 1, "deadline": null});
    let job = cluster.nodes[0].api().begin(name, spec, &floats(0.0)).await;
    let mut receipts = Vec::new();
    for (node, job) in cluster.through(&job).into_iter().enumerate() {
        job.open_round(1).await;
        receipts.push(job.accepted(1, &format!("c{node}"), "", &floats(1.0)).await);
    }
    receipts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes what is committed"]
async fn a_data_directory_and_its_slabs() {
    let functions = functions();
    let mut server = start(&functions).await;
    let lost = lose_memory(&mut server).await;
    let mut receipts = live(&server.api()).await;
    receipts.push(lost);
    cut_off(server, &receipts, "whole-log.tar.gz").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes what is committed"]
async fn a_data_directory_whose_log_has_forgotten() {
    let functions = functions();
    let server = start(&functions).await;
    let receipts = live(&server.api()).await;
    fill(&server).await;
    let snapshots = std::fs::read_dir(server.data()).expect("list a folder").flatten().map(|entry| entry.path());
    let newest = snapshots.filter(|path| path.display().to_string().contains("/snapshot-")).max().expect("a snapshot");
    std::fs::copy(newest, fixture("snapshot.bin")).expect("keep a snapshot");
    cut_off(server, &receipts, "forgotten-log.tar.gz.gz").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes what is committed"]
async fn the_records_of_a_cluster() {
    let functions = functions();
    let flags = vec![("--functions", functions.path().display().to_string())];
    let node_timeout = Duration::from_secs(3);
    let setup = Setup { release: Release::Old, node_timeout, node_flags: flags, ..Setup::default() };
    let mut cluster = Cluster::start(setup).await;
    let receipts = live(&cluster.nodes[0].api()).await;
    let (first, second) = (spread(&cluster, "forgetful").await, spread(&cluster, "burnt").await);
    // The node where rounds are does not come back in time, another one without its memory. The third one is asked.
    let at = job_named(&cluster.nodes[0].api(), "burnt").round().await["gateway"].clone();
    let is_there = |node: &NodeProcess| at.as_str().is_some_and(|at| at.ends_with(node.address()));
    let placed = cluster.nodes.iter().position(is_there).unwrap_or(0);
    let (forgetful, api) = ((placed + 1) % 3, cluster.nodes[(placed + 2) % 3].api());
    cluster.nodes[forgetful].lose_memory();
    cluster.start_again(forgetful).await;
    api.receipt_in(&first[forgetful], "lost").await;
    let burnt = job_named(&api, "burnt");
    let before = burnt.round().await["gateway"].clone();
    cluster.nodes[placed].lose_memory();
    api.receipt_in(&second[placed], "lost").await;
    burnt.round_when("its clients are sent elsewhere", |round| round["gateway"] != before).await;
    let url = cluster.nats().url();
    std::fs::write(fixture("records.bin"), records(&url).await).expect("write the records");
    let about = said(&api, &receipts).await;
    std::fs::write(fixture("records.json"), serde_json::to_string_pretty(&about).expect("JSON")).expect("write");
}
