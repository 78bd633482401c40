//! Updates whose connection broke stay as long as their round is open: in the data directory, whatever becomes of shared
//! memory and of the process.

use catchment_tests::{Answer, Api, Bus, Job, Raw, Server, Tensor, file, on_both_buses, read, request_head, until};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

/// A megabyte of numbers.
const ELEMENTS: usize = 1 << 18;
const HALF_HOUR_MS: u64 = 30 * 60 * 1000;

fn update(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[ELEMENTS], &vec![value; ELEMENTS])])
}

/// A job whose round is open until it has what it wants.
async fn begin(server: &Server, spec: Value) -> Job {
    let mut whole = json!({"goal": 1, "rounds": 1, "deadline": null});
    whole.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
    server.api().begin("a", whole, &update(0.0)).await
}

/// PUTs the begin of an update on a connection that then ends, and waits until that is on the disk.
async fn stored_after(api: &Api, address: &str, path: &str, body: &[u8], cut: usize) {
    let before = stored(api).await;
    let mut raw = Raw::connect(address).await;
    raw.send(request_head(path, &[("content-length", body.len().to_string().as_str())]).as_bytes()).await;
    raw.send(&body[..cut]).await;
    drop(raw);
    until("it is on the disk", async || (stored(api).await > before).then_some(())).await;
}

async fn stored(api: &Api) -> f64 {
    api.metrics().await.sum("catchment_uploads_stored", &[("namespace", "default")])
}

async fn head(job: &Job, path: &str) -> Answer {
    job.api.call("HEAD", path, &[], None).await
}

async fn patch(job: &Job, path: &str, offset: usize, part: &[u8]) -> Answer {
    let offset = offset.to_string();
    let headers = [("upload-offset", offset.as_str()), ("content-type", "application/partial-upload")];
    job.api.call("PATCH", path, &headers, Some(part.to_vec())).await
}

fn files(server: &Server) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(server.data().join("uploads")).expect("a folder of uploads");
    entries.map(|entry| entry.expect("lists").path()).collect()
}

async fn no_files(server: &Server) {
    until("no file is left", async || files(server).is_empty().then_some(())).await;
}

