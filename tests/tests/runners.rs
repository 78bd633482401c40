//! Runner processes, as an operator meets them: who they are, how work is routed to them, and what their death costs.

use catchment_tests::{Bus, Server, Tensor, assert_close, file, on_both_buses, read, run, until, weighted_mean};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::read_to_string;
use std::os::unix::fs::FileExt;

const ELEMENTS: usize = 200_000;

fn tensors(value: f32) -> Vec<u8> {
    let wide: Vec<f32> = (0..ELEMENTS).map(|i| value + (i % 97) as f32).collect();
    file(&[Tensor::f32("wide", &[ELEMENTS], &wide), Tensor::f64("bias", &[3], &[f64::from(value); 3])])
}

async fn runners(server: &Server) -> Value {
    server.api().get("/v1/runners").await.expect(200).json()
}

fn pids(runners: &Value) -> Vec<u64> {
    runners["runners"].as_array().expect("a list").iter().map(|runner| runner["pid"].as_u64().expect("a pid")).collect()
}

/// A line of a process's status.
fn status(pid: u64, field: &str) -> String {
    let text = read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.expect("the kernel says it").trim().to_owned()
}

fn kill(pid: u64) {
    match kill_process(Pid::from_raw(pid as i32).expect("a pid"), Signal::KILL) {
        // One that was killed just before is listed until its node has seen it end.
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => panic!("kill a runner: {error}"),
    }
}

/// Folds a round of three updates and checks the model; `between` is done after each update.
async fn round(server: &Server, name: &str, mut between: impl AsyncFnMut(u64)) {
    let job = server.api().begin(name, json!({"goal": 3, "rounds": 1}), &tensors(0.0)).await;
    let mut sent = Vec::new();
    for k in 1..=3 {
        let body = tensors(k as f32);
        job.accepted(1, &format!("c{k}"), &format!("weight={k}"), &body).await;
        sent.push((k as f64, read(&body)));
        between(k).await;
    }
    job.in_state("completed").await;
    assert_close(&read(&job.model(1).await), &weighted_mean(&sent), 1e-6);
}

on_both_buses! {
    async fn the_map_shows_who_serves_a_job_and_can_be_changed_while_it_works(bus: Bus) {
        for link in ["auto", "off"] {
            let server = Server::start_with(bus, &[("--runners", "2"), ("--ebpf", link)]).await;
            let seen = runners(&server).await;
            let kernel = seen["link"] == "kernel";
            if link == "off" {
                assert_eq!((&seen["link"], &seen["lacks"]), (&json!("socket"), &Value::Null));
            } else if !kernel {
                eprintln!("not through the kernel here: {}", seen["lacks"]);
            }
            let job = server.api().begin("moved", json!({"goal": 12, "rounds": 1}), &tensors(0.0)).await;
            let mut sent = Vec::new();
            let mut homes = Vec::new();
            for k in 1..=12 {
                let body = tensors(k as f32);
                let receipt = job.accepted(1, &format!("c{k}"), "weight=1", &body).await;
                sent.push((1.0, read(&body)));
                if k == 12 {
                    break;
                }
                server.api().receipt_in(&receipt, "folded").await;
                let seen = runners(&server).await;
                let route = &seen["routes"][0];
                homes.push(route["runner"].as_u64().expect("a runner"));
                let mut numbers = seen["runners"].as_array().expect("a list").iter().map(|runner| &runner["runner"]);
                let other = numbers.find(|runner| **runner != route["runner"]).expect("there are two");
                let path = format!("/v1/runners/{other}/routes/{}", route["route"].as_str().expect("a name"));
                server.api().call("PUT", &path, &[], None).await.expect(204);
                server.api().call("PUT", &path.replace(&format!("/{other}/"), "/999/"), &[], None).await.problem(404, "not_found");
            }
            job.in_state("completed").await;
            assert_close(&read(&job.model(1).await), &weighted_mean(&sent), 1e-6);
            assert!(homes.windows(2).filter(|pair| pair[0] != pair[1]).count() >= 7, "it moves: {homes:?}");
            let metrics = server.api().metrics().await;
            let path = if kernel { "kernel" } else { "socket" };
            let routed = metrics.sum("catchment_descriptors_routed_total", &[("job", "moved"), ("path", path)]);
            assert!(routed >= 12.0, "{routed} descriptors");
            let payload = metrics.sum("catchment_descriptor_payload_bytes_total", &[("job", "moved")]);
            assert!(payload >= 12.0 * ELEMENTS as f64 * 4.0, "{payload} bytes");
            assert!(metrics.sum("catchment_function_cpu_seconds_total", &[("job", "moved")]) > 0.0);
        }
    }

    async fn runners_have_no_rights_and_the_node_gave_some_up(bus: Bus) {
        let server = Server::start_with(bus, &[("--runners", "2")]).await;
        for pid in pids(&runners(&server).await) {
            assert_eq!(status(pid, "NoNewPrivs"), "1");
            assert_eq!(status(pid, "CapEff"), "0000000000000000");
            if rustix::process::geteuid().is_root() {
                assert!(status(pid, "Uid").starts_with("65534"));
            }
        }
        // CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF.
        let effective = u64::from_str_radix(&status(server.pid(), "CapEff"), 16).expect("a mask");
        assert_eq!(effective & (1 << 12 | 1 << 21 | 1 << 38 | 1 << 39), 0, "{effective:x}");
        round(&server, "a", async |_| {}).await;
    }

    async fn a_runner_may_die_at_any_time(bus: Bus) {
        let server = Server::start_with(bus, &[("--runners", "1")]).await;
        round(&server, "a", async |_| pids(&runners(&server).await).into_iter().for_each(kill)).await;
        let metrics = server.api().metrics().await;
        assert!(metrics.sum("catchment_runner_restarts_total", &[]) >= 1.0);
        assert_eq!(metrics.sum("catchment_runners", &[]), 1.0);
        server.holds_no_slabs().await;
    }

    async fn runners_end_with_a_node_that_is_killed(bus: Bus) {
        let mut server = Server::start_with(bus, &[("--runners", "2")]).await;
        let of_first = pids(&runners(&server).await);
        server.kill9();
        let gone = async || {
            let alive = |pid: &u64| read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "catchment");
            (!of_first.iter().any(alive)).then_some(())
        };
        until("its runners end", gone).await;
        server.start_again().await;
        assert_ne!(pids(&runners(&server).await), of_first);
        round(&server, "a", async |_| {}).await;
    }
}

