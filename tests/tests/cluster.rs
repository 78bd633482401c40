//! Three nodes and two coordinators as one: what is right on one node is right on three, whichever gateway is asked; and
//! it stays right when coordinators, nodes, machines, links and the bus go and come back.

use catchment_tests::{Api, Cluster, ExactMean, Job, Reference, Sent, Setup, Tensor, file, read, run, until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const EXACT: ExactMean = ExactMean { bound: 64.0, weight_max: 16.0, updates_max: 100 };
const WIDE: usize = 40_000;
const PRECISE: usize = 3_000;
/// Bytes of a partial: eight for each element that is folded, and a little for its alignment.
const PARTIAL: std::ops::Range<usize> = (WIDE + PRECISE + 8) * 8..(WIDE + PRECISE + 200) * 8;

fn body(round: u64, client: u64) -> Vec<u8> {
    let value = |i: usize| ((round * 7919 + client * 104_729 + i as u64 * 31) % 9973) as f32 / 9973.0 - 0.5;
    let wide: Vec<f32> = (0..WIDE).map(|i| 40.0 * value(i)).collect();
    let precise: Vec<f64> = (0..PRECISE).map(|i| f64::from(value(i)) / 3.0).collect();
    file(&[
        Tensor::f32("wide", &[WIDE], &wide),
        Tensor::f64("precise", &[PRECISE], &precise),
        Tensor::f32("peak", &[8], &[client as f32 * 0.75 - 3.0; 8]),
        Tensor::i64("steps", &[], &[7]),
    ])
}

fn weight(round: u64, client: u64) -> f64 {
    1.0 + (round * 5 + client * 3) as f64 % 7.0
}

fn exact() -> Sent {
    Sent::new(body, weight, Reference::Exact(EXACT))
}

fn spec(more: Value) -> Value {
    let mut spec = json!({"exact": EXACT.spec(), "tensors": [{"match": "peak", "rule": "max"}],
        "checkpoints": {"keep_last": 1000}});
    spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    spec
}

fn impatient() -> Setup {
    Setup { node_timeout: Duration::from_secs(2), ..Setup::default() }
}

/// The job is over; everything about it is right at every gateway, and nothing is left in memory. Gives the number of
/// lost receipts.
async fn all_is_right(cluster: &Cluster, job: &Job, sent: &Sent) -> u64 {
    cluster.completed(job).await;
    let lost = sent.check(job, &cluster.apis()).await;
    cluster.holds_no_slabs().await;
    lost
}

async fn submit(jobs: &[Job], sent: &Sent, round: u64, clients: impl IntoIterator<Item = u64>) {
    for client in clients {
        sent.accepted(&jobs[client as usize % jobs.len()], round, client).await;
    }
}

/// Takes this client's update wherever it is taken.
async fn submit_again(jobs: &[Job], sent: &Sent, round: u64, client: u64) {
    let at = std::sync::atomic::AtomicUsize::new(0);
    until(&format!("somebody takes the update of c{client}"), async || {
        let job = &jobs[at.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % jobs.len()];
        let body = sent.body(round, client);
        let answer = job.api.try_call("PUT", &sent.path(job, round, client), &[], Some(body)).await.ok()?;
        let taken = [200, 202].contains(&answer.status);
        assert!(taken || [429, 503].contains(&answer.status), "{}: {}", answer.status, answer.text());
        taken.then(|| sent.note(round, client, &answer.json()["receipt"]))
    })
    .await;
}

async fn state_of(api: &Api, receipt: &Value) -> String {
    api.receipt(receipt).await["state"].as_str().expect("a state").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_gateway_is_the_cluster() {
    run(async {
        let cluster = Cluster::start(Setup::default()).await;
        let (apis, sent) = (cluster.apis(), Sent::new(body, weight, Reference::Mean));
        let spec = json!({"goal": 9, "rounds": 2, "checkpoints": {"keep_last": 9}, "tensors": [{"match": "peak", "rule": "mean"}]});
        // The model at one gateway, and at once an update at another.
        let job = apis[0].create("plain", spec).await;
        let jobs = cluster.through(&job);
        job.put_model(&body(0, 0)).await.expect(201);
        submit_again(&jobs[1..2], &sent, 1, 0).await;
        submit(&jobs, &sent, 1, 1..9).await;
        jobs[2].open_round(2).await;
        // Each of the two nodes that did not make the model gave it one partial.
        let moved = async || cluster.peer_bytes("partial").await.iter().sum::<f64>() as usize;
        assert!(PARTIAL.contains(&(moved().await / 2)), "{} bytes for two partials", moved().await);
        for job in &jobs {
            job.open_round(2).await;
        }
        submit(&jobs, &sent, 2, 0..9).await;
        assert_eq!(all_is_right(&cluster, &job, &sent).await, 0);
        assert!(PARTIAL.contains(&(moved().await / 4)), "{} bytes for four partials", moved().await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_and_many_rounds_are_exact() {
    run(async {
        let cluster = Cluster::start(Setup::default()).await;
        let sent = exact();
        let tree = json!({"goal": 8, "rounds": 5, "topology": {"tree": {"leaves": 3, "middles": 2}}});
        let job = cluster.nodes[1].api().begin("tree", spec(tree), &body(0, 0)).await;
        let jobs = cluster.through(&job);
        for round in 1..=5 {
            for job in &jobs {
                job.open_round(round).await;
            }
            submit(&jobs, &sent, round, 0..8).await;
        }
        assert_eq!(all_is_right(&cluster, &job, &sent).await, 0);
    })
    .await;
}

/// What a node's memory must have room for was checked for one node; what comes from others takes room, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_fits_one_node_is_finished_by_three() {
    run(async {
        let wide = |value: f32| file(&[Tensor::f32("w", &[2 << 20], &vec![value; 2 << 20])]);
        let mut least = 48;
        let (cluster, job) = loop {
            let cluster = Cluster::start(Setup { slab_mib: least, ..Setup::default() }).await;
            let job = cluster.nodes[0].api().create("tight", json!({"goal": 6, "rounds": 1})).await;
            let put = job.put_model(&wide(0.0)).await;
            if put.status == 201 {
                break (cluster, job);
            }
            put.problem(422, "invalid_spec");
            least += 4;
        };
        eprintln!("a job is taken with {least} MiB");
        let jobs = cluster.through(&job);
        for client in 0..6 {
            let job = &jobs[client % 3];
            job.open_round(1).await;
            until("there is room", async || {
                let answer = job.submit(1, &format!("c{client}"), "", &wide(client as f32)).await;
                assert!([202, 429].contains(&answer.status), "{}", answer.text());
                (answer.status == 202).then_some(())
            })
            .await;
        }
        cluster.completed(&job).await;
        assert!(read(&jobs[1].model(1).await)["w"].iter().all(|x| *x == 2.5));
        cluster.holds_no_slabs().await;
    })
    .await;
}

/// Every node fetches the models that its clients ask for, and removes those that the log does not keep.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_do_not_pile_up_anywhere() {
    run(async {
        let cluster = Cluster::start(Setup::default()).await;
        let spec = spec(json!({"goal": 3, "rounds": 12, "checkpoints": {"keep_last": 2}}));
        let (sent, job) = (exact(), cluster.nodes[0].api().begin("piles", spec, &body(0, 0)).await);
        let jobs = cluster.through(&job);
        for round in 1..=12 {
            for job in &jobs {
                job.open_round(round).await;
                job.model(round - 1).await;
            }
            // Node 0 has most of it, so it makes every model.
            sent.accepted(&jobs[0], round, 0).await;
            sent.accepted(&jobs[0], round, 1).await;
            sent.accepted(&jobs[1], round, 2).await;
        }
        cluster.completed(&job).await;
        for (i, node) in cluster.nodes.iter().enumerate() {
            let files = node.checkpoints();
            // The initial one, the two newest, and one whose successor nobody has asked this node for.
            assert!(files.len() <= 4, "node {i} keeps {files:?}");
        }
        cluster.holds_no_slabs().await;
    })
    .await;
}

/// A job is deleted in mid-round at one gateway; the others let go of what they have, and its namesake is another job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_job_is_gone_everywhere() {
    run(async {
        let cluster = Cluster::start(Setup::default()).await;
        for name in ["first", "second"] {
            let spec = spec(json!({"goal": 9, "rounds": 2}));
            let (sent, job) = (exact(), cluster.nodes[0].api().begin("namesake", spec, &body(0, 0)).await);
            let jobs = cluster.through(&job);
            for job in &jobs {
                job.open_round(1).await;
            }
            submit(&jobs, &sent, 1, 0..9).await;
            for job in &jobs {
                job.open_round(2).await;
                job.model(1).await;
            }
            submit(&jobs, &sent, 2, 0..6).await;
            let deleted = jobs[if name == "first" { 2 } else { 0 }].call("DELETE", "").await;
            assert!([200, 204].contains(&deleted.status), "{}", deleted.text());
            cluster.holds_no_slabs().await;
            for (i, node) in cluster.nodes.iter().enumerate() {
                let gone = async || (node.api().get(&job.path).await.status == 404).then_some(());
                until(&format!("node {i} does not know the job"), gone).await;
                let empty = async || node.checkpoints().is_empty().then_some(());
                until(&format!("node {i} has no model of it"), empty).await;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_coordinator_goes_on() {
    run(async {
        let mut cluster = Cluster::start(Setup::default()).await;
        let sent = exact();
        let job = cluster.nodes[0].api().begin("led", spec(json!({"goal": 3, "rounds": 4})), &body(0, 0)).await;
        let jobs = cluster.through(&job);
        for round in 1..=4 {
            for job in &jobs {
                job.open_round(round).await;
            }
            let leader = cluster.leader().await;
            if round < 4 {
                cluster.coordinators[leader].kill9();
            }
            let killed = Instant::now();
            submit(&jobs, &sent, round, 0..3).await;
            if round < 4 {
                jobs[1].open_round(round + 1).await;
                eprintln!("round {} opened {:?} after coordinator {leader} was killed", round + 1, killed.elapsed());
                assert!(killed.elapsed() < Duration::from_secs(5), "it takes too long");
                cluster.coordinators[leader].start();
                cluster.coordinators[leader].up().await;
            }
        }
        assert_eq!(all_is_right(&cluster, &job, &sent).await, 0);
    })
    .await;
}

/// Each node dies once in mid-round and finds everything again in its memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_loses_nothing() {
    run(async {
        let mut cluster = Cluster::start(Setup::default()).await;
        let sent = exact();
        let job = cluster.nodes[0].api().begin("killed", spec(json!({"goal": 9, "rounds": 3})), &body(0, 0)).await;
        let jobs = cluster.through(&job);
        for round in 1..=3 {
            for job in &jobs {
                job.open_round(round).await;
            }
            submit(&jobs, &sent, round, 0..6).await;
            let victim = round as usize - 1;
            cluster.nodes[victim].process.kill9();
            let others: Vec<Job> =
                jobs.iter().enumerate().filter(|(i, _)| *i != victim).map(|(_, j)| j.clone()).collect();
            submit(&others, &sent, round, 6..9).await;
            cluster.start_again(victim).await;
        }
        assert_eq!(all_is_right(&cluster, &job, &sent).await, 0);
    })
    .await;
}

/// A machine burns down: what it held is asked for again, and its models are elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_machine_costs_its_updates_and_no_model() {
    run(async {
        let mut cluster = Cluster::start(impatient()).await;
        let sent = exact();
        let job = cluster.nodes[0].api().begin("burnt", spec(json!({"goal": 6, "rounds": 2})), &body(0, 0)).await;
        let jobs = cluster.through(&job);
        // Most is at node 0, so it makes the first model.
        jobs[0].open_round(1).await;
        for client in 0..4 {
            sent.accepted(&jobs[0], 1, client).await;
        }
        submit(&jobs[1..], &sent, 1, 4..6).await;
        jobs[0].open_round(2).await;
        jobs[1].open_round(2).await;
        let mut held = Vec::new();
        for client in 0..3 {
            held.push(sent.accepted(&jobs[0], 2, client).await);
        }
        submit(&jobs[1..], &sent, 2, 3..5).await;
        cluster.nodes[0].lose_machine();
        let gone = Instant::now();
        for receipt in &held {
            jobs[1].api.receipt_in(receipt, "lost").await;
        }
        eprintln!("lost {:?} after the machine", gone.elapsed());
        let asked = jobs[2].api.checkin("c0", &json!({"job": "burnt"})).await.expect(200).json();
        assert_eq!((&asked["task"], &asked["round"]), (&json!("train"), &json!(2)), "{asked}");
        for client in 0..3 {
            let again = sent.accepted(&jobs[1 + client as usize % 2], 2, client).await;
            assert!(!held.contains(&again), "a new attempt has a new receipt");
        }
        submit(&jobs[1..], &sent, 2, 5..6).await;
        jobs[1].in_state("completed").await;
        for job in &jobs[1..] {
            for version in 0..=2 {
                assert!(!job.model(version).await.is_empty());
            }
        }
        // The machine is replaced by an empty one, which is as good a gateway as the others.
        cluster.start_again(0).await;
        assert_eq!(all_is_right(&cluster, &job, &sent).await, 3);
    })
    .await;
}

/// A node that was given up goes on as if nothing had been, before or after its round is over.
async fn comes_back(cluster: &Cluster, stop: impl AsyncFn(usize), go_on: impl AsyncFn(usize)) {
    let sent = exact();
    let job = cluster.nodes[1].api().begin("back", spec(json!({"goal": 6, "rounds": 3})), &body(0, 0)).await;
    let jobs = cluster.through(&job);
    for round in 1..=3 {
        for job in &jobs {
            job.open_round(round).await;
        }
        let mut held = Vec::new();
        for client in 0..3 {
            held.push(sent.accepted(&jobs[0], round, client).await);
        }
        submit(&jobs[1..], &sent, round, 3..5).await;
        stop(0).await;
        for receipt in &held {
            jobs[1].api.receipt_in(receipt, "lost").await;
        }
        // Round 2: it comes back while its updates are sent again; otherwise after that, or after the round.
        if round == 2 {
            go_on(0).await;
        }
        for client in 0..3 {
            submit_again(&jobs[1..], &sent, round, client).await;
        }
        if round == 1 {
            go_on(0).await;
            // What it holds is another's now.
            for receipt in &held {
                jobs[0].api.receipt_in(receipt, "lost").await;
            }
        }
        submit_again(&jobs[1..], &sent, round, 5).await;
        if round == 3 {
            jobs[1].in_state("completed").await;
            go_on(0).await;
        }
    }
    assert_eq!(all_is_right(cluster, &job, &sent).await, 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_stopped_counts_nothing_twice() {
    run(async {
        let cluster = Cluster::start(impatient()).await;
        comes_back(&cluster, async |i| cluster.nodes[i].process.freeze(), async |i| cluster.nodes[i].process.thaw())
            .await;
    })
    .await;
}

/// The node that makes the model asks another for its partial, and gets no answer, not even that there is none. Once the
/// other is given up, the round goes on without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_node_that_was_given_up() {
    run(async {
        let cluster = Cluster::start(impatient()).await;
        let sent = exact();
        let job = cluster.nodes[0].api().begin("silent", spec(json!({"goal": 4, "rounds": 1})), &body(0, 0)).await;
        let jobs = cluster.through(&job);
        jobs[1].open_round(1).await;
        let held = sent.accepted(&jobs[1], 1, 0).await;
        jobs[0].api.receipt_in(&held, "folded").await;
        cluster.nodes[1].process.freeze();
        for client in 1..4 {
            sent.accepted(&jobs[0], 1, client).await;
        }
        // At the gateway that is asked next, too: it may be a moment behind, and then knows the update still.
        for job in [&jobs[0], &jobs[2]] {
            job.api.receipt_in(&held, "lost").await;
        }
        let given_up = Instant::now();
        submit_again(&jobs[2..], &sent, 1, 0).await;
        jobs[0].in_state("completed").await;
        eprintln!("completed {:?} after the node was given up", given_up.elapsed());
        assert!(given_up.elapsed() < Duration::from_secs(10), "it takes {:?}", given_up.elapsed());
        cluster.nodes[1].process.thaw();
        assert_eq!(all_is_right(&cluster, &job, &sent).await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_cut_off_counts_nothing_twice() {
    let name = "a_node_that_was_cut_off_counts_nothing_twice";
    run(async {
        let Some(cluster) = Cluster::start_on_hosts(impatient(), name).await else { return };
        comes_back(&cluster, async |i| cluster.nodes[i].host().cut(), async |i| cluster.nodes[i].host().heal()).await;
    })
    .await;
}

/// The node that holds a partial dies while it sends it. Come back, it goes on where it was, and the wire has not seen the
/// partial twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partial_goes_on_where_it_broke_off() {
    const ELEMENTS: usize = 2 << 20;
    const PARTIAL: u64 = 8 * ELEMENTS as u64;
    let name = "a_partial_goes_on_where_it_broke_off";
    run(async {
        let Some(mut cluster) = Cluster::start_on_hosts(Setup::default(), name).await else { return };
        let wide = |value: f32| file(&[Tensor::f32("w", &[ELEMENTS], &vec![value; ELEMENTS])]);
        let job = cluster.nodes[0].api().begin("broken", json!({"goal": 3, "rounds": 1}), &wide(0.0)).await;
        let jobs = cluster.through(&job);
        jobs[1].open_round(1).await;
        jobs[0].accepted(1, "c0", "", &wide(1.0)).await;
        jobs[0].accepted(1, "c1", "", &wide(2.0)).await;
        cluster.nodes[1].host().narrow("60mbit");
        let before = cluster.nodes[1].host().bytes_out();
        jobs[1].accepted(1, "c2", "", &wide(6.0)).await;
        let out = |cluster: &Cluster| cluster.nodes[1].host().bytes_out() - before;
        let begun = Instant::now();
        until("half of the partial is out", async || (out(&cluster) > PARTIAL / 2).then_some(())).await;
        assert!(jobs[0].view().await["state"] == "running", "it was too fast to be broken off");
        cluster.nodes[1].process.kill9();
        let at_death = out(&cluster);
        cluster.nodes[1].process.start();
        cluster.completed(&job).await;
        let (partial, sent) = (PARTIAL as f64, out(&cluster));
        eprintln!(
            "{:.2} partials at its death, {:.2} in all, {:?}",
            at_death as f64 / partial,
            sent as f64 / partial,
            begun.elapsed()
        );
        assert!(read(&jobs[2].model(1).await)["w"].iter().all(|x| *x == 3.0));
        // Models, heartbeats and what was on its way when it died come on top.
        assert!(sent < PARTIAL * 5 / 4, "{sent} bytes for a partial of {PARTIAL}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_may_go_and_come_back() {
    run(async {
        // With this little patience everybody would be given up, did silence count while nobody can be heard.
        let mut cluster = Cluster::start(impatient()).await;
        let sent = exact();
        let job = cluster.nodes[0].api().begin("bus", spec(json!({"goal": 9, "rounds": 2})), &body(0, 0)).await;
        let jobs = cluster.through(&job);
        for round in 1..=2 {
            for job in &jobs {
                job.open_round(round).await;
            }
            submit(&jobs, &sent, round, 0..5).await;
            cluster.nats().kill();
            let answer = jobs[1].api.call("PUT", &sent.path(&job, round, 5), &[], Some(sent.body(round, 5))).await;
            answer.problem(503, "log_unavailable");
            tokio::time::sleep(Duration::from_secs(3)).await;
            cluster.nats().start_again();
            for client in 5..9 {
                submit_again(&jobs[client as usize % 3..], &sent, round, client).await;
            }
        }
        assert_eq!(all_is_right(&cluster, &job, &sent).await, 0);
    })
    .await;
}

/// Clients that send everywhere at once: the same update counts once and has one receipt; of different ones, one counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_update_a_client_is_taken() {
    run(async {
        let cluster = Cluster::start(Setup::default()).await;
        let sent = exact();
        let job = cluster.nodes[0].api().begin("once", spec(json!({"goal": 8, "rounds": 2})), &body(0, 0)).await;
        let jobs = cluster.through(&job);
        for round in 1..=2 {
            for job in &jobs {
                job.open_round(round).await;
            }
            for client in 0..8 {
                let path = sent.path(&job, round, client);
                // In the second round other numbers come through the third gateway.
                let bodies = [client, client, if round == 1 { client } else { client + 100 }].map(|c| body(round, c));
                let calls = jobs.iter().zip(bodies).map(|(job, body)| job.api.call("PUT", &path, &[], Some(body)));
                let answers = futures::future::join_all(calls).await;
                let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
                assert_eq!(statuses.iter().filter(|status| **status == 202).count(), 1, "{statuses:?}");
                if round == 1 {
                    assert!(statuses.iter().all(|status| [200, 202].contains(status)), "{statuses:?}");
                    answers.iter().for_each(|answer| sent.note(round, client, &answer.json()["receipt"]));
                } else if statuses[2] == 202 {
                    assert_eq!(statuses, [409, 409, 202]);
                } else {
                    assert_eq!((statuses[0] + statuses[1], statuses[2]), (402, 409), "{statuses:?}");
                    sent.note(round, client, &answers[0].json()["receipt"]);
                }
            }
        }
        cluster.completed(&job).await;
        let listed = job.call("GET", "/models").await.expect(200).json();
        assert!((0..2).all(|i| listed["items"][i]["contributors"] == 8), "{listed}");
        cluster.holds_no_slabs().await;
    })
    .await;
}

/// Every receipt is known at every gateway, soon after it was given at one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_are_known_everywhere() {
    run(async {
        let cluster = Cluster::start(Setup::default()).await;
        let sent = exact();
        let job = cluster.nodes[0].api().begin("known", spec(json!({"goal": 4, "rounds": 1})), &body(0, 0)).await;
        let (jobs, mut slowest) = (cluster.through(&job), Duration::ZERO);
        jobs[1].open_round(1).await;
        let receipt = sent.accepted(&jobs[1], 1, 1).await;
        let given = Instant::now();
        for api in cluster.apis() {
            let path = format!("/v1/receipts/{}", receipt.as_str().expect("a name"));
            until("the receipt is known", async || (api.get(&path).await.status == 200).then_some(())).await;
            slowest = slowest.max(given.elapsed());
        }
        eprintln!("known everywhere {slowest:?} after it was given");
        assert!(["accepted", "folded"].contains(&state_of(&jobs[2].api, &receipt).await.as_str()));
        // The same update at another gateway is known there; another one from the same client is refused.
        let again = jobs[2].api.call("PUT", &sent.path(&job, 1, 1), &[], Some(body(1, 1))).await.expect(200);
        assert_eq!(again.json()["receipt"], receipt);
        jobs[0].submit(1, "c1", "weight=1", &body(1, 2)).await.problem(409, "conflict");
        submit(&jobs, &sent, 1, [0, 2, 3]).await;
        assert_eq!(all_is_right(&cluster, &job, &sent).await, 0);
    })
    .await;
}
