//! What nodes make of a round together: partials that meet at middles, models made in slices, and updates that one node
//! needs all of. It is what one node makes.

use catchment_tests::{Bus, Cluster, ExactMean, Job, Reference, Sent, Server, Setup, Tensor, file, read, run, until};
use serde_json::{Value, json};

const EXACT: ExactMean = ExactMean { bound: 64.0, weight_max: 16.0, updates_max: 100 };
const WIDE: usize = 40_000;
/// Of one partial: eight bytes for each element, and a little for its alignment.
const PARTIAL_BYTES: std::ops::Range<f64> = (WIDE * 8) as f64..((WIDE + 64) * 8) as f64;
/// Elements of three ranges, the last of which is short.
const SLICED: usize = (2 << 20) + 70_000;

fn exact_body(round: u64, client: u64) -> Vec<u8> {
    let value = |i: usize| ((round * 7919 + client * 104_729 + i as u64 * 31) % 9973) as f32 / 9973.0 - 0.5;
    file(&[Tensor::f32("w", &[WIDE], &(0..WIDE).map(|i| 40.0 * value(i)).collect::<Vec<_>>())])
}

/// Who merges what whom has: the middle what the other node of its zone has, the top what the middle has.
const TREE: [(&str, Option<&str>); 3] = [("node-0", None), ("node-1", Some("node-0")), ("node-2", Some("node-1"))];

/// The nodes of a round, and who merges what each has, by name.
async fn merged_by(job: &Job) -> Vec<(String, Option<String>)> {
    let nodes = job.call("GET", "/round").await.expect(200).json()["nodes"].clone();
    let nodes: Vec<Value> = nodes.as_array().expect("a list").clone();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let name = |id: &Value| text(&nodes.iter().find(|node| node["node"] == *id)?["name"]);
    let mut merged: Vec<_> =
        nodes.iter().filter_map(|node| Some((text(&node["name"])?, name(&node["into"])))).collect();
    merged.sort();
    merged
}

/// Two nodes of a zone: what they hold comes to the top, which stands elsewhere, as one partial.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partials_of_a_zone_meet_there() {
    run(async {
        let cluster = Cluster::start(Setup { zones: &["north", "south", "south"], ..Setup::default() }).await;
        let sent = Sent::new(exact_body, |_, client| 1.0 + client as f64 % 7.0, Reference::Exact(EXACT));
        let spec = json!({"exact": EXACT.spec(), "goal": 9, "rounds": 3, "checkpoints": {"keep_last": 1000}});
        let job = cluster.nodes[0].api().begin("zones", spec, &exact_body(0, 0)).await;
        let jobs = cluster.through(&job);
        let before = cluster.peer_bytes("partial").await;
        let tree = TREE.map(|(node, into)| (node.to_owned(), into.map(str::to_owned)));
        for round in 1..=3 {
            for client in 0..9 {
                // Five updates in the north, and in the south three and one.
                let gateway = [0, 0, 1, 0, 2, 0, 1, 0, 1][client];
                jobs[gateway].open_round(round).await;
                if (round, client) == (1, 8) {
                    until("the tree is shown", async || (merged_by(&jobs[0]).await == tree).then_some(())).await;
                }
                sent.accepted(&jobs[gateway], round, client as u64).await;
            }
        }
        cluster.completed(&job).await;
        assert_eq!(sent.check(&job, &cluster.apis()).await, 0);
        let after = cluster.peer_bytes("partial").await;
        let came: Vec<f64> = after.iter().zip(before).map(|(after, before)| (after - before) / 3.0).collect();
        assert!(PARTIAL_BYTES.contains(&came[0]), "the top takes one partial a round: {came:?}");
        assert!(PARTIAL_BYTES.contains(&came[1]), "the middle takes the other: {came:?}");
        assert_eq!(came[2], 0.0);
        assert!(cluster.nodes[0].process.log().contains("share the work between nodes"), "what is planned is said");
        cluster.holds_no_slabs().await;
    })
    .await;
}

/// A model of several ranges: every node makes a slice, and no byte of an update moves twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_are_what_one_node_makes() {
    run(async {
        let cluster = Cluster::start(Setup::default()).await;
        let lone = Server::start(Bus::Embedded).await;
        let body = |client: u64| {
            let value = |i: u64| ((client * 7919 + i * 104_729) % 9973) as f32 / 997.3;
            let half: Vec<f32> = (0..3000).map(|i| (client * 10 + i % 5) as f32).collect();
            file(&[
                Tensor::f32("w", &[SLICED], &(0..SLICED as u64).map(value).collect::<Vec<_>>()),
                Tensor::f64("v", &[3000], &half.iter().map(|x| f64::from(*x)).collect::<Vec<_>>()),
            ])
        };
        let spec = json!({"function": "median", "goal": 7, "rounds": 1});
        let here = cluster.nodes[0].api().begin("median", spec.clone(), &body(9)).await;
        let there = lone.api().begin("median", spec, &body(9)).await;
        let jobs = cluster.through(&here);
        for client in 0..7 {
            let (name, job) = (format!("c{client}"), &jobs[client as usize % 3]);
            job.open_round(1).await;
            job.accepted(1, &name, "", &body(client)).await;
            there.accepted(1, &name, "", &body(client)).await;
        }
        there.in_state("completed").await;
        cluster.completed(&here).await;
        let expected = there.model(1).await;
        for job in &jobs {
            assert!(job.model(1).await == expected, "the median is something else on three nodes");
        }
        let (updates, slices) = (cluster.peer_bytes("update").await, cluster.peer_bytes("slice").await);
        let all = (7 * (SLICED * 4 + 3000 * 8)) as f64;
        assert!(
            updates.iter().all(|bytes| *bytes > 0.0),
            "every node takes its slice of the others' updates: {updates:?}"
        );
        assert!(updates.iter().sum::<f64>() < all, "{updates:?} of {all}");
        assert_eq!(slices.iter().filter(|bytes| **bytes > 0.0).count(), 1, "slices come to the top: {slices:?}");
        cluster.holds_no_slabs().await;
    })
    .await;
}