/// A hostile runner of an earlier release could write control words. Whatever they say, it costs what is in the sum, and not
/// the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_words_cost_updates_and_not_the_node() {
    run(async {
        for forged in [0_u64, 1, 7 << 1 | 1, u64::MAX, 1 << 63] {
            let server = Server::start_with(Bus::Embedded, &[("--runners", "1")]).await;
            let job = server.api().begin("forged", json!({"goal": 4, "rounds": 1}), &tensors(0.0)).await;
            let mut receipts = Vec::new();
            for k in 1..=2 {
                let receipt = job.accepted(1, &format!("c{k}"), "", &tensors(k as f32)).await;
                server.api().receipt_in(&receipt, "folded").await;
                receipts.push(receipt);
            }
            let files = std::fs::read_dir(server.slabs()).expect("a folder").flatten().map(|entry| entry.path());
            let mut words = 0;
            for path in files.filter(|path| path.is_file()) {
                let mut head = [0; 2 * 4096];
                let read = std::fs::File::open(&path).and_then(|file| file.read_exact_at(&mut head, 0));
                let word =
                    |index: usize| u64::from_le_bytes(*head[4096 + 8 * index..].first_chunk().expect("eight bytes"));
                // After a page of header the words: the newest plan is the second, and the first range has it.
                if read.is_ok() && (word(0), word(64) >> 1) == (2, 2) {
                    words += 1;
                    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("open a file");
                    // The newest plan, and what the first range holds.
                    file.write_all_at(&forged.to_le_bytes(), 4096).expect("write");
                    file.write_all_at(&forged.to_le_bytes(), 4096 + 64 * 8).expect("write");
                }
            }
            assert_eq!(words, 1, "the leaf's words are found");
            let mut sent: Vec<(f64, _)> = Vec::new();
            for k in 3..=4 {
                let body = tensors(k as f32);
                job.accepted(1, &format!("c{k}"), "", &body).await;
                sent.push((1.0, read(&body)));
            }
            // What was in the sum is lost and said to be, and its clients send it again.
            for (k, receipt) in (1..=2).zip(&receipts) {
                server.api().receipt_in(receipt, "lost").await;
                let body = tensors(k as f32);
                job.accepted(1, &format!("c{k}"), "", &body).await;
                sent.push((1.0, read(&body)));
            }
            job.in_state("completed").await;
            assert_close(&read(&job.model(1).await), &weighted_mean(&sent), 1e-6);
            assert!(!server.log().contains("panicked"), "{}", server.log());
        }
    })
    .await;
}
