//! A full disk under the data directory.

use crate::{mean_of, update};
use catchment_tests::{Bus, Job, Server, on_both_buses, read, until};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

/// A file system of four megabytes, unmounted on drop.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` where this process may not mount.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().expect("make a folder");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(dir.path()).output();
        let mounted = mounted.is_ok_and(|output| output.status.success());
        mounted.then_some(Self { dir })
    }

    /// Takes every block that is left.
    fn fill(&self) {
        let filler =
            io::Write::write_all(&mut fs::File::create(self.filler()).expect("make a file"), &vec![1; 8 << 20]);
        assert_eq!(filler.expect_err("it does not fit").kind(), io::ErrorKind::StorageFull);
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).expect("remove the filler");
    }

    fn filler(&self) -> std::path::PathBuf {
        self.dir.path().join("filler")
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(self.dir.path()).status().ok();
    }
}

/// Submits until there is room in the log for not even the smallest record, and none comes back: folding goes on meanwhile.
async fn use_up(job: &Job) {
    let long = format!("{{\"{}\":1}}", "x".repeat(4000));
    for (kind, metrics, refusals) in [("long", long.as_str(), 1), ("short", "{}", 5)] {
        let (mut k, mut refused) = (0, 0);
        while refused < refusals {
            let headers = [("catchment-metrics", metrics)];
            let answer = job.submit_with(1, &format!("{kind}{k}"), "", &headers, &update(0.0)).await;
            if answer.status == 202 {
                (k, refused) = (k + 1, 0);
                assert!(k < 4096, "the log never fills");
            } else {
                refused += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

on_both_buses! {
    /// Whatever could not be stored was not accepted; what was accepted is in the model once there is room.
    async fn a_full_disk_is_said_and_nothing_is_lost(bus: Bus) {
        let Some(disk) = SmallDisk::mount() else {
            eprintln!("SKIPPED: only root can mount the small file system that this test fills");
            return;
        };
        let data = disk.path().join("data").display().to_string();
        let server = Server::start_with(bus, &[("--data", &data)]).await;
        let api = server.api();
        let job = api.begin("a", json!({"goal": 2, "rounds": 2}), &update(0.0)).await;
        let first = job.accepted(1, "c", "", &update(1.0)).await;
        let noise = api.begin("noise", json!({"goal": 100_000}), &update(0.0)).await;
        assert_eq!(api.metrics().await.sum("catchment_data_dir_writable", &[]), 1.0);
        disk.fill();
        until("the node is not ready, and says why", async || {
            let answer = api.get("/readyz").await;
            (answer.status == 503).then(|| answer.problem(503, "not_ready"))
        })
        .await["detail"]
            .as_str()
            .filter(|detail| detail.contains("No space left") && detail.contains("data directory"))
            .expect("a reason");
        assert_eq!(api.metrics().await.sum("catchment_data_dir_writable", &[]), 0.0);
        api.get("/healthz").await.expect(200);
        if bus == Bus::Embedded {
            // The log is on that disk. It has some room in its own file; other clients use that up.
            use_up(&noise).await;
            let problem = job.submit(1, "d", "", &update(3.0)).await.problem(503, "log_unavailable");
            assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("room")), "{problem}");
            api.post("/v1/jobs", &json!({"name": "b", "function": "fedavg"})).await.problem(503, "log_unavailable");
            assert_eq!(job.round().await["received"], 1);
            disk.make_room();
        }
        let second = until("the update is accepted", async || {
            let answer = job.submit(1, "d", "", &update(3.0)).await;
            [200, 202].contains(&answer.status).then(|| answer.json()["receipt"].clone())
        })
        .await;
        if bus == Bus::Nats {
            // The log is elsewhere, the model is not: the round waits for room.
            until("the server says why it waits", async || server.log().contains("No space left").then_some(())).await;
            until("the job says it, too", async || {
                let reason = job.view().await["reason"].as_str()?.to_owned();
                (reason.contains("write model version 1") && reason.contains("No space left")).then_some(())
            })
            .await;
            assert_eq!(api.metrics().await.sum("catchment_job_stalled", &[("job", "a")]), 1.0);
            let listed = api.get("/v1/jobs").await.expect(200).json();
            assert!(listed["items"][0]["reason"].is_string(), "{listed}");
            assert_eq!(job.view().await["model_version"], 0);
            disk.make_room();
        }
        job.published(1).await;
        until("the node is ready again", async || (api.get("/readyz").await.status == 200).then_some(())).await;
        let metrics = api.metrics().await;
        assert_eq!(metrics.sum("catchment_data_dir_writable", &[]), 1.0);
        assert_eq!(metrics.sum("catchment_job_stalled", &[]), 0.0);
        assert_eq!(job.view().await["reason"], serde_json::Value::Null);
        for receipt in [&first, &second] {
            assert_eq!(api.receipt(receipt).await["state"], "committed");
        }
        assert_eq!(read(&job.model(1).await)["w"], mean_of(&[1.0, 3.0]));
        job.open_round(2).await;
        job.accepted(2, "c", "", &update(5.0)).await;
        job.accepted(2, "d", "", &update(6.0)).await;
        job.in_state("completed").await;
        noise.call("DELETE", "").await.expect(204);
        server.holds_no_slabs().await;
    }

    async fn a_model_that_does_not_fit_the_disk_can_be_sent_again(bus: Bus) {
        let Some(disk) = SmallDisk::mount() else {
            eprintln!("SKIPPED: only root can mount the small file system that this test fills");
            return;
        };
        let data = disk.path().join("data").display().to_string();
        let server = Server::start_with(bus, &[("--data", &data)]).await;
        let job = server.api().create("a", json!({})).await;
        disk.fill();
        let answer = job.put_model(&update(0.0)).await;
        assert!([500, 503].contains(&answer.status), "{}", answer.text());
        let problem = answer.json();
        assert_eq!(problem["retryable"], true, "{problem}");
        disk.make_room();
        job.put_model(&update(0.0)).await.expect(201);
        job.open_round(1).await;
        server.holds_no_slabs().await;
    }
}
