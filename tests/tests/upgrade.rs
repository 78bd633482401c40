//! A cluster of an old release is replaced by this one, member by member, in the middle of a round; and back, as long as
//! some of it is old. Nothing that was accepted is lost or counts twice, no job and no model goes, and whoever is not
//! replaced yet follows.

use catchment_tests::{
    Api, Bus, Cluster, ExactMean, Job, Reference, Release, Sent, Server, Setup, Tensor, file, run, until,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const EXACT: ExactMean = ExactMean { bound: 64.0, weight_max: 16.0, updates_max: 100 };
const GOAL: u64 = 40;
/// Of the rounds that the whole cluster makes as one release.
const CLIENTS: u64 = 6;

fn body(round: u64, client: u64) -> Vec<u8> {
    let value = |i: usize| ((round * 7919 + client * 104_729 + i as u64 * 31) % 9973) as f32 / 9973.0 - 0.5;
    let wide: Vec<f32> = (0..20_000).map(|i| 40.0 * value(i)).collect();
    let precise: Vec<f64> = (0..1_500).map(|i| f64::from(value(i)) / 3.0).collect();
    file(&[
        Tensor::f32("wide", &[20_000], &wide),
        Tensor::f64("precise", &[1_500], &precise),
        Tensor::f32("peak", &[8], &[client as f32 * 0.75 - 3.0; 8]),
        Tensor::i64("steps", &[], &[7]),
    ])
}

fn weight(round: u64, client: u64) -> f64 {
    1.0 + (round * 5 + client * 3) as f64 % 7.0
}

/// Who is replaced, and how it ends before.
#[derive(Debug, Clone, Copy)]
enum Member {
    Killed(usize),
    Told(usize),
    Coordinator(usize),
}

/// The order of an upgrade.
const ALL: [Member; 5] =
    [Member::Killed(0), Member::Coordinator(1), Member::Told(1), Member::Coordinator(0), Member::Killed(2)];

/// A job in mid-round, what its clients sent, and other jobs beside it.
struct World {
    cluster: Cluster,
    job: Job,
    sent: Sent,
    round: u64,
    /// Clients of this round so far.
    clients: u64,
    receipts: Vec<Value>,
    /// Receipts of other jobs' updates, which nobody folds meanwhile or some buffer has.
    others: Vec<Value>,
}

fn setup() -> Setup {
    // A node that is told to end has a round that stays open: it need not wait for it.
    let node_flags = vec![("--drain-time", "300ms".to_owned())];
    Setup { release: Release::Old, node_flags, ..Setup::default() }
}

impl World {
    /// A round made by the old release, the next one begun.
    async fn begin() -> Self {
        let cluster = Cluster::start(setup()).await;
        let api = cluster.nodes[0].api();
        let spec = json!({"goal": CLIENTS, "rounds": 9, "deadline": null, "exact": EXACT.spec(),
            "tensors": [{"match": "peak", "rule": "max"}], "checkpoints": {"keep_last": 1000},
            "topology": {"tree": {"leaves": 2, "middles": 1}}});
        let job = silent(api.begin("upgraded", spec, &body(0, 0)).await);
        let others = others(&cluster).await;
        let sent = Sent::new(body, weight, Reference::Exact(EXACT));
        let mut world = Self { cluster, job, sent, round: 1, clients: 0, receipts: Vec::new(), others };
        world.open().await;
        world.finish_round(GOAL).await;
        world.submit_through_all(2).await;
        world
    }

    fn jobs(&self) -> Vec<Job> {
        self.cluster.through(&self.job)
    }

    async fn open(&self) {
        for job in self.jobs() {
            job.open_round(self.round).await;
        }
    }

    /// One client's update, at this gateway.
    async fn submit(&mut self, node: usize) {
        let job = self.job.through(&self.cluster.nodes[node].api());
        self.receipts.push(self.sent.accepted(&job, self.round, self.clients).await);
        self.clients += 1;
    }

    /// So many through each gateway that is there.
    async fn submit_through_all(&mut self, each: usize) {
        for node in 0..self.cluster.nodes.len() {
            for _ in 0..if self.cluster.nodes[node].process.is_started() { each } else { 0 } {
                self.submit(node).await;
            }
        }
    }

    /// What is missing of this round. The next one is open afterwards, and has this goal.
    async fn finish_round(&mut self, next_goal: u64) {
        self.jobs()[0].api.patch(&self.job.path, &json!({"goal": next_goal})).await.expect(200);
        self.fill().await;
        for api in self.cluster.apis() {
            for receipt in &self.receipts {
                let committed = api.receipt_in(receipt, "committed").await;
                assert_eq!(committed["model_version"], self.round, "{committed}");
            }
        }
        (self.round, self.clients) = (self.round + 1, 0);
        self.receipts.clear();
        self.open().await;
    }

    /// Sends what is missing of this round.
    async fn fill(&mut self) {
        let goal = self.jobs()[0].round().await["goal"].as_u64().expect("a goal");
        assert!(self.clients < goal, "the round was to be open until now");
        while self.clients < goal {
            self.submit(self.clients as usize % self.cluster.nodes.len()).await;
        }
    }

    /// Replaces a member while updates keep coming, and checks that nobody has forgotten anything.
    async fn replace(&mut self, member: Member, release: Release) {
        let before = everything(&self.cluster.nodes[0].api()).await;
        eprintln!("{member:?} becomes {release:?}");
        match member {
            Member::Killed(node) => {
                self.cluster.nodes[node].process.kill9();
                self.submit_through_all(1).await;
                self.cluster.start_again_as(node, release).await;
            }
            Member::Told(node) => {
                self.cluster.nodes[node].process.terminate();
                self.cluster.nodes[node].process.ended().await;
                self.submit_through_all(1).await;
                self.cluster.start_again_as(node, release).await;
            }
            Member::Coordinator(coordinator) => {
                let process = &mut self.cluster.coordinators[coordinator];
                process.kill9();
                process.change_to(release);
                process.start();
                process.up().await;
            }
        }
        self.submit_through_all(1).await;
        let newest = self.receipts.last().cloned().expect("some were sent");
        for (node, api) in self.cluster.apis().into_iter().enumerate() {
            let follows = async || (api.get(&path_of(&newest)).await.status == 200).then_some(());
            until(&format!("node {node} follows"), follows).await;
            for receipt in self.receipts.iter().chain(&self.others) {
                let receipt = api.receipt(receipt).await;
                assert!(["accepted", "folded"].contains(&receipt["state"].as_str().unwrap_or_default()), "{receipt}");
            }
            assert_eq!(everything(&api).await, before, "at node {node}, after {member:?} became {release:?}");
        }
    }

    /// Ends all jobs, and checks all that they made.
    async fn end(mut self) {
        let last = self.round;
        self.jobs()[0].api.patch(&self.job.path, &json!({"rounds": last})).await.expect(200);
        self.fill().await;
        self.cluster.completed(&self.job).await;
        assert_eq!(self.sent.check(&self.job, &self.cluster.apis()).await, 0, "nothing was lost");
        end_others(&self.cluster, &self.others).await;
        self.cluster.holds_no_slabs().await;
    }
}

/// Its clients do not say which job they mean: the old release takes no such word.
fn silent(job: Job) -> Job {
    Job { created: Value::Null, ..job }
}

fn path_of(receipt: &Value) -> String {
    format!("/v1/receipts/{}", receipt.as_str().expect("a receipt's name"))
}

fn floats(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[3_000], &[value; 3_000])])
}

