//! Functions that take a round's updates all at once, end to end, against NumPy; and what becomes of their rounds when
//! the server dies, when an update makes them fail, and when there is no room.

use catchment_tests::{Bus, Job, Python, Server, Tensor, file, on_both_buses, read};
use serde_json::{Value, json};
use tempfile::TempDir;

const WEIGHTS: [f64; 9] = [1.0, 2.5, 0.125, 37.0, 10.0, 3.0, 0.75, 12.0, 4.0];

/// What an outside client wrote.
struct Files {
    dir: TempDir,
    plan: Value,
}

impl Files {
    fn write(function: &str, config: Value, more: Value) -> Self {
        let dir = TempDir::new().expect("make a folder");
        let mut plan = json!({"function": function, "config": config, "weights": WEIGHTS,
            "ranks": [4, 8, 1, 64, 16, 2, 3, 5, 32]});
        plan.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        Python::find().script("classes.py", &["write", &dir.path().display().to_string(), &plan.to_string()]);
        Self { dir, plan }
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join(name)).expect("a file that Python wrote")
    }

    async fn begin(&self, server: &Server, name: &str, more: Value) -> Job {
        let mut spec = json!({"function": self.plan["function"], "config": self.plan["config"], "goal": WEIGHTS.len(),
            "rounds": 1, "update": if self.plan["delta"] == true { "delta" } else { "weights" }});
        spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        server.api().begin(name, spec, &self.read("base.safetensors")).await
    }

    async fn submit(&self, job: &Job, k: usize) -> Value {
        self.submit_to(job, 1, k).await
    }

    async fn submit_to(&self, job: &Job, round: u64, k: usize) -> Value {
        let etag = job.call("GET", "/model").await.header("etag").to_owned();
        let (query, body) = (format!("weight={}", WEIGHTS[k]), self.read(&format!("update-{k}.safetensors")));
        let headers = [("catchment-base", etag.as_str())];
        job.submit_with(round, &format!("c{k}"), &query, &headers, &body).await.expect(202).json()["receipt"].clone()
    }

    /// NumPy's verdict on the published model.
    async fn check(&self, job: &Job) -> Value {
        job.in_state("completed").await;
        std::fs::write(self.dir.path().join("published.safetensors"), job.model(1).await).expect("keep the model");
        let folder = self.dir.path().display().to_string();
        let verdict = Python::find().script("classes.py", &["check", &folder, &self.plan.to_string()]);
        serde_json::from_str(&verdict).expect("a verdict")
    }
}

/// Submits in another order than the clients', and has NumPy judge.
async fn judged(bus: Bus, files: Files) -> Value {
    judged_as(bus, files, json!({})).await
}

/// The same with more in the spec.
async fn judged_as(bus: Bus, files: Files, more: Value) -> Value {
    let server = Server::start(bus).await;
    let job = files.begin(&server, "a", more).await;
    let mut receipts = Vec::new();
    for k in [4, 0, 8, 2, 6, 1, 3, 7, 5] {
        receipts.push(files.submit(&job, k).await);
    }
    let verdict = files.check(&job).await;
    for receipt in &receipts {
        assert_eq!(server.api().receipt(receipt).await["state"], "committed");
    }
    server.holds_no_slabs().await;
    verdict
}

