//! Starts this program on what the old one left.

use crate::fixture;
use crate::packed::unpack;
use crate::world::{
    EXACT, FOLDED, GOAL, adapter, body, floats, job_named, layer, said, send_delta, send_exact, weight,
};
use catchment_tests::{Api, Bus, Job, Server, run, until};
use serde_json::{Value, json};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

/// Half a minute after the fixtures were written, so that no deadline of theirs has passed.
const WRITTEN_MS: u64 = 1_795_840_980_000;

/// Jobs that have something in hand: their rounds go on as soon as somebody reads them.
const IN_PROGRESS: [&str; 4] = ["exact", "buffered", "gathered", "stack"];

/// An old release's data and memory, and what it said of them.
struct Left {
    server: Server,
    said: Value,
}

impl Left {
    fn by(archive: &str) -> Self {
        let (all, mut server) = (TempDir::new().expect("make a folder"), Server::not_started(Bus::Embedded, &[]));
        server.set_clock(WRITTEN_MS);
        unpack(&fixture(archive), all.path());
        move_all(&all.path().join("data"), server.data());
        move_all(&all.path().join("slabs"), server.slabs());
        let said = std::fs::read(all.path().join("said.json")).expect("read what was said");
        Self { server, said: serde_json::from_slice(&said).expect("JSON") }
    }

    fn receipts(&self) -> Vec<Value> {
        let all = self.said["receipts"].as_array().expect("a list");
        all.iter().map(|receipt| receipt["receipt"].clone()).collect()
    }
}

/// Copies, because the memory is on another file system.
fn move_all(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("make a folder");
    let from = format!("{}/.", from.display());
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().expect("run cp");
    assert!(status.success(), "what was left cannot be put where it belongs");
    // The archive's folder let everybody look in, as a release makes none.
    std::fs::set_permissions(to, Permissions::from_mode(0o700)).expect("keep others out");
}

/// Everything that was said is said again, with these members or more.
#[track_caller]
fn assert_kept(before: &Value, now: &Value, what: &str) {
    match (before, now) {
        (Value::Object(before), Value::Object(now)) => {
            for (name, value) in before {
                let now = now.get(name).unwrap_or_else(|| panic!("{what} has no `{name}` any more"));
                assert_kept(value, now, &format!("{what}.{name}"));
            }
        }
        (Value::Array(before), Value::Array(now)) => {
            assert_eq!(before.len(), now.len(), "{what} is {now:?}");
            for (i, (before, now)) in before.iter().zip(now).enumerate() {
                assert_kept(before, now, &format!("{what}[{i}]"));
            }
        }
        _ => assert_eq!(before, now, "{what}"),
    }
}

/// Of a job whose round goes on, what does not go on with it.
fn lasting(mut job: Value) -> Value {
    let view = job["view"].as_object_mut().expect("a view");
    if IN_PROGRESS.contains(&view["spec"]["name"].as_str().expect("a name")) {
        let number = view["round"]["round"].clone();
        view.insert("round".into(), json!({"round": number}));
    }
    job
}

/// Every job, model and receipt is there.
async fn assert_all_there(api: &Api, left: &Left) {
    let now = said(api, &left.receipts()).await;
    let jobs = |said: &Value| said["jobs"].as_array().expect("a list").iter().cloned().map(lasting).collect::<Vec<_>>();
    assert!(jobs(&left.said).len() >= 12);
    assert_kept(&json!(jobs(&left.said)), &json!(jobs(&now)), "jobs");
    assert_kept(&left.said["receipts"], &now["receipts"], "receipts");
    let mut files = 0;
    for job in jobs(&left.said) {
        let models = job["models"].as_array().expect("a list").iter();
        for model in models.filter(|model| model["available"] == true) {
            let path = format!("{}/model?version={}", job["path"].as_str().expect("a path"), model["version"]);
            let file = api.get(&path).await.expect(200).body;
            let digest = blake3::hash(&file).to_hex().to_string();
            assert!(model["etag"].as_str().is_some_and(|etag| etag.contains(&digest)), "{path}: {model}");
            files += 1;
        }
    }
    assert!(files >= 10, "{files} models");
}