/// Jobs of the other kinds, each with something in hand. Gives the receipts.
async fn others(cluster: &Cluster) -> Vec<Value> {
    let (one, two) = (cluster.nodes[1].api(), cluster.nodes[2].api());
    let gathered = one.begin("gathered", json!({"function": "median", "goal": 3, "rounds": 1}), &floats(0.0)).await;
    let buffered = json!({"update": "delta", "rounds": 2, "deadline": null,
        "mode": {"async": {"buffer": 2, "staleness": {"polynomial": {"a": 0.5}}, "staleness_max": 2}}});
    let buffered = two.begin("buffered", buffered, &floats(1.0)).await;
    let done = one.begin("done", json!({"goal": 1, "rounds": 1}), &floats(0.0)).await;
    done.accepted(1, "c", "", &floats(5.0)).await;
    done.in_state("completed").await;
    let paused = two.begin("paused", json!({"goal": 1}), &floats(0.0)).await;
    paused.call("POST", "/pause").await.expect(200);
    let etag = buffered.call("GET", "/model?version=0").await.header("etag").to_owned();
    let base = [("catchment-base", etag.as_str())];
    let delta = buffered.submit_with(0, "a", "weight=1", &base, &floats(0.5)).await.expect(202).json();
    let mut receipts = vec![delta["receipt"].clone()];
    for (client, value) in [("a", 1.0), ("b", 2.0)] {
        receipts.push(gathered.accepted(1, client, "", &floats(value)).await);
    }
    for api in cluster.apis() {
        for job in [&gathered, &buffered, &done, &paused] {
            until("a gateway has heard", async || (api.get(&job.path).await.status == 200).then_some(())).await;
        }
        let has = |receipt: Value| {
            let api = api.clone();
            async move { until("a receipt", async || (api.get(&path_of(&receipt)).await.status == 200).then_some(())).await }
        };
        futures::future::join_all(receipts.iter().cloned().map(has)).await;
        job_named(&api, "paused").in_state("paused").await;
        job_named(&api, "done").in_state("completed").await;
    }
    receipts
}