on_both_buses! {
    async fn the_median_is_numpys(bus: Bus) {
        judged(bus, Files::write("median", json!({}), json!({"wrong": [2, 5]}))).await;
    }

    async fn the_trimmed_mean_of_deltas_is_numpys(bus: Bus) {
        judged(bus, Files::write("median", json!({"trim": 0.25}), json!({"delta": true}))).await;
    }

    async fn krum_chooses_as_numpy_does(bus: Bus) {
        let verdict = judged(bus, Files::write("krum", json!({"byzantine": 2}), json!({"wrong": [0, 7]}))).await;
        assert_eq!(verdict["chosen"].as_array().map(Vec::len), Some(1));
    }

    async fn multi_krum_averages_the_chosen(bus: Bus) {
        let config = json!({"byzantine": 2, "select": 4});
        judged(bus, Files::write("krum", config, json!({"wrong": [0, 7], "delta": true}))).await;
    }

    async fn flora_adds_the_mean_of_products_of_mixed_rank(bus: Bus) {
        judged(bus, Files::write("flora", json!({"alpha": 16}), json!({}))).await;
    }

    /// A rank of 0 says of a layer what leaving it out says, and a client may have nothing for any layer.
    async fn flora_takes_rank_0_as_a_layer_left_out(bus: Bus) {
        let ranks = json!([4, 0, [0, 8], [8, 0], 2, [0, 0], [1, 0], 5, 32]);
        for config in [json!({"alpha": 16}), json!({})] {
            judged(bus, Files::write("flora", config, json!({"ranks": ranks}))).await;
        }
        // The model stays as it is when nobody has anything.
        judged(bus, Files::write("flora", json!({}), json!({"ranks": [0, 0, 0, 0, 0, 0, 0, 0, 0]}))).await;
    }

    async fn gathered_updates_may_have_several_types(bus: Bus) {
        let spec = json!({"update_dtypes": ["F16", "F32", "F64"]});
        for (function, config, more) in [
            ("median", json!({}), json!({"mixed": true})),
            ("median", json!({"trim": 0.2}), json!({"mixed": true, "delta": true})),
            ("krum", json!({"byzantine": 2, "select": 3}), json!({"mixed": true})),
        ] {
            judged_as(bus, Files::write(function, config, more), spec.clone()).await;
        }
    }

    /// Tensors without elements, alone and beside others.
    async fn empty_tensors_stay_empty(bus: Bus) {
        let server = Server::start(bus).await;
        let empty = |x: f32| [Tensor::f32("e", &[0, 3], &[]), Tensor::i64("none", &[2, 0], &[]), Tensor::f32("w", &[], &[x])];
        for function in ["fedavg", "median", "krum"] {
            for (kind, count) in [("nothing", 0), ("empty", 2), ("some", 3)] {
                let name = format!("{function}-{kind}");
                let spec = json!({"function": function, "goal": 3, "rounds": 1, "tensors": [{"match": "none", "rule": "max"}]});
                let job = server.api().begin(&name, spec, &file(&empty(1.0)[..count])).await;
                for (client, x) in [("a", 2.0), ("b", 5.0), ("c", 2.0)] {
                    job.accepted(1, client, "", &file(&empty(x)[..count])).await;
                }
                job.in_state("completed").await;
                let model = read(&job.model(1).await);
                assert_eq!((model.len(), model.get("w").map(Vec::len)), (count, (count == 3).then_some(1)), "{name}");
                assert!(model.iter().all(|(name, values)| name == "w" || values.is_empty()), "{name}");
            }
        }
        let layers = [Tensor::f32("a.weight", &[0, 4], &[]), Tensor::f32("b.weight", &[4, 0], &[]), Tensor::f32("c.weight", &[2, 1], &[1.0, 2.0])];
        let job = server.api().begin("flora", json!({"function": "flora", "goal": 2, "rounds": 1}), &file(&layers)).await;
        let adapters = |x: f32| file(&[
            Tensor::f32("a.lora_A.weight", &[2, 4], &[x; 8]), Tensor::f32("a.lora_B.weight", &[0, 2], &[]),
            Tensor::f32("b.lora_A.weight", &[1, 0], &[]), Tensor::f32("b.lora_B.weight", &[4, 1], &[x; 4]),
            Tensor::f32("c.lora_A.weight", &[1, 1], &[x]), Tensor::f32("c.lora_B.weight", &[2, 1], &[1.0, 10.0]),
        ]);
        job.accepted(1, "a", "", &adapters(1.0)).await;
        job.accepted(1, "b", "", &adapters(3.0)).await;
        job.in_state("completed").await;
        let model = read(&job.model(1).await);
        assert_eq!((model["c.weight"].as_slice(), model["a.weight"].len() + model["b.weight"].len()), (&[3.0, 22.0][..], 0));
        server.holds_no_slabs().await;
    }

    /// Killed twice in mid-round and once when it is closed.
    async fn a_gathered_round_survives_kills(bus: Bus) {
        for function in ["median", "krum", "flora"] {
            let files = Files::write(function, json!({}), json!({}));
            let mut server = Server::start(bus).await;
            let mut job = files.begin(&server, "a", json!({})).await;
            for k in 0..WEIGHTS.len() {
                files.submit(&job, k).await;
                if [2, 5, 8].contains(&k) {
                    server.kill9();
                    server.start_again().await;
                    job = job.through(&server.api());
                }
            }
            files.check(&job).await;
            server.holds_no_slabs().await;
        }
    }

    async fn what_does_not_fit_is_refused(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        for (spec, field) in [
            (json!({"name": "a", "function": "median", "goal": 200}), "goal"),
            (json!({"name": "a", "function": "median", "exact": {"bound": 1, "weight_max": 1, "updates_max": 10}}), "exact"),
            (json!({"name": "a", "function": "krum", "topology": {"tree": {"leaves": 2, "middles": 0}}}), "topology"),
            (json!({"name": "a", "function": "flora", "tensors": [{"match": "*", "rule": "max"}]}), "tensors"),
            (json!({"name": "a", "function": "median", "config": {"trim": 0.5}}), "config"),
        ] {
            let problem = api.post("/v1/jobs", &spec).await.problem(422, "invalid_spec");
            assert_eq!(problem["fields"][0]["field"], field, "{problem}");
        }
        // Nine updates of a large model are more than the server may hold; a smaller goal would do.
        let files = Files::write("flora", json!({}), json!({}));
        let job = api.create("many", json!({"function": "median", "goal": 150})).await;
        let large = catchment_tests::file(&[catchment_tests::Tensor::f32("w", &[1 << 19], &vec![0.0; 1 << 19])]);
        job.put_model(&large).await.problem(422, "invalid_spec");
        api.patch(&job.path, &json!({"goal": 250})).await.problem(422, "invalid_spec");
        // An update of the model's own tensors is none of adapters.
        let job = files.begin(&server, "lora", json!({})).await;
        let problem = job.submit(1, "c", "", &large).await.problem(422, "layout");
        assert!(problem["expected"].as_str().is_some_and(|text| text.contains("lora_A")), "{problem}");
    }

    /// Krum needs more updates than there are: the round is asked again, and after the third the job waits for its owner.
    async fn a_refusal_pauses_the_job_with_its_reason(bus: Bus) {
        let files = Files::write("krum", json!({"byzantine": 5}), json!({}));
        let server = Server::start(bus).await;
        let job = files.begin(&server, "a", json!({})).await;
        for round in [1, 2, 3] {
            job.open_round(round).await;
            for k in 0..WEIGHTS.len() {
                files.submit_to(&job, round, k).await;
            }
        }
        let paused = job.in_state("paused").await;
        let reason = paused["reason"].as_str().expect("a reason");
        assert!(reason.contains("needs 13 updates, this one has 9"), "{reason}");
        server.holds_no_slabs().await;
    }
}