fn float_body(client: u64) -> Vec<u8> {
    let value = |i: u64| ((client * 7919 + i * 104_729) % 9973) as f32 / 997.3 - if client == 4 { 900.0 } else { 0.0 };
    let values: Vec<f32> = (0..30_000).map(value).collect();
    file(&[Tensor::f32("w", &[300, 100], &values)])
}

/// Rounds whose function needs every update: the other nodes' updates come to one, and the model is what a single node
/// makes of the same updates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_that_gather_are_what_they_are_on_one_node() {
    run(async {
        let cluster = Cluster::start(Setup::default()).await;
        let lone = Server::start(Bus::Embedded).await;
        for (name, function, config) in [("median", "median", json!({})), ("krum", "krum", json!({"byzantine": 1}))] {
            let spec = json!({"function": function, "config": config, "goal": 7, "rounds": 1});
            let here = cluster.nodes[0].api().begin(name, spec.clone(), &float_body(9)).await;
            let there = lone.api().begin(name, spec, &float_body(9)).await;
            let jobs = cluster.through(&here);
            for client in 0..7 {
                let query = format!("weight={}", client + 1);
                let job = &jobs[client as usize % 3];
                job.open_round(1).await;
                job.accepted(1, &format!("c{client}"), &query, &float_body(client)).await;
                there.accepted(1, &format!("c{client}"), &query, &float_body(client)).await;
            }
            there.in_state("completed").await;
            cluster.completed(&here).await;
            let expected = there.model(1).await;
            for job in &jobs {
                assert!(job.model(1).await == expected, "{name} is something else on three nodes");
            }
            if function == "median" {
                let all: Vec<_> = (0..7).map(|client| read(&float_body(client))["w"].clone()).collect();
                let median = |i: usize| {
                    let mut column: Vec<f64> = all.iter().map(|values| values[i]).collect();
                    column.sort_by(f64::total_cmp);
                    column[3]
                };
                assert_eq!(read(&expected)["w"], (0..30_000).map(median).collect::<Vec<_>>());
            }
        }
        assert!(cluster.peer_bytes("update").await.iter().sum::<f64>() > 0.0, "updates must have moved");
        cluster.holds_no_slabs().await;
    })
    .await;
}

/// Stacks of adapters of several ranks, likewise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stacks_are_what_they_are_on_one_node() {
    run(async {
        let cluster = Cluster::start(Setup::default()).await;
        let lone = Server::start(Bus::Embedded).await;
        let layer = |value: f32| file(&[Tensor::f32("q.weight", &[40, 30], &vec![value; 1200])]);
        let adapter = |client: u64| {
            let rank = [2, 8, 1, 4][client as usize % 4];
            let values =
                |n: usize| (0..n).map(|i| (i as u64 * 31 + client * 7) as f32 % 13.0 - 6.0).collect::<Vec<_>>();
            file(&[
                Tensor::f32("q.lora_A.weight", &[rank, 30], &values(rank * 30)),
                Tensor::f32("q.lora_B.weight", &[40, rank], &values(rank * 40)),
            ])
        };
        let spec = json!({"function": "flora", "update": "delta", "goal": 4, "rounds": 1});
        let here = cluster.nodes[2].api().begin("flora", spec.clone(), &layer(0.5)).await;
        let there = lone.api().begin("flora", spec, &layer(0.5)).await;
        let (jobs, etag) = (cluster.through(&here), here.call("GET", "/model").await.header("etag").to_owned());
        for client in 0..4 {
            let (name, base) = (format!("c{client}"), [("catchment-base", etag.as_str())]);
            let job = &jobs[client as usize % 3];
            job.open_round(1).await;
            job.submit_with(1, &name, "weight=2", &base, &adapter(client)).await.expect(202);
            there.submit_with(1, &name, "weight=2", &base, &adapter(client)).await.expect(202);
        }
        there.in_state("completed").await;
        cluster.completed(&here).await;
        for job in &jobs {
            assert!(job.model(1).await == there.model(1).await, "the stack is something else on three nodes");
        }
        cluster.holds_no_slabs().await;
    })
    .await;
}