fn job_named(api: &Api, name: &str) -> Job {
    Job { api: api.clone(), path: format!("/v1/jobs/{name}"), created: Value::Null }
}

/// What the other jobs have in hand becomes models, and the right ones.
async fn end_others(cluster: &Cluster, receipts: &[Value]) {
    let api = cluster.nodes[0].api();
    let gathered = job_named(&api, "gathered");
    gathered.accepted(1, "c", "", &floats(9.0)).await;
    gathered.in_state("completed").await;
    assert!(gathered.model(1).await.ends_with(&2f32.to_le_bytes()), "the median of 1, 2 and 9");
    let buffered = job_named(&api, "buffered");
    for (version, client) in [(0, "b"), (1, "a"), (1, "b")] {
        let etag = buffered.call("GET", &format!("/model?version={version}")).await.header("etag").to_owned();
        let base = [("catchment-base", etag.as_str())];
        buffered.submit_with(version, client, "weight=1", &base, &floats(1.5)).await.expect(202);
        if client == "b" {
            buffered.published(version + 1).await;
        }
    }
    buffered.in_state("completed").await;
    for (version, value) in [(1, 2f32), (2, 3.5)] {
        assert!(buffered.model(version).await.ends_with(&value.to_le_bytes()), "version {version}");
    }
    let paused = job_named(&api, "paused");
    paused.call("POST", "/resume").await.expect(200);
    paused.call("POST", "/stop").await.expect(200);
    for receipt in receipts {
        assert_eq!(api.receipt(receipt).await["state"], "committed");
    }
}