/// What the release had in hand becomes the models that it would have made.
async fn finish(server: &Server) {
    let api = server.api();
    let exact = job_named(&api, "exact");
    // Its release ended while it folded this one; the client sends it again, and it is the same.
    send_exact(&exact, 2, FOLDED).await.expect(200);
    for client in FOLDED + 1..GOAL {
        send_exact(&exact, 2, client).await.expect(202);
    }
    exact.in_state("completed").await;
    for round in 1..=2 {
        let updates: Vec<_> = (0..GOAL).map(|client| (weight(round, client), body(round, client))).collect();
        EXACT.check(&exact.model(round).await, &updates).unwrap_or_else(|why| panic!("version {round}: {why}"));
    }
    let gathered = job_named(&api, "gathered");
    gathered.accepted(2, "c6", "", &floats(6.0)).await;
    gathered.in_state("completed").await;
    assert!(gathered.model(2).await.ends_with(&5f32.to_le_bytes()), "the median of 4, 5 and 6");
    finish_buffered(&job_named(&api, "buffered")).await;
    // What two releases make together is what this one makes alone.
    let stack = job_named(&api, "stack");
    let alone = json!({"function": "flora", "update": "delta", "goal": 2, "rounds": 1});
    let alone = api.begin("alone", alone, &layer(0.5)).await;
    send_delta(&alone, (0, 1), "c1", &adapter(1)).await.expect(202);
    for job in [&stack, &alone] {
        send_delta(job, (0, 1), "c2", &adapter(2)).await.expect(202);
        job.in_state("completed").await;
    }
    assert!(stack.model(1).await == alone.model(1).await, "the stack is another one");
    let patched = job_named(&api, "patched");
    patched.call("POST", "/resume").await.expect(200);
    for client in ["d", "e", "f"] {
        patched.accepted(1, client, "", &floats(8.0)).await;
    }
    patched.published(1).await;
    assert!(patched.model(1).await.ends_with(&7f32.to_le_bytes()), "the mean of 4, 8, 8 and 8");
    patched.call("POST", "/stop").await.expect(200);
}

/// A stale update of the release before and a fresh one of now.
async fn finish_buffered(buffered: &Job) {
    send_delta(buffered, (1, 1), "a", &floats(1.0)).await.expect(202);
    buffered.in_state("completed").await;
    // 1 + 0.5, and then half of 2 / sqrt(2) and of 1.
    let expected = 1.5 + (2.0 * 0.5f64.sqrt() + 1.0) / 2.0;
    let found = catchment_tests::read(&buffered.model(2).await)["w"][99];
    assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
}

async fn goes_on(archive: &str) {
    let mut left = Left::by(archive);
    left.server.start_again().await;
    assert_all_there(&left.server.api(), &left).await;
    finish(&left.server).await;
    left.server.holds_no_slabs().await;
    // And its own next life reads what both of them wrote.
    left.server.kill9();
    left.server.start_again().await;
    let completed = async |name: &str| job_named(&left.server.api(), name).in_state("completed").await;
    for name in IN_PROGRESS {
        completed(name).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_log_and_a_round_in_the_middle_of_folding() {
    run(goes_on("whole-log.tar.gz")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_has_forgotten_what_a_snapshot_has() {
    run(goes_on("forgotten-log.tar.gz.gz")).await;
}

/// Otherwise the test above would show nothing of snapshots.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_snapshots_that_log_is_not_enough() {
    run(async {
        let mut left = Left::by("forgotten-log.tar.gz.gz");
        for entry in std::fs::read_dir(left.server.data()).expect("list a folder").flatten() {
            if entry.file_name().to_string_lossy().starts_with("snapshot-") {
                std::fs::remove_file(entry.path()).expect("remove a snapshot");
            }
        }
        left.server.fails_to_start("").await;
    })
    .await;
}

/// The accumulators of a round were folded into; the updates of it that were not are there, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_found_again_and_nothing_of_it_is_lost() {
    run(async {
        let mut left = Left::by("whole-log.tar.gz");
        left.server.start_again().await;
        let api = left.server.api();
        let exact = job_named(&api, "exact");
        let folded = FOLDED + 1;
        until("it folds what was begun", async || (exact.round().await["folded"] == folded).then_some(())).await;
        let mut kept = 0;
        for before in left.said["receipts"].as_array().expect("a list") {
            let now = api.receipt(&before["receipt"]).await;
            let state = now["state"].as_str().unwrap_or_default();
            if ["accepted", "folded"].contains(&before["state"].as_str().unwrap_or_default()) {
                assert!(["accepted", "folded"].contains(&state), "{before} is {state} now");
                kept += 1;
            }
        }
        assert!(kept >= 7, "only {kept} updates were in memory");
    })
    .await;
}