on_both_buses! {
    /// A link that is down for half an hour, on a server that keeps shared memory for a second, and is killed meanwhile.
    async fn a_client_goes_on_after_half_an_hour_and_a_crash(bus: Bus) {
        let folder = tempfile::TempDir::new().expect("make a folder");
        let skew = folder.path().join("skew");
        let mut server = Server::not_started(bus, &[("--park-time", "300ms"), ("--body-grace", "60s")]);
        server.skew_clock(&skew);
        server.start_again().await;
        let job = begin(&server, json!({})).await;
        let (body, cut, path) = (update(3.0), 777_777, job.update_path(1, "c", "weight=4"));
        stored_after(&job.api, server.address(), &path, &body, cut).await;
        // It is in nobody's memory any more.
        server.holds_no_slabs().await;
        std::fs::write(&skew, HALF_HOUR_MS.to_string()).expect("the clock goes on");
        assert_eq!(head(&job, &path).await.expect(204).header("upload-offset"), cut.to_string());
        let (more, before) = (cut + 100_000, files(&server));
        patch_part(&job, &path, cut, &body[cut..more]).await.expect(204);
        let found = async || Some(files(&server)).filter(|found| found.len() == 1 && *found != before);
        until("the rest is on the disk", found).await;

        server.kill9();
        server.start_again().await;
        let job = job.through(&server.api());
        assert_eq!((stored(&job.api).await, head(&job, &path).await.expect(204).header("upload-offset")), (1.0, more.to_string().as_str()));
        let mode = |path: &PathBuf| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!((mode(&server.data().join("uploads")), mode(&files(&server)[0])), (0o700, 0o600));
        patch(&job, &path, cut, &body[cut..]).await.problem(409, "wrong_offset");
        let bare = path.split('?').next().expect("a path");
        let receipt = patch(&job, bare, more, &body[more..]).await.expect(202).json();
        assert_eq!(receipt["weight"], 4.0, "what the first PUT said counts");
        no_files(&server).await;
        job.in_state("completed").await;
        assert!(read(&job.model(1).await)["w"].iter().all(|value| *value == 3.0));
        let again = job.api.call("PUT", &path, &[], Some(body)).await.expect(200).json();
        assert_eq!(again["receipt"], receipt["receipt"], "it has the digest that it would have had in one piece");
        server.holds_no_slabs().await;
    }

    /// A kill in the middle of the second part: what was on the disk before is there still.
    async fn what_is_on_the_disk_outlives_whoever_goes_on_with_it(bus: Bus) {
        let mut server = Server::start_with(bus, &[("--park-time", "60s"), ("--body-grace", "60s")]).await;
        let job = begin(&server, json!({})).await;
        let (body, cut, path) = (update(2.0), 300_003, job.update_path(1, "c", ""));
        stored_after(&job.api, server.address(), &path, &body, cut).await;
        let mut raw = Raw::connect(server.address()).await;
        let (offset, rest) = (cut.to_string(), (body.len() - cut).to_string());
        let headers = [("upload-offset", offset.as_str()), ("content-length", &rest)];
        raw.send(catchment_tests::request_head_of("PATCH", &path, &headers).as_bytes()).await;
        raw.send(&body[cut..600_000]).await;
        until("it is taken up", async || (stored(&job.api).await == 0.0).then_some(())).await;
        server.kill9();
        server.start_again().await;
        let job = job.through(&server.api());
        assert_eq!(head(&job, &path).await.expect(204).header("upload-offset"), cut.to_string());
        patch(&job, &path, cut, &body[cut..]).await.expect(202);
        job.in_state("completed").await;
        assert!(read(&job.model(1).await)["w"].iter().all(|value| *value == 2.0));
    }

    /// A server that is told to end cuts its connections; what had come of them is there when it is back.
    async fn an_orderly_end_keeps_what_was_on_its_way(bus: Bus) {
        let mut server = Server::start_with(bus, &[("--park-time", "60s"), ("--body-grace", "60s")]).await;
        let job = begin(&server, json!({})).await;
        let (body, cut, path) = (update(2.0), 500_000, job.update_path(1, "c", ""));
        let mut raw = Raw::connect(server.address()).await;
        raw.send(request_head(&path, &[("content-length", body.len().to_string().as_str())]).as_bytes()).await;
        raw.send(&body[..cut]).await;
        until("it is on its way", async || (job.api.metrics().await.slab_bytes_in_use() > 0).then_some(())).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(server.stop().await.success());
        server.start_again().await;
        let job = job.through(&server.api());
        assert_eq!(head(&job, &path).await.expect(204).header("upload-offset"), cut.to_string());
        patch(&job, &path, cut, &body[cut..]).await.expect(202);
    }

    /// Twelve megabytes: the accumulator of a round takes four, finishing it two, each update one.
    async fn what_gives_way_in_memory_is_still_on_the_disk(bus: Bus) {
        let server = Server::start_with(bus, &[("--slab-mib", "12"), ("--park-time", "60s"), ("--body-grace", "60s")]).await;
        let job = begin(&server, json!({"goal": 4})).await;
        let (body, cut) = (update(1.0), 900_000);
        let path = |client: &str| job.update_path(1, client, "");
        let clients: Vec<String> = (0..8).map(|k| format!("p{k}")).collect();
        for client in &clients {
            stored_after(&job.api, server.address(), &path(client), &body, cut).await;
        }
        assert_eq!(stored(&job.api).await, 8.0);
        for client in &clients {
            assert_eq!(head(&job, &path(client)).await.expect(204).header("upload-offset"), cut.to_string());
        }
        for client in &clients[..4] {
            patch(&job, &path(client), cut, &body[cut..]).await.expect(202);
        }
        job.in_state("completed").await;
        assert!(read(&job.model(1).await)["w"].iter().all(|value| *value == 1.0));
        // The others end with their round.
        no_files(&server).await;
        assert_eq!(head(&job, &path(&clients[7])).await.status, 410);
        server.holds_no_slabs().await;
    }

    /// Three megabytes of disk: two updates, of which the older one gives way to a third.
    async fn the_disk_has_a_budget(bus: Bus) {
        let server = Server::start_with(bus, &[("--park-mib", "2"), ("--park-time", "300ms"), ("--body-grace", "60s")]).await;
        let job = begin(&server, json!({})).await;
        let body = update(1.0);
        let path = |client: &str| job.update_path(1, client, "");
        stored_after(&job.api, server.address(), &path("one"), &body, 900_000).await;
        stored_after(&job.api, server.address(), &path("two"), &body, 900_000).await;
        let third = path("three");
        let mut raw = Raw::connect(server.address()).await;
        raw.send(request_head(&third, &[("content-length", body.len().to_string().as_str())]).as_bytes()).await;
        raw.send(&body[..900_000]).await;
        drop(raw);
        until("the oldest has given way", async || (head(&job, &path("one")).await.status == 404).then_some(())).await;
        until("the others are there", async || (files(&server).len() == 2 && stored(&job.api).await == 2.0).then_some(())).await;
        server.holds_no_slabs().await;
        for client in ["two", "three"] {
            assert_eq!(head(&job, &path(client)).await.expect(204).header("upload-offset"), "900000");
        }
        job.call("DELETE", "").await.expect(204);
        no_files(&server).await;
    }

    /// A file that was cut, changed, or written by a later release is no upload, and no harm.
    async fn what_does_not_read_is_removed(bus: Bus) {
        let mut server = Server::start_with(bus, &[("--park-time", "300ms"), ("--body-grace", "60s")]).await;
        let job = begin(&server, json!({"goal": 9})).await;
        let (body, cut) = (update(1.0), 900_000);
        let path = |client: usize| job.update_path(1, &format!("c{client}"), "");
        for client in 0..5 {
            stored_after(&job.api, server.address(), &path(client), &body, cut).await;
        }
        server.holds_no_slabs().await;
        server.kill9();
        let mut found = files(&server);
        found.sort();
        let spoil = |at: usize, how: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = std::fs::read(&found[at]).expect("reads");
            how(&mut bytes);
            std::fs::write(&found[at], bytes).expect("writes");
        };
        spoil(0, &|bytes| bytes.truncate(bytes.len() - 1));
        spoil(1, &|bytes| bytes[8] = 2);
        spoil(2, &|bytes| bytes[60] ^= 1);
        // Of the data this shows only when it is wanted.
        spoil(3, &|bytes| *bytes.last_mut().expect("bytes") ^= 1);
        std::fs::write(server.data().join("uploads/half.draft"), b"half").expect("writes");
        std::fs::write(server.data().join("uploads/notes.txt"), b"not ours").expect("writes");
        server.start_again().await;
        let job = job.through(&server.api());
        assert_eq!((stored(&job.api).await, files(&server).len()), (2.0, 3), "two uploads, and what is not ours");
        let mut statuses = Vec::new();
        for client in 0..5 {
            let path = path(client);
            if head(&job, &path).await.status == 204 {
                statuses.push(patch(&job, &path, cut, &body[cut..]).await.status);
            }
            job.api.call("PUT", &path, &[], Some(body.clone())).await;
        }
        statuses.sort_unstable();
        assert_eq!(statuses, [202, 404]);
        assert_eq!(job.round().await["received"], 5);
        until("what is not ours is left", async || (files(&server).len() == 1).then_some(())).await;
    }

    /// Models, the log and all else are this user's alone; what an earlier release left open is mended.
    async fn the_data_directory_is_private(bus: Bus) {
        let mut server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 1, "rounds": 1}), &update(0.0)).await;
        job.accepted(1, "c", "", &update(1.0)).await;
        job.in_state("completed").await;
        let all = |server: &Server| {
            let (mut left, mut found) = (vec![server.data().to_path_buf()], Vec::new());
            while let Some(path) = left.pop() {
                let is_folder = path.is_dir();
                if is_folder {
                    left.extend(std::fs::read_dir(&path).expect("lists").map(|entry| entry.expect("lists").path()));
                }
                let mode = std::fs::metadata(&path).expect("looks").permissions().mode() & 0o777;
                found.push((path, is_folder, mode));
            }
            found
        };
        let check = |server: &Server| {
            for (path, is_folder, mode) in all(server).into_iter().filter(|(path, ..)| path != server.data()) {
                assert_eq!(mode, if is_folder { 0o700 } else { 0o600 }, "{} has mode {mode:o}", path.display());
            }
        };
        assert!(all(&server).iter().any(|(path, ..)| path.extension().is_some_and(|ending| ending == "safetensors")));
        check(&server);
        server.kill9();
        for (path, is_folder, _) in all(&server) {
            let mode = if is_folder { 0o755 } else { 0o644 };
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("its mode");
        }
        server.start_again().await;
        check(&server);
        // And shared memory that others can reach is not used at all.
        server.kill9();
        std::fs::set_permissions(server.slabs(), std::fs::Permissions::from_mode(0o755)).expect("its mode");
        server.fails_to_start("chmod 700").await;
    }
}

async fn patch_part(job: &Job, path: &str, offset: usize, part: &[u8]) -> Answer {
    let offset = offset.to_string();
    let headers = [("upload-offset", offset.as_str()), ("upload-complete", "?0")];
    job.api.call("PATCH", path, &headers, Some(part.to_vec())).await
}