/// Every job that a gateway lists: who it is, how far, and what each of its models is, whose file must be there.
async fn everything(api: &Api) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let listed = api.get("/v1/jobs?limit=1000").await.expect(200).json();
    for item in listed["items"].as_array().expect("a list") {
        let name = item["spec"]["name"].as_str().expect("a name").to_owned();
        let job = job_named(api, &name);
        let mut models = BTreeMap::new();
        let listed = job.call("GET", "/models?limit=1000").await.expect(200).json();
        for model in listed["items"].as_array().expect("a list") {
            let version = model["version"].as_u64().expect("a version");
            let digest = blake3::hash(&job.model(version).await).to_hex().to_string();
            assert!(model["etag"].as_str().is_some_and(|etag| etag.contains(&digest)), "{digest}: {model}");
            models.insert(version, digest);
        }
        found.insert(name, json!([item["uid"], item["state"], item["model_version"], item["round"]["round"], models]));
    }
    assert_eq!(found.len(), 5, "{found:?}");
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_replaced_one_by_one_in_mid_round() {
    run(async {
        let mut world = World::begin().await;
        for member in ALL {
            world.replace(member, Release::Present).await;
        }
        world.finish_round(CLIENTS).await;
        world.finish_round(CLIENTS).await;
        world.end().await;
    })
    .await;
}

/// The new members made part of a round's sums, and whole rounds, before they go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_back_is_open_while_a_member_is_old() {
    run(async {
        let mut world = World::begin().await;
        for member in &ALL[..4] {
            world.replace(*member, Release::Present).await;
        }
        world.finish_round(GOAL).await;
        world.submit_through_all(2).await;
        for member in [Member::Told(0), Member::Coordinator(0), Member::Killed(1), Member::Coordinator(1)] {
            world.replace(member, Release::Old).await;
        }
        world.finish_round(CLIENTS).await;
        world.finish_round(CLIENTS).await;
        world.end().await;
    })
    .await;
}

/// One node is upgraded and goes back within one round: what one release began to fold the other goes on with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_goes_forth_and_back_within_a_round() {
    run(async {
        let mut world = World::begin().await;
        for release in [Release::Present, Release::Old, Release::Present] {
            world.replace(Member::Killed(1), release).await;
            world.submit(1).await;
            world.submit(1).await;
        }
        world.finish_round(CLIENTS).await;
        world.end().await;
    })
    .await;
}

/// A platform that is one process, with a log of its own or on NATS, killed in the middle of folding.
async fn a_lone_one_is_replaced(bus: Bus) {
    let mut server = Server::not_started(bus, &[]);
    server.change_to(Release::Old);
    server.start_again().await;
    let spec = json!({"goal": 6, "rounds": 2, "exact": EXACT.spec(), "checkpoints": {"keep_last": 9},
        "tensors": [{"match": "peak", "rule": "max"}]});
    let sent = Sent::new(body, weight, Reference::Exact(EXACT));
    let job = silent(server.api().begin("lone", spec, &body(0, 0)).await);
    for client in 0..6 {
        sent.accepted(&job, 1, client).await;
    }
    job.open_round(2).await;
    server.kill9();
    server.end_at("Flipped:2");
    server.start_again().await;
    let job = job.through(&server.api());
    let answer = job.api.try_call("PUT", &sent.path(&job, 2, 0), &[], Some(sent.body(2, 0))).await;
    server.ended().await;
    server.change_to(Release::Present);
    server.start_again().await;
    let job = job.through(&server.api());
    let again = job.api.call("PUT", &sent.path(&job, 2, 0), &[], Some(sent.body(2, 0))).await.expect(200).json();
    if let Ok(answer) = answer {
        assert_eq!(answer.expect(202).json()["receipt"], again["receipt"]);
    }
    sent.note(2, 0, &again["receipt"]);
    for client in 1..6 {
        sent.accepted(&job, 2, client).await;
    }
    job.in_state("completed").await;
    assert_eq!(sent.check(&job, &[server.api()]).await, 0);
    assert_eq!(sent.count(), 12);
    server.holds_no_slabs().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_server_is_replaced_in_the_middle_of_folding() {
    run(async {
        a_lone_one_is_replaced(Bus::Embedded).await;
        a_lone_one_is_replaced(Bus::Nats).await;
    })
    .await;
}
