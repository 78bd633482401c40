//! What an operator needs of a cluster's processes: coordinators that can be asked, a number of nodes to scale by, nodes that
//! leave without a trace, and processes that may start in any order.

use catchment_tests::{
    Api, Bus, Cluster, Job, NodeProcess, Raw, Reference, Sent, Server, Setup, Tensor, file, free_port, request_head,
    run, until,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const ELEMENTS: usize = 50_000;

fn body(round: u64, client: u64) -> Vec<u8> {
    let value = |i: usize| ((round * 7919 + client * 104_729 + i as u64 * 31) % 9973) as f32 / 9973.0 - 0.5;
    file(&[Tensor::f32("w", &[ELEMENTS], &(0..ELEMENTS).map(value).collect::<Vec<_>>())])
}

fn weight(_round: u64, client: u64) -> f64 {
    1.0 + client as f64
}

fn means() -> Sent {
    Sent::new(body, weight, Reference::Mean)
}

/// Two nodes and a coordinator.
fn small() -> Setup {
    Setup { nodes: 2, coordinators: 1, ..Setup::default() }
}

fn flags<const N: usize>(flags: [(&'static str, &str); N]) -> Vec<(&'static str, String)> {
    flags.map(|(flag, value)| (flag, value.to_owned())).to_vec()
}

async fn status(api: &Api, path: &str) -> u16 {
    api.get(path).await.status
}

async fn answers(api: &Api, path: &str, wanted: u16) {
    until(&format!("{path} answers {wanted}"), async || (status(api, path).await == wanted).then_some(())).await;
}

/// A node as another one sees it.
async fn seen_draining(by: &Api, node: &NodeProcess) {
    let draining = |view: &Value| view["url"] == format!("http://{}", node.address()) && view["draining"] == true;
    until("others know that the node drains", async || {
        let nodes = by.get("/v1/nodes").await.expect(200).json();
        nodes["items"].as_array().expect("a list").iter().any(draining).then_some(())
    })
    .await;
}

/// A node that has heard of nobody has nobody to wait for.
async fn others_are_heard(by: &Api) {
    until("the other node is heard", async || {
        let nodes = by.get("/v1/nodes").await.expect(200).json();
        (nodes["items"].as_array().expect("a list").len() == 2).then_some(())
    })
    .await;
}

/// The job through each gateway.
fn through(cluster: &Cluster, job: &Job) -> Vec<Job> {
    cluster.apis().iter().map(|api| job.through(api)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_drains_in_mid_round_leaves_nothing_behind() {
    run(async {
        let mut cluster = Cluster::start(Setup::default()).await;
        let sent = means();
        let job = cluster.nodes[0].api().begin("left", json!({"goal": 9, "rounds": 2}), &body(0, 0)).await;
        let jobs = through(&cluster, &job);
        for client in 0..5 {
            let job = &jobs[client as usize % 3];
            job.open_round(1).await;
            sent.accepted(job, 1, client).await;
        }
        // Node 2 has an update, and another on its way.
        let whole = body(1, 5);
        let path = sent.path(&jobs[2], 1, 5);
        let mut raw = Raw::connect(cluster.nodes[2].address()).await;
        let length = whole.len().to_string();
        assert!(raw.send(request_head(&path, &[("content-length", &length)]).as_bytes()).await);
        assert!(raw.send(&whole[..whole.len() / 2]).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
        cluster.nodes[2].process.terminate();
        answers(&cluster.nodes[2].api(), "/readyz", 503).await;
        assert_eq!(status(&cluster.nodes[2].api(), "/healthz").await, 200);
        seen_draining(&cluster.nodes[0].api(), &cluster.nodes[2]).await;
        // Nobody is sent there any more, whoever is asked and whoever asks.
        let leaving = format!("http://{}", cluster.nodes[2].address());
        for (asked, job) in jobs.iter().enumerate() {
            for client in 0..12 {
                let task = job.api.checkin(&format!("d{client}"), &json!({"job": "left"})).await.expect(200).json();
                let chosen = task["gateway"].as_str();
                assert_ne!(chosen, Some(leaving.as_str()), "{task}");
                assert!(asked != 2 || task["task"] != "train" || chosen.is_some(), "it sends nobody away: {task}");
            }
        }
        // What is on its way arrives, and who comes all the same is taken.
        assert!(raw.send(&whole[whole.len() / 2..]).await);
        let answer = raw.answer().await.expect("an answer").expect(202);
        assert_eq!(answer.headers.get("connection").map(|value| value.as_bytes()), Some(&b"close"[..]));
        sent.note(1, 5, &answer.json()["receipt"]);
        sent.accepted(&jobs[2], 1, 6).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!cluster.nodes[2].process.has_ended(), "it holds updates of an open round");
        // The round goes on elsewhere; its top takes what the node has, and with that the node goes.
        sent.accepted(&jobs[0], 1, 7).await;
        sent.accepted(&jobs[1], 1, 8).await;
        jobs[0].open_round(2).await;
        cluster.nodes[2].process.ended().await;
        let log = cluster.nodes[2].process.log();
        assert!(log.contains("nothing is held here") && log.contains("stopped"), "{log}");
        // The others go on without it, and nobody's update was lost.
        for client in 0..9 {
            let job = &jobs[client as usize % 2];
            job.open_round(2).await;
            sent.accepted(job, 2, client).await;
        }
        let left = &cluster.apis()[..2];
        for api in left {
            job.through(api).in_state("completed").await;
        }
        assert_eq!(sent.check(&job, left).await, 0);
    })
    .await;
}

/// A round that stays open holds a node for its drain time, and no longer; what it had is there when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_has_an_end() {
    run(async {
        let mut cluster = Cluster::start(Setup { node_flags: flags([("--drain-time", "4s")]), ..small() }).await;
        let sent = means();
        let job = cluster.nodes[0].api().begin("open", json!({"goal": 4, "rounds": 1}), &body(0, 0)).await;
        let jobs = through(&cluster, &job);
        jobs[1].open_round(1).await;
        sent.accepted(&jobs[1], 1, 0).await;
        cluster.nodes[1].process.terminate();
        let took = cluster.nodes[1].process.ended().await;
        assert!(took > Duration::from_millis(3500), "{took:?}");
        assert!(cluster.nodes[1].process.log().contains("open/1: 1"), "it says what it still holds");
        cluster.start_again(1).await;
        // A second signal ends it, and so does an interrupt.
        for signal in [catchment_tests::Process::terminate, catchment_tests::Process::interrupt] {
            others_are_heard(&cluster.nodes[1].api()).await;
            cluster.nodes[1].process.terminate();
            answers(&cluster.nodes[1].api(), "/readyz", 503).await;
            signal(&cluster.nodes[1].process);
            let took = cluster.nodes[1].process.ended().await;
            assert!(took < Duration::from_secs(3), "{took:?}");
            cluster.start_again(1).await;
        }
        for client in 1..4 {
            sent.accepted(&jobs[client as usize % 2], 1, client).await;
        }
        for job in &jobs {
            job.in_state("completed").await;
        }
        assert_eq!(sent.check(&job, &cluster.apis()).await, 0);
    })
    .await;
}

/// Whoever is alone has nobody to wait for; and of nodes that all drain, none waits for another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_nobody() {
    run(async {
        for bus in [Bus::Embedded, Bus::Nats] {
            let mut server = Server::start(bus).await;
            let job = server.api().begin("alone", json!({"goal": 2, "rounds": 1}), &body(0, 0)).await;
            means().accepted(&job, 1, 0).await;
            let begun = Instant::now();
            assert!(server.stop().await.success());
            assert!(begun.elapsed() < Duration::from_secs(8), "{bus:?}: {:?}", begun.elapsed());
        }
        let mut cluster = Cluster::start(small()).await;
        let job = cluster.nodes[0].api().begin("all", json!({"goal": 9, "rounds": 1}), &body(0, 0)).await;
        let jobs = through(&cluster, &job);
        for client in 0..2 {
            jobs[client as usize].open_round(1).await;
            means().accepted(&jobs[client as usize], 1, client).await;
        }
        let begun = Instant::now();
        cluster.nodes.iter().for_each(|node| node.process.terminate());
        for node in &mut cluster.nodes {
            node.process.ended().await;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinators_say_how_they_are() {
    run(async {
        let mut cluster = Cluster::start(Setup { nodes: 2, ..Setup::default() }).await;
        let coordinators = [cluster.coordinator(0), cluster.coordinator(1)];
        let job = cluster.nodes[0].api().begin("asked", json!({"goal": 2, "rounds": 1}), &body(0, 0)).await;
        for client in 0..2 {
            means().accepted(&job, 1, client).await;
        }
        job.in_state("completed").await;
        until("the one that decides says so, and the other does not", async || {
            let leads = async |i: usize| coordinators[i].metrics().await.sum("catchment_coordinator_leads", &[]);
            let leader = cluster.leader().await;
            ((leads(leader).await, leads(1 - leader).await) == (1.0, 0.0)).then_some(())
        })
        .await;
        let mut opened = 0.0;
        for api in &coordinators {
            assert_eq!((status(api, "/healthz").await, status(api, "/readyz").await), (200, 200));
            let page = api.get("/v1/nodes").await.expect(200).json();
            assert_eq!(page["items"].as_array().map(Vec::len), Some(2), "{page}");
            until("it has read on", async || {
                (api.metrics().await.sum("catchment_log_sequence", &[]) > 3.0).then_some(())
            })
            .await;
            let metrics = api.metrics().await;
            assert_eq!(metrics.sum("catchment_nodes", &[("state", "live")]), 2.0);
            assert_eq!(metrics.sum("catchment_build_info", &[]), 1.0);
            opened += metrics.sum("catchment_decisions_total", &[("kind", "round_opened")]);
            api.get("/v1/jobs").await.problem(404, "not_found");
        }
        // By whoever led then: the first to be heard may give way to the second.
        assert_eq!(opened, 1.0, "a decision is counted once, where it is taken");
        cluster.nodes[1].process.kill9();
        until("a node is missed", async || {
            let metrics = coordinators[0].metrics().await;
            (metrics.sum("catchment_nodes", &[("state", "live")]) == 1.0).then_some(())
        })
        .await;
        cluster.nats().kill();
        answers(&coordinators[0], "/readyz", 503).await;
        assert_eq!(status(&coordinators[0], "/healthz").await, 200);
        cluster.nats().start_again();
        answers(&coordinators[0], "/readyz", 200).await;
    })
    .await;
}

async fn wanted(api: &Api, what: &str, is_it: impl Fn(f64) -> bool) -> f64 {
    until(&format!("the number of nodes wanted is {what}"), async || {
        let metrics = api.metrics().await;
        let known = metrics.samples.iter().any(|sample| sample.name == "catchment_nodes_wanted");
        let wanted = metrics.sum("catchment_nodes_wanted", &[]);
        (known && is_it(wanted)).then_some(wanted)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_nodes_wanted_follows_the_demand() {
    run(async {
        let patience = flags([("--scale-settle", "1s"), ("--scale-idle", "2s")]);
        let cluster = Cluster::start(Setup { coordinator_flags: patience, ..small() }).await;
        let (coordinator, node) = (cluster.coordinator(0), cluster.nodes[0].api());
        wanted(&coordinator, "0", |wanted| wanted == 0.0).await;
        // So many updates of 200 kB in a minute are more than one link takes.
        let (mut jobs, mut before) = (Vec::new(), 0.0);
        for name in ["one", "two", "three"] {
            jobs.push(node.begin(name, json!({"goal": 300_000}), &body(0, 0)).await);
            before = wanted(&coordinator, "larger", |wanted| wanted > before).await;
        }
        assert!(before >= 4.0, "{before}");
        let shown = async |api: &Api| api.get("/v1/nodes").await.expect(200).json()["wanted"].as_f64();
        until("a node knows it", async || (shown(&node).await == Some(before)).then_some(())).await;
        assert_eq!(shown(&coordinator).await, Some(before));
        for job in &jobs {
            job.call("POST", "/stop").await.expect(200);
        }
        wanted(&coordinator, "0 again", |wanted| wanted == 0.0).await;
        until("a node knows it", async || (shown(&node).await == Some(0.0)).then_some(())).await;
        let log = cluster.coordinators[0].log();
        assert!(log.contains("the number of nodes wanted has changed"), "{log}");
        // A coordinator beside a node shows its metrics there.
        let alone = Server::start(Bus::Embedded).await;
        alone.api().begin("here", json!({"goal": 2}), &body(0, 0)).await;
        assert_eq!(wanted(&alone.api(), "1", |wanted| wanted == 1.0).await, 1.0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_may_start_before_the_bus() {
    run(async {
        let listen = format!("127.0.0.1:{}", free_port());
        let coordinator_flags = flags([("--listen", listen.as_str())]);
        let mut cluster = Cluster::not_started(&Setup { coordinator_flags, ..small() });
        cluster.processes().for_each(|process| process.start());
        let coordinator = Api::new(&listen);
        until("the coordinator can be asked", async || {
            let answer = coordinator.try_call("GET", "/readyz", &[], None).await.ok()?;
            (answer.status == 503).then_some(())
        })
        .await;
        assert_eq!(status(&coordinator, "/healthz").await, 200);
        coordinator.get("/v1/nodes").await.problem(503, "not_ready");
        for process in cluster.processes() {
            let waits = async || process.log().contains("waiting for NATS").then_some(());
            until(&format!("{} waits", process.name()), waits).await;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        for process in cluster.processes() {
            assert!(!process.has_ended(), "{} does not wait", process.name());
            let told = process.log().matches("waiting for NATS").count();
            assert!(told <= 2, "{} says it {told} times", process.name());
        }
        cluster.nats().start_again();
        for process in cluster.processes() {
            process.up().await;
        }
        cluster.ready(0).await;
        answers(&coordinator, "/readyz", 200).await;
        let job = cluster.nodes[0].api().begin("late", json!({"goal": 1, "rounds": 1}), &body(0, 0)).await;
        means().accepted(&job, 1, 0).await;
        job.in_state("completed").await;
    })
    .await;
}

/// What one gateway has answered, the others show; and gauges of jobs are those of the job, not of the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_gateway_was_asked_the_others_show() {
    run(async {
        let cluster = Cluster::start(small()).await;
        let apis = cluster.apis();
        for k in 0..20 {
            let job = apis[k % 2].create(&format!("a{k}"), json!({"goal": 1, "rounds": 2})).await;
            let other = job.through(&apis[(k + 1) % 2]);
            job.put_model(&body(0, 0)).await.expect(201);
            let round = other.round().await;
            assert_eq!((&round["round"], &round["state"]), (&json!(1), &json!("open")), "{k}: {round}");
            for (action, state) in [("pause", "paused"), ("resume", "running"), ("stop", "stopped")] {
                job.call("POST", &format!("/{action}")).await.expect(200);
                assert_eq!(other.round().await["job_state"], state, "{k}");
                assert_eq!(other.view().await["state"], state, "{k}");
            }
            job.call("DELETE", "").await.expect(204);
            other.call("GET", "").await.problem(404, "not_found");
            // The name again, at the one; an update for either, at the other.
            let again = job.api.create(&format!("a{k}"), json!({"goal": 9})).await;
            again.put_model(&body(0, 0)).await.expect(201);
            let query = |job: &Job| format!("uid={}", job.created["uid"].as_str().expect("a uid"));
            other.submit(1, "late", "", &body(1, 1)).await.problem(409, "uid_required");
            other.submit(1, "late", &query(&job), &body(1, 1)).await.problem(404, "not_found");
            other.submit(1, "late", &query(&again), &body(1, 1)).await.expect(202);
        }
        let job = apis[0].begin("shown", json!({"goal": 1, "rounds": 2}), &body(0, 0)).await;
        job.submit_with(1, "c", "", &[("catchment-metrics", r#"{"loss": 0.5}"#)], &body(1, 1)).await.expect(202);
        job.open_round(2).await;
        let of_job = [("job", "shown")];
        let mut seen = Vec::new();
        for api in &apis {
            let metrics = until("the commit is known", async || {
                let metrics = api.metrics().await;
                (metrics.sum("catchment_job_metric", &of_job) != 0.0).then_some(metrics)
            })
            .await;
            seen.push(
                ["catchment_job_metric", "catchment_last_commit_timestamp_seconds", "catchment_queue_depth"]
                    .map(|name| metrics.sum(name, &of_job)),
            );
        }
        assert_eq!(seen[0], seen[1]);
    })
    .await;
}
